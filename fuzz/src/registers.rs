//! Accesses to the register file, against a model of it, and in parallel through export and import.

use vfio_user_tpm::frontend::Effect;
use vfio_user_tpm::frontend::tis::{Tis, TisConfig, TisState};
use vfio_user_tpm::tpm::{Locality, TpmVersion};

use super::tape::Tape;
use super::tis_model::{Asked, Model};

const REGISTERS: [u64; 15] =
    [0x00, 0x08, 0x0c, 0x10, 0x14, 0x18, 0x19, 0x20, 0x24, 0x28, 0x30, 0x80, 0xbc, 0xf00, 0xf04];

pub fn run(data: &[u8]) {
    let mut tape = Tape::new(data);
    let version = if tape.flag() { TpmVersion::V2_0 } else { TpmVersion::V1_2 };
    let config =
        TisConfig { version, vendor_id: 0x1014, device_id: 1, revision: 7, guest_locality_4: tape.byte() & 3 == 3 };
    let mut pair = Pair { tis: Tis::new(config), model: Model::new(config), config };
    while !tape.is_over() {
        pair.step(&mut tape);
        pair.check();
    }
}

struct Pair {
    tis: Tis,
    model: Model,
    config: TisConfig,
}

impl Pair {
    fn step(&mut self, tape: &mut Tape<'_>) {
        let owner = self.model.active().unwrap_or(0);
        match tape.below(15) {
            0 | 1 => {
                let (offset, width) = (offset(tape), tape.below(80).into());
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
                let bits = tape.choose(&[0x02, 0x20, 0x08, 0x10, 0xff]);
                self.write(u64::from(locality) * 0x1000, &[bits]);
            }
            6..=8 => {
                let bits = tape.choose::<u32>(&[0x40, 0x20, 0x02, 1 << 24, 1 << 25, 0x60]);
                self.write(page(owner) + 0x18, &bits.to_le_bytes());
            }
            9 => self.send(owner, tape),
            10 => {
                let length = tape.number32().min(5000);
                self.read_out(owner, length);
            }
            11 => {
                let response = response(tape);
                self.tis.complete(&response);
                self.model.complete(&response);
            }
            12 if tape.below(4) == 0 => {
                self.tis.reset();
                self.model.reset();
            }
            12 => {
                let established = tape.flag();
                self.tis.set_establishment(established);
                self.model.set_establishment(established);
            }
            13 => {
                let (register, bits) =
                    tape.choose::<(u64, u32)>(&[(0x08, 0x8000_0087), (0x08, !0), (0x10, 0x01), (0x10, !0)]);
                self.write(page(owner) + register, &bits.to_le_bytes());
            }
            _ => self.migrate(),
        }
    }

    /// A command whose size field need not be its length.
    fn send(&mut self, owner: u8, tape: &mut Tape<'_>) {
        let size = tape.number32();
        let length = match tape.below(4) {
            0 => tape.number32().min(5000),
            _ => size.clamp(10, 5000),
        };
        let mut command = [&[0x80, 1][..], &size.to_be_bytes(), &[0, 0, 1, 0x7b]].concat();
        command.resize(length as usize, tape.byte());
        // A long one byte by byte would take its time.
        let width = usize::from(tape.below(64)).max(command.len() / 64) + 1;
        for chunk in command.chunks(width) {
            self.write(page(owner) + 0x80, chunk);
        }
    }

    fn read_out(&mut self, owner: u8, length: u32) {
        for _ in 0..length.div_ceil(64) {
            self.read(page(owner) + 0x80, 64);
        }
    }

    fn read(&mut self, offset: u64, width: usize) {
        let (mut real, mut expected) = (vec![0x5a; width], vec![0xa5; width]);
        self.tis.read(offset, &mut real);
        self.model.read(offset, &mut expected);
        assert_eq!(real, expected, "{width} bytes at {offset:#x} in {:?}", self.model);
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        let busy = self.tis.is_busy();
        let effect = self.tis.write(offset, data);
        let expected = self.model.write(offset, data);
        let real = effect.map(|effect| match effect {
            Effect::Execute(locality) => Asked::Execute(locality.number()),
            Effect::Cancel => Asked::Cancel,
            Effect::ResetEstablishment(locality) => Asked::ResetEstablishment(locality.number()),
        });
        assert_eq!(real, expected, "{data:x?} at {offset:#x} in {:?}", self.model);
        match effect {
            Some(Effect::Execute(_)) => assert!(!busy, "two commands at a time"),
            Some(Effect::Cancel) => assert!(busy, "nothing to cancel"),
            _ => {}
        }
    }

    /// The rest goes on in a copy that was exported as JSON and imported.
    fn migrate(&mut self) {
        let state = self.tis.state();
        let json = serde_json::to_string(&state).expect("plain data");
        let read: TisState = serde_json::from_str(&json).expect("just written");
        assert_eq!(read, state);
        self.tis = Tis::from_state(self.config, &read).expect("it was reached");
        assert_eq!(self.tis.state(), state);
    }

    /// What always holds, seen from outside.
    fn check(&mut self) {
        assert_eq!(self.tis.is_busy(), self.model.is_busy());
        assert_eq!(self.tis.command(), self.model.command());
        assert_eq!(self.tis.interrupt_level(), self.model.level());
        let mut active = 0;
        for number in Locality::all().map(Locality::number) {
            self.read(page(number), 1);
            // The registers that have no side effects.
            self.read(page(number) + 0x08, 0x18);
            let mut access = [0];
            self.tis.read(page(number), &mut access);
            active += u8::from(access[0] & 0x20 != 0);
            if access[0] & 0x20 == 0 {
                continue;
            }
            let mut sts = [0; 4];
            self.tis.read(page(number) + 0x18, &mut sts);
            assert_eq!(sts[0] & 0x23, 0, "bits that can only be written");
            let (expect, data) = (sts[0] & 0x08 != 0, sts[0] & 0x10 != 0);
            assert!(!(expect && data) && (sts[0] & 0x80 != 0 || !(expect || data)), "{sts:x?}");
            let burst = u16::from_le_bytes([sts[1], sts[2]]);
            assert!(burst <= 248 && (burst != 0) == (expect || data || sts[0] & 0x40 != 0), "{sts:x?}");
        }
        assert!(active <= 1);
    }
}

fn page(locality: u8) -> u64 {
    u64::from(locality) * 0x1000
}

fn offset(tape: &mut Tape<'_>) -> u64 {
    match tape.below(8) {
        0 => tape.number(),
        1 => tape.u16().into(),
        _ => {
            let locality = tape.below(6);
            page(locality) + tape.choose(&REGISTERS) + u64::from(tape.below(4))
        }
    }
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
