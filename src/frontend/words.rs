//! Splits an access of any width and alignment at the borders of the 32-bit words in which registers lie.

use std::iter;
use std::ops::Range;

/// Bytes in a register word.
const WORD: usize = 4;

/// The part of an access that falls into one register word.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Word {
    /// Address of the word, a multiple of four.
    pub(super) address: u64,
    /// The first byte of the word that the access touches, 0 to 3.
    pub(super) lane: usize,
    /// Where this part lies in the access's data: one to four bytes.
    pub(super) range: Range<usize>,
}

/// The words that an access of `len` bytes at `offset` touches, lowest address first. Ends at the end of the address
/// space.
pub(super) fn words(offset: u64, len: usize) -> impl Iterator<Item = Word> {
    let mut next = Some(offset);
    let mut start = 0;
    iter::from_fn(move || {
        let at = next.filter(|_| start < len)?;
        let lane = at.to_le_bytes()[0] & 3;
        let end = WORD.saturating_sub(lane.into()).saturating_add(start).min(len);
        let word = Word { address: at & !3, lane: lane.into(), range: start..end };
        next = word.address.checked_add(4);
        start = end;
        Some(word)
    })
}

/// Copies a word's value into the bytes that an access reads of it, which begin at `lane`.
pub(super) fn read_lanes(value: u32, lane: usize, out: &mut [u8]) {
    for (to, from) in out.iter_mut().zip(value.to_le_bytes().into_iter().skip(lane)) {
        *to = from;
    }
}

/// The value that an access writes to a word, and the mask of the bits it writes. Bits not written are zero.
pub(super) fn written_lanes(lane: usize, bytes: &[u8]) -> (u32, u32) {
    let mut value = [0; WORD];
    let mut mask = [0; WORD];
    for ((value, mask), byte) in value.iter_mut().zip(&mut mask).skip(lane).zip(bytes) {
        (*value, *mask) = (*byte, 0xff);
    }
    (u32::from_le_bytes(value), u32::from_le_bytes(mask))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn split(offset: u64, len: usize) -> Vec<Word> {
        words(offset, len).collect()
    }

    #[test]
    fn an_aligned_access_is_one_word_for_each_four_bytes() {
        let expected = [Word { address: 0x18, lane: 0, range: 0..4 }, Word { address: 0x1c, lane: 0, range: 4..8 }];
        assert_eq!(split(0x18, 8), expected);
    }

    #[test]
    fn an_unaligned_access_is_split_at_the_word() {
        let expected = [
            Word { address: 0x24, lane: 3, range: 0..1 },
            Word { address: 0x28, lane: 0, range: 1..5 },
            Word { address: 0x2c, lane: 0, range: 5..6 },
        ];
        assert_eq!(split(0x27, 6), expected);
    }

    #[test]
    fn an_access_of_no_bytes_touches_nothing() {
        assert_eq!(split(0x18, 0), []);
    }

    #[test]
    fn an_access_over_the_end_of_the_address_space_does_not_wrap() {
        assert_eq!(split(u64::MAX, 8), [Word { address: u64::MAX - 3, lane: 3, range: 0..1 }]);
    }

    #[test]
    fn lanes_select_the_bytes_of_a_word() {
        let mut bytes = [0; 2];
        read_lanes(0x4433_2211, 1, &mut bytes);
        assert_eq!(bytes, [0x22, 0x33]);
        assert_eq!(written_lanes(1, &[0x22, 0x33]), (0x0033_2200, 0x00ff_ff00));
    }
}
