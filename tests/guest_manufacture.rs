//! What a guest finds of a TPM 2.0 that `state init` has made, with tpm2-tools.

mod common;
mod guest;

use std::path::Path;
use std::process::Command;

use common::server::Server;
use guest::{Guest, GuestConfig};
use openssl::x509::X509;

/// Makes a TPM below `folder`, and boots a guest with it.
#[track_caller]
fn boot(folder: &Path) -> (Server, Guest) {
    let output = Command::new(env!("CARGO_BIN_EXE_vfio-user-tpm"))
        .args("state init --state-dir tpm --ca-dir ca --pcr-banks sha256,sha384".split(' '))
        .current_dir(folder)
        .output()
        .expect("the program runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serve(folder)
}

#[track_caller]
fn serve(folder: &Path) -> (Server, Guest) {
    let server = Server::with_state(&folder.join("tpm"));
    let guest = Guest::boot(&GuestConfig { qemu_args: server.qemu_args(), ..GuestConfig::default() });
    (server, guest)
}

/// The certificate in this file of the guest.
#[track_caller]
fn certificate(guest: &mut Guest, file: &str) -> X509 {
    let hex = guest.check(&format!("xxd -p {file} | tr -d '\\n'"));
    let bytes: Vec<u8> =
        (0..hex.len() / 2).map(|at| u8::from_str_radix(&hex[2 * at..2 * at + 2], 16).expect("hex")).collect();
    X509::from_der(&bytes).expect("a certificate")
}

/// The public key in this PEM file of the guest is that of the certificate.
#[track_caller]
fn assert_key(guest: &mut Guest, file: &str, certificate: &X509) {
    let pem = guest.check(&format!("cat {file}"));
    let key = openssl::pkey::PKey::public_key_from_pem(pem.as_bytes()).expect("a public key");
    assert!(certificate.public_key().expect("its key").public_eq(&key), "{file}");
}

#[test]
fn attestation_tools_find_certificates_and_keys_and_the_banks() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let (server, mut guest) = boot(folder.path());

    // A bank without PCRs is a heading with nothing below.
    let pcrs = guest.check("tpm2_pcrread");
    let lines: Vec<&str> = pcrs.lines().map(str::trim).collect();
    let banks =
        lines.windows(2).filter(|pair| pair[0].starts_with("sha") && pair[1].starts_with('0')).map(|pair| pair[0]);
    assert_eq!(banks.collect::<Vec<_>>(), ["sha256:", "sha384:"]);

    let authority = std::fs::read(folder.path().join("ca/ca-certificate.pem")).expect("the CA's certificate");
    let authority = X509::from_pem(&authority).expect("a certificate").public_key().expect("its key");
    guest.check("tpm2_getekcertificate -o rsa.crt");
    // The tool reads the first certificate of each range; this one is asked for by its index.
    guest.check("tpm2_nvread 0x1c00016 -o ecc.crt && tpm2_nvread 0x1c08000 -o platform.crt");
    for (file, handle) in [("rsa.crt", "0x81010001"), ("ecc.crt", "0x81010016"), ("platform.crt", "0x81010001")] {
        let certificate = certificate(&mut guest, file);
        assert!(certificate.verify(&authority).expect("a signature"), "{file}");
        guest.check(&format!("tpm2_readpublic -Q -c {handle} -f pem -o key.pem"));
        assert_key(&mut guest, "key.pem", &certificate);
    }
    // What a tool makes by the usual template is the key that is certified.
    guest.check("tpm2_createek -Q -G rsa -c ek.ctx -u ek.pem -f pem");
    let rsa = certificate(&mut guest, "rsa.crt");
    assert_key(&mut guest, "ek.pem", &rsa);

    // A privacy CA's challenge, which only this TPM can answer. The policy of the key is that of the endorsement hierarchy.
    let answer = guest.check(
        "tpm2_createak -Q -C 0x81010001 -c ak.ctx -u ak.pub -n ak.name &&
         printf 'a challenge' >secret &&
         tpm2_readpublic -Q -c 0x81010001 -o ek.pub &&
         tpm2_makecredential -Q -T none -u ek.pub -s secret -n $(xxd -p -c 100 ak.name) -o blob &&
         tpm2_startauthsession --policy-session -S session.ctx &&
         tpm2_policysecret -Q -S session.ctx -c e &&
         tpm2_activatecredential -Q -c ak.ctx -C 0x81010001 -i blob -o answer -P session:session.ctx &&
         tpm2_flushcontext session.ctx && cat answer",
    );
    assert_eq!(answer, "a challenge");
    guest.quit();
    assert!(server.terminate().success());
}

#[test]
fn guest_root_cannot_take_the_certificates_away() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let (server, mut guest) = boot(folder.path());
    guest.check("tpm2_nvread 0x1c00002 -o before");
    for script in [
        "tpm2_clear -c p",
        "tpm2_nvundefine 0x1c00002 -C p",
        "tpm2_nvundefine 0x1c00002 -C o",
        "printf x | tpm2_nvwrite 0x1c00002 -C o -i -",
        "printf x | tpm2_nvwrite 0x1c00002 -C 0x1c00002 -i -",
        "tpm2_changeeps",
    ] {
        assert_ne!(guest.run(script).status, 0, "{script}");
    }
    // As owner it may clear what is the owner's: the persistent keys too, which can be made again.
    guest.check("tpm2_clear");
    guest.check("tpm2_nvread 0x1c00002 -o after && cmp before after");
    let certified = certificate(&mut guest, "after");
    guest.check("tpm2_createek -Q -G rsa -c ek.ctx -u ek.pem -f pem");
    assert_key(&mut guest, "ek.pem", &certified);
    guest.quit();
    assert!(server.terminate().success());

    let (server, mut guest) = serve(folder.path());
    guest.check("tpm2_getekcertificate -o again");
    let again = certificate(&mut guest, "again");
    assert_eq!(again.to_der().expect("DER"), certified.to_der().expect("DER"));
    guest.quit();
    assert!(server.terminate().success());
}
