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

/// Asks the built program which interfaces it has.
#[track_caller]
pub(crate) fn interfaces() -> Vec<String> {
    let program = env!("CARGO_BIN_EXE_vfio-user-tpm");
    let output = Command::new(program).arg("--print-capabilities").output().expect("the program runs");
    parse_interfaces(&output.stdout).expect("the program's capabilities have interfaces")
}

fn parse_interfaces(capabilities: &[u8]) -> Option<Vec<String>> {
    let capabilities: Value = serde_json::from_slice(capabilities).ok()?;
    let names = capabilities["interfaces"].as_array()?.iter();
    names.map(|name| Some(name.as_str()?.to_owned())).collect()
}

impl Setup {
    /// All that are compared for their latency.
    pub(crate) fn all(interfaces: &[String]) -> Vec<Self> {
        let qemu = ["tpm-tis", "tpm-crb"].map(|device| Self::new(Front::Qemu(device), Back::Swtpm));
        let ours = |interface: &String| {
            [Back::Swtpm, Back::Embedded].map(|back| Self::new(Front::Ours(interface.clone()), back))
        };
        qemu.into_iter().chain(interfaces.iter().flat_map(ours)).collect()
    }

    /// TIS with interrupts, and with polling but without the hold: on demand, since nobody has either without asking.
    pub(crate) fn on_demand() -> [Self; 2] {
        [&["--interrupts=on"][..], &["--completion-hold=0"]].map(|args| {
            let setup = Self::new(Front::Ours("tis".to_owned()), Back::Embedded);
            Self { args: args.to_vec(), ..setup }
        })
    }

    /// What else the guest's kernel has to be told.
    pub(crate) fn append(&self) -> &'static str {
        // Linux takes a TPM's interrupt only when it is asked to.
        if self.args.contains(&"--interrupts=on") { "tpm_tis.interrupts=1" } else { "" }
    }

    /// Those that are compared for what they cost others: the reference, and each of our interfaces with and without the
    /// hold of the answer "still busy".
    pub(crate) fn for_bystanders(interfaces: &[String]) -> Vec<Self> {
        let ours = interfaces.iter().flat_map(|interface| {
            let setup = Self::new(Front::Ours(interface.clone()), Back::Embedded);
            [setup.clone(), Self { args: vec!["--completion-hold=0"], ..setup }]
        });
        std::iter::once(Self::new(Front::Qemu("tpm-crb"), Back::Swtpm)).chain(ours).collect()
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

    /// For a command line: `qemu-tis`, `qemu-crb`, `tis-swtpm`, `crb-embedded`, `tis-embedded-interrupts-on`, …
    pub(crate) fn id(&self) -> String {
        let id = match (&self.front, self.back) {
            (Front::Qemu(device), _) => device.replace("tpm-", "qemu-"),
            (Front::Ours(interface), Back::Swtpm) => format!("{interface}-swtpm"),
            (Front::Ours(interface), Back::Embedded) => format!("{interface}-embedded"),
        };
        self.args.iter().fold(id, |id, arg| id + &arg.replacen('-', "", 1).replace('=', "-"))
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
        let interface = format!("--interface={interface}").into();
        let mut args = vec![interface, "--state-dir".into(), folder.join("state").into()];
        if self.back == Back::Swtpm {
            args.extend(["--backend=swtpm".into(), "--swtpm-exec".into(), swtpm_program().into()]);
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

    fn interfaces() -> Vec<String> {
        ["tis", "crb"].map(str::to_owned).into()
    }

    #[test]
    fn each_interface_is_measured_with_each_tpm() {
        let setups = Setup::all(&interfaces());
        let ids: Vec<_> = setups.iter().map(Setup::id).collect();
        assert_eq!(ids, ["qemu-tis", "qemu-crb", "tis-swtpm", "tis-embedded", "crb-swtpm", "crb-embedded"]);
        let references: Vec<_> = setups.iter().map(Setup::is_reference).collect();
        assert_eq!(references, [false, true, false, false, false, false]);
    }

    #[test]
    fn bystanders_are_looked_at_with_and_without_the_hold() {
        let titles: Vec<_> = Setup::for_bystanders(&interfaces()[..1]).iter().map(Setup::title).collect();
        assert_eq!(
            titles,
            ["QEMU tpm-crb + swtpm", "ours, tis + embedded", "ours, tis + embedded, --completion-hold=0"]
        );
    }

    #[test]
    fn capabilities_of_another_form_are_refused() {
        assert_eq!(parse_interfaces(br#"{"interfaces": ["tis", "crb"], "more": 1}"#), Some(interfaces()));
        for json in ["", "[]", "{}", r#"{"interfaces": [1]}"#] {
            assert_eq!(parse_interfaces(json.as_bytes()), None, "{json}");
        }
    }
}
