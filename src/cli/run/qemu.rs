//! QEMU's command line: what the user gave, and what attaches the TPM.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use thiserror::Error;

use crate::acpi::Machine;

/// Arguments of the user with which the TPM would not work.
#[derive(Debug, Error, PartialEq, Eq)]
pub(super) enum CommandError {
    #[error(
        "the TPM's description is for the machine {machine}, and QEMU's arguments name {named:?}: give `run` the \
         --machine that fits, or QEMU -machine {machine}"
    )]
    OtherMachine { machine: Machine, named: String },
    #[error("QEMU's arguments attach the TPM of {0:?} already: leave its -device out, `run` adds what is needed")]
    AlreadyAttached(PathBuf),
    #[error(
        "with -daemonize, QEMU would seem to end at once, and its TPM would be taken away: leave it out (and put `run` \
         itself into the background, if need be)"
    )]
    Daemonize,
}

/// The user's arguments, then those that attach the TPM, which come last so that a program which starts QEMU in the end
/// can be given too, and so that S3 stays off whatever was said before.
pub(super) fn arguments(
    user: &[OsString],
    machine: Machine,
    socket: &Path,
    attach: Vec<String>,
) -> Result<Vec<OsString>, CommandError> {
    if user.iter().any(|argument| is_option(argument, &["daemonize"])) {
        return Err(CommandError::Daemonize);
    }
    if user.iter().filter_map(|argument| vfio_user_socket(argument)).any(|path| is_same(&path, socket)) {
        return Err(CommandError::AlreadyAttached(socket.to_owned()));
    }
    let mut arguments = user.to_vec();
    match machine_type(user) {
        Some(named) if kind_of(&named) != Some(machine.name()) => {
            return Err(CommandError::OtherMachine { machine, named });
        }
        Some(_) => {}
        // QEMU's default may be another. Further properties that the user gave are kept.
        None => arguments.extend(["-machine", machine.name()].map(OsString::from)),
    }
    arguments.extend(attach.into_iter().map(OsString::from));
    Ok(arguments)
}

/// The socket of the vfio-user device that an argument describes. QEMU takes such a device in JSON only.
fn vfio_user_socket(argument: &OsStr) -> Option<PathBuf> {
    let device: serde_json::Value = serde_json::from_slice(argument.as_bytes()).ok()?;
    let is_vfio_user = device.get("driver")?.as_str()? == "vfio-user-pci";
    is_vfio_user.then(|| device.get("socket")?.get("path")?.as_str().map(PathBuf::from))?
}

/// Whether two paths, taken from the current directory, are the same.
fn is_same(one: &Path, other: &Path) -> bool {
    matches!((std::path::absolute(one), std::path::absolute(other)), (Ok(one), Ok(other)) if one == other)
}

/// The machine type that these arguments name, if any. Of several the last counts, as in QEMU.
fn machine_type(arguments: &[OsString]) -> Option<String> {
    let values = arguments.iter().zip(arguments.iter().skip(1));
    let mut values = values.filter(|(option, _)| is_option(option, &["machine", "M"])).rev();
    values.find_map(|(_, value)| type_in(&value.to_string_lossy()).map(str::to_owned))
}

/// The type in one value of `-machine`: `type=NAME` anywhere, or NAME in the first place.
fn type_in(value: &str) -> Option<&str> {
    let by_key = value.rsplit(',').find_map(|property| property.strip_prefix("type="));
    by_key.or_else(|| value.split(',').next().filter(|first| !first.is_empty() && !first.contains('=')))
}

/// The family of a machine type. QEMU has each in versions, like `pc-q35-10.1`.
fn kind_of(machine_type: &str) -> Option<&'static str> {
    match machine_type {
        "q35" => Some("q35"),
        "pc" => Some("pc"),
        "virt" => Some("virt"),
        other if other.starts_with("pc-q35-") => Some("q35"),
        other if other.starts_with("pc-i440fx-") => Some("pc"),
        other if other.starts_with("virt-") => Some("virt"),
        _ => None,
    }
}

/// QEMU takes its options with one dash or two.
pub(super) fn is_option(argument: &OsStr, names: &[&str]) -> bool {
    let Some(argument) = argument.to_str().and_then(|argument| argument.strip_prefix('-')) else { return false };
    names.contains(&argument.strip_prefix('-').unwrap_or(argument))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(user: &str) -> Result<String, CommandError> {
        on(Machine::Q35, user)
    }

    fn on(machine: Machine, user: &str) -> Result<String, CommandError> {
        let user: Vec<_> = user.split_whitespace().map(OsString::from).collect();
        let attach = vec!["-device".to_owned(), "TPM".to_owned()];
        let arguments = arguments(&user, machine, Path::new("/run/tpm.sock"), attach)?;
        Ok(arguments.join(OsStr::new(" ")).into_string().unwrap())
    }

    #[test]
    fn the_users_arguments_come_first_and_stay_as_they_are() {
        assert_eq!(with("-machine q35 -m 1G disk.img").unwrap(), "-machine q35 -m 1G disk.img -device TPM");
    }

    #[test]
    fn a_machine_type_is_added_where_none_is_named() {
        assert_eq!(with("-m 1G").unwrap(), "-m 1G -machine q35 -device TPM");
        assert_eq!(with("-machine accel=kvm").unwrap(), "-machine accel=kvm -machine q35 -device TPM");
        assert_eq!(with("").unwrap(), "-machine q35 -device TPM");
    }

    #[test]
    fn machines_of_the_same_family_fit() {
        for user in [
            "-machine pc-q35-10.1,smm=on",
            "--machine accel=tcg,type=q35",
            "-M q35",
            "-machine pc -machine q35",
            "-machine q35 -machine smm=on",
        ] {
            assert_eq!(with(user).unwrap(), format!("{user} -device TPM"));
        }
    }

    #[test]
    fn a_pc_is_no_q35() {
        assert_eq!(on(Machine::Pc, "-m 1G").unwrap(), "-m 1G -machine pc -device TPM");
        assert_eq!(on(Machine::Pc, "-M pc-i440fx-10.1").unwrap(), "-M pc-i440fx-10.1 -device TPM");
        assert!(on(Machine::Pc, "-M pc-q35-10.1").is_err());
    }

    #[test]
    fn a_virt_is_one_in_each_version() {
        assert_eq!(on(Machine::Virt, "-m 1G").unwrap(), "-m 1G -machine virt -device TPM");
        assert_eq!(on(Machine::Virt, "-M virt-11.1,gic-version=3").unwrap(), "-M virt-11.1,gic-version=3 -device TPM");
        assert!(on(Machine::Virt, "-M sbsa-ref").is_err());
        assert!(with("-M virt").is_err());
    }

    #[test]
    fn other_machines_are_refused() {
        for (user, named) in [
            ("-machine pc", "pc"),
            ("-M pc-i440fx-9.2", "pc-i440fx-9.2"),
            ("-machine type=microvm,accel=kvm", "microvm"),
            ("-M q35 -M none", "none"),
        ] {
            assert_eq!(with(user), Err(CommandError::OtherMachine { machine: Machine::Q35, named: named.to_owned() }));
        }
    }

    #[test]
    fn a_tpm_that_is_attached_already_is_refused_and_other_devices_are_not() {
        let device =
            |path| format!(r#"-device {{"driver":"vfio-user-pci","socket":{{"type":"unix","path":"{path}"}}}}"#);
        assert!(matches!(with(&device("/run/tpm.sock")), Err(CommandError::AlreadyAttached(_))));
        assert!(with(&device("/run/disk.sock")).is_ok());
    }

    #[test]
    fn a_qemu_that_would_leave_its_parent_is_refused() {
        assert_eq!(with("-daemonize"), Err(CommandError::Daemonize));
        assert_eq!(with("--daemonize"), Err(CommandError::Daemonize));
    }
}
