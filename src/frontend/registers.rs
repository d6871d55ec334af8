//! The registers behind BAR0, whichever interface the device has.

use super::crb::{Crb, CrbDoorbell};
use super::tis::Tis;
use super::{Effect, Memory};

/// The registers behind BAR0, of whichever interface. Offsets are BAR0's ([`bar_map`](crate::bar_map)).
#[derive(Clone, Debug)]
pub enum Registers<M> {
    /// The FIFO interface.
    Tis(Tis),
    /// The command response buffer.
    Crb(Crb<M>),
    /// The command response buffer whose commands ACPI starts.
    CrbDoorbell(CrbDoorbell<M>),
}

impl<M: Memory> Registers<M> {
    /// Reads any number of bytes. Where the interface has nothing, that gives 0xff.
    pub fn read(&mut self, offset: u64, data: &mut [u8]) {
        match self {
            Self::Tis(tis) => tis.read(offset, data),
            Self::Crb(crb) => crb.read(offset, data),
            Self::CrbDoorbell(crb) => crb.read(offset, data),
        }
    }

    /// Writes any number of bytes; where the interface has nothing to be written they are dropped. What comes after a
    /// word that has an effect is dropped, too.
    #[must_use]
    pub fn write(&mut self, offset: u64, data: &[u8]) -> Option<Effect> {
        match self {
            Self::Tis(tis) => tis.write(offset, data),
            Self::Crb(crb) => crb.write(offset, data),
            Self::CrbDoorbell(crb) => crb.write(offset, data),
        }
    }

    /// The whole command that [`Effect::Execute`] asked to run, until it completes or is aborted; else empty.
    #[must_use]
    pub fn command(&self) -> &[u8] {
        match self {
            Self::Tis(tis) => tis.command(),
            Self::Crb(crb) => crb.command(),
            Self::CrbDoorbell(crb) => crb.command(),
        }
    }

    /// Whether an [`Effect::Execute`] has not been completed yet.
    #[must_use]
    pub fn is_busy(&self) -> bool {
        match self {
            Self::Tis(tis) => tis.is_busy(),
            Self::Crb(crb) => crb.is_busy(),
            Self::CrbDoorbell(crb) => crb.is_busy(),
        }
    }

    /// Completes the command of the last [`Effect::Execute`]. A response that isn't whole, by its own size field, or
    /// over [`BUFFER_SIZE`](crate::tpm::BUFFER_SIZE) is replaced by a failure; that of an aborted command is thrown
    /// away. Ignored when no command runs.
    pub fn complete(&mut self, response: &[u8]) {
        match self {
            Self::Tis(tis) => tis.complete(response),
            Self::Crb(crb) => crb.complete(response),
            Self::CrbDoorbell(crb) => crb.complete(response),
        }
    }

    /// Shows `tpmEstablished` as the TPM reports it, where the interface shows it.
    pub fn set_establishment(&mut self, established: bool) {
        match self {
            Self::Tis(tis) => tis.set_establishment(established),
            Self::Crb(crb) => crb.set_establishment(established),
            Self::CrbDoorbell(_) => {}
        }
    }

    /// Power-on. A command that still runs in the backend is forgotten: its result must not be passed to
    /// [`complete`](Self::complete). Where BAR0 is stays until the next [`place`](Self::place).
    pub fn reset(&mut self) {
        match self {
            Self::Tis(tis) => tis.reset(),
            Self::Crb(crb) => crb.reset(),
            Self::CrbDoorbell(crb) => crb.reset(),
        }
    }

    /// Takes over where the guest has put BAR0, 0 for nowhere: a CRB says where its buffer is.
    pub fn place(&mut self, bar0_address: u32) {
        match self {
            Self::Tis(_) => {}
            Self::Crb(crb) => crb.place(bar0_address),
            Self::CrbDoorbell(crb) => crb.place(bar0_address),
        }
    }

    /// Whether a *read* of `len` bytes there would tell the guest nothing but that its command still runs. The device
    /// may hold such a read back for a moment.
    #[must_use]
    pub fn asks_for_completion(&self, offset: u64, len: usize) -> bool {
        let byte = match self {
            Self::Tis(tis) => tis.completion_byte(),
            Self::Crb(crb) => crb.completion_byte(),
            Self::CrbDoorbell(crb) => crb.completion_byte(),
        };
        byte.and_then(|byte| byte.checked_sub(offset))
            .is_some_and(|distance| usize::try_from(distance).is_ok_and(|distance| distance < len))
    }

    /// Whether the guest looks for the end of its command in memory of its own, so that only the write that starts the
    /// command can be held back.
    #[must_use]
    pub fn start_is_awaited(&self) -> bool {
        match self {
            Self::Tis(_) | Self::Crb(_) => false,
            Self::CrbDoorbell(_) => true,
        }
    }

    /// The memory shared with the guest, if the interface has any.
    #[must_use]
    pub fn memory(&self) -> Option<&M> {
        match self {
            Self::Tis(_) => None,
            Self::Crb(crb) => Some(crb.memory()),
            Self::CrbDoorbell(crb) => Some(crb.memory()),
        }
    }

    /// The memory shared with the guest, if the interface has any. After it was exchanged for another, call
    /// [`place`](Self::place): the interface may have something to say in it.
    #[must_use]
    pub fn memory_mut(&mut self) -> Option<&mut M> {
        match self {
            Self::Tis(_) => None,
            Self::Crb(crb) => Some(crb.memory_mut()),
            Self::CrbDoorbell(crb) => Some(crb.memory_mut()),
        }
    }
}
