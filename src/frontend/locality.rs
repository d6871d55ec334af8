//! Who owns the TPM: the localities' requests, grants, releases and seizures, and the establishment flag that every
//! interface shows beside them. Sources: TCG PC Client TIS 1.3 and PTP 1.05, `TPM_ACCESS_x`.
//!
//! A locality is granted the TPM at once when none is active. What becomes of a command when the owner changes is the
//! interface's business: it compares [`Localities::active`] before and after.

mod state;

use crate::tpm::Locality;
pub use state::{LocalitiesState, LocalitiesStateError};

/// Bytes of one locality's page of registers, in whichever interface.
pub(super) const PAGE: u64 = 0x1000;

/// The address of a register of this locality, `register` bytes from the start of its page.
pub(super) fn address(locality: Locality, register: u64) -> u64 {
    u64::from(locality.number()).saturating_mul(PAGE).saturating_add(register)
}

/// A set of localities.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct LocalitySet(u8);

impl LocalitySet {
    const fn bit(locality: Locality) -> u8 {
        1 << locality.number()
    }

    const fn contains(self, locality: Locality) -> bool {
        self.0 & Self::bit(locality) != 0
    }

    const fn insert(&mut self, locality: Locality) {
        self.0 |= Self::bit(locality);
    }

    const fn remove(&mut self, locality: Locality) {
        self.0 &= !Self::bit(locality);
    }

    const fn without(mut self, locality: Locality) -> Self {
        self.remove(locality);
        self
    }

    const fn is_empty(self) -> bool {
        self.0 == 0
    }

    fn highest(self) -> Option<Locality> {
        Locality::all().rev().find(|&locality| self.contains(locality))
    }
}

/// The ownership of one TPM among its localities. At most one is active, and an active one has no request pending.
#[derive(Clone, Debug, Default)]
pub(super) struct Localities {
    active: Option<Locality>,
    requests: LocalitySet,
    been_seized: LocalitySet,
    established: bool,
}

impl Localities {
    /// The locality that owns the TPM.
    pub(super) fn active(&self) -> Option<Locality> {
        self.active
    }

    /// Whether this locality owns the TPM.
    pub(super) fn is_active(&self, locality: Locality) -> bool {
        self.active == Some(locality)
    }

    /// `requestUse`: this locality waits for the TPM.
    pub(super) fn has_requested(&self, locality: Locality) -> bool {
        self.requests.contains(locality)
    }

    /// `pendingRequest`: a locality other than this one waits for the TPM.
    pub(super) fn others_wait(&self, locality: Locality) -> bool {
        !self.requests.without(locality).is_empty()
    }

    /// `beenSeized`: the TPM was taken away from this locality since it last cleared the flag.
    pub(super) fn been_seized(&self, locality: Locality) -> bool {
        self.been_seized.contains(locality)
    }

    /// Whether the TPM has `tpmEstablished` set. The register bit is its inverse.
    pub(super) fn established(&self) -> bool {
        self.established
    }

    /// Takes over `tpmEstablished` as the TPM reports it.
    pub(super) fn set_established(&mut self, established: bool) {
        self.established = established;
    }

    /// Grants the TPM if none is active, else remembers the request.
    pub(super) fn request(&mut self, locality: Locality) {
        match self.active {
            None => self.grant(Some(locality)),
            Some(active) if active == locality => {}
            Some(_) => self.requests.insert(locality),
        }
    }

    /// Gives the TPM to the highest locality that waits. From a locality that isn't active: withdraws its request.
    pub(super) fn relinquish(&mut self, locality: Locality) {
        if self.is_active(locality) {
            self.grant(self.requests.highest());
        } else {
            self.requests.remove(locality);
        }
    }

    /// Takes the TPM from a lower locality, or from none. Of no effect on one's own or a higher locality.
    pub(super) fn seize(&mut self, locality: Locality) {
        if self.active.is_some_and(|active| active >= locality) {
            return;
        }
        if let Some(loser) = self.active {
            self.been_seized.insert(loser);
        }
        self.grant(Some(locality));
    }

    /// Clears this locality's `beenSeized`.
    pub(super) fn clear_been_seized(&mut self, locality: Locality) {
        self.been_seized.remove(locality);
    }

    /// Power-on: no owner, no requests. The establishment flag lives in the TPM and stays as last reported.
    pub(super) fn reset(&mut self) {
        *self = Self { established: self.established, ..Self::default() };
    }

    fn grant(&mut self, locality: Option<Locality>) {
        if let Some(locality) = locality {
            self.requests.remove(locality);
        }
        self.active = locality;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn locality(number: u8) -> Locality {
        Locality::new(number).expect("0 to 4")
    }

    fn owned_by(number: u8) -> Localities {
        let mut localities = Localities::default();
        localities.request(locality(number));
        localities
    }

    #[test]
    fn a_request_is_granted_at_once_when_none_is_active() {
        let localities = owned_by(2);
        assert_eq!(localities.active(), Some(locality(2)));
        assert!(!localities.has_requested(locality(2)));
    }

    #[test]
    fn a_request_waits_while_another_is_active() {
        let mut localities = owned_by(0);
        localities.request(locality(3));
        assert!(localities.is_active(locality(0)));
        assert!(localities.has_requested(locality(3)));
        assert!(localities.others_wait(locality(0)));
        assert!(!localities.others_wait(locality(3)));
    }

    #[test]
    fn a_request_by_the_owner_changes_nothing() {
        let mut localities = owned_by(1);
        localities.request(locality(1));
        assert!(localities.is_active(locality(1)));
        assert!(!localities.has_requested(locality(1)));
    }

    #[test]
    fn release_hands_over_to_the_highest_requester() {
        let mut localities = owned_by(0);
        localities.request(locality(1));
        localities.request(locality(3));
        localities.request(locality(2));
        localities.relinquish(locality(0));
        assert_eq!(localities.active(), Some(locality(3)));
        assert!(!localities.has_requested(locality(3)));
        localities.relinquish(locality(3));
        assert_eq!(localities.active(), Some(locality(2)));
        assert!(localities.others_wait(locality(2)));
    }

    #[test]
    fn release_without_requesters_leaves_no_owner() {
        let mut localities = owned_by(0);
        localities.relinquish(locality(0));
        assert_eq!(localities.active(), None);
    }

    #[test]
    fn release_by_another_withdraws_its_request_only() {
        let mut localities = owned_by(0);
        localities.request(locality(1));
        localities.relinquish(locality(1));
        assert_eq!(localities.active(), Some(locality(0)));
        assert!(!localities.others_wait(locality(0)));
    }

    #[test]
    fn seize_by_a_higher_locality_takes_the_tpm_and_marks_the_loser() {
        let mut localities = owned_by(1);
        localities.request(locality(0));
        localities.seize(locality(2));
        assert_eq!(localities.active(), Some(locality(2)));
        assert!(localities.been_seized(locality(1)));
        assert!(!localities.been_seized(locality(2)));
        assert!(localities.has_requested(locality(0)), "a request survives a seizure");
    }

    #[test]
    fn seize_by_a_lower_locality_is_ignored() {
        let mut localities = owned_by(2);
        localities.seize(locality(1));
        assert_eq!(localities.active(), Some(locality(2)));
        assert!(!localities.been_seized(locality(2)));
    }

    #[test]
    fn seize_by_the_owner_is_ignored() {
        let mut localities = owned_by(2);
        localities.seize(locality(2));
        assert!(localities.is_active(locality(2)));
        assert!(!localities.been_seized(locality(2)));
    }

    #[test]
    fn seize_of_a_free_tpm_is_a_grant() {
        let mut localities = Localities::default();
        localities.seize(locality(0));
        assert_eq!(localities.active(), Some(locality(0)));
        assert!(Locality::all().all(|l| !localities.been_seized(l)));
    }

    #[test]
    fn seize_fulfils_the_seizers_own_request() {
        let mut localities = owned_by(0);
        localities.request(locality(2));
        localities.seize(locality(2));
        assert!(!localities.has_requested(locality(2)));
    }

    #[test]
    fn been_seized_stays_until_it_is_cleared() {
        let mut localities = owned_by(0);
        localities.seize(locality(1));
        localities.relinquish(locality(1));
        localities.request(locality(0));
        assert!(localities.been_seized(locality(0)));
        localities.clear_been_seized(locality(0));
        assert!(!localities.been_seized(locality(0)));
    }

    #[test]
    fn reset_frees_the_tpm_and_keeps_the_establishment_flag() {
        let mut localities = owned_by(0);
        localities.request(locality(1));
        localities.seize(locality(3));
        localities.set_established(true);
        localities.reset();
        assert_eq!(localities.active(), None);
        assert!(Locality::all().all(|l| !localities.has_requested(l) && !localities.been_seized(l)));
        assert!(localities.established());
    }
}
