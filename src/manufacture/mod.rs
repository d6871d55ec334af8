//! What a TPM's manufacturer does: endorsement keys, their certificates, PCR banks; and what gives a copy of a TPM an
//! identity of its own.
//!
//! - [`tpm2`] and [`tpm12`]: the work on a TPM of that version, as TPM commands.
//! - [`template`]: the endorsement keys of a TPM 2.0.
//! - [`banks`]: the PCR banks of a TPM 2.0.
//! - [`certificate`]: the certificates; [`ca`]: who signs them.
//! - [`aside`]: the place beside a state folder where a TPM is made, so that the folder holds a whole one or none.
//!
//! Sources: TCG EK Credential Profile for TPM Family 2.0 (2.5), TCG Provisioning Guidance, TPM 2.0 Library Part 3;
//! for TPM 1.2: TPM Main 1.2 Part 3, TCG Credential Profiles 1.2, TCG PC Client Specific Implementation 1.21.

pub mod aside;
pub mod banks;
pub mod ca;
pub mod certificate;
pub mod template;
pub mod tpm12;
pub mod tpm2;
mod wire;

use std::path::PathBuf;
use std::time::Duration;

use openssl::error::ErrorStack;
use thiserror::Error;

use crate::backend::embedded::{EmbeddedTpm, NewEmbedded, NewEmbeddedTpm};
use crate::backend::synchronous::{Patience, Synchronous, SynchronousError};
use crate::launch::Program;
use crate::pcr_bank::PcrBank;
use crate::state::{StateError, StateFolder};
use crate::tpm::TpmVersion;
use crate::worker::profile::Profile;
use certificate::Certifier;

/// Longest of all operations: a slow machine looks for large primes, or its disk is busy.
const LIMIT: Duration = Duration::from_secs(300);

/// Why a TPM was not made. The state folder is as it was before.
#[derive(Debug, Error)]
pub enum ManufactureError {
    /// The embedded TPM does not run.
    #[error("the TPM does not work")]
    Backend(#[from] SynchronousError),
    /// The TPM does not do what it is told.
    #[error("the TPM answered {command} with {code:#x}")]
    Refused {
        /// The command.
        command: &'static str,
        /// The TPM's response code.
        code: u32,
    },
    /// The TPM's response is not what the specification says.
    #[error("the TPM's answer to {command} is not well-formed")]
    Response {
        /// The command.
        command: &'static str,
    },
    /// The TPM has made another key than the template says.
    #[error("the TPM made an endorsement key that is not as its template says")]
    OtherKey,
    /// A bank that this TPM does not have.
    #[error("this TPM has no PCR bank {wanted}; it has {there}")]
    NoBank {
        /// What was asked for.
        wanted: PcrBank,
        /// What it has, as a list.
        there: String,
    },
    /// The banks cannot be had together.
    #[error("the TPM does not allocate the PCR banks {0}")]
    Allocation(String),
    /// A certificate does not fit.
    #[error(
        "the {what} certificate is {size} bytes long, and the TPM's NV indices hold {limit}: use a CA with a shorter name or a smaller key"
    )]
    CertificateSize {
        /// Which certificate.
        what: &'static str,
        /// Its length in bytes.
        size: usize,
        /// The most that fits, in bytes.
        limit: usize,
    },
    /// A certificate that is issued would not be believed.
    #[error(
        "a certificate of this CA would not be accepted by who verifies it: {0}; give a CA certificate that is valid and may sign certificates"
    )]
    NotVerifiable(String),
    /// libcrypto does not do something.
    #[error("libcrypto refuses")]
    Crypto(#[from] ErrorStack),
    /// The CA is not usable.
    #[error(transparent)]
    Ca(#[from] ca::CaError),
    /// The state folder is not usable.
    #[error(transparent)]
    State(#[from] StateError),
    /// There is a TPM already.
    #[error("the state folder {} already holds a TPM ({file}), which is left as it is: choose another folder", path.display())]
    Occupied {
        /// The folder.
        path: PathBuf,
        /// The file of that TPM.
        file: String,
    },
    /// There is nothing to copy.
    #[error("the state folder {} holds no TPM: give the folder of a TPM that has been served, or made by state init", .0.display())]
    Empty(PathBuf),
    /// The place where the TPM is made cannot be prepared or cleared.
    #[error("cannot work in {}: {reason}", path.display())]
    Aside {
        /// The place.
        path: PathBuf,
        /// The system's reason.
        reason: std::io::Error,
    },
    /// The TPM has not written what it should have.
    #[error("the TPM was made, but it has not written its state")]
    NothingWritten,
    /// TPM 1.2 keeps its endorsement key for life.
    #[error(
        "a TPM 1.2 cannot get a new identity: its endorsement key is made once, for life; make a new TPM with state init"
    )]
    SameForever,
}

/// What a new TPM is to have.
#[derive(Debug)]
pub struct Order<'a> {
    /// Its PCR banks; without them, all that it comes with. Only TPM 2.0 has them.
    pub pcr_banks: Option<&'a [PcrBank]>,
    /// Who issues its certificates; without one it gets endorsement keys and no certificates.
    pub certifier: Option<&'a Certifier>,
}

/// How a TPM is run while it is worked on.
#[derive(Debug)]
pub struct Workbench {
    /// The worker to run.
    pub worker: Program,
    /// Version of the TPM.
    pub version: TpmVersion,
    /// The profile of a TPM that is made.
    pub profile: Option<Profile>,
}

impl Workbench {
    /// Makes a TPM in `folder`, which holds none, and shuts it down.
    ///
    /// # Errors
    /// [`ManufactureError`]; what is then in the folder is of no use.
    pub fn make(self, folder: StateFolder, order: &Order<'_>) -> Result<(), ManufactureError> {
        let version = self.version;
        self.run(folder, |tpm| match version {
            TpmVersion::V2_0 => tpm2::manufacture(tpm, order),
            TpmVersion::V1_2 => tpm12::manufacture(tpm, order),
        })
    }

    /// Gives the TPM in `folder` new seeds and keys, as if it were another one, and shuts it down.
    ///
    /// # Errors
    /// As [`make`](Self::make); [`ManufactureError::SameForever`] for a TPM 1.2.
    pub fn renew(self, folder: StateFolder, order: &Order<'_>) -> Result<(), ManufactureError> {
        match self.version {
            TpmVersion::V2_0 => self.run(folder, |tpm| tpm2::renew(tpm, order)),
            TpmVersion::V1_2 => Err(ManufactureError::SameForever),
        }
    }

    fn run(
        self,
        folder: StateFolder,
        work: impl FnOnce(&mut dyn wire::Transport) -> Result<(), ManufactureError>,
    ) -> Result<(), ManufactureError> {
        let tpm = EmbeddedTpm { version: self.version, state: Some(folder) };
        let task = NewEmbeddedTpm { tpm, profile: self.profile };
        let mut tpm = Synchronous::new(NewEmbedded::new(task, self.worker), Patience { limit: LIMIT, interrupt: None });
        tpm.initialize()?;
        work(&mut tpm)?;
        Ok(tpm.end()?)
    }
}
