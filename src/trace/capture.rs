//! The capture as bytes: what each message adds to the file.

use std::time::SystemTime;

use zeroize::{Zeroize, Zeroizing};

use super::conversation::{Conversation, HEADERS_SIZE};
use super::{Message, Sender, pcapng};
use crate::tpm::BUFFER_SIZE;

/// Client's ports, by which the guest's commands and the platform's can be told apart.
const GUEST_PORT: u16 = 50_000;
const PLATFORM_PORT: u16 = 50_001;

/// Packets of a response, which has more than a command; and bytes in them besides the response itself.
const PACKETS: usize = 3;
const FRAMING: usize = 8;
/// Longest comment.
const COMMENT: usize = 128;

/// Most bytes that a message adds, besides those of which it consists. The end adds less.
pub(super) const OVERHEAD: usize = PACKETS * (pcapng::PACKET_OVERHEAD + HEADERS_SIZE) + FRAMING + COMMENT;

/// A capture in the making.
pub(super) struct Capture {
    guest: Conversation,
    platform: Conversation,
    /// What is to be written. Never grows, so that no copy is left behind.
    added: Zeroizing<Vec<u8>>,
}

impl Capture {
    pub(super) fn new() -> Self {
        Self {
            guest: Conversation::new(GUEST_PORT),
            platform: Conversation::new(PLATFORM_PORT),
            added: Vec::with_capacity(BUFFER_SIZE + OVERHEAD).into(),
        }
    }

    /// What the file begins with.
    pub(super) fn begin(&mut self, with_secrets: bool) -> &[u8] {
        let comment = if with_secrets {
            "Commands of a TPM and its responses. SECRETS OF THE GUEST ARE IN IT. In the platform's (port 50001) they are zeros."
        } else {
            "Commands of a TPM and its responses. What may be secret in them is zeros. The platform's are those of port 50001."
        };
        pcapng::begin(&mut self.added, concat!(env!("CARGO_PKG_NAME"), " ", env!("CARGO_PKG_VERSION")), "tpm", comment);
        &self.added
    }

    /// What a message adds.
    pub(super) fn message(&mut self, message: &Message) -> &[u8] {
        let Message { time, sender, locality, bytes, missing } = message;
        let missing = (*missing > 0)
            .then(|| format!("{missing} commands and responses before this one are missing: the file took too long"));
        let mut comment = missing.as_deref();
        let added = &mut self.added;
        let mut packet = |parts: &[&[u8]]| pcapng::packet(added, *time, parts, comment.take());
        let conversation = match sender {
            Sender::Guest => &mut self.guest,
            Sender::Platform => &mut self.platform,
        };
        match locality {
            Some(locality) => conversation.command(*locality, bytes, &mut packet),
            None => conversation.response(bytes, &mut packet),
        }
        &self.added
    }

    /// Wipes what has been added. To be called when it is written.
    pub(super) fn forget(&mut self) {
        self.added.zeroize();
    }

    /// What is added when no more may be: the file says so itself.
    pub(super) fn end(&mut self, time: SystemTime) -> &[u8] {
        let added = &mut self.added;
        self.guest.end(&mut |parts| {
            pcapng::packet(
                added,
                time,
                parts,
                Some("The trace ends here: the file has its largest size (--trace-limit)."),
            );
        });
        &self.added
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tpm::Locality;

    fn message(locality: Option<Locality>, length: usize, missing: u64) -> Message {
        Message { time: SystemTime::now(), sender: Sender::Guest, locality, bytes: vec![7; length].into(), missing }
    }

    #[test]
    fn nothing_is_longer_than_its_overhead_allows_and_the_buffer_stays() {
        let mut capture = Capture::new();
        let place = capture.added.as_ptr();
        for with_secrets in [false, true] {
            assert!(capture.begin(with_secrets).len() < OVERHEAD);
            capture.forget();
        }
        for locality in [None, Some(Locality::ZERO)] {
            for length in [0, 1, 2, 3, 10, BUFFER_SIZE] {
                assert!(capture.message(&message(locality, length, u64::MAX)).len() <= length + OVERHEAD);
                capture.forget();
            }
        }
        assert!(capture.end(SystemTime::now()).len() <= OVERHEAD);
        assert_eq!(capture.added.as_ptr(), place);
    }

    #[test]
    fn a_gap_is_told_once() {
        let mut capture = Capture::new();
        let text = String::from_utf8_lossy(capture.message(&message(None, 10, 3))).into_owned();
        assert_eq!(text.matches("3 commands and responses before this one are missing").count(), 1);
        capture.forget();
        assert!(!String::from_utf8_lossy(capture.message(&message(None, 10, 0))).contains("missing"));
    }
}
