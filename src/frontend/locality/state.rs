//! The ownership as plain data.

use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::{Localities, LocalitySet};
use crate::tpm::Locality;

/// Who owns the TPM, who waits for it, and who lost it. In a set of localities, bit N is locality N.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LocalitiesState {
    /// The locality that owns the TPM, 0 to 4.
    pub active: Option<u8>,
    /// The set of those with `requestUse`. Empty when none is active: a request would have been granted.
    pub requests: u8,
    /// The set of those with `beenSeized`. Never locality 4, since none is higher.
    pub been_seized: u8,
    /// The TPM's `tpmEstablished`, as last reported.
    pub established: bool,
}

/// Why a [`LocalitiesState`] is none that the localities can be in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum LocalitiesStateError {
    /// There is no such locality.
    #[error("the active locality is {0}: expected 0 to 4")]
    NoSuchLocality(u8),
    /// A set has bits of localities that don't exist.
    #[error("the set of localities with {flag} is {found:#04x}: expected bits 0 to 4 alone")]
    ReservedBits {
        /// The set's name.
        flag: &'static str,
        /// Its bits.
        found: u8,
    },
    /// The owner still waits for what it has.
    #[error("locality {0} is active and has requestUse: expected one of them")]
    OwnerWaits(u8),
    /// Localities wait for a TPM that nobody has.
    #[error("no locality is active, yet those of {0:#04x} have requestUse: expected the highest to be active")]
    NothingToWaitFor(u8),
    /// The highest locality was seized from.
    #[error("locality 4 has beenSeized: expected no higher locality that could have done it")]
    HighestSeized,
}

impl Localities {
    /// The ownership as plain data.
    pub(in crate::frontend) fn state(&self) -> LocalitiesState {
        let Self { active, requests: LocalitySet(requests), been_seized: LocalitySet(been_seized), established } =
            *self;
        LocalitiesState { active: active.map(Locality::number), requests, been_seized, established }
    }

    /// The ownership that [`state`](Self::state) gave.
    pub(in crate::frontend) fn from_state(state: LocalitiesState) -> Result<Self, LocalitiesStateError> {
        let LocalitiesState { active, requests, been_seized, established } = state;
        let active = match active {
            Some(number) => Some(Locality::new(number).ok_or(LocalitiesStateError::NoSuchLocality(number))?),
            None => None,
        };
        let requests = LocalitySet::from_bits("requestUse", requests)?;
        let been_seized = LocalitySet::from_bits("beenSeized", been_seized)?;
        match active {
            None if !requests.is_empty() => Err(LocalitiesStateError::NothingToWaitFor(requests.0)),
            Some(owner) if requests.contains(owner) => Err(LocalitiesStateError::OwnerWaits(owner.number())),
            _ if been_seized.contains(Locality::FOUR) => Err(LocalitiesStateError::HighestSeized),
            _ => Ok(Self { active, requests, been_seized, established }),
        }
    }
}

impl LocalitySet {
    const ALL: u8 = (1 << Locality::COUNT) - 1;

    fn from_bits(flag: &'static str, found: u8) -> Result<Self, LocalitiesStateError> {
        if found & !Self::ALL == 0 { Ok(Self(found)) } else { Err(LocalitiesStateError::ReservedBits { flag, found }) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWNED: LocalitiesState =
        LocalitiesState { active: Some(2), requests: 0b01011, been_seized: 0b00011, established: true };

    fn refusal(state: LocalitiesState) -> LocalitiesStateError {
        Localities::from_state(state).expect_err("a refusal")
    }

    #[test]
    fn what_goes_in_comes_out() {
        for state in [OWNED, LocalitiesState::default()] {
            assert_eq!(Localities::from_state(state).map(|localities| localities.state()), Ok(state));
        }
    }

    #[test]
    fn a_fifth_locality_is_refused_wherever_it_appears() {
        assert_eq!(refusal(LocalitiesState { active: Some(5), ..OWNED }), LocalitiesStateError::NoSuchLocality(5));
        let requested = refusal(LocalitiesState { requests: 0x20, ..OWNED });
        assert_eq!(requested, LocalitiesStateError::ReservedBits { flag: "requestUse", found: 0x20 });
        let seized = refusal(LocalitiesState { been_seized: 0x80, ..OWNED });
        assert_eq!(seized, LocalitiesStateError::ReservedBits { flag: "beenSeized", found: 0x80 });
    }

    #[test]
    fn an_owner_that_waits_is_refused() {
        assert_eq!(refusal(LocalitiesState { requests: 0b00100, ..OWNED }), LocalitiesStateError::OwnerWaits(2));
    }

    #[test]
    fn a_request_without_an_owner_is_refused() {
        assert_eq!(refusal(LocalitiesState { active: None, ..OWNED }), LocalitiesStateError::NothingToWaitFor(0b01011));
    }

    #[test]
    fn a_seizure_from_locality_4_is_refused() {
        assert_eq!(refusal(LocalitiesState { been_seized: 0b10000, ..OWNED }), LocalitiesStateError::HighestSeized);
    }
}
