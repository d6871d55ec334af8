//! The operations of the specification: which of them there are here, and what the host has to have agreed to.

use bitflags::bitflags;
use serde::{Deserialize, Serialize};

use crate::pcr_bank::PcrBank;

/// The operation that withdraws a request.
pub(super) const NO_OPERATION: u32 = 0;

bitflags! {
    /// What the host lets a guest have done to its TPM.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct Consent: u8 {
        /// Clear it: the owner's keys and NV indices are gone.
        const CLEAR = 1 << 0;
        /// Choose its PCR banks.
        const PCR_BANKS = 1 << 1;
        /// Give it another endorsement primary seed: its certificates are void.
        const CHANGE_EPS = 1 << 2;
    }
}

/// An operation that is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// Its number in the specification.
    pub operation: u32,
    /// Its argument; most operations have none.
    pub argument: u32,
}

/// What is done for an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Operations 5, 14, 21 and 22. What the last three enable besides is enabled anyway.
    Clear,
    /// Operation 23: the TPM has the PCR banks of the argument, and no others.
    SetPcrBanks,
    /// Operation 24.
    ChangeEps,
    /// Operation 33: the TPM has all PCR banks that it can have.
    LogAllDigests,
}

impl Action {
    /// What is done for the operation of this number, if anything ever is.
    #[must_use]
    pub const fn of(operation: u32) -> Option<Self> {
        match operation {
            5 | 14 | 21 | 22 => Some(Self::Clear),
            23 => Some(Self::SetPcrBanks),
            24 => Some(Self::ChangeEps),
            33 => Some(Self::LogAllDigests),
            _ => None,
        }
    }

    /// The consent without which it is not done.
    #[must_use]
    pub const fn consent(self) -> Consent {
        match self {
            Self::Clear => Consent::CLEAR,
            Self::SetPcrBanks | Self::LogAllDigests => Consent::PCR_BANKS,
            Self::ChangeEps => Consent::CHANGE_EPS,
        }
    }
}

/// Whether an operation may be asked for: the answers of function 8.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Standing {
    /// There is no such operation here.
    NotImplemented = 0,
    /// It is the firmware's, which is the host's: operations that say when a person has to agree.
    FirmwareOnly = 1,
    /// The host has not agreed to it.
    Blocked = 2,
    // 3 is "allowed if a person agrees", and nobody is asked here.
    /// It is done at the next reset.
    Allowed = 4,
}

impl Standing {
    /// How it stands with the operation of this number.
    #[must_use]
    pub fn of(operation: u32, consent: Consent) -> Self {
        match (Action::of(operation), operation) {
            (Some(action), _) if consent.contains(action.consent()) => Self::Allowed,
            (Some(_), _) => Self::Blocked,
            (None, NO_OPERATION) => Self::Allowed,
            // SetPPRequiredForClear, -ChangePCRs, -TurnOn, -TurnOff and -ChangeEPS, on and off.
            (None, 17 | 18 | 25..=32) => Self::FirmwareOnly,
            (None, _) => Self::NotImplemented,
        }
    }
}

impl Request {
    /// Whether an operation can have this argument.
    #[must_use]
    pub fn is_sound(self) -> bool {
        match Action::of(self.operation) {
            Some(Action::SetPcrBanks) => {
                let known = BANKS.iter().fold(0, |bits, (bit, _)| bits | bit);
                self.argument != 0 && self.argument & !known == 0
            }
            _ => true,
        }
    }

    /// The PCR banks that the argument of [`Action::SetPcrBanks`] names.
    pub(super) fn banks(self) -> impl Iterator<Item = PcrBank> {
        BANKS.into_iter().filter(move |(bit, _)| self.argument & bit != 0).map(|(_, bank)| bank)
    }
}

/// The bits of PCR banks, as in the TCG EFI Protocol (`EFI_TCG2_BOOT_HASH_ALG_*`).
const BANKS: [(u32, PcrBank); 5] = [
    (1 << 0, PcrBank::SHA1),
    (1 << 1, PcrBank::SHA256),
    (1 << 2, PcrBank::SHA384),
    (1 << 3, PcrBank::SHA512),
    (1 << 4, PcrBank::from_algorithm(0x0012)), // SM3_256
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_consent_nothing_is_allowed_but_to_ask_for_nothing() {
        for operation in 0..=256 {
            let standing = Standing::of(operation, Consent::empty());
            assert_eq!(standing == Standing::Allowed, operation == NO_OPERATION, "{operation}");
        }
    }

    #[test]
    fn consent_opens_its_operations_and_no_others() {
        for (consent, operations) in
            [(Consent::CLEAR, &[5, 14, 21, 22][..]), (Consent::PCR_BANKS, &[23, 33]), (Consent::CHANGE_EPS, &[24])]
        {
            let allowed: Vec<_> = (1..=256).filter(|op| Standing::of(*op, consent) == Standing::Allowed).collect();
            assert_eq!(allowed, operations);
        }
    }

    #[test]
    fn what_asks_for_a_persons_consent_is_the_hosts_and_the_rest_is_not_there() {
        for (operation, standing) in [(17, 1), (18, 1), (25, 1), (32, 1), (1, 0), (2, 0), (34, 0), (96, 0), (128, 0)] {
            assert_eq!(Standing::of(operation, Consent::all()) as u32, standing, "{operation}");
        }
        assert_eq!(Standing::of(u32::MAX, Consent::all()), Standing::NotImplemented);
    }

    #[test]
    fn pcr_banks_are_some_of_those_that_have_a_bit() {
        let request = |argument| Request { operation: 23, argument };
        assert!(!request(0).is_sound() && !request(0x20).is_sound() && !request(u32::MAX).is_sound());
        assert!(request(0x1f).is_sound());
        assert_eq!(request(6).banks().map(|bank| bank.to_string()).collect::<Vec<_>>(), ["sha256", "sha384"]);
    }
}
