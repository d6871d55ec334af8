//! What a TPM has acknowledged is there, whatever happens to its processes and its disk.

mod common;

use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use common::process::until;
use common::raw_client::RawClient;
use common::server::Server;
use common::tis::{DATA_AVAIL, STS, STS_VALID, Tis};
use common::tpm_commands::*;
use nix::sys::signal::{Signal, kill};
use vfio_user_tpm::state::StateFolder;

/// Nothing that is expected takes this long; a test that waits so long has failed.
const PATIENCE: Duration = Duration::from_secs(60);
