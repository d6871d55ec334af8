//! The TPM as a guest's programs use it.

use super::Guest;

/// A TPM of one version: 2.0 is used through tpm2-tools, 1.2 by raw commands (`/lib/tpm12.sh`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Tpm {
    V1_2,
    V2_0,
}

/// The NV index that a guest defines: with 1.2 one without flags, with 2.0 one of the owner's range.
const NV_INDEX_1_2: u32 = 0x16;
const NV_INDEX_2_0: u32 = 0x0150_0016;

impl Tpm {
    /// As in `--tpm-version`.
    pub(crate) fn version(self) -> &'static str {
        match self {
            Self::V1_2 => "1.2",
            Self::V2_0 => "2.0",
        }
    }

    /// The major number that Linux shows.
    pub(crate) fn major(self) -> u32 {
        match self {
            Self::V1_2 => 1,
            Self::V2_0 => 2,
        }
    }

    /// The value of a PCR after a reset, but for those of a dynamic launch.
    pub(crate) fn zero(self) -> String {
        "0".repeat(match self {
            Self::V1_2 => 40,
            Self::V2_0 => 64,
        })
    }

    /// A script that prints the value of a PCR in lower-case hex: SHA-256, with 1.2 SHA-1.
    pub(crate) fn pcr_script(self, index: u32) -> String {
        match self {
            Self::V1_2 => format!(". /lib/tpm12.sh && tpm12_pcr_read {index}"),
            Self::V2_0 => format!("tpm2_pcrread -Q -o /tmp/pcr sha256:{index} && xxd -p -c 32 /tmp/pcr"),
        }
    }

    /// The value of a PCR, in lower-case hex.
    #[track_caller]
    pub(crate) fn pcr(self, guest: &mut Guest, index: u32) -> String {
        guest.check(&self.pcr_script(index)).trim().to_owned()
    }

    /// Extends a PCR by the hash of `event`.
    #[track_caller]
    pub(crate) fn extend(self, guest: &mut Guest, index: u32, event: &str) {
        guest.check(&match self {
            Self::V1_2 => {
                format!(". /lib/tpm12.sh && tpm12_extend {index} $(printf %s '{event}' | sha1sum | cut -c 1-40)")
            }
            Self::V2_0 => format!("tpm2_pcrextend {index}:sha256=$(printf %s '{event}' | sha256sum | cut -c 1-64)"),
        });
    }

    /// The value to which an extend by the hash of `event` brings a PCR that has `value`, by busybox's reckoning.
    #[track_caller]
    pub(crate) fn extended(self, guest: &mut Guest, value: &str, event: &str) -> String {
        let hash = match self {
            Self::V1_2 => "sha1sum",
            Self::V2_0 => "sha256sum",
        };
        let script = format!(
            "(echo {value}; printf %s '{event}' | {hash} | cut -d ' ' -f 1) | xxd -r -p | {hash} | cut -d ' ' -f 1"
        );
        guest.check(&script).trim().to_owned()
    }

    /// Defines an NV index and writes `text` there.
    #[track_caller]
    pub(crate) fn write_nv(self, guest: &mut Guest, text: &str) {
        let size = text.len();
        guest.check(&match self {
            Self::V1_2 => {
                format!(
                    ". /lib/tpm12.sh && tpm12_nv_define {NV_INDEX_1_2} {size} && tpm12_nv_write {NV_INDEX_1_2} '{text}'"
                )
            }
            Self::V2_0 => format!(
                "tpm2_nvdefine -Q {NV_INDEX_2_0} -C o -s {size} -a 'ownerread|ownerwrite' &&
                 printf %s '{text}' | tpm2_nvwrite -Q {NV_INDEX_2_0} -C o -i -"
            ),
        });
    }

    /// The NV index must hold `text`.
    #[track_caller]
    pub(crate) fn assert_nv(self, guest: &mut Guest, text: &str) {
        let found = guest.check(&match self {
            Self::V1_2 => format!(". /lib/tpm12.sh && tpm12_nv_read {NV_INDEX_1_2} {} | xxd -r -p", text.len()),
            Self::V2_0 => format!("tpm2_nvread {NV_INDEX_2_0} -C o"),
        });
        assert_eq!(found, text);
    }
}
