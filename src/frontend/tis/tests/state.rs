//! Export and import of the whole register file; its parts are tested where they are.

use proptest::collection::vec;
use proptest::prelude::*;

use super::steps::{Checked, any_config, begun, steps};
use super::*;
use crate::frontend::LocalitiesStateError;
use crate::tpm::{BUFFER_SIZE, Fault, fault_response};

fn fresh() -> TisState {
    Tis::new(config(TpmVersion::V2_0)).state()
}

fn import(state: &TisState) -> Result<Tis, TisStateError> {
    Tis::from_state(config(TpmVersion::V2_0), state)
}

/// The state of a TPM that runs `command` for locality 2.
fn executing(command: &[u8]) -> TisState {
    Guest::executing(2, command).tis.state()
}

#[test]
fn a_state_is_plain_data_for_any_format() {
    let state = executing(&message(20));
    let json = serde_json::to_string(&state).expect("JSON");
    assert_eq!(serde_json::from_str::<TisState>(&json).expect("a state"), state);
}

#[test]
fn a_field_that_is_not_known_is_refused() {
    let json = serde_json::to_string(&fresh()).expect("JSON").replacen('{', "{\"colour\":1,", 1);
    assert!(serde_json::from_str::<TisState>(&json).is_err());
}

#[test]
fn a_running_command_is_there_to_be_run_again() {
    let mut copy = import(&executing(&message(20))).expect("a state");
    assert!(copy.is_busy());
    assert_eq!(copy.command(), message(20));
    copy.complete(&message(30));
    assert_eq!(Guest { tis: copy }.receive(2), message(30));
}

#[test]
fn a_running_command_can_be_failed_instead() {
    let mut copy = import(&executing(&message(20))).expect("a state");
    copy.complete(&[]);
    let failure = fault_response(TpmVersion::V2_0, Fault::Failure);
    assert_eq!(Guest { tis: copy }.receive(2), failure);
}

#[test]
fn a_stopping_command_has_nothing_to_run_and_ends_all_the_same() {
    let mut guest = Guest::executing(2, &message(20));
    guest.write8(2, STS, COMMAND_READY);
    let mut copy = import(&guest.tis.state()).expect("a state");
    assert!(copy.is_busy());
    assert!(copy.command().is_empty());
    copy.complete(&[]);
    assert_eq!(Guest { tis: copy }.read8(2, STS), COMMAND_READY);
}

#[test]
fn a_command_without_an_owner_is_refused() {
    for command in [
        CommandState::Ready,
        CommandState::Reception { received: vec![0x80], missing: None },
        CommandState::Execution { command: message(10) },
        CommandState::Completion { response: message(10), offset: 0 },
        CommandState::Stopping { then_ready: true },
    ] {
        let state = TisState { command, ..fresh() };
        assert_eq!(import(&state).err(), Some(TisStateError::CommandWithoutOwner));
    }
    let nobodys = TisState { command: CommandState::Stopping { then_ready: false }, ..fresh() };
    assert!(import(&nobodys).is_ok());
}

#[test]
fn a_state_with_locality_4_goes_only_where_the_guest_may_use_it() {
    let opened = TisConfig { guest_locality_4: true, ..config(TpmVersion::V2_0) };
    let mut owned = fresh();
    owned.localities.active = Some(4);
    let mut requested = fresh();
    requested.localities = LocalitiesState { active: Some(0), requests: 0x10, ..requested.localities };
    let mut interrupts = fresh();
    interrupts.interrupts[4].vector = 1;
    for state in [owned, requested, interrupts] {
        assert_eq!(import(&state).err(), Some(TisStateError::LocalityFourUsed));
        assert!(Tis::from_state(opened, &state).is_ok());
    }
}

#[test]
fn only_the_lock_of_the_interface_id_can_differ() {
    let locked = TisState { interface_id: 0x0008_2100, ..fresh() };
    assert_eq!(import(&locked).map(|tis| tis.state()), Ok(locked));
    for found in [0, 0x0000_2101, 0x0002_2100, 0x8000_2100] {
        let refusal = TisStateError::InterfaceId { expected: 0x2100, found };
        assert_eq!(import(&TisState { interface_id: found, ..fresh() }).err(), Some(refusal));
    }
}

#[test]
fn what_is_wrong_with_a_part_is_wrong_with_the_whole() {
    let mut state = fresh();
    state.localities.active = Some(7);
    assert_eq!(import(&state).err(), Some(LocalitiesStateError::NoSuchLocality(7).into()));
    let mut state = fresh();
    state.interrupts[3].enable = 1 << 5;
    let message = import(&state).expect_err("a refusal").to_string();
    assert_eq!(message, "locality 3: TPM_INT_ENABLE is 0x00000020: expected no bits but those of 0x8000009f");
    let state = TisState { command: CommandState::Execution { command: vec![] }, ..fresh() };
    assert!(matches!(import(&state), Err(TisStateError::Command(_))));
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

fn any_interrupts() -> impl Strategy<Value = InterruptsState> {
    let registers = (bits(0x8000_009f), byte(0x0f), bits(0x87));
    let any = registers.prop_map(|(enable, vector, status)| InterruptsState { enable, vector, status });
    prop_oneof![3 => Just(fresh().interrupts[0]), 1 => any]
}

/// Mostly whole, by their size field.
fn any_message() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        8 => (10..300u32).prop_map(message),
        2 => (4090..4100u32).prop_map(message),
        1 => vec(any::<u8>(), 0..40),
    ]
}

/// Mostly as many missing bytes as the size field says.
fn any_reception() -> impl Strategy<Value = CommandState> {
    let size = prop_oneof![0..20u32, 0..5000u32, any::<u32>()];
    let length = prop_oneof![0..20usize, 0..5000usize, Just(BUFFER_SIZE)];
    (size, length, prop_oneof![4 => Just(None), 1 => any::<Option<usize>>().prop_map(Some)]).prop_map(
        |(size, length, missing)| {
            let said = usize::try_from(size).expect("64 bits").max(10).checked_sub(length);
            let missing = missing.unwrap_or(said.filter(|_| length >= 6));
            CommandState::Reception { received: begun(size, length), missing }
        },
    )
}

fn any_command() -> impl Strategy<Value = CommandState> {
    prop_oneof![
        1 => Just(CommandState::Idle),
        1 => Just(CommandState::Ready),
        4 => any_reception(),
        2 => any_message().prop_map(|command| CommandState::Execution { command }),
        3 => (any_message(), prop_oneof![Just(0), 0..400usize, any::<usize>()])
            .prop_map(|(response, offset)| CommandState::Completion { response, offset }),
        1 => any::<bool>().prop_map(|then_ready| CommandState::Stopping { then_ready }),
    ]
}

fn any_state() -> impl Strategy<Value = TisState> {
    let interrupts = prop::array::uniform5(any_interrupts());
    let interface_id = prop_oneof![8 => Just(0x2100), 8 => Just(0x0008_2100), 1 => any::<u32>()];
    (any_localities(), interrupts, interface_id, any_command()).prop_map(
        |(localities, interrupts, interface_id, command)| TisState { localities, interrupts, interface_id, command },
    )
}

proptest! {
    /// Invariant 9.
    #[test]
    fn a_copy_behaves_as_the_original(config in any_config(), before in steps(60), after in steps(60)) {
        let mut original = Checked::new(Tis::new(config));
        original.run_all(before);
        let mut original = original.into_tis();
        let mut copy = Tis::from_state(config, &original.state()).expect("what was exported");
        for step in after {
            for event in step.events(&mut original) {
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
        if let Ok(tis) = Tis::from_state(config, &state) {
            prop_assert_eq!(tis.state(), state);
            let mut checked = Checked::new(tis);
            checked.run_all(steps);
        }
    }
}
