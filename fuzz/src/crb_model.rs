//! A second opinion on the CRB, with and without registers, written from PTP 1.05 and this device's documented choices
//! (docs/device-spec.md), plainly, and without a look at how the program does it. It has the memory, too, and what the
//! guest's other processors write to it each time that the device has looked.

use std::collections::VecDeque;

use vfio_user_tpm::frontend::crb::CrbConfig;

use super::pages::{Race, SIZE};
use super::tis_model::{Asked, size_field, words};

/// What of BAR0 is memory: the control area's page, the buffer, and the log.
const MEMORY: [std::ops::Range<u64>; 2] = [0x8000..0xa000, 0x1_0000..0x2_0000];
const LOG: usize = 0x8000;
const BUFFER: u32 = 0x9000;
const CANCEL: u32 = 0x8048;
const START: u32 = 0x804c;

#[derive(Clone, Debug, PartialEq, Eq)]
enum State {
    Idle,
    Ready,
    Running(Vec<u8>),
    Answered,
    Stopping { ready: bool },
}

#[derive(Clone, Debug)]
#[expect(clippy::struct_excessive_bools, reason = "bits of registers")]
pub struct Model {
    config: CrbConfig,
    doorbell: bool,
    pub memory: Vec<u8>,
    /// The server's.
    log: Vec<u8>,
    races: VecDeque<Race>,
    bar0: u32,
    active: Option<u8>,
    waits: [bool; 5],
    seized: [bool; 5],
    established: bool,
    enable: [u32; 5],
    pending: [u32; 5],
    locked: bool,
    cancel: bool,
    state: State,
    /// The command that runs was cancelled; and then another was to start.
    given_up: bool,
    retry: bool,
}

impl Model {
    pub fn new(config: CrbConfig, doorbell: bool) -> Self {
        let mut model = Self {
            config,
            doorbell,
            memory: vec![0; SIZE],
            log: Vec::new(),
            races: VecDeque::new(),
            bar0: 0,
            active: None,
            waits: [false; 5],
            seized: [false; 5],
            established: false,
            enable: [0; 5],
            pending: [0; 5],
            locked: false,
            cancel: false,
            state: State::Idle,
            given_up: false,
            retry: false,
        };
        model.fresh_control_page();
        model
    }

    pub fn reset(&mut self) {
        let (bar0, established) = (self.bar0, self.established);
        let (mut memory, log) = (std::mem::take(&mut self.memory), std::mem::take(&mut self.log));
        memory[0x1000..].fill(0);
        *self = Self { memory, bar0, established, ..Self::new(self.config, self.doorbell) };
        self.fresh_control_page();
        self.set_log(&log);
    }

    pub fn set_log(&mut self, log: &[u8]) {
        self.log = log.to_vec();
        self.memory[LOG..].fill(0);
        self.memory[LOG..][..log.len()].copy_from_slice(log);
    }

    fn is_memory(&self, offset: u64) -> bool {
        MEMORY.iter().any(|part| part.contains(&offset)) && (self.doorbell || offset >= BUFFER.into())
    }

    /// Of the doorbell's CRB. With registers, nobody owns that page.
    pub fn fresh_control_page(&mut self) {
        if self.doorbell {
            self.memory[..0x1000].fill(0);
            self.write_control_area();
        }
    }

    fn write_control_area(&mut self) {
        let address = self.buffer_address();
        let high = address >> 32;
        let words = [0, 0, 0, u64::from(self.is_busy()), 0, 0, 0x1000, address, high, 0x1000, address, high];
        for (index, word) in words.into_iter().enumerate() {
            self.memory[0x40 + index * 4..][..4].copy_from_slice(&word.to_le_bytes()[..4]);
        }
    }

    pub fn place(&mut self, bar0: u32) {
        self.bar0 = bar0;
        if self.doorbell {
            self.write_control_area();
        }
    }

    /// Whether some locality has an interrupt pending that is enabled.
    pub fn level(&self) -> bool {
        (0..5).any(|locality| self.enable[locality] >> 31 == 1 && self.enable[locality] & self.pending[locality] != 0)
    }

    fn interrupt(&mut self, bits: u32) {
        if let Some(owner) = self.active.map(usize::from) {
            if self.enable[owner] >> 31 == 1 {
                self.pending[owner] |= bits & self.enable[owner];
            }
        }
    }

    pub fn set_establishment(&mut self, established: bool) {
        if established && !self.established {
            self.interrupt(4);
        }
        self.established = established;
    }

    pub fn bar0(&self) -> u32 {
        self.bar0
    }

    pub fn active(&self) -> Option<u8> {
        self.active
    }

    pub fn is_busy(&self) -> bool {
        matches!(self.state, State::Running(_) | State::Stopping { .. })
    }

    pub fn command(&self) -> &[u8] {
        if let State::Running(command) = &self.state { command } else { &[] }
    }

    /// The one byte that tells that the guest's command still runs.
    pub fn tells_busy(&self) -> Option<u64> {
        match (&self.state, self.active) {
            (State::Running(_), _) if self.doorbell => Some(START.into()),
            (State::Running(_), Some(owner)) => Some(u64::from(owner) * 0x1000 + 0x4c),
            _ => None,
        }
    }

    pub fn complete(&mut self, response: &[u8]) {
        match self.state {
            State::Running(_) => {
                let whole = (10..=4096).contains(&response.len()) && size_field(response) == response.len() as u64;
                let response = match (self.retry, whole) {
                    (true, _) => fault(0x922),
                    (false, true) => response.to_vec(),
                    (false, false) => fault(0x101),
                };
                self.answer(&response);
            }
            State::Stopping { ready } => {
                self.state = if ready { State::Ready } else { State::Idle };
                self.interrupt(if ready { 3 } else { 1 });
            }
            _ => {}
        }
    }

    /// The guest writes to what it has mapped.
    pub fn put(&mut self, offset: u32, data: &[u8]) {
        self.memory[(offset - 0x8000) as usize..][..data.len()].copy_from_slice(data);
    }

    /// What the guest writes between the looks of what comes.
    pub fn race(&mut self, races: &[Race]) {
        self.races = races.iter().cloned().collect();
    }

    fn look(&mut self, offset: u32, length: usize) -> Vec<u8> {
        let seen = self.memory[(offset - 0x8000) as usize..][..length].to_vec();
        if let Some((offset, data)) = self.races.pop_front() {
            self.put(offset, &data);
        }
        seen
    }

    fn answer(&mut self, response: &[u8]) {
        self.put(BUFFER, response);
        self.state = State::Answered;
        self.interrupt(1);
        if self.doorbell {
            self.state = State::Idle;
            self.put(START, &[0; 4]);
        }
    }

    /// Reading changes nothing, so each byte can be asked for by itself.
    pub fn byte(&self, offset: u64) -> u8 {
        if self.is_memory(offset) {
            return self.memory[usize::try_from(offset - 0x8000).expect("small")];
        }
        let word = if self.doorbell { None } else { self.word(offset & !3) };
        word.map_or(0xff, |word| word.to_le_bytes()[usize::from(offset.to_le_bytes()[0] & 3)])
    }

    fn word(&self, offset: u64) -> Option<u32> {
        let number = u8::try_from(offset / 0x1000).ok().filter(|number| *number < 5)?;
        let (locality, owner) = (usize::from(number), self.active == Some(number));
        let busy = self.is_busy();
        Some(match offset % 0x1000 {
            0x00 => {
                let assigned = self.active.map_or(0, |active| 2 | u32::from(active) << 2);
                0x80 | assigned | u32::from(!self.established)
            }
            0x08 => 0,
            0x54 => self.pending[locality],
            0x0c => u32::from(owner) | u32::from(self.seized[locality]) << 1,
            0x30 => 0x0002_5911 | u32::from(self.locked) << 19 | u32::from(self.config.revision) << 24,
            0x34 => u32::from(self.config.device_id) << 16 | u32::from(self.config.vendor_id),
            0x38 | 0x3c if owner => 0,
            0x40 if owner => u32::from(self.state == State::Stopping { ready: true }),
            0x44 if owner => u32::from(self.state == State::Idle) << 1,
            0x48 if owner => u32::from(self.cancel),
            0x4c if owner => u32::from(busy),
            0x50 => self.enable[locality],
            0x58 | 0x64 => 0x1000,
            0x5c | 0x68 => u32::try_from(self.buffer_address() & 0xffff_ffff).expect("cut"),
            0x60 | 0x6c => u32::try_from(self.buffer_address() >> 32).expect("cut"),
            _ => return None,
        })
    }

    fn buffer_address(&self) -> u64 {
        if self.bar0 == 0 { 0 } else { u64::from(self.bar0) + 0x9000 }
    }

    pub fn write(&mut self, offset: u64, data: &[u8]) -> Option<Asked> {
        for (address, range) in words(offset, data.len()) {
            let asked = self.write_word(address, &data[range]);
            if asked.is_some() {
                return asked;
            }
        }
        None
    }

    /// What is written to the word that `address` is in.
    fn write_word(&mut self, address: u64, bytes: &[u8]) -> Option<Asked> {
        if self.is_memory(address) {
            self.put(u32::try_from(address).expect("small"), bytes);
            return None;
        }
        if self.doorbell {
            return if address & !3 == 0x5000 { self.ring() } else { None };
        }
        let number = u8::try_from(address / 0x1000).ok().filter(|number| *number < 5)?;
        if number == 4 && !self.config.guest_locality_4 {
            return None;
        }
        let (locality, owner) = (usize::from(number), self.active == Some(number));
        let mut lanes = [None; 4];
        for (lane, byte) in lanes[usize::from(address.to_le_bytes()[0] & 3)..].iter_mut().zip(bytes) {
            *lane = Some(*byte);
        }
        let value = u32::from_le_bytes(lanes.map(|lane| lane.unwrap_or(0)));
        match address & 0xffc {
            0x08 => return self.write_loc_ctrl(number, value & 0xf),
            0x30 => self.locked |= value & 1 << 19 != 0,
            0x40 if owner => self.write_request(value & 3),
            0x48 if owner && lanes[0].is_some() => {
                self.cancel = value & 1 != 0;
                let cancels = self.cancel && matches!(self.state, State::Running(_));
                self.given_up |= cancels;
                return cancels.then_some(Asked::Cancel);
            }
            0x4c if owner && value & 1 != 0 && matches!(self.state, State::Running(_)) => self.retry |= self.given_up,
            0x4c if owner && value & 1 != 0 && matches!(self.state, State::Ready | State::Answered) => {
                return self.start(number);
            }
            0x54 if owner => self.pending[locality] &= !value,
            0x50 if owner => {
                let mut old = self.enable[locality].to_le_bytes();
                for (old, new) in old.iter_mut().zip(lanes) {
                    *old = new.unwrap_or(*old);
                }
                self.enable[locality] = u32::from_le_bytes(old) & 0x8000_000f;
            }
            _ => {}
        }
        None
    }

    fn ring(&mut self) -> Option<Asked> {
        let start = self.look(START, 4)[0] & 1 != 0;
        let cancel = self.look(CANCEL, 4)[0] & 1 != 0;
        match (self.is_busy(), start, cancel) {
            (true, _, true) => {
                self.given_up = true;
                Some(Asked::Cancel)
            }
            (true, _, false) => {
                self.retry |= self.given_up;
                None
            }
            (false, false, true) => None,
            (false, true, _) | (false, false, false) => self.start(0),
        }
    }

    fn start(&mut self, number: u8) -> Option<Asked> {
        let mut seen = self.look(BUFFER, 4096);
        let size = size_field(&seen);
        if !(10..=4096).contains(&size) {
            self.answer(&fault(0x142));
            return None;
        }
        seen.truncate(usize::try_from(size).expect("small"));
        self.state = State::Running(seen);
        (self.given_up, self.retry) = (false, false);
        if self.doorbell {
            self.put(START, &[1, 0, 0, 0]);
        }
        Some(Asked::Execute(number))
    }

    fn write_request(&mut self, bits: u32) {
        let stopping = matches!(self.state, State::Stopping { .. });
        match (&self.state, bits) {
            (State::Running(_), _) | (_, 0 | 3) => {}
            (_, bits) if stopping => self.state = State::Stopping { ready: bits == 1 },
            (_, 1) => {
                self.state = State::Ready;
                self.interrupt(2);
            }
            _ => self.state = State::Idle,
        }
    }

    fn write_loc_ctrl(&mut self, number: u8, bits: u32) -> Option<Asked> {
        let locality = usize::from(number);
        let before = self.active;
        match bits {
            1 => {
                self.seized[locality] = false;
                match before {
                    None => self.active = Some(number),
                    Some(owner) => self.waits[locality] |= owner != number,
                }
            }
            2 if before == Some(number) => {
                self.active = (0..5).rev().find(|&other| self.waits[usize::from(other)]);
                if let Some(next) = self.active {
                    self.waits[usize::from(next)] = false;
                }
            }
            2 => self.waits[locality] = false,
            4 if before.is_none_or(|owner| owner < number) => {
                if let Some(loser) = before {
                    self.seized[usize::from(loser)] = true;
                }
                self.waits[locality] = false;
                self.active = Some(number);
            }
            8 if number >= 3 => return Some(Asked::ResetEstablishment(number)),
            _ => {}
        }
        if before.is_none() || before == self.active {
            return None;
        }
        self.interrupt(8);
        self.cancel = false;
        let runs = matches!(self.state, State::Running(_));
        self.state = if self.is_busy() { State::Stopping { ready: false } } else { State::Idle };
        runs.then_some(Asked::Cancel)
    }
}

fn fault(code: u32) -> Vec<u8> {
    [&[0x80, 0x01][..], &10u32.to_be_bytes(), &code.to_be_bytes()].concat()
}
