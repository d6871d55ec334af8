//! The TPMs that are compared.

use std::ffi::OsString;
use std::path::Path;
use std::process::Command;

use nix::unistd::Pid;
use serde_json::Value;
use tempfile::TempDir;
use vfio_user_tpm::tpm::TpmVersion;

use super::common::server::Server;
use super::common::swtpm::{self, Listening};

/// A TPM and the way in which the guest has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Setup {
    front: Front,
    back: Back,
    /// More arguments for our server.
    args: Vec<&'static str>,
}

/// The registers.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Front {
    /// QEMU's own device of this name, with the TPM in a process beside it.
    Qemu(&'static str),
    /// Ours, with this `--interface`.
    Ours(String),
}

/// What is behind the registers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Back {
    Swtpm,
    Embedded,
}

/// What our program can do, as far as it matters here.
pub(crate) struct Abilities {
    interfaces: Vec<String>,
    flags: Vec<String>,
}

impl Abilities {
    /// Asks the built program.
    #[track_caller]
    pub(crate) fn ask() -> Self {
        let program = env!("CARGO_BIN_EXE_vfio-user-tpm");
        let output = Command::new(program).arg("--print-capabilities").output().expect("the program runs");
        Self::parse(&output.stdout).expect("the program's capabilities have features and interfaces")
    }

    fn parse(json: &[u8]) -> Option<Self> {
        let capabilities: Value = serde_json::from_slice(json).ok()?;
        let names = |key: &str| {
            let names = capabilities[key].as_array()?.iter();
            names.map(|name| Some(name.as_str()?.to_owned())).collect::<Option<Vec<String>>>()
        };
        Some(Self { interfaces: names("interfaces")?, flags: names("features")? })
    }

    /// Without the flag there is one interface, TIS.
    fn interfaces(&self) -> impl Iterator<Item = &String> {
        self.interfaces.iter().filter(|name| *name == TIS || self.has_flag("interface"))
    }

    fn has_flag(&self, flag: &str) -> bool {
        self.flags.iter().any(|known| known == flag)
    }
}

const TIS: &str = "tis";

impl Setup {
    /// All that are compared for their latency; what all others are measured by is the second.
    pub(crate) fn all(abilities: &Abilities) -> Vec<Self> {
        let qemu = ["tpm-tis", "tpm-crb"].map(|device| Self::new(Front::Qemu(device), Back::Swtpm));
        let ours = abilities.interfaces().flat_map(|interface| {
            [Back::Swtpm, Back::Embedded].map(|back| Self::new(Front::Ours(interface.clone()), back))
        });
        qemu.into_iter().chain(ours).collect()
    }

    /// Those that are compared for what they cost others: the reference, and each of our interfaces with and without the
    /// hold of the answer "still busy".
    pub(crate) fn for_bystanders(abilities: &Abilities) -> Vec<Self> {
        let mut setups = vec![Self::new(Front::Qemu("tpm-crb"), Back::Swtpm)];
        for interface in abilities.interfaces() {
            let setup = Self::new(Front::Ours(interface.clone()), Back::Embedded);
            setups.push(setup.clone());
            if abilities.has_flag("completion-hold") {
                setups.push(Self { args: vec!["--completion-hold=0"], ..setup });
            }
        }
        setups
    }

    fn new(front: Front, back: Back) -> Self {
        Self { front, back, args: Vec::new() }
    }

    /// Whether this is what all others are measured by.
    pub(crate) fn is_reference(&self) -> bool {
        self.front == Front::Qemu("tpm-crb")
    }

    /// For a person.
    pub(crate) fn title(&self) -> String {
        let front = match &self.front {
            Front::Qemu(device) => format!("QEMU {device}"),
            Front::Ours(interface) => format!("ours, {interface}"),
        };
        let back = match self.back {
            Back::Swtpm => "swtpm",
            Back::Embedded => "embedded",
        };
        let args = self.args.iter().fold(String::new(), |args, arg| args + ", " + arg);
        format!("{front} + {back}{args}")
    }

    /// For a command line: `qemu-tis`, `qemu-crb`, `tis-swtpm`, `crb-embedded`, …
    pub(crate) fn id(&self) -> String {
        match (&self.front, self.back) {
            (Front::Qemu(device), _) => device.replace("tpm-", "qemu-"),
            (Front::Ours(interface), Back::Swtpm) => format!("{interface}-swtpm"),
            (Front::Ours(interface), Back::Embedded) => format!("{interface}-embedded"),
        }
    }

    /// Starts the TPM, new and with its state in a folder.
    #[track_caller]
    pub(crate) fn start(&self) -> RunningTpm {
        let folder = tempfile::Builder::new().prefix("bench-").tempdir().expect("temporary folder");
        let owner = match &self.front {
            Front::Qemu(device) => {
                let swtpm = Listening::start(swtpm_program(), TpmVersion::V2_0, folder.path(), &[]);
                Owner::Qemu(device, swtpm)
            }
            Front::Ours(interface) => Owner::Ours(Server::with_args(&self.server_args(interface, folder.path()))),
        };
        RunningTpm { owner, _folder: folder }
    }

    fn server_args(&self, interface: &str, folder: &Path) -> Vec<OsString> {
        let mut args = vec!["--state-dir".into(), folder.join("state").into()];
        if self.back == Back::Swtpm {
            args.extend(["--backend=swtpm".into(), "--swtpm-exec".into(), swtpm_program().into()]);
        }
        if interface != TIS {
            args.push(format!("--interface={interface}").into());
        }
        args.extend(self.args.iter().map(Into::into));
        args
    }
}

/// The machine's own swtpm, since it has the libtpms that ours is built with.
pub(crate) fn swtpm_program() -> &'static Path {
    &swtpm::programs()[0]
}

/// A TPM that waits for its guest. It is killed when this is dropped.
pub(crate) struct RunningTpm {
    owner: Owner,
    _folder: TempDir,
}

enum Owner {
    Qemu(&'static str, Listening),
    Ours(Server),
}

impl RunningTpm {
    /// The arguments with which QEMU has it.
    #[track_caller]
    pub(crate) fn qemu_args(&self) -> Vec<OsString> {
        match &self.owner {
            Owner::Qemu(device, swtpm) => {
                let chardev = format!("socket,id=swtpm,path={}", swtpm.control().display());
                let device = format!("{device},tpmdev=tpm");
                ["-chardev", &chardev, "-tpmdev", "emulator,id=tpm,chardev=swtpm", "-device", &device]
                    .map(OsString::from)
                    .into()
            }
            Owner::Ours(server) => server.qemu_args(),
        }
    }

    /// Its processes: swtpm, or the server, the spawner, and what the spawner has started.
    #[track_caller]
    pub(crate) fn processes(&self) -> Vec<Pid> {
        match &self.owner {
            Owner::Qemu(_, swtpm) => vec![swtpm.process.pid()],
            Owner::Ours(server) => {
                vec![server.pid(), server.spawner().expect("the server has a spawner"), server.running_engine()]
            }
        }
    }
}

#[cfg(test)]
#[allow(unused, reason = "tests/benchmark.rs runs these; a bench without a harness leaves them out")]
mod tests {
    use super::*;

    fn abilities(flags: &str) -> Abilities {
        let json = format!(r#"{{"interfaces": ["tis", "crb"], "features": [{flags}], "more": 1}}"#);
        Abilities::parse(json.as_bytes()).expect("abilities")
    }

    fn ids(setups: &[Setup]) -> Vec<String> {
        setups.iter().map(Setup::id).collect()
    }

    #[test]
    fn an_interface_that_cannot_be_chosen_is_not_measured() {
        let setups = Setup::all(&abilities(r#""state-dir""#));
        assert_eq!(ids(&setups), ["qemu-tis", "qemu-crb", "tis-swtpm", "tis-embedded"]);
        assert!(setups[1].is_reference());
        let setups = Setup::all(&abilities(r#""interface""#));
        assert_eq!(ids(&setups[2..]), ["tis-swtpm", "tis-embedded", "crb-swtpm", "crb-embedded"]);
    }

    #[test]
    fn the_hold_is_switched_off_where_there_is_one() {
        let titles =
            |flags| -> Vec<String> { Setup::for_bystanders(&abilities(flags)).iter().map(Setup::title).collect() };
        assert_eq!(titles(""), ["QEMU tpm-crb + swtpm", "ours, tis + embedded"]);
        let with_hold = titles(r#""completion-hold""#);
        assert_eq!(with_hold[1..], ["ours, tis + embedded", "ours, tis + embedded, --completion-hold=0"]);
    }

    #[test]
    fn capabilities_of_another_form_are_refused() {
        for json in ["", "[]", r#"{"interfaces": ["tis"]}"#, r#"{"interfaces": [1], "features": []}"#] {
            assert!(Abilities::parse(json.as_bytes()).is_none(), "{json}");
        }
    }
}
