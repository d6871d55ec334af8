//! The registers by which methods of ACPI hand requests over and read what became of them: a pure state machine.
//! `docs/device-spec.md` has the layout, on which tables in guests depend.

use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::operation::{Consent, NO_OPERATION, Request, Standing};
use crate::bar_map::PPI;

/// Bytes in a register.
const REGISTER: u32 = 4;

/// The registers, in their order. All have 32 bits, little-endian.
mod register {
    /// Reads [`SIGNATURE`](super::SIGNATURE).
    pub(super) const SIGNATURE: u32 = 0;
    /// The operation that is asked about, or asked for.
    pub(super) const OPERATION: u32 = 1;
    /// Its argument.
    pub(super) const ARGUMENT: u32 = 2;
    /// A write with bit 0 asks for the operation; reads give the [`Answer`](super::Answer) to that.
    pub(super) const SUBMIT: u32 = 3;
    /// The [`Standing`](super::Standing) of the operation.
    pub(super) const STANDING: u32 = 4;
    /// The operation that is pending.
    pub(super) const PENDING: u32 = 5;
    /// Its argument.
    pub(super) const PENDING_ARGUMENT: u32 = 6;
    /// The operation that was carried out last.
    pub(super) const LAST: u32 = 7;
    /// The response to it.
    pub(super) const RESPONSE: u32 = 8;
}

/// How many registers there are.
const REGISTERS: u32 = 9;

/// Bytes from the start of the window to the end of its registers.
pub const REGISTERS_SIZE: u32 = REGISTERS * REGISTER;

/// `PPI1`: by it, methods know that the registers are there, in this layout.
pub const SIGNATURE: u32 = u32::from_le_bytes(*b"PPI1");

/// Bit 0 of the register that asks for an operation.
const SUBMIT: u8 = 1;

/// The answer to a request: the return codes of function 7.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[repr(u32)]
pub enum Answer {
    /// It is pending, or was withdrawn.
    #[default]
    Success = 0,
    /// There is no such operation.
    NotImplemented = 1,
    /// Its argument is none.
    GeneralFailure = 2,
    /// The host has not agreed to it.
    Blocked = 3,
}

/// A request, and the answer to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Submission {
    /// What was asked for.
    pub request: Request,
    /// Whether it will be done.
    pub answer: Answer,
}

/// What became of a request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outcome {
    /// The operation; 0 if none was carried out.
    pub operation: u32,
    /// 0, a TPM's response code, or [`FIRMWARE_FAILURE`](super::FIRMWARE_FAILURE).
    pub response: u32,
}

/// The window in BAR0.
#[derive(Clone, Debug)]
pub struct Window {
    consent: Consent,
    state: WindowState,
}

/// All that the window remembers, as plain data.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct WindowState {
    /// What the guest has last written as an operation.
    pub operation: u32,
    /// What it has last written as an argument.
    pub argument: u32,
    /// The last answer to a request.
    pub answer: Answer,
    /// The request that the next reset carries out.
    pub pending: Option<Request>,
    /// The request that is being carried out.
    pub under_way: Option<Request>,
    /// What became of the one before.
    pub last: Outcome,
}

/// A state that no window of these operations has.
#[derive(Debug, Error, PartialEq, Eq)]
#[error("physical presence: operation {operation} with argument {argument:#x} is none that can be pending")]
pub struct WindowStateError {
    operation: u32,
    argument: u32,
}

impl Window {
    /// A window as after power-on, for a guest to whom the host grants `consent`.
    #[must_use]
    pub fn new(consent: Consent) -> Self {
        Self { consent, state: WindowState::default() }
    }

    /// The window of this state.
    ///
    /// # Errors
    /// If a request is pending that would not have been taken. Consent is asked of the host that carries it out.
    pub fn from_state(consent: Consent, state: WindowState) -> Result<Self, WindowStateError> {
        let would_be_taken = |request: &Request| {
            request.operation != NO_OPERATION
                && Standing::of(request.operation, Consent::all()) == Standing::Allowed
                && request.is_sound()
        };
        match [state.pending, state.under_way].into_iter().flatten().find(|request| !would_be_taken(request)) {
            Some(Request { operation, argument }) => Err(WindowStateError { operation, argument }),
            None => Ok(Self { consent, state }),
        }
    }

    /// All that the window remembers.
    #[must_use]
    pub fn state(&self) -> WindowState {
        self.state
    }

    /// Fills in what an access at `offset` of BAR0 reads of the window.
    pub fn read(&self, offset: u64, data: &mut [u8]) {
        let Some((first, range)) = PPI.part(offset, data.len()) else { return };
        let part = data.get_mut(range).unwrap_or_default();
        for (at, byte) in (first..PPI.end()).zip(part) {
            let (register, lane) = place(at);
            *byte = self.register(register).to_le_bytes().get(lane).copied().unwrap_or(0xff);
        }
    }

    /// Takes what an access at `offset` of BAR0 writes to the window. What comes after a request is dropped.
    pub fn write(&mut self, offset: u64, data: &[u8]) -> Option<Submission> {
        let (first, range) = PPI.part(offset, data.len())?;
        for (at, &byte) in (first..PPI.end()).zip(data.get(range).unwrap_or_default()) {
            let (register, lane) = place(at);
            match register {
                register::OPERATION => self.state.operation = with_byte(self.state.operation, lane, byte),
                register::ARGUMENT => self.state.argument = with_byte(self.state.argument, lane, byte),
                register::SUBMIT if lane == 0 && byte & SUBMIT != 0 => return Some(self.submit()),
                _ => {}
            }
        }
        None
    }

    /// A reset: gives the request that is to be carried out now. [`finish`](Self::finish) is to be told what became of it.
    ///
    /// While one is being carried out, the next one stays pending for the reset after.
    pub fn reset(&mut self) -> Option<Request> {
        (self.state.operation, self.state.argument, self.state.answer) = Default::default();
        if self.state.under_way.is_some() {
            return None;
        }
        self.state.under_way = self.state.pending.take();
        self.state.under_way
    }

    /// The request that [`reset`](Self::reset) gave has been carried out, with this response. Returns what is now the last
    /// outcome; nothing if none was under way.
    pub fn finish(&mut self, response: u32) -> Option<Outcome> {
        let Request { operation, .. } = self.state.under_way.take()?;
        self.state.last = Outcome { operation, response };
        Some(self.state.last)
    }

    /// The request that waits for its reset, or is being carried out.
    #[must_use]
    pub fn pending(&self) -> Option<Request> {
        self.state.pending.or(self.state.under_way)
    }

    /// What became of the last request that was carried out.
    #[must_use]
    pub fn last(&self) -> Option<Outcome> {
        Some(self.state.last).filter(|last| last.operation != NO_OPERATION)
    }

    /// A newer request takes the place of an older one, and no operation is a request too.
    fn submit(&mut self) -> Submission {
        let request = Request { operation: self.state.operation, argument: self.state.argument };
        let answer = match Standing::of(request.operation, self.consent) {
            Standing::NotImplemented => Answer::NotImplemented,
            Standing::FirmwareOnly | Standing::Blocked => Answer::Blocked,
            Standing::Allowed if !request.is_sound() => Answer::GeneralFailure,
            Standing::Allowed => {
                self.state.pending = Some(request).filter(|request| request.operation != NO_OPERATION);
                Answer::Success
            }
        };
        self.state.answer = answer;
        Submission { request, answer }
    }

    fn register(&self, register: u32) -> u32 {
        let state = &self.state;
        let pending = self.pending();
        match register {
            register::SIGNATURE => SIGNATURE,
            register::OPERATION => state.operation,
            register::ARGUMENT => state.argument,
            register::SUBMIT => state.answer as u32,
            register::STANDING => Standing::of(state.operation, self.consent) as u32,
            register::PENDING => pending.map_or(NO_OPERATION, |request| request.operation),
            register::PENDING_ARGUMENT => pending.map_or(0, |request| request.argument),
            register::LAST => state.last.operation,
            register::RESPONSE => state.last.response,
            REGISTERS.. => u32::MAX,
        }
    }
}

/// The register at an offset in BAR0, and the byte in it.
fn place(at: u32) -> (u32, usize) {
    let offset = at.saturating_sub(PPI.offset);
    (offset / REGISTER, usize::try_from(offset % REGISTER).unwrap_or_default())
}

fn with_byte(value: u32, lane: usize, byte: u8) -> u32 {
    let mut bytes = value.to_le_bytes();
    if let Some(old) = bytes.get_mut(lane) {
        *old = byte;
    }
    u32::from_le_bytes(bytes)
}

#[cfg(test)]
mod tests;
