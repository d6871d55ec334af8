//! The TIS / PTP FIFO register file: five localities, one page of registers each, and one TPM behind them.
//!
//! Sources: TCG PC Client TIS 1.3 (TPM 1.2) and TCG PC Client Platform TPM Profile (PTP) 1.05 (TPM 2.0), by register
//! name; where they leave a choice, what QEMU's `tpm-tis` does, since guests are used to it.
//!
//! # What always holds
//! 1. At most one locality is active. Only it reads `TPM_STS_x` and the FIFO (the others read ones) and only it can
//!    write those and the interrupt registers.
//! 2. The bits of `TPM_STS_x` that can only be written read 0: `STS & 0x23 == 0`. Linux warns otherwise.
//! 3. `Expect` and `dataAvail` are never set together, nor without `stsValid`; `commandReady` is then 0.
//! 4. `Expect` clears with the last byte of the command, `dataAvail` with the last byte of the response.
//! 5. [`Effect::Execute`] comes only when no command is outstanding, and then [`Tis::command`] is one whole command.
//!    [`Effect::Cancel`] comes only while one is.
//! 6. A non-zero `burstCount` bytes can be transferred without looking at the status again; it never exceeds 248.
//! 7. A response reaches only the locality that started its command, and only while it keeps the TPM.
//! 8. No access, whatever its offset, width or data, fails.
//! 9. Each state that is reached can be exported and imported, and the copy behaves as the original.
//! 10. [`Tis::interrupt_level`] is whether something pending is enabled. Nothing is pending that was not enabled when it came
//!     true; once all is cleared, the level is low.
//!
//! `tests/steps.rs` checks these by their numbers after each of any sequence of accesses. [`Tis::from_state`] refuses a
//! state in which they would not hold.

mod fifo;
mod interrupts;
mod registers;
mod state;
#[cfg(test)]
mod tests;

use super::locality::{self, Localities, PAGE};
use super::words::{read_lanes, words, written_lanes};
use super::{Effect, Progress};
use crate::tpm::{Locality, PerLocality, TpmVersion};
use fifo::Fifo;
use interrupts::Interrupts;
use registers::{Access, InterfaceId, Interrupt, IntfCapability, Register, Sts};

pub use fifo::{CommandState, CommandStateError};
pub use interrupts::{InterruptsState, ReservedBits};
pub use state::{TisState, TisStateError};

/// What a TIS TPM is, apart from its state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TisConfig {
    /// The TPM's family. It decides which registers and bits there are.
    pub version: TpmVersion,
    /// Low half of `TPM_DID_VID`. Linux has special cases for some vendors.
    pub vendor_id: u16,
    /// High half of `TPM_DID_VID`.
    pub device_id: u16,
    /// `TPM_RID`.
    pub revision: u8,
    /// Lets the guest write to the page of locality 4, which otherwise belongs to the hardware. For tests: a guest
    /// could use it to impersonate a dynamic launch.
    pub guest_locality_4: bool,
}

/// The registers of a TIS TPM. See the [module](self) for what always holds.
#[derive(Clone, Debug)]
pub struct Tis {
    config: TisConfig,
    localities: Localities,
    interrupts: PerLocality<Interrupts>,
    interface_id: InterfaceId,
    fifo: Fifo,
}

impl Tis {
    /// Bytes that the five pages take.
    pub const SIZE: u64 = PAGE * Locality::COUNT as u64;

    /// `TPM_INTERFACE_ID_x` after power-on.
    const INTERFACE_ID: InterfaceId = InterfaceId::CAP_FIFO.union(InterfaceId::CAP_LOCALITY);

    /// A TPM after power-on, not established.
    #[must_use]
    pub fn new(config: TisConfig) -> Self {
        Self {
            config,
            localities: Localities::default(),
            interrupts: PerLocality::all(Interrupts::POWER_ON),
            interface_id: Self::INTERFACE_ID,
            fifo: Fifo::new(config.version),
        }
    }

    /// Power-on. A command that still runs in the backend is forgotten: its result must not be passed to
    /// [`complete`](Self::complete). The establishment flag lives in the TPM and stays as last reported.
    pub fn reset(&mut self) {
        self.localities.reset();
        self.interrupts = PerLocality::all(Interrupts::POWER_ON);
        self.interface_id = Self::INTERFACE_ID;
        self.fifo.reset();
    }

    /// Reads any number of bytes from `offset` within the pages. Where no register is, and past the end, that gives
    /// 0xff; reserved bytes beside a one-byte register read 0.
    pub fn read(&mut self, offset: u64, data: &mut [u8]) {
        data.fill(0xff);
        for word in words(offset, data.len()) {
            if let (Some((locality, register)), Some(out)) = (decode(word.address), data.get_mut(word.range)) {
                self.read_word(locality, register, word.lane, out);
            }
        }
    }

    /// Writes any number of bytes at `offset` within the pages; where nothing can be written they are dropped.
    ///
    /// An access has at most one effect: the words are written in ascending order, and what comes after one that has
    /// an effect is dropped. No access of up to 8 bytes, nor one to a FIFO, is cut short by that.
    #[must_use]
    pub fn write(&mut self, offset: u64, data: &[u8]) -> Option<Effect> {
        words(offset, data.len()).find_map(|word| {
            let (locality, register) = decode(word.address)?;
            let bytes = data.get(word.range)?;
            self.noting_interrupts(|tis| tis.write_word(locality, register, word.lane, bytes))
        })
    }

    /// The whole command that [`Effect::Execute`] asked to run, until it completes or is aborted; else empty.
    #[must_use]
    pub fn command(&self) -> &[u8] {
        self.fifo.command()
    }

    /// Whether an [`Effect::Execute`] has not been completed yet.
    #[must_use]
    pub fn is_busy(&self) -> bool {
        self.fifo.is_busy()
    }

    /// Completes the command of the last [`Effect::Execute`]. A response that isn't whole, by its own size field, or
    /// over [`BUFFER_SIZE`](crate::tpm::BUFFER_SIZE) is replaced by a failure; that of an aborted command is thrown
    /// away. Ignored when no command runs.
    pub fn complete(&mut self, response: &[u8]) {
        self.noting_interrupts(|tis| tis.fifo.complete(response));
    }

    /// Shows `tpmEstablished` as the TPM reports it.
    pub fn set_establishment(&mut self, established: bool) {
        self.localities.set_established(established);
    }

    /// The level of the interrupt line, high for an interrupt: whether any locality has one pending that is enabled.
    #[must_use]
    pub fn interrupt_level(&self) -> bool {
        Locality::all().any(|locality| self.interrupts[locality].are_asserted())
    }

    /// How far the guest is with its command.
    pub(super) fn progress(&self) -> Progress {
        self.fifo.progress()
    }

    /// The locality that has the TPM.
    pub(super) fn active_locality(&self) -> Option<Locality> {
        self.localities.active()
    }

    /// The byte that tells a locality, and nothing else, that its command still runs; `None` when none runs.
    pub(super) fn completion_byte(&self) -> Option<u64> {
        let locality = self.localities.active().filter(|_| self.fifo.is_executing())?;
        Some(locality::address(locality, Register::STS))
    }

    /// Does something, and notes the interrupts that it leads to. Those of the status are about its bits that become 1, for
    /// the locality that reads them. A locality that gets the TPM from another is told; one that gets it at once, since none
    /// had it, sees that when it looks.
    fn noting_interrupts<T>(&mut self, change: impl FnOnce(&mut Self) -> T) -> T {
        let (owner_before, status_before) = (self.localities.active(), self.fifo.status());
        let result = change(self);
        let Some(owner) = self.localities.active() else { return result };
        if owner_before == Some(owner) {
            let risen = self.fifo.status().difference(status_before);
            self.interrupts[owner].note(Interrupt::of_status(risen));
        } else if owner_before.is_some() {
            self.interrupts[owner].note(Interrupt::LOCALITY_CHANGE);
        }
        result
    }

    fn read_word(&mut self, locality: Locality, register: Register, lane: usize, out: &mut [u8]) {
        let interrupts = &self.interrupts[locality];
        let value = match register {
            Register::Access => self.access(locality).bits().into(),
            Register::IntEnable => interrupts.enable(),
            Register::IntVector => interrupts.vector().into(),
            Register::IntStatus => interrupts.status(),
            Register::IntfCapability => IntfCapability::of(self.config.version).bits(),
            Register::InterfaceId => self.interface_id(),
            Register::DidVid => u32::from(self.config.device_id) << 16 | u32::from(self.config.vendor_id),
            Register::Rid => self.config.revision.into(),
            Register::Sts | Register::DataFifo | Register::HashData if !self.localities.is_active(locality) => {
                return;
            }
            Register::Sts => self.sts(),
            Register::DataFifo | Register::HashData => return out.fill_with(|| self.fifo.take()),
        };
        read_lanes(value, lane, out);
    }

    fn write_word(&mut self, locality: Locality, register: Register, lane: usize, bytes: &[u8]) -> Option<Effect> {
        if locality == Locality::FOUR && !self.config.guest_locality_4 {
            return None;
        }
        let (value, mask) = written_lanes(lane, bytes);
        match register {
            Register::Access => return self.write_access(locality, Access::from_bits_truncate(value.to_le_bytes()[0])),
            Register::InterfaceId => self.write_interface_id(value),
            // The hash sequence of a dynamic launch is for the host alone.
            Register::HashData | Register::IntfCapability | Register::DidVid | Register::Rid => {}
            _ if !self.localities.is_active(locality) => {}
            Register::IntEnable => self.interrupts[locality].write_enable(value, mask),
            Register::IntVector => self.interrupts[locality].write_vector(value, mask),
            Register::IntStatus => self.interrupts[locality].write_status(value),
            Register::Sts => return self.write_sts(locality, Sts::from_bits_truncate(value)),
            Register::DataFifo => bytes.iter().for_each(|&byte| self.fifo.put(byte)),
        }
        None
    }

    fn access(&self, locality: Locality) -> Access {
        let mut access = Access::TPM_REG_VALID_STS;
        access.set(Access::ACTIVE_LOCALITY, self.localities.is_active(locality));
        access.set(Access::BEEN_SEIZED, self.localities.been_seized(locality));
        access.set(Access::PENDING_REQUEST, self.localities.others_wait(locality));
        access.set(Access::REQUEST_USE, self.localities.has_requested(locality));
        access.set(Access::TPM_ESTABLISHMENT, !self.localities.established());
        access
    }

    /// With several bits set: `beenSeized` is cleared in any case, and of the others only the first of `Seize`,
    /// `activeLocality` (relinquish) and `requestUse` counts. QEMU does the same.
    fn write_access(&mut self, locality: Locality, written: Access) -> Option<Effect> {
        let owner = self.localities.active();
        if written.contains(Access::BEEN_SEIZED) {
            self.localities.clear_been_seized(locality);
        }
        if written.contains(Access::SEIZE) {
            self.localities.seize(locality);
        } else if written.contains(Access::ACTIVE_LOCALITY) {
            self.localities.relinquish(locality);
        } else if written.contains(Access::REQUEST_USE) {
            self.localities.request(locality);
        }
        let lost = owner.is_some() && owner != self.localities.active();
        if lost { self.fifo.locality_lost() } else { None }
    }

    fn sts(&self) -> u32 {
        let bits = Sts::family(self.config.version) | self.fifo.status();
        bits.bits() | u32::from(self.fifo.burst_count()) << 8
    }

    /// Acts on a write with exactly one command bit. Several at once say nothing about their order, so such a write
    /// is ignored, as QEMU does for `commandReady`, `tpmGo` and `responseRetry`.
    fn write_sts(&mut self, locality: Locality, written: Sts) -> Option<Effect> {
        match written & Sts::commands(self.config.version) {
            Sts::COMMAND_READY => self.fifo.command_ready(),
            Sts::TPM_GO => self.fifo.go(locality),
            Sts::COMMAND_CANCEL => self.fifo.command_cancel(),
            Sts::RESPONSE_RETRY => {
                self.fifo.response_retry();
                None
            }
            Sts::RESET_ESTABLISHMENT_BIT if locality.number() >= 3 => Some(Effect::ResetEstablishment(locality)),
            _ => None,
        }
    }

    fn interface_id(&self) -> u32 {
        match self.config.version {
            // TIS 1.3 has no such register; all ones is what PTP calls a TIS 1.3 interface.
            TpmVersion::V1_2 => u32::MAX,
            TpmVersion::V2_0 => self.interface_id.bits(),
        }
    }

    /// There is only the FIFO interface, so the selector stays 0; the lock, from any locality, holds until reset.
    fn write_interface_id(&mut self, value: u32) {
        self.interface_id |= InterfaceId::from_bits_truncate(value) & InterfaceId::INTF_SEL_LOCK;
    }
}

/// The locality and the register in the word at `address`.
fn decode(address: u64) -> Option<(Locality, Register)> {
    let locality = Locality::new(u8::try_from(address / PAGE).ok()?)?;
    Some((locality, Register::at(locality, address % PAGE)?))
}
