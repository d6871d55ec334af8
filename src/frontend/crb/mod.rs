//! The command response buffer (CRB) interface: five localities, one page of registers each, and one TPM behind them.
//! Commands and responses go through one buffer in memory that the guest shares with us; only the registers are
//! accesses that we see. [`CrbDoorbell`] is the same without registers.
//!
//! Source: TCG PC Client Platform TPM Profile (PTP) 1.05, by register name; where it leaves a choice, what QEMU's
//! `tpm-crb` does, since guests are used to it. There is no CRB for TPM 1.2.
//!
//! # What always holds
//! 1. At most one locality is active. Only it reads `TPM_CRB_CTRL_x` (the others read ones, but for the buffer's size
//!    and address) and only it can write those and the interrupt registers.
//! 2. START reads 1 exactly while the backend has a command. `tpmIdle` and START are never both 1.
//! 3. [`Effect::Execute`] comes only when no command is outstanding, and then [`Crb::command`] is one whole command, as
//!    it was in the buffer at that moment; what the guest writes later changes nothing. [`Effect::Cancel`] comes only
//!    while a command is outstanding.
//! 4. The size of a command is read once, from the copy that is run. Nothing in the memory is believed twice.
//! 5. The buffer is written by the TPM only with the response of a command whose locality keeps the TPM, before START
//!    reads 0, and with zeros at power-on.
//! 6. A response is never another command's: once the guest has cancelled its command and written START again while it
//!    still runs, `TPM_RC_RETRY` takes the place of its response. Without a cancellation before, that START is nothing.
//! 7. No access and no response panics or allocates, wherever it goes and however wide it is.
//! 8. What [`Crb::state`] exports behaves, imported, as the original would. [`Crb::from_state`] refuses whatever is a
//!    state in which these would not hold.
//! 9. [`Crb::interrupt_level`] is whether something pending is enabled. Nothing is pending that was not enabled when it came
//!    true; once all is cleared, the level is low.

mod buffer;
mod control;
mod doorbell;
mod interrupts;
mod registers;
mod standing;
mod state;
#[cfg(test)]
mod tests;

use super::locality::{self, Localities, PAGE};
use super::memory;
use super::words::{read_lanes, words, written_lanes};
use super::{Effect, Memory, Progress};
use crate::bar_map::COMMAND_BUFFER;
use crate::tpm::{Locality, PerLocality};
use control::Control;
use interrupts::Interrupts;
use registers::{CTRL_START, CtrlReq, IntSts, IntfId, LocCtrl, LocState, LocSts, Register, START};

pub use buffer::BufferStateError;
pub use control::CommandState;
pub use doorbell::{CrbDoorbell, CrbDoorbellState, RunningCommand};
pub use standing::Standing;
pub use state::{CrbState, CrbStateError};

/// What a CRB TPM is, apart from its state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CrbConfig {
    /// `VID` of `TPM_CRB_INTF_ID_x`.
    pub vendor_id: u16,
    /// `DID` of `TPM_CRB_INTF_ID_x`.
    pub device_id: u16,
    /// `RID` of `TPM_CRB_INTF_ID_x`.
    pub revision: u8,
    /// Lets the guest write to the page of locality 4, which otherwise belongs to the hardware. For tests: a guest
    /// could use it to impersonate a dynamic launch.
    pub guest_locality_4: bool,
}

/// The registers of a CRB TPM, and its command buffer. See the [module](self) for what always holds.
///
/// Offsets are BAR0's: [`LOCALITIES`](crate::bar_map::LOCALITIES) and [`COMMAND_BUFFER`] are served.
#[derive(Clone, Debug)]
pub struct Crb<M> {
    config: CrbConfig,
    memory: M,
    bar0_address: u32,
    localities: Localities,
    interrupts: PerLocality<Interrupts>,
    intf_id: IntfId,
    control: Control,
}

impl<M: Memory> Crb<M> {
    /// A TPM after power-on, not established, in a BAR0 that is nowhere yet.
    #[must_use]
    pub fn new(config: CrbConfig, memory: M) -> Self {
        let mut crb = Self {
            config,
            memory,
            bar0_address: 0,
            localities: Localities::default(),
            interrupts: PerLocality::all(Interrupts::POWER_ON),
            intf_id: IntfId::POWER_ON,
            control: Control::new(),
        };
        crb.reset();
        crb
    }

    /// Power-on; the buffer is empty. A command that still runs in the backend is forgotten: its result must not be
    /// passed to [`complete`](Self::complete). The establishment flag lives in the TPM and stays as last reported, and
    /// BAR0 where it was last placed.
    pub fn reset(&mut self) {
        self.localities.reset();
        self.interrupts = PerLocality::all(Interrupts::POWER_ON);
        self.intf_id = IntfId::POWER_ON;
        self.control.reset();
        buffer::clear(&mut self.memory, COMMAND_BUFFER);
    }

    /// BAR0 is at this address now, or nowhere if 0. The buffer is in it.
    pub fn place(&mut self, bar0_address: u32) {
        self.bar0_address = bar0_address;
    }

    /// Reads any number of bytes. Where nothing is, that gives 0xff.
    pub fn read(&self, offset: u64, data: &mut [u8]) {
        data.fill(0xff);
        for word in words(offset, data.len()) {
            if let (Some((locality, register)), Some(out)) = (decode(word.address), data.get_mut(word.range)) {
                if let Some(value) = self.read_word(locality, register) {
                    read_lanes(value, word.lane, out);
                }
            }
        }
        memory::read_window(&self.memory, COMMAND_BUFFER, offset, data);
    }

    /// Writes any number of bytes; where nothing can be written they are dropped.
    ///
    /// An access has at most one effect: the words are written in ascending order, and what comes after one that has
    /// an effect is dropped. No access of up to 8 bytes is cut short by that.
    #[must_use]
    pub fn write(&mut self, offset: u64, data: &[u8]) -> Option<Effect> {
        let effect = words(offset, data.len()).find_map(|word| {
            let (locality, register) = decode(word.address)?;
            self.write_word(locality, register, word.lane, data.get(word.range)?)
        });
        if effect.is_none() {
            memory::write_window(&mut self.memory, COMMAND_BUFFER, offset, data);
        }
        effect
    }

    /// The whole command that [`Effect::Execute`] asked to run, until it completes or is aborted; else empty.
    #[must_use]
    pub fn command(&self) -> &[u8] {
        self.control.command()
    }

    /// Whether an [`Effect::Execute`] has not been completed yet.
    #[must_use]
    pub fn is_busy(&self) -> bool {
        self.control.is_busy()
    }

    /// Completes the command of the last [`Effect::Execute`]. A response that isn't whole, by its own size field, or
    /// over [`BUFFER_SIZE`](crate::tpm::BUFFER_SIZE) is replaced by a failure; that of a superseded command by a
    /// request to retry; that of an aborted command is thrown away. Ignored when no command runs.
    pub fn complete(&mut self, response: &[u8]) {
        let done = self.control.complete(response, &mut self.memory);
        self.note(done);
    }

    /// Shows `tpmEstablished` as the TPM reports it.
    pub fn set_establishment(&mut self, established: bool) {
        if established && !self.localities.established() {
            self.note(IntSts::ESTABLISHMENT_CLEAR);
        }
        self.localities.set_established(established);
    }

    /// The level of the interrupt line, high for an interrupt: whether any locality has one pending that is enabled.
    #[must_use]
    pub fn interrupt_level(&self) -> bool {
        Locality::all().any(|locality| self.interrupts[locality].are_asserted())
    }

    /// How far the guest is with its command.
    pub(super) fn progress(&self) -> Progress {
        self.control.progress()
    }

    /// The locality that has the TPM.
    pub(super) fn active_locality(&self) -> Option<Locality> {
        self.localities.active()
    }

    /// The byte of BAR0 that tells a locality, and nothing else, that its command still runs; `None` when none runs.
    pub(super) fn completion_byte(&self) -> Option<u64> {
        let locality = self.localities.active().filter(|_| self.control.is_executing())?;
        Some(locality::address(locality, CTRL_START.into()))
    }

    /// The memory shared with the guest.
    #[must_use]
    pub fn memory(&self) -> &M {
        &self.memory
    }

    /// The memory shared with the guest.
    #[must_use]
    pub fn memory_mut(&mut self) -> &mut M {
        &mut self.memory
    }

    fn read_word(&self, locality: Locality, register: Register) -> Option<u32> {
        Some(match register {
            Register::LocState => self.loc_state(),
            Register::LocCtrl => 0,
            Register::LocSts => self.loc_sts(locality).bits(),
            Register::IntfId => self.intf_id.bits() | u32::from(self.config.revision) << 24,
            Register::IntfIdHigh => u32::from(self.config.device_id) << 16 | u32::from(self.config.vendor_id),
            Register::IntEnable => self.interrupts[locality].enable(),
            Register::IntSts => self.interrupts[locality].status(),
            // The same for all: SeaBIOS reads them before it asks for the TPM.
            Register::BufferSize => COMMAND_BUFFER.length,
            Register::BufferAddress => low(buffer::address(self.bar0_address)),
            Register::BufferAddressHigh => high(buffer::address(self.bar0_address)),
            _ if !self.localities.is_active(locality) => return None,
            Register::CtrlExt => 0,
            Register::CtrlReq => self.control.request().bits(),
            Register::CtrlSts => self.control.status().bits(),
            Register::CtrlCancel => self.control.cancel(),
            Register::CtrlStart => self.control.start(),
        })
    }

    fn write_word(&mut self, locality: Locality, register: Register, lane: usize, bytes: &[u8]) -> Option<Effect> {
        if locality == Locality::FOUR && !self.config.guest_locality_4 {
            return None;
        }
        let (value, mask) = written_lanes(lane, bytes);
        match register {
            Register::LocCtrl => return self.write_loc_ctrl(locality, LocCtrl::from_bits_truncate(value)),
            // There is only the CRB interface, so the selector stays; the lock, from any locality, holds until reset.
            Register::IntfId => self.intf_id |= IntfId::from_bits_truncate(value) & IntfId::INTF_SEL_LOCK,
            _ if !self.localities.is_active(locality) => {}
            Register::CtrlReq => {
                let done = self.control.write_request(CtrlReq::from_bits_truncate(value));
                self.note(done);
            }
            Register::CtrlCancel if lane == 0 => return self.control.write_cancel(value),
            Register::CtrlStart if value & START != 0 => {
                let (effect, done) = self.control.write_start(locality, &mut self.memory);
                self.note(done);
                return effect;
            }
            Register::IntEnable => self.interrupts[locality].write_enable(value, mask),
            Register::IntSts => self.interrupts[locality].write_status(value),
            // Sizes and addresses are ours to say; edk2 writes them nevertheless.
            _ => {}
        }
        None
    }

    /// `activeLocality` is 0 when there is none.
    fn loc_state(&self) -> u32 {
        let active = self.localities.active();
        let mut state = LocState::TPM_REG_VALID_STS;
        state.set(LocState::LOC_ASSIGNED, active.is_some());
        state.set(LocState::TPM_ESTABLISHED, !self.localities.established());
        state.bits() | active.map_or(0, |active| u32::from(active.number()) << 2)
    }

    fn loc_sts(&self, locality: Locality) -> LocSts {
        let mut sts = LocSts::empty();
        sts.set(LocSts::GRANTED, self.localities.is_active(locality));
        sts.set(LocSts::BEEN_SEIZED, self.localities.been_seized(locality));
        sts
    }

    /// Acts on a write with exactly one bit, as QEMU does: several at once say nothing about their order. `beenSeized`
    /// ends with the next `requestAccess`.
    fn write_loc_ctrl(&mut self, locality: Locality, written: LocCtrl) -> Option<Effect> {
        let owner = self.localities.active();
        match written {
            LocCtrl::REQUEST_ACCESS => {
                self.localities.clear_been_seized(locality);
                self.localities.request(locality);
            }
            LocCtrl::RELINQUISH => self.localities.relinquish(locality),
            LocCtrl::SEIZE => self.localities.seize(locality),
            LocCtrl::RESET_ESTABLISHMENT_BIT if locality.number() >= 3 => {
                return Some(Effect::ResetEstablishment(locality));
            }
            _ => {}
        }
        let lost = owner.is_some() && owner != self.localities.active();
        if !lost {
            return None;
        }
        // A locality that gets the TPM at once, since none had it, sees that when it looks.
        self.note(IntSts::LOCALITY_CHANGE);
        self.control.locality_lost()
    }

    /// Interrupts are the active locality's.
    fn note(&mut self, conditions: IntSts) {
        if let Some(locality) = self.localities.active() {
            self.interrupts[locality].note(conditions);
        }
    }
}

/// The locality and the register in the word at `address`.
fn decode(address: u64) -> Option<(Locality, Register)> {
    let locality = Locality::new(u8::try_from(address / PAGE).ok()?)?;
    Some((locality, Register::at(address % PAGE)?))
}

fn low(address: u64) -> u32 {
    let [a, b, c, d, ..] = address.to_le_bytes();
    u32::from_le_bytes([a, b, c, d])
}

fn high(address: u64) -> u32 {
    low(address >> 32)
}
