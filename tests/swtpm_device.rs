//! The program as it is built, with an swtpm behind its registers: one that it attaches to, and one of its own.

mod common;

use std::ffi::OsString;
use std::path::Path;
use std::time::{Duration, Instant};

use common::raw_client::RawClient;
use common::server::Server;
use common::swtpm::{Listening, programs};
use common::tis::{DATA_AVAIL, STS, Tis};
use common::tpm_commands::*;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;
use vfio_user_tpm::tpm::TpmVersion;

/// QEMU's main loop stands still during a register access: none takes longer.
const ACCESS_LIMIT: Duration = Duration::from_secs(1);

/// A server with an swtpm, and what that needs.
struct Machine {
    server: Server,
    listening: Option<Listening>,
    _folder: TempDir,
}

impl Machine {
    /// Each program, attached to and started.
    fn all() -> impl Iterator<Item = Self> {
        programs().iter().flat_map(|program| [Self::attached(program), Self::owned(program)])
    }

    fn attached(program: &Path) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let listening = Listening::start(program, TpmVersion::V2_0, folder.path(), &[]);
        let arguments = ["--backend=swtpm".into(), "--swtpm-ctrl".into(), listening.control().into()];
        Self { server: Server::with_args(&arguments), listening: Some(listening), _folder: folder }
    }

    fn owned(program: &Path) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let words: [OsString; 5] = [
            "--backend=swtpm".into(),
            "--swtpm-exec".into(),
            program.into(),
            "--state-dir".into(),
            folder.path().into(),
        ];
        Self { server: Server::with_args(&words), listening: None, _folder: folder }
    }

    fn connect(&self) -> Tis {
        Tis::new(RawClient::connect(&self.server.socket()))
    }

    fn swtpm(&self) -> Pid {
        self.listening.as_ref().map_or_else(|| self.server.running_engine(), |listening| listening.process.pid())
    }
}

fn ok(tis: &mut Tis, command: &[u8]) -> Vec<u8> {
    let response = tis.run(command);
    assert_eq!(code_of(&response), RC_SUCCESS, "{command:02x?}");
    response
}

/// Does something that a VMM waits for.
fn in_time(what: &str, action: impl FnOnce()) {
    let begin = Instant::now();
    action();
    assert!(begin.elapsed() < ACCESS_LIMIT, "{what} took {:?}", begin.elapsed());
}

#[test]
fn a_guest_uses_it_over_a_reset_and_it_ends_in_order() {
    for machine in Machine::all() {
        let mut tis = machine.connect();
        ok(&mut tis, &pcr_extend(16, [7; 32]));
        assert_ne!(digest_of(&ok(&mut tis, &pcr_read(16))), [0; 32]);
        tis.reset();
        assert_eq!(digest_of(&ok(&mut tis, &pcr_read(16))), [0; 32]);
        assert!(machine.server.terminate().success());
    }
}

#[test]
fn a_vmm_never_waits_for_an_swtpm_that_is_stopped_and_a_reset_reaches_it_when_it_goes_on() {
    for machine in Machine::all() {
        let mut tis = machine.connect();
        ok(&mut tis, &get_random(8));
        let stopped = machine.swtpm();
        kill(stopped, Signal::SIGSTOP).unwrap();
        in_time("a command's start", || tis.begin(&get_random(8)));
        for _ in 0..20 {
            in_time("a register", || assert_eq!(tis.read32(STS) & DATA_AVAIL, 0, "the TPM is busy"));
        }
        in_time("a reset", || tis.reset());
        in_time("a register in a reset", || {
            tis.read32(STS);
        });
        if machine.listening.is_some() {
            kill(stopped, Signal::SIGCONT).unwrap();
        }
        ok(&mut tis, &get_random(8));
        assert_eq!(machine.swtpm() == stopped, machine.listening.is_some(), "one of ours is replaced");
    }
}

#[test]
fn the_death_of_an_swtpm_in_a_command_is_a_failure_and_a_reset_brings_one_that_works() {
    for mut machine in Machine::all() {
        let mut tis = machine.connect();
        ok(&mut tis, &get_random(8));
        let dying = machine.swtpm();
        kill(dying, Signal::SIGSTOP).unwrap();
        tis.begin(&get_random(8));
        kill(dying, Signal::SIGKILL).unwrap();
        assert_eq!(code_of(&tis.response()), RC_FAILURE);
        assert_eq!(code_of(&tis.run(&get_random(8))), RC_FAILURE);
        if let Some(listening) = &mut machine.listening {
            listening.start_again();
        }
        tis.reset();
        ok(&mut tis, &get_random(8));
        let lines = machine.server.log().lines().filter(|line| line.contains("failure mode")).count();
        assert_eq!(lines, 1, "{}", machine.server.log());
    }
}
