//! What is to be sent to the client.

use std::collections::VecDeque;
use std::io;

use zerocopy::IntoBytes;

use super::wire::{HEADER_SIZE, Header};

/// Bytes that are kept allocated for the next messages.
const KEPT_CAPACITY: usize = 64 << 10;

/// Messages in the order in which they are to be sent, built in place.
///
/// It has no bound of its own: while anything is in it, the server takes no further message from the client, so it
/// holds at most the reply to one message and those that were held back before.
#[derive(Debug, Default)]
pub(super) struct Outbox {
    bytes: Vec<u8>,
    /// Where each unsent message ends in `bytes`.
    ends: VecDeque<usize>,
    /// Bytes already sent; the first unsent message may be partly among them.
    sent: usize,
}

impl Outbox {
    /// Adds a message of `header`, `fixed` and `data_size` zero bytes, and gives the latter to be filled.
    pub(super) fn push(&mut self, header: Header, fixed: &[u8], data_size: usize) -> &mut [u8] {
        let size = HEADER_SIZE + fixed.len() + data_size;
        // A reply is bounded by what its request may ask for, far below 4 GiB.
        let message_size = u32::try_from(size).unwrap_or(u32::MAX).into();
        self.bytes.extend_from_slice(Header { message_size, ..header }.as_bytes());
        self.bytes.extend_from_slice(fixed);
        let data = self.bytes.len();
        self.bytes.resize(data + data_size, 0);
        self.ends.push_back(self.bytes.len());
        self.bytes.get_mut(data..).unwrap_or_default()
    }

    /// Takes back the message that was added last and has not been flushed since.
    pub(super) fn retract(&mut self) {
        self.ends.pop_back();
        self.bytes.truncate(self.ends.back().copied().unwrap_or(self.sent));
    }

    /// Sends with `send` until all is sent (`true`) or it would block (`false`).
    ///
    /// Each message is sent by itself: some clients need a header in one piece.
    pub(super) fn flush(&mut self, mut send: impl FnMut(&[u8]) -> io::Result<usize>) -> io::Result<bool> {
        while let Some(&end) = self.ends.front() {
            match send(self.bytes.get(self.sent..end).unwrap_or_default()) {
                Ok(count) => self.sent += count,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            }
            if self.sent >= end {
                self.ends.pop_front();
            }
        }
        self.bytes.clear();
        self.bytes.shrink_to(KEPT_CAPACITY);
        self.sent = 0;
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vfio_user::wire::parse;

    fn header(id: u16) -> Header {
        Header { message_id: id.into(), command: 9.into(), message_size: 0.into(), flags: 1.into(), error: 0.into() }
    }

    #[test]
    fn message_carries_its_size() {
        let mut outbox = Outbox::default();
        outbox.push(header(1), &[1, 2], 3).copy_from_slice(&[3, 4, 5]);
        let mut sent = Vec::new();
        assert!(
            outbox
                .flush(|bytes| {
                    sent.extend_from_slice(bytes);
                    Ok(bytes.len())
                })
                .unwrap()
        );
        let (header, body) = parse::<Header>(&sent).unwrap();
        assert_eq!(header.message_size.get(), 21);
        assert_eq!(body, [1, 2, 3, 4, 5]);
        assert!(outbox.ends.is_empty());
    }

    #[test]
    fn each_message_is_sent_by_itself() {
        let mut outbox = Outbox::default();
        outbox.push(header(1), &[], 0);
        outbox.push(header(2), &[9], 0);
        let mut sizes = Vec::new();
        outbox
            .flush(|bytes| {
                sizes.push(bytes.len());
                Ok(bytes.len())
            })
            .unwrap();
        assert_eq!(sizes, [16, 17]);
    }

    #[test]
    fn a_partly_sent_message_goes_on_where_it_stopped() {
        let mut outbox = Outbox::default();
        outbox.push(header(1), &[7; 4], 0);
        let mut room = 5;
        let send_some = |bytes: &[u8]| {
            let count = bytes.len().min(room);
            room -= count;
            if count == 0 { Err(io::ErrorKind::WouldBlock.into()) } else { Ok(count) }
        };
        assert!(!outbox.flush(send_some).unwrap());
        assert_eq!(outbox.ends.len(), 1);
        let mut rest = Vec::new();
        assert!(
            outbox
                .flush(|bytes| {
                    rest.push(bytes.len());
                    Ok(bytes.len())
                })
                .unwrap()
        );
        assert_eq!(rest, [15]);
    }

    #[test]
    fn a_retracted_message_leaves_the_others() {
        let mut outbox = Outbox::default();
        outbox.push(header(1), &[], 1);
        outbox.push(header(2), &[], 100);
        outbox.retract();
        let mut sizes = Vec::new();
        outbox
            .flush(|bytes| {
                sizes.push(bytes.len());
                Ok(bytes.len())
            })
            .unwrap();
        assert_eq!(sizes, [17]);
    }

    #[test]
    fn memory_of_a_large_reply_is_given_back() {
        let mut outbox = Outbox::default();
        outbox.push(header(1), &[], 1 << 20);
        outbox.flush(|bytes| Ok(bytes.len())).unwrap();
        assert!(outbox.bytes.capacity() <= KEPT_CAPACITY);
    }

    #[test]
    fn an_error_ends_the_flush() {
        let mut outbox = Outbox::default();
        outbox.push(header(1), &[], 0);
        let error = outbox.flush(|_| Err(io::ErrorKind::BrokenPipe.into())).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
    }
}
