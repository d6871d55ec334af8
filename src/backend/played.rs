//! A backend that a test plays by hand.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::os::fd::BorrowedFd;
use std::rc::Rc;

use super::{Backend, BackendError, Done};
use crate::tpm::Locality;

/// What it was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Call {
    Initialize,
    Hash(Vec<u8>),
    Execute(u8, Vec<u8>),
    ResetEstablished(u8),
    Terminate,
    Cancel,
    Kill,
}

/// What it is to do, and what it was asked for.
#[derive(Default)]
pub(crate) struct Script {
    pub(crate) calls: Vec<Call>,
    pub(crate) outcomes: VecDeque<(Result<Done, BackendError>, Vec<u8>)>,
    pub(crate) gone: bool,
    /// A killed process does not end.
    pub(crate) lingers: bool,
    /// It does not act on a request to cancel.
    pub(crate) disobeys: bool,
}

/// The backend, and the test's hold on it.
#[derive(Clone, Default)]
pub(crate) struct Played(pub(crate) Rc<RefCell<Script>>);

impl Played {
    fn begin(&self, call: Call) -> Result<(), BackendError> {
        let mut script = self.0.borrow_mut();
        script.calls.push(call);
        if script.gone { Err(BackendError::Gone("played".to_owned())) } else { Ok(()) }
    }

    pub(crate) fn calls(&self) -> Vec<Call> {
        std::mem::take(&mut self.0.borrow_mut().calls)
    }
}

impl Backend for Played {
    fn initialize(&mut self) -> Result<(), BackendError> {
        self.begin(Call::Initialize)
    }
    fn hash(&mut self, data: &[u8]) -> Result<(), BackendError> {
        self.begin(Call::Hash(data.to_vec()))
    }
    fn execute(&mut self, locality: Locality, command: &[u8]) -> Result<(), BackendError> {
        self.begin(Call::Execute(locality.number(), command.to_vec()))
    }
    fn reset_established(&mut self, locality: Locality) -> Result<(), BackendError> {
        self.begin(Call::ResetEstablished(locality.number()))
    }
    fn terminate(&mut self) -> Result<(), BackendError> {
        self.begin(Call::Terminate)
    }
    fn cancel(&mut self) -> bool {
        let mut script = self.0.borrow_mut();
        script.calls.push(Call::Cancel);
        !script.disobeys
    }
    fn poll(&mut self, response: &mut Vec<u8>) -> Option<Result<Done, BackendError>> {
        let (outcome, bytes) = self.0.borrow_mut().outcomes.pop_front()?;
        if matches!(outcome, Ok(Done::Response)) {
            *response = bytes;
        }
        Some(outcome)
    }
    fn kill(&mut self) {
        self.0.borrow_mut().calls.push(Call::Kill);
    }
    fn is_gone(&self) -> bool {
        !self.0.borrow().lingers
    }
    fn take_new_descriptor(&mut self) -> Option<BorrowedFd<'_>> {
        None
    }
}
