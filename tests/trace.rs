//! Traces of the built program: what Wireshark makes of them, what is not in them, and what the program refuses.

mod common;

use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use common::crb::{Crb, Start};
use common::raw_client::RawClient;
use common::server::Server;
use common::tis::Tis;
use common::tpm_commands::*;

const NV: u32 = 0x0150_0001;

// No part of one is in another, or in anything else that is sent.
const STORED: &[u8] = b"Zq7#sWm3!iNxK9vL2&uRe5@o";
const SEALED: &[u8] = b"pV2$dHb8~bQ8^nJf5%kTw6+a";
const AUTHORIZATION: &[u8] = b"hT6&Fa0*vR1(Xz9)Yc4=LgM8";

fn arguments(path: &Path, more: &[&str]) -> Vec<OsString> {
    let mut argument = OsString::from("--trace-pcap=");
    argument.push(path);
    std::iter::once(argument).chain(more.iter().map(OsString::from)).collect()
}

fn ok(tis: &mut Tis, command: &[u8]) -> Vec<u8> {
    let mut response = tis.run(command);
    // The first use of an authorization value that is protected from guessing is to be repeated.
    if code_of(&response) == RC_RETRY {
        response = tis.run(command);
    }
    assert_eq!(code_of(&response), RC_SUCCESS, "{command:02x?}");
    response
}

fn holds(file: &[u8], part: &[u8]) -> bool {
    file.windows(part.len()).any(|window| window == part)
}

/// What tshark finds in a file, packet by packet: these fields, with dissectors' and analysts' complaints.
fn tshark(file: &Path, fields: &[&str]) -> Vec<Vec<String>> {
    let mut command = Command::new("tshark");
    command
        .args(["-n", "-o", "tcp.check_checksum:TRUE", "-o", "ip.check_checksum:TRUE", "-T", "fields", "-r"])
        .arg(file);
    for field in fields {
        command.args(["-e", field]);
    }
    let output = command.output().expect("tshark is there: apt-get install tshark");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    text.lines().map(|line| line.split('\t').map(ToOwned::to_owned).collect()).collect()
}

#[test]
fn wireshark_decodes_a_session() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("trace.pcapng");
    let server = Server::with_args(&arguments(&path, &[]));
    let mut tis = Tis::new(RawClient::connect(&server.socket()));
    let sealed = u32_at(&ok(&mut tis, &create_primary_sealed(SEALED, AUTHORIZATION)), 10);
    ok(&mut tis, &unseal(sealed, AUTHORIZATION));
    assert_eq!(code_of(&tis.run(&unseal(sealed, b"wrong"))), 0x98e);
    ok(&mut tis, &flush(sealed));
    ok(&mut tis, &get_random(16));
    ok(&mut tis, &pcr_extend(16, [0xd1; 32]));
    ok(&mut tis, &pcr_read(16));
    tis.take_locality(3);
    ok(&mut tis, &create_primary_ecc());
    ok(&mut tis, &get_property(PT_LOCKOUT_COUNTER));
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    drop(tis);
    assert!(server.terminate().success());

    let packets = tshark(
        &path,
        &[
            "_ws.col.Protocol",
            "tcp.srcport",
            "tcp.dstport",
            "tpm.req.cc",
            "tpm.resp.rc",
            "_ws.col.Info",
            "_ws.malformed",
            "_ws.expert.message",
            "ip.checksum.status",
            "tcp.checksum.status",
            "tcp.analysis.flags",
        ],
    );
    for packet in &packets {
        let [protocol, .., malformed, expert, ip, tcp, analysis] = &packet[..] else { panic!("{packet:?}") };
        assert_eq!([protocol, ip, tcp].map(String::as_str), ["TPM", "1", "1"], "{packet:?}");
        assert!([malformed, expert, analysis].iter().all(|complaint| complaint.is_empty()), "{packet:?}");
    }
    // Each command and each response has a packet for its frame and one for itself, and a response an acknowledgement.
    let of_interest: Vec<_> = packets.iter().filter(|packet| !packet[3].is_empty() || !packet[4].is_empty()).collect();
    assert_eq!(packets.len(), of_interest.len() / 2 * 5);
    let sent: Vec<_> = of_interest
        .chunks(2)
        .map(|pair| {
            let [command, response] = pair else { panic!("{pair:?}") };
            assert_eq!((&command[1], &command[2]), (&response[2], &response[1]), "they are of one conversation");
            let name = command[5]
                .split("Command ")
                .nth(1)
                .and_then(|info| info.split(' ').next())
                .unwrap()
                .trim_end_matches(',');
            (command[1].as_str(), name, u32::from_str_radix(response[4].trim_start_matches("0x"), 16).unwrap())
        })
        .collect();
    let guest = "50000";
    let platform = "50001";
    assert_eq!(
        sent,
        [
            (platform, "TPM2_CC_Startup", 0),
            (platform, "TPM2_CC_HierarchyChangeAuth", 0),
            (guest, "TPM2_CC_CreatePrimary", 0),
            (guest, "TPM2_CC_Unseal", RC_RETRY),
            (guest, "TPM2_CC_Unseal", 0),
            (guest, "TPM2_CC_Unseal", 0x98e),
            (guest, "TPM2_CC_FlushContext", 0),
            (guest, "TPM2_CC_GetRandom", 0),
            (guest, "TPM2_CC_PCR_Extend", 0),
            (guest, "TPM2_CC_PCR_Read", 0),
            (guest, "TPM2_CC_CreatePrimary", 0),
            (guest, "TPM2_CC_GetCapability", 0),
            (platform, "TPM2_CC_Shutdown", 0),
        ]
    );
    // What is no secret is to be seen, with the locality in the simulator's frame.
    let file = fs::read(&path).unwrap();
    assert!(holds(&file, &[0xd1; 32]));
    assert!(holds(&file, &[0, 0, 0, 8, 3]) && !holds(&file, &[0, 0, 0, 8, 1]));
    for secret in [SEALED, AUTHORIZATION] {
        assert!(!secret.windows(6).any(|part| holds(&file, part)));
    }
}

#[test]
fn secrets_are_in_a_trace_only_if_they_are_asked_for() {
    for asked in [false, true] {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("trace.pcapng");
        let more: &[&str] = if asked { &["--trace-secrets"] } else { &[] };
        let server = Server::with_args(&arguments(&path, more));
        let mut tis = Tis::new(RawClient::connect(&server.socket()));
        ok(&mut tis, &nv_define_with_auth(NV, 24, AUTHORIZATION));
        ok(&mut tis, &nv_write(NV, STORED));
        assert_eq!(nv_data(&ok(&mut tis, &nv_read_with_auth(NV, 24, AUTHORIZATION))), STORED);
        // A client has been answered, so what is said at the start has been said.
        assert_eq!(server.log().contains("WITH THE GUEST'S SECRETS"), asked);
        let sealed = u32_at(&ok(&mut tis, &create_primary_sealed(SEALED, AUTHORIZATION)), 10);
        assert!(holds(&ok(&mut tis, &unseal(sealed, AUTHORIZATION)), SEALED));
        let random = ok(&mut tis, &get_random(32)).split_off(12);
        // Passwords and secrets at places where no TPM expects any.
        let mut astray = nv_write(NV, STORED);
        astray[9] = 0xee;
        assert_ne!(code_of(&tis.run(&astray)), RC_SUCCESS);
        drop(tis);
        assert!(server.terminate().success());
        let file = fs::read(path).unwrap();
        for secret in [STORED, SEALED, AUTHORIZATION, &random] {
            assert_eq!(holds(&file, secret), asked);
            assert_eq!(secret.windows(6).any(|part| holds(&file, part)), asked);
        }
    }
}

#[test]
fn of_a_tpm_1_2_little_is_shown() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("trace.pcapng");
    let server = Server::with_args(&arguments(&path, &["--tpm-version=1.2"]));
    let mut tis = Tis::new(RawClient::connect(&server.socket()));
    ok(&mut tis, &tpm_1_2::extend(16, [0xd1; 20]));
    ok(&mut tis, &tpm_1_2::nv_define(0x1000, 24));
    ok(&mut tis, &tpm_1_2::nv_write(0x1000, STORED));
    assert_eq!(tpm_1_2::nv_data(&ok(&mut tis, &tpm_1_2::nv_read(0x1000, 24))), STORED);
    drop(tis);
    assert!(server.terminate().success());
    let file = fs::read(path).unwrap();
    assert!(holds(&file, &tpm_1_2::extend(16, [0xd1; 20])));
    assert!(!STORED.windows(6).any(|part| holds(&file, part)));
}

#[test]
fn a_file_that_would_be_lost_costs_the_trace_and_not_the_tpm() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("kept");
    fs::write(&path, "kept").unwrap();
    let server = Server::with_args(&arguments(&path, &[]));
    let mut tis = Tis::new(RawClient::connect(&server.socket()));
    ok(&mut tis, &get_random(16));
    let log = server.log();
    assert!(log.contains("no trace this time") && log.contains("is not empty"), "{log}");
    drop(tis);
    assert!(server.terminate().success());
    assert_eq!(fs::read(&path).unwrap(), b"kept");
}

#[test]
fn a_file_for_others_a_wrong_path_and_secrets_without_a_trace_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("exposed");
    fs::write(&path, "").unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
    let (status, log) = Server::fail(&arguments(&path, &[]));
    assert!(!status.success() && log.contains("chmod 600"), "{log}");
    let (status, log) = Server::fail(&arguments(&folder.path().join("none/trace"), &[]));
    assert!(!status.success() && log.contains("cannot open the trace's file"), "{log}");
    let (status, log) = Server::fail(&["--trace-secrets".into()]);
    assert!(!status.success() && log.contains("--trace-pcap"), "{log}");
}

#[test]
fn a_guest_cannot_fill_the_disk() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("trace.pcapng");
    let server = Server::with_args(&arguments(&path, &["--trace-limit=1", Start::Register.interface()]));
    let mut crb = Crb::mapped(RawClient::connect(&server.socket()), Start::Register);
    let command = hash(&[7; 1024]);
    for _ in 0..1000 {
        assert_eq!(code_of(&crb.run(&command)), RC_SUCCESS);
    }
    assert!(server.log().contains("it has its largest size (--trace-limit)"));
    drop(crb);
    assert!(server.terminate().success());
    let size = fs::metadata(path).unwrap().len();
    assert!((900 << 10..=1 << 20).contains(&size), "{size}");
}
