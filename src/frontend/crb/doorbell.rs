//! The CRB with ACPI start. Sources: PTP 1.05 for the control area, TCG ACPI Specification 1.3 (start method 8) for the
//! rest.

mod state;

use super::CrbConfig;
use super::buffer::{self, Command};
use super::registers::{CANCEL, CTRL_CANCEL, CTRL_REQ, CTRL_START, START};
use super::standing::Standing;
use crate::bar_map::{COMMAND_BUFFER, CONTROL_AREA, CONTROL_AREA_START, DOORBELL};
use crate::frontend::{Effect, Memory, memory};
use crate::tpm::{Fault, Locality};

pub use state::{CrbDoorbellState, RunningCommand};

const _: () = assert!(CONTROL_AREA_START == CTRL_REQ, "the control area begins with CTRL_REQ");

/// Bytes of the control area, from CTRL_REQ to the end of RSP_ADDR.
const AREA_SIZE: usize = 0x30;

/// Bytes of the doorbell: a write that touches none of the first word rings nothing.
const BELL_SIZE: u32 = 4;

/// The CRB with ACPI start: no registers. The control area lies in the shared memory, too; the guest writes a command
/// and START there, and ACPI's method writes to the doorbell.
///
/// Offsets are BAR0's: [`DOORBELL`] is written, [`CONTROL_AREA`] and [`COMMAND_BUFFER`] are the memory.
///
/// # What always holds
/// 1. A ring reads START and CANCEL once each. Nothing else of the control area is ever looked at: what the guest writes
///    there it says to itself.
/// 2. [`Effect::Execute`] comes only when no command is outstanding, at locality 0, and then [`CrbDoorbell::command`] is
///    one whole command, as it was in the buffer at that moment. [`Effect::Cancel`] comes only while one is outstanding.
/// 3. START is written 1 when a command starts, and 0 when its response is in the buffer; in between it is not touched,
///    but for being written 1 again with the rest of the control area.
/// 4. A response is never another command's: once the guest has cancelled its command and rung without CANCEL while it
///    still runs, `TPM_RC_RETRY` takes the place of its response. Without a cancellation before, that ring is nothing.
/// 5. No access and no response panics or allocates, wherever it goes and however wide it is.
/// 6. What [`CrbDoorbell::state`] exports behaves, imported, as the original would with a fresh control area.
#[derive(Clone, Debug)]
pub struct CrbDoorbell<M> {
    memory: M,
    bar0_address: u32,
    /// What the guest wants of the command that the backend runs.
    running: Option<Standing>,
    /// While the backend runs it; else nothing.
    command: Command,
}

impl<M: Memory> CrbDoorbell<M> {
    /// A TPM after power-on, in a BAR0 that is nowhere yet. There is no register that shows the configuration.
    #[must_use]
    pub fn new(_: CrbConfig, memory: M) -> Self {
        let mut crb = Self { memory, bar0_address: 0, running: None, command: Command::none() };
        crb.reset();
        crb
    }

    /// Power-on; the buffer is empty and the control area fresh. A command that still runs in the backend is forgotten:
    /// its result must not be passed to [`complete`](Self::complete). BAR0 stays where it was last placed.
    pub fn reset(&mut self) {
        self.running = None;
        self.command.wipe();
        buffer::clear(&mut self.memory, COMMAND_BUFFER);
        self.write_fresh_control_page();
    }

    /// BAR0 is at this address now, or nowhere if 0. The control area is written anew, with where the buffer is; START
    /// stays 1 while a command runs.
    pub fn place(&mut self, bar0_address: u32) {
        self.bar0_address = bar0_address;
        self.write_control_area();
    }

    /// Reads any number of bytes. What is not memory gives 0xff.
    pub fn read(&self, offset: u64, data: &mut [u8]) {
        data.fill(0xff);
        memory::read_window(&self.memory, CONTROL_AREA, offset, data);
        memory::read_window(&self.memory, COMMAND_BUFFER, offset, data);
    }

    /// Writes any number of bytes; what is neither memory nor the doorbell drops them. What comes after the doorbell,
    /// when it has an effect, is dropped, too.
    #[must_use]
    pub fn write(&mut self, offset: u64, data: &[u8]) -> Option<Effect> {
        if DOORBELL.part(offset, data.len()).is_some_and(|(at, _)| at < DOORBELL.offset.saturating_add(BELL_SIZE)) {
            let effect = self.ring();
            if effect.is_some() {
                return effect;
            }
        }
        memory::write_window(&mut self.memory, CONTROL_AREA, offset, data);
        memory::write_window(&mut self.memory, COMMAND_BUFFER, offset, data);
        None
    }

    /// The whole command that [`Effect::Execute`] asked to run, until it completes; else empty.
    #[must_use]
    pub fn command(&self) -> &[u8] {
        self.command.bytes()
    }

    /// Whether an [`Effect::Execute`] has not been completed yet.
    #[must_use]
    pub fn is_busy(&self) -> bool {
        self.running.is_some()
    }

    /// Completes the command of the last [`Effect::Execute`]. A response that isn't whole, by its own size field, or
    /// over [`BUFFER_SIZE`](crate::tpm::BUFFER_SIZE) is replaced by a failure, that of a superseded command by a
    /// request to retry. Ignored when no command runs.
    pub fn complete(&mut self, response: &[u8]) {
        if let Some(standing) = self.running {
            standing.respond(&mut self.memory, response);
            self.end();
        }
    }

    /// The byte of BAR0 that tells the guest, and nothing else, that its command still runs; `None` when none runs. A
    /// guest whose VMM does not map the memory reads it here.
    pub(in crate::frontend) fn completion_byte(&self) -> Option<u64> {
        self.is_busy().then_some(in_area(CTRL_START).into())
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

    /// Starts what is in the buffer, or cancels what runs; after that, to start something supersedes what runs. START
    /// need not be set, for drivers that rely on ACPI alone; with CANCEL and without START, the command that was to be
    /// cancelled has ended in between.
    fn ring(&mut self) -> Option<Effect> {
        let start = self.read_word(CTRL_START) & START != 0;
        let cancel = self.read_word(CTRL_CANCEL) & CANCEL != 0;
        if let Some(standing) = self.running {
            self.running = Some(if cancel { standing.cancelled() } else { standing.started_again() });
            return cancel.then_some(Effect::Cancel);
        }
        if cancel && !start {
            return None;
        }
        if !self.command.copy(&self.memory) {
            buffer::respond_fault(&mut self.memory, Fault::CommandSize);
            self.end();
            return None;
        }
        self.running = Some(Standing::Wanted);
        self.write_start();
        Some(Effect::Execute(Locality::ZERO))
    }

    /// The response is in the buffer: the guest is told.
    fn end(&mut self) {
        self.running = None;
        self.command.wipe();
        self.write_start();
    }

    fn read_word(&self, register: u32) -> u32 {
        let mut word = [0; 4];
        self.memory.read(in_area(register), &mut word);
        u32::from_le_bytes(word)
    }

    fn write_start(&mut self) {
        self.memory.write(in_area(CTRL_START), &self.start().to_le_bytes());
    }

    fn start(&self) -> u32 {
        if self.is_busy() { START } else { 0 }
    }

    fn write_fresh_control_page(&mut self) {
        buffer::clear(&mut self.memory, CONTROL_AREA);
        self.write_control_area();
    }

    /// CTRL_REQ, CTRL_STS, CTRL_CANCEL, CTRL_START, INT_ENABLE, INT_STS, CMD_SIZE, CMD_LADDR, CMD_HADDR, RSP_SIZE,
    /// RSP_ADDR.
    fn write_control_area(&mut self) {
        let size = COMMAND_BUFFER.length;
        let address = buffer::address(self.bar0_address);
        let (low, high) = (super::low(address), super::high(address));
        let words = [0, 0, 0, self.start(), 0, 0, size, low, high, size, low, high];
        let mut area = [0; AREA_SIZE];
        for (bytes, word) in area.chunks_exact_mut(4).zip(words) {
            bytes.copy_from_slice(&u32::to_le_bytes(word));
        }
        self.memory.write(in_area(CTRL_REQ), &area);
    }
}

/// The offset in BAR0 of a register of the control area.
const fn in_area(register: u32) -> u32 {
    CONTROL_AREA.offset.saturating_add(register)
}
