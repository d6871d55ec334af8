//! The register file as plain data: out to be kept, and in again, checked as anything that comes from outside.

use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::fifo::{CommandState, CommandStateError, Fifo};
use super::interrupts::{Interrupts, InterruptsState, ReservedBits};
use super::registers::InterfaceId;
use super::{Tis, TisConfig};
use crate::frontend::locality::{Localities, LocalitiesState, LocalitiesStateError};
use crate::tpm::{Locality, PerLocality};

/// All that a [`Tis`] remembers. What it *is*, its [`TisConfig`], is not part of it.
///
/// A running command is exported as it is ([`CommandState::Execution`], or [`CommandState::Stopping`] when nobody waits
/// for it any more): the registers don't know how far the backend is. Nor do they know whether the guest has asked to
/// cancel it. Who imports such a state has no backend that runs the command, and must do one of two things, or the
/// guest waits for ever:
/// - run [`Tis::command`] again, at the locality that is active. Right only with a backend whose own state is from
///   before the command, else it takes effect twice; there is nothing to run when the command is empty;
/// - [`Tis::complete`] it with no bytes: the guest reads a failure response, or nothing of a command that was stopping.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TisState {
    /// Who owns the TPM.
    pub localities: LocalitiesState,
    /// The interrupt registers of localities 0 to 4.
    pub interrupts: [InterruptsState; Locality::COUNT],
    /// `TPM_INTERFACE_ID` of PTP; there with TPM 1.2, too, though it doesn't show.
    pub interface_id: u32,
    /// The command and its response.
    pub command: CommandState,
}

/// Why a [`TisState`] is none that the registers can be in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum TisStateError {
    /// Of the localities.
    #[error(transparent)]
    Localities(#[from] LocalitiesStateError),
    /// Of a locality's interrupt registers.
    #[error("locality {locality}: {reserved_bits}")]
    Interrupts {
        /// The locality.
        locality: Locality,
        /// What is wrong.
        reserved_bits: ReservedBits,
    },
    /// The interface identifier is another device's.
    #[error("TPM_INTERFACE_ID is {found:#010x}: expected {expected:#010x}, with or without bit 19 (IntfSelLock)")]
    InterfaceId {
        /// What it is after power-on.
        expected: u32,
        /// What it is in the state.
        found: u32,
    },
    /// Of the command.
    #[error(transparent)]
    Command(#[from] CommandStateError),
    /// A command belongs to the active locality.
    #[error("there is a command, or the TPM is ready for one, and no locality is active: expected an idle TPM")]
    CommandWithoutOwner,
    /// The guest has used locality 4, and here it may not.
    #[error(
        "the guest has used locality 4: expected its registers untouched, or a device that opens them to the guest"
    )]
    LocalityFourUsed,
}

impl Tis {
    /// The register file as plain data. [`TisState`] says what that means for a command under way.
    #[must_use]
    pub fn state(&self) -> TisState {
        let Self { config: _, localities, interrupts, interface_id, fifo } = self;
        let mut interrupts_state = [Interrupts::POWER_ON.state(); Locality::COUNT];
        for (state, locality) in interrupts_state.iter_mut().zip(Locality::all()) {
            *state = interrupts[locality].state();
        }
        TisState {
            localities: localities.state(),
            interrupts: interrupts_state,
            interface_id: interface_id.bits(),
            command: fifo.state(),
        }
    }

    /// The register file that [`state`](Self::state) gave, as a TPM of this configuration. The caller has to deal with
    /// a command under way, if [`is_busy`](Self::is_busy): see [`TisState`].
    ///
    /// # Errors
    /// [`TisStateError`] for a state in which what [always holds](crate::frontend::tis) would not.
    pub fn from_state(config: TisConfig, state: &TisState) -> Result<Self, TisStateError> {
        let TisState { localities, interrupts: interrupts_state, interface_id, command } = state;
        let mut interrupts = PerLocality::all(Interrupts::POWER_ON);
        for (state, locality) in interrupts_state.iter().zip(Locality::all()) {
            interrupts[locality] = Interrupts::from_state(state)
                .map_err(|reserved_bits| TisStateError::Interrupts { locality, reserved_bits })?;
        }
        let tis = Self {
            config,
            localities: Localities::from_state(*localities)?,
            interrupts,
            interface_id: import_interface_id(*interface_id)?,
            fifo: Fifo::from_state(config.version, command)?,
        };
        if command.needs_owner() && tis.localities.active().is_none() {
            return Err(TisStateError::CommandWithoutOwner);
        }
        if !config.guest_locality_4 && tis.has_used(Locality::FOUR) {
            return Err(TisStateError::LocalityFourUsed);
        }
        Ok(tis)
    }

    /// Whether this locality owns or wants the TPM, or has set up its interrupts.
    fn has_used(&self, locality: Locality) -> bool {
        self.localities.is_active(locality)
            || self.localities.has_requested(locality)
            || self.interrupts[locality].state() != Interrupts::POWER_ON.state()
    }
}

fn import_interface_id(found: u32) -> Result<InterfaceId, TisStateError> {
    let expected = Tis::INTERFACE_ID;
    match InterfaceId::from_bits(found) {
        Some(id) if id.difference(InterfaceId::INTF_SEL_LOCK) == expected => Ok(id),
        _ => Err(TisStateError::InterfaceId { expected: expected.bits(), found }),
    }
}
