//! Both CRB interfaces: accesses, and what the guest does to the memory between them and while they are served, against
//! a model, and in parallel through export and import.

use vfio_user_tpm::frontend::crb::{Crb, CrbConfig, CrbDoorbell, CrbDoorbellState, CrbState};
use vfio_user_tpm::frontend::{Effect, RegisterFile, Registers};

use super::crb_model::Model;
use super::pages::{Pages, Race};
use super::tape::Tape;
use super::tis_model::Asked;

const BUFFER: u32 = 0x9000;
const CANCEL: u32 = 0x8048;
const START: u32 = 0x804c;

pub fn run(data: &[u8]) {
    let mut tape = Tape::new(data);
    let doorbell = tape.flag();
    let config = CrbConfig { vendor_id: 0x1014, device_id: 1, revision: 7, guest_locality_4: tape.byte() & 3 == 3 };
    let real = Registers::new(if doorbell {
        RegisterFile::CrbDoorbell(CrbDoorbell::new(config, Pages::new()))
    } else {
        RegisterFile::Crb(Crb::new(config, Pages::new()))
    });
    let mut pair = Pair { real, model: Model::new(config, doorbell), config, doorbell };
    while !tape.is_over() {
        pair.step(&mut tape);
        pair.check();
    }
}

struct Pair {
    real: Registers<Pages>,
    model: Model,
    config: CrbConfig,
    doorbell: bool,
}

impl Pair {
    fn step(&mut self, tape: &mut Tape<'_>) {
        match tape.below(16) {
            0 | 1 => {
                let (offset, width) = (offset(tape), usize::from(tape.below(80)));
                self.read(offset, width);
            }
            2 | 3 => {
                let offset = offset(tape);
                let count = tape.below(80).into();
                let data = tape.bytes(count);
                self.write(offset, data);
            }
            4 | 5 => {
                let locality = tape.below(5);
                let bits = tape.choose(&[1, 2, 4, 8, 0xff]);
                self.write(page(locality) + 0x08, &[bits]);
            }
            6..=8 => self.control(tape),
            9 => {
                let race = race(tape);
                self.put(&race);
            }
            10 | 11 => self.start(tape),
            12 | 13 => {
                let response = response(tape);
                self.real.complete(&response);
                self.model.complete(&response);
            }
            14 => self.migrate(),
            _ => self.rare(tape),
        }
    }

    /// A control register of the owner, or a word of the control area and then the bell.
    fn control(&mut self, tape: &mut Tape<'_>) {
        if self.doorbell {
            let offset = tape.choose(&[START, CANCEL]);
            self.put(&(offset, u32::from(tape.below(3)).to_le_bytes().to_vec()));
            if tape.flag() {
                self.write(0x5000, &[1]);
            }
        } else {
            let (register, value) = tape.choose::<(u64, u32)>(&[
                (0x40, 1),
                (0x40, 2),
                (0x40, 3),
                (0x48, 1),
                (0x48, 0),
                (0x4c, 1),
                (0x50, !0),
                (0x54, !0),
            ]);
            self.write(page(self.owner()) + register, &value.to_le_bytes());
        }
    }

    /// A command whose size field need not be its length, while the guest's other processors write.
    fn start(&mut self, tape: &mut Tape<'_>) {
        let size = tape.number32();
        let mut command = [&[0x80, 1][..], &size.to_be_bytes(), &[0, 0, 1, 0x7b]].concat();
        command.resize(size.clamp(10, 4096) as usize, tape.byte());
        self.put(&(BUFFER, command));
        let races: Vec<Race> = (0..tape.below(4)).map(|_| race(tape)).collect();
        self.model.race(&races);
        *self.pages().races.borrow_mut() = races.into();
        if self.doorbell {
            self.put(&(CANCEL, vec![0]));
            self.put(&(START, vec![tape.below(2)]));
            self.write(0x5000, &[1, 0, 0, 0]);
        } else {
            self.write(page(self.owner()) + 0x4c, &[1, 0, 0, 0]);
        }
        self.model.race(&[]);
        self.pages().races.borrow_mut().clear();
    }

    fn rare(&mut self, tape: &mut Tape<'_>) {
        match tape.below(6) {
            0 => {
                self.real.reset();
                self.model.reset();
            }
            1 => {
                let established = tape.flag();
                self.real.set_establishment(established);
                self.model.set_establishment(established);
            }
            2 => {
                let address = tape.number32();
                self.real.place(address);
                self.model.place(address);
            }
            4 => {
                let log = tape.short();
                self.real.set_log(log).expect("it is short");
                self.model.set_log(log);
            }
            5 => {
                let at = tape.choose(&[0xfff8_u64, 0x1_0000, 0x1_1ffe, 0x1_fff8]) + u64::from(tape.below(8));
                let count = tape.below(80).into();
                let data = tape.bytes(count);
                self.write(at, data);
                self.read(at, data.len());
            }
            _ => {
                // From somewhere in the registers to somewhere behind the buffer.
                let (offset, byte) = (u64::from(tape.u16()) & 0x5fff, tape.byte());
                self.write(offset, &vec![byte; 0xa100 - usize::try_from(offset).expect("small")]);
            }
        }
    }

    /// The rest goes on in a copy that was exported as JSON and imported, in a memory of its own.
    fn migrate(&mut self) {
        let pages = Pages::new();
        let bar0 = self.model.bar0();
        let log = self.real.log_state();
        match self.real.file() {
            RegisterFile::Tis(..) => unreachable!("a CRB"),
            RegisterFile::Crb(crb) => {
                // Not ours: it stays as it was.
                pages.bytes.borrow_mut()[..0x1000].copy_from_slice(&crb.memory().bytes.borrow()[..0x1000]);
                let json = serde_json::to_string(&crb.state()).expect("plain data");
                let state: CrbState = serde_json::from_str(&json).expect("just written");
                assert_eq!(state, crb.state());
                let copy = Crb::from_state(self.config, &state, pages).expect("it was reached");
                assert_eq!(copy.state(), state);
                self.real = Registers::new(RegisterFile::Crb(copy));
            }
            RegisterFile::CrbDoorbell(crb) => {
                let json = serde_json::to_string(&crb.state()).expect("plain data");
                let state: CrbDoorbellState = serde_json::from_str(&json).expect("just written");
                assert_eq!(state, crb.state());
                let copy = CrbDoorbell::from_state(&state, pages).expect("it was reached");
                assert_eq!(copy.state(), state);
                self.real = Registers::new(RegisterFile::CrbDoorbell(copy));
                self.model.fresh_control_page();
            }
        }
        self.real.restore_log(log.as_ref()).expect("it was reached");
        assert_eq!(self.real.log_state(), log);
        self.real.place(bar0);
        self.model.place(bar0);
    }

    fn owner(&self) -> u8 {
        self.model.active().unwrap_or(0)
    }

    fn pages(&self) -> &Pages {
        self.real.memory()
    }

    fn put(&mut self, (offset, data): &Race) {
        self.pages().put(*offset, data);
        self.model.put(*offset, data);
    }

    fn read(&mut self, offset: u64, width: usize) {
        let mut real = vec![0x5a; width];
        self.real.read(offset, &mut real);
        for (index, real) in (0..).zip(real) {
            let expected = offset.checked_add(index).map_or(0xff, |at| self.model.byte(at));
            assert_eq!(real, expected, "byte {index} at {offset:#x}");
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        let busy = self.real.is_busy();
        let effect = self.real.write(offset, data);
        let expected = self.model.write(offset, data);
        let real = effect.map(|effect| match effect {
            Effect::Execute(locality) => Asked::Execute(locality.number()),
            Effect::Cancel => Asked::Cancel,
            Effect::ResetEstablishment(locality) => Asked::ResetEstablishment(locality.number()),
        });
        assert_eq!(real, expected, "{data:x?} at {offset:#x}");
        match effect {
            Some(Effect::Execute(_)) => assert!(!busy, "two commands at a time"),
            Some(Effect::Cancel) => assert!(busy, "nothing to cancel"),
            _ => {}
        }
    }

    fn check(&mut self) {
        assert_eq!(self.real.interrupt_level(), self.model.level());
        assert_eq!(self.real.is_busy(), self.model.is_busy());
        assert_eq!(self.real.command(), self.model.command());
        assert!(*self.pages().bytes.borrow() == self.model.memory, "the memory differs");
        // The owner's page, which has more to say, and one more.
        for number in [self.owner(), (self.owner() + 1) % 5] {
            self.read(page(number), 0x84);
            let start = page(number) + 0x4c;
            assert_eq!(self.real.asks_for_completion(start, 1), self.model.tells_busy() == Some(start));
        }
        assert_eq!(self.real.asks_for_completion(CANCEL.into(), 8), self.model.tells_busy() == Some(START.into()));
        assert_eq!(self.real.asks_for_completion(0, usize::MAX), self.model.tells_busy().is_some());
    }
}

fn page(locality: u8) -> u64 {
    u64::from(locality) * 0x1000
}

fn offset(tape: &mut Tape<'_>) -> u64 {
    match tape.below(8) {
        0 => tape.number(),
        1 => tape.u16().into(),
        2 => tape.choose(&[0x4ffc_u64, 0x5000, 0x5004, 0x8000, 0x8040, 0x9000, 0x9ffc]) + u64::from(tape.below(8)),
        _ => {
            let locality = tape.below(6);
            page(locality) + u64::from(tape.below(0x80))
        }
    }
}

/// A few bytes somewhere in the memory, mostly where it matters.
fn race(tape: &mut Tape<'_>) -> Race {
    let offset = match tape.below(4) {
        0 => 0x8000 + u32::from(tape.u16()) % 0x2000,
        1 => tape.choose(&[START, CANCEL]),
        _ => BUFFER + u32::from(tape.below(12)),
    };
    let left = 0x1000 - offset as usize % 0x1000;
    let count = usize::from(tape.below(8)).min(left);
    (offset, tape.bytes(count).to_vec())
}

fn response(tape: &mut Tape<'_>) -> Vec<u8> {
    if tape.below(4) == 0 {
        return tape.short().to_vec();
    }
    let size = tape.number32().clamp(10, 5000);
    let mut response = [&[0x80, 1][..], &size.to_be_bytes(), &tape.u32().to_be_bytes()].concat();
    response.resize(size as usize, tape.byte());
    response
}
