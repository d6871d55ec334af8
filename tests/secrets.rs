//! No secret is in what the program logs, at its most talkative and whatever fails: neither what a guest stores in its
//! TPM and by which authorization values, nor the keys and passphrases that the TPM's owner gives.

mod common;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use common::raw_client::{DMA_MAP, REGION_WRITE, RawClient, VERSION, access, message_claiming};
use common::server::Server;
use common::tis::{COMMAND_READY, DATA_FIFO, GO, STS, Tis};
use common::tpm_commands::*;
use hkdf::Hkdf;
use openssl::ec::{EcGroup, EcKey};
use openssl::nid::Nid;
use openssl::pkey::PKey;
use openssl::symm::Cipher;
use sha2::Sha256;
use tempfile::TempDir;

const PROGRAM: &str = env!("CARGO_BIN_EXE_vfio-user-tpm");

const NV: u32 = 0x0150_0001;
const NV_WITH_AUTH: u32 = 0x0150_0002;

// No part of one is in another, or in anything that the program would say.
const STORED: &[u8] = b"Zq7#sWm3!iNxK9vL2&uRe5@o";
const SEALED: &[u8] = b"pV2$dHb8~bQ8^nJf5%kTw6+a";
const AUTHORIZATION: &[u8] = b"hT6&Fa0*vR1(Xz9)Yc4=LgM8";
const MALFORMED: &[u8] = b"dN0+Gm7_Xs7|Bk1]uQ3wZr9%";
const GARBAGE: &[u8] = b"wB9{Lc2}oE5<Nv8>iH2?Tf6;";
const KEY_FILE: &[u8] = b"aF3/Wy6:Jq1;Uz8.Mj1'nP6`rD4-gC0=Sx5";
const OTHER_KEY_FILE: &[u8] = b"eX5:Kp9|Vb4,Io2}tS7!yG9^kA1&lO8_Mw";
const SHORT_KEY_FILE: &[u8] = b"cV4*Rn3~Hm8#Bh6Y";
const DULL_KEY_FILE: &[u8] = b"QjQjQjQjQjQjQjQjQjQjQjQjQjQjQjQjQjQj";
const PASSPHRASE: &[u8] = b"mW1=Gt4@Zv9%Kf8";
const WRONG_PASSPHRASE: &[u8] = b"zL7>Dq2?Xj6$Ne3";

/// Bytes in a row by which a secret is recognised.
const WINDOW: usize = 6;

/// In which form `log` tells a part of `secret`, if it does.
fn leak(log: &[u8], secret: &[u8]) -> Option<String> {
    let text = String::from_utf8_lossy(log).to_lowercase();
    // Lists over several lines become lists in one.
    let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
    secret.windows(WINDOW).find_map(|part| {
        let join =
            |separator: &str, form: &dyn Fn(&u8) -> String| part.iter().map(form).collect::<Vec<_>>().join(separator);
        let mut forms = vec![join("", &|byte| byte.escape_ascii().to_string().to_lowercase())];
        for separator in ["", " ", ", ", ",", ":", "-"] {
            forms.push(join(separator, &|byte| format!("{byte:02x}")));
            forms.push(join(separator, &|byte| format!("{byte:#04x}")));
        }
        // As Debug has lists; single digits in hexadecimal have lost their zeros.
        forms.push(join(", ", &|byte| format!("{byte}")));
        forms.push(join(", ", &|byte| format!("{byte:x}")));
        if log.windows(WINDOW).any(|bytes| bytes == part) {
            return Some(format!("raw, {part:?}"));
        }
        forms.into_iter().find(|form| text.contains(form.as_str()))
    })
}

#[track_caller]
fn assert_without(log: &[u8], secrets: &[&[u8]]) {
    for secret in secrets {
        if let Some(form) = leak(log, secret) {
            panic!("a part of {:?} is in the log: {form}\n{}", secret.escape_ascii(), String::from_utf8_lossy(log));
        }
    }
}

/// The master key that docs/state.md derives from a key file.
fn master_key(key_file: &[u8]) -> [u8; 32] {
    let mut key = [0; 32];
    Hkdf::<Sha256>::new(None, key_file).expand(b"vfio-user-tpm: master key", &mut key).unwrap();
    key
}

/// The key of a sealed state file, which docs/state.md derives from the master key and a salt in the file.
fn key_of_file(path: &Path, key_file: &[u8]) -> [u8; 32] {
    let file = fs::read(path).unwrap();
    let mut key = [0; 32];
    let hkdf = Hkdf::<Sha256>::new(Some(&file[56..88]), &master_key(key_file));
    hkdf.expand(b"vfio-user-tpm: state file", &mut key).unwrap();
    key
}

/// A folder with keys and passphrases, and the program at work in it. Its subcommand `state` has no `--log-level`.
struct Place(TempDir);

impl Place {
    fn new() -> Self {
        let place = Self(tempfile::tempdir().unwrap());
        for (name, content) in [
            ("key", KEY_FILE),
            ("other-key", OTHER_KEY_FILE),
            ("short-key", SHORT_KEY_FILE),
            ("dull-key", DULL_KEY_FILE),
            ("passphrase", PASSPHRASE),
            ("wrong-passphrase", WRONG_PASSPHRASE),
        ] {
            place.write(name, content);
        }
        place
    }

    fn write(&self, name: &str, content: &[u8]) {
        fs::write(self.path(name), content).unwrap();
        fs::set_permissions(self.path(name), fs::Permissions::from_mode(0o600)).unwrap();
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Arguments of a server on the folder `state`.
    fn arguments(&self, key: &str, tpm_version: &str) -> Vec<std::ffi::OsString> {
        let path = |option: &str, name| format!("{option}={}", self.path(name).display()).into();
        vec![
            "--log-level=trace".into(),
            format!("--tpm-version={tpm_version}").into(),
            path("--state-dir", "state"),
            path("--key-file", key),
        ]
    }

    /// Runs `vfio-user-tpm state`; returns whether it succeeded, and all that it printed.
    fn state(&self, arguments: &str) -> (bool, Vec<u8>) {
        let output = Command::new(PROGRAM)
            .arg("state")
            .args(arguments.split_whitespace())
            .current_dir(self.0.path())
            .output()
            .unwrap();
        (output.status.success(), [output.stdout, output.stderr].concat())
    }
}

#[track_caller]
fn ok(tis: &mut Tis, command: &[u8]) -> Vec<u8> {
    let mut response = tis.run(command);
    // The first use of an authorization value that is protected from guessing is to be repeated.
    if code_of(&response) == RC_RETRY {
        response = tis.run(command);
    }
    assert_eq!(code_of(&response), RC_SUCCESS);
    response
}

#[test]
fn a_leak_is_found_in_every_form() {
    let secret = &STORED[3..15];
    let upper = secret.iter().map(|byte| format!("{byte:02X}")).collect::<Vec<_>>();
    for told in [
        String::from_utf8_lossy(secret).into_owned(),
        format!("{secret:?}"),
        format!("{secret:#?}"),
        format!("{secret:x?}"),
        format!("{secret:02x?}"),
        format!("{secret:#04x?}"),
        upper.concat(),
        upper.join(" "),
        upper.join(":"),
        format!("{:?}", secret.escape_ascii().to_string()),
    ] {
        let log = format!("something is wrong: {told}; try again");
        assert!(leak(log.as_bytes(), STORED).is_some(), "{log}");
        assert_eq!(leak(log.as_bytes(), SEALED), None);
    }
    let binary = [0xff, 0, 0x80, 0xc0, b'\n', 0xfe, 1, 2];
    assert!(leak(&[b"with ", &binary[..], b"\n"].concat(), &binary).is_some());
    assert!(leak(format!("{binary:?}").as_bytes(), &binary).is_some());
    assert!(leak(format!("{}", binary.escape_ascii()).as_bytes(), &binary).is_some());
}

#[test]
fn a_server_logs_nothing_of_what_its_tpm_keeps() {
    let place = Place::new();
    let server = Server::with_args(&place.arguments("key", "2.0"));
    let mut tis = Tis::new(RawClient::connect(&server.socket()));

    // Stored, sealed, and authorized; each is what the TPM gives back.
    ok(&mut tis, &nv_define(NV, 24));
    ok(&mut tis, &nv_write(NV, STORED));
    assert_eq!(nv_data(&ok(&mut tis, &nv_read(NV, 24))), STORED);
    let sealed = ok(&mut tis, &create_primary_sealed(SEALED, AUTHORIZATION));
    let unsealed = ok(&mut tis, &unseal(u32_at(&sealed, 10), AUTHORIZATION));
    assert!(unsealed.windows(SEALED.len()).any(|bytes| bytes == SEALED));
    ok(&mut tis, &nv_define_with_auth(NV_WITH_AUTH, 24, AUTHORIZATION));
    ok(&mut tis, &nv_write(NV_WITH_AUTH, STORED));
    assert_eq!(nv_data(&ok(&mut tis, &nv_read_with_auth(NV_WITH_AUTH, 24, AUTHORIZATION))), STORED);
    assert_ne!(code_of(&tis.run(&nv_read_with_auth(NV_WITH_AUTH, 24, MALFORMED))), RC_SUCCESS);

    // Commands that are none: unknown, with a wrong tag, of another size than they say, not to their end.
    assert_ne!(code_of(&tis.run(&plain(0xffff, MALFORMED))), RC_SUCCESS);
    let mut command = nv_write(NV, MALFORMED);
    command[0] = 0xee;
    assert_ne!(code_of(&tis.run(&command)), RC_SUCCESS);
    assert_ne!(code_of(&tis.run(&plain(0x137, MALFORMED))), RC_SUCCESS);
    tis.write32(STS, COMMAND_READY);
    for &byte in MALFORMED {
        tis.write8(DATA_FIFO, byte);
    }
    tis.write32(STS, GO);

    // Requests that are none, on a connection of their own too.
    tis.client.request(99, GARBAGE);
    tis.client.request(REGION_WRITE, &access(77, u64::MAX, u32::try_from(GARBAGE.len()).unwrap(), GARBAGE));
    tis.client.request(DMA_MAP, GARBAGE);
    drop(tis);
    for bytes in [
        GARBAGE.to_vec(),
        message_claiming(1, REGION_WRITE, 0, u32::MAX, GARBAGE),
        message_claiming(1, VERSION, 0, 41, GARBAGE),
    ] {
        let mut client = RawClient::connect(&server.socket());
        client.send_bytes(&bytes, &[]);
    }

    // The state cannot be written.
    let mut tis = Tis::new(RawClient::connect(&server.socket()));
    tis.reset();
    // A reset writes; the response comes when it is over.
    ok(&mut tis, &nv_read(NV, 24));
    deny_writing(&place, "2.0", true);
    assert_ne!(code_of(&tis.run(&nv_write(NV, MALFORMED))), RC_SUCCESS);
    tis.reset();
    tis.run(&nv_write(NV, MALFORMED));
    deny_writing(&place, "2.0", false);
    tis.reset();
    assert_eq!(nv_data(&ok(&mut tis, &nv_read(NV, 24))), STORED);

    // The worker dies with a command in its hands, and without.
    tis.begin(&create_primary_sealed(MALFORMED, AUTHORIZATION));
    server.kill_engine();
    code_of(&tis.response());
    assert_ne!(code_of(&tis.run(&nv_write(NV, MALFORMED))), RC_SUCCESS);
    tis.reset();
    assert_eq!(nv_data(&ok(&mut tis, &nv_read(NV, 24))), STORED);

    // Its state is not to be read any more.
    let state_file = place.path("state/tpm2.0-permanent.state");
    let of_file = key_of_file(&state_file, KEY_FILE);
    let good = fs::read(&state_file).unwrap();
    let mut bad = good.clone();
    *bad.last_mut().unwrap() ^= 1;
    fs::write(&state_file, bad).unwrap();
    tis.reset();
    assert_ne!(code_of(&tis.run(&nv_read(NV, 24))), RC_SUCCESS);
    fs::write(&state_file, good).unwrap();

    let log = server.raw_log();
    server.terminate();
    for expected in ["TRACE", "DEBUG", "cannot write the state file", "failure mode"] {
        assert!(String::from_utf8_lossy(&log).contains(expected), "{expected}: {}", String::from_utf8_lossy(&log));
    }
    let keys = [&master_key(KEY_FILE)[..], &of_file];
    assert_without(&log, &[STORED, SEALED, AUTHORIZATION, MALFORMED, GARBAGE, KEY_FILE, keys[0], keys[1]]);
}

/// Puts a folder where the state is to be written, or takes it away. (A limit on file sizes would hold for the log
/// too.)
fn deny_writing(place: &Place, tpm_version: &str, deny: bool) {
    let in_the_way = place.path(&format!("state/tpm{tpm_version}-permanent.state.new"));
    if deny { fs::create_dir(in_the_way) } else { fs::remove_dir(in_the_way) }.unwrap();
}

#[test]
fn a_server_of_a_tpm_1_2_logs_nothing_of_what_its_tpm_keeps() {
    let place = Place::new();
    let server = Server::with_args(&place.arguments("key", "1.2"));
    let mut tis = Tis::new(RawClient::connect(&server.socket()));
    ok(&mut tis, &tpm_1_2::nv_define(0x1000, 24));
    ok(&mut tis, &tpm_1_2::nv_write(0x1000, STORED));
    assert_eq!(tpm_1_2::nv_data(&ok(&mut tis, &tpm_1_2::nv_read(0x1000, 24))), STORED);
    let mut command = tpm_1_2::nv_write(0x1000, MALFORMED);
    command[9] = 0xee;
    assert_ne!(code_of(&tis.run(&command)), RC_SUCCESS);
    deny_writing(&place, "1.2", true);
    assert_ne!(code_of(&tis.run(&tpm_1_2::nv_write(0x1000, SEALED))), RC_SUCCESS);
    deny_writing(&place, "1.2", false);
    server.kill_engine();
    tis.reset();
    assert_eq!(tpm_1_2::nv_data(&ok(&mut tis, &tpm_1_2::nv_read(0x1000, 24))), STORED);
    let log = server.raw_log();
    server.terminate();
    assert!(String::from_utf8_lossy(&log).contains("cannot write the state file"));
    assert_without(&log, &[STORED, SEALED, MALFORMED, KEY_FILE, &master_key(KEY_FILE)]);
}

#[test]
fn a_key_that_does_not_fit_is_not_told() {
    let place = Place::new();
    let server = Server::with_args(&place.arguments("key", "2.0"));
    ok(&mut Tis::new(RawClient::connect(&server.socket())), &nv_define(NV, 24));
    server.terminate();
    let of_file = key_of_file(&place.path("state/tpm2.0-permanent.state"), KEY_FILE);
    for (key, bytes) in [("other-key", OTHER_KEY_FILE), ("short-key", SHORT_KEY_FILE), ("dull-key", DULL_KEY_FILE)] {
        let (status, log) = Server::fail(&place.arguments(key, "2.0"));
        assert!(!status.success(), "{key}: {log}");
        assert_without(log.as_bytes(), &[bytes, &master_key(bytes), KEY_FILE, &master_key(KEY_FILE), &of_file]);
    }
}

#[test]
fn the_state_commands_tell_nothing_of_keys_and_state() {
    let place = Place::new();
    let server = Server::with_args(&place.arguments("key", "2.0"));
    let mut tis = Tis::new(RawClient::connect(&server.socket()));
    ok(&mut tis, &nv_define(NV, 24));
    ok(&mut tis, &nv_write(NV, STORED));
    drop(tis);
    server.terminate();
    let all = [
        STORED,
        KEY_FILE,
        OTHER_KEY_FILE,
        SHORT_KEY_FILE,
        DULL_KEY_FILE,
        &master_key(KEY_FILE),
        &master_key(OTHER_KEY_FILE),
        &master_key(SHORT_KEY_FILE),
    ];
    for (succeeds, arguments) in [
        (true, "show --state-dir state"),
        (true, "verify --state-dir state --key-file key"),
        (false, "verify --state-dir state --key-file other-key"),
        (false, "verify --state-dir state --key-file short-key"),
        (false, "verify --state-dir state --key-file dull-key"),
        (true, "verify --state-dir state"),
        (true, "export --state-dir state --key-file key exported"),
        (false, "import --state-dir new --key-file other-key exported"),
        (true, "import --state-dir new --key-file key exported"),
        (false, "rekey --state-dir new --key-file key --new-key-file short-key"),
        (true, "rekey --state-dir new --key-file key --new-key-file other-key"),
        (true, "export --state-dir new --key-file other-key --to-swtpm swtpm --swtpm-key file=short-key,format=binary"),
        (false, "export --state-dir new --key-file other-key --to-swtpm swtpm-2 --swtpm-key file=key,format=hex"),
        (false, "export --state-dir new --key-file other-key --to-swtpm swtpm-3 --swtpm-key file=key,format=binary"),
        (false, "import --state-dir third --from-swtpm swtpm --swtpm-key pwdfile=key"),
        (true, "import --state-dir third --from-swtpm swtpm --swtpm-key file=short-key,format=binary"),
    ] {
        let (succeeded, printed) = place.state(arguments);
        assert_eq!(succeeded, succeeds, "{arguments}: {}", String::from_utf8_lossy(&printed));
        assert_without(&printed, &all);
    }
}

#[test]
fn a_ca_s_passphrase_and_key_are_not_told() {
    let place = Place::new();
    let key = EcKey::generate(&EcGroup::from_curve_name(Nid::X9_62_PRIME256V1).unwrap()).unwrap();
    let private = key.private_key().to_vec();
    let key = PKey::from_ec_key(key).unwrap();
    place.write("ca.pem", &key.private_key_to_pem_pkcs8_passphrase(Cipher::aes_256_cbc(), PASSPHRASE).unwrap());
    place.write("ca.crt", b"no certificate");
    for passphrase in ["wrong-passphrase", "passphrase"] {
        let (succeeded, printed) = place.state(&format!(
            "init --state-dir made --ca-key ca.pem --ca-cert ca.crt --ca-passphrase-file {passphrase}"
        ));
        assert!(!succeeded, "there is no certificate");
        assert_without(&printed, &[PASSPHRASE, WRONG_PASSPHRASE, &private]);
    }
}
