//! The state that a command goes through, and the control registers that show it. They belong to the active locality;
//! what the localities do is not its business.
//!
//! Idle → (cmdReady) → Ready → (START) → Execution → (the backend is done) → Completion → (cmdReady) → Ready, or
//! → (START) → Execution. goIdle leads to Idle, but not from Execution. PTP's Command Reception is a part of Ready: the
//! bytes of a command are written to shared memory, and nobody sees when.
//!
//! The loss of the locality leads to Idle from every state. From Execution that takes until the backend is done;
//! meanwhile the state is Stopping.

mod state;

use super::buffer::{self, Command};
use super::registers::{CANCEL, CtrlReq, CtrlSts, IntSts, START};
use super::standing::Standing;
use crate::frontend::{Effect, Memory, Progress};
use crate::tpm::{Fault, Locality};

pub use state::CommandState;

/// Where the command is on its way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// No command is taken.
    Idle,
    /// A command can be written and started.
    Ready,
    /// The backend runs the command.
    Execution(Standing),
    /// The response can be read, or the next command written and started.
    Completion,
    /// A command that nobody waits for still runs in the backend. With `then_ready`, whoever has the TPM now has asked
    /// for it.
    Stopping { then_ready: bool },
}

/// The command and the control registers.
#[derive(Clone, Debug)]
pub(super) struct Control {
    state: State,
    /// `TPM_CRB_CTRL_CANCEL_x` as the owner wrote it.
    cancel: bool,
    /// In Execution; else nothing.
    command: Command,
}

impl Control {
    /// An idle TPM.
    pub(super) fn new() -> Self {
        Self { state: State::Idle, cancel: false, command: Command::none() }
    }

    /// Power-on. A command that the backend still runs is forgotten.
    pub(super) fn reset(&mut self) {
        self.state = State::Idle;
        self.cancel = false;
        self.command.wipe();
    }

    /// How far the guest is with its command.
    pub(super) fn progress(&self) -> Progress {
        match self.state {
            State::Idle => Progress::Idle,
            State::Ready => Progress::Ready,
            State::Execution(_) => Progress::Execution,
            State::Completion => Progress::Completion,
            State::Stopping { .. } => Progress::Stopping,
        }
    }

    /// Whether the backend runs a command, wanted or not.
    pub(super) fn is_busy(&self) -> bool {
        matches!(self.state, State::Execution(_) | State::Stopping { .. })
    }

    /// Whether the owner waits for its command.
    pub(super) fn is_executing(&self) -> bool {
        matches!(self.state, State::Execution(_))
    }

    /// The command that the backend is to run; empty when there is none.
    pub(super) fn command(&self) -> &[u8] {
        self.command.bytes()
    }

    /// `TPM_CRB_CTRL_REQ_x`: what was asked for and is not done yet.
    pub(super) fn request(&self) -> CtrlReq {
        match self.state {
            State::Stopping { then_ready: true } => CtrlReq::CMD_READY,
            _ => CtrlReq::empty(),
        }
    }

    /// `TPM_CRB_CTRL_STS_x`.
    pub(super) fn status(&self) -> CtrlSts {
        if self.state == State::Idle { CtrlSts::TPM_IDLE } else { CtrlSts::empty() }
    }

    /// `TPM_CRB_CTRL_CANCEL_x`.
    pub(super) fn cancel(&self) -> u32 {
        if self.cancel { CANCEL } else { 0 }
    }

    /// `TPM_CRB_CTRL_START_x`: 1 while the backend is not done.
    pub(super) fn start(&self) -> u32 {
        if self.is_busy() { START } else { 0 }
    }

    /// Acts on a write to `TPM_CRB_CTRL_REQ_x` with exactly one bit, as QEMU does. While a command runs, neither counts;
    /// while one stops, `cmdReady` does when it has. Returns what that may interrupt for.
    pub(super) fn write_request(&mut self, written: CtrlReq) -> IntSts {
        self.state = match (self.state, written) {
            (State::Idle | State::Ready | State::Completion, CtrlReq::CMD_READY) => State::Ready,
            (State::Idle | State::Ready | State::Completion, CtrlReq::GO_IDLE) => State::Idle,
            (State::Stopping { .. }, CtrlReq::CMD_READY) => State::Stopping { then_ready: true },
            (State::Stopping { .. }, CtrlReq::GO_IDLE) => State::Stopping { then_ready: false },
            (state, _) => state,
        };
        let is_ready = written == CtrlReq::CMD_READY && self.state == State::Ready;
        if is_ready { IntSts::CMD_READY } else { IntSts::empty() }
    }

    /// Takes over `TPM_CRB_CTRL_CANCEL_x`. Written 1, the running command is to end soon; it completes as any other. A 1
    /// that is still there does nothing to the next command.
    pub(super) fn write_cancel(&mut self, written: u32) -> Option<Effect> {
        self.cancel = written & CANCEL != 0;
        match self.state {
            State::Execution(standing) if self.cancel => {
                self.state = State::Execution(standing.cancelled());
                Some(Effect::Cancel)
            }
            _ => None,
        }
    }

    /// START: runs the command that is in the buffer now. One whose size field fits no buffer is answered here. While a
    /// command runs, none is started; but after a cancellation the guest no longer waits for the one that runs. Returns
    /// the effect, and what may be interrupted for.
    pub(super) fn write_start(&mut self, locality: Locality, memory: &mut impl Memory) -> (Option<Effect>, IntSts) {
        match self.state {
            State::Ready | State::Completion => {}
            State::Execution(standing) => {
                self.state = State::Execution(standing.started_again());
                return (None, IntSts::empty());
            }
            State::Idle | State::Stopping { .. } => return (None, IntSts::empty()),
        }
        if !self.command.copy(memory) {
            buffer::respond_fault(memory, Fault::CommandSize);
            self.state = State::Completion;
            return (None, IntSts::START);
        }
        self.state = State::Execution(Standing::Wanted);
        (Some(Effect::Execute(locality)), IntSts::empty())
    }

    /// The owner has lost the TPM: aborts whatever is there, and the TPM is idle.
    pub(super) fn locality_lost(&mut self) -> Option<Effect> {
        let cancel = self.is_executing().then_some(Effect::Cancel);
        self.state = if self.is_busy() { State::Stopping { then_ready: false } } else { State::Idle };
        self.cancel = false;
        self.command.wipe();
        cancel
    }

    /// The backend is done. The response is in the buffer before START reads 0; that of a command that nobody waits for
    /// is thrown away, and instead of a superseded one's there is a request to retry; without a command there is nothing
    /// to complete. Returns what that may interrupt for.
    pub(super) fn complete(&mut self, response: &[u8], memory: &mut impl Memory) -> IntSts {
        let (state, done) = match self.state {
            State::Execution(standing) => {
                standing.respond(memory, response);
                self.command.wipe();
                (State::Completion, IntSts::START)
            }
            State::Stopping { then_ready: true } => (State::Ready, IntSts::START | IntSts::CMD_READY),
            State::Stopping { then_ready: false } => (State::Idle, IntSts::START),
            state @ (State::Idle | State::Ready | State::Completion) => (state, IntSts::empty()),
        };
        self.state = state;
        done
    }
}
