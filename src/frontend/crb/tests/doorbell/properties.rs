//! What always holds, under arbitrary sequences of accesses and of what the guest writes to the memory; export and import.

use proptest::collection::vec;
use proptest::prelude::*;

use super::super::steps::begun;
use super::*;
use crate::frontend::crb::{BufferStateError, CrbDoorbellState, RunningCommand, Standing};
use crate::tpm::Header;

/// One thing that happens to the interface or to its memory.
#[derive(Clone, Debug)]
enum Event {
    Read {
        offset: u64,
        len: usize,
    },
    Write {
        offset: u64,
        data: Vec<u8>,
    },
    /// The guest writes to the pages that it has mapped.
    Put {
        offset: u32,
        data: Vec<u8>,
    },
    Complete {
        response: Vec<u8>,
    },
    Place(u32),
    Reset,
}

impl Event {
    /// What the guest and the device see of it.
    fn happen(&self, crb: &mut CrbDoorbell<Pages>) -> (Vec<u8>, Option<Effect>) {
        match self {
            Self::Read { offset, len } => {
                let mut data = vec![0x5a; *len];
                crb.read(*offset, &mut data);
                return (data, None);
            }
            Self::Write { offset, data } => return (Vec::new(), crb.write(*offset, data)),
            Self::Put { offset, data } => crb.memory_mut().put(*offset, data),
            Self::Complete { response } => crb.complete(response),
            Self::Place(bar0_address) => crb.place(*bar0_address),
            Self::Reset => crb.reset(),
        }
        (Vec::new(), None)
    }
}

fn offset() -> impl Strategy<Value = u64> {
    prop_oneof![2 => 0x5000..0x5008u64, 4 => 0x7ff0..0xa010u64, 1 => 0..0x2_0000u64, 1 => any::<u64>()]
}

fn ring() -> Event {
    Event::Write { offset: DOORBELL.offset.into(), data: vec![1] }
}

/// What a guest does next, in one or more events.
fn step() -> impl Strategy<Value = Vec<Event>> {
    let word = |offset, value: u32| Event::Put { offset, data: value.to_le_bytes().to_vec() };
    let size = prop_oneof![8 => 0..600u32, 1 => 4090..4100u32, 1 => any::<u32>()];
    prop_oneof![
        4 => (offset(), 0..80usize).prop_map(|(offset, len)| vec![Event::Read { offset, len }]),
        4 => (offset(), vec(any::<u8>(), 0..80)).prop_map(|(offset, data)| vec![Event::Write { offset, data }]),
        4 => (0x8000..0xa000 - 40u32, vec(any::<u8>(), 0..40)).prop_map(|(offset, data)| vec![Event::Put { offset, data }]),
        4 => (any::<bool>(), 0..3u32).prop_map(move |(start, value)| vec![word(if start { START } else { CANCEL }, value)]),
        4 => Just(vec![ring()]),
        8 => (size, 0..3u32).prop_map(move |(size, start)| vec![
            word(CANCEL, 0),
            Event::Put { offset: COMMAND_BUFFER.offset, data: begun(size) },
            word(START, start),
            ring(),
        ]),
        1 => vec(any::<u8>(), 0..40).prop_map(|response| vec![Event::Complete { response }]),
        6 => prop_oneof![10..600u32, 4090..4100u32].prop_map(|size| vec![Event::Complete { response: message(size) }]),
        1 => any::<u32>().prop_map(|bar0_address| vec![Event::Place(bar0_address)]),
        1 => Just(vec![Event::Reset]),
    ]
}

fn steps() -> impl Strategy<Value = Vec<Vec<Event>>> {
    vec(step(), 0..60)
}

/// Does what the device does and checks what always holds; the numbers are those of the type's documentation.
struct Checked {
    guest: Guest,
    outstanding: bool,
    /// The command that is outstanding was cancelled.
    cancelled: bool,
    /// Another has come since.
    superseded: bool,
}

impl Checked {
    fn new(crb: CrbDoorbell<Pages>) -> Self {
        let outstanding = crb.is_busy();
        Self { guest: Guest { crb }, outstanding, cancelled: false, superseded: false }
    }

    fn run_all(&mut self, steps: Vec<Vec<Event>>) {
        for step in steps {
            for event in step {
                self.happen(&event);
            }
            let state = self.guest.crb.state();
            let imported = CrbDoorbell::from_state(&state, Pages::new()).map(|copy| copy.state());
            assert_eq!(imported, Ok(state), "invariant 6: what is reached can be imported");
        }
    }

    fn happen(&mut self, event: &Event) {
        let (start, cancel) = (self.guest.word(START) & 1 != 0, self.guest.word(CANCEL) & 1 != 0);
        let buffer = self.guest.buffer(BUFFER_SIZE).to_vec();
        let command = self.guest.crb.command().to_vec();
        let memory = self.guest.crb.memory_mut();
        memory.take_reads();
        memory.take_writes();
        // Invariant 5: nothing here panics.
        let (_, effect) = event.happen(&mut self.guest.crb);
        let memory = self.guest.crb.memory_mut();
        let (reads, writes) = (memory.take_reads(), memory.take_writes());
        match event {
            Event::Read { .. } | Event::Put { .. } => assert_eq!(writes, []),
            Event::Write { offset, data } => {
                let rings = DOORBELL.part(*offset, data.len()).is_some_and(|(at, _)| at < DOORBELL.offset + 4);
                let of_registers: Vec<_> = reads.iter().filter(|(at, _)| *at < COMMAND_BUFFER.offset).collect();
                if rings {
                    assert_eq!(of_registers, [&(START, 4), &(CANCEL, 4)], "invariant 1");
                } else {
                    assert_eq!(reads, [], "invariant 1");
                }
                self.superseded |= rings && self.cancelled && !cancel;
                assert_eq!(effect.is_some(), rings && self.has_effect(start, cancel, &buffer), "{event:x?}");
                self.check_effect(effect, &buffer);
            }
            Event::Complete { response } => {
                assert_eq!(reads, [], "nothing is looked at again");
                if self.outstanding {
                    let [(at, shown), end] = &writes[..] else { panic!("two writes, not {writes:x?}") };
                    assert_eq!((*at, end), (COMMAND_BUFFER.offset, &(START, vec![0; 4])), "invariant 3");
                    let [failure, retry] =
                        [Fault::Failure, Fault::Retry].map(|fault| fault_response(TpmVersion::V2_0, fault));
                    if self.superseded {
                        assert_eq!(*shown, retry, "invariant 4");
                    } else {
                        assert!(shown == response || *shown == failure, "the response or a failure");
                    }
                    assert!(Header::of_whole(shown).is_some());
                } else {
                    assert_eq!(writes, []);
                }
                self.outstanding = false;
            }
            Event::Place(_) => assert_eq!(self.guest.word(START), u32::from(self.outstanding), "invariant 3"),
            Event::Reset => {
                self.outstanding = false;
                assert_eq!(self.guest.word(START), 0);
                assert_eq!(self.guest.crb.state(), CrbDoorbellState { command: None, buffer: vec![] });
            }
        }
        assert_eq!(self.guest.crb.is_busy(), self.outstanding);
        if !self.outstanding {
            assert!(self.guest.crb.command().is_empty());
            (self.cancelled, self.superseded) = (false, false);
        } else if effect.is_none() {
            assert_eq!(self.guest.crb.command(), command, "invariant 2: whatever the guest writes");
        }
    }

    /// Whether a ring has one, with this in the memory.
    fn has_effect(&self, start: bool, cancel: bool, buffer: &[u8]) -> bool {
        let size = Header::parse(buffer).expect("a page").size;
        if self.outstanding { cancel } else { (start || !cancel) && (10..=4096).contains(&size) }
    }

    /// Invariants 2 and 3. `buffer` is what was in it.
    fn check_effect(&mut self, effect: Option<Effect>, buffer: &[u8]) {
        match effect {
            Some(Effect::Execute(locality)) => {
                assert!(!self.outstanding, "one command at a time");
                self.outstanding = true;
                assert_eq!(locality, Locality::ZERO);
                let command = self.guest.crb.command();
                assert!(Header::of_whole(command).is_some(), "a whole command");
                assert_eq!(command, &buffer[..command.len()], "as it was in the buffer");
                assert_eq!(self.guest.word(START), 1);
            }
            Some(Effect::Cancel) => {
                assert!(self.outstanding, "something to cancel");
                self.cancelled = true;
            }
            Some(Effect::ResetEstablishment(_)) => panic!("there is no register for it"),
            None => {}
        }
    }
}

#[test]
fn a_state_is_plain_data_for_any_format() {
    let state = Guest::executing(&message(20)).crb.state();
    let json = serde_json::to_string(&state).expect("JSON");
    assert_eq!(serde_json::from_str::<CrbDoorbellState>(&json).expect("a state"), state);
    assert!(serde_json::from_str::<CrbDoorbellState>(&json.replacen('{', "{\"colour\":1,", 1)).is_err());
}

#[test]
fn a_running_command_is_there_to_be_run_again_and_the_guest_still_waits() {
    let state = Guest::executing(&message(20)).crb.state();
    let mut copy = Guest { crb: CrbDoorbell::from_state(&state, Pages::new()).expect("a state") };
    copy.crb.place(BAR0);
    assert_eq!(copy.crb.command(), message(20));
    assert_eq!(copy.word(START), 1);
    assert_eq!(copy.word(CONTROL_AREA.offset + 0x5c), BAR0 + COMMAND_BUFFER.offset);
    assert_eq!(copy.crb.memory().at(CONTROL_AREA.offset, 0x40), [0; 0x40]);
    copy.crb.complete(&message(30));
    assert_eq!(copy.buffer(30), message(30));
    assert_eq!(copy.word(START), 0);
}

#[test]
fn a_superseded_command_is_still_one_elsewhere() {
    let mut guest = Guest::executing(&message(20));
    guest.put(CANCEL, 1);
    assert_eq!(guest.ring(), Some(Effect::Cancel));
    assert_eq!(guest.start(&message(14)), None);
    let state = guest.crb.state();
    assert_eq!(state.command, Some(RunningCommand { command: message(20), standing: Standing::Superseded }));
    let mut copy = Guest { crb: CrbDoorbell::from_state(&state, Pages::new()).expect("a state") };
    copy.crb.complete(&message(30));
    assert_eq!(copy.buffer(10), fault_response(TpmVersion::V2_0, Fault::Retry));
}

#[test]
fn a_running_command_says_how_it_stands() {
    let json = r#"{"command": {"command": [128, 1, 0, 0, 0, 10, 0, 0, 1, 68]}, "buffer": []}"#;
    let error = serde_json::from_str::<CrbDoorbellState>(json).expect_err("a refusal").to_string();
    assert!(error.contains("missing field `standing`"), "{error}");
}

#[test]
fn a_state_with_what_is_no_command_or_no_buffer_is_refused() {
    let fresh = Guest::new().crb.state();
    let refusal = |state| CrbDoorbell::from_state(&state, Pages::new()).err();
    let command = |command| {
        let running = RunningCommand { command, standing: Standing::Wanted };
        CrbDoorbellState { command: Some(running), ..fresh.clone() }
    };
    let buffer = |buffer| CrbDoorbellState { buffer, ..fresh.clone() };
    assert_eq!(refusal(command(vec![])), Some(BufferStateError::NotWhole(0)));
    assert_eq!(refusal(command(message(4097))), Some(BufferStateError::Overflow(4097)));
    assert_eq!(refusal(buffer(vec![1; 4097])), Some(BufferStateError::Overflow(4097)));
    assert_eq!(refusal(buffer(vec![1, 0])), Some(BufferStateError::ZerosAtEnd));
}

proptest! {
    #[test]
    fn the_invariants_hold_under_any_accesses(steps in steps()) {
        Checked::new(CrbDoorbell::new(config(), Pages::new())).run_all(steps);
    }

    /// Invariant 6.
    #[test]
    fn a_copy_behaves_as_the_original(before in steps(), after in steps()) {
        let mut original = Checked::new(CrbDoorbell::new(config(), Pages::new()));
        original.run_all(before);
        let mut original = original.guest.crb;
        let mut copy = CrbDoorbell::from_state(&original.state(), Pages::new()).expect("what was exported");
        original.memory_mut().put(CONTROL_AREA.offset, &[0; 0x1000]);
        for crb in [&mut original, &mut copy] {
            crb.place(BAR0);
        }
        for event in after.into_iter().flatten() {
            prop_assert_eq!(event.happen(&mut copy), event.happen(&mut original), "{:?}", event);
            prop_assert_eq!(copy.command(), original.command());
            prop_assert_eq!(copy.state(), original.state());
        }
    }
}
