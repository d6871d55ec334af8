//! The engine with an swtpm behind it: each version that is there, TPM 2.0 and 1.2, attached to and started by us.

mod common;

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use common::engine::{EngineTpm, NV, PATIENCE, load_nv, store_nv};
use common::process::until;
use common::swtpm::{Client, Listening, programs};
use common::tpm_commands::*;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;
use vfio_user_tpm::backend::swtpm::control::Request;
use vfio_user_tpm::backend::swtpm::{self, Place, Swtpm, SwtpmConfig};
use vfio_user_tpm::state::{Blob, StateFolder};
use vfio_user_tpm::tpm::{Locality, TpmVersion};

const V1_2: TpmVersion = TpmVersion::V1_2;
const V2_0: TpmVersion = TpmVersion::V2_0;

/// One test at a time: a process that another test starts has copies of this one's sockets and locks until it runs its
/// program, and swtpm takes no second data channel meanwhile.
fn turn() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

fn owned(program: PathBuf, arguments: Vec<OsString>, folder: &Path, version: TpmVersion) -> Place {
    let state = StateFolder::open(folder).unwrap();
    Place::Owned { launcher: Box::new(swtpm::command(program, arguments, folder, version)), state }
}

/// One swtpm and where it is.
struct Case {
    program: PathBuf,
    version: TpmVersion,
    folder: TempDir,
    /// Of somebody else's swtpm; without, each TPM starts its own.
    listening: Option<Listening>,
}

impl Case {
    /// Each program, attached to and started.
    fn all(version: TpmVersion) -> impl Iterator<Item = Self> {
        Self::attached(version).chain(Self::spawned(version))
    }

    fn attached(version: TpmVersion) -> impl Iterator<Item = Self> {
        Self::each(version, move |program, folder| Some(Listening::start(program, version, folder, &[])))
    }

    fn spawned(version: TpmVersion) -> impl Iterator<Item = Self> {
        Self::each(version, |_, _| None)
    }

    fn each(version: TpmVersion, listen: impl Fn(&Path, &Path) -> Option<Listening>) -> impl Iterator<Item = Self> {
        programs().iter().map(move |program| {
            // swtpm waits for the disk at each write; how long a busy one takes is not the matter here.
            let folder = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap();
            let listening = listen(program, folder.path());
            let how = if listening.is_some() { "attached" } else { "spawned" };
            println!("TPM {version}, {}, {how}", program.display());
            Self { program: program.clone(), version, folder, listening }
        })
    }

    fn backend_with(&self, arguments: &[&str]) -> Swtpm {
        let place = if let Some(listening) = &self.listening {
            Place::Attach { control: listening.control() }
        } else {
            let arguments = arguments.iter().map(OsString::from).collect();
            owned(self.program.clone(), arguments, self.folder.path(), self.version)
        };
        Swtpm::new(SwtpmConfig { version: self.version, place })
    }

    fn start_with(&self, arguments: &[&str]) -> EngineTpm {
        EngineTpm::start(self.version, self.backend_with(arguments))
    }

    fn start(&self) -> EngineTpm {
        self.start_with(&[])
    }

    /// The process that runs the TPM now.
    fn pid(&self) -> Pid {
        self.listening.as_ref().map_or_else(latest_child, |listening| listening.process.pid())
    }

    fn client(&self) -> Client {
        Client::connect(&self.listening.as_ref().unwrap().control())
    }
}

/// The children of this thread, in the order of their start; those that were killed may still be among them.
fn children() -> Vec<Pid> {
    let children = fs::read_to_string("/proc/thread-self/children").unwrap();
    children.split_whitespace().map(|pid| Pid::from_raw(pid.parse().unwrap())).collect()
}

fn latest_child() -> Pid {
    *children().last().expect("a process")
}

fn is_pcr_16_fresh(tpm: &mut EngineTpm) -> bool {
    digest_of(&tpm.ok(&pcr_read(16))) == [0; 32]
}

#[test]
fn a_tpm_is_started_up_for_its_guest_and_its_platform_hierarchy_is_closed() {
    let _turn = turn();
    for case in Case::all(V2_0) {
        let mut tpm = case.start();
        assert_eq!(tpm.ok(&get_random(16)).len(), 28);
        assert_ne!(code_of(&tpm.run(&startup_clear())), RC_SUCCESS, "it is already");
        assert_eq!(code_of(&tpm.run(&clear_by_platform())), RC_BAD_AUTH);
        assert_eq!(tpm.engine.start_failure(), None);
    }
}

#[test]
fn nv_survives_a_reset_and_a_restart_and_pcrs_do_not() {
    let _turn = turn();
    for case in Case::all(V2_0) {
        let mut tpm = case.start();
        store_nv(&mut tpm, b"kept");
        tpm.ok(&pcr_extend(16, [7; 32]));
        assert!(!is_pcr_16_fresh(&mut tpm));
        tpm.reset();
        assert!(is_pcr_16_fresh(&mut tpm));
        assert_eq!(load_nv(&mut tpm, 4), b"kept");
        tpm.ok(&pcr_extend(16, [7; 32]));
        tpm.stop();
        let mut tpm = case.start();
        assert!(is_pcr_16_fresh(&mut tpm));
        assert_eq!(load_nv(&mut tpm, 4), b"kept");
    }
}

#[test]
fn a_tpm_1_2_is_reset_and_restarted() {
    let _turn = turn();
    for case in Case::all(V1_2) {
        let mut tpm = case.start();
        tpm.ok(&tpm_1_2::extend(16, [7; 20]));
        tpm.ok(&tpm_1_2::create_endorsement_key([0; 20]));
        let key = tpm.ok(&tpm_1_2::read_pubek([1; 20]));
        tpm.reset();
        assert_eq!(tpm.ok(&tpm_1_2::pcr_read(16)).last_chunk(), Some(&[0; 20]));
        assert_ne!(code_of(&tpm.run(&tpm_1_2::assert_physical_presence())), RC_SUCCESS);
        tpm.stop();
        assert_eq!(case.start().ok(&tpm_1_2::read_pubek([1; 20])), key);
    }
}

#[test]
fn resets_and_restarts_are_no_attack_on_what_is_protected() {
    let _turn = turn();
    for case in Case::all(V2_0) {
        let mut tpm = case.start();
        store_nv(&mut tpm, b"protected");
        let use_protected = |tpm: &mut EngineTpm| {
            // The first time it may ask to be asked again; from then on a loss of power would count.
            let response = tpm.run(&nv_read_protected(NV, 9));
            if code_of(&response) != RC_SUCCESS {
                assert_eq!(code_of(&response), RC_RETRY);
                tpm.ok(&nv_read_protected(NV, 9));
            }
        };
        for _ in 0..3 {
            use_protected(&mut tpm);
            tpm.reset();
        }
        use_protected(&mut tpm);
        tpm.stop();
        let mut tpm = case.start();
        assert_eq!(property_value(&tpm.ok(&get_property(PT_LOCKOUT_COUNTER))), 0);
    }
}

#[test]
fn localities_reach_the_tpm() {
    let _turn = turn();
    for case in Case::all(V2_0) {
        let mut tpm = case.start();
        let extend = pcr_extend(17, [1; 32]);
        for _ in 0..2 {
            assert_eq!(code_of(&tpm.run_at(0, &extend)), RC_LOCALITY);
            assert_eq!(code_of(&tpm.run_at(3, &extend)), RC_SUCCESS);
        }
    }
}

#[test]
fn a_guest_cannot_choose_its_locality_by_a_command() {
    /// The vTPM proxy's command for it, with locality 3.
    const SET_LOCALITY: [u8; 11] = [0x80, 1, 0, 0, 0, 11, 0x20, 0, 0x10, 0, 3];
    let _turn = turn();
    for case in Case::spawned(V2_0) {
        let mut tpm = case.start_with(&["--locality", "allow-set-locality"]);
        tpm.ok(&SET_LOCALITY);
        assert_eq!(code_of(&tpm.run(&pcr_extend(17, [1; 32]))), RC_LOCALITY);
    }
}

#[test]
fn a_locality_that_swtpm_rejects_is_an_answer_of_the_tpm() {
    let _turn = turn();
    for case in Case::spawned(V2_0) {
        let mut tpm = case.start_with(&["--locality", "reject-locality-4"]);
        assert_eq!(code_of(&tpm.run_at(4, &get_random(8))), RC_LOCALITY);
        tpm.ok(&get_random(8));
    }
}

#[test]
fn the_established_flag_is_seen_and_reset_from_the_locality_that_may() {
    let _turn = turn();
    for case in Case::attached(V2_0) {
        let mut client = case.client();
        client.done(Request::Init { delete_volatile: false });
        for request in [Request::HashStart, Request::HashData(b"drtm"), Request::HashEnd] {
            client.done(request);
        }
        drop(client);
        let mut tpm = case.start();
        tpm.ok(&get_random(8));
        assert!(tpm.engine.established());
        for (locality, established) in [(0, true), (3, false)] {
            tpm.engine.reset_establishment(Locality::new(locality).unwrap(), std::time::Instant::now());
            tpm.ok(&get_random(8));
            assert_eq!(tpm.engine.established(), established, "after locality {locality}");
        }
    }
}

#[test]
fn a_command_cannot_be_cancelled_and_ends_by_itself() {
    let _turn = turn();
    for case in Case::all(V2_0) {
        let mut tpm = case.start();
        tpm.ok(&get_random(8));
        tpm.begin(0, &create_primary_rsa(2048, 1));
        tpm.engine.cancel(std::time::Instant::now());
        let response = tpm.response();
        assert_eq!(code_of(&response), RC_SUCCESS);
        tpm.ok(&get_random(8));
    }
}

#[test]
fn a_reset_during_a_command_starts_a_fresh_tpm() {
    let _turn = turn();
    for case in Case::all(V2_0) {
        let mut tpm = case.start();
        tpm.ok(&pcr_extend(16, [7; 32]));
        tpm.begin(0, &create_primary_rsa(2048, 1));
        tpm.reset();
        assert!(is_pcr_16_fresh(&mut tpm));
    }
}

#[test]
fn a_command_that_outlasts_a_reset_is_left_behind() {
    let _turn = turn();
    for mut case in Case::all(V2_0) {
        let mut tpm = case.start();
        tpm.ok(&pcr_extend(16, [7; 32]));
        let hung = case.pid();
        kill(hung, Signal::SIGSTOP).unwrap();
        tpm.begin(0, &get_random(8));
        tpm.reset();
        tpm.time_out();
        tpm.begin(0, &pcr_read(16));
        if let Some(listening) = &mut case.listening {
            assert!(tpm.engine.take_response(|_| ()).is_none());
            listening.process.signal(Signal::SIGCONT);
        }
        assert_eq!(digest_of(&tpm.response()), [0; 32]);
        assert_eq!(case.listening.is_some(), case.pid() == hung);
    }
}

#[test]
fn an_swtpm_that_hangs_is_failure_mode_until_a_reset_reaches_it() {
    let _turn = turn();
    for mut case in Case::all(V2_0) {
        let mut tpm = case.start();
        tpm.ok(&pcr_extend(16, [7; 32]));
        kill(case.pid(), Signal::SIGSTOP).unwrap();
        tpm.begin(0, &get_random(8));
        tpm.time_out();
        assert_eq!(code_of(&tpm.response()), RC_FAILURE);
        if let Some(listening) = &mut case.listening {
            // It stays so as long as it hangs.
            tpm.reset();
            tpm.time_out();
            assert_eq!(code_of(&tpm.run(&get_random(8))), RC_FAILURE);
            listening.process.signal(Signal::SIGCONT);
        }
        tpm.reset();
        assert!(is_pcr_16_fresh(&mut tpm));
    }
}

#[test]
fn an_swtpm_that_dies_in_a_command_comes_back_with_its_state() {
    let _turn = turn();
    for mut case in Case::all(V2_0) {
        let mut tpm = case.start();
        store_nv(&mut tpm, b"acknowledged");
        let pid = case.pid();
        kill(pid, Signal::SIGSTOP).unwrap();
        tpm.begin(0, &get_random(8));
        kill(pid, Signal::SIGKILL).unwrap();
        assert_eq!(code_of(&tpm.response()), RC_FAILURE);
        if let Some(listening) = &mut case.listening {
            tpm.reset();
            assert_eq!(code_of(&tpm.run(&get_random(8))), RC_FAILURE, "nothing listens");
            listening.start_again();
        }
        tpm.reset();
        assert_eq!(load_nv(&mut tpm, 12), b"acknowledged");
    }
}

#[test]
fn the_death_of_an_idle_swtpm_is_noticed_and_a_tpm_1_2_fails_in_its_own_words() {
    let _turn = turn();
    for mut case in Case::all(V1_2) {
        let mut tpm = case.start();
        tpm.ok(&tpm_1_2::pcr_read(0));
        kill(case.pid(), Signal::SIGKILL).unwrap();
        tpm.turn();
        assert_eq!(tpm.run(&tpm_1_2::pcr_read(0)), [0, 0xc4, 0, 0, 0, 10, 0, 0, 0, 9]);
        if let Some(listening) = &mut case.listening {
            listening.start_again();
        }
        tpm.reset();
        tpm.ok(&tpm_1_2::pcr_read(0));
    }
}

#[test]
fn an_swtpm_of_ours_ends_with_us_and_another_stays() {
    let _turn = turn();
    for mut case in Case::all(V2_0) {
        let mut tpm = case.start();
        tpm.ok(&get_random(8));
        tpm.stop();
        match &mut case.listening {
            Some(listening) => assert_eq!(listening.process.exit_status(), None),
            None => assert_eq!(children(), []),
        }
    }
}

#[test]
fn an_swtpm_of_ours_does_not_outlive_whoever_started_it() {
    let _turn = turn();
    for case in Case::spawned(V2_0) {
        // The signal comes when the thread ends that has started it.
        let pid = std::thread::scope(|scope| {
            let start = || {
                let mut tpm = case.start();
                tpm.ok(&get_random(8));
                let pid = latest_child();
                std::mem::forget(tpm);
                pid
            };
            scope.spawn(start).join().unwrap()
        });
        let stat = PathBuf::from(format!("/proc/{pid}/stat"));
        let is_dead = || fs::read_to_string(&stat).is_ok_and(|stat| stat.contains(") Z ")).then_some(());
        assert!(until(PATIENCE, is_dead).is_some());
    }
}

#[test]
fn the_state_folder_is_locked_as_long_as_swtpm_lives() {
    let _turn = turn();
    for case in Case::spawned(V2_0) {
        let mut tpm = case.start();
        tpm.ok(&get_random(8));
        assert!(StateFolder::open(case.folder.path()).is_err());
        tpm.stop();
        StateFolder::open(case.folder.path()).unwrap();
    }
}

#[test]
fn volatile_state_that_another_program_left_is_not_resumed() {
    let _turn = turn();
    for case in Case::attached(V2_0) {
        let mut client = case.client();
        client.set_data_channel();
        client.done(Request::Init { delete_volatile: false });
        for command in [startup_clear(), pcr_extend(16, [7; 32])] {
            assert_eq!(code_of(&client.run(&command)), RC_SUCCESS);
        }
        client.done(Request::StoreVolatile);
        drop(client);
        let mut tpm = case.start();
        assert!(is_pcr_16_fresh(&mut tpm));
    }
}

#[test]
fn an_swtpm_of_the_other_version_is_refused_with_what_to_give() {
    let _turn = turn();
    for mut case in Case::attached(V1_2) {
        case.version = V2_0;
        let reason = case.start().start_failure();
        assert!(reason.contains("--tpm-version 1.2"), "{reason}");
        // And it is left alone.
        case.version = V1_2;
        case.start().ok(&tpm_1_2::pcr_read(0));
    }
}

#[test]
fn an_swtpm_with_a_data_channel_of_its_own_is_refused() {
    let _turn = turn();
    let listen = |program: &Path, folder: &Path| {
        let server = format!("type=unixio,path={}", folder.join("data").display());
        Some(Listening::start(program, V2_0, folder, &["--server", &server]))
    };
    for case in Case::each(V2_0, listen) {
        let reason = case.start().start_failure();
        assert!(reason.contains("SET_DATAFD") && reason.contains("--server"), "{reason}");
    }
}

#[test]
fn an_swtpm_that_serves_another_program_is_a_failure_in_the_end() {
    let _turn = turn();
    for case in Case::attached(V2_0) {
        let mut client = case.client();
        client.done(Request::Stop);
        let mut tpm = case.start();
        tpm.time_out();
        assert!(tpm.start_failure().contains("did not answer"));
        drop(client);
        tpm.reset();
        tpm.ok(&get_random(8));
    }
}

#[test]
fn an_swtpm_that_is_not_there_is_named() {
    let _turn = turn();
    let folder = tempfile::tempdir().unwrap();
    let control = folder.path().join("control");
    let place = Place::Attach { control: control.clone() };
    let reason = EngineTpm::start(V2_0, Swtpm::new(SwtpmConfig { version: V2_0, place })).start_failure();
    assert!(reason.contains(control.to_str().unwrap()) && reason.contains("--ctrl"), "{reason}");

    let place = owned("no-such-swtpm".into(), Vec::new(), folder.path(), V2_0);
    let reason = EngineTpm::start(V2_0, Swtpm::new(SwtpmConfig { version: V2_0, place })).start_failure();
    assert!(reason.contains("no-such-swtpm"), "{reason}");
}

#[test]
fn an_argument_that_swtpm_does_not_know_ends_it() {
    let _turn = turn();
    for case in Case::spawned(V2_0) {
        let reason = case.start_with(&["--no-such-option"]).start_failure();
        assert!(reason.contains("has closed its control channel"), "{reason}");
    }
}

#[test]
fn a_folder_with_the_embedded_tpms_state_gets_no_second_tpm() {
    let _turn = turn();
    let folder = tempfile::tempdir().unwrap();
    let state = StateFolder::open(folder.path()).unwrap();
    state.refuse_embedded().unwrap();
    state.store(V2_0, Blob::Permanent, b"state").unwrap();
    let reason = state.refuse_embedded().unwrap_err().to_string();
    assert!(reason.contains("--to-swtpm"), "{reason}");
}

#[test]
fn a_state_that_cannot_be_read_is_refused_and_left_as_it_is() {
    let _turn = turn();
    for case in Case::spawned(V2_0) {
        let mut tpm = case.start();
        tpm.ok(&get_random(8));
        tpm.stop();
        let file = case.folder.path().join("tpm2-00.permall");
        let mut bytes = fs::read(&file).unwrap();
        bytes.truncate(bytes.len() / 2);
        fs::write(&file, &bytes).unwrap();
        let reason = case.start().start_failure();
        assert!(reason.contains("INIT") && reason.contains("damaged"), "{reason}");
        assert_eq!(fs::read(&file).unwrap(), bytes);
    }
}
