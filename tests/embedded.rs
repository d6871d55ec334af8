//! The engine with the embedded TPM: libtpms in its worker process, without registers and without a socket.

mod common;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use common::engine::{EngineTpm, load_nv, store_nv};
use common::tpm_commands::*;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{Id, WaitPidFlag, waitid};
use nix::unistd::Pid;
use vfio_user_tpm::backend::embedded::{Embedded, EmbeddedTpm};
use vfio_user_tpm::backend::worker::worker_program;
use vfio_user_tpm::state::{Anchor, Key, StateFolder};
use vfio_user_tpm::tpm::TpmVersion;

fn start(state: Option<&Path>) -> EngineTpm {
    start_version(TpmVersion::V2_0, state)
}

fn start_version(version: TpmVersion, state: Option<&Path>) -> EngineTpm {
    start_in(version, state.map(|path| StateFolder::open(path).unwrap()))
}

fn start_in(version: TpmVersion, state: Option<StateFolder>) -> EngineTpm {
    let tpm = EmbeddedTpm { version, state };
    let worker = worker_program(PathBuf::from(env!("CARGO_BIN_EXE_vfio-user-tpm")), log::LevelFilter::Warn);
    EngineTpm::start(version, Embedded::new(tpm, worker))
}

/// The worker: the only child of this thread that runs our program.
fn worker() -> Pid {
    let children = fs::read_to_string("/proc/thread-self/children").unwrap();
    let pids: Vec<i32> = children.split_whitespace().map(|pid| pid.parse().unwrap()).collect();
    assert_eq!(pids.len(), 1, "one worker");
    Pid::from_raw(pids[0])
}

#[test]
fn a_tpm_is_started_up_for_its_guest() {
    let mut tpm = start(None);
    assert_eq!(tpm.ok(&get_random(16)).len(), 28);
    assert_ne!(code_of(&tpm.run(&startup_clear())), RC_SUCCESS, "it is already");
}

#[test]
fn the_platform_hierarchy_is_closed() {
    let mut tpm = start(None);
    assert_eq!(code_of(&tpm.run(&clear_by_platform())), RC_BAD_AUTH);
}

#[test]
fn nv_survives_a_reset_and_pcrs_do_not() {
    let mut tpm = start(None);
    store_nv(&mut tpm, b"kept");
    tpm.ok(&pcr_extend(16, [7; 32]));
    assert_ne!(digest_of(&tpm.ok(&pcr_read(16))), [0; 32]);
    tpm.reset();
    assert_eq!(digest_of(&tpm.ok(&pcr_read(16))), [0; 32]);
    assert_eq!(load_nv(&mut tpm, 4), b"kept");
}

#[test]
fn several_resets_in_a_row_count_as_one() {
    let mut tpm = start(None);
    let before = reset_count(&tpm.ok(&read_clock()));
    for _ in 0..3 {
        tpm.reset();
    }
    let after = tpm.ok(&read_clock());
    assert_eq!(reset_count(&after), before + 1);
}

#[test]
fn state_survives_the_process() {
    let folder = tempfile::tempdir().unwrap();
    let mut tpm = start(Some(folder.path()));
    store_nv(&mut tpm, b"over the years");
    let before = reset_count(&tpm.ok(&read_clock()));
    tpm.stop();
    let mut tpm = start(Some(folder.path()));
    assert_eq!(load_nv(&mut tpm, 14), b"over the years");
    let after = tpm.ok(&read_clock());
    assert_eq!(reset_count(&after), before + 1);
}

#[test]
fn an_acknowledged_write_survives_the_sudden_death_of_the_worker() {
    let folder = tempfile::tempdir().unwrap();
    let mut tpm = start(Some(folder.path()));
    store_nv(&mut tpm, b"acknowledged");
    kill(worker(), Signal::SIGKILL).unwrap();
    assert_eq!(code_of(&tpm.run(&get_random(8))), RC_FAILURE);
    tpm.reset();
    assert_eq!(load_nv(&mut tpm, 12), b"acknowledged");
}

#[test]
fn the_death_of_the_worker_in_a_command_is_a_failure_response() {
    let mut tpm = start(None);
    tpm.ok(&get_random(8));
    let worker = worker();
    kill(worker, Signal::SIGSTOP).unwrap();
    tpm.begin(0, &get_random(8));
    kill(worker, Signal::SIGKILL).unwrap();
    let response = tpm.response();
    assert_eq!(code_of(&response), RC_FAILURE);
}

#[test]
fn a_worker_that_hangs_is_replaced_by_a_reset() {
    let mut tpm = start(None);
    tpm.ok(&get_random(8));
    let hung = worker();
    kill(hung, Signal::SIGSTOP).unwrap();
    tpm.begin(0, &get_random(8));
    tpm.reset();
    tpm.ok(&get_random(8));
    assert_ne!(worker(), hung);
}

/// Waits until all threads of the process are gone, without a word to the engine, which is still to find out how it ended.
fn wait_for_end_of(process: Pid) {
    waitid(Id::Pid(process), WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT).unwrap();
}

#[test]
fn a_reset_right_after_the_death_of_the_worker_brings_up_a_new_one() {
    let folder = tempfile::tempdir().unwrap();
    let mut tpm = start(Some(folder.path()));
    store_nv(&mut tpm, b"kept");
    // As Linux does before it starts the machine anew: nothing is left to be done before _TPM_Init.
    tpm.ok(&shutdown_clear());
    let dead = worker();
    kill(dead, Signal::SIGKILL).unwrap();
    wait_for_end_of(dead);
    tpm.reset();
    assert_eq!(load_nv(&mut tpm, 4), b"kept");
    // One that nobody has used since its start, so that a reset would leave it as it is.
    tpm.reset();
    while tpm.engine.deadline().is_some() {
        tpm.turn();
    }
    let dead = worker();
    kill(dead, Signal::SIGKILL).unwrap();
    wait_for_end_of(dead);
    tpm.reset();
    assert_eq!(load_nv(&mut tpm, 4), b"kept");
}

#[test]
fn a_worker_that_dies_of_what_came_before_a_reset_does_not_keep_the_tpm_from_coming_up() {
    let folder = tempfile::tempdir().unwrap();
    let mut tpm = start(Some(folder.path()));
    store_nv(&mut tpm, b"kept");
    tpm.ok(&shutdown_clear());
    let dying = worker();
    kill(dying, Signal::SIGSTOP).unwrap();
    tpm.reset();
    kill(dying, Signal::SIGKILL).unwrap();
    assert_eq!(load_nv(&mut tpm, 4), b"kept");
}

#[test]
fn a_long_command_can_be_cancelled() {
    let mut tpm = start(None);
    tpm.ok(&get_random(8));
    // A key may be found before the request to cancel comes through, however rarely: then try another.
    let cancelled = (0..10).any(|unique| {
        tpm.begin(0, &create_primary_rsa(3072, unique));
        tpm.engine.cancel(Instant::now());
        let response = tpm.response();
        match code_of(&response) {
            RC_CANCELED => true,
            code => {
                assert_eq!(code, RC_SUCCESS);
                tpm.ok(&flush(u32_at(&response, 10)));
                false
            }
        }
    });
    assert!(cancelled);
    tpm.ok(&get_random(8));
}

#[test]
fn localities_reach_the_tpm() {
    let mut tpm = start(None);
    let extend = pcr_extend(17, [1; 32]);
    assert_eq!(code_of(&tpm.run_at(0, &extend)), RC_LOCALITY);
    assert_eq!(code_of(&tpm.run_at(3, &extend)), RC_SUCCESS);
}

#[test]
fn a_damaged_state_is_refused_and_left_as_it_is() {
    let folder = tempfile::tempdir().unwrap();
    start(Some(folder.path())).stop();
    let file = folder.path().join("tpm2.0-permanent.state");
    let mut bytes = fs::read(&file).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(&file, &bytes).unwrap();
    let mut tpm = start(Some(folder.path()));
    assert_eq!(code_of(&tpm.run(&get_random(1))), RC_FAILURE);
    let reason = tpm.engine.start_failure().unwrap();
    assert!(reason.contains("tpm2.0-permanent.state") && reason.contains("backup"), "{reason}");
    tpm.end();
    assert_eq!(fs::read(&file).unwrap(), bytes);
}

/// A place with a state folder and a rollback anchor beside it.
struct Protected {
    place: tempfile::TempDir,
    version: TpmVersion,
}

impl Protected {
    fn new(version: TpmVersion) -> Self {
        Self { place: tempfile::tempdir().unwrap(), version }
    }

    fn start(&self, key: u8) -> EngineTpm {
        let key = Some(Key::from_master(&[key; 32]));
        let anchor = Anchor::open(&self.place.path().join("anchor"), key.as_ref()).unwrap();
        let folder = StateFolder::open(&self.place.path().join("state")).unwrap();
        start_in(self.version, Some(folder.with_key(key).with_anchor(Some(anchor))))
    }

    fn state_file(&self) -> PathBuf {
        self.place.path().join("state").join(format!("tpm{}-permanent.state", self.version))
    }
}

#[test]
fn a_sealed_tpm_survives_the_death_of_its_worker_and_a_restart_and_shows_nothing() {
    let protected = Protected::new(TpmVersion::V2_0);
    let mut tpm = protected.start(1);
    store_nv(&mut tpm, b"not for everybody");
    kill(worker(), Signal::SIGKILL).unwrap();
    assert_eq!(code_of(&tpm.run(&get_random(8))), RC_FAILURE);
    tpm.reset();
    assert_eq!(load_nv(&mut tpm, 17), b"not for everybody");
    tpm.stop();
    let file = fs::read(protected.state_file()).unwrap();
    assert!(!file.windows(17).any(|bytes| bytes == b"not for everybody"));
    assert_eq!(load_nv(&mut protected.start(1), 17), b"not for everybody");
}

#[test]
fn a_sealed_tpm_1_2_is_the_same_after_a_restart() {
    let protected = Protected::new(TpmVersion::V1_2);
    let mut tpm = protected.start(1);
    tpm.ok(&tpm_1_2::create_endorsement_key([0; 20]));
    let first = tpm.ok(&tpm_1_2::read_pubek([1; 20]));
    tpm.stop();
    assert_eq!(protected.start(1).ok(&tpm_1_2::read_pubek([1; 20])), first);
}

#[test]
fn a_wrong_key_is_told_and_touches_nothing() {
    let place = tempfile::tempdir().unwrap();
    let open = |key: Option<u8>| {
        StateFolder::open(place.path()).unwrap().with_key(key.map(|key| Key::from_master(&[key; 32])))
    };
    start_in(TpmVersion::V2_0, Some(open(Some(1)))).stop();
    let file = place.path().join("tpm2.0-permanent.state");
    let before = fs::read(&file).unwrap();
    for (key, expected) in [(Some(2), "another key"), (None, "--key-file")] {
        let mut tpm = start_in(TpmVersion::V2_0, Some(open(key)));
        assert_eq!(code_of(&tpm.run(&get_random(1))), RC_FAILURE);
        let reason = tpm.engine.start_failure().unwrap().to_owned();
        assert!(reason.contains(expected), "{reason}");
        tpm.end();
        assert_eq!(fs::read(&file).unwrap(), before);
    }
}

#[test]
fn an_older_state_put_in_the_place_of_the_newest_is_refused_at_the_next_reset() {
    let protected = Protected::new(TpmVersion::V2_0);
    let mut tpm = protected.start(1);
    tpm.ok(&get_random(1));
    let old = fs::read(protected.state_file()).unwrap();
    store_nv(&mut tpm, b"new");
    fs::write(protected.state_file(), &old).unwrap();
    tpm.reset();
    assert_eq!(code_of(&tpm.run(&get_random(1))), RC_FAILURE);
    tpm.end();
    let mut tpm = protected.start(1);
    assert_eq!(code_of(&tpm.run(&get_random(1))), RC_FAILURE);
    let reason = tpm.engine.start_failure().unwrap();
    assert!(reason.contains("state anchor --force"), "{reason}");
    tpm.end();
    assert_eq!(fs::read(protected.state_file()).unwrap(), old);
}

#[test]
fn the_folder_is_locked_as_long_as_the_worker_lives() {
    let folder = tempfile::tempdir().unwrap();
    let mut tpm = start(Some(folder.path()));
    tpm.ok(&get_random(1));
    let error = StateFolder::open(folder.path()).unwrap_err().to_string();
    assert!(error.contains(&std::process::id().to_string()), "{error}");
    tpm.stop();
    StateFolder::open(folder.path()).unwrap();
}

#[test]
fn a_tpm_1_2_extends_and_reads_its_pcrs_and_a_reset_clears_them() {
    let mut tpm = start_version(TpmVersion::V1_2, None);
    let extended = tpm.ok(&tpm_1_2::extend(16, [7; 20]));
    let read = tpm.ok(&tpm_1_2::pcr_read(16));
    assert_eq!(extended, read);
    assert_ne!(read.last_chunk(), Some(&[0; 20]));
    tpm.reset();
    assert_eq!(tpm.ok(&tpm_1_2::pcr_read(16)).last_chunk(), Some(&[0; 20]));
}

#[test]
fn nobody_is_physically_present_at_a_tpm_1_2() {
    let mut tpm = start_version(TpmVersion::V1_2, None);
    assert_ne!(code_of(&tpm.run(&tpm_1_2::assert_physical_presence())), RC_SUCCESS);
    assert_ne!(code_of(&tpm.run(&tpm_1_2::force_clear())), RC_SUCCESS);
}

#[test]
fn a_tpm_1_2_is_the_same_after_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let mut tpm = start_version(TpmVersion::V1_2, Some(folder.path()));
    tpm.ok(&tpm_1_2::create_endorsement_key([0; 20]));
    let first = tpm.ok(&tpm_1_2::read_pubek([1; 20]));
    tpm.stop();
    let mut tpm = start_version(TpmVersion::V1_2, Some(folder.path()));
    assert_eq!(tpm.ok(&tpm_1_2::read_pubek([1; 20])), first);
}

#[test]
fn a_dead_tpm_1_2_fails_in_its_own_words() {
    let mut tpm = start_version(TpmVersion::V1_2, None);
    tpm.ok(&tpm_1_2::pcr_read(0));
    kill(worker(), Signal::SIGKILL).unwrap();
    let response = tpm.run(&tpm_1_2::pcr_read(0));
    assert_eq!(response, [0, 0xc4, 0, 0, 0, 10, 0, 0, 0, 9]);
}
