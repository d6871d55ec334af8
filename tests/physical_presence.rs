//! Physical presence with the program as it is built: by the window in BAR0, and by Linux in a guest.

mod common;
mod guest;

use common::crb::Crb;
use common::crb::Start::{Doorbell, Register};
use common::raw_client::RawClient;
use common::server::Server;
use common::tis::{BAR0, Tis};
use common::tpm_commands::{
    RC_SUCCESS, code_of, create_primary_ecc, flush, get_random, nv_define, plain, read_clock, reset_count, u32_at,
};
use guest::{Guest, GuestConfig, Tpm};

const WINDOW: u64 = 0x6000;
const SUBMIT: u64 = 0x0c;
const STANDING: u64 = 0x10;
const PENDING: u64 = 0x14;
const LAST: u64 = 0x1c;
const RESPONSE: u64 = 0x20;

const TPM: Tpm = Tpm::V2_0;
const NV: u32 = 0x0150_0001;

/// TPM_RC_HANDLE, of the first handle.
const RC_NO_SUCH_NV: u32 = 0x18b;

fn register(client: &mut RawClient, at: u64) -> u32 {
    u32::from_le_bytes(client.region_read(BAR0, WINDOW + at, 4).try_into().unwrap())
}

/// Asks for an operation; the answer.
fn submit(client: &mut RawClient, operation: u32, argument: u32) -> u32 {
    for (at, value) in [(0x04, operation), (0x08, argument), (SUBMIT, 1)] {
        client.region_write(BAR0, WINDOW + at, &value.to_le_bytes());
    }
    register(client, SUBMIT)
}

fn outcome(client: &mut RawClient) -> [u32; 3] {
    [PENDING, LAST, RESPONSE].map(|at| register(client, at))
}

fn serve(args: &[&str]) -> (Server, Tis) {
    let server = Server::with_args(&args.iter().map(Into::into).collect::<Vec<_>>());
    let tis = Tis::new(RawClient::connect(&server.socket()));
    (server, tis)
}

fn ok(tis: &mut Tis, command: &[u8]) -> Vec<u8> {
    let response = tis.run(command);
    assert_eq!(code_of(&response), RC_SUCCESS, "{command:02x?}");
    response
}

fn nv_read_public() -> Vec<u8> {
    plain(0x169, &NV.to_be_bytes())
}

/// The banks in use, by their algorithms.
fn banks(tis: &mut Tis) -> Vec<u16> {
    let response = ok(tis, &plain(0x17a, &[0, 0, 0, 5, 0, 0, 0, 0, 0, 0, 0, 1]));
    let banks = response[19..].chunks(6).filter(|bank| bank[3..] != [0; 3]);
    banks.map(|bank| u16::from_be_bytes([bank[0], bank[1]])).collect()
}

#[test]
fn a_clear_is_carried_out_once_at_the_next_reset() {
    let (_server, mut tis) = serve(&["--ppi-allow=clear"]);
    ok(&mut tis, &nv_define(NV, 8));
    assert_eq!(submit(&mut tis.client, 5, 0), 0);
    assert_eq!(outcome(&mut tis.client), [5, 0, 0]);
    ok(&mut tis, &nv_read_public());
    tis.reset();
    // A command waits until the TPM is up.
    assert_eq!(code_of(&tis.run(&nv_read_public())), RC_NO_SUCH_NV);
    assert_eq!(outcome(&mut tis.client), [0, 5, 0]);
    ok(&mut tis, &nv_define(NV, 8));
    tis.reset();
    ok(&mut tis, &nv_read_public());
    assert_eq!(outcome(&mut tis.client), [0, 5, 0], "the result stays");
}

#[test]
fn a_reset_of_an_unused_tpm_carries_a_request_out_and_several_do_so_once() {
    let (server, mut tis) = serve(&["--ppi-allow=clear"]);
    ok(&mut tis, &nv_define(NV, 8));
    tis.reset();
    assert_eq!(submit(&mut tis.client, 22, 0), 0);
    // The client goes, and the request stays.
    drop(tis);
    let mut tis = Tis::new(RawClient::connect(&server.socket()));
    assert_eq!(outcome(&mut tis.client), [22, 0, 0]);
    for _ in 0..3 {
        tis.reset();
    }
    assert_eq!(code_of(&tis.run(&nv_read_public())), RC_NO_SUCH_NV);
    assert_eq!(outcome(&mut tis.client), [0, 22, 0]);
}

#[test]
fn without_the_hosts_consent_nothing_is_done() {
    let (_server, mut tis) = serve(&[]);
    ok(&mut tis, &nv_define(NV, 8));
    for operation in [5, 14, 21, 22, 23, 24, 33] {
        assert_eq!(submit(&mut tis.client, operation, 2), 3, "{operation}");
        assert_eq!(register(&mut tis.client, STANDING), 2, "{operation}");
    }
    assert_eq!(submit(&mut tis.client, 0, 0), 0);
    tis.reset();
    ok(&mut tis, &nv_read_public());
    assert_eq!(outcome(&mut tis.client), [0, 0, 0]);
}

#[test]
fn pcr_banks_are_others_after_one_reset() {
    let (_server, mut tis) = serve(&["--ppi-allow=pcr-banks"]);
    let before = banks(&mut tis);
    let wanted = if before == [0x0b] { (1 << 2, 0x0c) } else { (1 << 1, 0x0b) };
    assert_eq!(submit(&mut tis.client, 23, wanted.0), 0);
    tis.reset();
    assert_eq!(banks(&mut tis), [wanted.1]);
    assert_eq!(outcome(&mut tis.client), [0, 23, 0]);
    // All of them, and what is as it is to be takes no further start.
    assert_eq!(submit(&mut tis.client, 33, 0), 0);
    tis.reset();
    assert!(banks(&mut tis).len() > 2);
    let count = reset_count(&ok(&mut tis, &read_clock()));
    assert_eq!(submit(&mut tis.client, 33, 0), 0);
    tis.reset();
    assert_eq!(reset_count(&ok(&mut tis, &read_clock())), count + 1);
    assert_eq!(outcome(&mut tis.client), [0, 33, 0]);
    // SM3 is not there.
    assert_eq!(submit(&mut tis.client, 23, 1 << 4), 0);
    tis.reset();
    ok(&mut tis, &get_random(8));
    assert_eq!(outcome(&mut tis.client), [0, 23, 0xffff_fff1]);
}

/// What is public of the endorsement hierarchy's key of a template, which follows from the hierarchy's seed.
fn endorsement_key(tis: &mut Tis) -> Vec<u8> {
    let mut create = create_primary_ecc();
    create[10..14].copy_from_slice(&0x4000_000b_u32.to_be_bytes());
    let response = ok(tis, &create);
    ok(tis, &flush(u32_at(&response, 10)));
    let size = usize::from(u16::from_be_bytes([response[18], response[19]]));
    response[20..20 + size].to_vec()
}

#[test]
fn the_endorsement_seed_is_exchanged() {
    let (_server, mut tis) = serve(&["--ppi-allow=all"]);
    let before = endorsement_key(&mut tis);
    tis.reset();
    assert_eq!(endorsement_key(&mut tis), before);
    assert_eq!(submit(&mut tis.client, 24, 0), 0);
    tis.reset();
    assert_ne!(endorsement_key(&mut tis), before);
    assert_eq!(outcome(&mut tis.client), [0, 24, 0]);
}

#[test]
fn each_interface_has_the_window_and_only_a_tpm_2_0_of_ours() {
    for start in [Register, Doorbell] {
        let server = Server::with_args(&[start.interface().into()]);
        let mut crb = Crb::unmapped(RawClient::connect(&server.socket()), start);
        assert_eq!(crb.client.region_read(BAR0, WINDOW, 4), b"PPI1");
    }
    for args in [["--tpm-version=1.2", "--interface=tis"], ["--startup=none", "--interface=tis"]] {
        let (_server, mut tis) = serve(&args);
        assert_eq!(tis.client.region_read(BAR0, WINDOW, 64), [0xff; 64]);
        let with_consent: Vec<_> = args.iter().chain(&["--ppi-allow=clear"]).map(Into::into).collect();
        let (status, said) = Server::fail(&with_consent);
        assert!(!status.success() && said.contains("--ppi-allow"), "{said}");
    }
}

/// What Linux shows in `ppi/`.
#[track_caller]
fn ppi(guest: &mut Guest, file: &str) -> String {
    guest.check(&format!("cat /sys/class/tpm/tpm0/ppi/{file}"))
}

#[test]
fn a_guest_clears_its_tpm_over_a_reboot() {
    // With the doorbell, physical presence shares its method with the start of commands.
    let server = Server::with_args(&["--ppi-allow=clear", "--interface=crb-doorbell"].map(Into::into));
    let mut guest = Guest::boot(&GuestConfig { qemu_args: server.qemu_args(), ..GuestConfig::default() });
    assert_eq!(ppi(&mut guest, "version"), "1.3\n");
    assert_eq!(ppi(&mut guest, "transition_action"), "2: Reboot\n");
    assert!(ppi(&mut guest, "response").contains("No Recent Request"));
    let operations = ppi(&mut guest, "tcg_operations");
    assert!(operations.contains("5 4: User not required\n"), "{operations}");
    assert!(operations.contains("17 1: BIOS only\n"), "{operations}");
    TPM.write_nv(&mut guest, "of the owner");
    guest.check("tpm2_changeauth -Q -c o owner-password && echo 5 > /sys/class/tpm/tpm0/ppi/request");
    assert!(ppi(&mut guest, "request").starts_with('5'));
    guest.reboot();
    assert_eq!(ppi(&mut guest, "response"), "5 0: Success\n");
    assert!(ppi(&mut guest, "request").starts_with('0'));
    assert_eq!(guest.check("tpm2_getcap handles-nv-index"), "");
    // By the owner's empty password.
    TPM.write_nv(&mut guest, "of the next owner");
    guest.quit();
}

#[test]
fn a_guest_without_the_hosts_consent_is_told_so() {
    let server = Server::start();
    let mut guest = Guest::boot(&GuestConfig { qemu_args: server.qemu_args(), ..GuestConfig::default() });
    let operations = ppi(&mut guest, "tcg_operations");
    assert!(operations.contains("5 2: Blocked for OS by"), "{operations}");
    assert_ne!(guest.run("echo 5 > /sys/class/tpm/tpm0/ppi/request").status, 0);
    assert!(ppi(&mut guest, "request").starts_with('0'));
    guest.quit();
}
