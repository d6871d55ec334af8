//! Cancelling a running command: a thread that stays responsive while the command has the other.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::mpsc;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::libtpms;
use crate::seqpacket;

/// How long the thread sleeps between two requests to cancel.
const INTERVAL: Duration = Duration::from_millis(1);

/// How a command is cancelled.
#[derive(Debug)]
pub(super) enum Cancel {
    /// libtpms clears its cancel flag when it begins a command, and looks at it from time to time. A request may
    /// therefore come too early and be lost; so it is repeated until the command that it names has ended.
    Library,
    /// The file by which Linux cancels what a chip does - whatever that is: the kernel's own command, if ours has just
    /// ended. So it is written once for a command. Since Linux 5.1 that waits for the command to end; nobody waits for us.
    File(OwnedFd),
    /// Not at all.
    Impossible,
}

/// The sequence number of the last command that ended. Sequence numbers grow by one and may wrap.
#[derive(Clone, Debug, Default)]
pub(super) struct Ended(Arc<Mutex<u32>>);

impl Ended {
    /// Notes that the command with this number has ended.
    pub(super) fn note(&self, sequence: u32) {
        *self.lock() = sequence;
    }

    /// Cancels if the command with this number has not ended; returns whether that was so. While `cancel` runs no end can
    /// be noted, so that it never hits the next command.
    fn cancel_unless_ended(&self, sequence: u32, cancel: impl FnOnce()) -> bool {
        let ended = self.lock();
        // Half of all numbers are "before", half "after", so that wrapping does no harm.
        let running = ended.wrapping_sub(sequence) >= u32::MAX / 2;
        if running {
            cancel();
        }
        running
    }

    fn lock(&self) -> MutexGuard<'_, u32> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Starts the thread. It ends with the process, or when the other side closes `socket`.
pub(super) fn start(socket: OwnedFd, ended: Ended, how: Cancel) -> std::io::Result<()> {
    let thread = std::thread::Builder::new().name("cancel".to_owned()).stack_size(64 << 10);
    let (ready, is_ready) = mpsc::channel::<()>();
    thread.spawn(move || {
        drop(ready);
        let mut buffer = [0; 4];
        let mut written_for = None;
        while let Ok(message) = seqpacket::receive(socket.as_fd(), &mut buffer) {
            let Ok(sequence) = message.try_into().map(u32::from_ne_bytes) else { break };
            match &how {
                Cancel::Library => {
                    while ended.cancel_unless_ended(sequence, libtpms::cancel_command) {
                        std::thread::sleep(INTERVAL);
                    }
                }
                Cancel::File(file) => {
                    if written_for.replace(sequence) != Some(sequence) {
                        ended.cancel_unless_ended(sequence, || write_to(file));
                    }
                }
                Cancel::Impossible => {}
            }
        }
    })?;
    // What a thread does before its work, it could not do in a process that is confined meanwhile. It sends nothing; but it
    // lets go of its end when it is there.
    let _ = is_ready.recv();
    Ok(())
}

/// Any byte will do.
fn write_to(file: &OwnedFd) {
    log::debug!("writing to the cancel file");
    match nix::unistd::write(file, b"1") {
        Ok(_) => log::debug!("the cancel file was written"),
        Err(errno) => log::warn!("cannot write to the cancel file: {errno}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cancels(ended: &Ended, sequence: u32) -> bool {
        let mut cancelled = false;
        let running = ended.cancel_unless_ended(sequence, || cancelled = true);
        assert_eq!(running, cancelled);
        cancelled
    }

    #[test]
    fn a_command_that_has_ended_is_not_cancelled_even_over_the_wrap_of_the_numbers() {
        let ended = Ended::default();
        assert!(cancels(&ended, 1));
        ended.note(1);
        assert!(!cancels(&ended, 1));
        assert!(cancels(&ended, 2));
        ended.note(u32::MAX);
        assert!(!cancels(&ended, u32::MAX));
        assert!(cancels(&ended, 0));
        ended.note(0);
        assert!(!cancels(&ended, u32::MAX));
    }
}
