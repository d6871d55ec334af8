//! A second opinion on the TIS registers, written from TIS 1.3 and PTP 1.05 and this device's documented choices
//! (docs/device-spec.md), plainly, and without a look at how the program does it.

use vfio_user_tpm::frontend::tis::TisConfig;
use vfio_user_tpm::tpm::TpmVersion;

const BUFFER: usize = 4096;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asked {
    Execute(u8),
    Cancel,
    ResetEstablishment(u8),
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Fifo {
    Idle,
    Ready,
    /// Bytes kept, and bytes that came.
    Receiving(Vec<u8>, u64),
    Running(Vec<u8>),
    Answer(Vec<u8>, usize),
    Stopping {
        ready: bool,
    },
}

#[derive(Clone, Debug)]
pub struct Model {
    config: TisConfig,
    active: Option<u8>,
    requests: [bool; 5],
    seized: [bool; 5],
    established: bool,
    enable: [u32; 5],
    vector: [u8; 5],
    pending: [u32; 5],
    locked: bool,
    fifo: Fifo,
}

impl Model {
    pub fn new(config: TisConfig) -> Self {
        Self {
            config,
            active: None,
            requests: [false; 5],
            seized: [false; 5],
            established: false,
            enable: [8; 5],
            vector: [0; 5],
            pending: [0; 5],
            locked: false,
            fifo: Fifo::Idle,
        }
    }

    pub fn reset(&mut self) {
        *self = Self { established: self.established, ..Self::new(self.config) };
    }

    pub fn set_establishment(&mut self, established: bool) {
        self.established = established;
    }

    pub fn active(&self) -> Option<u8> {
        self.active
    }

    pub fn is_busy(&self) -> bool {
        matches!(self.fifo, Fifo::Running(_) | Fifo::Stopping { .. })
    }

    pub fn command(&self) -> &[u8] {
        if let Fifo::Running(command) = &self.fifo { command } else { &[] }
    }

    /// Whether some locality has an interrupt pending that is enabled.
    pub fn level(&self) -> bool {
        (0..5).any(|locality| self.enable[locality] >> 31 == 1 && self.enable[locality] & self.pending[locality] != 0)
    }

    /// What has come true since `before`, the owner and its status then.
    fn interrupt(&mut self, (owner_before, status_before): (Option<u8>, u32)) {
        let Some(owner) = self.active else { return };
        let risen = if owner_before == self.active { self.status() & !status_before } else { 0 };
        let handed_over = owner_before.is_some() && owner_before != self.active;
        let bits = [(0x10, 0x01), (0x80, 0x02), (0x40, 0x80)];
        let of_status: u32 = bits.iter().filter(|(sts, _)| risen & sts != 0).map(|(_, int)| int).sum();
        let locality = usize::from(owner);
        if self.enable[locality] >> 31 == 1 {
            self.pending[locality] |= (of_status | u32::from(handed_over) << 2) & self.enable[locality];
        }
    }

    pub fn complete(&mut self, response: &[u8]) {
        let before = (self.active, self.status());
        self.end(response);
        self.interrupt(before);
    }

    fn end(&mut self, response: &[u8]) {
        match self.fifo {
            Fifo::Running(_) => {
                let whole = (10..=BUFFER).contains(&response.len()) && size_field(response) == response.len() as u64;
                let response = if whole { response.to_vec() } else { self.fault(0x101, 9) };
                self.fifo = Fifo::Answer(response, 0);
            }
            Fifo::Stopping { ready } => self.fifo = if ready { Fifo::Ready } else { Fifo::Idle },
            _ => {}
        }
    }

    pub fn read(&mut self, offset: u64, data: &mut [u8]) {
        data.fill(0xff);
        for (address, range) in words(offset, data.len()) {
            let data = &mut data[range];
            let Some((number, register, lane)) = place(address) else { continue };
            let (locality, owner) = (usize::from(number), self.active == Some(number));
            let value = match register {
                0x00 => self.access(number),
                0x08 => self.enable[locality],
                0x0c => self.vector[locality].into(),
                0x10 => self.pending[locality],
                0x14 if self.is_2_0() => 0x3000_0697,
                0x14 => 0x2000_0697,
                0x18 if owner => self.status(),
                0x24 | 0x80..=0xbc if owner => {
                    for byte in data {
                        *byte = self.take();
                    }
                    continue;
                }
                0x30 if self.is_2_0() => 0x2100 | u32::from(self.locked) << 19,
                0xf00 => u32::from(self.config.device_id) << 16 | u32::from(self.config.vendor_id),
                0xf04 => self.config.revision.into(),
                _ => continue,
            };
            data.copy_from_slice(&value.to_le_bytes()[lane..lane + data.len()]);
        }
    }

    pub fn write(&mut self, offset: u64, data: &[u8]) -> Option<Asked> {
        for (address, range) in words(offset, data.len()) {
            let before = (self.active, self.status());
            let asked = self.write_word(address, &data[range]);
            self.interrupt(before);
            if asked.is_some() {
                return asked;
            }
        }
        None
    }

    fn write_word(&mut self, address: u64, bytes: &[u8]) -> Option<Asked> {
        let (number, register, lane) = place(address)?;
        if number == 4 && !self.config.guest_locality_4 {
            return None;
        }
        let (locality, owner) = (usize::from(number), self.active == Some(number));
        let mut lanes = [None; 4];
        for (lane, byte) in lanes[lane..].iter_mut().zip(bytes) {
            *lane = Some(*byte);
        }
        let value = u32::from_le_bytes(lanes.map(|lane| lane.unwrap_or(0)));
        match register {
            0x00 => return self.write_access(number, lanes[0].unwrap_or(0)),
            0x30 => self.locked |= value & 1 << 19 != 0,
            0x08 if owner => {
                let mut old = self.enable[locality].to_le_bytes();
                for (old, new) in old.iter_mut().zip(lanes) {
                    *old = new.unwrap_or(*old);
                }
                self.enable[locality] = u32::from_le_bytes(old) & 0x8000_009f;
            }
            0x0c if owner => {
                if let Some(vector) = lanes[0] {
                    self.vector[locality] = vector & 0x0f;
                }
            }
            0x10 if owner => self.pending[locality] &= !value,
            0x18 if owner => return self.write_status(number, value),
            0x24 if owner && number != 4 => bytes.iter().for_each(|&byte| self.put(byte)),
            0x80..=0xbc if owner => bytes.iter().for_each(|&byte| self.put(byte)),
            _ => {}
        }
        None
    }

    fn is_2_0(&self) -> bool {
        self.config.version == TpmVersion::V2_0
    }

    fn access(&self, number: u8) -> u32 {
        let locality = usize::from(number);
        let others = self.requests.iter().enumerate().any(|(other, waits)| *waits && other != locality);
        let bits = [
            !self.established,
            self.requests[locality],
            others,
            false,
            self.seized[locality],
            self.active == Some(number),
            false,
            true,
        ];
        bits.iter().rev().fold(0, |value, bit| value << 1 | u32::from(*bit))
    }

    fn write_access(&mut self, number: u8, bits: u8) -> Option<Asked> {
        let locality = usize::from(number);
        let before = self.active;
        if bits & 0x10 != 0 {
            self.seized[locality] = false;
        }
        if bits & 0x08 != 0 {
            if before.is_none_or(|owner| owner < number) {
                if let Some(loser) = before {
                    self.seized[usize::from(loser)] = true;
                }
                self.requests[locality] = false;
                self.active = Some(number);
            }
        } else if bits & 0x20 != 0 {
            if before == Some(number) {
                self.active = (0..5).rev().find(|&other| self.requests[usize::from(other)]);
                if let Some(next) = self.active {
                    self.requests[usize::from(next)] = false;
                }
            } else {
                self.requests[locality] = false;
            }
        } else if bits & 0x02 != 0 {
            match before {
                None => {
                    self.active = Some(number);
                    self.requests[locality] = false;
                }
                Some(owner) => self.requests[locality] |= owner != number,
            }
        }
        if before.is_some() && before != self.active { self.abort(false) } else { None }
    }

    fn write_status(&mut self, number: u8, value: u32) -> Option<Asked> {
        let known = if self.is_2_0() { 0x0300_0062 } else { 0x62 };
        match value & known {
            0x40 => return self.abort(true),
            0x20 => {
                let Fifo::Receiving(kept, came) = &self.fifo else { return None };
                if *came < 10 || *came < size_field(kept) {
                    return None;
                }
                if size_field(kept) == kept.len() as u64 {
                    self.fifo = Fifo::Running(kept.clone());
                    return Some(Asked::Execute(number));
                }
                self.fifo = Fifo::Answer(self.fault(0x142, 0x19), 0);
            }
            0x02 => {
                if let Fifo::Answer(_, read) = &mut self.fifo {
                    *read = 0;
                }
            }
            0x0100_0000 if matches!(self.fifo, Fifo::Running(_)) => return Some(Asked::Cancel),
            0x0200_0000 if number >= 3 => return Some(Asked::ResetEstablishment(number)),
            _ => {}
        }
        None
    }

    fn status(&self) -> u32 {
        let (bits, burst) = match &self.fifo {
            Fifo::Idle | Fifo::Stopping { .. } => (0, 0),
            Fifo::Ready => (0x40, 248),
            Fifo::Running(_) => (0x80, 0),
            Fifo::Receiving(kept, came) => {
                let more = if *came < 6 { 4096 - came } else { size_field(kept).max(10) - came };
                (if more > 0 { 0x88 } else { 0x80 }, more)
            }
            Fifo::Answer(response, read) => {
                let more = response.len() - read;
                (if more > 0 { 0x90 } else { 0x80 }, more as u64)
            }
        };
        bits | u32::try_from(burst.min(248)).expect("small") << 8 | if self.is_2_0() { 1 << 26 } else { 0 }
    }

    fn put(&mut self, byte: u8) {
        match &mut self.fifo {
            Fifo::Ready => self.fifo = Fifo::Receiving(vec![byte], 1),
            Fifo::Receiving(kept, came) if *came < 6 || *came < size_field(kept).max(10) => {
                *came += 1;
                if kept.len() < BUFFER {
                    kept.push(byte);
                }
            }
            _ => {}
        }
    }

    fn take(&mut self) -> u8 {
        let Fifo::Answer(response, read) = &mut self.fifo else { return 0xff };
        let byte = response.get(*read).copied();
        *read += usize::from(byte.is_some());
        byte.unwrap_or(0xff)
    }

    fn abort(&mut self, ready: bool) -> Option<Asked> {
        let asked = matches!(self.fifo, Fifo::Running(_)).then_some(Asked::Cancel);
        self.fifo = match self.fifo {
            Fifo::Running(_) | Fifo::Stopping { .. } => Fifo::Stopping { ready },
            _ if ready => Fifo::Ready,
            _ => Fifo::Idle,
        };
        asked
    }

    fn fault(&self, rc_2_0: u32, rc_1_2: u32) -> Vec<u8> {
        let (tag, code) = if self.is_2_0() { ([0x80, 0x01], rc_2_0) } else { ([0x00, 0xc4], rc_1_2) };
        [&tag[..], &10u32.to_be_bytes(), &code.to_be_bytes()].concat()
    }
}

/// Locality, register word and byte in it.
fn place(address: u64) -> Option<(u8, u64, usize)> {
    let number = u8::try_from(address / 0x1000).ok().filter(|number| *number < 5)?;
    Some((number, address & 0xffc, usize::from(address.to_le_bytes()[0] & 3)))
}

/// The size field of a command or response of at least 6 bytes.
pub fn size_field(message: &[u8]) -> u64 {
    message[2..6].iter().fold(0, |size, byte| size << 8 | u64::from(*byte))
}

/// The parts of an access that lie in one 32-bit word each: address and range in the data.
pub fn words(offset: u64, length: usize) -> Vec<(u64, std::ops::Range<usize>)> {
    let mut words: Vec<(u64, std::ops::Range<usize>)> = Vec::new();
    for index in 0..length {
        let Some(address) = offset.checked_add(index as u64) else { break };
        match words.last_mut() {
            Some((_, range)) if address % 4 != 0 => range.end += 1,
            _ => words.push((address, index..index + 1)),
        }
    }
    words
}
