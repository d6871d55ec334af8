//! What the kernel can do: what the program cannot do without, and what confines it.

use std::fs;

use super::report::Finding;
use crate::sandbox::Landlock;
use crate::shared_pages::SharedPages;

/// The first Linux with pidfds that can be waited for.
const NEEDED: (u32, u32) = (5, 3);

/// What Landlock keeps a process from, and the version of its interface (and Linux) that began with it.
const LANDLOCK: [(i32, &str, &str); 4] = [
    (1, "files", "5.13"),
    (4, "TCP", "6.7"),
    (6, "abstract sockets and signals", "6.12"),
    (9, "UNIX sockets by their path", "7.1"),
];

#[derive(Debug)]
pub(super) struct Kernel {
    release: String,
    landlock: Option<Landlock>,
    /// What the kernel says that a filter of system calls can do.
    seccomp: Option<String>,
    /// Memory can be shared with a VMM.
    shares_memory: bool,
}

pub(super) fn gather() -> Kernel {
    let release = nix::sys::utsname::uname().map(|names| names.release().to_string_lossy().into_owned());
    Kernel {
        release: release.unwrap_or_default(),
        landlock: crate::sandbox::landlock(),
        seccomp: fs::read_to_string("/proc/sys/kernel/seccomp/actions_avail").ok(),
        shares_memory: SharedPages::new().file().is_some(),
    }
}

pub(super) fn judge(kernel: &Kernel) -> Vec<Finding> {
    vec![
        judge_release(kernel),
        judge_landlock(kernel.landlock),
        judge_seccomp(kernel.seccomp.as_deref()),
        judge_memory(kernel),
    ]
}

fn judge_release(kernel: &Kernel) -> Finding {
    let found = format!("Linux {}", kernel.release);
    match version_in(&kernel.release) {
        Some(version) if version < NEEDED => Finding::problem(
            "kernel",
            found,
            "take Linux 5.3 or later; 6.12 or later has all of the confinement but one part",
        ),
        _ => Finding::ok("kernel", found),
    }
}

fn judge_landlock(landlock: Option<Landlock>) -> Finding {
    const NAME: &str = "Landlock";
    const REST: &str = "Until then the processes are confined by the rest only, and say so in their logs";
    match landlock {
        Some(Landlock::Version(version)) => {
            let missing = LANDLOCK.iter().filter(|(from, ..)| *from > version);
            let missing: Vec<_> = missing.map(|(_, what, linux)| format!("{what} (Linux {linux})")).collect();
            let rest = if missing.is_empty() {
                String::new()
            } else {
                format!("; not yet for {}, where seccomp does most of it", missing.join(", "))
            };
            Finding::ok(NAME, format!("version {version}{rest}"))
        }
        Some(Landlock::SwitchedOff) => Finding::warning(
            NAME,
            "the kernel has it, and it is switched off",
            format!("add landlock to lsm= on the kernel's command line. {REST}"),
        ),
        Some(Landlock::Missing) => Finding::warning(
            NAME,
            "the kernel does not have it, or a container's filter of system calls is in the way",
            format!("take Linux 5.13 or later with it, or a container runtime whose filter lets it through. {REST}"),
        ),
        None => Finding::warning(NAME, "cannot be tried", REST),
    }
}

fn judge_seccomp(actions: Option<&str>) -> Finding {
    const NAME: &str = "seccomp";
    match actions {
        Some(actions) if actions.split_whitespace().any(|action| action == "kill_process") => {
            Finding::ok(NAME, "filters of system calls, which can end a process")
        }
        _ => Finding::warning(
            NAME,
            "the kernel does not tell of filters of system calls that can end a process",
            "take a kernel with CONFIG_SECCOMP_FILTER. Until then the processes are confined by the rest only",
        ),
    }
}

fn judge_memory(kernel: &Kernel) -> Finding {
    const NAME: &str = "shared memory";
    if kernel.shares_memory {
        Finding::ok(NAME, "files without names whose size can be sealed")
    } else {
        Finding::warning(
            NAME,
            "a file without a name whose size is sealed cannot be made",
            "see whether memfd_create is allowed (vm.memfd_noexec, a container's filter, free memory). A CRB works without, and \
             slower",
        )
    }
}

fn version_in(release: &str) -> Option<(u32, u32)> {
    let mut parts = release.split(|character: char| !character.is_ascii_digit());
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::super::report::Level;
    use super::*;

    fn kernel(release: &str) -> Kernel {
        let landlock = Some(Landlock::Version(7));
        Kernel {
            release: release.to_owned(),
            landlock,
            seccomp: Some("kill_process errno\n".into()),
            shares_memory: true,
        }
    }

    #[test]
    fn old_kernels_are_told_and_odd_names_are_not_held_against_one() {
        for (release, level) in [
            ("6.12.41+deb13-amd64", Level::Ok),
            ("5.3.18-lp152", Level::Ok),
            ("5.2.0", Level::Problem),
            ("4.19.0-27", Level::Problem),
            ("mine", Level::Ok),
        ] {
            assert_eq!(judge_release(&kernel(release)).level(), level, "{release}");
        }
    }

    #[test]
    fn what_landlock_lacks_is_named() {
        let text = |version| judge_landlock(Some(Landlock::Version(version))).text();
        assert!(text(1).contains("TCP") && !text(1).contains("files"), "{}", text(1));
        assert!(text(7).contains("UNIX sockets") && !text(7).contains("TCP"), "{}", text(7));
        assert!(!text(9).contains("not yet"), "{}", text(9));
        assert!(judge_landlock(Some(Landlock::SwitchedOff)).text().contains("lsm="));
        for landlock in [Some(Landlock::SwitchedOff), Some(Landlock::Missing), None] {
            assert_eq!(judge_landlock(landlock).level(), Level::Warning);
        }
    }

    #[test]
    fn without_seccomp_or_shared_memory_it_works_less_well() {
        assert_eq!(judge_seccomp(Some("kill_process kill_thread trap")).level(), Level::Ok);
        assert_eq!(judge_seccomp(Some("kill_thread")).level(), Level::Warning);
        assert_eq!(judge_seccomp(None).level(), Level::Warning);
        assert_eq!(judge_memory(&Kernel { shares_memory: false, ..kernel("6.1") }).level(), Level::Warning);
    }
}
