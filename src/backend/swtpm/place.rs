//! Where an swtpm is: attached to by its socket, or started and owned.

use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, socket};

use super::channel::Channel;
use crate::backend::BackendError;
use crate::launch::{Launcher, Process, Program};
use crate::state::StateFolder;
use crate::tpm::TpmVersion;

/// Where an swtpm is.
#[derive(Debug)]
pub enum Place {
    /// It runs already, started by somebody else with `--ctrl type=unixio,path=…` and without `--server`.
    Attach {
        /// The path of its control socket.
        control: PathBuf,
    },
    /// It is started for this TPM, and ends with it.
    Owned {
        /// Starts it: the program of [`command`], directly or not.
        launcher: Box<dyn Launcher>,
        /// The folder that it was told to keep its state in; only the lock is used here.
        state: StateFolder,
    },
}

impl Place {
    /// Connects to the swtpm, or starts it: its control channel, and its process if it is ours.
    ///
    /// # Errors
    /// [`BackendError`]; nothing was started then.
    pub(super) fn open(&self) -> Result<(Channel, Option<Process>), BackendError> {
        match self {
            Self::Attach { control } => attach(control).map(|channel| (channel, None)),
            Self::Owned { launcher, .. } => {
                let launched = Channel::pair("control")
                    .map_err(io::Error::from)
                    .and_then(|(control, theirs)| Ok((control, launcher.launch(theirs)?)));
                let (control, process) = launched.map_err(|error| {
                    BackendError::Gone(format!(
                        "cannot start swtpm: {error}; install it, or give the path of the program"
                    ))
                })?;
                Ok((control, Some(process)))
            }
        }
    }
}

fn attach(path: &Path) -> Result<Channel, BackendError> {
    let connected =
        socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC, None).and_then(
            |socket| {
                let channel = Channel::new("control", socket)?;
                connect(channel.as_fd().as_raw_fd(), &UnixAddr::new(path)?)?;
                Ok(channel)
            },
        );
    connected.map_err(|errno| {
        let advice = match errno {
            Errno::EAGAIN => "too many wait to be connected already: is it stopped, or is another program attached?",
            Errno::ENAMETOOLONG => "a socket's path has at most 107 bytes",
            _ => "it has to run, with --ctrl type=unixio,path=PATH, and this user has to be allowed to write there",
        };
        BackendError::Gone(format!("cannot connect to swtpm's control socket {}: {errno}; {advice}", path.display()))
    })
}

/// The command that runs an swtpm for us: its control channel is its standard input.
#[must_use]
pub fn command(program: PathBuf, more: Vec<OsString>, state_dir: &Path, version: TpmVersion) -> Program {
    let mut folder = OsString::from("dir=");
    folder.push(state_dir);
    let mut arguments: Vec<OsString> =
        ["socket", "--ctrl", "type=unixio,clientfd=0", "--tpmstate"].map(Into::into).to_vec();
    arguments.push(folder);
    // It ends with its data channel, thus with us.
    arguments.push("--terminate".into());
    arguments.extend((version == TpmVersion::V2_0).then(|| "--tpm2".into()));
    arguments.extend(more);
    Program { path: program, arguments }
}
