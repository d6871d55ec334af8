//! A copy of a message in the making: each byte of the original is shown or hidden, from front to back.

use zeroize::Zeroizing;

/// The original, as far as it has not been looked at, and the copy so far.
pub(super) struct Copying<'a> {
    rest: &'a [u8],
    /// Has room for all.
    copy: Zeroizing<Vec<u8>>,
    length: usize,
}

impl<'a> Copying<'a> {
    pub(super) fn of(message: &'a [u8]) -> Self {
        Self { rest: message, copy: Vec::with_capacity(message.len()).into(), length: message.len() }
    }

    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.rest.split_at_checked(count)?;
        self.rest = rest;
        Some(taken)
    }

    /// Copies the next `count` bytes, and returns them; `None` if there are not so many.
    pub(super) fn show(&mut self, count: usize) -> Option<&'a [u8]> {
        let shown = self.take(count)?;
        self.copy.extend_from_slice(shown);
        Some(shown)
    }

    /// Zeros instead of the next `count` bytes.
    pub(super) fn hide(&mut self, count: usize) -> Option<()> {
        self.take(count)?;
        let length = self.copy.len().saturating_add(count);
        self.copy.resize(length, 0);
        Some(())
    }

    /// Copies a byte, and returns it.
    pub(super) fn u8(&mut self) -> Option<u8> {
        let [byte] = self.show(1)?.first_chunk().copied()?;
        Some(byte)
    }

    /// Copies a number, and returns it.
    pub(super) fn u16(&mut self) -> Option<u16> {
        Some(u16::from_be_bytes(self.show(2)?.first_chunk().copied()?))
    }

    /// Copies a number, and returns it.
    pub(super) fn u32(&mut self) -> Option<u32> {
        Some(u32::from_be_bytes(self.show(4)?.first_chunk().copied()?))
    }

    /// Has the next `size` bytes copied, all of them and nothing behind them.
    pub(super) fn area<T>(&mut self, size: u32, copy: impl FnOnce(&mut Self) -> Option<T>) -> Option<T> {
        let (area, behind) = self.rest.split_at_checked(usize::try_from(size).ok()?)?;
        self.rest = area;
        let copied = copy(self)?;
        self.is_over().then(|| self.rest = behind)?;
        Some(copied)
    }

    /// A copy of its own of what comes behind the next `size` bytes, to look at it before they are copied.
    pub(super) fn behind(&self, size: u32) -> Option<Self> {
        self.rest.get(usize::try_from(size).ok()?..).map(Self::of)
    }

    /// How many bytes there are still.
    pub(super) fn left(&self) -> usize {
        self.rest.len()
    }

    /// Whether all is copied.
    pub(super) fn is_over(&self) -> bool {
        self.rest.is_empty()
    }

    /// The copy; what was not copied is hidden.
    pub(super) fn finish(mut self) -> Zeroizing<Vec<u8>> {
        self.copy.resize(self.length, 0);
        self.copy
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_shown_is_zero() {
        let mut copy = Copying::of(&[1, 2, 3, 4, 5, 6]);
        assert_eq!(copy.show(1), Some(&[1][..]));
        copy.hide(2).unwrap();
        assert_eq!(copy.u16(), Some(0x0405));
        assert_eq!(*copy.finish(), [1, 0, 0, 4, 5, 0]);
    }

    #[test]
    fn an_area_is_copied_whole_and_nothing_behind_it() {
        let mut copy = Copying::of(&[1, 2, 3]);
        assert_eq!(copy.area(4, |copy| copy.show(1).map(drop)), None);
        assert_eq!(copy.area(2, |copy| copy.show(3).map(drop)), None);
        let mut copy = Copying::of(&[1, 2, 3]);
        assert_eq!(copy.area(2, |copy| copy.show(1).map(drop)), None);
        let mut copy = Copying::of(&[1, 2, 3]);
        assert_eq!(copy.area(2, |copy| copy.hide(2)), Some(()));
        assert_eq!((copy.left(), copy.is_over()), (1, false));
    }

    #[test]
    fn what_comes_behind_can_be_looked_at_before() {
        let copy = Copying::of(&[1, 2, 3]);
        assert_eq!(copy.behind(2).unwrap().u8(), Some(3));
        assert!(copy.behind(3).unwrap().is_over());
        assert!(copy.behind(4).is_none());
        assert_eq!(copy.left(), 3);
    }
}
