//! Export and import of the whole register file.

use proptest::collection::vec;
use proptest::prelude::*;

use super::steps::{Checked, any_config, begun, steps};
use super::*;
use crate::frontend::LocalitiesStateError;
use crate::tpm::{BUFFER_SIZE, Fault, TpmVersion, fault_response};

fn fresh() -> CrbState {
    Guest::new().crb.state()
}

fn import(state: &CrbState) -> Result<Crb<Pages>, CrbStateError> {
    Crb::from_state(config(), state, Pages::new())
}

/// The state of a TPM that runs `command` for locality 2.
fn executing(command: &[u8]) -> CrbState {
    Guest::executing(2, command).crb.state()
}

#[test]
fn a_state_is_plain_data_for_any_format() {
    let state = executing(&message(20));
    let json = serde_json::to_string(&state).expect("JSON");
    assert_eq!(serde_json::from_str::<CrbState>(&json).expect("a state"), state);
}

#[test]
fn a_field_that_is_not_known_is_refused() {
    let json = serde_json::to_string(&fresh()).expect("JSON").replacen('{', "{\"colour\":1,", 1);
    assert!(serde_json::from_str::<CrbState>(&json).is_err());
}

#[test]
fn a_running_command_is_there_to_be_run_again() {
    let mut copy = import(&executing(&message(20))).expect("a state");
    assert!(copy.is_busy());
    assert_eq!(copy.command(), message(20));
    copy.complete(&message(30));
    assert_eq!(Guest { crb: copy }.buffer(30), message(30));
}

#[test]
fn a_running_command_can_be_failed_instead() {
    let mut copy = import(&executing(&message(20))).expect("a state");
    copy.complete(&[]);
    assert_eq!(Guest { crb: copy }.buffer(10), fault_response(TpmVersion::V2_0, Fault::Failure));
}

#[test]
fn a_superseded_command_is_still_one_elsewhere() {
    let mut guest = Guest::executing(2, &message(20));
    guest.write32(2, CTRL_CANCEL, 1);
    guest.write32(2, CTRL_START, 1);
    let state = guest.crb.state();
    let expected = CommandState::Execution { command: message(20), standing: Standing::Superseded };
    assert_eq!(state.command, expected);
    let mut copy = import(&state).expect("a state");
    assert_eq!(copy.command(), message(20));
    copy.complete(&message(30));
    assert_eq!(Guest { crb: copy }.buffer(10), fault_response(TpmVersion::V2_0, Fault::Retry));
}

#[test]
fn a_running_command_says_how_it_stands() {
    let json = serde_json::to_string(&executing(&message(20))).expect("JSON");
    let without = json.replacen(",\"standing\":\"Wanted\"", "", 1);
    let error = serde_json::from_str::<CrbState>(&without).expect_err("a refusal").to_string();
    assert!(error.contains("missing field `standing`"), "{error}");
}

#[test]
fn a_stopping_command_has_nothing_to_run_and_ends_all_the_same() {
    let mut guest = Guest::executing(2, &message(20));
    guest.write32(3, LOC_CTRL, SEIZE);
    guest.write32(3, CTRL_REQ, CMD_READY);
    let mut copy = import(&guest.crb.state()).expect("a state");
    assert!(copy.is_busy());
    assert!(copy.command().is_empty());
    copy.complete(&[]);
    let copy = Guest { crb: copy };
    assert_eq!(copy.read32(3, CTRL_REQ), 0);
    assert_eq!(copy.read32(3, CTRL_STS), 0, "ready");
}

#[test]
fn the_buffer_comes_along_and_nothing_of_what_was_in_the_memory() {
    let mut guest = Guest::owning(0);
    for content in [&[][..], &[1], &[0, 0, 7], &[0xee; BUFFER_SIZE]] {
        guest.crb.reset();
        guest.put(content);
        let state = guest.crb.state();
        assert_eq!(state.buffer, content);
        let copy = Guest { crb: import(&state).expect("a state") };
        assert_eq!(copy.buffer(BUFFER_SIZE), guest.buffer(BUFFER_SIZE));
    }
}

#[test]
fn a_buffer_that_is_too_large_or_ends_with_a_zero_is_refused() {
    let refusal = |buffer| import(&CrbState { buffer, ..fresh() }).err();
    assert_eq!(refusal(vec![1; 4097]), Some(BufferStateError::Overflow(4097).into()));
    assert_eq!(refusal(vec![1, 0]), Some(BufferStateError::ZerosAtEnd.into()));
}

#[test]
fn a_command_that_is_not_whole_is_refused() {
    let refusal = |command| {
        let command = CommandState::Execution { command, standing: Standing::Wanted };
        import(&CrbState { command, ..executing(&message(10)) })
    };
    assert_eq!(refusal(vec![]).err(), Some(BufferStateError::NotWhole(0).into()));
    assert_eq!(refusal(message(20)[..19].to_vec()).err(), Some(BufferStateError::NotWhole(19).into()));
    assert_eq!(refusal(message(4097)).err(), Some(BufferStateError::Overflow(4097).into()));
    assert!(refusal(message(4096)).is_ok());
}

#[test]
fn a_command_or_a_cancellation_without_an_owner_is_refused() {
    for command in [
        CommandState::Ready,
        CommandState::Execution { command: message(10), standing: Standing::Superseded },
        CommandState::Completion,
        CommandState::Stopping { then_ready: true },
    ] {
        let state = CrbState { command, ..fresh() };
        assert_eq!(import(&state).err(), Some(CrbStateError::CommandWithoutOwner));
    }
    let cancelled = CrbState { cancel: true, ..fresh() };
    assert_eq!(import(&cancelled).err(), Some(CrbStateError::CancelWithoutOwner));
    let nobodys = CrbState { command: CommandState::Stopping { then_ready: false }, ..fresh() };
    assert!(import(&nobodys).is_ok());
}

#[test]
fn a_state_with_locality_4_goes_only_where_the_guest_may_use_it() {
    let opened = CrbConfig { guest_locality_4: true, ..config() };
    let mut owned = fresh();
    owned.localities.active = Some(4);
    let mut requested = fresh();
    requested.localities = LocalitiesState { active: Some(0), requests: 0x10, ..requested.localities };
    let mut interrupts = fresh();
    interrupts.int_enable[4] = 1;
    for state in [owned, requested, interrupts] {
        assert_eq!(import(&state).err(), Some(CrbStateError::LocalityFourUsed));
        assert!(Crb::from_state(opened, &state, Pages::new()).is_ok());
    }
}

#[test]
fn what_is_wrong_with_a_part_is_wrong_with_the_whole() {
    let mut state = fresh();
    state.localities.active = Some(7);
    assert_eq!(import(&state).err(), Some(LocalitiesStateError::NoSuchLocality(7).into()));
    let mut state = fresh();
    state.int_enable[3] = 1 << 5;
    let message = import(&state).expect_err("a refusal").to_string();
    assert!(
        message.starts_with("locality 3: TPM_CRB_INT_ENABLE is 0x00000020 and TPM_CRB_INT_STS 0x00000000"),
        "{message}"
    );
    let state = CrbState { int_sts: [0x10, 0, 0, 0, 0], ..fresh() };
    assert!(import(&state).expect_err("a refusal").to_string().contains("TPM_CRB_INT_STS 0x00000010"));
}

/// Bits of which some states have none, some those of `possible`, few any.
fn bits(possible: u32) -> impl Strategy<Value = u32> {
    prop_oneof![8 => Just(0), 8 => any::<u32>().prop_map(move |bits| bits & possible), 1 => any::<u32>()]
}

fn byte(possible: u8) -> impl Strategy<Value = u8> {
    bits(possible.into()).prop_map(|bits| bits.to_le_bytes()[0])
}

fn any_localities() -> impl Strategy<Value = LocalitiesState> {
    let active = prop_oneof![4 => Just(None), 8 => (0..5u8).prop_map(Some), 1 => any::<Option<u8>>()];
    (active, byte(0x1f), byte(0x0f), any::<bool>()).prop_map(|(active, requests, been_seized, established)| {
        LocalitiesState { active, requests, been_seized, established }
    })
}

/// Mostly whole, by its size field.
fn any_bytes() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        8 => (10..300u32).prop_map(message),
        2 => (4090..4100u32).prop_map(message),
        1 => any::<u32>().prop_map(begun),
        1 => vec(any::<u8>(), 0..40),
    ]
}

fn any_standing() -> impl Strategy<Value = Standing> {
    prop_oneof![Just(Standing::Wanted), Just(Standing::Cancelled), Just(Standing::Superseded)]
}

fn any_command() -> impl Strategy<Value = CommandState> {
    prop_oneof![
        1 => Just(CommandState::Idle),
        1 => Just(CommandState::Ready),
        4 => (any_bytes(), any_standing()).prop_map(|(command, standing)| CommandState::Execution { command, standing }),
        1 => Just(CommandState::Completion),
        1 => any::<bool>().prop_map(|then_ready| CommandState::Stopping { then_ready }),
    ]
}

fn any_state() -> impl Strategy<Value = CrbState> {
    let int_enable = prop_oneof![4 => Just([0; 5]), 1 => prop::array::uniform5(bits(0x8000_000f))];
    let int_sts = prop_oneof![4 => Just([0; 5]), 1 => prop::array::uniform5(bits(0xf))];
    let interrupts = (int_enable, int_sts);
    (any_localities(), interrupts, any::<bool>(), any::<bool>(), any_command(), any_bytes()).prop_map(
        |(localities, (int_enable, int_sts), intf_sel_lock, cancel, command, buffer)| CrbState {
            localities,
            int_enable,
            int_sts,
            intf_sel_lock,
            cancel,
            command,
            buffer,
        },
    )
}

proptest! {
    /// Invariant 8.
    #[test]
    fn a_copy_behaves_as_the_original(config in any_config(), before in steps(40), after in steps(40)) {
        let mut original = Checked::new(Crb::new(config, Pages::new()));
        original.run_all(before);
        let mut original = original.into_crb();
        let mut copy = Crb::from_state(config, &original.state(), Pages::new()).expect("what was exported");
        for crb in [&mut original, &mut copy] {
            crb.place(BAR0);
        }
        for step in after {
            for event in step.events(&original) {
                prop_assert_eq!(event.happen(&mut copy), event.happen(&mut original), "{:?}", event);
                prop_assert_eq!(copy.command(), original.command());
                prop_assert_eq!(copy.state(), original.state());
            }
        }
    }

    #[test]
    fn any_state_is_refused_or_keeps_the_invariants(
        config in any_config(),
        state in any_state(),
        steps in steps(40),
    ) {
        if let Ok(crb) = Crb::from_state(config, &state, Pages::new()) {
            prop_assert_eq!(crb.state(), state);
            let mut checked = Checked::new(crb);
            checked.run_all(steps);
        }
    }
}
