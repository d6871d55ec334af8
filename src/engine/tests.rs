//! The engine with a backend that a test plays by hand.

use super::*;
use crate::backend::played::{Call, Played};
use crate::measure::launch::{Launch, Source};
use crate::platform::StartupPolicy;
use crate::platform::measuring::tests::banks;
use crate::ppi::{self, Request};
use crate::tpm::TpmVersion;

const OK: [u8; 10] = [0x80, 1, 0, 0, 0, 10, 0, 0, 0, 0];
const CLEAR: [u8; 12] = [0x80, 1, 0, 0, 0, 12, 0, 0, 1, 0x45, 0, 0];
const COMMAND: [u8; 12] = [0x80, 1, 0, 0, 0, 12, 0, 0, 1, 0x7b, 0, 4];

/// An engine, its backend, and a clock that only the test moves.
struct Bench {
    engine: Engine,
    backend: Played,
    now: Instant,
}

impl Bench {
    fn new(policy: StartupPolicy) -> Self {
        Self::of(Platform::new(TpmVersion::V2_0, policy))
    }

    fn of(platform: Platform) -> Self {
        let backend = Played::default();
        let engine = Engine::new(Box::new(backend.clone()), platform, None);
        Self { engine, backend, now: Instant::now() }
    }

    /// With a TPM that is up, and firmware that does the platform's work, so that no commands of ours disturb.
    fn up() -> Self {
        let mut bench = Self::new(StartupPolicy::None);
        bench.reset();
        bench.control();
        assert_eq!(bench.backend.calls(), [Call::Initialize]);
        bench
    }

    /// As [`Self::up`], and a guest's command is running.
    fn running() -> Self {
        let mut bench = Self::up();
        bench.execute();
        assert_eq!(bench.backend.calls(), [guest_command()]);
        bench
    }

    fn reset(&mut self) {
        self.engine.reset(self.now);
    }

    fn execute(&mut self) {
        self.engine.execute(Locality::ZERO, &COMMAND, self.now);
    }

    fn outcome(&mut self, outcome: Result<Done, BackendError>, response: &[u8]) {
        self.backend.0.borrow_mut().outcomes.push_back((outcome, response.to_vec()));
        self.engine.poll(self.now);
    }

    fn control(&mut self) {
        self.outcome(Ok(Done::Control { established: false }), &[]);
    }

    fn response(&mut self, response: &[u8]) {
        self.outcome(Ok(Done::Response), response);
    }

    fn gone(&mut self) {
        self.outcome(Err(BackendError::Gone("played".to_owned())), &[]);
    }

    fn take_response(&mut self) -> Option<Vec<u8>> {
        self.engine.take_response(<[u8]>::to_vec)
    }

    fn pass(&mut self, time: Duration) {
        self.now += time;
        self.engine.poll(self.now);
    }
}

fn guest_command() -> Call {
    Call::Execute(0, COMMAND.to_vec())
}

fn failure() -> Vec<u8> {
    fault_response(TpmVersion::V2_0, Fault::Failure).to_vec()
}

#[test]
fn a_start_initializes_then_starts_up_then_closes_the_platform_hierarchy() {
    let mut bench = Bench::new(StartupPolicy::Clear);
    bench.reset();
    bench.control();
    bench.response(&OK);
    bench.execute();
    let calls = bench.backend.calls();
    assert_eq!(calls[0], Call::Initialize);
    assert!(matches!(&calls[1], Call::Execute(0, command) if command[6..10] == [0, 0, 1, 0x44]));
    assert!(matches!(&calls[2], Call::Execute(0, command) if command[6..10] == [0, 0, 1, 0x29]));
    assert_eq!(calls.len(), 3, "the guest's command waits until the hierarchy is closed");
    bench.response(&OK);
    assert_eq!(bench.backend.calls(), [guest_command()]);
}

#[test]
fn a_tpm_whose_hierarchy_cannot_be_closed_is_not_given_to_the_guest() {
    let mut bench = Bench::new(StartupPolicy::Clear);
    bench.reset();
    bench.control();
    bench.response(&OK);
    bench.response(&[0x80, 1, 0, 0, 0, 10, 0, 0, 1, 1]);
    bench.execute();
    assert_eq!(bench.take_response(), Some(failure()));
    assert!(bench.engine.start_failure().is_some_and(|reason| reason.contains("0x101")));
}

/// A firmware file of these bytes, to be measured by an H-CRTM.
fn measured() -> Bench {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("firmware");
    std::fs::write(&path, "code").unwrap();
    let sources = [format!("firmware={}", path.display())].map(|source| Source::parse(source.as_ref()).unwrap());
    let launch = Launch::measure(&sources, true).unwrap();
    Bench::of(Platform::new(TpmVersion::V2_0, StartupPolicy::Clear).measuring(launch, 4096))
}

/// How a start of such a TPM goes on, step by step: a hash sequence, TPM2_Startup, TPM2_GetCapability, nine of
/// TPM2_PCR_Extend, TPM2_HierarchyChangeAuth.
const STEPS_OF_MEASURED: usize = 13;

impl Bench {
    /// Lets one more step of a measured start succeed.
    fn succeed(&mut self, step: usize) {
        match step {
            0 => self.control(),
            2 => self.response(&banks(&[])),
            _ => self.response(&OK),
        }
    }
}

fn code_of_call(call: &Call) -> Option<u8> {
    if let Call::Execute(0, command) = call { command.get(9).copied() } else { None }
}

#[test]
fn a_measured_start_hashes_starts_up_extends_and_then_closes() {
    let mut bench = measured();
    bench.reset();
    for _ in 0..2 {
        bench.control();
        (0..STEPS_OF_MEASURED - 1).for_each(|step| bench.succeed(step));
        bench.execute();
        assert_eq!(bench.engine.event_log(), None, "it is not up yet");
        let calls = bench.backend.calls();
        let begin = calls.iter().position(|call| *call == Call::Initialize).unwrap();
        assert!(matches!(&calls[begin + 1], Call::Hash(data) if data.len() == 66));
        let codes: Vec<_> = calls[begin + 2..].iter().filter_map(code_of_call).collect();
        assert_eq!(codes, [&[0x44, 0x7a][..], &[0x82; 9], &[0x29]].concat());
        bench.response(&OK);
        assert_eq!(bench.backend.calls(), [guest_command()], "the guest's command has waited");
        assert!(bench.engine.event_log().is_some());
        bench.response(&OK);
        assert_eq!(bench.take_response(), Some(OK.to_vec()));
        bench.reset();
        // To TPM2_Shutdown.
        bench.response(&OK);
    }
}

#[test]
fn a_tpm_of_which_a_measurement_is_missing_is_not_given_to_the_guest() {
    let refusal = [0x80, 1, 0, 0, 0, 10, 0, 0, 1, 1];
    for failing in 0..STEPS_OF_MEASURED {
        for how in ["refused", "nonsense", "out of turn", "gone"] {
            let mut bench = measured();
            bench.reset();
            bench.control();
            (0..failing).for_each(|step| bench.succeed(step));
            match how {
                "refused" if failing == 0 => bench.outcome(Err(BackendError::Refused("played".to_owned())), &[]),
                "refused" => bench.response(&refusal),
                "nonsense" => bench.response(&OK[..9]),
                "out of turn" if failing == 0 => bench.response(&OK),
                "out of turn" => bench.control(),
                _ => bench.gone(),
            }
            bench.execute();
            assert_eq!(bench.take_response(), Some(failure()), "{how} at step {failing}");
            assert!(bench.engine.start_failure().is_some());
            assert_eq!(bench.engine.event_log(), None);
            assert!(!bench.backend.calls().contains(&guest_command()));
        }
    }
}

#[test]
fn a_bank_that_cannot_be_measured_into_is_a_failure() {
    let mut bench = measured();
    bench.reset();
    bench.control();
    (0..2).for_each(|step| bench.succeed(step));
    bench.response(&banks(&[0, 0x12, 3, 0xff, 0xff, 0xff]));
    bench.execute();
    assert_eq!(bench.take_response(), Some(failure()));
    assert!(bench.engine.start_failure().is_some_and(|reason| reason.contains("PCR bank sm3_256")));
}

#[test]
fn a_measured_tpm_that_nobody_used_stays_as_it_is_with_its_log() {
    let mut bench = measured();
    bench.reset();
    bench.control();
    (0..STEPS_OF_MEASURED).for_each(|step| bench.succeed(step));
    bench.backend.calls();
    bench.reset();
    assert_eq!(bench.backend.calls(), []);
    assert!(bench.engine.event_log().is_some());
}

#[test]
fn a_response_is_given_once() {
    let mut bench = Bench::running();
    bench.response(&OK);
    assert_eq!(bench.take_response(), Some(OK.to_vec()));
    assert_eq!(bench.take_response(), None);
}

#[test]
fn a_response_that_is_not_whole_becomes_a_failure() {
    for bad in [&OK[..9], &[&OK[..], &[0]].concat()] {
        let mut bench = Bench::running();
        bench.response(bad);
        assert_eq!(bench.take_response(), Some(failure()));
    }
}

#[test]
fn a_reset_of_a_tpm_that_nobody_used_changes_nothing() {
    let mut bench = Bench::up();
    bench.reset();
    bench.reset();
    assert_eq!(bench.backend.calls(), []);
}

#[test]
fn a_reset_shuts_down_in_order_and_initializes_once() {
    let mut bench = Bench::running();
    bench.response(&OK);
    bench.reset();
    bench.reset();
    assert_eq!(bench.backend.calls(), [Call::Execute(0, CLEAR.to_vec())]);
    bench.response(&OK);
    bench.reset();
    assert_eq!(bench.backend.calls(), [Call::Initialize]);
    bench.control();
    assert_eq!(bench.backend.calls(), []);
}

#[test]
fn a_guest_that_shut_down_itself_is_reset_without_another_shutdown() {
    let mut bench = Bench::up();
    bench.engine.execute(Locality::ZERO, &CLEAR, bench.now);
    bench.response(&OK);
    bench.backend.calls();
    bench.reset();
    assert_eq!(bench.backend.calls(), [Call::Initialize]);
}

#[test]
fn a_reset_cancels_a_running_command_and_nobody_sees_its_response() {
    let mut bench = Bench::running();
    bench.reset();
    assert_eq!(bench.backend.calls(), [Call::Cancel]);
    bench.response(&OK);
    assert_eq!(bench.take_response(), None);
    assert_eq!(bench.backend.calls(), [Call::Execute(0, CLEAR.to_vec())]);
}

#[test]
fn a_command_sent_during_a_reset_runs_on_the_fresh_tpm() {
    let mut bench = Bench::running();
    bench.reset();
    bench.execute();
    bench.response(&OK);
    bench.response(&OK);
    assert_eq!(bench.backend.calls(), [Call::Cancel, Call::Execute(0, CLEAR.to_vec()), Call::Initialize]);
    assert_eq!(bench.take_response(), None);
    bench.control();
    assert_eq!(bench.backend.calls(), [guest_command()]);
}

#[test]
fn a_hung_command_is_ended_soon_after_a_reset_and_the_tpm_works_again() {
    let mut bench = Bench::running();
    bench.reset();
    bench.pass(ABORT_LIMIT);
    assert_eq!(bench.backend.calls(), [Call::Cancel, Call::Kill, Call::Initialize]);
    bench.control();
    bench.execute();
    assert_eq!(bench.backend.calls(), [guest_command()]);
}

#[test]
fn a_command_that_ignores_its_cancellation_becomes_a_failure() {
    let mut bench = Bench::running();
    bench.engine.cancel(bench.now);
    bench.pass(CANCEL_LIMIT.saturating_sub(Duration::from_millis(1)));
    assert_eq!(bench.take_response(), None);
    bench.pass(Duration::from_millis(1));
    assert_eq!(bench.take_response(), Some(failure()));
    assert_eq!(bench.backend.calls(), [Call::Cancel, Call::Kill]);
}

#[test]
fn a_tpm_that_cannot_cancel_is_waited_for_except_by_a_reset() {
    let mut bench = Bench::running();
    bench.backend.0.borrow_mut().disobeys = true;
    bench.engine.cancel(bench.now);
    bench.pass(CANCEL_LIMIT * 2);
    assert_eq!(bench.take_response(), None);
    bench.response(&OK);
    assert_eq!(bench.take_response(), Some(OK.to_vec()));
    bench.execute();
    bench.reset();
    bench.pass(ABORT_LIMIT);
    assert!(bench.backend.calls().contains(&Call::Kill));
}

#[test]
fn a_second_cancellation_gives_no_more_time() {
    let mut bench = Bench::running();
    bench.engine.cancel(bench.now);
    bench.pass(CANCEL_LIMIT / 2);
    bench.engine.cancel(bench.now);
    bench.pass(CANCEL_LIMIT / 2);
    assert_eq!(bench.take_response(), Some(failure()));
}

#[test]
fn a_command_that_waits_is_cancelled_at_once() {
    let mut bench = Bench::new(StartupPolicy::None);
    bench.reset();
    bench.execute();
    bench.engine.cancel(bench.now);
    assert_eq!(bench.take_response(), Some(fault_response(TpmVersion::V2_0, Fault::Canceled).to_vec()));
    bench.control();
    assert_eq!(bench.backend.calls(), [Call::Initialize]);
}

#[test]
fn the_death_of_the_tpm_is_failure_mode_until_the_next_reset() {
    let mut bench = Bench::running();
    bench.gone();
    assert_eq!(bench.take_response(), Some(failure()));
    bench.execute();
    assert_eq!(bench.take_response(), Some(failure()));
    assert_eq!(bench.backend.calls(), []);
    assert_eq!(bench.engine.start_failure(), None, "a failure after the first start is the guest's to see");
    bench.reset();
    bench.control();
    bench.execute();
    bench.response(&OK);
    assert_eq!(bench.take_response(), Some(OK.to_vec()));
}

#[test]
fn a_tpm_that_died_unused_is_brought_up_by_a_reset() {
    let mut bench = Bench::up();
    bench.gone();
    bench.reset();
    assert_eq!(bench.backend.calls(), [Call::Kill, Call::Initialize]);
}

#[test]
fn a_first_start_that_fails_is_told_to_the_user() {
    let mut bench = Bench::new(StartupPolicy::Clear);
    bench.reset();
    bench.outcome(Err(BackendError::Refused("the state is damaged".to_owned())), &[]);
    assert_eq!(bench.engine.start_failure(), Some("the state is damaged"));
}

#[test]
fn a_backend_that_cannot_even_begin_is_failure_mode() {
    let mut bench = Bench::up();
    bench.backend.0.borrow_mut().gone = true;
    bench.execute();
    assert_eq!(bench.take_response(), Some(failure()));
    bench.reset();
    bench.execute();
    assert_eq!(bench.take_response(), Some(failure()));
}

#[test]
fn an_answer_that_nobody_asked_for_ends_the_backend() {
    let mut bench = Bench::up();
    bench.response(&OK);
    assert_eq!(bench.backend.calls(), [Call::Kill]);
    bench.execute();
    assert_eq!(bench.take_response(), Some(failure()));
}

#[test]
fn a_stop_shuts_down_and_powers_off() {
    let mut bench = Bench::running();
    bench.engine.stop(bench.now);
    bench.response(&OK);
    bench.response(&OK);
    assert!(!bench.engine.is_off());
    bench.control();
    assert!(bench.engine.is_off());
    let calls = [Call::Cancel, Call::Execute(0, CLEAR.to_vec()), Call::Terminate, Call::Kill];
    assert_eq!(bench.backend.calls(), calls);
}

#[test]
fn a_stop_comes_to_its_end_whatever_the_backend_does_and_says_what_failed() {
    let mut bench = Bench::running();
    bench.engine.stop(bench.now);
    bench.pass(ABORT_LIMIT);
    assert!(bench.engine.is_off());
    assert!(bench.engine.stop_failure().is_some());

    let mut bench = Bench::new(StartupPolicy::Clear);
    bench.reset();
    bench.engine.stop(bench.now);
    bench.pass(SHUTDOWN_LIMIT);
    assert!(bench.engine.is_off(), "in the middle of a start");

    let mut bench = Bench::up();
    bench.backend.0.borrow_mut().lingers = true;
    bench.engine.stop(bench.now);
    bench.response(&OK);
    bench.control();
    assert!(!bench.engine.is_off(), "what ran the TPM is still there");
    bench.pass(ABORT_LIMIT);
    assert!(bench.engine.is_off());
    assert_eq!(bench.engine.stop_failure(), None);
}

#[test]
fn a_shutdown_that_the_tpm_refuses_at_the_end_is_told() {
    let mut bench = Bench::up();
    bench.engine.stop(bench.now);
    bench.response(&failure());
    bench.control();
    assert!(bench.engine.is_off());
    assert!(bench.engine.stop_failure().is_some_and(|reason| reason.contains("0x101")));
}

#[test]
fn a_backend_that_talks_by_itself_is_ended_and_not_listened_to() {
    let mut bench = Bench::up();
    for _ in 0..1000 {
        let outcome = (Err(BackendError::Refused("listen".to_owned())), Vec::new());
        bench.backend.0.borrow_mut().outcomes.push_back(outcome);
    }
    bench.engine.poll(bench.now);
    assert!(bench.backend.calls().iter().all(|call| *call == Call::Kill));
    bench.execute();
    assert_eq!(bench.take_response(), Some(failure()));
}

#[test]
fn the_establishment_is_reset_when_the_tpm_has_time() {
    let mut bench = Bench::running();
    let locality = Locality::new(3).unwrap();
    bench.engine.reset_establishment(locality, bench.now);
    assert_eq!(bench.backend.calls(), []);
    bench.response(&OK);
    assert_eq!(bench.backend.calls(), [Call::ResetEstablished(3)]);
    assert_eq!(bench.take_response(), Some(OK.to_vec()));
    bench.execute();
    bench.outcome(Err(BackendError::Refused("not from there".to_owned())), &[]);
    assert_eq!(bench.backend.calls(), [guest_command()]);
}

#[test]
fn commands_and_responses_are_kept_no_longer_than_somebody_waits_for_them() {
    let nothing_kept = |bench: &Bench| bench.engine.command.is_empty() && bench.engine.response.is_empty();
    let mut bench = Bench::running();
    assert!(nothing_kept(&bench), "the backend has it");
    bench.response(&OK);
    assert!(!nothing_kept(&bench));
    assert_eq!(bench.take_response(), Some(OK.to_vec()));
    assert!(nothing_kept(&bench), "it is answered");

    bench.execute();
    bench.response(&OK);
    bench.reset();
    assert!(nothing_kept(&bench), "nobody has read it before the reset");

    let mut bench = Bench::running();
    bench.reset();
    bench.response(&OK);
    assert!(nothing_kept(&bench), "it came after the reset");
    bench.execute();
    assert!(!nothing_kept(&bench));
    bench.engine.stop(bench.now);
    assert!(nothing_kept(&bench), "it waited for the reset to end");
}

/// A TPM of ours that is up, and unused.
fn up_and_closed() -> Bench {
    let mut bench = Bench::new(StartupPolicy::Clear);
    bench.reset();
    bench.control();
    bench.response(&OK);
    bench.response(&OK);
    bench.backend.calls();
    bench
}

/// The codes of the commands that were sent, and nothing else; 0 for a `_TPM_Init`.
fn codes(bench: &Bench) -> Vec<u32> {
    let code = |call| match call {
        Call::Initialize => 0,
        Call::Execute(0, command) => Header::of_whole(&command).expect("a whole command").code,
        other => panic!("{other:?}"),
    };
    bench.backend.calls().into_iter().map(code).collect()
}

const STARTUP: u32 = 0x144;
const CLOSING: u32 = 0x129;
const SHUTDOWN: u32 = 0x145;

#[test]
fn a_request_is_carried_out_once_however_many_resets_come() {
    let mut bench = up_and_closed();
    bench.engine.platform_mut().request(Request { operation: 5, argument: 0 });
    bench.reset();
    assert_eq!(codes(&bench), [SHUTDOWN], "though nobody has used the TPM");
    bench.reset();
    bench.response(&OK);
    bench.control();
    for _ in 0..4 {
        bench.reset();
        bench.response(&OK);
    }
    assert_eq!(codes(&bench), [0, STARTUP, 0x127, 0x126, CLOSING]);
    assert_eq!(bench.engine.platform_mut().take_response(), Some(ppi::SUCCESS));
    bench.reset();
    assert_eq!((codes(&bench), bench.engine.platform_mut().take_response()), (vec![], None));
}

#[test]
fn a_request_that_fails_leaves_the_guest_its_tpm() {
    let mut bench = up_and_closed();
    bench.engine.platform_mut().request(Request { operation: 24, argument: 0 });
    bench.reset();
    bench.response(&OK);
    bench.control();
    bench.response(&OK);
    bench.response(&[0x80, 1, 0, 0, 0, 10, 0, 0, 1, 0x43]);
    bench.response(&OK);
    assert_eq!(bench.engine.platform_mut().take_response(), Some(0x143));
    bench.backend.calls();
    bench.execute();
    assert_eq!(bench.backend.calls(), [guest_command()]);
}

#[test]
fn other_pcr_banks_take_one_more_start_before_the_guest_has_the_tpm() {
    let mut bench = up_and_closed();
    bench.engine.platform_mut().request(Request { operation: 23, argument: 2 });
    bench.reset();
    bench.response(&OK);
    bench.control();
    bench.execute();
    bench.response(&OK);
    bench.response(&[0x80, 1, 0, 0, 0, 25, 0, 0, 0, 0, 0, 0, 0, 0, 5, 0, 0, 0, 1, 0, 0x0b, 3, 0, 0, 0]);
    bench.response(&[0x80, 2, 0, 0, 0, 15, 0, 0, 0, 0, 0, 0, 0, 1, 1]);
    bench.response(&OK);
    assert_eq!(codes(&bench), [SHUTDOWN, 0, STARTUP, 0x17a, 0x12b, CLOSING, SHUTDOWN]);
    bench.response(&OK);
    bench.control();
    bench.response(&OK);
    assert_eq!(codes(&bench), [0, STARTUP, CLOSING]);
    bench.response(&OK);
    assert_eq!(bench.backend.calls(), [guest_command()]);
    assert_eq!(bench.engine.platform_mut().take_response(), Some(ppi::SUCCESS));
}

#[test]
fn a_tpm_that_dies_over_a_request_has_not_carried_it_out_and_is_not_asked_again() {
    let mut bench = up_and_closed();
    bench.engine.platform_mut().request(Request { operation: 5, argument: 0 });
    bench.reset();
    bench.response(&OK);
    bench.control();
    bench.response(&OK);
    bench.gone();
    assert_eq!(bench.engine.platform_mut().take_response(), Some(ppi::FIRMWARE_FAILURE));
    bench.backend.calls();
    bench.reset();
    bench.control();
    bench.response(&OK);
    assert_eq!(codes(&bench), [0, STARTUP, CLOSING]);
}

#[test]
fn a_request_that_comes_while_the_tpm_starts_has_it_start_again() {
    let mut bench = Bench::new(StartupPolicy::Clear);
    bench.reset();
    bench.control();
    bench.engine.platform_mut().request(Request { operation: 24, argument: 0 });
    bench.reset();
    bench.response(&OK);
    bench.response(&OK);
    assert_eq!(codes(&bench), [0, STARTUP, CLOSING, SHUTDOWN]);
    bench.response(&OK);
    bench.control();
    bench.response(&OK);
    assert_eq!(codes(&bench), [0, STARTUP, 0x124]);
}
