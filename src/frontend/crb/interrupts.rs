//! A locality's interrupt registers: which conditions may interrupt, and which have.

use super::registers::{IntEnable, IntSts};

/// `TPM_CRB_INT_ENABLE_x` and `TPM_CRB_INT_STS_x` of one locality.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Interrupts {
    enable: IntEnable,
    occurred: IntSts,
}

impl Interrupts {
    /// After power-on: all off.
    pub(super) const POWER_ON: Self = Self { enable: IntEnable::empty(), occurred: IntSts::empty() };

    /// The registers with these values; `None` for reserved bits.
    pub(super) fn from_bits(enable: u32, occurred: u32) -> Option<Self> {
        Some(Self { enable: IntEnable::from_bits(enable)?, occurred: IntSts::from_bits(occurred)? })
    }

    pub(super) fn enable(self) -> u32 {
        self.enable.bits()
    }

    pub(super) fn status(self) -> u32 {
        self.occurred.bits()
    }

    /// Writes the bits of `mask` to the enable register.
    pub(super) fn write_enable(&mut self, value: u32, mask: u32) {
        self.enable = IntEnable::from_bits_truncate((self.enable.bits() & !mask) | (value & mask));
    }

    /// Clears the conditions written as ones.
    pub(super) fn write_status(&mut self, value: u32) {
        self.occurred.remove(IntSts::from_bits_truncate(value));
    }

    /// Notes what has come true, as far as it may interrupt; of the rest nothing is remembered.
    pub(super) fn note(&mut self, conditions: IntSts) {
        self.occurred |= conditions & self.enabled();
    }

    /// Whether the locality interrupts: something enabled has occurred and is not cleared yet.
    pub(super) fn are_asserted(self) -> bool {
        self.occurred.intersects(self.enabled())
    }

    fn enabled(self) -> IntSts {
        if !self.enable.contains(IntEnable::GLOBAL) {
            return IntSts::empty();
        }
        IntSts::from_bits_truncate(self.enable.bits())
    }
}
