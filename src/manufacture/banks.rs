//! The PCR banks of a TPM 2.0.

use super::ManufactureError;
use super::tpm2::{EMPTY_PASSWORD, TPM_RH_PLATFORM, TPM_ST_NO_SESSIONS, TPM_ST_SESSIONS};
use super::wire::{Command, Transport};
use crate::pcr_bank::{self, PcrBank};

const TPM_CC_PCR_ALLOCATE: u32 = 0x12b;
const TPM_CC_GET_CAPABILITY: u32 = 0x17a;
const TPM_CAP_PCRS: u32 = 5;
/// Bytes in the bit map of PCRs 0 to 23.
const SELECT_SIZE: u8 = 3;

/// Which of the banks that a TPM knows are in use.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Allocation(Vec<(PcrBank, bool)>);

impl Allocation {
    fn of(tpm: &mut dyn Transport) -> Result<Self, ManufactureError> {
        let response = Command::new("TPM2_GetCapability(PCRS)", TPM_ST_NO_SESSIONS, TPM_CC_GET_CAPABILITY)
            .u32(TPM_CAP_PCRS)
            .u32(0)
            .u32(1)
            .run(tpm)?;
        response.parse(|parameters| pcr_bank::allocation(parameters).map(Self))
    }

    fn is_exactly(&self, wanted: &[PcrBank]) -> bool {
        self.0.iter().all(|(bank, used)| *used == wanted.contains(bank))
    }
}

/// Gives the TPM exactly the banks `wanted`. Returns whether it has to be started anew for that.
///
/// # Errors
/// [`ManufactureError::NoBank`], [`ManufactureError::Allocation`], and what stops a command.
pub(super) fn allocate(tpm: &mut dyn Transport, wanted: &[PcrBank]) -> Result<bool, ManufactureError> {
    let there = Allocation::of(tpm)?;
    let list =
        |banks: &mut dyn Iterator<Item = PcrBank>| banks.map(|bank| bank.to_string()).collect::<Vec<_>>().join(", ");
    if let Some(missing) = wanted.iter().find(|bank| there.0.iter().all(|(known, _)| known != *bank)) {
        return Err(ManufactureError::NoBank {
            wanted: *missing,
            there: list(&mut there.0.iter().map(|(bank, _)| *bank)),
        });
    }
    if there.is_exactly(wanted) {
        return Ok(false);
    }
    let count = u32::try_from(there.0.len()).unwrap_or(u32::MAX);
    let command = Command::new("TPM2_PCR_Allocate", TPM_ST_SESSIONS, TPM_CC_PCR_ALLOCATE)
        .u32(TPM_RH_PLATFORM)
        .bytes(&EMPTY_PASSWORD)
        .u32(count);
    let command = there.0.iter().fold(command, |command, (bank, _)| {
        let all: u8 = if wanted.contains(bank) { 0xff } else { 0 };
        command.u16(bank.algorithm()).u8(SELECT_SIZE).bytes(&[all; 3])
    });
    // parameterSize, allocationSuccess, and how much room it takes and has.
    let (_size, success) = command.run(tpm)?.read(|reader| Some((reader.u32()?, reader.u8()?)))?;
    if success != 1 {
        return Err(ManufactureError::Allocation(list(&mut wanted.iter().copied())));
    }
    Ok(true)
}

/// Makes sure that the TPM has exactly the banks `wanted`.
///
/// # Errors
/// [`ManufactureError::Allocation`] if not.
pub(super) fn check(tpm: &mut dyn Transport, wanted: &[PcrBank]) -> Result<(), ManufactureError> {
    if Allocation::of(tpm)?.is_exactly(wanted) {
        return Ok(());
    }
    let list: Vec<_> = wanted.iter().map(ToString::to_string).collect();
    Err(ManufactureError::Allocation(list.join(", ")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manufacture::wire::Canned;

    fn capability(count: u32, banks: &[u8]) -> Canned {
        let mut response = vec![0x80, 1];
        response.extend(u32::try_from(19 + banks.len()).unwrap().to_be_bytes());
        response.extend([0, 0, 0, 0, 0, 0, 0, 0, 5]);
        response.extend(count.to_be_bytes());
        response.extend(banks);
        Canned(response)
    }

    fn banks(names: &str) -> Vec<PcrBank> {
        names.split(',').map(|name| name.parse().unwrap()).collect()
    }

    #[test]
    fn banks_that_are_as_wanted_need_no_restart() {
        let mut tpm = capability(2, &[0, 4, 3, 0, 0, 0, 0, 0x0b, 3, 0xff, 0xff, 0xff]);
        assert!(!allocate(&mut tpm, &banks("sha256")).unwrap());
        assert!(check(&mut tpm, &banks("sha1")).is_err());
    }

    #[test]
    fn a_bank_that_the_tpm_lacks_is_named_with_those_it_has() {
        let mut tpm = capability(2, &[0, 4, 3, 0, 0, 0, 0, 0x0b, 3, 0xff, 0xff, 0xff]);
        let error = allocate(&mut tpm, &banks("sha256,sha3_256")).unwrap_err().to_string();
        assert!(error.contains("no PCR bank sha3_256") && error.contains("sha1, sha256"), "{error}");
    }

    #[test]
    fn a_tpm_with_endless_banks_is_not_believed() {
        assert!(Allocation::of(&mut capability(u32::MAX, &[])).is_err());
        assert!(Allocation::of(&mut capability(1, &[0, 4, 200, 0])).is_err());
    }
}
