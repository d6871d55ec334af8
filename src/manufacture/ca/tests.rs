use openssl::asn1::{Asn1Object, Asn1OctetString};
use openssl::pkey::Public;
use openssl::rsa::Rsa;
use openssl::symm::Cipher;
use openssl::x509::X509Extension;

use super::super::ManufactureError;
use super::super::certificate::{Certifier, PlatformIdentity};
use super::*;

/// Writes a CA of this key into files; `is_ca` is what its certificate says of it.
fn write_ca(folder: &Path, key: &PKey<Private>, is_ca: bool, passphrase: Option<&[u8]>) -> (PathBuf, PathBuf) {
    let mut name = X509NameBuilder::new().unwrap();
    name.append_entry_by_nid(Nid::COMMONNAME, "a CA").unwrap();
    let name = name.build();
    let mut builder = begin(key, &name, &name, Validity::Days(100)).unwrap();
    let mut constraints = BasicConstraints::new();
    constraints.critical();
    if is_ca {
        constraints.ca();
    }
    builder.append_extension(constraints.build().unwrap()).unwrap();
    builder.sign(key, signature_digest(key).unwrap().unwrap()).unwrap();
    let pem = match passphrase {
        None => key.private_key_to_pem_pkcs8(),
        Some(passphrase) => key.private_key_to_pem_pkcs8_passphrase(Cipher::aes_256_cbc(), passphrase),
    };
    let paths = (folder.join("key.pem"), folder.join("certificate.pem"));
    std::fs::write(&paths.0, pem.unwrap()).unwrap();
    std::fs::write(&paths.1, builder.build().to_pem().unwrap()).unwrap();
    paths
}

fn elliptic(curve: Nid) -> PKey<Private> {
    PKey::from_ec_key(EcKey::generate(&EcGroup::from_curve_name(curve).unwrap()).unwrap()).unwrap()
}

fn issue(authority: Authority) -> Result<X509, ManufactureError> {
    let word = || "x".to_owned();
    let platform = PlatformIdentity { manufacturer: word(), model: word(), version: word() };
    let certifier = Certifier { authority, subject: None, platform, validity: Validity::Unlimited };
    let key: PKey<Public> = PKey::public_key_from_der(&elliptic(Nid::SECP384R1).public_key_to_der().unwrap()).unwrap();
    certifier.platform(&key).map(|der| X509::from_der(&der).unwrap())
}

#[test]
fn every_usual_kind_of_key_signs() {
    for key in [
        PKey::from_rsa(Rsa::generate(2048).unwrap()).unwrap(),
        elliptic(Nid::X9_62_PRIME256V1),
        elliptic(Nid::SECP521R1),
        PKey::generate_ed25519().unwrap(),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let (key_file, certificate) = write_ca(folder.path(), &key, true, None);
        let issued = issue(Authority::from_files(&key_file, &certificate, None).unwrap()).unwrap();
        assert!(issued.verify(&key).unwrap());
    }
}

#[test]
fn a_key_that_cannot_sign_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let (key_file, certificate) = write_ca(folder.path(), &PKey::generate_ed25519().unwrap(), true, None);
    std::fs::write(&key_file, PKey::generate_x25519().unwrap().private_key_to_pem_pkcs8().unwrap()).unwrap();
    let error = Authority::from_files(&key_file, &certificate, None).unwrap_err().to_string();
    assert!(error.contains("Ed25519"), "{error}");
    // Nor is a certificate made for it.
    std::fs::rename(&key_file, folder.path().join(KEY)).unwrap();
    let error = Authority::local(folder.path()).unwrap_err().to_string();
    assert!(error.contains("Ed25519"), "{error}");
    assert!(!folder.path().join(CERTIFICATE).exists());
}

#[test]
fn a_passphrase_comes_from_the_first_line_of_a_file() {
    let folder = tempfile::tempdir().unwrap();
    let (key, certificate) = write_ca(folder.path(), &elliptic(Nid::SECP384R1), true, Some(b"open sesame"));
    let passphrase = folder.path().join("passphrase");
    std::fs::write(&passphrase, "open sesame\n").unwrap();
    assert!(Authority::from_files(&key, &certificate, Some(&passphrase)).is_ok());
    std::fs::write(&passphrase, "wrong\n").unwrap();
    let error = Authority::from_files(&key, &certificate, Some(&passphrase)).unwrap_err().to_string();
    assert!(error.contains("with that passphrase") && !error.contains("wrong\n"), "{error}");
    // Nobody is asked at the terminal.
    let error = Authority::from_files(&key, &certificate, None).unwrap_err().to_string();
    assert!(error.contains("--ca-passphrase-file"), "{error}");
}

#[test]
fn a_passphrase_is_any_bytes() {
    let folder = tempfile::tempdir().unwrap();
    let passphrase = folder.path().join("passphrase");
    for phrase in [&b"a\0b"[..], &[b'x'; 1024]] {
        let (key, certificate) = write_ca(folder.path(), &elliptic(Nid::SECP384R1), true, Some(phrase));
        std::fs::write(&passphrase, phrase).unwrap();
        assert!(Authority::from_files(&key, &certificate, Some(&passphrase)).is_ok());
        std::fs::write(&passphrase, [b'x'; 5000]).unwrap();
        let error = Authority::from_files(&key, &certificate, Some(&passphrase)).unwrap_err().to_string();
        assert!(error.contains("with that passphrase"), "{error}");
    }
}

#[test]
fn key_and_certificate_of_two_cas_are_refused() {
    let (one, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (key, _) = write_ca(one.path(), &elliptic(Nid::SECP384R1), true, None);
    let (_, certificate) = write_ca(other.path(), &elliptic(Nid::SECP384R1), true, None);
    assert!(matches!(Authority::from_files(&key, &certificate, None), Err(CaError::Mismatch { .. })));
}

#[test]
fn a_certificate_that_may_not_sign_others_is_found_out_before_it_is_used() {
    let folder = tempfile::tempdir().unwrap();
    let (key, certificate) = write_ca(folder.path(), &elliptic(Nid::SECP384R1), false, None);
    let error = issue(Authority::from_files(&key, &certificate, None).unwrap()).unwrap_err();
    assert!(matches!(error, ManufactureError::NotVerifiable(_)), "{error}");
}

#[test]
fn a_ca_without_a_name_is_called_so() {
    let key = elliptic(Nid::SECP384R1);
    let mut name = X509NameBuilder::new().unwrap();
    name.append_entry_by_nid_with_type(Nid::COMMONNAME, "", openssl::asn1::Asn1Type::UTF8STRING).unwrap();
    let name = name.build();
    let mut builder = begin(&key, &name, &name, Validity::Days(100)).unwrap();
    builder.sign(&key, MessageDigest::sha384()).unwrap();
    let authority = Authority { key, certificate: builder.build(), local: None };
    assert_eq!(authority.name(), "a CA without a name");
}

#[test]
fn a_certificate_of_which_a_part_cannot_be_used_is_refused_with_what_to_do() {
    let key = elliptic(Nid::SECP384R1);
    let folder = tempfile::tempdir().unwrap();
    let (key_file, certificate) = write_ca(folder.path(), &key, true, None);
    let whole = X509::from_pem(&std::fs::read(&certificate).unwrap()).unwrap();
    // The key's point is not on its curve.
    let mut der = whole.to_der().unwrap();
    let point = key.ec_key().unwrap();
    let group = point.group();
    let context = &mut openssl::bn::BigNumContext::new().unwrap();
    let point = point.public_key().to_bytes(group, openssl::ec::PointConversionForm::UNCOMPRESSED, context).unwrap();
    let at = der.windows(point.len()).position(|window| window == point).unwrap();
    der[at + 10] ^= 1;
    std::fs::write(&certificate, X509::from_der(&der).unwrap().to_pem().unwrap()).unwrap();
    let error = Authority::from_files(&key_file, &certificate, None).unwrap_err();
    assert!(matches!(error, CaError::Certificate { .. }), "{error}");

    // Its key identifier is shorter than libcrypto takes it.
    let mut builder =
        begin(&key, whole.subject_name(), &whole.subject_name().to_owned().unwrap(), Validity::Days(9)).unwrap();
    let (oid, octets) =
        (Asn1Object::from_str("2.5.29.14").unwrap(), Asn1OctetString::new_from_bytes(b"\x04\x02ab").unwrap());
    builder.append_extension(X509Extension::new_from_der(&oid, false, &octets).unwrap()).unwrap();
    builder.sign(&key, MessageDigest::sha384()).unwrap();
    let error = issue(Authority { key, certificate: builder.build(), local: None }).unwrap_err();
    assert!(error.to_string().contains("key identifier"), "{error}");
}

#[test]
fn a_local_ca_is_made_once_and_its_key_is_private() {
    let temp = tempfile::tempdir().unwrap();
    let folder = temp.path().join("deep/down/ca");
    let first = Authority::local(&folder).unwrap().certificate().to_der().unwrap();
    let mode = std::fs::metadata(folder.join(KEY)).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let second = Authority::local(&folder).unwrap();
    assert_eq!(second.certificate().to_der().unwrap(), first);
    assert!(issue(second).is_ok());
}

#[test]
fn a_crash_between_key_and_certificate_is_made_good() {
    let temp = tempfile::tempdir().unwrap();
    drop(Authority::local(temp.path()).unwrap());
    let key = std::fs::read(temp.path().join(KEY)).unwrap();
    std::fs::remove_file(temp.path().join(CERTIFICATE)).unwrap();
    assert!(issue(Authority::local(temp.path()).unwrap()).is_ok());
    assert_eq!(std::fs::read(temp.path().join(KEY)).unwrap(), key);
}

#[test]
fn a_lost_key_is_not_replaced() {
    let temp = tempfile::tempdir().unwrap();
    drop(Authority::local(temp.path()).unwrap());
    std::fs::remove_file(temp.path().join(KEY)).unwrap();
    assert!(matches!(Authority::local(temp.path()), Err(CaError::NoKey(_))));
}

#[test]
fn the_key_stays_out_of_debug_output() {
    let temp = tempfile::tempdir().unwrap();
    let shown = format!("{:?}", Authority::local(temp.path()).unwrap());
    assert!(shown.starts_with("Authority { local:") && shown.ends_with(".. }"), "{shown}");
}
