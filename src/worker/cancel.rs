//! Cancelling a running command.
//!
//! libtpms clears its cancel flag when it begins a command, and looks at it from time to time. A request to cancel may
//! therefore come too early and be lost; so it is repeated until the command it names has ended.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use super::frame;
use super::libtpms;

/// How long the thread sleeps between two requests to cancel.
const INTERVAL: Duration = Duration::from_millis(1);

/// The sequence number of the last command that ended. Sequence numbers grow by one and may wrap.
#[derive(Clone, Debug, Default)]
pub(super) struct Ended(Arc<AtomicU32>);

impl Ended {
    /// Notes that the command with this number has ended.
    pub(super) fn note(&self, sequence: u32) {
        self.0.store(sequence, Ordering::Release);
    }

    fn is_at_or_after(&self, sequence: u32) -> bool {
        // Half of all numbers are "before", half "after", so that wrapping does no harm.
        self.0.load(Ordering::Acquire).wrapping_sub(sequence) < u32::MAX / 2
    }
}

/// Starts the thread. It ends with the process, or when the other side closes `socket`.
pub(super) fn start(socket: OwnedFd, ended: Ended) -> std::io::Result<()> {
    let thread = std::thread::Builder::new().name("cancel".to_owned()).stack_size(64 << 10);
    thread.spawn(move || {
        let mut buffer = [0; 4];
        while let Ok((message, _)) = frame::receive(socket.as_fd(), &mut buffer) {
            let Ok(sequence) = message.try_into().map(u32::from_ne_bytes) else { break };
            while !ended.is_at_or_after(sequence) {
                libtpms::cancel_command();
                std::thread::sleep(INTERVAL);
            }
        }
    })?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_has_ended_once_its_number_was_noted_even_over_the_wrap() {
        let ended = Ended::default();
        assert!(!ended.is_at_or_after(1));
        ended.note(1);
        assert!(ended.is_at_or_after(1));
        assert!(!ended.is_at_or_after(2));
        ended.note(u32::MAX);
        assert!(ended.is_at_or_after(u32::MAX));
        assert!(!ended.is_at_or_after(0));
        ended.note(0);
        assert!(ended.is_at_or_after(u32::MAX));
    }
}
