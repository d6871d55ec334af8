//! The arguments that say which TPM is behind the registers; for serving it and for describing it.

use std::ffi::OsString;
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use clap::{Args, ValueEnum};

use super::key_args::KeyArgs;
use super::log_args::LogArgs;
use super::sandbox_args::SandboxArgs;
use super::worker;
use crate::backend::Backend;
use crate::backend::embedded::{Embedded, EmbeddedTpm};
use crate::backend::passthrough::{self, HostTpm, PROBE_LIMIT, Passthrough};
use crate::backend::swtpm::{self, Place, Swtpm, SwtpmConfig};
use crate::description::Source;
use crate::launch::{Program, SPAWNER, Spawner, SpawnerConfig};
use crate::state::StateFolder;
use crate::tpm::TpmVersion;
use crate::worker::Holding;

#[derive(Clone, Debug, Args)]
pub(super) struct BackendArgs {
    /// Which TPM is behind the registers
    #[arg(long, value_enum, default_value = "embedded")]
    backend: BackendKind,

    /// Folder for the TPM's state; it is created if it is missing. Without one, the embedded TPM and its secrets
    /// are gone when the program ends
    #[arg(long, value_name = "DIR")]
    state_dir: Option<PathBuf>,

    #[command(flatten)]
    keys: KeyArgs,

    /// With --backend=swtpm: the control socket of a swtpm that runs
    #[arg(long, value_name = "PATH")]
    swtpm_ctrl: Option<PathBuf>,

    /// With --backend=swtpm: start this swtpm on --state-dir, and end it with this program [default: swtpm]
    #[arg(long, value_name = "PROGRAM", num_args = 0..=1, default_missing_value = "swtpm")]
    swtpm_exec: Option<PathBuf>,

    /// With --swtpm-exec: one more argument for swtpm; can be given several times
    #[arg(long = "swtpm-arg", value_name = "ARG", allow_hyphen_values = true)]
    swtpm_args: Vec<OsString>,

    /// With --backend=passthrough: the host's TPM [default: /dev/tpm0]
    #[arg(long, value_name = "DEVICE")]
    tpm_path: Option<PathBuf>,

    /// With --backend=passthrough: the file that cancels a command when it is written to; without it, the one that the
    /// kernel has for this TPM, if any
    #[arg(long, value_name = "PATH")]
    cancel_path: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum BackendKind {
    /// libtpms in a process of its own, nothing else to start
    Embedded,
    /// A swtpm: one that runs (--swtpm-ctrl), or one to start (--swtpm-exec)
    Swtpm,
    /// The host's own TPM: not reset with the virtual machine, its PCRs shared with the host
    Passthrough,
}

/// Which TPM to serve: the arguments, checked against each other. Nothing has been opened yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum BackendConfig {
    /// libtpms in a worker process, ephemeral without a folder.
    Embedded { state_dir: Option<PathBuf>, keys: KeyArgs },
    /// A swtpm that runs.
    SwtpmAttached { control: PathBuf },
    /// A swtpm that is ours.
    SwtpmOwned { program: PathBuf, arguments: Vec<OsString>, state_dir: PathBuf },
    /// The host's TPM.
    Host { tpm_path: PathBuf, cancel_path: Option<PathBuf> },
}

/// The server around a backend.
#[derive(Debug)]
pub(super) struct Surroundings<'a> {
    pub(super) log: &'a LogArgs,
    pub(super) sandbox: &'a SandboxArgs,
    /// The sockets that it will make.
    pub(super) sockets: Vec<&'a Path>,
    /// Becomes readable to end a wait for the host's TPM.
    pub(super) interrupt: BorrowedFd<'a>,
}

/// A backend, and a process that starts others and removes the sockets.
pub(super) struct OpenBackend {
    pub(super) backend: Box<dyn Backend>,
    pub(super) helper: Option<Spawner>,
}

impl BackendArgs {
    pub(super) fn config(&self) -> anyhow::Result<BackendConfig> {
        let Self { backend, state_dir, keys, swtpm_ctrl, swtpm_exec, swtpm_args, tpm_path, cancel_path } = self.clone();
        let given = [
            ("--swtpm-ctrl", swtpm_ctrl.is_some(), BackendKind::Swtpm),
            ("--swtpm-exec", swtpm_exec.is_some(), BackendKind::Swtpm),
            ("--swtpm-arg", !swtpm_args.is_empty(), BackendKind::Swtpm),
            ("--tpm-path", tpm_path.is_some(), BackendKind::Passthrough),
            ("--cancel-path", cancel_path.is_some(), BackendKind::Passthrough),
        ];
        match (keys.given(), backend, &state_dir) {
            (Some(flag), BackendKind::Embedded, None) => {
                bail!("{flag} protects a TPM's state, and there is none without --state-dir")
            }
            (Some(flag), BackendKind::Swtpm | BackendKind::Passthrough, _) => bail!(
                "{flag} is for --backend=embedded, and this is {}; swtpm has --key, which --swtpm-arg passes on",
                name(backend)
            ),
            _ => {}
        }
        for (flag, given, of) in given {
            if given && of != backend {
                bail!("{flag} is for --backend={}, and this is {}", name(of), name(backend));
            }
        }
        Ok(match (backend, swtpm_ctrl, swtpm_exec) {
            (BackendKind::Embedded, ..) => BackendConfig::Embedded { state_dir, keys },
            (BackendKind::Swtpm, Some(_), Some(_)) => {
                bail!("give either --swtpm-ctrl, to attach to a swtpm, or --swtpm-exec, to start one")
            }
            (BackendKind::Swtpm, None, None) => bail!(
                "--backend=swtpm needs --swtpm-ctrl=PATH, the control socket of a swtpm that runs, or --swtpm-exec, to \
                 start one on --state-dir"
            ),
            (BackendKind::Swtpm, Some(_), None) if state_dir.is_some() => bail!(
                "--state-dir does not go with --swtpm-ctrl: the swtpm that runs was told with --tpmstate where its \
                 state is"
            ),
            (BackendKind::Swtpm, Some(_), None) if !swtpm_args.is_empty() => {
                bail!("--swtpm-arg is for a swtpm that is started with --swtpm-exec")
            }
            (BackendKind::Swtpm, Some(control), None) => BackendConfig::SwtpmAttached { control },
            (BackendKind::Swtpm, None, Some(_)) if swtpm_args.iter().any(|arg| arg == "-d" || arg == "--daemon") => {
                bail!(
                    "swtpm must not go into the background, where nobody could end it: leave out --swtpm-arg=--daemon"
                )
            }
            (BackendKind::Swtpm, None, Some(program)) => match state_dir {
                Some(state_dir) => {
                    BackendConfig::SwtpmOwned { program: whole_path(program)?, arguments: swtpm_args, state_dir }
                }
                None => bail!("--swtpm-exec needs --state-dir=DIR, the folder for swtpm's state"),
            },
            (BackendKind::Passthrough, ..) if state_dir.is_some() => {
                bail!("--state-dir does not go with --backend=passthrough: the state cannot leave the host's TPM")
            }
            (BackendKind::Passthrough, ..) => {
                BackendConfig::Host { tpm_path: tpm_path.unwrap_or_else(|| PathBuf::from("/dev/tpm0")), cancel_path }
            }
        })
    }
}

/// The path of a program that is started in another folder than this one. A bare name stays, to be looked for in `PATH`.
fn whole_path(program: PathBuf) -> anyhow::Result<PathBuf> {
    let is_bare = !program.as_os_str().as_encoded_bytes().contains(&b'/');
    if is_bare { Ok(program) } else { std::path::absolute(program).context("cannot tell where swtpm is") }
}

fn name(kind: BackendKind) -> String {
    kind.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default()
}

impl BackendArgs {
    /// The flags that protect the state.
    pub(super) fn keys(&self) -> &KeyArgs {
        &self.keys
    }
}

impl BackendConfig {
    /// The TPM's version: the one asked for, else that of the host's TPM, else 2.0.
    pub(super) fn version(&self, asked: Option<TpmVersion>) -> anyhow::Result<TpmVersion> {
        match (asked, self) {
            (Some(version), _) => Ok(version),
            (None, Self::Host { tpm_path, .. }) => match passthrough::version_by_sysfs(tpm_path) {
                Some(version) => Ok(version),
                None => bail!(
                    "the version of {} is not known: it is not there, or its kernel does not tell; give --tpm-version=2.0 \
                     or 1.2",
                    tpm_path.display()
                ),
            },
            (None, _) => Ok(TpmVersion::V2_0),
        }
    }

    /// Opens what the TPM needs and takes its locks; the TPM itself is started by the engine. Gives the process that does
    /// what a confined server cannot, if there is anything to do.
    pub(super) fn open(self, version: TpmVersion, server: &Surroundings<'_>) -> anyhow::Result<OpenBackend> {
        let this_program = PathBuf::from("/proc/self/exe");
        let worker = |holding: Holding| {
            let mut worker = worker::program(server.log.log_level, server.sandbox);
            worker.arguments.extend(server.log.destination_args());
            worker.arguments.push(format!("--holds={holding}").into());
            worker
        };
        let start = |program| {
            let sockets = server.sockets.iter().map(std::path::absolute).collect::<Result<_, _>>()?;
            let mut spawner = Program::ourselves(this_program.clone(), SPAWNER, server.log.log_level);
            spawner.arguments.extend(server.log.destination_args());
            let config = SpawnerConfig { spawner, program, sockets };
            Spawner::start(config).context("cannot start a process")
        };
        let mut helper = None;
        let mut spawner = |program| anyhow::Ok(helper.insert(start(Some(program))?).clone());
        let backend: Box<dyn Backend> = match self {
            Self::Embedded { state_dir, keys } => {
                let state = state_dir.as_deref().map(StateFolder::open).transpose()?;
                let state = state.map(|folder| keys.protect(folder)).transpose()?;
                state.as_ref().map_or(Ok(()), StateFolder::refuse_swtpm)?;
                match &state_dir {
                    Some(folder) => log::info!("TPM {version}, its state in {}", folder.display()),
                    None => {
                        log::warn!("TPM {version} without --state-dir: its keys and NV contents end with this program");
                    }
                }
                let tpm = EmbeddedTpm { version, state };
                let worker = worker(tpm.holding().context("cannot look at the state folder")?);
                Box::new(Embedded::new(tpm, spawner(worker)?))
            }
            Self::SwtpmAttached { control } => {
                log::info!("TPM {version} of the swtpm on {}", control.display());
                helper = (!server.sockets.is_empty()).then(|| start(None)).transpose()?;
                Box::new(Swtpm::new(SwtpmConfig { version, place: Place::Attach { control } }))
            }
            Self::SwtpmOwned { program, arguments, state_dir } => {
                let state_dir = std::path::absolute(state_dir).context("cannot tell where the state folder is")?;
                if state_dir.as_os_str().as_encoded_bytes().contains(&b',') {
                    bail!(
                        "{} has a comma in it, at which swtpm would split it: choose another folder",
                        state_dir.display()
                    );
                }
                let state = StateFolder::open(&state_dir)?;
                state.refuse_embedded()?;
                log::info!("TPM {version} of {}, its state in {}", program.display(), state_dir.display());
                let launcher = Box::new(spawner(swtpm::command(program, arguments, &state_dir, version))?);
                let place = Place::Owned { launcher, state };
                Box::new(Swtpm::new(SwtpmConfig { version, place }))
            }
            Self::Host { tpm_path, cancel_path } => {
                let host = HostTpm::open(&tpm_path, cancel_path.as_deref())?;
                let worker = worker(host.holding().with_context(|| format!("cannot look at {}", tpm_path.display()))?);
                let tpm = host.probe(worker.clone(), PROBE_LIMIT, Some(server.interrupt))?;
                if tpm.version() != version {
                    let (path, found) = (tpm_path.display(), tpm.version());
                    bail!("{path} is a TPM {found}, and a TPM {version} was to be served: give --tpm-version={found}");
                }
                tpm.warn();
                Box::new(Passthrough::new(tpm, spawner(worker)?))
            }
        };
        Ok(OpenBackend { backend, helper })
    }

    /// The socket of an swtpm that somebody else runs, to which a server connects again and again.
    pub(super) fn attaches_to(&self) -> Option<&Path> {
        match self {
            Self::SwtpmAttached { control } => Some(control),
            _ => None,
        }
    }

    /// What a description says of it.
    pub(super) fn source(&self) -> Source {
        match self {
            Self::Embedded { state_dir: None, .. } => Source::Ephemeral,
            Self::Embedded { state_dir: Some(_), .. } => Source::Embedded,
            Self::SwtpmAttached { .. } => Source::SwtpmAttached,
            Self::SwtpmOwned { .. } => Source::SwtpmOwned,
            Self::Host { .. } => Source::Host,
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        backend: BackendArgs,
    }

    fn config(args: &str) -> anyhow::Result<BackendConfig> {
        Cli::try_parse_from(std::iter::once("vfio-user-tpm").chain(args.split_whitespace()))?.backend.config()
    }

    #[test]
    fn the_default_is_an_embedded_ephemeral_tpm_2_0() {
        let config = config("").unwrap();
        assert_eq!((config.source(), config.version(None).unwrap()), (Source::Ephemeral, TpmVersion::V2_0));
    }

    #[test]
    fn swtpm_is_attached_to_or_started() {
        let attached = BackendConfig::SwtpmAttached { control: "/c".into() };
        assert_eq!(config("--backend=swtpm --swtpm-ctrl=/c").unwrap(), attached);
        let owned = |program: &str, arguments: &[&str]| BackendConfig::SwtpmOwned {
            program: program.into(),
            arguments: arguments.iter().map(OsString::from).collect(),
            state_dir: "/s".into(),
        };
        assert_eq!(config("--backend=swtpm --swtpm-exec --state-dir=/s").unwrap(), owned("swtpm", &[]));
        assert_eq!(
            config("--backend=swtpm --swtpm-exec /opt/swtpm --state-dir=/s --swtpm-arg --log --swtpm-arg level=5")
                .unwrap(),
            owned("/opt/swtpm", &["--log", "level=5"])
        );
        let beside = std::env::current_dir().unwrap().join("bin/swtpm");
        assert_eq!(
            config("--backend=swtpm --swtpm-exec=./bin/swtpm --state-dir=/s").unwrap(),
            owned(beside.to_str().unwrap(), &[])
        );
    }

    #[test]
    fn the_host_s_first_tpm_is_the_default() {
        let host = |tpm_path: &str, cancel_path: Option<&str>| BackendConfig::Host {
            tpm_path: tpm_path.into(),
            cancel_path: cancel_path.map(Into::into),
        };
        assert_eq!(config("--backend=passthrough").unwrap(), host("/dev/tpm0", None));
        let given = config("--backend=passthrough --tpm-path=/dev/tpm1 --cancel-path=/c").unwrap();
        assert_eq!(given, host("/dev/tpm1", Some("/c")));
    }

    #[test]
    fn what_does_not_go_together_is_said_with_what_to_do() {
        for (args, expected) in [
            ("--swtpm-ctrl=/c", "--backend=swtpm"),
            ("--swtpm-exec", "--backend=swtpm"),
            ("--tpm-path=/dev/tpm0", "--backend=passthrough"),
            ("--backend=swtpm --cancel-path=/c", "--backend=passthrough"),
            ("--backend=swtpm", "--swtpm-ctrl"),
            ("--backend=swtpm --swtpm-ctrl=/c --swtpm-exec", "either"),
            ("--backend=swtpm --swtpm-ctrl=/c --state-dir=/s", "--tpmstate"),
            ("--backend=swtpm --swtpm-ctrl=/c --swtpm-arg=x", "--swtpm-exec"),
            ("--backend=swtpm --swtpm-exec", "--state-dir"),
            ("--backend=swtpm --swtpm-exec --state-dir=/s --swtpm-arg=--daemon", "background"),
            ("--backend=passthrough --state-dir=/s", "cannot leave"),
            ("--key-file=/k", "--state-dir"),
            ("--backend=swtpm --swtpm-exec --state-dir=/s --rollback-anchor=/a", "--backend=embedded"),
        ] {
            let error = config(args).unwrap_err().to_string();
            assert!(error.contains(expected), "{args}: {error}");
        }
    }
}
