//! The program as it is built, driven through its socket: CRB registers or a control area in shared memory in front, a real
//! TPM behind; and peers that do with that memory what they should not.

mod common;

use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

use common::crb::{BUFFER, CONTROL_AREA, CTRL_REQ, CTRL_START, Crb, DOORBELL, LOC_CTRL, Start};
use common::process::until;
use common::raw_client::{DEVICE_RESET, RawClient};
use common::server::Server;
use common::tis::{BAR0, CONFIG};
use common::tpm_commands::*;
use nix::fcntl::{FallocateFlags, fallocate};
use nix::sys::signal::{Signal, kill};

/// QEMU gives up after this.
const QEMU_PATIENCE: Duration = Duration::from_secs(5);

const PATIENCE: Duration = Duration::from_secs(60);

const LOG: u64 = 0x1_0000;
const LOG_SIZE: usize = 0x1_0000;

fn server(start: Start, args: &[&str]) -> Server {
    let args: Vec<_> = [start.interface()].iter().chain(args).map(Into::into).collect();
    Server::with_args(&args)
}

fn mapped(server: &Server, start: Start) -> Crb {
    Crb::mapped(RawClient::connect(&server.socket()), start)
}

#[track_caller]
fn ok(crb: &mut Crb, command: &[u8]) -> Vec<u8> {
    let response = crb.run(command);
    assert_eq!(code_of(&response), RC_SUCCESS, "{command:02x?}");
    response
}

/// TPM2_Hash of 1024 bytes with SHA-256 in the null hierarchy.
fn hash_1024() -> Vec<u8> {
    plain(0x17d, &[&[4, 0][..], &[0x5a; 1024], &[0, 0x0b, 0x40, 0, 0, 0x07]].concat())
}

#[test]
fn commands_run_by_mapped_memory_and_by_accesses_alone() {
    for start in Start::BOTH {
        let server = server(start, &[]);
        let mut crb = mapped(&server, start);
        assert_eq!(ok(&mut crb, &get_random(8)).len(), 20);
        let by_memory = ok(&mut crb, &hash_1024());
        // A VMM may switch its mapping off at any time, for both sides see the same.
        let memory = crb.memory.take();
        assert_eq!(ok(&mut crb, &hash_1024()), by_memory, "{start:?}");
        crb.memory = memory;
        assert_eq!(ok(&mut crb, &hash_1024()), by_memory, "{start:?}");
    }
}

#[test]
fn a_client_that_never_maps_is_served() {
    for start in Start::BOTH {
        let server = server(start, &[]);
        let mut crb = Crb::unmapped(RawClient::connect(&server.socket()), start);
        assert_eq!(ok(&mut crb, &get_random(32)).len(), 44);
    }
}

/// The client of the `vfio_user` crate maps as VMMs of its kind do.
#[test]
fn an_independent_client_finds_the_memory_and_runs_a_command() {
    for (start, area) in [(Start::Register, (BUFFER, 0x1000)), (Start::Doorbell, (CONTROL_AREA, 0x2000))] {
        let server = server(start, &[]);
        let mut client = vfio_user::Client::new(&server.socket()).unwrap();
        let region = client.region(BAR0).unwrap();
        let areas: Vec<_> = region.sparse_areas.iter().map(|area| (area.offset, area.size)).collect();
        assert_eq!((region.size, areas), (0x2_0000, vec![area, (LOG, 0x1_0000)]));
        let memory = region.file_offset.as_ref().unwrap().file().try_clone().unwrap();
        memory.write_all_at(&get_random(8), BUFFER).unwrap();
        let mut write = |offset: u64, value: u32| client.region_write(BAR0, offset, &value.to_le_bytes()).unwrap();
        let running = match start {
            Start::Register => {
                write(LOC_CTRL, 1);
                write(CTRL_REQ, 1);
                write(CTRL_START, 1);
                CTRL_START
            }
            Start::Doorbell => {
                write(CONTROL_AREA + CTRL_START, 1);
                write(DOORBELL, 1);
                CONTROL_AREA + CTRL_START
            }
        };
        let mut has_ended = || {
            let mut word = [0xff; 4];
            client.region_read(BAR0, running, &mut word).unwrap();
            (word == [0; 4]).then_some(())
        };
        until(PATIENCE, &mut has_ended).expect("the command ends");
        let mut response = [0; 20];
        memory.read_exact_at(&mut response, BUFFER).unwrap();
        assert_eq!(response[..10], [0x80, 1, 0, 0, 0, 20, 0, 0, 0, 0], "{start:?}");
    }
}

#[test]
fn sizes_in_a_command_are_not_believed() {
    for start in Start::BOTH {
        let server = server(start, &[]);
        let mut crb = mapped(&server, start);
        for size in [0, 9, 4097, 0x8000_0000, u32::MAX] {
            let mut command = get_random(8);
            command[2..6].copy_from_slice(&size.to_be_bytes());
            assert_eq!(code_of(&crb.run(&command)), RC_COMMAND_SIZE, "{start:?} {size:#x}");
        }
        let mut command = get_random(8);
        command[2..6].copy_from_slice(&4096_u32.to_be_bytes());
        assert_ne!(code_of(&crb.run(&command)), RC_SUCCESS, "{start:?}");
        ok(&mut crb, &get_random(8));
    }
}

#[test]
fn the_control_area_in_memory_is_for_the_guest_only() {
    let server = server(Start::Doorbell, &[]);
    let mut crb = mapped(&server, Start::Doorbell);
    // Sizes and addresses of a liar.
    crb.write_memory(CONTROL_AREA + 0x58, &[0xff; 0x18]);
    assert_eq!(ok(&mut crb, &get_random(8)).len(), 20);
    crb.write_memory(CONTROL_AREA, &[0xff; 0x1000]);
    crb.write32(CTRL_START, 0);
    crb.client.request(DEVICE_RESET, &[]).ok();
    assert_eq!(crb.read_memory(CONTROL_AREA + 0x58, 4), 0x1000_u32.to_le_bytes());
    assert_eq!(ok(&mut crb, &get_random(8)).len(), 20);
}

#[test]
fn what_is_written_while_a_command_runs_does_not_change_it() {
    for start in Start::BOTH {
        let server = server(start, &["--completion-hold=0"]);
        let mut crb = mapped(&server, start);
        ok(&mut crb, &get_random(8));
        // A command that runs as long as the test wants.
        kill(server.running_engine(), Signal::SIGSTOP).unwrap();
        crb.begin(&get_random(8));
        let other = get_random(32);
        crb.write_memory(BUFFER, &other);
        crb.start();
        assert_eq!(crb.read32(CTRL_START), 1, "{start:?}");
        kill(server.running_engine(), Signal::SIGCONT).unwrap();
        let response = crb.response();
        assert_eq!((code_of(&response), response.len()), (RC_SUCCESS, 20), "{start:?}");
        ok(&mut crb, &get_random(8));
    }
}

#[test]
fn a_peer_cannot_cut_the_memory_short_and_holes_in_it_are_zeros() {
    for start in Start::BOTH {
        let server = server(start, &[]);
        let mut crb = mapped(&server, start);
        let memory = crb.memory.as_ref().unwrap().try_clone().unwrap();
        memory.set_len(0).expect_err("the size is sealed");
        memory.set_len(1 << 40).expect_err("the size is sealed");
        ok(&mut crb, &get_random(8));
        let hole = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
        fallocate(&memory, hole, 0, 0x2_0000).unwrap();
        crb.start();
        assert_eq!(code_of(&crb.response()), RC_COMMAND_SIZE, "{start:?}");
        ok(&mut crb, &get_random(8));
    }
}

#[test]
fn who_has_left_cannot_reach_the_memory_of_who_comes_next() {
    for start in Start::BOTH {
        let server = server(start, &[]);
        let mut crb = mapped(&server, start);
        ok(&mut crb, &get_random(8));
        let kept = crb.memory.take().unwrap();
        drop(crb);
        let mut next = mapped(&server, start);
        kept.write_all_at(&[0xee; 4096], BUFFER).unwrap();
        kept.write_all_at(&[0xee; 4096], CONTROL_AREA).unwrap();
        assert_eq!(ok(&mut next, &get_random(8)).len(), 20, "{start:?}");
        let mut seen = [0; 16];
        kept.read_exact_at(&mut seen, BUFFER).unwrap();
        assert_eq!(seen, [0xee; 16], "{start:?}: nothing of the new client is in the old memory");
    }
}

#[test]
fn a_response_waits_for_the_next_client() {
    for start in Start::BOTH {
        let server = server(start, &["--completion-hold=0"]);
        let mut crb = mapped(&server, start);
        ok(&mut crb, &get_random(8));
        kill(server.running_engine(), Signal::SIGSTOP).unwrap();
        crb.begin(&get_random(8));
        drop(crb);
        kill(server.running_engine(), Signal::SIGCONT).unwrap();
        let mut next = mapped(&server, start);
        let response = next.response();
        assert_eq!((code_of(&response), response.len()), (RC_SUCCESS, 20), "{start:?}");
    }
}

#[test]
fn a_reset_clears_the_memory_under_the_mapping() {
    for start in Start::BOTH {
        let server = server(start, &[]);
        let mut crb = mapped(&server, start);
        ok(&mut crb, &get_random(8));
        crb.client.request(DEVICE_RESET, &[]).ok();
        assert_eq!(crb.read_memory(BUFFER, 4096), [0; 4096], "{start:?}");
    }
}

#[test]
fn the_log_is_the_same_mapped_and_by_accesses_and_is_kept_over_a_disconnection_but_not_over_a_reset() {
    for start in Start::BOTH {
        let server = server(start, &[]);
        let mut crb = mapped(&server, start);
        assert_eq!(crb.read_memory(LOG, LOG_SIZE), vec![0; LOG_SIZE], "{start:?}");
        crb.write_memory(LOG, &vec![0x5a; LOG_SIZE]);
        crb.client.region_write(BAR0, LOG + 0xfffc, &[1, 2, 3, 4]);
        assert_eq!(crb.read_memory(LOG + 0xfffa, 6), [0x5a, 0x5a, 1, 2, 3, 4], "{start:?}");
        let kept = crb.memory.take().unwrap();
        drop(crb);
        let mut next = mapped(&server, start);
        kept.write_all_at(&[0xee; 16], LOG).unwrap();
        assert_eq!(next.client.region_read(BAR0, LOG, 16), [0x5a; 16], "{start:?}");
        assert_eq!(next.read_memory(LOG + 0xfffa, 6), [0x5a, 0x5a, 1, 2, 3, 4], "{start:?}");
        // What the guest wrote is nothing to the TPM.
        ok(&mut next, &get_random(8));
        next.client.request(DEVICE_RESET, &[]).ok();
        assert_eq!(next.read_memory(LOG, LOG_SIZE), vec![0; LOG_SIZE], "{start:?}");
    }
}

#[test]
fn without_mapping_the_log_is_memory_all_the_same() {
    let server = server(Start::Register, &["--no-mmap"]);
    let mut crb = Crb::unmapped(RawClient::connect(&server.socket()), Start::Register);
    crb.client.region_write(BAR0, LOG + 1, &[7; 8]);
    assert_eq!(crb.client.region_read(BAR0, LOG, 10), [0, 7, 7, 7, 7, 7, 7, 7, 7, 0]);
}

#[test]
fn a_log_that_is_left_out_reads_ones_and_is_not_to_be_mapped() {
    for start in Start::BOTH {
        let server = server(start, &["--no-log"]);
        let mut crb = mapped(&server, start);
        crb.client.region_write(BAR0, LOG, &[0; 8]);
        assert_eq!(crb.client.region_read(BAR0, LOG, 8), [0xff; 8], "{start:?}");
        ok(&mut crb, &get_random(8));
        drop(crb);
        let client = vfio_user::Client::new(&server.socket()).unwrap();
        assert_eq!(client.region(BAR0).unwrap().sparse_areas.len(), 1, "{start:?}");
    }
}

#[test]
fn an_engine_that_hangs_makes_no_reply_late() {
    for start in Start::BOTH {
        let server = server(start, &["--completion-hold=5000"]);
        let mut crb = mapped(&server, start);
        ok(&mut crb, &get_random(8));
        kill(server.running_engine(), Signal::SIGSTOP).unwrap();
        let begin = Instant::now();
        crb.begin(&get_random(8));
        for _ in 0..100 {
            assert_eq!(crb.read32(CTRL_START), 1);
            crb.ring();
        }
        assert!(begin.elapsed() < QEMU_PATIENCE, "{start:?}: one hold for each command, not for each access");
        crb.client.request(DEVICE_RESET, &[]).ok();
        kill(server.running_engine(), Signal::SIGCONT).unwrap();
    }
}

#[test]
fn a_long_command_can_be_cancelled() {
    for start in Start::BOTH {
        let server = server(start, &["--completion-hold=0"]);
        let mut crb = mapped(&server, start);
        crb.begin(&create_primary_rsa(3072, 1));
        crb.cancel();
        until(PATIENCE, || (crb.read32(CTRL_START) == 0).then_some(())).expect("the command ends");
        ok(&mut crb, &get_random(8));
    }
}

#[test]
fn pcr_17_extends_from_locality_3_and_not_from_0() {
    let server = server(Start::Register, &[]);
    let mut crb = mapped(&server, Start::Register);
    let extend = pcr_extend(17, [1; 32]);
    assert_eq!(code_of(&crb.run(&extend)), RC_LOCALITY);
    crb.take_locality(3);
    ok(&mut crb, &extend);
}

#[test]
fn the_doorbell_rings_in_configuration_space_too() {
    let server = server(Start::Doorbell, &[]);
    let mut crb = mapped(&server, Start::Doorbell);
    crb.write_memory(BUFFER, &get_random(8));
    crb.write32(CTRL_START, 1);
    crb.client.region_write(CONFIG, 0x40, &1_u32.to_le_bytes());
    assert_eq!(code_of(&crb.response()), RC_SUCCESS);
}

#[test]
fn registers_say_where_the_buffer_is() {
    let server = server(Start::Register, &[]);
    let mut crb = mapped(&server, Start::Register);
    crb.client.region_write(CONFIG, 0x10, &0xfe80_0000_u32.to_le_bytes());
    let read = |crb: &mut Crb, offset| crb.client.region_read(BAR0, offset, 4);
    assert_eq!(read(&mut crb, 0x58), 0x1000_u32.to_le_bytes());
    assert_eq!(read(&mut crb, 0x5c), 0xfe80_9000_u32.to_le_bytes());
    assert_eq!(crb.client.region_read(BAR0, 0x68, 8), 0xfe80_9000_u64.to_le_bytes());
}
