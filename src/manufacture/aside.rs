//! The place where a TPM is made: a folder inside its state folder, so that the state folder holds a whole TPM or none,
//! whatever happens meanwhile, and nothing secret is ever outside of it.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::ManufactureError;
use crate::state::{Blob, StateFolder};
use crate::tpm::TpmVersion;

/// The folder's name in the state folder.
const NAME: &str = "making";

/// What another software TPM calls its state.
const SWTPM_FILES: [&str; 2] = ["tpm2-00.permall", "tpm-00.permall"];

/// A state folder that holds no TPM yet, locked, and the folder in it where one is made.
#[derive(Debug)]
pub struct Aside {
    target: StateFolder,
    target_path: PathBuf,
    /// The state folder was not there before.
    created: bool,
    place: PathBuf,
    finished: bool,
}
