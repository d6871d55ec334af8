//! As whom this runs, in what, and whether guests would be quick there.

use std::fs;
use std::path::Path;

use nix::unistd::{Uid, geteuid};
use rustix::fs::{Access, AtFlags, CWD, accessat};

use super::report::Finding;

#[derive(Debug)]
pub(super) struct Surroundings {
    user: Uid,
    /// The kind of container, if this is one.
    container: Option<String>,
    kvm: Kvm,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kvm {
    Usable,
    Forbidden,
    Missing,
}

pub(super) fn gather() -> Surroundings {
    let kvm = match accessat(CWD, "/dev/kvm", Access::READ_OK | Access::WRITE_OK, AtFlags::EACCESS) {
        Ok(()) => Kvm::Usable,
        Err(rustix::io::Errno::ACCESS | rustix::io::Errno::PERM) => Kvm::Forbidden,
        Err(_) => Kvm::Missing,
    };
    Surroundings { user: geteuid(), container: container(), kvm }
}

/// By the marks that container runtimes leave.
fn container() -> Option<String> {
    let marks = [("/run/.containerenv", "podman"), ("/.dockerenv", "docker")];
    let marked = marks.into_iter().find(|(mark, _)| Path::new(mark).exists()).map(|(_, name)| name.to_owned());
    marked
        .or_else(|| fs::read_to_string("/run/systemd/container").ok().map(|name| name.trim().to_owned()))
        .or_else(|| std::env::var("container").ok())
        .filter(|name| !name.is_empty())
}

pub(super) fn judge(surroundings: &Surroundings) -> Vec<Finding> {
    let Surroundings { user, container, kvm } = surroundings;
    let user = if user.is_root() {
        Finding::warning(
            "user",
            "root: a server, and a QEMU that run starts, would keep root's rights",
            "start them as a user of their own (runuser -u USER -- …), or give the server --user USER",
        )
    } else {
        Finding::ok("user", format!("number {user}"))
    };
    let kvm = match kvm {
        Kvm::Usable => Finding::ok("KVM", "/dev/kvm can be used"),
        Kvm::Forbidden => Finding::warning(
            "KVM",
            "no right to read and write /dev/kvm: guests of this user would run, and slowly",
            "make the user a member of the group kvm (usermod -aG kvm USER), and log in again",
        ),
        Kvm::Missing => Finding::warning(
            "KVM",
            "there is no /dev/kvm: guests would run, and slowly",
            "switch virtualization on in the firmware, or nested virtualization where this machine is a virtual one itself; \
             hand the device to a container",
        ),
    };
    let container = container.as_ref().map(|name| {
        Finding::ok(
            "container",
            format!(
                "{}: --state-dir has to be a volume, else the TPM goes with the container; and the socket's folder one that \
                 QEMU sees too",
                name.chars().take(40).collect::<String>()
            ),
        )
    });
    [Some(user), container, Some(kvm)].into_iter().flatten().collect()
}

#[cfg(test)]
mod tests {
    use super::super::report::Level;
    use super::*;

    fn levels(user: u32, container: Option<&str>, kvm: Kvm) -> Vec<Level> {
        let container = container.map(ToOwned::to_owned);
        judge(&Surroundings { user: Uid::from_raw(user), container, kvm }).iter().map(Finding::level).collect()
    }

    #[test]
    fn a_user_with_kvm_is_all_that_is_wanted() {
        assert_eq!(levels(1000, None, Kvm::Usable), [Level::Ok, Level::Ok]);
        assert_eq!(levels(0, None, Kvm::Missing), [Level::Warning, Level::Warning]);
        assert_eq!(levels(1000, Some("podman"), Kvm::Forbidden), [Level::Ok, Level::Ok, Level::Warning]);
    }
}
