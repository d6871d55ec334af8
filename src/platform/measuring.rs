//! Measuring what is launched: the commands by which firmware would do it, and the log of that.
//!
//! Sources: TPM 2.0 Library Part 3, sections 22.2 (TPM2_PCR_Extend) and 30.2 (TPM2_GetCapability).

use super::{EMPTY_PASSWORD, Step, TPM_ST_NO_SESSIONS, TPM_ST_SESSIONS, command};
use crate::measure::launch::{Extend, Launch};
use crate::pcr_bank;
use crate::tpm::HEADER_SIZE;

const TPM_CC_GET_CAPABILITY: u32 = 0x17a;
const TPM_CC_PCR_EXTEND: u32 = 0x182;
const TPM_CAP_PCRS: u32 = 5;

/// A launch that is measured after each `_TPM_Init`: the same one, whatever has become of its files.
#[derive(Debug)]
pub(super) struct Measuring {
    launch: Launch,
    /// Bytes that there are for the log.
    room: usize,
    /// The log of what is in the TPM's PCRs, or is about to be.
    log: Option<Vec<u8>>,
}

impl Measuring {
    pub(super) fn new(launch: Launch, room: usize) -> Self {
        Self { launch, room, log: None }
    }

    /// The TPM has been reset.
    pub(super) fn forget(&mut self) {
        self.log = None;
    }

    /// What comes before TPM2_Startup.
    pub(super) fn before_startup(&self) -> Option<Step> {
        let hashed = self.launch.hash_sequence()?;
        Some(Step::hash("the H-CRTM's measurement", hashed.to_vec()))
    }

    /// What comes after it: asks for the TPM's banks.
    pub(super) fn after_startup() -> Step {
        // The first and only property: all banks are in it.
        let parameters = [TPM_CAP_PCRS, 0, 1].map(u32::to_be_bytes).concat();
        let asking = command(TPM_ST_NO_SESSIONS, TPM_CC_GET_CAPABILITY, &[&parameters]);
        Step::asking("TPM2_GetCapability(PCRS)", asking)
    }

    /// What follows from the response, which is a success.
    ///
    /// # Errors
    /// Why the launch cannot be measured.
    pub(super) fn extends(&mut self, response: &[u8]) -> Result<Vec<Step>, String> {
        let capability = response.get(HEADER_SIZE..).unwrap_or_default();
        let banks = pcr_bank::allocation(capability).ok_or_else(|| {
            "the launch cannot be measured: the TPM gave no well-formed list of its PCR banks".to_owned()
        })?;
        let active: Vec<_> = banks.into_iter().filter_map(|(bank, active)| active.then_some(bank)).collect();
        // What does not fit is not begun with.
        self.log = Some(self.launch.log_bytes(&active, self.room).map_err(|error| error.to_string())?);
        let extends = self.launch.extends(&active).map_err(|error| error.to_string())?;
        Ok(extends.iter().map(|extend| Step::command("TPM2_PCR_Extend of the launch", pcr_extend(extend))).collect())
    }

    pub(super) fn log(&self) -> Option<&[u8]> {
        self.log.as_deref()
    }
}

/// TPM2_PCR_Extend. The `TPML_DIGEST_VALUES` has a digest for each bank.
fn pcr_extend(extend: &Extend) -> Vec<u8> {
    let count = u32::try_from(extend.digests.len()).unwrap_or(u32::MAX);
    let mut parameters = [extend.pcr.to_be_bytes().as_slice(), &EMPTY_PASSWORD, &count.to_be_bytes()].concat();
    for digest in &extend.digests {
        parameters.extend(digest.bank.algorithm().to_be_bytes());
        parameters.extend(&digest.value);
    }
    command(TPM_ST_SESSIONS, TPM_CC_PCR_EXTEND, &[&parameters])
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::measure::digests::Digests;
    use crate::measure::launch::Source;
    use crate::pcr_bank::PcrBank;

    /// Response to TPM2_GetCapability: SHA-256 active, SHA-1 not, and what else is given.
    pub(crate) fn banks(more: &[u8]) -> Vec<u8> {
        let count = 2 + u8::try_from(more.len() / 6).unwrap();
        let list = [&[0, 0, 0, 0, 5, 0, 0, 0, count, 0, 4, 3, 0, 0, 0, 0, 0x0b, 3, 0xff, 0xff, 0xff], more].concat();
        let size = u8::try_from(10 + list.len()).unwrap();
        [&[0x80, 1, 0, 0, 0, size, 0, 0, 0, 0], &list[..]].concat()
    }

    fn measuring(room: usize) -> Measuring {
        let sources = ["cmdline=quiet"].map(|source| Source::parse(source.as_ref()).unwrap());
        Measuring::new(Launch::measure(&sources, false).unwrap(), room)
    }

    #[test]
    fn each_event_is_extended_in_the_active_banks() {
        let mut measuring = measuring(4096);
        let steps = measuring.extends(&banks(&[])).unwrap();
        // The version, eight separators, and the command line with its name.
        assert_eq!(steps.len(), 11);
        let last = steps.last().unwrap().bytes();
        let digest = Digests::of(b"quiet");
        let parameters =
            [&[0, 0, 0, 11][..], &EMPTY_PASSWORD, &[0, 0, 0, 1, 0, 0x0b], digest.get(PcrBank::SHA256).unwrap()]
                .concat();
        assert_eq!(last, command(TPM_ST_SESSIONS, TPM_CC_PCR_EXTEND, &[&parameters]));
        assert!(measuring.log().is_some());
    }

    #[test]
    fn a_bank_that_cannot_be_measured_into_is_named() {
        let error = measuring(4096).extends(&banks(&[0, 0x12, 3, 1, 0, 0])).unwrap_err();
        assert!(error.contains("sm3_256"), "{error}");
        assert!(measuring(4096).extends(&banks(&[0, 0x12, 3, 0, 0, 0])).is_ok());
    }

    #[test]
    fn a_log_without_room_and_a_list_that_is_none_are_refused() {
        let mut measuring = measuring(100);
        assert!(measuring.extends(&banks(&[])).is_err() && measuring.log().is_none());
        let mut short = banks(&[]);
        short.pop();
        let error = self::measuring(4096).extends(&short).unwrap_err();
        assert!(error.contains("well-formed list"), "{error}");
    }
}
