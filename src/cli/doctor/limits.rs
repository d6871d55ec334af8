//! How many servers the limits of this session let run.

use std::fs;

use nix::sys::resource::{RLIM_INFINITY, Resource, getrlimit};
use nix::unistd::geteuid;

use super::report::Finding;
use crate::cli::serve::MAX_OPEN;

const NAME: &str = "limits";

/// Descriptors that a server needs whatever its client does; those of one message, which are at most 253, are among them.
const FEWEST_OPEN: u64 = 320;

/// Threads of a server with its spawner and its worker. `tests/many.rs` counts them.
const THREADS: u64 = 12;

/// What such a server needs of memory, in KiB. `tests/many.rs` measures it.
const MEMORY: u64 = 4 * 1024;

#[derive(Debug)]
pub(super) struct Limits {
    /// The hard limit of open descriptors.
    open: Option<u64>,
    /// Threads of this user; none for root, who has no limit.
    threads: Option<u64>,
    /// Threads that this group of processes may still start.
    group_threads: Option<u64>,
    /// Free memory in KiB.
    memory: Option<u64>,
}

pub(super) fn gather() -> Limits {
    let limit = |resource| getrlimit(resource).ok().map(|(soft, _)| soft).filter(|soft| *soft != RLIM_INFINITY);
    Limits {
        open: limit(Resource::RLIMIT_NOFILE),
        threads: limit(Resource::RLIMIT_NPROC).filter(|_| !geteuid().is_root()),
        group_threads: group_threads(),
        memory: fs::read_to_string("/proc/meminfo").ok().and_then(|text| available(&text)),
    }
}

pub(super) fn judge(limits: &Limits) -> Finding {
    let threads = [limits.threads, limits.group_threads].into_iter().flatten().min();
    let servers = |of: Option<u64>, each| of.map(|of| of / each);
    let room = match (servers(threads, THREADS), servers(limits.memory, MEMORY)) {
        (None, None) => "no limit of servers is known".to_owned(),
        (Some(threads), None) => format!("processes for about {threads} servers"),
        (None, Some(memory)) => format!("memory for about {memory} servers"),
        (Some(threads), Some(memory)) => {
            format!("processes for about {threads} servers, memory for about {memory}")
        }
    };
    let (open, found) = match limits.open {
        Some(open) => (open, format!("{open} open descriptors for each server; {room}")),
        None => (u64::MAX, room),
    };
    if open < FEWEST_OPEN {
        Finding::problem(
            NAME,
            found,
            format!("raise the limit: ulimit -n {MAX_OPEN} (systemd: LimitNOFILE={MAX_OPEN})"),
        )
    } else if open < MAX_OPEN {
        Finding::warning(
            NAME,
            found,
            format!(
                "ulimit -n {MAX_OPEN} (systemd: LimitNOFILE={MAX_OPEN}) lets a server hold what VMMs with much memory send"
            ),
        )
    } else if threads.is_some_and(|threads| threads < THREADS) {
        Finding::problem(
            NAME,
            found,
            format!("a server needs {THREADS} threads: raise ulimit -u, or systemd's TasksMax"),
        )
    } else {
        Finding::ok(NAME, found)
    }
}

/// What the groups of processes (cgroup 2) that this process is in let be started, as the smallest of them says.
fn group_threads() -> Option<u64> {
    let groups = fs::read_to_string("/proc/self/cgroup").ok()?;
    let own = groups.lines().find_map(|line| line.strip_prefix("0::/"))?.to_owned();
    let number = |group: &str, file: &str| -> Option<u64> {
        fs::read_to_string(format!("/sys/fs/cgroup/{group}/{file}")).ok()?.trim().parse().ok()
    };
    // "max", for no limit, is no number.
    let left = |group: &str| Some(number(group, "pids.max")?.saturating_sub(number(group, "pids.current")?));
    let mut group = own.as_str();
    let mut least = left(group);
    while let Some((above, _)) = group.rsplit_once('/') {
        least = [least, left(above)].into_iter().flatten().min();
        group = above;
    }
    least
}

/// MemAvailable in /proc/meminfo, in KiB.
fn available(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    line.trim().strip_suffix(" kB")?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::super::report::Level;
    use super::*;

    const GOOD: Limits = Limits { open: Some(1024), threads: Some(30_000), group_threads: None, memory: Some(8 << 20) };

    #[test]
    fn the_scarcest_counts() {
        assert!(judge(&GOOD).text().contains("processes for about 2500 servers, memory for about 2048"));
        let finding = judge(&Limits { group_threads: Some(120), ..GOOD });
        assert!(finding.level() == Level::Ok && finding.text().contains("about 10 servers"), "{}", finding.text());
    }

    #[test]
    fn what_is_too_little_is_told_with_what_to_do() {
        for (limits, level, text) in [
            (Limits { open: Some(512), ..GOOD }, Level::Warning, "ulimit -n 1024"),
            (Limits { open: Some(64), ..GOOD }, Level::Problem, "LimitNOFILE=1024"),
            (Limits { threads: Some(5), ..GOOD }, Level::Problem, "TasksMax"),
            (Limits { open: None, threads: None, memory: None, ..GOOD }, Level::Ok, "no limit"),
        ] {
            let finding = judge(&limits);
            assert_eq!(finding.level(), level, "{}", finding.text());
            assert!(finding.text().contains(text), "{}", finding.text());
        }
    }

    #[test]
    fn free_memory_is_read_as_the_kernel_prints_it() {
        assert_eq!(available("MemTotal: 24683520 kB\nMemAvailable:   23861248 kB\n"), Some(23_861_248));
        assert_eq!(available("MemAvailable: lots\n"), None);
    }
}
