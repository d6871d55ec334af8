//! Arbitrary sequences of what can happen to the register file, and a device that checks what always holds after each.

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;
use crate::tpm::{BUFFER_SIZE, Fault, TpmVersion, fault_response};

const BUFFER: u64 = COMMAND_BUFFER.offset as u64;

/// One thing that happens to the register file or to its memory.
#[derive(Clone, Debug)]
pub(super) enum Event {
    Read {
        offset: u64,
        len: usize,
    },
    Write {
        offset: u64,
        data: Vec<u8>,
    },
    /// The guest writes to the buffer that it has mapped.
    Put {
        at: u32,
        data: Vec<u8>,
    },
    Complete {
        response: Vec<u8>,
    },
    Establish(bool),
    Place(u32),
    Reset,
}

/// What a guest does next. Some steps depend on who owns the TPM then, so that sequences get somewhere.
#[derive(Clone, Debug)]
pub(super) enum Step {
    Any(Event),
    /// A write to a control register of the active locality.
    Control {
        register: u64,
        value: u32,
    },
    /// A whole command from the active locality, and START; it counts only after `cmdReady`.
    Start {
        size: u32,
    },
}

impl Event {
    /// What the guest and the device see of it.
    pub(super) fn happen(&self, crb: &mut Crb<Pages>) -> (Vec<u8>, Option<Effect>) {
        match self {
            Self::Read { offset, len } => {
                let mut data = vec![0x5a; *len];
                crb.read(*offset, &mut data);
                return (data, None);
            }
            Self::Write { offset, data } => return (Vec::new(), crb.write(*offset, data)),
            Self::Put { at, data } => crb.memory_mut().put(COMMAND_BUFFER.offset + at, data),
            Self::Complete { response } => crb.complete(response),
            Self::Establish(established) => crb.set_establishment(*established),
            Self::Place(bar0_address) => crb.place(*bar0_address),
            Self::Reset => crb.reset(),
        }
        (Vec::new(), None)
    }
}

impl Step {
    pub(super) fn events(self, crb: &Crb<Pages>) -> Vec<Event> {
        let page = active(crb).first().map_or(0, |number| number * 0x1000);
        let write = |register, value: u32| Event::Write { offset: page + register, data: value.to_le_bytes().to_vec() };
        match self {
            Self::Any(event) => vec![event],
            Self::Control { register, value } => vec![write(register, value)],
            Self::Start { size } => vec![Event::Put { at: 0, data: begun(size) }, write(CTRL_START, 1)],
        }
    }
}

/// As much of a command as fits the buffer, whose size field says `size`.
pub(super) fn begun(size: u32) -> Vec<u8> {
    let mut command = Header { tag: 0x8001, size, code: 0x17b }.to_bytes().to_vec();
    command.resize(usize::try_from(size).expect("64 bits").clamp(10, BUFFER_SIZE), 0xaa);
    command
}

/// The localities that are told that they are active.
fn active(crb: &Crb<Pages>) -> Vec<u64> {
    let mut sts = [0];
    (0..5)
        .filter(|&number| {
            crb.read(number * 0x1000 + LOC_STS, &mut sts);
            sts[0] & 1 != 0
        })
        .collect()
}

/// Mostly register addresses, sometimes the buffer's, sometimes any.
fn offset() -> impl Strategy<Value = u64> {
    prop_oneof![
        8 => (0..5u64, 0..0x80u64).prop_map(|(locality, register)| locality * 0x1000 + register),
        2 => BUFFER - 8..BUFFER + 0x1008,
        1 => 0..0x1_0000u64,
        1 => any::<u64>(),
    ]
}

fn event() -> impl Strategy<Value = Event> {
    let loc_ctrl = prop::sample::select(vec![REQUEST_ACCESS, REQUEST_ACCESS, RELINQUISH, SEIZE, RESET_ESTABLISHMENT]);
    let write = |(l, bits): (u64, u32)| Event::Write { offset: l * 0x1000 + LOC_CTRL, data: bits.to_le_bytes().into() };
    prop_oneof![
        4 => (offset(), 0..80usize).prop_map(|(offset, len)| Event::Read { offset, len }),
        4 => (offset(), vec(any::<u8>(), 0..80)).prop_map(|(offset, data)| Event::Write { offset, data }),
        4 => (0..5u64, loc_ctrl).prop_map(write),
        4 => (0..0x1000 - 40u32, vec(any::<u8>(), 0..40)).prop_map(|(at, data)| Event::Put { at, data }),
        2 => (0..20u32, vec(any::<u8>(), 0..8)).prop_map(|(at, data)| Event::Put { at, data }),
        1 => vec(any::<u8>(), 0..40).prop_map(|response| Event::Complete { response }),
        4 => (10..600u32).prop_map(|size| Event::Complete { response: message(size) }),
        1 => (4090..4100u32).prop_map(|size| Event::Complete { response: message(size) }),
        1 => any::<bool>().prop_map(Event::Establish),
        1 => prop_oneof![Just(0), any::<u32>()].prop_map(Event::Place),
        1 => Just(Event::Reset),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    let control = prop::sample::select(vec![
        (CTRL_REQ, CMD_READY),
        (CTRL_REQ, CMD_READY),
        (CTRL_REQ, GO_IDLE),
        (CTRL_CANCEL, 1),
        (CTRL_CANCEL, 0),
        (CTRL_START, 1),
        (INT_ENABLE, 0x8000_0003),
    ]);
    prop_oneof![
        16 => event().prop_map(Step::Any),
        16 => control.prop_map(|(register, value)| Step::Control { register, value }),
        8 => (0..600u32).prop_map(|size| Step::Start { size }),
        1 => prop_oneof![4000..4200u32, any::<u32>()].prop_map(|size| Step::Start { size }),
    ]
}

pub(super) fn steps(at_most: usize) -> impl Strategy<Value = Vec<Step>> {
    vec(step(), 0..at_most)
}

/// A TPM with locality 4 open or closed.
pub(super) fn any_config() -> impl Strategy<Value = CrbConfig> {
    any::<bool>().prop_map(|guest_locality_4| CrbConfig { guest_locality_4, ..config() })
}

/// Does what the device does and checks what always holds; the numbers are those of the module's documentation.
pub(super) struct Checked {
    guest: Guest,
    outstanding: bool,
    /// The locality whose command runs, as long as it keeps the TPM.
    owner_of_command: Option<u64>,
}

impl Checked {
    /// Takes over registers in whatever state they are.
    pub(super) fn new(crb: Crb<Pages>) -> Self {
        let owned = standing(&crb.state()).is_some();
        let outstanding = crb.is_busy();
        let mut checked = Self { guest: Guest { crb }, outstanding, owner_of_command: None };
        checked.owner_of_command = checked.active().first().copied().filter(|_| owned);
        checked.check();
        checked
    }

    pub(super) fn run_all(&mut self, steps: Vec<Step>) {
        for step in steps {
            for event in step.events(&self.guest.crb) {
                self.happen(&event);
            }
            self.check();
        }
    }

    pub(super) fn into_crb(self) -> Crb<Pages> {
        self.guest.crb
    }

    fn active(&self) -> Vec<u64> {
        active(&self.guest.crb)
    }

    fn happen(&mut self, event: &Event) {
        let before = self.guest.crb.state();
        let buffer = self.guest.buffer(BUFFER_SIZE).to_vec();
        let active = self.active();
        self.take_reads();
        self.take_writes();
        // Invariant 7: nothing here panics.
        let (_, effect) = event.happen(&mut self.guest.crb);
        let (reads, writes) = (self.take_reads(), self.take_writes());
        let after = self.guest.crb.state();
        match event {
            Event::Read { .. } | Event::Put { .. } | Event::Establish(_) | Event::Place(_) => {
                assert_eq!(before.command, after.command);
                assert_eq!(writes, [], "invariant 5");
            }
            Event::Write { offset, data } => {
                self.check_effect(effect, &buffer);
                let starts = active.iter().any(|&page| self.starts(page, *offset, data));
                check_standing(standing(&before), standing(&after), effect, starts);
                if matches!(effect, Some(Effect::Execute(_))) {
                    assert_eq!(reads, [(COMMAND_BUFFER.offset, BUFFER_SIZE)], "invariant 4");
                }
                let trapped = COMMAND_BUFFER.part(*offset, data.len()).map(|(at, range)| (at, data[range].to_vec()));
                let refusal = fault_response(TpmVersion::V2_0, Fault::CommandSize).to_vec();
                for write in writes {
                    let refused =
                        write == (COMMAND_BUFFER.offset, refusal.clone()) && after.command == CommandState::Completion;
                    assert!(Some(&write) == trapped.as_ref() || refused, "invariant 5: {write:x?}");
                }
                if !(0..5).any(|page| can_write(page, &active, *offset, data.len())) {
                    let buffer = after.buffer.clone();
                    assert_eq!(CrbState { buffer, ..before }, after, "invariant 1: others change nothing");
                    assert_eq!(effect, None);
                }
            }
            Event::Complete { response } => {
                self.outstanding = false;
                self.owner_of_command = None;
                assert_eq!(reads, [], "invariant 4: nothing is looked at again");
                if let CommandState::Execution { .. } = before.command {
                    assert_eq!(after.command, CommandState::Completion);
                    let [(at, shown)] = &writes[..] else { panic!("one response, not {writes:x?}") };
                    assert_eq!(*at, COMMAND_BUFFER.offset);
                    let [failure, retry] =
                        [Fault::Failure, Fault::Retry].map(|fault| fault_response(TpmVersion::V2_0, fault));
                    if standing(&before) == Some(Standing::Superseded) {
                        assert_eq!(*shown, retry, "invariant 6");
                    } else {
                        assert!(shown == response || *shown == failure, "the response or a failure");
                    }
                    assert!(Header::of_whole(shown).is_some());
                } else {
                    assert_eq!(writes, [], "invariant 5");
                }
            }
            Event::Reset => {
                self.outstanding = false;
                let fresh = Crb::new(self.guest.crb.config, Pages::new()).state();
                let established = before.localities.established;
                let localities = LocalitiesState { established, ..fresh.localities };
                assert_eq!(after, CrbState { localities, ..fresh });
            }
        }
    }

    /// Whether the access writes 1 to START of this page.
    fn starts(&self, page: u64, offset: u64, data: &[u8]) -> bool {
        let allowed = page != 4 || self.guest.crb.config.guest_locality_4;
        let at = (page * 0x1000 + CTRL_START).checked_sub(offset).and_then(|at| usize::try_from(at).ok());
        allowed && at.and_then(|at| data.get(at)).is_some_and(|byte| byte & 1 != 0)
    }

    fn take_reads(&mut self) -> Vec<(u32, usize)> {
        self.guest.crb.memory_mut().take_reads()
    }

    fn take_writes(&mut self) -> Vec<(u32, Vec<u8>)> {
        self.guest.crb.memory_mut().take_writes()
    }

    /// Invariant 3. `buffer` is what was in it.
    fn check_effect(&mut self, effect: Option<Effect>, buffer: &[u8]) {
        match effect {
            Some(Effect::Execute(locality)) => {
                assert!(!self.outstanding, "one command at a time");
                self.outstanding = true;
                self.owner_of_command = Some(locality.number().into());
                assert_eq!(self.active(), [u64::from(locality.number())]);
                let command = self.guest.crb.command();
                assert!(Header::of_whole(command).is_some(), "a whole command");
                assert_eq!(command, &buffer[..command.len()], "as it was in the buffer");
            }
            Some(Effect::Cancel) => assert!(self.outstanding, "something to cancel"),
            Some(Effect::ResetEstablishment(locality)) => assert!(locality.number() >= 3),
            None => {}
        }
    }

    fn check(&mut self) {
        let active = self.active();
        assert!(active.len() <= 1, "invariant 1: at most one active locality, not {active:?}");
        assert_eq!(self.guest.crb.is_busy(), self.outstanding);
        if self.owner_of_command.is_some_and(|owner| active != [owner]) {
            self.owner_of_command = None;
        }
        assert_eq!(!self.guest.crb.command().is_empty(), self.owner_of_command.is_some());
        let config = self.guest.crb.config;
        if !config.guest_locality_4 {
            assert_eq!(self.guest.read32(4, LOC_STS), 0, "locality 4 belongs to the hardware");
        }
        let state = active.first().map_or(0, |number| 2 | u32::try_from(number << 2).expect("small"));
        for number in 0..5 {
            assert_eq!(self.guest.read32(number, LOC_STATE) & 0xfffe, 0x80 | state);
            if active.contains(&number) {
                self.check_owner(number);
            } else {
                assert_eq!(self.guest.read::<24>(number, CTRL_EXT), [0xff; 24], "invariant 1");
            }
        }
        let state = self.guest.crb.state();
        let pending =
            state.int_enable.iter().zip(state.int_sts).any(|(&enable, sts)| enable >> 31 == 1 && enable & sts != 0);
        assert_eq!(self.guest.crb.interrupt_level(), pending, "invariant 9");
        let imported = Crb::from_state(config, &state, Pages::new()).map(|copy| copy.state());
        assert_eq!(imported, Ok(state), "invariant 8: what is reached can be imported");
    }

    fn check_owner(&mut self, number: u64) {
        let [request, status, start] =
            [CTRL_REQ, CTRL_STS, CTRL_START].map(|register| self.guest.read32(number, register));
        assert_eq!(start, u32::from(self.outstanding), "invariant 2");
        assert!(status == 0 || (status == IDLE && start == 0 && request == 0), "invariant 2");
        assert!(request == 0 || (request == CMD_READY && start == 1), "what is asked for waits for the TPM only");

        // Whatever is there, the owner gets its next command through.
        let mut copy = Guest { crb: self.guest.crb.clone() };
        copy.crb.complete(&[]);
        assert_eq!(copy.write32(number, CTRL_REQ, CMD_READY), None);
        let execute = Effect::Execute(locality(number.try_into().expect("0 to 4")));
        let allowed = number != 4 || self.guest.crb.config.guest_locality_4;
        assert_eq!(copy.start(number, &message(12)), allowed.then_some(execute));
    }
}

/// What the owner wants of its command, while it runs.
fn standing(state: &CrbState) -> Option<Standing> {
    match state.command {
        CommandState::Execution { standing, .. } => Some(standing),
        _ => None,
    }
}

/// Invariant 6, as far as a write goes; `starts` if it reaches START. No effect comes before that in the same access.
fn check_standing(before: Option<Standing>, after: Option<Standing>, effect: Option<Effect>, starts: bool) {
    let expected = match (before, effect) {
        (None, Some(Effect::Execute(_))) => Some(Standing::Wanted),
        (Some(_), Some(Effect::Cancel)) if after.is_none() => None,
        (Some(Standing::Wanted), Some(Effect::Cancel)) => Some(Standing::Cancelled),
        (Some(Standing::Cancelled), None) if starts => Some(Standing::Superseded),
        (before, _) => before,
    };
    assert_eq!(after, expected, "invariant 6");
}

/// Whether the access reaches anything in the page that can be written: all that can be if its locality is active,
/// else `TPM_LOC_CTRL_x` and `TPM_CRB_INTF_ID_x`.
fn can_write(page: u64, active: &[u64], offset: u64, len: usize) -> bool {
    let end = offset.saturating_add(len.try_into().expect("small"));
    let touches = |from: u64, to: u64| len != 0 && offset < page * 0x1000 + to && page * 0x1000 + from < end;
    (active.contains(&page) && touches(0, 0x1000)) || touches(LOC_CTRL, LOC_CTRL + 4) || touches(INTF_ID, INTF_ID + 4)
}
