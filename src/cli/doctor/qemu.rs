//! Is there a QEMU that can have the TPM?

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::program::{self, ProgramError, first_line};
use super::report::Finding;
use crate::acpi::{Machine, Vmm};

const NAME: &str = "qemu";

/// Where distributions have it.
const PROGRAMS: [&str; 4] = ["qemu-system-x86_64", "qemu-kvm", "/usr/libexec/qemu-kvm", "qemu-system-aarch64"];

/// The first version whose device is good enough.
const NEEDED: (u32, u32) = (10, 1);

const DEVICE: &str = "\"vfio-user-pci\"";

#[derive(Debug)]
pub(super) enum Qemu {
    Missing { looked_for: Vec<PathBuf> },
    Silent { path: PathBuf, error: ProgramError },
    Speaks { path: PathBuf, version: String, devices: String, machines: String },
}

/// Asks the QEMU at `path`, or the first that is found.
pub(super) fn gather(path: Option<&Path>, patience: Duration) -> Qemu {
    let looked_for: Vec<PathBuf> = match path {
        Some(path) => vec![path.to_owned()],
        None => PROGRAMS.map(PathBuf::from).to_vec(),
    };
    let Some(path) = looked_for.iter().find_map(|path| program::find(path)) else {
        return Qemu::Missing { looked_for };
    };
    let ask = |arguments: &[&str]| program::output(&path, arguments, patience);
    let answers = || Ok((ask(&["--version"])?, ask(&["-device", "help"])?, ask(&["-machine", "help"])?));
    match answers() {
        Ok((version, devices, machines)) => Qemu::Speaks { path, version, devices, machines },
        Err(error) => Qemu::Silent { path, error },
    }
}

pub(super) fn judge(qemu: &Qemu) -> Finding {
    let (path, said, devices, machines) = match qemu {
        Qemu::Missing { looked_for } => {
            let names: Vec<_> = looked_for.iter().map(|path| path.display().to_string()).collect();
            return Finding::problem(
                NAME,
                format!("there is no {}", names.join(", nor ")),
                "install QEMU 10.1 or later (Debian 13: apt-get install -t trixie-backports qemu-system-x86), or say \
                 with --qemu where it is",
            );
        }
        Qemu::Silent { path, error } => {
            return Finding::problem(
                NAME,
                format!("{} was asked for its version and devices: {error}", path.display()),
                format!("see what `{} -device help` says; with --qemu another one is looked at", path.display()),
            );
        }
        Qemu::Speaks { path, version, devices, machines } => (path.display(), version, devices, machines),
    };
    let Some(version) = version_in(said) else {
        return Finding::problem(
            NAME,
            format!("{path} is no QEMU, or none that tells its version: it says \"{}\"", first_line(said)),
            "say with --qemu where QEMU is",
        );
    };
    let (major, minor) = version;
    if version < NEEDED {
        return Finding::problem(
            NAME,
            format!("{path} is QEMU {major}.{minor}, and 10.1 is the first that can attach the TPM"),
            "install a later one (Debian 13 has it in trixie-backports), or say with --qemu where it is",
        );
    }
    if !devices.contains(DEVICE) {
        return Finding::problem(
            NAME,
            format!("{path} is QEMU {major}.{minor}, built without the device vfio-user-pci"),
            "take a QEMU with it, as distributions' full packages have it (Debian: qemu-system-x86), or say with --qemu \
             where it is",
        );
    }
    let of_qemu = Machine::ALL.into_iter().filter(|machine| machine.vmm() == Vmm::Qemu).map(Machine::name);
    let known: Vec<_> = of_qemu.clone().filter(|name| has_machine(machines, name)).collect();
    if known.is_empty() {
        let names = of_qemu.collect::<Vec<_>>().join(", ");
        return Finding::problem(
            NAME,
            format!("{path} is QEMU {major}.{minor} for another architecture: it has none of the machines {names}"),
            "take qemu-system-x86_64 or qemu-system-aarch64",
        );
    }
    Finding::ok(NAME, format!("{path}: version {major}.{minor}, with vfio-user-pci, machines {}", known.join(" and ")))
}

/// The version in what `--version` prints: QEMU emulator version 10.1.2 (…).
fn version_in(said: &str) -> Option<(u32, u32)> {
    let rest = said.lines().find_map(|line| line.trim().strip_prefix("QEMU emulator version "))?;
    let mut parts = rest.split(|character: char| !character.is_ascii_digit());
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

/// Whether `-machine help` names this machine: in the first word of a line.
fn has_machine(machines: &str, name: &str) -> bool {
    machines.lines().any(|line| line.split_whitespace().next() == Some(name))
}

#[cfg(test)]
mod tests {
    use super::super::report::Level;
    use super::*;

    const MACHINES: &str = "Supported machines are:\nmicrovm   microvm (i386)\npc   Standard PC (alias of pc-i440fx-10.1)\n\
                            pc-q35-10.1   Standard PC\nq35   Standard PC (Q35 + ICH9, 2009)\n";
    const DEVICES: &str = "name \"vfio-pci\", bus PCI\nname \"vfio-user-pci\", bus PCI, desc \"VFIO over socket\"\n";

    fn finding(version: &str, devices: &str, machines: &str) -> (Level, String) {
        let (version, devices, machines) = (version.to_owned(), devices.to_owned(), machines.to_owned());
        let finding = judge(&Qemu::Speaks { path: "/q".into(), version, devices, machines });
        (finding.level(), finding.text())
    }

    #[test]
    fn versions_are_read_as_qemu_prints_them() {
        for (said, version) in [
            ("QEMU emulator version 10.1.2 (Debian 1:10.1.2+ds-3~bpo13+1)\nCopyright", Some((10, 1))),
            ("QEMU emulator version 9.2.0 (qemu-kvm-9.2.0-1.el10)", Some((9, 2))),
            ("warning: odd\nQEMU emulator version 11.0", Some((11, 0))),
            ("QEMU emulator version", None),
            ("QEMU emulator version x.y", None),
            ("QEMU emulator version 99999999999.1", None),
            ("", None),
        ] {
            assert_eq!(version_in(said), version, "{said}");
        }
    }

    #[test]
    fn a_new_enough_qemu_with_the_device_is_good() {
        for version in ["10.1.0", "10.2.50", "11.0.0"] {
            let (level, text) = finding(&format!("QEMU emulator version {version}"), DEVICES, MACHINES);
            assert_eq!(level, Level::Ok, "{text}");
            assert!(text.contains("q35 and pc"), "{text}");
        }
    }

    #[test]
    fn what_is_wrong_is_said_with_what_to_do() {
        let good = "QEMU emulator version 10.1.0";
        for (version, devices, machines, expected) in [
            ("QEMU emulator version 10.0.9", DEVICES, MACHINES, "10.0, and 10.1"),
            ("QEMU emulator version 8.2.0", DEVICES, MACHINES, "trixie-backports"),
            (good, "name \"vfio-pci\", bus PCI", MACHINES, "without the device"),
            (good, DEVICES, "sun4u   Sun4u platform\npc-q35-10.1  x", "another architecture"),
            ("hello", DEVICES, MACHINES, "no QEMU"),
        ] {
            let (level, text) = finding(version, devices, machines);
            assert_eq!(level, Level::Problem, "{text}");
            assert!(text.contains(expected), "{text}");
        }
        let missing = judge(&Qemu::Missing { looked_for: vec!["one".into(), "two".into()] }).text();
        assert!(missing.contains("no one, nor two") && missing.contains("--qemu"), "{missing}");
    }
}
