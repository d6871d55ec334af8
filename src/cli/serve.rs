//! Serving the TPM: the program without a subcommand.

use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::path::PathBuf;

use anyhow::{Context, bail};
use clap::{Args, ValueEnum};
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::sys::signal::Signal;
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::unistd::Uid;

use super::access_args::AccessArgs;
use super::device_args::{DeviceArgs, description_of};
use super::{log_level, ready, signals, start_log};
use crate::acpi::TpmDevice as DeviceDescription;
use crate::backend::embedded::{Embedded, EmbeddedTpm};
use crate::backend::worker::WorkerConfig;
use crate::description::Description;
use crate::device::TpmDevice;
use crate::engine::{Engine, Wakeup};
use crate::frontend::tis::TisConfig;
use crate::platform::{Platform, StartupPolicy};
use crate::state::StateFolder;
use crate::vfio_user::{DEVICE_TOKEN, Listener, Server, SocketClaim, SocketRights};

#[derive(Debug, Args)]
pub(super) struct ServeArgs {
    #[command(flatten)]
    socket: SocketArgs,

    #[command(flatten)]
    access: AccessArgs,

    /// Also write what a VMM needs to attach the device into this folder (see `describe`)
    #[arg(long, value_name = "DIR", requires = "socket_path")]
    description: Option<PathBuf>,

    #[command(flatten)]
    tpm: TpmArgs,

    /// Set by `run`, which alone then ends the server
    #[arg(long, hide = true)]
    obey_parent_only: bool,
}

/// Which TPM is served and how, wherever its clients come from.
#[derive(Debug, Args)]
pub(super) struct TpmArgs {
    /// Folder for the TPM's state; it is created if it is missing. Without one, the TPM and its secrets
    /// are gone when the program ends
    #[arg(long, value_name = "DIR")]
    pub(super) state_dir: Option<PathBuf>,

    /// Which TPM is behind the registers
    #[arg(long, value_enum, default_value = "embedded")]
    backend: BackendKind,

    #[command(flatten)]
    pub(super) device: DeviceArgs,

    /// Who starts the TPM up and closes its platform hierarchy
    #[arg(long, value_enum, default_value = "clear")]
    startup: StartupKind,

    /// Reset the TPM whenever a client connects: for VMMs that do not reset the device themselves
    #[arg(long)]
    reset_on_connect: bool,

    /// Let the guest use locality 4, which belongs to the hardware. For tests only: with it a guest can
    /// pretend to have been launched anew
    #[arg(long)]
    guest_locality_4: bool,

    /// What to log to standard error
    #[arg(long, default_value = "info", value_name = "LEVEL", value_parser = log_level())]
    pub(super) log_level: log::LevelFilter,
}

#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
struct SocketArgs {
    /// UNIX socket to listen on. One on which nobody listens any more is replaced
    #[arg(long, value_name = "PATH")]
    socket_path: Option<PathBuf>,

    /// Inherited descriptor to serve instead: of a listening socket, or of one connection
    #[arg(long, value_name = "FD", value_parser = clap::value_parser!(RawFd).range(3..))]
    fd: Option<RawFd>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum BackendKind {
    /// libtpms in a process of its own, nothing else to start
    Embedded,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum StartupKind {
    /// This program: TPM2_Startup(CLEAR), then a random platformAuth that nobody keeps
    Clear,
    /// A firmware in the guest that knows the device
    None,
}

/// Where clients come from.
#[derive(Debug, PartialEq, Eq)]
enum Endpoint {
    Path(PathBuf),
    Descriptor(RawFd),
}

/// What to serve and how: the arguments, checked against each other. Nothing has been opened yet.
#[derive(Debug)]
struct Config {
    endpoint: Endpoint,
    socket_rights: SocketRights,
    allowed_users: Option<Vec<Uid>>,
    state_dir: Option<PathBuf>,
    device: DeviceDescription,
    registers: TisConfig,
    description: Option<(Description, PathBuf)>,
    startup: StartupPolicy,
    reset_on_connect: bool,
    obey_parent_only: bool,
    log_level: log::LevelFilter,
}

impl TryFrom<ServeArgs> for Config {
    type Error = anyhow::Error;

    fn try_from(args: ServeArgs) -> anyhow::Result<Self> {
        let ServeArgs { socket, access, description, tpm: args, obey_parent_only } = args;
        let BackendKind::Embedded = args.backend;
        let device = args.device.device()?;
        let endpoint = match (socket.socket_path, socket.fd) {
            (Some(path), None) => Endpoint::Path(path),
            (None, Some(_)) if access.has_socket_rights() => {
                bail!("--socket-mode and --socket-group need --socket-path: an inherited socket has its rights already")
            }
            (None, Some(fd)) => Endpoint::Descriptor(fd),
            _ => bail!("give either --socket-path or --fd"),
        };
        let description = match (description, &endpoint) {
            (None, _) => None,
            (Some(folder), Endpoint::Path(socket)) => {
                let config = description_of(device.clone(), socket.clone(), args.state_dir.as_deref());
                Some((Description::new(config)?, folder))
            }
            (Some(_), Endpoint::Descriptor(_)) => bail!("--description needs --socket-path: a VMM connects by path"),
        };
        let registers = TisConfig {
            version: device.version,
            vendor_id: device.identity.vendor_id,
            device_id: device.identity.device_id,
            revision: device.identity.revision_id,
            guest_locality_4: args.guest_locality_4,
        };
        let startup = match args.startup {
            StartupKind::Clear => StartupPolicy::Clear,
            StartupKind::None => StartupPolicy::None,
        };
        Ok(Self {
            endpoint,
            socket_rights: access.socket_rights(),
            allowed_users: access.allowed_users(),
            state_dir: args.state_dir,
            device,
            registers,
            description,
            startup,
            reset_on_connect: args.reset_on_connect,
            obey_parent_only,
            log_level: args.log_level,
        })
    }
}

pub(super) fn run(args: ServeArgs) -> anyhow::Result<()> {
    let config = Config::try_from(args)?;
    start_log(config.log_level);
    // Blocked before anything else, so that a signal at any time ends the program in order.
    let signals = signals::wanted([Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP, Signal::SIGQUIT]);
    signals.thread_block().context("cannot block signals")?;
    let signals = SignalFd::with_flags(&signals, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)
        .context("cannot receive signals")?;

    let state = config.state_dir.as_deref().map(StateFolder::open).transpose()?;
    let listener = match &config.endpoint {
        Endpoint::Path(path) => {
            // What is in the way of serving comes to light before anything is written; and who can connect finds the
            // description complete.
            let claim = SocketClaim::with_rights(path, &config.socket_rights)?;
            if let Some((description, folder)) = &config.description {
                description.write_to(folder)?;
            }
            claim.listen()?
        }
        Endpoint::Descriptor(fd) => Listener::from_fd(inherited(*fd)?)?,
    };
    let listener = match config.allowed_users {
        Some(users) => listener.allow_only(users)?,
        None => listener,
    };
    let mut server = Server::new(listener)?;
    if config.obey_parent_only {
        server.obey_parent_only();
    }
    let wakeup = Wakeup { registry: server.registry()?, token: DEVICE_TOKEN };

    let version = config.device.version;
    match &config.state_dir {
        Some(folder) => log::info!("TPM {version}, its state in {}", folder.display()),
        None => log::warn!("TPM {version} without --state-dir: its keys and NV contents end with this program"),
    }
    match &config.endpoint {
        Endpoint::Path(path) => log::info!("listening on {}", path.display()),
        Endpoint::Descriptor(fd) => log::info!("serving descriptor {fd}"),
    }
    let worker = WorkerConfig { program: PathBuf::from("/proc/self/exe"), log_level: config.log_level };
    let backend = Embedded::new(EmbeddedTpm { version, state }, worker);
    let mut engine = Engine::new(Box::new(backend), Platform::new(version, config.startup), Some(wakeup));
    engine.on_first_start(ready::announce);
    let mut device = TpmDevice::new(config.device.identity, config.registers, engine, config.reset_on_connect);
    server.run(&mut device, &signals)?;
    match device.stop_failure() {
        None => log::info!("ended"),
        Some(reason) => bail!("the TPM was not stopped in order, and its last change may be lost: {reason}"),
    }
    Ok(())
}

/// Takes over a descriptor that the starting process left open for us.
fn inherited(fd: RawFd) -> anyhow::Result<OwnedFd> {
    // SAFETY: only numbers from 3 on are accepted, this is called once, and before it nothing was opened that could
    // have this number but was not inherited: were it so, the next line would say that it is closed on exec.
    #[expect(unsafe_code, reason = "a descriptor given by number")]
    let descriptor = unsafe { OwnedFd::from_raw_fd(fd) };
    match fcntl(&descriptor, FcntlArg::F_GETFD).map(FdFlag::from_bits_retain) {
        Ok(flags) if !flags.contains(FdFlag::FD_CLOEXEC) => Ok(descriptor),
        Ok(_) | Err(_) => {
            // Not ours to close.
            std::mem::forget(descriptor);
            bail!("--fd={fd}: no such descriptor was inherited; the starting process must leave it open")
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::super::Cli;
    use super::*;

    fn config(args: &[&str]) -> anyhow::Result<Config> {
        let args = ["vfio-user-tpm"].iter().chain(args);
        Config::try_from(Cli::try_parse_from(args)?.serve)
    }

    #[test]
    fn the_defaults_are_a_tis_tpm_2_0_that_we_start_up() {
        let config = config(&["--socket-path=/run/tpm.sock"]).unwrap();
        assert_eq!(config.endpoint, Endpoint::Path("/run/tpm.sock".into()));
        assert_eq!(config.startup, StartupPolicy::Clear);
        assert_eq!(config.device.identity, crate::device::identity(0x7666, 0x5450));
        assert!(config.description.is_none() && config.state_dir.is_none());
        assert!(!config.reset_on_connect && !config.registers.guest_locality_4);
    }

    #[test]
    fn registers_and_tables_carry_the_same_ids() {
        let config = config(&["--socket-path=/s", "--pci-id=1b36:0042"]).unwrap();
        assert_eq!((config.registers.vendor_id, config.registers.device_id), (0x1b36, 0x42));
        assert_eq!(config.device.identity.vendor_id, 0x1b36);
    }

    #[test]
    fn a_description_needs_a_path_to_connect_to() {
        let error = config(&["--fd=3", "--description=/tmp/d"]).unwrap_err().to_string();
        assert!(error.contains("--socket-path"), "{error}");
    }

    #[test]
    fn standard_streams_are_no_sockets_to_serve() {
        assert!(config(&["--fd=0"]).is_err());
        assert!(config(&["--fd=-1"]).is_err());
    }

    #[test]
    fn the_rights_of_a_socket_are_for_one_that_we_make() {
        let error = config(&["--fd=3", "--socket-mode=0660"]).unwrap_err().to_string();
        assert!(error.contains("--socket-path"), "{error}");
        let config = config(&["--fd=3", "--allow-uid=1000", "--allow-uid=1001"]).unwrap();
        assert_eq!(config.allowed_users, Some([1000, 1001].map(Uid::from_raw).to_vec()));
        assert_eq!(config.socket_rights, SocketRights::default());
    }

    #[test]
    fn unknown_values_are_refused_with_what_there_is() {
        for (flag, expected) in [
            ("--backend=simulator", "embedded"),
            ("--tpm-version=3", "2.0"),
            ("--interface=spi", "tis"),
            ("--machine=microvm", "q35 or pc"),
            ("--pci-address=1f.0", "another slot"),
            ("--pci-address=06.0/00.0", "--force-behind-bridge"),
            ("--force-behind-bridge=rp0", "06.0/00.0"),
            ("--force-behind-bridge=", "--force-behind-bridge"),
            ("--startup=maybe", "clear"),
            ("--log-level=loud", "debug"),
        ] {
            let error = config(&["--socket-path=/s", flag]).unwrap_err().to_string();
            assert!(error.contains(expected), "{flag}: {error}");
        }
    }
}
