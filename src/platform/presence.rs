//! What the guest has asked for by physical presence: when it is done, and what becomes of it.

use super::Step;
use crate::ppi::{self, Execution, Next, Request};

/// A request.
#[derive(Debug, Default)]
pub(super) struct Presence {
    /// It waits for the next start.
    waiting: Option<Request>,
    /// Its commands run.
    under_way: Option<Execution>,
    /// It takes another start until the TPM is as was asked for.
    wants_restart: bool,
    /// The response to it, until it is taken.
    response: Option<u32>,
}

impl Presence {
    pub(super) fn wait(&mut self, request: Request) {
        self.waiting = Some(request);
    }

    pub(super) fn answer(&mut self, response: u32) {
        self.response = Some(response);
    }

    pub(super) fn wants_start(&self) -> bool {
        self.waiting.is_some() || self.wants_restart
    }

    pub(super) fn take_response(&mut self) -> Option<u32> {
        self.response.take()
    }

    /// A start: the first command of the request that has waited for it. One that was broken off is not taken up again, since
    /// nobody knows how far it came.
    pub(super) fn begin(&mut self) -> Option<Step> {
        self.wants_restart = false;
        if self.under_way.take().is_some() {
            self.answer(ppi::FIRMWARE_FAILURE);
        }
        let begun = Execution::begin(self.waiting.take()?);
        if begun.is_none() {
            self.answer(ppi::FIRMWARE_FAILURE);
        }
        let (execution, step) = begun?;
        self.under_way = Some(execution);
        Some(step)
    }

    /// Takes note of the response, which has a whole header, to a command of the request; the command to run next, if there
    /// is one.
    pub(super) fn ran(&mut self, response: &[u8]) -> Option<Step> {
        match self.under_way.as_mut()?.advance(response) {
            Next::Run(step) => Some(step),
            Next::Done { response, restart } => {
                self.under_way = None;
                self.wants_restart = restart;
                self.answer(response);
                None
            }
        }
    }

    /// The TPM has failed.
    pub(super) fn give_up(&mut self) {
        self.wants_restart = false;
        if self.waiting.take().is_some() | self.under_way.take().is_some() {
            self.answer(ppi::FIRMWARE_FAILURE);
        }
    }
}
