//! The TPM that comes with the program: libtpms in a worker process.

use std::os::fd::BorrowedFd;

use super::worker::{Task, WorkerBackend};
use crate::state::{Key, StateFolder};
use crate::tpm::TpmVersion;
use crate::worker::frame::Request;

/// The embedded TPM.
pub type Embedded = WorkerBackend<EmbeddedTpm>;

/// What the embedded TPM is to be.
#[derive(Debug)]
pub struct EmbeddedTpm {
    /// Version of the TPM.
    pub version: TpmVersion,
    /// Where its state lives. Without one, the TPM is ephemeral: its state is in the worker's memory and ends with it.
    pub state: Option<StateFolder>,
}

impl Task for EmbeddedTpm {
    fn start(&self) -> (Request<'_>, Vec<BorrowedFd<'_>>) {
        let key = self.state.as_ref().and_then(StateFolder::key).map(Key::master);
        (Request::Start(self.version, key), self.state.iter().flat_map(StateFolder::descriptors).collect())
    }

    fn begins_again(&self) {
        if self.state.is_none() {
            log::error!(
                "the TPM's keys and NV contents are lost with its process, and a new TPM takes its place; with --state-dir it would have kept them"
            );
        }
    }
}
