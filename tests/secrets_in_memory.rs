//! What a guest says to its TPM, and hears from it, does not stay in the server's memory when it is over.

mod common;

use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::FileExt;
use std::time::Duration;

use common::process::until;
use common::raw_client::{NO_REPLY, REGION_READ, REGION_WRITE, RawClient, access, message_claiming};
use common::server::Server;
use common::swtpm::programs;
use common::tis::{ACCESS, ACTIVE_LOCALITY, BAR0, COMMAND_READY, DATA_AVAIL, GO, STS, Tis};
use common::tpm_commands::*;

const NV: u32 = 0x0150_0001;
const SECRET: &[u8] = b"Zq7#sWm3!iNxK9vL2&uRe5@o";
/// Bytes by which it is recognised, at addresses that are a multiple of it: of 15 in a row, 8 are such.
const WINDOW: usize = 8;

/// `TPM_XDATA_FIFO_0`: the FIFO, up to 64 bytes in one access.
const XDATA_FIFO: u64 = 0x80;
const XDATA_SIZE: usize = 64;

/// A server into which its user may look, and a guest of it.
struct Machine {
    server: Server,
    tis: Tis,
}

impl Machine {
    fn new(arguments: &[OsString]) -> Self {
        let server = Server::with_args(&[arguments, &["--sandbox=none".into()]].concat());
        let tis = Tis::new(RawClient::connect(&server.socket()));
        Self { server, tis }
    }

    /// One with an NV index for the secret.
    fn with_index(arguments: &[OsString]) -> Self {
        let mut machine = Self::new(arguments);
        machine.ok(&nv_define(NV, 24));
        machine
    }

    #[track_caller]
    fn ok(&mut self, command: &[u8]) -> Vec<u8> {
        let response = self.tis.run(command);
        assert_eq!(code_of(&response), RC_SUCCESS);
        response
    }

    /// Sends a command and does not start it.
    fn put(&mut self, command: &[u8]) {
        self.tis.write32(STS, COMMAND_READY);
        for bytes in command.chunks(XDATA_SIZE) {
            self.tis.client.region_write(BAR0, XDATA_FIFO, bytes);
        }
    }

    fn wait_for_response(&mut self) {
        while self.tis.read32(STS) & DATA_AVAIL == 0 {
            std::thread::yield_now();
        }
    }

    /// Where in the server's memory the secret is.
    fn places(&self) -> Vec<String> {
        let process = self.server.pid();
        let memory = fs::File::open(format!("/proc/{process}/mem")).unwrap();
        let maps = fs::read_to_string(format!("/proc/{process}/maps")).unwrap();
        let mut places = Vec::new();
        for line in maps.lines().filter(|line| line.contains(" rw")) {
            let (range, _) = line.split_once(' ').unwrap();
            let (start, end) = range.split_once('-').unwrap();
            let [start, end] = [start, end].map(|address| u64::from_str_radix(address, 16).unwrap());
            let mut bytes = vec![0; usize::try_from(end - start).unwrap()];
            // Not all of it is there to be read, as what the kernel has mapped for itself.
            if memory.read_exact_at(&mut bytes, start).is_err() {
                continue;
            }
            let is_part = |bytes| SECRET.windows(WINDOW).any(|part| part == bytes);
            if bytes.chunks(WINDOW).any(is_part) {
                places.push(line.to_owned());
            }
        }
        places
    }

    #[track_caller]
    fn assert_forgotten(&self) {
        assert_eq!(self.places(), Vec::<String>::new());
    }

    #[track_caller]
    fn assert_there(&self) {
        assert_ne!(self.places().len(), 0, "it is found where it is");
    }
}

/// Writes the secret, and reads it back.
fn command_and_response(arguments: &[OsString]) {
    let mut machine = Machine::with_index(arguments);
    machine.put(&nv_write(NV, SECRET));
    machine.assert_there();
    machine.tis.write32(STS, GO);
    machine.wait_for_response();
    machine.assert_forgotten();

    machine.put(&nv_read(NV, 24));
    machine.tis.write32(STS, GO);
    machine.wait_for_response();
    machine.assert_there();
    let response = machine.tis.client.region_read(BAR0, XDATA_FIFO, 64);
    assert!(response.windows(SECRET.len()).any(|bytes| bytes == SECRET));
    machine.tis.write32(STS, COMMAND_READY);
    machine.assert_forgotten();
}

#[test]
fn a_command_stays_until_it_is_run_and_a_response_until_the_guest_is_done_with_it() {
    command_and_response(&[]);
}

#[test]
fn the_same_with_an_swtpm() {
    for program in programs() {
        let folder = tempfile::tempdir().unwrap();
        command_and_response(&[
            "--backend=swtpm".into(),
            "--swtpm-exec".into(),
            program.into(),
            "--state-dir".into(),
            folder.path().into(),
        ]);
    }
}

#[test]
fn the_same_with_a_trace_and_one_with_secrets_forgets_what_it_has_written() {
    let folder = tempfile::tempdir().unwrap();
    let trace = |name: &str| OsString::from(format!("--trace-pcap={}", folder.path().join(name).display()));
    command_and_response(&[trace("without")]);
    let mut machine = Machine::with_index(&[trace("with"), "--trace-secrets".into()]);
    machine.ok(&nv_write(NV, SECRET));
    machine.ok(&nv_read(NV, 24));
    machine.tis.write32(STS, COMMAND_READY);
    let forgotten = until(Duration::from_secs(60), || machine.places().is_empty().then_some(()));
    assert!(forgotten.is_some(), "it is in {:?}", machine.places());
    let written = fs::read(folder.path().join("with")).unwrap();
    assert!(written.windows(SECRET.len()).any(|bytes| bytes == SECRET));
}

#[test]
fn a_response_that_nobody_reads_is_forgotten_with_its_locality_and_with_a_reset() {
    let mut machine = Machine::with_index(&[]);
    machine.ok(&nv_write(NV, SECRET));
    for end in [|tis: &mut Tis| tis.write8(ACCESS, ACTIVE_LOCALITY), |tis: &mut Tis| tis.reset()] {
        machine.tis.take_locality(0);
        machine.tis.begin(&nv_read(NV, 24));
        machine.wait_for_response();
        machine.assert_there();
        end(&mut machine.tis);
        machine.assert_forgotten();
    }
}

#[test]
fn a_command_that_is_not_run_is_forgotten_when_it_is_aborted_and_when_the_tpm_has_died() {
    let mut machine = Machine::with_index(&[]);
    machine.put(&nv_write(NV, SECRET));
    machine.tis.write32(STS, COMMAND_READY);
    machine.assert_forgotten();
    machine.server.kill_engine();
    assert_eq!(code_of(&machine.tis.run(&nv_write(NV, SECRET))), RC_FAILURE);
    machine.assert_forgotten();
}

#[test]
fn messages_are_forgotten_when_they_are_served_or_their_client_is_gone() {
    let mut machine = Machine::new(&[]);
    let request = access(BAR0, 0x4000, 24, SECRET);
    machine.tis.client.send(REGION_WRITE, 0, &request, &[]);
    machine.tis.client.receive().ok();
    machine.assert_forgotten();
    // Of one that is not there as a whole, what there is.
    machine.tis.client.send_bytes(&message_claiming(1, REGION_WRITE, 0, 100, &request), &[]);
    machine.tis.client.send(REGION_READ, NO_REPLY, &access(BAR0, 0, 1, &[]), &[]);
    drop(machine.tis);
    machine.tis = Tis::new(RawClient::connect(&machine.server.socket()));
    machine.assert_forgotten();
}
