//! What always holds, under arbitrary access sequences.

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;
use crate::tpm::BUFFER_SIZE;

/// What can happen to the register file.
#[derive(Clone, Debug)]
enum Step {
    Read {
        offset: u64,
        len: usize,
    },
    Write {
        offset: u64,
        data: Vec<u8>,
    },
    /// A write to `TPM_STS_x` of the active locality, so that sequences get somewhere.
    Sts(u32),
    /// A whole command from the active locality; it counts only after `commandReady`.
    Send {
        size: u32,
    },
    Complete {
        response: Vec<u8>,
    },
    Establish(bool),
    Reset,
}

/// Mostly register addresses, sometimes any.
fn offset() -> impl Strategy<Value = u64> {
    let register =
        prop::sample::select(vec![0, 8, 0x0c, 0x10, 0x14, 0x18, 0x20, 0x24, 0x28, 0x30, 0x80, 0xbc, 0xf00, 0xf04]);
    prop_oneof![
        8 => (0..5u64, register, 0..4u64).prop_map(|(locality, register, lane)| locality * 0x1000 + register + lane),
        1 => 0..Tis::SIZE + 8,
        1 => any::<u64>(),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    let command_bits = prop::sample::select(vec![0x40, 0x40, 0x20, 0x20, 0x02, COMMAND_CANCEL, RESET_ESTABLISHMENT]);
    let access_bits = prop::sample::select(vec![RELINQUISH, BEEN_SEIZED, SEIZE, REQUEST_USE, REQUEST_USE]);
    prop_oneof![
        4 => (offset(), 0..80usize).prop_map(|(offset, len)| Step::Read { offset, len }),
        2 => (offset(), vec(any::<u8>(), 0..80)).prop_map(|(offset, data)| Step::Write { offset, data }),
        16 => command_bits.prop_map(Step::Sts),
        3 => (0..5u64, access_bits).prop_map(|(l, bits)| Step::Write { offset: l * 0x1000, data: vec![bits] }),
        8 => (0..600u32).prop_map(|size| Step::Send { size }),
        1 => vec(any::<u8>(), 0..40).prop_map(|response| Step::Complete { response }),
        4 => (10..600u32).prop_map(|size| Step::Complete { response: message(size) }),
        1 => any::<bool>().prop_map(Step::Establish),
        1 => Just(Step::Reset),
    ]
}

/// Follows what the device would see, and checks it.
struct Checked {
    guest: Guest,
    outstanding: bool,
    /// A command was started and its locality has kept the TPM since.
    owner_of_command: Option<u64>,
}

impl Checked {
    fn active(&mut self) -> Vec<u64> {
        (0..5).filter(|&number| self.guest.read8(number, ACCESS) & 0x20 != 0).collect()
    }

    /// The page of the active locality, of locality 0 when there is none.
    fn active_page(&mut self) -> u64 {
        self.active().first().map_or(0, |number| number * 0x1000)
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        match self.guest.tis.write(offset, data) {
            Some(Effect::Execute(locality)) => {
                assert!(!self.outstanding, "one command at a time");
                self.outstanding = true;
                self.owner_of_command = Some(locality.number().into());
                assert_eq!(self.active(), [u64::from(locality.number())]);
                assert!(Header::of_whole(self.guest.tis.command()).is_some(), "a whole command");
            }
            Some(Effect::Cancel) => assert!(self.outstanding, "something to cancel"),
            Some(Effect::ResetEstablishment(locality)) => assert!(locality.number() >= 3),
            None => {}
        }
    }

    fn run(&mut self, step: Step) {
        match step {
            Step::Read { offset, len } => self.guest.tis.read(offset, &mut vec![0; len]),
            Step::Write { offset, data } => self.write(offset, &data),
            Step::Sts(bits) => {
                let page = self.active_page();
                self.write(page + STS, &bits.to_le_bytes());
            }
            Step::Send { size } => {
                let page = self.active_page();
                let mut command = Header { tag: 0x8001, size, code: 0x17b }.to_bytes().to_vec();
                command.resize(usize::try_from(size).expect("small").max(command.len()), 0xaa);
                command.chunks(64).for_each(|chunk| self.write(page + XDATA_FIFO, chunk));
            }
            Step::Complete { response } => {
                if self.outstanding {
                    self.guest.tis.complete(&response);
                    self.outstanding = false;
                }
            }
            Step::Establish(established) => self.guest.tis.set_establishment(established),
            Step::Reset => {
                self.guest.tis.reset();
                self.outstanding = false;
            }
        }
        self.check();
    }

    fn check(&mut self) {
        let active = self.active();
        assert!(active.len() <= 1, "at most one active locality, not {active:?}");
        assert_eq!(self.guest.tis.is_busy(), self.outstanding);
        if self.owner_of_command.is_some_and(|owner| active != [owner]) {
            self.owner_of_command = None;
        }
        for number in 0..5 {
            let sts = self.guest.read32(number, STS);
            if !active.contains(&number) {
                assert_eq!(sts, 0xffff_ffff);
                continue;
            }
            let [status, burst, burst_high, upper] = sts.to_le_bytes();
            assert_eq!(status & 0x23, 0, "bits that read 0");
            assert_eq!(upper, 0x04, "the family");
            assert!(burst <= 248 && burst_high == 0);
            let expect = status & EXPECT != 0;
            let data = status & DATA_AVAIL != 0;
            assert!(!(expect && data), "Expect and dataAvail");
            if expect || data {
                assert_ne!(status & VALID, 0);
                assert_eq!(status & COMMAND_READY, 0);
            }
            if status & COMMAND_READY != 0 {
                assert_eq!(status, COMMAND_READY, "what Linux takes as cancelled");
            }
            assert_eq!(burst != 0, expect || data || status == COMMAND_READY, "burst where bytes can go");
            assert!(!(self.outstanding && burst != 0), "nothing to transfer while the backend runs");
            if self.outstanding && self.owner_of_command.is_none() {
                assert_eq!(status, 0, "another's command shows nothing");
            }
        }
    }
}

proptest! {
    #[test]
    fn the_invariants_hold_under_any_accesses(
        steps in vec(step(), 1..120),
        guest_locality_4 in any::<bool>(),
    ) {
        let tis = Tis::new(TisConfig { guest_locality_4, ..config(TpmVersion::V2_0) });
        let mut checked = Checked { guest: Guest { tis }, outstanding: false, owner_of_command: None };
        for step in steps {
            checked.run(step);
        }
    }

    #[test]
    fn locality_4_is_never_active_unless_opened(steps in vec(step(), 1..60)) {
        let mut checked =
            Checked { guest: Guest::new(TpmVersion::V2_0), outstanding: false, owner_of_command: None };
        for step in steps {
            checked.run(step);
            prop_assert_eq!(checked.guest.read8(4, ACCESS) & 0x32, 0);
        }
    }

    #[test]
    fn a_command_and_its_response_arrive_whole_by_any_mix_of_widths(
        size in 10..u32::try_from(BUFFER_SIZE).expect("4096") + 1,
        accesses in vec((1..9usize, 0..64u64), 1..40),
    ) {
        let command = message(size);
        let mut guest = Guest::owning(2);
        guest.write8(2, STS, COMMAND_READY);
        // Every access lies inside the extended FIFO.
        let mut accesses = accesses.iter().cycle().map(|&(width, at)| (width, XDATA_FIFO + at.min(56)));

        let mut rest = &command[..];
        while !rest.is_empty() {
            prop_assert_eq!(guest.read8(2, STS) & !VALID & !COMMAND_READY, if rest == command { 0 } else { EXPECT });
            let (width, register) = accesses.next().expect("endless");
            let (now, after) = rest.split_at(width.min(rest.len()));
            prop_assert_eq!(guest.write(2, register, now), None);
            rest = after;
        }
        prop_assert_eq!(guest.write8(2, STS, GO), Some(Effect::Execute(locality(2))));
        prop_assert_eq!(guest.tis.command(), &command[..]);

        guest.tis.complete(&command);
        let mut response = Vec::new();
        while response.len() < command.len() {
            prop_assert_eq!(guest.read8(2, STS), VALID | DATA_AVAIL);
            let (width, register) = accesses.next().expect("endless");
            let mut data = vec![0; width.min(command.len() - response.len())];
            guest.tis.read(0x2000 + register, &mut data);
            response.extend(data);
        }
        prop_assert_eq!(response, command);
        prop_assert_eq!(guest.read8(2, STS), VALID);
    }
}
