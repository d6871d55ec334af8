//! A driver for a CRB TPM over a raw vfio-user client, as an operating system does it: by the registers of locality 0, or by
//! a control area in shared memory and a doorbell; with the memory mapped, or by accesses alone.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::time::Duration;

use super::raw_client::{GET_REGION_INFO, RawClient, words};
use super::tis::BAR0;

pub const LOC_STATE: u64 = 0x00;
pub const LOC_CTRL: u64 = 0x08;
pub const LOC_STS: u64 = 0x0c;
pub const INTF_ID: u64 = 0x30;
pub const CTRL_REQ: u64 = 0x40;
pub const CTRL_STS: u64 = 0x44;
pub const CTRL_CANCEL: u64 = 0x48;
pub const CTRL_START: u64 = 0x4c;
pub const DOORBELL: u64 = 0x5000;
pub const CONTROL_AREA: u64 = 0x8000;
pub const BUFFER: u64 = 0x9000;

/// How the guest starts commands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// By the register `TPM_CRB_CTRL_START_x`.
    Register,
    /// By a doorbell, with the control area in memory.
    Doorbell,
}

impl Start {
    pub const BOTH: [Self; 2] = [Self::Register, Self::Doorbell];

    /// The name of the interface for the server.
    pub fn interface(self) -> &'static str {
        match self {
            Self::Register => "--interface=crb",
            Self::Doorbell => "--interface=crb-doorbell",
        }
    }
}

/// A guest's driver.
pub struct Crb {
    pub client: RawClient,
    start: Start,
    /// The memory that a VMM would map into the guest; without it, everything is an access.
    pub memory: Option<File>,
    /// The locality's page; only locality 0 has a doorbell.
    page: u64,
}

impl Crb {
    /// Negotiates over a client that has just connected, and maps what can be mapped.
    pub fn mapped(client: RawClient, start: Start) -> Self {
        let mut crb = Self::unmapped(client, start);
        // The description, and the capability with two areas.
        let mut body = words(&[80, 0, BAR0, 0, 0, 0, 0, 0]);
        body.resize(80, 0);
        let mut reply = crb.client.request(GET_REGION_INFO, &body);
        assert_eq!(reply.descriptors.len(), 1, "BAR 0 can be mapped");
        crb.memory = Some(File::from(reply.descriptors.remove(0)));
        crb
    }

    /// As [`mapped`](Self::mapped), with accesses only.
    pub fn unmapped(mut client: RawClient, start: Start) -> Self {
        client.negotiate();
        let mut crb = Self { client, start, memory: None, page: 0 };
        if start == Start::Register {
            crb.write32(LOC_CTRL, 1);
            assert_eq!(crb.read32(LOC_STS) & 1, 1, "locality 0 is granted");
        }
        crb
    }

    /// Gives up the locality and takes another.
    pub fn take_locality(&mut self, locality: u8) {
        self.write32(LOC_CTRL, 2);
        self.page = u64::from(locality) * 0x1000;
        self.write32(LOC_CTRL, 1);
        assert_eq!(self.read32(LOC_STS) & 1, 1, "locality {locality} is granted");
    }

    /// Reads what is at an offset of BAR 0 in memory that may be mapped.
    pub fn read_memory(&mut self, offset: u64, length: usize) -> Vec<u8> {
        match &self.memory {
            Some(file) => {
                let mut data = vec![0; length];
                file.read_exact_at(&mut data, offset).expect("the file reaches over BAR 0");
                data
            }
            None => (0..length)
                .step_by(4)
                .flat_map(|at| {
                    let rest = u32::try_from(length - at).unwrap().min(4);
                    self.client.region_read(BAR0, offset + at as u64, rest)
                })
                .collect(),
        }
    }

    pub fn write_memory(&mut self, offset: u64, data: &[u8]) {
        match &self.memory {
            Some(file) => file.write_all_at(data, offset).expect("the file reaches over BAR 0"),
            None => {
                for (chunk, at) in data.chunks(4).zip((offset..).step_by(4)) {
                    self.client.region_write(BAR0, at, chunk);
                }
            }
        }
    }

    /// Reads a register of the locality.
    pub fn read32(&mut self, register: u64) -> u32 {
        let data = match self.start {
            Start::Register => self.client.region_read(BAR0, self.page + register, 4),
            Start::Doorbell => self.read_memory(CONTROL_AREA + register, 4),
        };
        u32::from_le_bytes(data.try_into().unwrap())
    }

    pub fn write32(&mut self, register: u64, value: u32) {
        match self.start {
            Start::Register => self.client.region_write(BAR0, self.page + register, &value.to_le_bytes()),
            Start::Doorbell => self.write_memory(CONTROL_AREA + register, &value.to_le_bytes()),
        }
    }

    /// Starts what is in the buffer.
    pub fn start(&mut self) {
        self.write32(CTRL_START, 1);
        self.ring();
    }

    /// Rings the doorbell, if there is one.
    pub fn ring(&mut self) {
        if self.start == Start::Doorbell {
            self.client.region_write(BAR0, DOORBELL, &1_u32.to_le_bytes());
        }
    }

    /// Sends a command and starts it.
    pub fn begin(&mut self, command: &[u8]) {
        if self.start == Start::Register {
            self.write32(CTRL_REQ, 1);
            assert_eq!(self.read32(CTRL_REQ), 0, "the TPM is ready");
        }
        self.write32(CTRL_CANCEL, 0);
        self.write_memory(BUFFER, command);
        self.start();
    }

    /// Ends the running command early.
    pub fn cancel(&mut self) {
        self.write32(CTRL_CANCEL, 1);
        self.ring();
    }

    /// Waits for the response and reads it.
    pub fn response(&mut self) -> Vec<u8> {
        for polls in 0_u32.. {
            if self.read32(CTRL_START) & 1 == 0 {
                break;
            }
            // Drivers sleep as well; the TPM may need this processor.
            if polls > 20 {
                std::thread::sleep(Duration::from_micros(200));
            }
        }
        let header = self.read_memory(BUFFER, 10);
        let size = u32::from_be_bytes(header[2..6].try_into().unwrap());
        self.read_memory(BUFFER, size as usize)
    }

    pub fn run(&mut self, command: &[u8]) -> Vec<u8> {
        self.begin(command);
        self.response()
    }
}
