//! A device of memory, with regions and interrupts of every kind, and accesses that it answers when it is told to.

use std::cell::RefCell;
use std::fs::File;
use std::os::fd::AsFd;
use std::rc::Rc;

use nix::sys::memfd::{MFdFlags, memfd_create};
use vfio_user_tpm::vfio_user::{
    Answer, Device, DeviceFailure, DeviceInfo, Interrupts, Irq, MappableArea, Mapping, Region, RegionFlags, Ticket,
};

use super::super::tape::Tape;
use super::Other;

const SIZE: usize = 0x8000;
const LATE: u32 = 1;
const AREAS: [MappableArea; 2] =
    [MappableArea { offset: 0x2000, size: 0x1000 }, MappableArea { offset: 0x4000, size: 0x2000 }];
/// It reaches over the end of its region.
const BAD_AREA: [MappableArea; 1] = [MappableArea { offset: 0x1000, size: SIZE as u64 }];

#[derive(Default)]
struct State {
    late: u32,
    lines: Vec<u32>,
    messages: Vec<(u32, u32)>,
    /// Wakings that the device still needs until it has stopped.
    stopping: u8,
    begun: Vec<Ticket>,
    next: u64,
}

pub struct Memory {
    state: Rc<RefCell<State>>,
    content: Vec<u8>,
    file: File,
}

pub struct Control(Rc<RefCell<State>>);

pub fn device() -> (Memory, Control) {
    let state = Rc::<RefCell<State>>::default();
    let file = File::from(memfd_create("fuzz", MFdFlags::MFD_CLOEXEC).expect("a memfd"));
    (Memory { state: state.clone(), content: vec![0; SIZE], file }, Control(state))
}

impl Other for Control {
    fn step(&mut self, tape: &mut Tape<'_>) {
        let mut state = self.0.borrow_mut();
        match tape.below(4) {
            0 => state.late = tape.byte().into(),
            1 => state.lines = (0..3).filter(|_| tape.flag()).collect(),
            2 => {
                let (index, vector) = (tape.below(5).into(), tape.number32() % 2048);
                state.messages.push((index, vector));
            }
            _ => state.stopping = tape.byte(),
        }
    }

    fn finish(&mut self) {
        let mut state = self.0.borrow_mut();
        state.late = 0;
        state.stopping = state.stopping.saturating_sub(1);
    }
}

impl Memory {
    fn answer(&mut self, index: u32) -> Answer {
        let mut state = self.state.borrow_mut();
        if index != LATE || state.late == 0 {
            return Answer::Now;
        }
        state.next += 1;
        let ticket = Ticket(state.next);
        state.begun.push(ticket);
        Answer::Later(ticket)
    }
}

impl Device for Memory {
    fn info(&self) -> DeviceInfo {
        DeviceInfo { regions: 9, irqs: 5 }
    }

    fn region(&self, index: u32) -> Region {
        let flags = match index {
            0 | LATE | 4 | 5 => RegionFlags::all(),
            2 => RegionFlags::READ,
            3 => RegionFlags::WRITE,
            7 => return Region { size: 2 << 20, flags: RegionFlags::all() },
            _ => return Region::NONE,
        };
        Region { size: SIZE as u64, flags }
    }

    fn mapping(&self, index: u32) -> Option<Mapping<'_>> {
        let areas = match index {
            4 => &AREAS[..],
            5 => &BAD_AREA[..],
            _ => return None,
        };
        Some(Mapping { file: self.file.as_fd(), offset: 0x8000, areas })
    }

    fn irq(&self, index: u32) -> Irq {
        let (count, line) = match index {
            0 => (1, true),
            1 => (4, false),
            2 => (2048, false),
            3 => (1, false),
            _ => (0, false),
        };
        Irq { count, maskable: line || index == 1, automasked: line }
    }

    fn read(&mut self, index: u32, offset: u64, data: &mut [u8]) -> Answer {
        let offset = usize::try_from(offset).expect("it is inside") % SIZE;
        for (to, from) in data.iter_mut().zip(self.content.iter().cycle().skip(offset)) {
            *to = *from;
        }
        self.answer(index)
    }

    fn write(&mut self, index: u32, offset: u64, data: &[u8]) -> Answer {
        let offset = usize::try_from(offset).expect("it is inside") % SIZE;
        for (to, from) in self.content.iter_mut().skip(offset).zip(data) {
            *to = *from;
        }
        self.answer(index)
    }

    fn resume(&mut self, ticket: Ticket, _data: &mut [u8], must_answer: bool) -> Answer {
        let mut state = self.state.borrow_mut();
        let place = state.begun.iter().position(|begun| *begun == ticket).expect("it has begun, and not been answered");
        if state.late != 0 && !must_answer {
            state.late -= 1;
            return Answer::Later(ticket);
        }
        state.begun.remove(place);
        Answer::Now
    }

    fn reset(&mut self) {
        assert!(self.state.borrow().begun.is_empty(), "what has begun is answered before a reset");
        self.content.fill(0);
    }

    fn interrupts(&mut self, interrupts: &mut dyn Interrupts) {
        let mut state = self.state.borrow_mut();
        if state.lines.contains(&0) {
            interrupts.line(0);
        }
        for (index, vector) in state.messages.drain(..) {
            if vector < self.irq(index).count {
                interrupts.message(index, vector);
            }
        }
    }

    fn disconnected(&mut self) {
        self.state.borrow_mut().begun.clear();
    }

    fn stopped(&self) -> bool {
        self.state.borrow().stopping == 0
    }

    fn take_failure(&mut self) -> Option<DeviceFailure> {
        None
    }
}
