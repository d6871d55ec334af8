//! `state init` and `state clone`, by the built program, and what is then in the TPM.

mod common;
#[path = "manufacture/tpm_1_2.rs"]
mod tpm_1_2;

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use common::tpm_commands::*;
use openssl::pkey::{PKey, Public};
use openssl::stack::Stack;
use openssl::x509::store::X509StoreBuilder;
use openssl::x509::{X509, X509StoreContext};
use tempfile::TempDir;
use vfio_user_tpm::backend::embedded::{Embedded, EmbeddedTpm};
use vfio_user_tpm::backend::synchronous::{Patience, Synchronous};
use vfio_user_tpm::backend::worker::worker_program;
use vfio_user_tpm::manufacture::template::Template;
use vfio_user_tpm::manufacture::tpm2;
use vfio_user_tpm::state::StateFolder;
use vfio_user_tpm::tpm::TpmVersion;

const PROGRAM: &str = env!("CARGO_BIN_EXE_vfio-user-tpm");

/// Certificates of the TPM 2.0, by NV index, with the template of the key that they are for.
const CERTIFICATES: [(u32, Template); 3] =
    [(0x01c0_0002, Template::RsaL1), (0x01c0_0016, Template::EccH3), (tpm2::PLATFORM_CERTIFICATE, Template::RsaL1)];

/// Folders of TPMs, and a CA.
struct Shop(TempDir);

impl Shop {
    fn open() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn run<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Output {
        Command::new(PROGRAM).arg("state").args(args).current_dir(self.0.path()).output().unwrap()
    }

    #[track_caller]
    fn ok(&self, args: &str) -> String {
        let output = self.run(args.split_whitespace());
        assert!(output.status.success(), "{args}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    #[track_caller]
    fn fails(&self, args: &str) -> String {
        let output = self.run(args.split_whitespace());
        assert!(!output.status.success(), "{args}");
        String::from_utf8(output.stderr).unwrap()
    }

    fn start(&self, name: &str) -> Tpm {
        Tpm::start(TpmVersion::V2_0, &self.path(name))
    }
}

/// Nothing that is expected takes this long.
const PATIENCE: std::time::Duration = std::time::Duration::from_secs(120);

/// A TPM that was made, without a server.
struct Tpm(Synchronous<'static, Embedded>);

impl Tpm {
    fn start(version: TpmVersion, folder: &Path) -> Self {
        let task = EmbeddedTpm { version, state: Some(StateFolder::open(folder).unwrap()) };
        let worker = worker_program(PROGRAM.into(), log::LevelFilter::Warn);
        let mut tpm =
            Self(Synchronous::new(Embedded::new(task, worker), Patience { limit: PATIENCE, interrupt: None }));
        tpm.0.initialize().unwrap();
        if version == TpmVersion::V2_0 {
            tpm.ok(&startup_clear());
        }
        tpm
    }

    fn run(&mut self, command: &[u8]) -> Vec<u8> {
        self.0.execute(command).unwrap().to_vec()
    }

    #[track_caller]
    fn ok(&mut self, command: &[u8]) -> Vec<u8> {
        let response = self.run(command);
        assert_eq!(code_of(&response), RC_SUCCESS, "{command:02x?}");
        response
    }

    fn end(mut self) {
        self.ok(&plain(0x145, &[0, 0]));
        self.0.end().unwrap();
    }

    /// The whole content of an NV index, read by its own authorization as everybody can.
    #[track_caller]
    fn nv(&mut self, index: u32) -> Vec<u8> {
        let public = self.ok(&plain(0x169, &index.to_be_bytes()));
        // TPM2B_NV_PUBLIC: index, algorithm, attributes, policy, size.
        let size = u16::from_be_bytes([public[24], public[25]]);
        let mut data = Vec::new();
        while data.len() < usize::from(size) {
            let offset = u16::try_from(data.len()).unwrap();
            let part = (size - offset).min(512);
            let parameters = [part.to_be_bytes(), offset.to_be_bytes()].concat();
            data.extend(nv_data(&self.ok(&with_password(0x14e, &[index, index], &parameters))));
        }
        data
    }

    /// The attributes of an NV index.
    #[track_caller]
    fn nv_attributes(&mut self, index: u32) -> u32 {
        u32_at(&self.ok(&plain(0x169, &index.to_be_bytes())), 18)
    }

    /// `TPMT_PUBLIC` of an object.
    #[track_caller]
    fn public_area(&mut self, handle: u32) -> Vec<u8> {
        let response = self.ok(&plain(0x173, &handle.to_be_bytes()));
        let size = usize::from(u16::from_be_bytes([response[10], response[11]]));
        response[12..12 + size].to_vec()
    }

    #[track_caller]
    fn persistent_key(&mut self, template: Template) -> PKey<Public> {
        let area = self.public_area(template.handle());
        template.key_in(&area).unwrap().expect("a key of the template")
    }

    /// `TPM2_CreatePrimary` of the template; `TPMT_PUBLIC` of what comes.
    fn create_primary(&mut self, template: Template) -> Vec<u8> {
        let public = template.public_area();
        let size = u16::try_from(public.len()).unwrap().to_be_bytes();
        let parameters = [&[0, 4, 0, 0, 0, 0][..], &size, &public, &[0; 6]].concat();
        let response = self.ok(&with_password(0x131, &[0x4000_000b], &parameters));
        let handle = u32_at(&response, 10);
        let area = self.public_area(handle);
        self.ok(&flush(handle));
        area
    }

    fn certificate(&mut self, index: u32) -> X509 {
        X509::from_der(&self.nv(index)).unwrap()
    }

    /// The PCR banks in use.
    fn banks(&mut self) -> Vec<u16> {
        let response = self.ok(&plain(0x17a, &[0, 0, 0, 5, 0, 0, 0, 0, 0, 0, 0, 1]));
        let count = u32_at(&response, 15) as usize;
        let bank = |at: usize| {
            let used = response[at + 3..at + 6] != [0; 3];
            used.then(|| u16::from_be_bytes([response[at], response[at + 1]]))
        };
        (0..count).filter_map(|number| bank(19 + 6 * number)).collect()
    }

    /// The handles of this kind, by their first byte.
    fn handles(&mut self, kind: u8) -> Vec<u32> {
        let response = self.ok(&plain(0x17a, &[0, 0, 0, 1, kind, 0, 0, 0, 0, 0, 0, 100]));
        (0..u32_at(&response, 15) as usize).map(|number| u32_at(&response, 19 + 4 * number)).collect()
    }
}

fn ca_certificate(path: &Path) -> X509 {
    X509::from_pem(&fs::read(path).unwrap()).unwrap()
}

#[track_caller]
fn assert_issued_by(certificate: &X509, authority: &X509) {
    let mut store = X509StoreBuilder::new().unwrap();
    store.add_cert(authority.clone()).unwrap();
    let (store, chain) = (store.build(), Stack::new().unwrap());
    let verified = X509StoreContext::new().unwrap().init(&store, certificate, &chain, |context| {
        Ok(context.verify_cert()?.then_some(()).ok_or_else(|| context.error()))
    });
    assert_eq!(verified.unwrap(), Ok(()));
}

/// All that `init` gives a TPM 2.0, with certificates of `authority`.
#[track_caller]
fn assert_endorsed(tpm: &mut Tpm, authority: &X509) {
    for template in Template::ALL {
        assert_eq!(tpm.public_area(template.handle()), tpm.create_primary(template), "{template:?}");
    }
    for (index, template) in CERTIFICATES {
        let certificate = tpm.certificate(index);
        assert!(certificate.public_key().unwrap().public_eq(&tpm.persistent_key(template)), "{index:#x}");
        assert_issued_by(&certificate, authority);
    }
}

#[test]
fn an_initialized_tpm_has_endorsement_keys_with_certificates_of_the_ca() {
    let shop = Shop::open();
    shop.ok("init --state-dir tpm --ca-dir ca");
    let authority = shop.path("ca/ca-certificate.pem");
    let mut tpm = shop.start("tpm");
    assert_endorsed(&mut tpm, &ca_certificate(&authority));
    // The same by the tool that everybody has.
    for (index, _) in CERTIFICATES {
        let file = shop.path("certificate.pem");
        fs::write(&file, tpm.certificate(index).to_pem().unwrap()).unwrap();
        let output =
            Command::new("openssl").args(["verify", "-x509_strict", "-CAfile"]).arg(&authority).arg(&file).output();
        let output = output.expect("openssl");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
}

#[test]
fn the_program_says_what_it_made_and_leaves_nothing_but_the_state() {
    let shop = Shop::open();
    let said = shop.ok("init --state-dir tpm --ca-dir ca --vm-name vm1");
    assert!(said.starts_with("made a TPM 2.0 in tpm, its certificates issued by vfio-user-tpm local CA "), "{said}");
    let mut files: Vec<_> = fs::read_dir(shop.path("tpm")).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    files.sort();
    assert_eq!(files, ["lock", "tpm2.0-permanent.state"]);
    let issued = fs::read_to_string(shop.path("ca/issued")).unwrap();
    assert_eq!(issued.lines().filter(|line| line.contains("\tvm1\t")).count(), 3, "{issued}");
    shop.ok("verify --state-dir tpm");
}

#[test]
fn certificates_are_there_for_good() {
    let shop = Shop::open();
    shop.ok("init --state-dir tpm --ca-dir ca");
    let mut tpm = shop.start("tpm");
    let before: Vec<_> = CERTIFICATES.iter().map(|(index, _)| tpm.nv(*index)).collect();
    for (index, _) in CERTIFICATES {
        // TPMA_NV_WRITTEN and TPMA_NV_WRITELOCKED, besides what was asked for.
        assert_eq!(tpm.nv_attributes(index), 0x4207_2001 | 0x2000_0000 | 0x800);
        // TPM_RC_NV_LOCKED, even for the platform.
        let write = with_password(0x137, &[0x4000_000c, index], &[0, 1, 0xff, 0, 0]);
        assert_eq!(code_of(&tpm.run(&write)), 0x148);
    }
    // The owner may clear the TPM: the certificates stay, and their keys can be had again.
    tpm.ok(&with_password(0x126, &[0x4000_000a], &[]));
    assert!(tpm.handles(0x81).is_empty());
    for ((index, template), before) in CERTIFICATES.into_iter().zip(&before) {
        assert_eq!(&tpm.nv(index), before);
        let key = template.key_in(&tpm.create_primary(template)).unwrap().unwrap();
        assert!(tpm.certificate(index).public_key().unwrap().public_eq(&key));
    }
}

#[test]
fn only_the_banks_that_were_asked_for_are_there() {
    let shop = Shop::open();
    shop.ok("init --state-dir tpm --pcr-banks sha256,sha384 --no-certificates");
    let mut tpm = shop.start("tpm");
    assert_eq!(tpm.banks(), [0x0b, 0x0c]);
    let error = shop.fails("init --state-dir other --pcr-banks sha256,sm3_256 --no-certificates");
    assert!(error.contains("no PCR bank sm3_256") && error.contains("sha384"), "{error}");
    assert!(!shop.path("other").exists());
}

#[test]
fn without_certificates_there_are_keys_and_no_ca_is_needed() {
    let shop = Shop::open();
    shop.ok("init --state-dir tpm --no-certificates");
    let mut tpm = shop.start("tpm");
    assert_eq!(tpm.handles(0x81), Template::ALL.map(Template::handle));
    assert!(tpm.handles(0x01).is_empty());
    assert_eq!(fs::read_dir(shop.0.path()).unwrap().count(), 1);
}

#[test]
fn it_is_made_and_renewed_however_its_process_is_confined() {
    let shop = Shop::open();
    for (name, flags) in [("landlock", "--sandbox=landlock"), ("none", "--sandbox=none --seccomp=log")] {
        shop.ok(&format!("init --state-dir {name} --no-certificates {flags}"));
        shop.ok(&format!("clone --state-dir {name} --new-identity --no-certificates {flags} {name}-clone"));
    }
    let refusal = shop.fails("init --state-dir much --no-certificates --sandbox=much");
    assert!(refusal.contains("landlock"), "{refusal}");
}

#[test]
fn a_tpm_is_shut_down_in_order_when_it_is_made() {
    let shop = Shop::open();
    shop.ok("init --state-dir tpm --ca-dir ca");
    let mut tpm = shop.start("tpm");
    assert_eq!(property_value(&tpm.ok(&get_property(PT_LOCKOUT_COUNTER))), 0);
    // TPM2_ReadClock's last byte says whether time went on in order.
    assert_eq!(tpm.ok(&read_clock()).last(), Some(&1));
}

#[test]
fn a_folder_with_a_tpm_is_never_touched() {
    let shop = Shop::open();
    shop.ok("init --state-dir tpm --ca-dir ca");
    let file = shop.path("tpm/tpm2.0-permanent.state");
    let before = fs::read(&file).unwrap();
    for args in ["init --state-dir tpm --ca-dir ca", "init --state-dir tpm --tpm-version 1.2 --no-certificates"] {
        let error = shop.fails(args);
        assert!(error.contains("already holds a TPM"), "{error}");
    }
    shop.ok("init --state-dir second --ca-dir ca");
    assert!(shop.fails("clone --state-dir second tpm").contains("already holds a TPM"));
    assert_eq!(fs::read(&file).unwrap(), before);
}

#[test]
fn what_fails_leaves_nothing_behind() {
    let shop = Shop::open();
    fs::write(shop.path("file"), "neither key nor certificate").unwrap();
    fs::create_dir(shop.path("empty")).unwrap();
    for (args, reason) in [
        ("--ca-key file --ca-cert file", "no private key"),
        ("--ca-key missing --ca-cert file", "cannot read missing"),
        ("--ca-key /dev/zero --ca-cert file", "not a regular file"),
        ("--ca-dir file", "cannot write file"),
        ("--ca-dir ca --pcr-banks sm3_256", "no PCR bank"),
        ("--tpm-version 1.2 --no-certificates --pcr-banks sha256", "for TPM 2.0"),
        ("--no-certificates --ca-dir ca", "cannot be used with"),
        ("--ca-key file", "--ca-cert"),
        ("--no-certificates --pcr-banks md5", "expected some of sha1"),
        ("--no-certificates --profile [1]", "is no profile"),
    ] {
        let error = shop.fails(&format!("init --state-dir tpm {args}"));
        assert!(error.contains(reason), "{args}: {error}");
        assert!(!shop.path("tpm").exists(), "{args}");
        shop.fails(&format!("init --state-dir empty {args}"));
        assert!(!shop.path("empty/making").exists() && !shop.path("empty/tpm2.0-permanent.state").exists(), "{args}");
    }
    shop.ok("init --state-dir empty --no-certificates");
}

#[test]
fn a_given_ca_signs() {
    let shop = Shop::open();
    shop.ok("init --state-dir first --ca-dir ca");
    fs::rename(shop.path("ca/ca-key.pem"), shop.path("key.pem")).unwrap();
    shop.ok("init --state-dir tpm --ca-key key.pem --ca-cert ca/ca-certificate.pem");
    let authority = ca_certificate(&shop.path("ca/ca-certificate.pem"));
    assert_endorsed(&mut shop.start("tpm"), &authority);
}

#[test]
fn a_plain_clone_is_the_same_tpm() {
    let shop = Shop::open();
    shop.ok("init --state-dir tpm --ca-dir ca");
    let output = shop.run(["clone", "--state-dir", "tpm", "copy"]);
    assert!(output.status.success());
    let warning = String::from_utf8(output.stderr).unwrap();
    assert!(warning.contains("same seeds") && warning.contains("--new-identity"), "{warning}");
    let (mut one, mut other) = (shop.start("tpm"), shop.start("copy"));
    for template in Template::ALL {
        assert_eq!(one.public_area(template.handle()), other.public_area(template.handle()));
    }
    drop((one, other));
    assert!(shop.fails("clone --state-dir tpm copy2 --ca-dir ca").contains("--new-identity"));
    assert!(shop.fails("clone --state-dir tpm tpm").contains("into itself"));
    assert!(shop.fails("clone --state-dir missing copy2").contains("missing"));
    fs::create_dir(shop.path("empty")).unwrap();
    assert!(shop.fails("clone --state-dir empty copy2").contains("holds no TPM"));
    assert!(!shop.path("copy2").exists());
}

#[test]
fn a_clone_with_a_new_identity_is_another_tpm() {
    const OWNERS_NV: u32 = 0x0150_0001;
    let owner_primary = create_primary_rsa(2048, 1);
    let shop = Shop::open();
    shop.ok("init --state-dir tpm --ca-dir ca --pcr-banks sha256");
    // An owner who has settled in: a key, NV contents, passwords, and TPM2_Clear forbidden.
    let mut tpm = shop.start("tpm");
    tpm.ok(&nv_define(OWNERS_NV, 8));
    tpm.ok(&nv_write(OWNERS_NV, b"a secret"));
    let old_owner_key = tpm.ok(&owner_primary)[14..].to_vec();
    tpm.ok(&with_password(0x127, &[0x4000_000a], &[1]));
    for hierarchy in [0x4000_0001, 0x4000_000a, 0x4000_000b] {
        tpm.ok(&with_password(0x129, &[hierarchy], &[0, 2, b'p', b'w']));
    }
    let old_keys = Template::ALL.map(|template| tpm.public_area(template.handle()));
    let old_certificates = CERTIFICATES.map(|(index, _)| tpm.nv(index));
    tpm.end();
    let original = fs::read(shop.path("tpm/tpm2.0-permanent.state")).unwrap();

    shop.ok("clone --state-dir tpm copy --new-identity --ca-dir ca");

    assert_eq!(fs::read(shop.path("tpm/tpm2.0-permanent.state")).unwrap(), original);
    let mut copy = shop.start("copy");
    // It works with empty passwords, so those of the owner are gone.
    assert_endorsed(&mut copy, &ca_certificate(&shop.path("ca/ca-certificate.pem")));
    assert_ne!(copy.ok(&owner_primary)[14..], old_owner_key);
    for (template, old) in Template::ALL.into_iter().zip(&old_keys) {
        assert_ne!(&copy.public_area(template.handle()), old);
    }
    for ((index, _), old) in CERTIFICATES.iter().zip(&old_certificates) {
        assert_ne!(&copy.nv(*index), old);
    }
    assert_eq!(copy.handles(0x01), CERTIFICATES.map(|(index, _)| index));
    assert_eq!(copy.banks(), [0x0b]);
    copy.ok(&with_password(0x126, &[0x4000_000a], &[]));
}

#[test]
fn a_key_seals_what_is_made_and_copied() {
    let shop = Shop::open();
    let mut key = [0; 32];
    openssl::rand::rand_bytes(&mut key).unwrap();
    fs::write(shop.path("key"), key).unwrap();
    shop.ok("init --state-dir tpm --ca-dir ca --key-file key --rollback-anchor anchor");
    shop.ok("verify --state-dir tpm --key-file key --rollback-anchor anchor");
    let with_key = "--state-dir tpm --key-file key --rollback-anchor anchor";
    shop.ok(&format!("clone {with_key} same"));
    shop.ok(&format!("clone {with_key} other --new-identity --ca-dir ca"));
    for name in ["tpm", "same", "other"] {
        let shown = shop.ok(&format!("show --state-dir {name}"));
        assert!(shown.contains(", sealed,"), "{shown}");
        shop.ok(&format!("verify --state-dir {name} --key-file key"));
    }
    assert!(shop.fails("clone --state-dir tpm plain").contains("key"));
    // The anchor is that of one TPM.
    let error = shop.fails("init --state-dir second --ca-dir ca --key-file key --rollback-anchor anchor");
    assert!(error.contains("anchor"), "{error}");
    assert!(!shop.path("plain").exists() && !shop.path("second").exists());
}

#[test]
fn the_original_of_a_clone_must_not_be_in_use() {
    let shop = Shop::open();
    shop.ok("init --state-dir tpm --ca-dir ca");
    let tpm = shop.start("tpm");
    let error = shop.fails("clone --state-dir tpm copy --new-identity --ca-dir ca");
    assert!(error.contains("in use"), "{error}");
    drop(tpm);
    assert!(!shop.path("copy").exists());
}
