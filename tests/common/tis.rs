//! A driver for a TIS TPM over a raw vfio-user client, register by register as an operating system does it.

use std::time::Duration;

use super::raw_client::{DEVICE_RESET, RawClient};

pub const BAR0: u32 = 0;
pub const CONFIG: u32 = 7;

pub const ACCESS: u64 = 0x00;
pub const STS: u64 = 0x18;
pub const DATA_FIFO: u64 = 0x24;
pub const DID_VID: u64 = 0xf00;

pub const ACTIVE_LOCALITY: u8 = 0x20;
const REQUEST_USE: u8 = 0x02;

pub const COMMAND_READY: u32 = 0x40;
pub const GO: u32 = 0x20;
pub const STS_VALID: u32 = 0x80;
pub const DATA_AVAIL: u32 = 0x10;
pub const EXPECT: u32 = 0x08;

/// One locality of a TPM.
pub struct Tis {
    pub client: RawClient,
    page: u64,
}

impl Tis {
    /// Takes locality 0 over a client that has just connected.
    pub fn new(mut client: RawClient) -> Self {
        client.negotiate();
        let mut tis = Self { client, page: 0 };
        tis.take_locality(0);
        tis
    }

    /// Gives up the locality and takes another.
    pub fn take_locality(&mut self, locality: u8) {
        self.write8(ACCESS, ACTIVE_LOCALITY);
        self.page = u64::from(locality) * 0x1000;
        self.write8(ACCESS, REQUEST_USE);
        assert_ne!(self.read8(ACCESS) & ACTIVE_LOCALITY, 0, "locality {locality} is granted");
    }

    pub fn read8(&mut self, register: u64) -> u8 {
        self.client.region_read(BAR0, self.page + register, 1)[0]
    }

    pub fn write8(&mut self, register: u64, value: u8) {
        self.client.region_write(BAR0, self.page + register, &[value]);
    }

    pub fn read32(&mut self, register: u64) -> u32 {
        u32::from_le_bytes(self.client.region_read(BAR0, self.page + register, 4).try_into().unwrap())
    }

    pub fn write32(&mut self, register: u64, value: u32) {
        self.client.region_write(BAR0, self.page + register, &value.to_le_bytes());
    }

    fn wait_for(&mut self, bits: u32) {
        for polls in 0_u32.. {
            if self.read32(STS) & bits == bits {
                return;
            }
            // Drivers sleep as well; the TPM may need this processor.
            if polls > 20 {
                std::thread::sleep(Duration::from_micros(200));
            }
        }
    }

    /// Sends a command and starts it.
    pub fn begin(&mut self, command: &[u8]) {
        self.write32(STS, COMMAND_READY);
        self.wait_for(COMMAND_READY);
        for &byte in command {
            assert_ne!(self.read32(STS) & (EXPECT | COMMAND_READY), 0, "the TPM wants more of the command");
            self.write8(DATA_FIFO, byte);
        }
        assert_eq!(self.read32(STS) & (STS_VALID | EXPECT), STS_VALID, "the TPM has the whole command");
        self.write32(STS, GO);
    }

    /// Waits for the response and reads it.
    pub fn response(&mut self) -> Vec<u8> {
        self.wait_for(STS_VALID | DATA_AVAIL);
        let mut response = Vec::new();
        while self.read32(STS) & DATA_AVAIL != 0 {
            response.push(self.read8(DATA_FIFO));
        }
        response
    }

    pub fn run(&mut self, command: &[u8]) -> Vec<u8> {
        self.begin(command);
        self.response()
    }

    /// Resets the device and takes the locality again.
    pub fn reset(&mut self) {
        self.client.request(DEVICE_RESET, &[]).ok();
        self.take_locality(u8::try_from(self.page / 0x1000).unwrap());
    }
}
