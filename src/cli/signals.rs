//! Which signals end a process that was started to ignore some.

use std::fs;

use nix::sys::signal::{SigSet, Signal};

/// Those of `signals` that this process was not started to ignore, as with nohup(1) or in the background of a script.
///
/// A blocked signal is delivered to a signalfd even if it is ignored, so it has to be left out of the set.
pub(super) fn wanted(signals: impl IntoIterator<Item = Signal>) -> SigSet {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let ignored = ignored(&status);
    signals.into_iter().filter(|&signal| ignored >> (signal as u32).saturating_sub(1) & 1 == 0).collect()
}

/// The mask of ignored signals in the text of `/proc/PID/status` (proc(5), `SigIgn`); none if it has no such line.
fn ignored(status: &str) -> u64 {
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mask_is_read_from_the_status() {
        assert_eq!(ignored("Name:\tx\nSigIgn:\t0000000000001001\nSigCgt:\t0000000000000002\n"), 0x1001);
        assert_eq!(ignored("nothing"), 0);
    }
}
