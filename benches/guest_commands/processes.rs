//! What processes of the host cost.

use std::ops::AddAssign;
use std::time::Duration;

use nix::time::clock_getcpuclockid;
use nix::unistd::Pid;

/// A guest's QEMU, and the processes of its TPM.
pub(crate) struct Processes {
    pub(crate) qemu: Pid,
    pub(crate) tpm: Vec<Pid>,
}

/// Time on the CPU, of all threads.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct CpuTime {
    pub(crate) qemu: Duration,
    pub(crate) tpm: Duration,
}

impl Processes {
    /// CPU time since their start.
    #[track_caller]
    pub(crate) fn cpu_time(&self) -> CpuTime {
        CpuTime { qemu: cpu_time(self.qemu), tpm: self.tpm.iter().copied().map(cpu_time).sum() }
    }

    /// Memory of the TPM's processes in KiB, what they share with others in parts (Pss). `None` if the kernel does not
    /// let us look: a process that leaves no core dump shows it to root alone.
    pub(crate) fn tpm_memory(&self) -> Option<u32> {
        self.tpm.iter().map(|pid| pss(&std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).ok()?)).sum()
    }
}

#[track_caller]
fn cpu_time(pid: Pid) -> Duration {
    let time = clock_getcpuclockid(pid).and_then(nix::time::ClockId::now);
    Duration::from(time.unwrap_or_else(|errno| panic!("process {pid} has gone: {errno}")))
}

fn pss(smaps_rollup: &str) -> Option<u32> {
    let line = smaps_rollup.lines().find_map(|line| line.strip_prefix("Pss:"))?;
    line.trim().strip_suffix(" kB")?.parse().ok()
}

impl CpuTime {
    /// What was spent since an earlier time.
    #[must_use]
    pub(crate) fn since(self, earlier: Self) -> Self {
        Self { qemu: self.qemu.saturating_sub(earlier.qemu), tpm: self.tpm.saturating_sub(earlier.tpm) }
    }
}

impl AddAssign for CpuTime {
    fn add_assign(&mut self, other: Self) {
        self.qemu += other.qemu;
        self.tpm += other.tpm;
    }
}

#[cfg(test)]
#[allow(unused, reason = "tests/benchmark.rs runs these; a bench without a harness leaves them out")]
mod tests {
    use super::*;

    #[test]
    fn pss_is_found_among_its_parts() {
        let file =
            "00400000-7ffc000 ---p 00000000 00:00 0    [rollup]\nRss:    9132 kB\nPss:    2345 kB\nPss_Anon: 1 kB\n";
        assert_eq!(pss(file), Some(2345));
        assert_eq!(pss("Rss:    9132 kB\n"), None);
    }

    #[test]
    fn a_process_that_works_has_cpu_time_and_memory() {
        let own = Processes { qemu: Pid::this(), tpm: vec![Pid::this()] };
        let before = own.cpu_time();
        // Both are this process, and are asked for one after the other.
        while own.cpu_time().since(before).qemu < Duration::from_millis(1) {}
        while own.cpu_time().since(before).tpm < Duration::from_millis(1) {}
        assert!(own.tpm_memory().is_some_and(|kilobytes| kilobytes > 0));
    }
}
