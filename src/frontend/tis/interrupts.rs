//! A locality's interrupt registers: which conditions may interrupt, and which have.
//!
//! What `typePolarity` says is of no effect: the line of a PCI device is what it is.

use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::registers::{IntEnable, Interrupt};

/// A locality's interrupt registers as plain data.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InterruptsState {
    /// `TPM_INT_ENABLE_x`.
    pub enable: u32,
    /// `TPM_INT_VECTOR_x`.
    pub vector: u8,
    /// `TPM_INT_STATUS_x`.
    pub status: u32,
}

/// A register has bits that are reserved.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("{register} is {found:#010x}: expected no bits but those of {possible:#010x}")]
pub struct ReservedBits {
    /// The register's name.
    pub register: &'static str,
    /// Its value.
    pub found: u32,
    /// The bits that it has.
    pub possible: u32,
}

/// `TPM_INT_ENABLE_x`, `TPM_INT_VECTOR_x` and `TPM_INT_STATUS_x` of one locality.
#[derive(Clone, Copy, Debug)]
pub(super) struct Interrupts {
    enable: IntEnable,
    vector: u8,
    occurred: Interrupt,
}

impl Interrupts {
    /// `sirqVec` (3:0) of `TPM_INT_VECTOR_x`; the rest is reserved.
    const SIRQ_VEC: u8 = 0x0f;

    /// After power-on: all off, low level.
    pub(super) const POWER_ON: Self = Self { enable: IntEnable::LOW_LEVEL, vector: 0, occurred: Interrupt::empty() };

    pub(super) fn enable(&self) -> u32 {
        self.enable.bits()
    }

    pub(super) fn vector(&self) -> u8 {
        self.vector
    }

    pub(super) fn status(&self) -> u32 {
        self.occurred.bits()
    }

    /// Notes what has come true, as far as it may interrupt; of the rest nothing is remembered, as in QEMU.
    pub(super) fn note(&mut self, conditions: Interrupt) {
        self.occurred |= conditions & self.enabled();
    }

    /// Whether the locality interrupts: something enabled has occurred and is not cleared yet.
    pub(super) fn are_asserted(&self) -> bool {
        self.occurred.intersects(self.enabled())
    }

    fn enabled(&self) -> Interrupt {
        if !self.enable.contains(IntEnable::GLOBAL) {
            return Interrupt::empty();
        }
        Interrupt::from_bits_truncate(self.enable.bits())
    }

    /// The registers as plain data.
    pub(super) fn state(&self) -> InterruptsState {
        let Self { enable, vector, occurred } = *self;
        InterruptsState { enable: enable.bits(), vector, status: occurred.bits() }
    }

    /// The registers that [`state`](Self::state) gave.
    pub(super) fn from_state(state: &InterruptsState) -> Result<Self, ReservedBits> {
        let InterruptsState { enable, vector, status } = *state;
        let reserved = |register, found, possible| ReservedBits { register, found, possible };
        let (enables, conditions) = (IntEnable::all().bits(), Interrupt::all().bits());
        if vector & !Self::SIRQ_VEC != 0 {
            return Err(reserved("TPM_INT_VECTOR", vector.into(), Self::SIRQ_VEC.into()));
        }
        Ok(Self {
            enable: IntEnable::from_bits(enable).ok_or(reserved("TPM_INT_ENABLE", enable, enables))?,
            vector,
            occurred: Interrupt::from_bits(status).ok_or(reserved("TPM_INT_STATUS", status, conditions))?,
        })
    }

    /// Writes the bits of `mask` to the enable register.
    pub(super) fn write_enable(&mut self, value: u32, mask: u32) {
        self.enable = IntEnable::from_bits_truncate((self.enable.bits() & !mask) | (value & mask));
    }

    /// Writes the vector if the write touches its byte.
    pub(super) fn write_vector(&mut self, value: u32, mask: u32) {
        let [value, ..] = value.to_le_bytes();
        let [mask, ..] = mask.to_le_bytes();
        self.vector = ((self.vector & !mask) | (value & mask)) & Self::SIRQ_VEC;
    }

    /// Clears the conditions written as ones.
    pub(super) fn write_status(&mut self, value: u32) {
        self.occurred.remove(Interrupt::from_bits_truncate(value));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_implemented_enable_bits_can_be_written() {
        let mut interrupts = Interrupts::POWER_ON;
        interrupts.write_enable(u32::MAX, u32::MAX);
        assert_eq!(interrupts.enable(), 0x8000_009f);
    }

    #[test]
    fn bytes_not_written_keep_their_enable_bits() {
        let mut interrupts = Interrupts::POWER_ON;
        interrupts.write_enable(0x8000_0000, 0xff00_0000);
        assert_eq!(interrupts.enable(), 0x8000_0008);
        interrupts.write_enable(0, 0x0000_00ff);
        assert_eq!(interrupts.enable(), 0x8000_0000);
    }

    #[test]
    fn a_write_beside_the_vector_does_not_change_it() {
        let mut interrupts = Interrupts::POWER_ON;
        interrupts.write_vector(0xffff_ffff, 0x0000_00ff);
        assert_eq!(interrupts.vector(), 0x0f);
        interrupts.write_vector(0, 0xffff_ff00);
        assert_eq!(interrupts.vector(), 0x0f);
    }

    #[test]
    fn status_bits_written_as_ones_are_cleared_and_the_others_stay() {
        let mut interrupts = Interrupts { occurred: Interrupt::all(), ..Interrupts::POWER_ON };
        interrupts.write_status(Interrupt::DATA_AVAIL.bits());
        assert_eq!(interrupts.status(), 0x86);
    }

    #[test]
    fn what_is_not_enabled_is_not_even_remembered() {
        let mut interrupts = Interrupts::POWER_ON;
        for (enable, noted) in [(0x87, 0), (0x8000_0000, 0), (0x8000_0081, 0x81)] {
            interrupts.write_enable(enable, u32::MAX);
            interrupts.note(Interrupt::all());
            assert_eq!(interrupts.status(), noted, "{enable:#x}");
            assert_eq!(interrupts.are_asserted(), noted != 0, "{enable:#x}");
        }
    }

    #[test]
    fn what_has_occurred_interrupts_while_it_is_enabled_and_until_it_is_cleared() {
        let mut interrupts = Interrupts::POWER_ON;
        interrupts.write_enable(0x8000_0003, u32::MAX);
        interrupts.note(Interrupt::DATA_AVAIL);
        for (enable, asserted) in [(0x0000_0003, false), (0x8000_0002, false), (0x8000_0001, true)] {
            interrupts.write_enable(enable, u32::MAX);
            assert_eq!(interrupts.are_asserted(), asserted, "{enable:#x}");
        }
        interrupts.write_status(Interrupt::DATA_AVAIL.bits());
        assert!(!interrupts.are_asserted());
    }

    #[test]
    fn reserved_bits_are_refused() {
        let all = InterruptsState { enable: 0x8000_009f, vector: 0x0f, status: 0x87 };
        assert_eq!(Interrupts::from_state(&all).map(|interrupts| interrupts.state()), Ok(all));
        let refusal = |state| Interrupts::from_state(&state).expect_err("a refusal").register;
        assert_eq!(refusal(InterruptsState { enable: 0x20, ..all }), "TPM_INT_ENABLE");
        assert_eq!(refusal(InterruptsState { vector: 0x10, ..all }), "TPM_INT_VECTOR");
        assert_eq!(refusal(InterruptsState { status: 0x08, ..all }), "TPM_INT_STATUS");
    }
}
