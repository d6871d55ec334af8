//! What is to be sent to the client.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use zerocopy::IntoBytes;
use zeroize::{Zeroize, Zeroizing};

use super::wire::{HEADER_SIZE, Header};

/// Bytes that are kept allocated for the next messages.
const KEPT_CAPACITY: usize = 64 << 10;

/// Messages in the order in which they are to be sent, built in place.
///
/// It has no bound of its own: while anything is in it, the server takes no further message from the client, so it
/// holds at most the reply to one message and those that were held back before.
#[derive(Debug, Default)]
pub(super) struct Outbox {
    /// What a guest reads may be secret: whatever leaves it is wiped.
    bytes: Zeroizing<Vec<u8>>,
    unsent: VecDeque<Unsent>,
    /// Bytes already sent; the first unsent message may be partly among them.
    sent: usize,
}

/// A message that is not wholly sent.
#[derive(Debug)]
struct Unsent {
    /// Where it ends in the bytes.
    end: usize,
    /// Goes with its first byte.
    descriptor: Option<OwnedFd>,
}

impl Outbox {
    /// Adds a message of `header`, `fixed` and `data_size` zero bytes, and gives the latter to be filled.
    pub(super) fn push(&mut self, header: Header, fixed: &[u8], data_size: usize) -> &mut [u8] {
        let size = HEADER_SIZE.saturating_add(fixed.len()).saturating_add(data_size);
        // A reply is bounded by what its request may ask for, far below 4 GiB.
        let message_size = u32::try_from(size).unwrap_or(u32::MAX).into();
        self.bytes.extend_from_slice(Header { message_size, ..header }.as_bytes());
        self.bytes.extend_from_slice(fixed);
        let data = self.bytes.len();
        self.bytes.resize(data.saturating_add(data_size), 0);
        self.unsent.push_back(Unsent { end: self.bytes.len(), descriptor: None });
        self.bytes.get_mut(data..).unwrap_or_default()
    }

    /// Sends a descriptor with the message that was added last.
    pub(super) fn attach(&mut self, descriptor: OwnedFd) {
        if let Some(last) = self.unsent.back_mut() {
            last.descriptor = Some(descriptor);
        }
    }

    /// Whether everything is sent.
    pub(super) fn is_empty(&self) -> bool {
        self.unsent.is_empty()
    }

    /// Bytes that are kept for the messages in hand and those to come.
    #[cfg(test)]
    pub(super) fn memory(&self) -> usize {
        self.bytes.capacity()
    }

    /// Takes back the message that was added last and has not been flushed since.
    pub(super) fn retract(&mut self) {
        self.unsent.pop_back();
        self.truncate(self.unsent.back().map_or(self.sent, |last| last.end));
    }

    /// Sends with `send` until all is sent or it would block.
    ///
    /// Each message is sent by itself: some clients need a header in one piece.
    pub(super) fn flush(
        &mut self,
        mut send: impl FnMut(&[u8], Option<BorrowedFd<'_>>) -> io::Result<usize>,
    ) -> io::Result<()> {
        while let Some(Unsent { end, descriptor }) = self.unsent.front_mut() {
            let data = self.bytes.get(self.sent..*end).unwrap_or_default();
            match send(data, descriptor.as_ref().map(AsFd::as_fd)) {
                Ok(count) => {
                    self.sent = self.sent.saturating_add(count);
                    *descriptor = None;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            }
            if self.sent >= *end {
                self.unsent.pop_front();
            }
        }
        self.truncate(0);
        self.bytes.shrink_to(KEPT_CAPACITY);
        self.sent = 0;
        Ok(())
    }

    fn truncate(&mut self, length: usize) {
        self.bytes.get_mut(length..).unwrap_or_default().zeroize();
        self.bytes.truncate(length);
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
        outbox
            .flush(|bytes, _| {
                sent.extend_from_slice(bytes);
                Ok(bytes.len())
            })
            .unwrap();
        let (header, body) = parse::<Header>(&sent).unwrap();
        assert_eq!(header.message_size.get(), 21);
        assert_eq!(body, [1, 2, 3, 4, 5]);
        assert!(outbox.is_empty());
    }

    #[test]
    fn each_message_is_sent_by_itself() {
        let mut outbox = Outbox::default();
        outbox.push(header(1), &[], 0);
        outbox.push(header(2), &[9], 0);
        let mut sizes = Vec::new();
        outbox
            .flush(|bytes, _| {
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
        let send_some = |bytes: &[u8], _: Option<BorrowedFd<'_>>| {
            let count = bytes.len().min(room);
            room -= count;
            if count == 0 { Err(io::ErrorKind::WouldBlock.into()) } else { Ok(count) }
        };
        outbox.flush(send_some).unwrap();
        assert_eq!(outbox.unsent.len(), 1);
        let mut rest = Vec::new();
        outbox
            .flush(|bytes, _| {
                rest.push(bytes.len());
                Ok(bytes.len())
            })
            .unwrap();
        assert!(outbox.is_empty());
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
            .flush(|bytes, _| {
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
        outbox.flush(|bytes, _| Ok(bytes.len())).unwrap();
        assert!(outbox.bytes.capacity() <= KEPT_CAPACITY);
    }

    #[test]
    fn an_error_ends_the_flush() {
        let mut outbox = Outbox::default();
        outbox.push(header(1), &[], 0);
        let error = outbox.flush(|_, _| Err(io::ErrorKind::BrokenPipe.into())).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
    }

    #[test]
    fn a_descriptor_goes_with_the_first_byte_of_its_message_only() {
        let mut outbox = Outbox::default();
        outbox.push(header(1), &[], 0);
        outbox.push(header(2), &[], 0);
        outbox.attach(std::fs::File::open("/dev/null").unwrap().into());
        outbox.push(header(3), &[], 0);
        let mut with_descriptor = Vec::new();
        let mut attempts = 0;
        while !outbox.is_empty() {
            outbox
                .flush(|bytes, descriptor| {
                    attempts += 1;
                    if attempts % 2 == 0 {
                        return Err(io::ErrorKind::WouldBlock.into());
                    }
                    with_descriptor.push(descriptor.is_some());
                    Ok(bytes.len().min(10))
                })
                .unwrap();
        }
        assert_eq!(with_descriptor, [false, false, true, false, false, false]);
    }
}
