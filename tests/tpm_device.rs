//! The program as it is built, driven through its socket: TIS registers in front, a real TPM behind.

mod common;

use std::ffi::OsString;
use std::fs;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use common::process::until;
use common::raw_client::{DEVICE_RESET, GET_IRQ_INFO, RawClient, SET_IRQS, irq_info, irq_set, words};
use common::server::Server;
use common::tis::{ACCESS, ACTIVE_LOCALITY, BAR0, COMMAND_READY, CONFIG, DID_VID, STS, Tis};
use common::tpm_commands::*;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::signal::{Signal, kill};
use vfio_user_tpm::state::StateFolder;

/// Nothing that is expected takes this long; a test that waits so long has failed.
const PATIENCE: Duration = Duration::from_secs(60);

const NV: u32 = 0x0150_0001;

fn connect(server: &Server) -> Tis {
    Tis::new(RawClient::connect(&server.socket()))
}

fn ok(tis: &mut Tis, command: &[u8]) -> Vec<u8> {
    let response = tis.run(command);
    assert_eq!(code_of(&response), RC_SUCCESS, "{command:02x?}");
    response
}

#[test]
fn a_guest_finds_a_started_tpm_behind_its_registers() {
    let server = Server::start();
    let mut tis = connect(&server);
    assert_eq!(tis.read32(DID_VID), 0x5450_7666);
    assert_eq!(tis.client.region_read(CONFIG, 0, 4), [0x66, 0x76, 0x50, 0x54]);
    assert_eq!(ok(&mut tis, &get_random(8)).len(), 20);
}

#[test]
fn what_is_not_a_register_reads_ones_and_drops_writes() {
    let server = Server::start();
    let mut tis = connect(&server);
    for offset in [0x5000, 0x9000, 0xfff8] {
        tis.client.region_write(BAR0, offset, &[0; 8]);
        assert_eq!(tis.client.region_read(BAR0, offset, 8), [0xff; 8], "{offset:#x}");
    }
}

#[test]
fn the_log_is_memory_that_is_kept_over_a_disconnection_and_cleared_by_a_reset_but_cannot_be_mapped() {
    let server = Server::start();
    let mut tis = connect(&server);
    tis.client.region_write(BAR0, 0x1_fff8, &[7; 8]);
    assert_eq!(tis.client.region_read(BAR0, 0x1_fff6, 10), [0, 0, 7, 7, 7, 7, 7, 7, 7, 7]);
    drop(tis);
    let mut tis = connect(&server);
    assert_eq!(tis.client.region_read(BAR0, 0x1_fff8, 8), [7; 8]);
    tis.reset();
    assert_eq!(tis.client.region_read(BAR0, 0x1_fff8, 8), [0; 8]);
    drop(tis);
    let client = vfio_user::Client::new(&server.socket()).unwrap();
    assert!(client.region(BAR0).unwrap().sparse_areas.is_empty());
}

#[test]
fn without_a_log_its_window_reads_ones() {
    let server = Server::with_args(&["--interface=tis".into(), "--no-log".into()]);
    let mut tis = connect(&server);
    tis.client.region_write(BAR0, 0x1_0000, &[0; 8]);
    assert_eq!(tis.client.region_read(BAR0, 0x1_0000, 8), [0xff; 8]);
}

#[test]
fn a_command_over_a_thousand_bytes_arrives_whole() {
    let server = Server::start();
    let mut tis = connect(&server);
    // TPM2_Hash of 1024 bytes with SHA-256 in the null hierarchy.
    let hash = plain(0x17d, &[&[4, 0][..], &[0x5a; 1024], &[0, 0x0b, 0x40, 0, 0, 0x07]].concat());
    assert!(ok(&mut tis, &hash).len() > 10 + 2 + 32);
}

#[test]
fn a_command_that_says_it_is_too_long_is_answered_by_its_size() {
    let server = Server::start();
    let mut tis = connect(&server);
    let mut command = get_random(8);
    command[4..6].copy_from_slice(&4097u16.to_be_bytes());
    command.resize(4097, 0);
    assert_eq!(code_of(&tis.run(&command)), RC_COMMAND_SIZE);
    ok(&mut tis, &get_random(8));
}

#[test]
fn registers_are_answered_whatever_the_engine_does() {
    let server = Server::start();
    let mut tis = connect(&server);
    ok(&mut tis, &get_random(8));
    // A command that runs as long as the test wants.
    kill(server.running_engine(), Signal::SIGSTOP).unwrap();
    tis.begin(&get_random(8));
    for _ in 0..1000 {
        assert_eq!(tis.read8(STS), 0x80, "in execution");
        assert_eq!(tis.read8(ACCESS) & ACTIVE_LOCALITY, ACTIVE_LOCALITY);
    }
    kill(server.running_engine(), Signal::SIGCONT).unwrap();
    assert_eq!(code_of(&tis.response()), RC_SUCCESS);
}

#[test]
fn command_ready_cancels_a_long_command() {
    let server = Server::start();
    let mut tis = connect(&server);
    tis.begin(&create_primary_rsa(3072, 1));
    tis.write32(STS, COMMAND_READY);
    until(PATIENCE, || (tis.read8(STS) == 0x40).then_some(())).expect("the TPM gets ready");
    ok(&mut tis, &get_random(8));
}

#[test]
fn pcr_17_extends_from_locality_3_and_not_from_0() {
    let server = Server::start();
    let mut tis = connect(&server);
    let extend = pcr_extend(17, [1; 32]);
    assert_eq!(code_of(&tis.run(&extend)), RC_LOCALITY);
    tis.take_locality(3);
    ok(&mut tis, &extend);
}

#[test]
fn locality_4_is_not_the_guests() {
    let server = Server::start();
    let mut client = RawClient::connect(&server.socket());
    client.negotiate();
    client.region_write(BAR0, 0x4000, &[0x02]);
    assert_eq!(client.region_read(BAR0, 0x4000, 1)[0] & ACTIVE_LOCALITY, 0);

    let server = Server::with_args(&["--guest-locality-4".into()]);
    let mut tis = connect(&server);
    tis.take_locality(4);
}

#[test]
fn a_reset_in_the_middle_of_a_command_brings_a_fresh_tpm() {
    let server = Server::start();
    let mut tis = connect(&server);
    ok(&mut tis, &pcr_extend(16, [1; 32]));
    tis.begin(&create_primary_rsa(3072, 1));
    tis.reset();
    assert_eq!(digest_of(&tis.run(&pcr_read(16))), [0; 32]);
}

#[test]
fn each_of_a_hundred_resets_counts_once_and_none_locks_out() {
    let server = Server::start();
    let mut tis = connect(&server);
    ok(&mut tis, &nv_define(NV, 4));
    ok(&mut tis, &nv_write(NV, b"kept"));
    let before = reset_count(&ok(&mut tis, &read_clock()));
    for _ in 0..100 {
        // The TPM notes that a protected secret is about to be used, and asks to be asked again. From now on a loss of
        // power without a shutdown would count as a failed try.
        assert_eq!(code_of(&tis.run(&nv_read_protected(NV, 4))), RC_RETRY);
        ok(&mut tis, &nv_read_protected(NV, 4));
        tis.reset();
        tis.reset();
    }
    assert_eq!(reset_count(&ok(&mut tis, &read_clock())), before + 100);
    assert_eq!(property_value(&ok(&mut tis, &get_property(PT_LOCKOUT_COUNTER))), 0);
}

#[test]
fn the_tpm_outlives_its_client() {
    let server = Server::start();
    let mut tis = connect(&server);
    ok(&mut tis, &pcr_extend(16, [1; 32]));
    let extended = digest_of(&tis.run(&pcr_read(16)));
    drop(tis);
    assert_eq!(digest_of(&connect(&server).run(&pcr_read(16))), extended);
}

#[test]
fn a_new_client_finds_a_fresh_tpm_if_that_is_wanted() {
    let server = Server::with_args(&["--reset-on-connect".into()]);
    ok(&mut connect(&server), &pcr_extend(16, [1; 32]));
    assert_eq!(digest_of(&connect(&server).run(&pcr_read(16))), [0; 32]);
}

#[test]
fn a_client_that_leaves_in_the_middle_of_a_command_harms_nothing() {
    let server = Server::start();
    let mut tis = connect(&server);
    tis.begin(&create_primary_rsa(3072, 1));
    drop(tis);
    ok(&mut connect(&server), &get_random(8));
}

#[test]
fn sigterm_in_the_middle_of_a_command_loses_nothing() {
    let state = tempfile::tempdir().unwrap();
    let server = Server::with_state(state.path());
    let mut tis = connect(&server);
    ok(&mut tis, &nv_define(NV, 4));
    ok(&mut tis, &nv_write(NV, b"kept"));
    tis.begin(&create_primary_rsa(3072, 1));
    assert!(server.terminate().success());

    let server = Server::with_state(state.path());
    let mut tis = connect(&server);
    assert_eq!(nv_data(&tis.run(&nv_read(NV, 4))), b"kept");
    assert_eq!(property_value(&ok(&mut tis, &get_property(PT_LOCKOUT_COUNTER))), 0);
}

#[test]
fn a_killed_engine_is_a_failure_response_until_the_next_reset() {
    let state = tempfile::tempdir().unwrap();
    let server = Server::with_state(state.path());
    let mut tis = connect(&server);
    ok(&mut tis, &nv_define(NV, 4));
    ok(&mut tis, &nv_write(NV, b"kept"));
    server.kill_engine();
    assert_eq!(code_of(&tis.run(&get_random(8))), RC_FAILURE);
    tis.reset();
    assert_eq!(nv_data(&tis.run(&nv_read(NV, 4))), b"kept");
    assert_eq!(server.log().matches("failure mode").count(), 1, "{}", server.log());
}

#[test]
fn a_killed_server_takes_its_engine_with_it_and_leaves_the_state() {
    let state = tempfile::tempdir().unwrap();
    let server = Server::with_state(state.path());
    let mut tis = connect(&server);
    ok(&mut tis, &nv_define(NV, 4));
    ok(&mut tis, &nv_write(NV, b"kept"));
    server.kill();
    // The lock is free once the last process that shares it is gone.
    until(PATIENCE, || StateFolder::open(state.path()).ok()).expect("the lock is let go");
    let server = Server::with_state(state.path());
    assert_eq!(nv_data(&connect(&server).run(&nv_read(NV, 4))), b"kept");
}

#[test]
fn a_second_server_on_the_same_state_is_told_who_has_it() {
    let state = tempfile::tempdir().unwrap();
    let server = Server::with_state(state.path());
    let (status, log) = Server::fail(&["--state-dir".into(), state.path().into()]);
    assert_eq!(status.code(), Some(1));
    assert!(log.contains(&format!("in use by process {}", server.pid())), "{log}");
}

#[test]
fn a_damaged_state_ends_the_server_and_is_left_alone() {
    let state = tempfile::tempdir().unwrap();
    assert!(Server::with_state(state.path()).terminate().success());
    let file = state.path().join("tpm2.0-permanent.state");
    let damaged = fs::read(&file).unwrap().split_last().unwrap().1.to_vec();
    fs::write(&file, &damaged).unwrap();
    let (status, log) = Server::fail(&["--state-dir".into(), state.path().into()]);
    assert_eq!(status.code(), Some(1));
    assert!(log.contains("cut off") && log.contains("backup"), "{log}");
    assert_eq!(fs::read(&file).unwrap(), damaged);
}

#[test]
fn a_server_that_has_ended_has_left_no_socket() {
    let server = Server::start();
    let socket = server.socket();
    assert!(socket.exists());
    let folder = server.terminate_keeping_folder();
    assert!(!socket.exists());
    drop(folder);
}

#[test]
fn one_connection_can_be_handed_over_by_number() {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let server = Server::on_descriptor(theirs.into());
    let mut tis = Tis::new(RawClient::from_stream(ours));
    ok(&mut tis, &get_random(8));
    drop(tis);
    assert!(server.wait().success(), "it ends with its only client");
}

#[test]
fn a_descriptor_that_was_not_handed_over_is_named() {
    let (status, log) = Server::fail_without_socket(&[OsString::from("--fd=77")]);
    assert_eq!(status.code(), Some(1));
    assert!(log.contains("--fd=77") && log.contains("inherited"), "{log}");
}

#[test]
fn a_signal_to_the_engine_alone_ends_nothing() {
    let server = Server::start();
    let mut tis = connect(&server);
    ok(&mut tis, &get_random(8));
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP, Signal::SIGQUIT] {
        kill(server.running_engine(), signal).unwrap();
    }
    ok(&mut tis, &get_random(8));
}

#[test]
fn the_hangup_of_a_terminal_ends_the_server_in_order() {
    let server = Server::start();
    let socket = server.socket();
    kill(server.pid(), Signal::SIGHUP).unwrap();
    assert!(server.wait().success());
    assert!(!socket.exists());
}

#[test]
fn a_tpm_that_cannot_be_shut_down_is_an_error_at_the_end() {
    let server = Server::start();
    ok(&mut connect(&server), &get_random(8));
    kill(server.running_engine(), Signal::SIGKILL).unwrap();
    // Not dead for the server before it has noticed; either way there is nobody to shut down.
    assert_eq!(server.terminate().code(), Some(1));
}

#[test]
fn a_server_that_cannot_serve_leaves_the_description_of_the_one_that_does() {
    let server = Server::start();
    let folder = server.description();
    let before = fs::read(folder.join("qemu-device.json")).unwrap();
    let socket = |option: &str, path: &std::path::Path| {
        let mut argument = OsString::from(option);
        argument.push(path);
        argument
    };
    let (status, log) = Server::fail_without_socket(&[
        socket("--socket-path=", &server.socket()),
        socket("--description=", &folder),
        "--pci-address=07.0".into(),
    ]);
    assert_eq!(status.code(), Some(1));
    assert!(log.contains("in use"), "{log}");
    assert_eq!(fs::read(folder.join("qemu-device.json")).unwrap(), before);
}

#[test]
fn a_write_that_fails_keeps_what_was_there_and_logs_nothing_of_the_guests() {
    let state = tempfile::tempdir().unwrap();
    let server = Server::with_state(state.path());
    let mut tis = connect(&server);
    ok(&mut tis, &nv_define(NV, 16));
    ok(&mut tis, &nv_write(NV, b"kept on the disk"));
    let in_the_way = state.path().join("tpm2.0-permanent.state.new");
    fs::create_dir(&in_the_way).unwrap();
    assert_ne!(code_of(&tis.run(&nv_write(NV, b"MY-DISK-PASSWORD"))), RC_SUCCESS);
    fs::remove_dir(&in_the_way).unwrap();
    tis.reset();
    assert_eq!(nv_data(&tis.run(&nv_read(NV, 16))), b"kept on the disk");
    let log = server.log();
    assert!(log.contains("cannot write the state file"), "{log}");
    // libtpms would print the command that led to failure mode, in hexadecimal.
    assert!(!log.contains("MY-DISK") && !log.to_lowercase().contains("4d 59 2d"), "{log}");
}

#[test]
fn server_and_engine_have_only_what_they_need() {
    let inherited = fs::File::open("/proc/self/status").unwrap();
    let server = Server::with_inherited(inherited.into());
    let engine = server.running_engine();
    ok(&mut connect(&server), &get_random(8));
    // One that is gone meanwhile was not there to stay.
    let open =
        |pid| fs::read_dir(format!("/proc/{pid}/fd")).unwrap().filter_map(|fd| fs::read_link(fd.ok()?.path()).ok());
    let is_the_inherited = |target: &std::path::PathBuf| target.ends_with("status");
    for process in [server.pid(), server.spawner().unwrap(), engine] {
        assert!(!open(process).any(|target| is_the_inherited(&target)), "{process} has it");
    }
    let limits = fs::read_to_string(format!("/proc/{engine}/limits")).unwrap();
    assert!(limits.lines().any(|line| line.starts_with("Max core file size        0")), "{limits}");
}

const INT_ENABLE: u64 = 0x08;
const INT_STATUS: u64 = 0x10;
const DATA_AVAIL_INT: u32 = 1;
/// Eventfd, trigger.
const ASSIGN: u32 = 0x24;
/// No data, unmask.
const UNMASK: u32 = 0x11;
/// Eventfd, unmask.
const UNMASK_BY_EVENTFD: u32 = 0x14;

/// A guest that has enabled the interrupt for the end of a command, and whose VMM has set INTx up.
fn interrupted(tis: &mut Tis) -> EventFd {
    let eventfd = EventFd::from_value_and_flags(0, EfdFlags::EFD_NONBLOCK).unwrap();
    tis.client.request_with(SET_IRQS, &irq_set(ASSIGN, 0, 0, 1, &[]), &[eventfd.as_raw_fd()]).ok();
    tis.write32(INT_ENABLE, 1 << 31 | DATA_AVAIL_INT);
    eventfd
}

fn wait(eventfd: &EventFd) {
    let mut state = [PollFd::new(eventfd.as_fd(), PollFlags::POLLIN)];
    assert_eq!(poll(&mut state, PollTimeout::from(60_000_u16)).unwrap(), 1, "no interrupt came");
    assert_eq!(eventfd.read(), Ok(1));
}

#[test]
fn a_command_ends_with_an_interrupt_that_comes_again_until_the_guest_clears_it() {
    let server = Server::with_args(&["--interface=tis", "--interrupts=on"].map(Into::into));
    let mut tis = connect(&server);
    assert_eq!(tis.client.region_read(CONFIG, 0x3d, 1), [1], "INTA#");
    assert_eq!(tis.client.request(GET_IRQ_INFO, &irq_info(0)).ok(), words(&[16, 7, 0, 1]));
    let eventfd = interrupted(&mut tis);
    tis.begin(&get_random(8));
    wait(&eventfd);
    assert_eq!(tis.read32(INT_STATUS), DATA_AVAIL_INT);
    assert_eq!(tis.client.region_read(CONFIG, 6, 1), [0x08], "interrupt status");
    assert_eq!(eventfd.read(), Err(Errno::EAGAIN), "masked by itself");
    tis.client.request(SET_IRQS, &irq_set(UNMASK, 0, 0, 1, &[])).ok();
    wait(&eventfd);
    tis.write32(INT_STATUS, DATA_AVAIL_INT);
    assert_eq!(tis.client.region_read(CONFIG, 6, 1), [0]);
    tis.client.request(SET_IRQS, &irq_set(UNMASK, 0, 0, 1, &[])).ok();
    assert_eq!(eventfd.read(), Err(Errno::EAGAIN), "cleared");
    assert_eq!(code_of(&tis.response()), RC_SUCCESS);
}

/// As QEMU does with KVM, which unmasks without asking it. The server is confined.
#[test]
fn an_interrupt_comes_again_after_an_unmask_by_eventfd() {
    let server = Server::with_args(&["--interface=tis", "--interrupts=on"].map(Into::into));
    let mut tis = connect(&server);
    let eventfd = interrupted(&mut tis);
    let unmask = EventFd::from_flags(EfdFlags::EFD_NONBLOCK).unwrap();
    let request = irq_set(UNMASK_BY_EVENTFD, 0, 0, 1, &[]);
    tis.client.request_with(SET_IRQS, &request, &[unmask.as_raw_fd()]).ok();
    tis.begin(&get_random(8));
    for _ in 0..3 {
        wait(&eventfd);
        unmask.write(1).unwrap();
    }
    wait(&eventfd);
    assert_eq!(code_of(&tis.response()), RC_SUCCESS);
}

#[test]
fn an_interrupt_outlives_its_client_and_not_a_reset() {
    let server = Server::with_args(&["--interface=tis", "--interrupts=on"].map(Into::into));
    let mut tis = connect(&server);
    let eventfd = interrupted(&mut tis);
    tis.begin(&get_random(8));
    wait(&eventfd);
    drop(tis);

    let mut client = RawClient::connect(&server.socket());
    client.negotiate();
    client.request_with(SET_IRQS, &irq_set(ASSIGN, 0, 0, 1, &[]), &[eventfd.as_raw_fd()]).ok();
    wait(&eventfd);
    client.request(DEVICE_RESET, &[]).ok();
    client.request(SET_IRQS, &irq_set(UNMASK, 0, 0, 1, &[])).ok();
    assert_eq!(eventfd.read(), Err(Errno::EAGAIN));
    assert_eq!(client.region_read(CONFIG, 6, 1), [0]);
}

#[test]
fn without_being_asked_for_there_is_no_interrupt() {
    let server = Server::with_args(&["--interface=tis".into()]);
    let mut tis = connect(&server);
    assert_eq!(tis.client.region_read(CONFIG, 0x3d, 1), [0]);
    assert_eq!(tis.client.request(GET_IRQ_INFO, &irq_info(0)).ok(), words(&[16, 1, 0, 0]));
    tis.write32(INT_ENABLE, 1 << 31 | DATA_AVAIL_INT);
    ok(&mut tis, &get_random(8));
    assert_eq!(tis.client.region_read(CONFIG, 6, 1), [0], "no interrupt status without a pin");
}
