//! Arbitrary sequences of what can happen to the register file, and a device that checks what always holds after each.

use std::ops::Range;

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;
use crate::tpm::BUFFER_SIZE;

/// One thing that happens to the register file.
#[derive(Clone, Debug)]
pub(super) enum Event {
    Read { offset: u64, len: usize },
    Write { offset: u64, data: Vec<u8> },
    Complete { response: Vec<u8> },
    Establish(bool),
    Reset,
}

/// What a guest does next. Some steps depend on who owns the TPM then, so that sequences get somewhere.
#[derive(Clone, Debug)]
pub(super) enum Step {
    Any(Event),
    /// A write to `TPM_STS_x` of the active locality.
    Sts(u32),
    /// A whole command from the active locality; it counts only after `commandReady`.
    Send {
        size: u32,
    },
}

impl Event {
    /// What the guest and the device see of it.
    pub(super) fn happen(&self, tis: &mut Tis) -> (Vec<u8>, Option<Effect>) {
        match self {
            Self::Read { offset, len } => {
                let mut data = vec![0x5a; *len];
                tis.read(*offset, &mut data);
                return (data, None);
            }
            Self::Write { offset, data } => return (Vec::new(), tis.write(*offset, data)),
            Self::Complete { response } => tis.complete(response),
            Self::Establish(established) => tis.set_establishment(*established),
            Self::Reset => tis.reset(),
        }
        (Vec::new(), None)
    }
}

impl Step {
    pub(super) fn events(self, tis: &mut Tis) -> Vec<Event> {
        let page = active(tis).first().map_or(0, |number| number * 0x1000);
        match self {
            Self::Any(event) => vec![event],
            Self::Sts(bits) => vec![Event::Write { offset: page + STS, data: bits.to_le_bytes().to_vec() }],
            Self::Send { size } => begun(size, usize::try_from(size).expect("small").max(10))
                .chunks(64)
                .map(|chunk| Event::Write { offset: page + XDATA_FIFO, data: chunk.to_vec() })
                .collect(),
        }
    }
}

/// The first `length` bytes of a command whose size field says `size`.
pub(super) fn begun(size: u32, length: usize) -> Vec<u8> {
    let mut command = Header { tag: 0x8001, size, code: 0x17b }.to_bytes().to_vec();
    command.resize(length, 0xaa);
    command
}

/// The localities that say they are active.
fn active(tis: &mut Tis) -> Vec<u64> {
    let mut access = [0];
    (0..5)
        .filter(|&number| {
            tis.read(number * 0x1000, &mut access);
            access[0] & 0x20 != 0
        })
        .collect()
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

fn event() -> impl Strategy<Value = Event> {
    let access_bits = prop::sample::select(vec![RELINQUISH, BEEN_SEIZED, SEIZE, REQUEST_USE, REQUEST_USE]);
    prop_oneof![
        4 => (offset(), 0..80usize).prop_map(|(offset, len)| Event::Read { offset, len }),
        2 => (offset(), vec(any::<u8>(), 0..80)).prop_map(|(offset, data)| Event::Write { offset, data }),
        1 => (0..5u64).prop_map(|l| {
            Event::Write { offset: l * 0x1000 + INT_ENABLE, data: 0x8000_008f_u32.to_le_bytes().to_vec() }
        }),
        3 => (0..5u64, access_bits).prop_map(|(l, bits)| Event::Write { offset: l * 0x1000, data: vec![bits] }),
        1 => vec(any::<u8>(), 0..40).prop_map(|response| Event::Complete { response }),
        4 => (10..600u32).prop_map(|size| Event::Complete { response: message(size) }),
        1 => any::<bool>().prop_map(Event::Establish),
        1 => Just(Event::Reset),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    let command_bits = prop::sample::select(vec![0x40, 0x40, 0x20, 0x20, 0x02, COMMAND_CANCEL, RESET_ESTABLISHMENT]);
    prop_oneof![
        16 => event().prop_map(Step::Any),
        16 => command_bits.prop_map(Step::Sts),
        8 => (0..600u32).prop_map(|size| Step::Send { size }),
        1 => (4000..4200u32).prop_map(|size| Step::Send { size }),
    ]
}

pub(super) fn steps(at_most: usize) -> impl Strategy<Value = Vec<Step>> {
    vec(step(), 0..at_most)
}

/// A TPM of either version, with locality 4 open or closed.
pub(super) fn any_config() -> impl Strategy<Value = TisConfig> {
    let version = prop_oneof![Just(TpmVersion::V1_2), Just(TpmVersion::V2_0)];
    (version, any::<bool>()).prop_map(|(version, guest_locality_4)| TisConfig { guest_locality_4, ..config(version) })
}

/// Does what the device does and checks what always holds; the numbers are those of the module's documentation.
pub(super) struct Checked {
    guest: Guest,
    outstanding: bool,
    /// The locality whose command runs or is answered, as long as it keeps the TPM.
    owner_of_command: Option<u64>,
}

impl Checked {
    /// Takes over registers in whatever state they are.
    pub(super) fn new(tis: Tis) -> Self {
        let owned = matches!(tis.state().command, CommandState::Execution { .. } | CommandState::Completion { .. });
        let outstanding = tis.is_busy();
        let mut checked = Self { guest: Guest { tis }, outstanding, owner_of_command: None };
        checked.owner_of_command = checked.active().first().copied().filter(|_| owned);
        checked.check();
        checked
    }

    pub(super) fn run_all(&mut self, steps: Vec<Step>) {
        for step in steps {
            for event in step.events(&mut self.guest.tis) {
                self.happen(&event);
            }
            self.check();
        }
    }

    pub(super) fn into_tis(self) -> Tis {
        self.guest.tis
    }

    fn active(&mut self) -> Vec<u64> {
        active(&mut self.guest.tis)
    }

    fn happen(&mut self, event: &Event) {
        let before = self.guest.tis.state();
        let active = self.active();
        // Invariant 8: nothing here panics.
        let (_, effect) = event.happen(&mut self.guest.tis);
        let after = self.guest.tis.state();
        for (before, after) in before.interrupts.iter().zip(&after.interrupts) {
            // One access can enable and bring about.
            let enabled = [before.enable, after.enable].into_iter().filter(|enable| enable >> 31 == 1);
            let enabled = enabled.fold(0, |all, enable| all | enable);
            assert_eq!(after.status & !before.status & !enabled, 0, "invariant 10: nothing that is not enabled");
        }
        match event {
            Event::Read { offset, len } => {
                let fifos = active.iter().flat_map(|page| [0x24..0x28, 0x80..0xc0].map(|fifo| in_page(*page, fifo)));
                if !fifos.into_iter().any(|fifo| touches(*offset, *len, &fifo)) {
                    assert_eq!(before, after, "only reads of the owner's FIFO have effects");
                }
            }
            Event::Write { offset, data } => {
                self.check_effect(effect);
                if !(0..5).any(|page| can_write(page, &active, *offset, data.len())) {
                    assert_eq!(before, after, "invariant 1: others change nothing but ownership and the lock");
                    assert_eq!(effect, None);
                }
                let answered = |state: &TisState| matches!(state.command, CommandState::Completion { .. });
                if answered(&after) && !answered(&before) {
                    self.owner_of_command = active.first().copied();
                }
            }
            Event::Complete { response } => {
                self.outstanding = false;
                if let CommandState::Execution { .. } = before.command {
                    assert_ne!(self.owner_of_command, None, "a response has a reader");
                    let CommandState::Completion { response: shown, offset: 0 } = after.command else {
                        panic!("an answered command is {:?}", after.command)
                    };
                    assert!(shown == *response || shown.len() == 10, "the response or a failure");
                }
            }
            Event::Establish(_) => {}
            Event::Reset => {
                self.outstanding = false;
                let fresh = Tis::new(self.guest.tis.config).state();
                let established = before.localities.established;
                let localities = LocalitiesState { established, ..fresh.localities };
                assert_eq!(after, TisState { localities, ..fresh });
            }
        }
    }

    /// Invariant 5.
    fn check_effect(&mut self, effect: Option<Effect>) {
        match effect {
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

    fn check(&mut self) {
        let active = self.active();
        assert!(active.len() <= 1, "invariant 1: at most one active locality, not {active:?}");
        assert_eq!(self.guest.tis.is_busy(), self.outstanding);
        assert!(self.guest.tis.command().len() <= BUFFER_SIZE, "invariant 5: a command that fits the buffer");
        if self.owner_of_command.is_some_and(|owner| active != [owner]) {
            self.owner_of_command = None;
        }
        let config = self.guest.tis.config;
        if !config.guest_locality_4 {
            assert_eq!(self.guest.read8(4, ACCESS) & 0x32, 0, "locality 4 belongs to the hardware");
        }
        for number in 0..5 {
            if active.contains(&number) {
                self.check_owner(number);
            } else {
                assert_eq!(self.guest.read32(number, STS), 0xffff_ffff, "invariant 1");
                assert_eq!(self.guest.read::<4>(number, DATA_FIFO), [0xff; 4], "invariant 1");
                assert_eq!(self.guest.read::<64>(number, XDATA_FIFO), [0xff; 64], "invariant 1");
            }
        }
        let state = self.guest.tis.state();
        self.check_interrupts(&state);
        let imported = Tis::from_state(config, &state).map(|copy| copy.state());
        assert_eq!(imported, Ok(state), "invariant 9: what is reached can be imported");
    }

    /// Invariant 10: the level is what the registers say, and low once all that is pending is cleared.
    fn check_interrupts(&self, state: &TisState) {
        let pending = |InterruptsState { enable, vector: _, status }: &InterruptsState| match enable >> 31 {
            0 => 0,
            _ => enable & status & 0x87,
        };
        let level = state.interrupts.iter().any(|registers| pending(registers) != 0);
        assert_eq!(self.guest.tis.interrupt_level(), level, "invariant 10");
        let mut cleared = state.clone();
        cleared.interrupts.iter_mut().for_each(|registers| registers.status = 0);
        let copy = Tis::from_state(self.guest.tis.config, &cleared).expect("nothing else has changed");
        assert!(!copy.interrupt_level(), "invariant 10");
    }

    fn check_owner(&mut self, number: u64) {
        let [status, burst, burst_high, upper] = self.guest.read(number, STS);
        assert_eq!(status & 0x23, 0, "invariant 2: bits that read 0");
        let family = if self.guest.tis.config.version == TpmVersion::V2_0 { 0x04 } else { 0 };
        assert_eq!(upper, family, "the family");

        let expect = status & EXPECT != 0;
        let data = status & DATA_AVAIL != 0;
        assert!(!(expect && data), "invariant 3: Expect and dataAvail");
        if expect || data {
            assert_ne!(status & VALID, 0, "invariant 3: stsValid");
            assert_eq!(status & COMMAND_READY, 0, "invariant 3: commandReady");
        }
        if status & COMMAND_READY != 0 {
            assert_eq!(status, COMMAND_READY, "what Linux takes as cancelled");
        }

        assert!(burst <= 248 && burst_high == 0, "invariant 6: the largest burst");
        assert_eq!(burst != 0, expect || data || status == COMMAND_READY, "burst where bytes can go");
        assert!(!(self.outstanding && burst != 0), "nothing to transfer while the backend runs");
        if burst != 0 {
            self.check_burst(number, burst.into());
        }
        self.check_last_byte(number);

        if data {
            assert_eq!(self.owner_of_command, Some(number), "invariant 7: a response of one's own command");
        } else {
            let mut copy = self.guest.tis.clone();
            let read = Event::Read { offset: number * 0x1000 + XDATA_FIFO, len: 64 }.happen(&mut copy);
            assert_eq!(read.0, [0xff; 64], "nothing to read");
        }
        if self.outstanding && self.owner_of_command.is_none() {
            assert_eq!(status, 0, "another's command shows nothing");
        }
    }

    /// Invariant 4: what is left of a command or a response ends exactly with its last byte; such a command can run.
    fn check_last_byte(&self, number: u64) {
        let mut copy = Guest { tis: self.guest.tis.clone() };
        match copy.tis.state().command {
            CommandState::Reception { received, missing: Some(missing) } if missing < 10_000 => {
                let rest = vec![0xaa; missing];
                if let Some((_, but_one)) = rest.split_last() {
                    but_one.chunks(64).for_each(|chunk| assert_eq!(copy.write(number, XDATA_FIFO, chunk), None));
                    assert_eq!(copy.read8(number, STS), VALID | EXPECT, "invariant 4");
                    // Not by the other door: at its address locality 4 has TPM_HASH_DATA.
                    copy.write8(number, XDATA_FIFO, 0xaa);
                }
                assert_eq!(copy.read8(number, STS), VALID, "invariant 4");
                let size = u32::from_be_bytes(received[2..6].try_into().expect("4 bytes"));
                let fits = (10..=BUFFER_SIZE).contains(&usize::try_from(size).expect("64 bits"));
                assert_eq!(copy.write8(number, STS, GO).is_some(), fits, "invariant 5: whole commands run");
            }
            CommandState::Completion { response, offset } => {
                assert!(offset <= response.len() && response.len() <= BUFFER_SIZE);
                if let Some((last, but_one)) = response[offset..].split_last() {
                    let mut data = vec![0; but_one.len()];
                    data.chunks_mut(64).for_each(|chunk| copy.tis.read(number * 0x1000 + XDATA_FIFO, chunk));
                    assert_eq!(data, but_one);
                    assert_eq!(copy.read8(number, STS), VALID | DATA_AVAIL, "invariant 4");
                    assert_eq!(copy.read8(number, XDATA_FIFO), *last);
                }
                assert_eq!(copy.read8(number, STS), VALID, "invariant 4");
            }
            _ => {}
        }
    }

    /// Invariant 6: all bytes of a burst are transferred.
    fn check_burst(&self, number: u64, burst: usize) {
        let mut copy = self.guest.tis.clone();
        let fifo = number * 0x1000 + XDATA_FIFO;
        match copy.state().command {
            CommandState::Completion { response, offset } => {
                let mut data = vec![0; burst];
                data.chunks_mut(64).for_each(|chunk| copy.read(fifo, chunk));
                assert_eq!(data, response[offset..offset + burst], "invariant 6");
            }
            before => {
                // If these become the size field, or the end of one, the command is longer than any burst.
                for chunk in vec![0xff; burst].chunks(64) {
                    assert_eq!(copy.write(fifo, chunk), None);
                }
                let CommandState::Reception { received, missing } = copy.state().command else {
                    panic!("bytes of a command are received")
                };
                match before {
                    CommandState::Reception { missing: Some(before), .. } => assert_eq!(missing, Some(before - burst)),
                    CommandState::Reception { received: before, .. } => {
                        assert_eq!(received.len(), before.len() + burst);
                    }
                    _ => assert_eq!(received.len(), burst),
                }
            }
        }
    }
}

fn in_page(page: u64, range: Range<u64>) -> Range<u64> {
    page * 0x1000 + range.start..page * 0x1000 + range.end
}

fn touches(offset: u64, len: usize, range: &Range<u64>) -> bool {
    let end = offset.saturating_add(len.try_into().expect("small"));
    len != 0 && offset < range.end && range.start < end
}

/// Whether the access reaches anything in the page that can be written: all that can be if its locality is active,
/// else `TPM_ACCESS_x`, which is one byte, and `TPM_INTERFACE_ID_x`.
fn can_write(page: u64, active: &[u64], offset: u64, len: usize) -> bool {
    let all = in_page(page, 0..0x1000);
    let always = [in_page(page, 0x00..0x01), in_page(page, 0x30..0x34)];
    (active.contains(&page) && touches(offset, len, &all)) || always.iter().any(|range| touches(offset, len, range))
}
