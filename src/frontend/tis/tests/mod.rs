//! The register file as a guest sees it. `drivers` has the sequences of real drivers, `properties` the invariants that
//! `steps` checks, `state` export and import.

mod commands;
mod drivers;
mod interrupts;
mod localities;
mod properties;
mod registers;
mod state;
mod steps;

use super::{CommandState, InterruptsState, Tis, TisConfig, TisState, TisStateError};
use crate::frontend::{Effect, LocalitiesState};
use crate::tpm::{Header, Locality, TpmVersion};

const ACCESS: u64 = 0x00;
const INT_ENABLE: u64 = 0x08;
const INT_VECTOR: u64 = 0x0c;
const INT_STATUS: u64 = 0x10;
const INTF_CAPABILITY: u64 = 0x14;
const STS: u64 = 0x18;
const DATA_FIFO: u64 = 0x24;
const INTERFACE_ID: u64 = 0x30;
const XDATA_FIFO: u64 = 0x80;
const DID_VID: u64 = 0xf00;
const RID: u64 = 0xf04;

const RELINQUISH: u8 = 0x20;
const BEEN_SEIZED: u8 = 0x10;
const SEIZE: u8 = 0x08;
const REQUEST_USE: u8 = 0x02;

const COMMAND_READY: u8 = 0x40;
const GO: u8 = 0x20;
const RESPONSE_RETRY: u8 = 0x02;
const COMMAND_CANCEL: u32 = 1 << 24;
const RESET_ESTABLISHMENT: u32 = 1 << 25;

const VALID: u8 = 0x80;
const DATA_AVAIL: u8 = 0x10;
const EXPECT: u8 = 0x08;

fn config(version: TpmVersion) -> TisConfig {
    TisConfig { version, vendor_id: 0x1014, device_id: 0x0001, revision: 7, guest_locality_4: false }
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
    tis: Tis,
}

impl Guest {
    fn new(version: TpmVersion) -> Self {
        Self { tis: Tis::new(config(version)) }
    }

    /// A TPM 2.0 that this locality owns.
    fn owning(number: u64) -> Self {
        let mut guest = Self::new(TpmVersion::V2_0);
        guest.write8(number, ACCESS, REQUEST_USE);
        guest
    }

    /// A TPM 2.0 that runs `command` for this locality.
    fn executing(number: u64, command: &[u8]) -> Self {
        let mut guest = Self::owning(number);
        guest.write8(number, STS, COMMAND_READY);
        guest.send(number, command);
        let started = guest.write8(number, STS, GO);
        assert!(matches!(started, Some(Effect::Execute(_))), "{started:?}");
        guest
    }

    fn write(&mut self, number: u64, register: u64, data: &[u8]) -> Option<Effect> {
        self.tis.write(number * 0x1000 + register, data)
    }

    fn write8(&mut self, number: u64, register: u64, value: u8) -> Option<Effect> {
        self.write(number, register, &[value])
    }

    fn write32(&mut self, number: u64, register: u64, value: u32) -> Option<Effect> {
        self.write(number, register, &value.to_le_bytes())
    }

    fn read<const N: usize>(&mut self, number: u64, register: u64) -> [u8; N] {
        // What was in the guest's buffer before must not show through.
        let mut data = [0x5a; N];
        self.tis.read(number * 0x1000 + register, &mut data);
        data
    }

    fn read8(&mut self, number: u64, register: u64) -> u8 {
        self.read::<1>(number, register)[0]
    }

    fn read32(&mut self, number: u64, register: u64) -> u32 {
        u32::from_le_bytes(self.read(number, register))
    }

    fn burst(&mut self, number: u64) -> usize {
        usize::try_from(self.read32(number, STS) >> 8 & 0xffff).expect("16 bits")
    }

    /// Writes all of `bytes` to the FIFO, byte by byte.
    fn send(&mut self, number: u64, bytes: &[u8]) {
        for &byte in bytes {
            assert_eq!(self.write8(number, DATA_FIFO, byte), None);
        }
    }

    /// Reads from the FIFO, byte by byte, while there is data.
    fn receive(&mut self, number: u64) -> Vec<u8> {
        let mut bytes = Vec::new();
        while self.read8(number, STS) & DATA_AVAIL != 0 {
            bytes.push(self.read8(number, DATA_FIFO));
        }
        bytes
    }
}
