//! The register file as a guest sees it, and its sibling without registers in `doorbell`. `drivers` has the sequences of
//! real drivers, `properties` the invariants that `steps` checks, `state` export and import.

mod commands;
mod doorbell;
mod drivers;
mod interrupts;
mod localities;
mod properties;
mod registers;
mod state;
mod steps;

use super::{BufferStateError, CommandState, Crb, CrbConfig, CrbState, CrbStateError, Standing};
use crate::bar_map::COMMAND_BUFFER;
use crate::frontend::memory::pages::Pages;
use crate::frontend::{Effect, LocalitiesState};
use crate::tpm::{Header, Locality};

const LOC_STATE: u64 = 0x00;
const LOC_CTRL: u64 = 0x08;
const LOC_STS: u64 = 0x0c;
const INTF_ID: u64 = 0x30;
const CTRL_EXT: u64 = 0x38;
const CTRL_REQ: u64 = 0x40;
const CTRL_STS: u64 = 0x44;
const CTRL_CANCEL: u64 = 0x48;
const CTRL_START: u64 = 0x4c;
const INT_ENABLE: u64 = 0x50;
const INT_STS: u64 = 0x54;
const CTRL_CMD_SIZE: u64 = 0x58;
const CTRL_CMD_LADDR: u64 = 0x5c;
const CTRL_CMD_HADDR: u64 = 0x60;
const CTRL_RSP_SIZE: u64 = 0x64;
const CTRL_RSP_ADDR: u64 = 0x68;

const REQUEST_ACCESS: u32 = 1 << 0;
const RELINQUISH: u32 = 1 << 1;
const SEIZE: u32 = 1 << 2;
const RESET_ESTABLISHMENT: u32 = 1 << 3;

const CMD_READY: u32 = 1 << 0;
const GO_IDLE: u32 = 1 << 1;
const IDLE: u32 = 1 << 1;

/// Where the guest has put BAR0.
const BAR0: u32 = 0xfe80_0000;

fn config() -> CrbConfig {
    CrbConfig { vendor_id: 0x1014, device_id: 0x0001, revision: 7, guest_locality_4: false }
}

fn locality(number: u8) -> Locality {
    Locality::new(number).expect("0 to 4")
}

/// A whole message of `size` bytes with recognisable contents.
fn message(size: u32) -> Vec<u8> {
    let header = Header { tag: 0x8001, size, code: 0x17b }.to_bytes();
    let body = (10..size).map(|i| u8::try_from(i % 251).expect("below 251"));
    header.into_iter().chain(body).collect()
}

/// A guest in front of the registers.
struct Guest {
    crb: Crb<Pages>,
}

impl Guest {
    fn new() -> Self {
        let mut crb = Crb::new(config(), Pages::new());
        crb.place(BAR0);
        Self { crb }
    }

    /// A TPM that this locality owns.
    fn owning(number: u64) -> Self {
        let mut guest = Self::new();
        guest.write32(number, LOC_CTRL, REQUEST_ACCESS);
        guest
    }

    /// A TPM that this locality owns and has made ready.
    fn ready(number: u64) -> Self {
        let mut guest = Self::owning(number);
        guest.write32(number, CTRL_REQ, CMD_READY);
        guest
    }

    /// A TPM that runs `command` for this locality.
    fn executing(number: u64, command: &[u8]) -> Self {
        let mut guest = Self::ready(number);
        let started = guest.start(number, command);
        assert!(matches!(started, Some(Effect::Execute(_))), "{started:?}");
        guest
    }

    fn write(&mut self, number: u64, register: u64, data: &[u8]) -> Option<Effect> {
        self.crb.write(number * 0x1000 + register, data)
    }

    fn write32(&mut self, number: u64, register: u64, value: u32) -> Option<Effect> {
        self.write(number, register, &value.to_le_bytes())
    }

    fn read<const N: usize>(&self, number: u64, register: u64) -> [u8; N] {
        // What was in the guest's buffer before must not show through.
        let mut data = [0x5a; N];
        self.crb.read(number * 0x1000 + register, &mut data);
        data
    }

    fn read32(&self, number: u64, register: u64) -> u32 {
        u32::from_le_bytes(self.read(number, register))
    }

    /// Puts bytes into the mapped buffer.
    fn put(&mut self, bytes: &[u8]) {
        self.crb.memory_mut().put(COMMAND_BUFFER.offset, bytes);
    }

    /// Puts a command into the mapped buffer and writes START.
    fn start(&mut self, number: u64, command: &[u8]) -> Option<Effect> {
        self.put(command);
        self.write32(number, CTRL_START, 1)
    }

    /// What is in the mapped buffer.
    fn buffer(&self, len: usize) -> &[u8] {
        self.crb.memory().at(COMMAND_BUFFER.offset, len)
    }
}
