//! What is measured of a launch, in which order, into which PCRs, and as which events.
//!
//! 1. With an H-CRTM: the firmware into PCR 0, by a hash sequence before TPM2_Startup (TPM 2.0 Library Part 1, H-CRTM; the
//!    profile's section 10.4.5, and `EV_EFI_HCRTM_EVENT` in 10.4.1). What is hashed are the components' measurements one
//!    behind the other, each the SHA-512 digest of a firmware file with its algorithm in front: a hash sequence takes the
//!    same bytes for all banks, and the firmware itself would have to be kept for each reset.
//! 2. The version of what begins the chain, this program, into PCR 0 (`EV_S_CRTM_VERSION`).
//! 3. Without an H-CRTM: the firmware into PCR 0 (`EV_EFI_PLATFORM_FIRMWARE_BLOB2`).
//! 4. Files, as [`FilePcr`] says.
//! 5. A separator into each of PCR 0 to 7.
//! 6. Kernel, command line and initrd into PCR 11 (`EV_IPL`), as systemd-stub does it with the sections of a unified kernel
//!    image: first the section's name with a zero behind it, then its content, and as the event's data the name in UTF-16.
//!
//! **PCR 11**, and not where others have such things. What UEFI measures of a kernel in PCR 4 is the digest of a PE image's
//! signed parts, together with events of the boot manager, which there is none of. GRUB measures command lines into PCR 8 and
//! files into PCR 9, but in pieces that depend on its scripts. Linux' EFI stub measures command line and initrd into PCR 9, but
//! in the guest itself, and under firmware with a TPM. PCR 11 is calculated, signed for and sealed to by existing tools
//! (`systemd-measure`, `systemd-cryptenroll`), and nothing else is in it before the operating system runs.
//!
//! **Separators** say that what the platform measures before the operating system ends here, and with that close the
//! PCR: who comes later, the guest, cannot make it tell of other firmware. That is true of all PCRs 0 to 7: we stand in for
//! the firmware, which does not know this TPM, so nobody measures more into them. 0: firmware and its version, or that only the
//! version was measured. 1, 3 and 5: configuration, as far as files were given for them. 2 and 4: code from elsewhere and boot
//! attempts, likewise. 6: the manufacturer's. 7: closed without a word about Secure Boot in front of it, so that neither
//! we nor the guest claim any.

mod pinned;
mod source;

use thiserror::Error;

use super::digests::{BANKS, Digests};
use super::event_log::{
    Digest, Event, EventLog, EventType, Format, HcrtmComponent, SpecId, WriteError, startup_locality_data,
};
use crate::pcr_bank::PcrBank;
use crate::tpm::{BUFFER_SIZE, Locality};
pub use pinned::FileError;
use pinned::Pinned;
pub use source::{Content, FilePcr, Section, Source, SourceError, SourceFile};

/// What is hashed of a component for the H-CRTM. No bank is weaker.
const HCRTM_BANK: PcrBank = PcrBank::SHA512;

/// Firmware files that it has room for: a hash sequence is one message to the TPM.
const MAX_HCRTM_FILES: usize = BUFFER_SIZE / 66;

/// The PCR into which kernel, command line and initrd go.
const KERNEL_PCR: u32 = 11;

/// Those that a separator closes.
const FIRMWARE_PCRS: std::ops::Range<u32> = 0..8;

/// Bytes of a name in an event: as many as its size field has numbers for.
const MAX_NAME: usize = 255;

/// Why a launch cannot be measured.
#[derive(Debug, Error)]
pub enum LaunchError {
    /// A file cannot be measured.
    #[error(transparent)]
    File(#[from] FileError),
    /// A part of which there is one is named twice.
    #[error("there is one {word}, and two were given to be measured")]
    Twice {
        /// The word of the command line.
        word: &'static str,
    },
    /// An H-CRTM without firmware.
    #[error("an H-CRTM measures firmware, and none was given: add firmware=PATH")]
    NoFirmware,
    /// A hash sequence takes no more.
    #[error("an H-CRTM measures up to {MAX_HCRTM_FILES} firmware files, and {0} were given")]
    TooMuchFirmware(usize),
}

/// The TPM has a bank that is not computed here: it would stay as it was at power-on, for a guest to fill as it likes.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error(
    "the TPM has a PCR bank {0}, for which a launch cannot be measured: give it some of sha1, sha256, sha384 and sha512"
)]
pub struct BankUnmeasured(pub PcrBank);

/// Why there is no log of a launch.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum LaunchLogError {
    /// A bank that is not computed.
    #[error(transparent)]
    Bank(#[from] BankUnmeasured),
    /// No room.
    #[error(transparent)]
    Write(#[from] WriteError),
}

/// What a launch consists of, with all digests: whatever happens to the files, it stays the same.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Launch {
    measurements: Vec<Measurement>,
    hash_sequence: Option<Vec<u8>>,
}

/// An event with digests for all banks.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Measurement {
    pcr: u32,
    event_type: EventType,
    /// None for an event that extends nothing.
    digests: Option<Digests>,
    data: Vec<u8>,
}

/// A PCR to be extended by TPM2_PCR_Extend, in all banks at once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Extend {
    /// The PCR's index.
    pub pcr: u32,
    /// One digest for each bank that was asked for, in the order of [`BANKS`].
    pub digests: Vec<Digest>,
}

impl Launch {
    /// Reads and measures all `sources`; with `hcrtm`, the firmware among them as an H-CRTM does. Blocks for as long as
    /// files take to be read.
    ///
    /// # Errors
    /// [`LaunchError`].
    pub fn measure(sources: &[Source], hcrtm: bool) -> Result<Self, LaunchError> {
        let mut firmware = Vec::new();
        for source in sources {
            if let Source::Firmware(file) = source {
                firmware.push((printable(&file.name), pinned::measure(&file.path)?));
            }
        }
        if hcrtm && firmware.is_empty() {
            return Err(LaunchError::NoFirmware);
        }
        if hcrtm && firmware.len() > MAX_HCRTM_FILES {
            return Err(LaunchError::TooMuchFirmware(firmware.len()));
        }
        let mut measurements = Vec::new();
        let hash_sequence = hcrtm.then(|| measure_by_hcrtm(&mut measurements, &firmware));
        let version = utf_16(concat!("vfio-user-tpm ", env!("CARGO_PKG_VERSION")));
        measurements.push(Measurement::of_data(0, EventType::S_CRTM_VERSION, version));
        if !hcrtm {
            measurements.extend(firmware.into_iter().map(|(name, pinned)| blob(0, &name, pinned)));
        }
        for source in sources {
            if let Source::File(pcr, file) = source {
                measurements.push(any_file(*pcr, &file.name, pinned::measure(&file.path)?));
            }
        }
        measurements.extend(FIRMWARE_PCRS.map(|pcr| Measurement::of_data(pcr, EventType::SEPARATOR, vec![0; 4])));
        for section in Section::ALL {
            let mut contents = sources.iter().filter_map(|source| match source {
                Source::Section(one, content) if *one == section => Some(content),
                _ => None,
            });
            if let Some(content) = contents.next() {
                measurements.extend(measure_section(section, content)?);
            }
            if contents.next().is_some() {
                return Err(LaunchError::Twice { word: section.word() });
            }
        }
        Ok(Self { measurements, hash_sequence })
    }

    /// What is to be hashed by `_TPM_Hash_Start`, `_TPM_Hash_Data` and `_TPM_Hash_End` at locality 4 between `_TPM_Init` and
    /// TPM2_Startup, if there is an H-CRTM: 66 bytes for each firmware file.
    #[must_use]
    pub fn hash_sequence(&self) -> Option<&[u8]> {
        self.hash_sequence.as_deref()
    }

    /// What is to be extended after TPM2_Startup, in this order, on a TPM whose active banks are `banks`.
    ///
    /// # Errors
    /// [`BankUnmeasured`].
    pub fn extends(&self, banks: &[PcrBank]) -> Result<Vec<Extend>, BankUnmeasured> {
        let banks = computed(banks)?;
        let by_command = self.measurements.iter().filter(|one| one.event_type != EventType::EFI_HCRTM_EVENT);
        Ok(by_command
            .filter(|one| one.digests.is_some())
            .map(|one| Extend { pcr: one.pcr, digests: one.digests(&banks) })
            .collect())
    }

    /// The log of all that, for a TPM whose active banks are `banks`.
    ///
    /// # Errors
    /// [`BankUnmeasured`].
    pub fn event_log(&self, banks: &[PcrBank]) -> Result<EventLog, BankUnmeasured> {
        let banks = computed(banks)?;
        let event = |one: &Measurement| Event {
            pcr: one.pcr,
            event_type: one.event_type,
            digests: one.digests(&banks),
            data: one.data.clone(),
        };
        let events = self.measurements.iter().map(event).collect();
        Ok(EventLog { format: Format::CryptoAgile(SpecId::new(&banks)), events })
    }

    /// As [`event_log`](Self::event_log), as bytes, of which there is room for `room`. To be called before anything is
    /// extended.
    ///
    /// # Errors
    /// [`LaunchLogError`].
    pub fn log_bytes(&self, banks: &[PcrBank], room: usize) -> Result<Vec<u8>, LaunchLogError> {
        Ok(self.event_log(banks)?.to_bytes(room)?)
    }
}

impl Measurement {
    /// An event whose data are what is measured.
    fn of_data(pcr: u32, event_type: EventType, data: Vec<u8>) -> Self {
        Self { pcr, event_type, digests: Some(Digests::of(&data)), data }
    }

    /// An event that extends nothing.
    fn no_action(data: Vec<u8>) -> Self {
        Self { pcr: 0, event_type: EventType::NO_ACTION, digests: None, data }
    }

    /// Of `banks`, which are all among [`BANKS`].
    fn digests(&self, banks: &[PcrBank]) -> Vec<Digest> {
        let digest = |bank: &PcrBank| {
            let value = match &self.digests {
                Some(digests) => digests.get(*bank)?.to_vec(),
                None => vec![0; bank.digest_size()?],
            };
            Some(Digest { bank: *bank, value })
        };
        banks.iter().filter_map(digest).collect()
    }
}

/// Those of `banks` in the order of [`BANKS`], if they are all computed.
fn computed(banks: &[PcrBank]) -> Result<Vec<PcrBank>, BankUnmeasured> {
    match banks.iter().find(|bank| !BANKS.contains(bank)) {
        Some(other) => Err(BankUnmeasured(*other)),
        None => Ok(BANKS.into_iter().filter(|bank| banks.contains(bank)).collect()),
    }
}

/// Adds the events of an H-CRTM, and returns what it hashes.
fn measure_by_hcrtm(measurements: &mut Vec<Measurement>, firmware: &[(String, Pinned)]) -> Vec<u8> {
    measurements.push(Measurement::no_action(startup_locality_data(Locality::FOUR)));
    let mut hashed = Vec::new();
    for (name, pinned) in firmware {
        let digest = pinned.digests.get(HCRTM_BANK).unwrap_or_default();
        let component = HcrtmComponent::of_digest(name.as_bytes(), HCRTM_BANK, digest);
        measurements.push(Measurement::no_action(component.to_bytes()));
        hashed.extend(component.measurement);
    }
    let digests = Some(Digests::of(&hashed));
    let (event_type, data) = (EventType::EFI_HCRTM_EVENT, b"HCRTM".to_vec());
    measurements.push(Measurement { pcr: 0, event_type, digests, data });
    hashed
}

/// `UEFI_PLATFORM_FIRMWARE_BLOB2` (the profile's section 10.2.5). Where in the guest it will be is not known: address 0.
fn blob(pcr: u32, name: &str, pinned: Pinned) -> Measurement {
    let mut data = vec![u8::try_from(name.len()).unwrap_or(u8::MAX)];
    data.extend(name.as_bytes());
    data.extend([0; 8]);
    data.extend(pinned.size.to_le_bytes());
    let event_type = EventType::EFI_PLATFORM_FIRMWARE_BLOB2;
    Measurement { pcr, event_type, digests: Some(pinned.digests), data }
}

fn any_file(pcr: FilePcr, name: &str, pinned: Pinned) -> Measurement {
    let (index, event_type) = (pcr.index().into(), pcr.event_type());
    let data = match event_type {
        EventType::EFI_PLATFORM_FIRMWARE_BLOB2 => return blob(index, &printable(name), pinned),
        // As the sections' names.
        EventType::IPL => utf_16(&printable(name)),
        _ => printable(name).into_bytes(),
    };
    Measurement { pcr: index, event_type, digests: Some(pinned.digests), data }
}

fn measure_section(section: Section, content: &Content) -> Result<[Measurement; 2], FileError> {
    let name = format!("{}\0", section.name());
    let content = match content {
        Content::Path(path) => pinned::measure(path)?.digests,
        Content::Bytes(bytes) => Digests::of(bytes),
    };
    Ok([Digests::of(name.as_bytes()), content].map(|digests| Measurement {
        pcr: KERNEL_PCR,
        event_type: EventType::IPL,
        digests: Some(digests),
        data: utf_16(section.name()),
    }))
}

/// Printable ASCII, as the profile has it in these events, and no longer than their size fields can say.
fn printable(name: &str) -> String {
    let printable = |c: char| if c.is_ascii_graphic() || c == ' ' { c } else { '?' };
    name.chars().map(printable).take(MAX_NAME).collect()
}

/// UTF-16 with a zero behind it, little-endian.
fn utf_16(text: &str) -> Vec<u8> {
    text.encode_utf16().chain([0]).flat_map(u16::to_le_bytes).collect()
}

#[cfg(test)]
mod tests;
