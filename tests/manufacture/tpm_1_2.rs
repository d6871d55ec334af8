//! TPM 1.2: its certificates are its owner's to read, so the test becomes the owner.

use openssl::encrypt::Encrypter;
use openssl::hash::MessageDigest;
use openssl::pkey::{Id, PKey, Public};
use openssl::rsa::Padding;
use openssl::sha::sha1;
use openssl::sign::Signer;
use openssl::x509::X509;
use vfio_user_tpm::manufacture::tpm12;
use vfio_user_tpm::tpm::TpmVersion;

use super::common::tpm_commands::{RC_SUCCESS, code_of, tpm_1_2 as commands, u32_at};
use super::{Shop, Tpm, assert_issued_by, ca_certificate};

const OWNER_AUTH: [u8; 20] = [0x0a; 20];
/// `TPM_KEY_PARMS`: RSA 2048, OAEP, no signatures.
const KEY_PARAMETERS: [u8; 24] = [0, 0, 0, 1, 0, 3, 0, 1, 0, 0, 0, 12, 0, 0, 8, 0, 0, 0, 0, 2, 0, 0, 0, 0];

fn command(tag: u16, ordinal: u32, body: &[u8]) -> Vec<u8> {
    let size = u32::try_from(10 + body.len()).unwrap();
    [&tag.to_be_bytes()[..], &size.to_be_bytes(), &ordinal.to_be_bytes(), body].concat()
}

fn start(shop: &Shop) -> Tpm {
    let mut tpm = Tpm::start(TpmVersion::V1_2, &shop.path("tpm"));
    tpm.ok(&command(0xc1, 0x99, &[0, 1]));
    tpm
}

/// A command that the owner authorizes, in a TPM_OIAP session of its own.
fn authorized(tpm: &mut Tpm, ordinal: u32, parameters: &[u8]) -> Vec<u8> {
    let session = tpm.ok(&command(0xc1, 0x0a, &[]));
    let (handle, nonce_even, nonce_odd) = (&session[10..14], &session[14..34], [7; 20]);
    let digest = sha1(&[&ordinal.to_be_bytes(), parameters].concat());
    let key = PKey::hmac(&OWNER_AUTH).unwrap();
    let mut signer = Signer::new(MessageDigest::sha1(), &key).unwrap();
    signer.update(&[&digest[..], nonce_even, &nonce_odd, &[0]].concat()).unwrap();
    let body = [parameters, handle, &nonce_odd, &[0], &signer.sign_to_vec().unwrap()].concat();
    tpm.ok(&command(0xc2, ordinal, &body))
}

/// `TPM_TakeOwnership`; the storage root key gets the same authorization.
fn take_ownership(tpm: &mut Tpm, endorsement_key: &PKey<Public>) {
    assert_eq!(endorsement_key.id(), Id::RSA);
    let mut encrypter = Encrypter::new(endorsement_key).unwrap();
    encrypter.set_rsa_padding(Padding::PKCS1_OAEP).unwrap();
    encrypter.set_rsa_oaep_md(MessageDigest::sha1()).unwrap();
    encrypter.set_rsa_mgf1_md(MessageDigest::sha1()).unwrap();
    encrypter.set_rsa_oaep_label(b"TCPA").unwrap();
    let mut secret = vec![0; encrypter.encrypt_len(&OWNER_AUTH).unwrap()];
    let length = encrypter.encrypt(&OWNER_AUTH, &mut secret).unwrap();
    secret.truncate(length);
    let length = u32::try_from(length).unwrap().to_be_bytes();
    // TPM_KEY: version, storage key, no flags, always authorized, parameters, no PCRs, no key yet.
    let root = [&[1, 1, 0, 0, 0, 0x11, 0, 0, 0, 0, 1][..], &KEY_PARAMETERS, &[0; 12]].concat();
    let parameters = [&[0, 5][..], &length, &secret, &length, &secret, &root].concat();
    authorized(tpm, 0x0d, &parameters);
}

/// `TPM_NV_ReadValue` by the owner.
fn read(tpm: &mut Tpm, index: u32, size: usize) -> Vec<u8> {
    let mut data = Vec::new();
    while data.len() < size {
        let number = |value: usize| u32::try_from(value).unwrap().to_be_bytes();
        let part = (size - data.len()).min(512);
        let response = authorized(tpm, 0xcf, &[index.to_be_bytes(), number(data.len()), number(part)].concat());
        let length = u32_at(&response, 10) as usize;
        data.extend(&response[14..14 + length]);
    }
    data
}

/// The certificate in a `TCG_PCCLIENT_STORED_CERT`.
fn certificate(tpm: &mut Tpm, index: u32) -> X509 {
    let head = read(tpm, index, 7);
    assert_eq!((&head[..3], &head[5..]), (&[0x10, 0x01, 0][..], &[0x10, 0x02][..]));
    let size = usize::from(u16::from_be_bytes([head[3], head[4]]));
    X509::from_der(&read(tpm, index, size + 5)[7..]).unwrap()
}

#[test]
fn its_certificates_are_of_its_endorsement_key_and_its_nv_memory_is_locked() {
    let shop = Shop::open();
    shop.ok("init --state-dir tpm --tpm-version 1.2 --ca-dir ca");
    let authority = ca_certificate(&shop.path("ca/ca-certificate.pem"));
    let mut tpm = start(&shop);
    let response = tpm.ok(&commands::read_pubek([7; 20]));
    // TPM_PUBKEY: the parameters, and the modulus with its length.
    let modulus = &response[10 + KEY_PARAMETERS.len() + 4..][..256];
    let issued = issued_for(&shop);
    assert_eq!(issued, ["EK", "platform"]);

    // TPM_NV_DefineSpace needs the owner.
    let pcrs = [&[0, 3, 0, 0, 0, 0x1f][..], &[0; 20]].concat();
    let attributes = [0, 0x17, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 4];
    let define = [&[0, 0x18, 0, 0, 0, 0x16][..], &pcrs, &pcrs, &attributes, &[0; 20]].concat();
    assert_ne!(code_of(&tpm.run(&command(0xc1, 0xcc, &define))), RC_SUCCESS);

    let exponent = openssl::bn::BigNum::from_u32(0x1_0001).unwrap();
    let key = openssl::rsa::Rsa::from_public_components(openssl::bn::BigNum::from_slice(modulus).unwrap(), exponent);
    let key = PKey::from_rsa(key.unwrap()).unwrap();
    take_ownership(&mut tpm, &key);
    for index in [tpm12::ENDORSEMENT_CERTIFICATE, tpm12::PLATFORM_CERTIFICATE] {
        let certificate = certificate(&mut tpm, index);
        assert!(certificate.public_key().unwrap().public_eq(&key), "{index:#x}");
        assert_issued_by(&certificate, &authority);
    }
}

/// What the CA says that it has issued certificates for.
fn issued_for(shop: &Shop) -> Vec<String> {
    let issued = std::fs::read_to_string(shop.path("ca/issued")).unwrap();
    issued.lines().map(|line| line.split('\t').nth(2).unwrap().to_owned()).collect()
}

#[test]
fn it_keeps_its_identity() {
    let shop = Shop::open();
    shop.ok("init --state-dir tpm --tpm-version 1.2 --no-certificates");
    let error = shop.fails("clone --state-dir tpm copy --new-identity --no-certificates");
    assert!(error.contains("for life"), "{error}");
    assert!(!shop.path("copy").exists());
    shop.ok("clone --state-dir tpm copy");
}
