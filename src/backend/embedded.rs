//! The TPM that comes with the program: libtpms in a worker process.

use std::os::fd::BorrowedFd;

use super::worker::{Task, WorkerBackend};
use crate::state::{Key, StateFolder};
use crate::tpm::TpmVersion;
use crate::worker::frame::Request;
use crate::worker::profile::Profile;
use crate::worker::{FileNumbers, Holding};

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

impl EmbeddedTpm {
    /// What its workers hold.
    ///
    /// # Errors
    /// If the state folder cannot be looked at.
    pub fn holding(&self) -> nix::Result<Holding> {
        self.state.as_ref().map_or(Ok(Holding::Nothing), |folder| FileNumbers::of(folder).map(Holding::Folder))
    }
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

/// The embedded TPM that is made in a state folder without one.
pub type NewEmbedded = WorkerBackend<NewEmbeddedTpm>;

/// What the embedded TPM is to be, and what only counts when it is made.
#[derive(Debug)]
pub struct NewEmbeddedTpm {
    /// The TPM.
    pub tpm: EmbeddedTpm,
    /// What of libtpms it is to have; without one, all that this libtpms gives a new TPM.
    pub profile: Option<Profile>,
}

impl Task for NewEmbeddedTpm {
    fn start(&self) -> (Request<'_>, Vec<BorrowedFd<'_>>) {
        self.tpm.start()
    }

    fn initialize(&self) -> Request<'_> {
        match &self.profile {
            Some(profile) => Request::InitializeProfile(profile.json()),
            None => Request::Initialize,
        }
    }
}
