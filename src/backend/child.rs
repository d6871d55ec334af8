//! A process that was killed or ends by itself, until it is gone.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::process::Child;

use rustix::process::{Pid, PidfdFlags, pidfd_open};

/// A process that ends and may still be there, for example while a disk does not answer. It may still write, so no other
/// may be started on its state; and it is never waited for but by its descriptor.
#[derive(Debug)]
pub(super) struct Dying {
    process: Child,
    /// Readable once the process has ended.
    pidfd: OwnedFd,
}

impl Dying {
    /// Kills a process; `None` if that was the end of it at once.
    pub(super) fn kill(mut process: Child) -> Option<Self> {
        // It fails only for a process that has ended.
        let _ = process.kill();
        Self::ending(process)
    }

    /// A process that has been asked to end; `None` if it has.
    pub(super) fn ending(mut process: Child) -> Option<Self> {
        if let Ok(Some(_)) = process.try_wait() {
            return None;
        }
        let pid = i32::try_from(process.id()).ok().and_then(Pid::from_raw);
        if let Some(Ok(pidfd)) = pid.map(|pid| pidfd_open(pid, PidfdFlags::empty())) {
            Some(Self { process, pidfd })
        } else {
            // Without a descriptor to wait for (Linux before 5.3, or none left) there is only this.
            let _ = process.kill();
            drop(process.wait());
            None
        }
    }

    /// Kills it, if that has not been done yet.
    pub(super) fn hasten(&mut self) {
        let _ = self.process.kill();
    }

    /// Whether it has ended.
    pub(super) fn has_ended(&mut self) -> bool {
        !matches!(self.process.try_wait(), Ok(None))
    }

    /// Becomes readable when it has ended.
    pub(super) fn descriptor(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }
}
