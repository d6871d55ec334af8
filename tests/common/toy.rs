//! A device that is only memory, with a region that answers when the test says so.

use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Mutex, MutexGuard};

use mio::{Registry, Waker};
use vfio_user_tpm::vfio_user::{
    Answer, DEVICE_TOKEN, Device, DeviceFailure, DeviceInfo, Interrupts, Irq, MappableArea, Mapping, Region,
    RegionFlags, Ticket,
};

/// Readable and writable memory.
pub const RAM: u32 = 0;
/// Accesses wait for [`Control::release`]; reads then give 0xa5.
pub const SLOW: u32 = 1;
/// Memory that can only be read.
pub const READ_ONLY: u32 = 2;
/// Memory that can only be written.
pub const WRITE_ONLY: u32 = 3;
/// Memory of which [`AREAS`] can be mapped.
pub const MAPPABLE: u32 = 4;
/// A region whose mapping reaches over its end, so that it must not be offered.
pub const BADLY_MAPPABLE: u32 = 5;

pub const REGIONS: u32 = 9;
pub const IRQS: u32 = 5;

/// A line: one vector, masked when it fires.
pub const INTX: u32 = 0;
/// Messages: 4 vectors.
pub const MSI: u32 = 1;
/// Messages: 2048 vectors.
pub const MSIX: u32 = 2;

pub const MAPPABLE_SIZE: u64 = 0x8000;
pub const AREAS: [MappableArea; 2] =
    [MappableArea { offset: 0x2000, size: 0x1000 }, MappableArea { offset: 0x4000, size: 0x2000 }];
/// Where the mappable region begins in its file.
pub const FILE_OFFSET: u64 = 0x8000;

/// Above the largest transfer.
pub const RAM_SIZE: usize = 2 << 20;
pub const SMALL_SIZE: u64 = 8192;

/// What the test sees and says.
#[derive(Debug, Default)]
pub struct State {
    pub connected: u32,
    pub disconnected: u32,
    pub resets: u32,
    pub reads: u32,
    pub begun: u64,
    pub concluded: u64,
    pub released: bool,
    pub failure: Option<&'static str>,
    pub stop_asked: bool,
    /// Indices whose lines are asserted.
    pub lines: Vec<u32>,
    /// Messages to be sent: index and vector.
    pub messages: Vec<(u32, u32)>,
    pub stop_blocked: bool,
}

#[derive(Clone, Debug)]
pub struct Control {
    state: Arc<Mutex<State>>,
    waker: Arc<Waker>,
}

impl Control {
    pub fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// Changes the state, and wakes the device.
    pub fn tell(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.state());
        self.waker.wake().unwrap();
    }

    /// Asserts or deasserts the line of [`INTX`].
    pub fn line(&self, asserted: bool) {
        self.tell(|state| state.lines = if asserted { vec![INTX] } else { vec![] });
    }

    /// Sends a message.
    pub fn message(&self, index: u32, vector: u32) {
        self.tell(|state| state.messages.push((index, vector)));
    }

    /// Lets the accesses to [`SLOW`] go on, also later ones.
    pub fn release(&self) {
        self.tell(|state| state.released = true);
    }
}

#[derive(Debug)]
pub struct ToyDevice {
    control: Control,
    ram: Vec<u8>,
    file: File,
}

impl ToyDevice {
    pub fn new(registry: &Registry) -> (Self, Control) {
        let waker = Arc::new(Waker::new(registry, DEVICE_TOKEN).unwrap());
        let control = Control { state: Arc::default(), waker };
        let file = tempfile::tempfile().unwrap();
        file.set_len(FILE_OFFSET + MAPPABLE_SIZE).unwrap();
        (Self { control: control.clone(), ram: vec![0; RAM_SIZE], file }, control)
    }

    fn begin(&self) -> Answer {
        let mut state = self.control.state();
        state.begun += 1;
        Answer::Later(Ticket(state.begun))
    }
}

impl Device for ToyDevice {
    fn info(&self) -> DeviceInfo {
        DeviceInfo { regions: REGIONS, irqs: IRQS }
    }

    fn region(&self, index: u32) -> Region {
        match index {
            RAM => Region { size: RAM_SIZE as u64, flags: RegionFlags::all() },
            SLOW => Region { size: SMALL_SIZE, flags: RegionFlags::all() },
            READ_ONLY => Region { size: SMALL_SIZE, flags: RegionFlags::READ },
            WRITE_ONLY => Region { size: SMALL_SIZE, flags: RegionFlags::WRITE },
            MAPPABLE | BADLY_MAPPABLE => Region { size: MAPPABLE_SIZE, flags: RegionFlags::all() },
            _ => Region::NONE,
        }
    }

    fn mapping(&self, index: u32) -> Option<Mapping<'_>> {
        match index {
            MAPPABLE => Some(Mapping { file: self.file.as_fd(), offset: FILE_OFFSET, areas: &AREAS }),
            BADLY_MAPPABLE => {
                let areas = const { &[MappableArea { offset: 0x1000, size: MAPPABLE_SIZE }] };
                Some(Mapping { file: self.file.as_fd(), offset: 0, areas })
            }
            _ => None,
        }
    }

    fn irq(&self, index: u32) -> Irq {
        let (count, line) = match index {
            INTX => (1, true),
            MSI => (4, false),
            MSIX => (2048, false),
            3 | 4 => (1, false),
            _ => (0, false),
        };
        Irq { count, maskable: line, automasked: line }
    }

    fn read(&mut self, index: u32, offset: u64, data: &mut [u8]) -> Answer {
        self.control.state().reads += 1;
        if index == SLOW {
            return self.begin();
        }
        if index == MAPPABLE {
            self.file.read_exact_at(data, FILE_OFFSET + offset).unwrap();
            return Answer::Now;
        }
        let offset = usize::try_from(offset).unwrap();
        data.copy_from_slice(&self.ram[offset..offset + data.len()]);
        Answer::Now
    }

    fn write(&mut self, index: u32, offset: u64, data: &[u8]) -> Answer {
        if index == SLOW {
            return self.begin();
        }
        if index == MAPPABLE {
            self.file.write_all_at(data, FILE_OFFSET + offset).unwrap();
            return Answer::Now;
        }
        let offset = usize::try_from(offset).unwrap();
        self.ram[offset..offset + data.len()].copy_from_slice(data);
        Answer::Now
    }

    fn resume(&mut self, ticket: Ticket, data: &mut [u8], must_answer: bool) -> Answer {
        let mut state = self.control.state();
        if !state.released && !must_answer {
            return Answer::Later(ticket);
        }
        state.concluded += 1;
        data.fill(0xa5);
        Answer::Now
    }

    fn reset(&mut self) {
        self.ram.fill(0);
        self.control.state().resets += 1;
    }

    fn interrupts(&mut self, interrupts: &mut dyn Interrupts) {
        let mut state = self.control.state();
        for &index in &state.lines {
            interrupts.line(index);
        }
        for (index, vector) in state.messages.drain(..) {
            interrupts.message(index, vector);
        }
    }

    fn connected(&mut self) {
        self.control.state().connected += 1;
    }

    fn disconnected(&mut self) {
        self.control.state().disconnected += 1;
    }

    fn stop(&mut self) {
        self.control.state().stop_asked = true;
    }

    fn stopped(&self) -> bool {
        !self.control.state().stop_blocked
    }

    fn take_failure(&mut self) -> Option<DeviceFailure> {
        self.control.state().failure.take().map(Into::into)
    }
}
