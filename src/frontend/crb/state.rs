//! The register file as plain data: out to be kept, and in again, checked as anything that comes from outside.

use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::buffer::{self, BufferStateError};
use super::control::{CommandState, Control};
use super::interrupts::Interrupts;
use super::registers::{IntEnable, IntSts, IntfId};
use super::{Crb, CrbConfig};
use crate::frontend::Memory;
use crate::frontend::locality::{Localities, LocalitiesState, LocalitiesStateError};
use crate::tpm::{Locality, PerLocality};

/// All that a [`Crb`] remembers, and what is in its buffer. What it *is*, its [`CrbConfig`], is not part of it, nor where
/// BAR0 is: the configuration space remembers that.
///
/// A running command is exported as it is ([`CommandState::Execution`], or [`CommandState::Stopping`] when nobody waits
/// for it any more): the registers don't know how far the backend is. Who imports such a state has no backend that runs
/// the command, and must do one of two things, or the guest waits for ever:
/// - run [`Crb::command`] again, at the locality that is active. Right only with a backend whose own state is from
///   before the command, else it takes effect twice; there is nothing to run when the command is empty;
/// - [`Crb::complete`] it with no bytes: the guest reads a failure response, or a request to retry when it has started
///   another ([`Standing::Superseded`](super::Standing::Superseded)), or nothing of a command that was stopping.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CrbState {
    /// Who owns the TPM.
    pub localities: LocalitiesState,
    /// `TPM_CRB_INT_ENABLE_x` of localities 0 to 4.
    pub int_enable: [u32; Locality::COUNT],
    /// `TPM_CRB_INT_STS_x` of localities 0 to 4.
    pub int_sts: [u32; Locality::COUNT],
    /// `IntfSelLock` of `TPM_CRB_INTF_ID_x`.
    pub intf_sel_lock: bool,
    /// `TPM_CRB_CTRL_CANCEL_x`.
    pub cancel: bool,
    /// The command on its way.
    pub command: CommandState,
    /// What is in the buffer, at most 4096 bytes, up to the last that is not zero.
    pub buffer: Vec<u8>,
}

/// Why a [`CrbState`] is none that the registers can be in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum CrbStateError {
    /// Of the localities.
    #[error(transparent)]
    Localities(#[from] LocalitiesStateError),
    /// An interrupt register has bits that are reserved.
    #[error(
        "locality {locality}: TPM_CRB_INT_ENABLE is {enable:#010x} and TPM_CRB_INT_STS {status:#010x}: expected no bits but \
         those of {:#010x} and {:#010x}",
        IntEnable::all().bits(),
        IntSts::all().bits()
    )]
    Interrupts {
        /// The locality.
        locality: Locality,
        /// `TPM_CRB_INT_ENABLE_x`.
        enable: u32,
        /// `TPM_CRB_INT_STS_x`.
        status: u32,
    },
    /// Of the command or the buffer.
    #[error(transparent)]
    Buffer(#[from] BufferStateError),
    /// A command belongs to the active locality.
    #[error("there is a command, or the TPM is ready for one, and no locality is active: expected an idle TPM")]
    CommandWithoutOwner,
    /// A cancellation is the active locality's.
    #[error("TPM_CRB_CTRL_CANCEL is 1 and no locality is active: expected 0")]
    CancelWithoutOwner,
    /// The guest has used locality 4, and here it may not.
    #[error(
        "the guest has used locality 4: expected its registers untouched, or a device that opens them to the guest"
    )]
    LocalityFourUsed,
}

impl<M: Memory> Crb<M> {
    /// The register file as plain data. [`CrbState`] says what that means for a command under way.
    #[must_use]
    pub fn state(&self) -> CrbState {
        let Self { config: _, memory, bar0_address: _, localities, interrupts, intf_id, control } = self;
        let (mut int_enable, mut int_sts) = ([0; Locality::COUNT], [0; Locality::COUNT]);
        for ((enable, status), locality) in int_enable.iter_mut().zip(&mut int_sts).zip(Locality::all()) {
            (*enable, *status) = (interrupts[locality].enable(), interrupts[locality].status());
        }
        CrbState {
            localities: localities.state(),
            int_enable,
            int_sts,
            intf_sel_lock: intf_id.contains(IntfId::INTF_SEL_LOCK),
            cancel: control.cancel() != 0,
            command: control.state(),
            buffer: buffer::export(memory),
        }
    }

    /// The register file that [`state`](Self::state) gave, as a TPM of this configuration, its buffer in this memory. The
    /// caller has to [`place`](Self::place) it, and to deal with a command under way, if [`is_busy`](Self::is_busy): see
    /// [`CrbState`].
    ///
    /// # Errors
    /// [`CrbStateError`] for a state in which what [always holds](crate::frontend::crb) would not.
    pub fn from_state(config: CrbConfig, state: &CrbState, memory: M) -> Result<Self, CrbStateError> {
        let CrbState { localities, int_enable, int_sts, intf_sel_lock, cancel, command, buffer } = state;
        let mut interrupts = PerLocality::all(Interrupts::POWER_ON);
        for ((&enable, &status), locality) in int_enable.iter().zip(int_sts).zip(Locality::all()) {
            interrupts[locality] =
                Interrupts::from_bits(enable, status).ok_or(CrbStateError::Interrupts { locality, enable, status })?;
        }
        let mut intf_id = IntfId::POWER_ON;
        intf_id.set(IntfId::INTF_SEL_LOCK, *intf_sel_lock);
        let localities = Localities::from_state(*localities)?;
        let control = Control::from_state(*cancel, command)?;
        if localities.active().is_none() {
            if command.needs_owner() {
                return Err(CrbStateError::CommandWithoutOwner);
            }
            if *cancel {
                return Err(CrbStateError::CancelWithoutOwner);
            }
        }
        let mut crb = Self { config, memory, bar0_address: 0, localities, interrupts, intf_id, control };
        if !config.guest_locality_4 && crb.has_used(Locality::FOUR) {
            return Err(CrbStateError::LocalityFourUsed);
        }
        buffer::import(buffer, &mut crb.memory)?;
        Ok(crb)
    }

    /// Whether this locality owns or wants the TPM, or has set up its interrupts.
    fn has_used(&self, locality: Locality) -> bool {
        self.localities.is_active(locality)
            || self.localities.has_requested(locality)
            || self.interrupts[locality] != Interrupts::POWER_ON
    }
}
