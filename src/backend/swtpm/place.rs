//! Where an swtpm is: attached to by its socket, or started and owned.

use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::process::{CommandExt, parent_id};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::sys::prctl;
use nix::sys::signal::{SigSet, Signal};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, socket};
use rustix::fs::{AtFlags, statat};

use super::channel::Channel;
use crate::backend::BackendError;
use crate::state::{Blob, StateFolder};
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
    Spawn {
        /// The program. A name without a slash is looked for in `PATH`.
        program: PathBuf,
        /// More arguments, behind our own. What it prints about errors goes to our standard error.
        arguments: Vec<OsString>,
        /// Where its state lives: swtpm's own files. The lock is held as long as either of us lives.
        state: StateFolder,
    },
}

impl Place {
    /// Connects to the swtpm, or starts it: its control channel, and its process if it is ours.
    ///
    /// # Errors
    /// [`BackendError`]; nothing was started then.
    pub(super) fn open(&self, version: TpmVersion) -> Result<(Channel, Option<Child>), BackendError> {
        match self {
            Self::Attach { control } => attach(control).map(|channel| (channel, None)),
            Self::Spawn { program, arguments, state } => {
                refuse_other_state(state)?;
                if arguments.iter().any(|argument| argument == "-d" || argument == "--daemon") {
                    let text = "swtpm must not go into the background, where nobody could end it: leave out --daemon";
                    return Err(BackendError::Refused(text.to_owned()));
                }
                let (channel, process) = spawn(program, arguments, state, version).map_err(|error| {
                    BackendError::Gone(format!(
                        "cannot start {}: {error}; install swtpm, or give the path of the program",
                        program.display()
                    ))
                })?;
                log::debug!("swtpm process {} started", process.id());
                Ok((channel, Some(process)))
            }
        }
    }
}

fn attach(path: &Path) -> Result<Channel, BackendError> {
    let connected =
        socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC, None).and_then(
            |socket| {
                connect(socket.as_raw_fd(), &UnixAddr::new(path)?)?;
                Channel::new("control", socket)
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

/// A folder that holds the embedded TPM's state would get a second TPM beside it.
fn refuse_other_state(state: &StateFolder) -> Result<(), BackendError> {
    let [folder, _] = state.descriptors();
    for version in [TpmVersion::V1_2, TpmVersion::V2_0] {
        let name = Blob::Permanent.file_name(version);
        match statat(folder, name.as_str(), AtFlags::SYMLINK_NOFOLLOW) {
            Err(rustix::io::Errno::NOENT) => {}
            Ok(_) => {
                return Err(BackendError::Refused(format!(
                    "the state folder has the state of the embedded TPM ({name}), and swtpm would put another TPM beside \
                     it; take it over with `state export --to-swtpm DIR` and give that folder, or use the embedded TPM"
                )));
            }
            Err(errno) => return Err(BackendError::Refused(format!("cannot look into the state folder: {errno}"))),
        }
    }
    Ok(())
}

fn spawn(
    program: &Path,
    arguments: &[OsString],
    state: &StateFolder,
    version: TpmVersion,
) -> io::Result<(Channel, Child)> {
    let (control, their_control) = Channel::pair("control")?;
    let [folder, lock] = state.descriptors();
    let (folder, lock) = (folder.try_clone_to_owned()?, lock.try_clone_to_owned()?);
    let mut command = Command::new(program);
    command
        .arg("socket")
        .arg("--ctrl")
        .arg(format!("type=unixio,clientfd={}", their_control.as_raw_fd()))
        // By its descriptor it is the folder that we have locked, whatever its path is or will be.
        .arg("--tpmstate")
        .arg(format!("dir=/proc/self/fd/{}", folder.as_raw_fd()))
        // It ends with its data channel, thus with us; also behind a wrapper that the signal below does not go through.
        .arg("--terminate")
        .args((version == TpmVersion::V2_0).then_some("--tpm2"))
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        // What a terminal sends to a whole group of processes is for the server only.
        .process_group(0);
    let inherited = [their_control, folder, lock];
    let server = std::process::id();
    // SAFETY: what runs between fork and exec makes system calls and nothing else: no allocation, no lock.
    #[expect(unsafe_code, reason = "only the new process itself can say that it is to end with its parent")]
    unsafe {
        command.pre_exec(move || prepare(&inherited, server));
    }
    let process = command.spawn()?;
    Ok((control, process))
}

/// Prepares the new process, in which this runs: it ends with its parent and by nothing else, so that a signal sent to all
/// processes of a service does not take the TPM away before the server has shut it down; and it gets what it is to have.
fn prepare(inherited: &[OwnedFd], server: u32) -> io::Result<()> {
    prctl::set_pdeathsig(Signal::SIGKILL)?;
    if parent_id() != server {
        return Err(Errno::ESRCH.into());
    }
    SigSet::from_iter([Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP, Signal::SIGQUIT]).thread_block()?;
    for descriptor in inherited {
        fcntl(descriptor.as_fd(), FcntlArg::F_SETFD(FdFlag::empty()))?;
    }
    Ok(())
}
