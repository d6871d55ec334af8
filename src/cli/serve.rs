//! Serving the TPM: the program without a subcommand.

use std::os::fd::{AsFd, RawFd};
use std::path::{Path, PathBuf};
use std::time::{Instant, SystemTime};

use anyhow::{Context, anyhow, bail};
use clap::{Args, ValueEnum};
use nix::sys::signal::Signal;
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::unistd::Uid;

use super::access_args::AccessArgs;
use super::activation::{self, Sockets};
use super::backend_args::{BackendArgs, BackendConfig, OpenBackend, Surroundings};
use super::config_file::ConfigArgs;
use super::device_args::{DeviceArgs, description_of};
use super::latency_args::LatencyArgs;
use super::log_args::LogArgs;
use super::measure_args::MeasureArgs;
use super::misuse::Misuse;
use super::ppi_args::PpiArgs;
use super::register_args::RegisterArgs;
use super::sandbox_args::{SandboxArgs, UserArgs};
use super::trace_args::TraceArgs;
use super::{inherited, ready, signals};
use crate::acpi::TpmDevice as DeviceDescription;
use crate::control::ControlSocket;
use crate::description::Description;
use crate::device::{DeviceOptions, TpmDevice};
use crate::engine::{Engine, Wakeup};
use crate::frontend::LOG_SIZE;
use crate::launch::Spawner;
use crate::pci::InterruptPin;
use crate::platform::{Platform, StartupPolicy};
use crate::ppi::Consent;
use crate::sandbox::{self, Grant, NewUser, SERVER_CALLS, SERVER_CALLS_TO_ATTACH};
use crate::status::{self, About};
use crate::tpm::TpmVersion;
use crate::vfio_user::{Attendant, DEVICE_TOKEN, Listener, ListenerError, Server, SocketClaim, SocketRights, Visitors};

/// Descriptors that may be open, if the system allows as many: those that clients have sent and that are not closed yet are
/// the most.
pub(super) const MAX_OPEN: u64 = 1024;

#[derive(Debug, Args)]
pub(super) struct ServeArgs {
    #[command(flatten)]
    config: ConfigArgs,

    #[command(flatten)]
    socket: SocketArgs,

    #[command(flatten)]
    access: AccessArgs,

    /// Also write what a VMM needs to attach the device into this folder (see `describe`)
    #[arg(long, value_name = "DIR", requires = "socket_path")]
    description: Option<PathBuf>,

    #[command(flatten)]
    user: UserArgs,

    #[command(flatten)]
    tpm: TpmArgs,

    /// Set by `run`, which alone then ends the server
    #[arg(long, hide = true)]
    obey_parent_only: bool,
}

/// Which TPM is served and how, wherever its clients come from.
#[derive(Debug, Args)]
pub(super) struct TpmArgs {
    #[command(flatten)]
    pub(super) backend: BackendArgs,

    #[command(flatten)]
    device: DeviceArgs,

    /// Who starts the TPM up and closes its platform hierarchy [default: clear; nobody with --backend=passthrough]
    #[arg(long, value_enum)]
    startup: Option<StartupKind>,

    /// Reset the TPM whenever a client connects: for VMMs that do not reset the device themselves. --machine=cloud-hypervisor
    /// does so without being asked
    #[arg(long)]
    reset_on_connect: bool,

    #[command(flatten)]
    pub(super) measure: MeasureArgs,

    #[command(flatten)]
    ppi: PpiArgs,

    #[command(flatten)]
    registers: RegisterArgs,

    #[command(flatten)]
    latency: LatencyArgs,

    /// UNIX socket on which this user and root can ask how the TPM is (see `status`). One on which nobody listens any more
    /// is replaced
    #[arg(long, value_name = "PATH")]
    control: Option<PathBuf>,

    #[command(flatten)]
    pub(super) sandbox: SandboxArgs,

    #[command(flatten)]
    trace: TraceArgs,

    #[command(flatten)]
    pub(super) log: LogArgs,
}

#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
struct SocketArgs {
    /// UNIX socket to listen on. One on which nobody listens any more is replaced
    #[arg(long, value_name = "PATH")]
    socket_path: Option<PathBuf>,

    /// Inherited descriptor to serve instead: of a listening socket, or of one connection
    #[arg(long, value_name = "FD", value_parser = inherited::number())]
    fd: Option<RawFd>,

    /// Serve the socket that the service manager listens on and hands over (LISTEN_FDS, as systemd's .socket units do)
    #[arg(long)]
    socket_activation: bool,
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
    /// Whatever the service manager hands over.
    Activation,
}

/// What to serve and how: the arguments, checked against each other. Nothing has been opened yet.
#[derive(Debug)]
struct Config {
    endpoint: Endpoint,
    backend: BackendConfig,
    socket_rights: SocketRights,
    allowed_users: Option<Vec<Uid>>,
    device: DeviceDescription,
    registers: RegisterArgs,
    description: Option<(Description, PathBuf)>,
    startup: StartupPolicy,
    measure: MeasureArgs,
    presence: Option<Consent>,
    reset_on_connect: bool,
    obey_parent_only: bool,
    latency: LatencyArgs,
    control: Option<PathBuf>,
    sandbox: SandboxArgs,
    trace: TraceArgs,
    user: Option<NewUser>,
    log: LogArgs,
}

impl TryFrom<ServeArgs> for Config {
    type Error = anyhow::Error;

    fn try_from(args: ServeArgs) -> anyhow::Result<Self> {
        let (backend, device) = args.tpm.backend_and_device()?;
        Ok(Self::checked(args, backend, device).map_err(Misuse::from)?)
    }
}

impl Config {
    fn checked(args: ServeArgs, backend: BackendConfig, device: DeviceDescription) -> anyhow::Result<Self> {
        let ServeArgs { config: _, socket, access, description, user: UserArgs { user }, tpm: args, obey_parent_only } =
            args;
        let endpoint = match (socket.socket_path, socket.fd, socket.socket_activation) {
            (Some(path), None, false) => Endpoint::Path(path),
            (None, ..) if access.has_socket_rights() => {
                bail!("--socket-mode and --socket-group need --socket-path: an inherited socket has its rights already")
            }
            (None, Some(fd), false) => Endpoint::Descriptor(fd),
            (None, None, true) => Endpoint::Activation,
            _ => bail!("give one of --socket-path, --fd and --socket-activation"),
        };
        if args.backend.keys().descriptor().is_some() && args.backend.keys().descriptor() == socket.fd {
            bail!("--fd and --key-fd are the same descriptor");
        }
        if args.control.is_some() && args.control.as_deref() == endpoint.path() {
            bail!("--control and --socket-path are the same: choose another path for one of them");
        }
        let description = match (description, &endpoint) {
            (None, _) => None,
            (Some(folder), Endpoint::Path(socket)) => {
                let config = description_of(device.clone(), socket.clone(), backend.source());
                Some((Description::new(config)?, folder))
            }
            (Some(_), Endpoint::Descriptor(_) | Endpoint::Activation) => {
                bail!("--description needs --socket-path: a VMM connects by path")
            }
        };
        let startup = match (&backend, args.startup) {
            (BackendConfig::Host { .. }, None) => StartupPolicy::Host,
            (BackendConfig::Host { .. }, Some(_)) => bail!(
                "--startup does not go with --backend=passthrough: the host has started its TPM up, and nothing else \
                 but the guest's commands is sent to it"
            ),
            (_, None | Some(StartupKind::Clear)) => StartupPolicy::Clear,
            (_, Some(StartupKind::None)) => StartupPolicy::None,
        };
        if args.measure.any() {
            refuse_measuring(startup, device.version())?;
        }
        let presence = args.ppi.consent(startup, device.version())?;
        let reset_on_connect = args.reset_on_connect || device.placement().machine().resets_by_connecting();
        Ok(Self {
            endpoint,
            backend,
            socket_rights: access.socket_rights(),
            allowed_users: access.allowed_users(),
            device,
            registers: args.registers,
            description,
            startup,
            measure: args.measure,
            presence,
            reset_on_connect,
            obey_parent_only,
            latency: args.latency,
            control: args.control,
            sandbox: args.sandbox,
            trace: args.trace,
            user,
            log: args.log,
        })
    }
}

/// Says who cannot measure a launch.
fn refuse_measuring(startup: StartupPolicy, version: TpmVersion) -> anyhow::Result<()> {
    match (startup, version) {
        (StartupPolicy::Host, _) => bail!(
            "--measure does not go with --backend=passthrough: the host's TPM has been started by the host, and its PCRs \
             are the host's"
        ),
        (StartupPolicy::None, _) => bail!(
            "--measure does not go with --startup=none: measuring belongs to who starts the TPM up, and that is firmware \
             there"
        ),
        (StartupPolicy::Clear, TpmVersion::V1_2) => {
            bail!("--measure is for a TPM 2.0: leave out --tpm-version=1.2, or --measure")
        }
        (StartupPolicy::Clear, TpmVersion::V2_0) => Ok(()),
    }
}

impl Endpoint {
    fn path(&self) -> Option<&Path> {
        match self {
            Self::Path(path) => Some(path),
            Self::Descriptor(_) | Self::Activation => None,
        }
    }
}

impl TpmArgs {
    /// Which TPM it is, and the device in front of it.
    pub(super) fn backend_and_device(&self) -> anyhow::Result<(BackendConfig, DeviceDescription)> {
        let backend = self.backend.config().map_err(Misuse::from)?;
        // That of a chip which is not there yet may be known the next time.
        let version = backend.version(self.device.tpm_version)?;
        let device = self.device.device(version).map_err(Misuse::from)?;
        Ok((backend, device))
    }
}

pub(super) fn run(args: ServeArgs) -> anyhow::Result<()> {
    let begun = (SystemTime::now(), Instant::now());
    let config = Config::try_from(args)?;
    config.log.start()?;
    let confinement = config.sandbox.confinement();
    // First of all: everything belongs to that user, and is opened with its rights, also what has to be removed or opened
    // again. And the kernel forgets with the old user that this process is not to be dumped.
    config.user.as_ref().map_or(Ok(()), NewUser::assume)?;
    // What is started here has given it up too.
    confinement.give_up_privileges(MAX_OPEN)?;
    // Blocked before anything else, so that a signal at any time ends the program in order.
    let signals = signals::wanted([Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP, Signal::SIGQUIT]);
    signals.thread_block().context("cannot block signals")?;
    let signals = SignalFd::with_flags(&signals, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)
        .context("cannot receive signals")?;

    let version = config.device.version();
    // What is launched is what it is now.
    let launch = config.measure.launch()?;
    let trace = config.trace.open()?;
    let registers = config.registers.registers(&config.device);
    // Before the socket is there: what is wrong with the TPM is said first, and a VMM never meets a server without one.
    let attached = config.backend.attaches_to().map(std::path::absolute).transpose()?;
    let surroundings = Surroundings {
        log: &config.log,
        sandbox: &config.sandbox,
        sockets: [config.endpoint.path(), config.control.as_deref()].into_iter().flatten().collect(),
        interrupt: signals.as_fd(),
    };
    let source = config.backend.source();
    let OpenBackend { backend, helper } = config.backend.open(version, &surroundings)?;
    let mut control = config.control.as_deref().map(|path| control_listener(path, helper.as_ref())).transpose()?;
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
        Endpoint::Descriptor(fd) => Listener::from_fd(inherited::take("--fd", *fd)?)?,
        Endpoint::Activation => {
            let Sockets { clients, control: questions } = activation::take()?;
            if let Some(socket) = questions {
                if config.control.is_some() {
                    return Err(Misuse::from(anyhow!(
                        "--control and a socket named \"control\" from the service manager: leave one of them out"
                    ))
                    .into());
                }
                control = Some(for_questions(Listener::from_fd(socket)?)?);
            }
            Listener::from_fd(clients)?
        }
    };
    let listener = match config.allowed_users {
        Some(users) => listener.allow_only(users)?,
        None => listener,
    };
    let listener = removed_by(listener, helper.as_ref());
    let starter = ready::Starter::find();
    let granted: Vec<_> = attached.iter().filter_map(|socket| socket.parent()).map(Grant::SocketsIn).collect();
    confinement.give_up_descriptors()?;
    // The server's threads take it over.
    let files = confinement.restrict_files(&granted)?;
    let mut server = Server::new(listener)?;
    let visitors = control.map(|control| server.visitors(control)).transpose()?;
    server.busy_poll(config.latency.busy_poll());
    if config.obey_parent_only {
        server.obey_parent_only();
    }
    let about = About {
        program_version: env!("CARGO_PKG_VERSION").to_owned(),
        source,
        interface: config.device.interface(),
        started: begun,
    };
    let mut attendant = attendant(visitors, &server, about)?;
    let wakeup = Wakeup { registry: server.registry()?, token: DEVICE_TOKEN };

    match &config.endpoint {
        Endpoint::Path(path) => log::info!("listening on {}", path.display()),
        Endpoint::Descriptor(fd) => log::info!("serving descriptor {fd}"),
        Endpoint::Activation => log::info!("serving the socket that the service manager listens on"),
    }
    let platform = Platform::new(version, config.startup);
    let platform = match launch {
        Some(launch) => platform.measuring(launch, LOG_SIZE),
        None => platform,
    };
    let mut engine = Engine::new(backend, platform, Some(wakeup));
    engine.trace(config.trace.start(trace, version)?);
    engine.on_first_start(move || starter.map_or((), ready::Starter::tell));
    let options = DeviceOptions {
        reset_on_connect: config.reset_on_connect,
        completion_hold: config.latency.completion_hold(),
        presence: config.presence,
        interrupt_pin: if config.device.has_interrupt() { InterruptPin::IntA } else { InterruptPin::None },
    };
    let mut device = TpmDevice::new(config.device.identity(), registers, engine, options);
    let calls =
        confinement.restrict_calls(&[SERVER_CALLS, attached.as_ref().map_or(&[], |_| SERVER_CALLS_TO_ATTACH)])?;
    sandbox::warn_of_missing(files, calls);
    server.run_attended(&mut device, &mut *attendant, &signals)?;
    match device.stop_failure() {
        None => log::info!("ended"),
        Some(reason) => bail!("the TPM was not stopped in order, and its last change may be lost: {reason}"),
    }
    Ok(())
}

/// The socket of `--control`.
fn control_listener(path: &Path, helper: Option<&Spawner>) -> anyhow::Result<Listener> {
    Ok(removed_by(for_questions(SocketClaim::new(path)?.listen()?)?, helper))
}

/// Only this user may ask, and root, who could connect as this user anyway.
fn for_questions(listener: Listener) -> Result<Listener, ListenerError> {
    listener.allow_only(vec![Uid::effective(), Uid::from_raw(0)])
}

/// The confined server reaches no file: its sockets are removed by its helper.
fn removed_by(listener: Listener, helper: Option<&Spawner>) -> Listener {
    match helper.cloned() {
        Some(helper) => listener.removed_by(move |device, inode| helper.remove_socket(device, inode)),
        None => listener,
    }
}

/// Who answers on the control socket.
fn attendant(
    visitors: Option<Visitors>,
    server: &Server,
    about: About,
) -> anyhow::Result<Box<dyn Attendant<TpmDevice>>> {
    let Some(visitors) = visitors else { return Ok(Box::new(())) };
    let answer =
        move |path: &str, device: &TpmDevice, connections: &_| status::answer(&about, path, device, connections);
    Ok(Box::new(ControlSocket::new(visitors, server.registry()?, Box::new(answer))?))
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use serde_json::Value;

    use super::super::Cli;
    use super::*;
    use crate::acpi::Interface;
    use crate::bar_map;
    use crate::description::Source;
    use crate::tpm::Header;

    fn config(args: &[&str]) -> anyhow::Result<Config> {
        let args = ["vfio-user-tpm"].iter().chain(args);
        Config::try_from(Cli::try_parse_from(args)?.serve)
    }

    #[test]
    fn the_defaults_are_a_crb_tpm_2_0_that_we_start_up() {
        let config = config(&["--socket-path=/run/tpm.sock"]).unwrap();
        assert_eq!(config.endpoint, Endpoint::Path("/run/tpm.sock".into()));
        assert_eq!((config.startup, config.presence), (StartupPolicy::Clear, Some(Consent::empty())));
        assert_eq!(config.device.identity(), crate::device::identity(0x7666, 0x5450));
        assert_eq!(config.device.interface(), Interface::Crb);
        assert!(config.description.is_none() && config.backend.source() == Source::Ephemeral);
        assert!(!config.reset_on_connect && !config.registers.guest_locality_4);
    }

    #[test]
    fn cloud_hypervisor_resets_by_connecting() {
        assert!(config(&["--socket-path=/s", "--machine=cloud-hypervisor"]).unwrap().reset_on_connect);
        assert!(!config(&["--socket-path=/s", "--machine=virt"]).unwrap().reset_on_connect);
    }

    #[test]
    fn a_tpm_1_2_has_tis_without_being_asked() {
        let config = config(&["--socket-path=/s", "--tpm-version=1.2"]).unwrap();
        assert_eq!(config.device.interface(), Interface::Tis);
    }

    #[test]
    fn the_hosts_tpm_is_never_started_up_and_its_version_can_be_told() {
        let passthrough = ["--socket-path=/s", "--backend=passthrough", "--tpm-version=1.2"];
        let host = config(&passthrough).unwrap();
        assert_eq!((host.startup, host.device.version()), (StartupPolicy::Host, TpmVersion::V1_2));
        let error = config(&[&passthrough[..], &["--startup=clear"]].concat()).unwrap_err().to_string();
        assert!(error.contains("--startup does not go"), "{error}");
    }

    #[test]
    fn who_cannot_measure_a_launch_says_so() {
        let measured = ["--socket-path=/s", "--measure=cmdline=quiet"];
        assert!(config(&measured).unwrap().measure.any());
        for (flag, expected) in
            [("--backend=passthrough", "the host's"), ("--startup=none", "firmware"), ("--tpm-version=1.2", "TPM 2.0")]
        {
            let args = [&measured[..], &[flag, "--interface=tis"]].concat();
            let args =
                if flag == "--backend=passthrough" { [&args[..], &["--tpm-version=2.0"]].concat() } else { args };
            let error = config(&args).unwrap_err().to_string();
            assert!(error.contains("--measure") && error.contains(expected), "{flag}: {error}");
        }
    }

    #[test]
    fn registers_and_tables_carry_the_same_ids() {
        let config = config(&["--socket-path=/s", "--pci-id=1b36:0042", "--interface=tis"]).unwrap();
        let mut registers = config.registers.registers(&config.device);
        let mut ids = [0; 4];
        registers.read(0xf00, &mut ids);
        assert_eq!(ids, [0x36, 0x1b, 0x42, 0]);
        assert_eq!(config.device.identity().vendor_id, 0x1b36);
    }

    #[test]
    fn the_windows_that_the_description_calls_served_are_those_where_something_is() {
        for flags in [
            &["--interface=tis"][..],
            &["--interface=crb"],
            &["--interface=crb-doorbell"],
            &["--interface=tis", "--no-log"],
            &["--interface=crb", "--no-log"],
            &["--interface=crb-doorbell", "--no-log"],
            &["--tpm-version=1.2"],
            &["--machine=virt"],
        ] {
            let config = config(&[&["--socket-path=/s", "--description=/d"], flags].concat()).unwrap();
            let (description, folder) = config.description.unwrap();
            let json: Value = serde_json::from_str(&description.tpm_json(&folder).unwrap()).unwrap();
            let served: Vec<_> = json["bar0"]["windows"].as_array().unwrap().iter().map(|it| &it["served"]).collect();
            let mut registers = config.registers.registers(&config.device);
            let presence = config.presence.map(crate::ppi::Window::new);
            let command = Header { tag: 0x8001, size: 10, code: 0x17b }.to_bytes();
            assert_eq!(registers.write(bar_map::COMMAND_BUFFER.offset.into(), &command), None);
            let found = bar_map::WINDOWS.map(|window| {
                let mut bytes = vec![0; window.length as usize];
                registers.read(window.offset.into(), &mut bytes);
                if let Some(presence) = &presence {
                    presence.read(window.offset.into(), &mut bytes);
                }
                let rings = registers.write(window.offset.into(), &[1]).is_some();
                let is_memory = registers.shared_windows().contains(&window);
                let is_there = rings || bytes.iter().any(|byte| *byte != 0xff);
                assert!(is_there || !is_memory, "{flags:?}: {window:?}");
                is_there
            });
            assert_eq!(served, found.iter().collect::<Vec<_>>(), "{flags:?}");
        }
    }

    #[test]
    fn a_description_needs_a_path_to_connect_to() {
        let error = config(&["--fd=3", "--description=/tmp/d"]).unwrap_err().to_string();
        assert!(error.contains("--socket-path"), "{error}");
    }

    #[test]
    fn questions_are_answered_elsewhere_than_clients() {
        assert_eq!(config(&["--fd=3", "--control=/c"]).unwrap().control, Some("/c".into()));
        let error = config(&["--socket-path=/s", "--control=/s"]).unwrap_err().to_string();
        assert!(error.contains("another path"), "{error}");
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
    fn a_crb_is_refused_to_a_1_2() {
        for interface in ["--interface=crb", "--interface=crb-doorbell"] {
            assert!(config(&["--socket-path=/s", interface]).is_ok(), "{interface}");
            let error = config(&["--socket-path=/s", interface, "--tpm-version=1.2"]).unwrap_err().to_string();
            assert!(error.contains("a 1.2: choose --interface=tis"), "{error}");
        }
    }

    #[test]
    fn unknown_values_are_refused_with_what_there_is() {
        for (flag, expected) in [
            ("--backend=simulator", "embedded"),
            ("--tpm-version=3", "2.0"),
            ("--interface=spi", "tis, crb or crb-doorbell"),
            ("--machine=microvm", "q35, pc, virt or cloud-hypervisor"),
            ("--pci-address=1f.0", "another slot"),
            ("--pci-address=06.0/00.0", "--force-behind-bridge"),
            ("--force-behind-bridge=rp0", "06.0/00.0"),
            ("--force-behind-bridge=", "--force-behind-bridge"),
            ("--startup=maybe", "clear"),
            ("--swtpm-exec", "--backend=swtpm"),
            ("--log-level=loud", "debug"),
        ] {
            let error = config(&["--socket-path=/s", flag]).unwrap_err().to_string();
            assert!(error.contains(expected), "{flag}: {error}");
        }
    }
}
