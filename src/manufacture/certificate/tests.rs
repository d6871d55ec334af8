use openssl::ec::{EcGroup, EcKey};
use openssl::pkey::{PKey, Private};
use openssl::rsa::Rsa;
use openssl::x509::X509NameRef;

use super::*;

const SUBJECT_ALT_NAME_DER: [u8; 3] = [0x55, 0x1d, 0x11];

fn ec_key(curve: Nid) -> PKey<Private> {
    PKey::from_ec_key(EcKey::generate(&EcGroup::from_curve_name(curve).unwrap()).unwrap()).unwrap()
}

fn public(key: &PKey<Private>) -> PKey<Public> {
    PKey::public_key_from_der(&key.public_key_to_der().unwrap()).unwrap()
}

fn rsa_key() -> PKey<Private> {
    PKey::from_rsa(Rsa::generate(2048).unwrap()).unwrap()
}

fn identity() -> TpmIdentity {
    TpmIdentity {
        manufacturer: "id:49424D00".to_owned(),
        version: "id:20191023".to_owned(),
        specification: Specification { family: "2.0", level: 0, revision: 164 },
    }
}

/// A certifier with a local CA in a folder that has to be kept.
fn certifier(subject: Option<&str>) -> (tempfile::TempDir, Certifier) {
    let folder = tempfile::tempdir().unwrap();
    let platform = PlatformIdentity {
        manufacturer: "a maker".to_owned(),
        model: "virtual machine".to_owned(),
        version: "1.0".to_owned(),
    };
    let certifier = Certifier {
        authority: Authority::local(folder.path()).unwrap(),
        subject: subject.map(ToOwned::to_owned),
        platform,
        validity: Validity::Unlimited,
    };
    (folder, certifier)
}

/// The certificate as text, by libcrypto itself.
fn text(certificate: &X509) -> String {
    String::from_utf8(certificate.to_text().unwrap()).unwrap()
}

/// Whether the extension with this object identifier (DER) is there and critical.
fn is_critical(certificate: &[u8], oid: &[u8]) -> bool {
    let oid = [&[0x06, u8::try_from(oid.len()).unwrap()][..], oid].concat();
    let at = certificate.windows(oid.len()).position(|window| window == oid).expect("the extension is there");
    certificate[at + oid.len()..].starts_with(&[0x01, 0x01, 0xff])
}

/// Object identifiers and texts of a name. For some identifiers libcrypto has words, which depend on its version.
fn names(name: &X509NameRef) -> Vec<(String, String)> {
    name.entries().map(|entry| (entry.object().to_string(), entry.data().to_string().unwrap())).collect()
}

fn expected(names: [(&str, &str); 3]) -> Vec<(String, String)> {
    names.map(|(oid, text)| (Asn1Object::from_str(oid).unwrap().to_string(), text.to_owned())).into()
}

/// Whether the extended key usage is `tcg-kp` and this number, and nothing else.
fn is_for(certificate: &[u8], number: u8) -> bool {
    // The extension's identifier, and an OCTET STRING of a SEQUENCE of one object identifier.
    let usage = [0x06, 0x03, 0x55, 0x1d, 0x25, 0x04, 0x09, 0x30, 0x07, 0x06, 0x05, 0x67, 0x81, 0x05, 0x08, number];
    certificate.windows(usage.len()).any(|window| window == usage)
}

#[test]
fn an_rsa_endorsement_certificate_is_as_the_profile_says() {
    let (_folder, certifier) = certifier(None);
    let der = certifier.endorsement(&public(&rsa_key()), &identity(), "EK").unwrap();
    let certificate = X509::from_der(&der).unwrap();
    let text = text(&certificate);
    for line in [
        "Version: 3",
        "Not After : Dec 31 23:59:59 9999 GMT",
        "X509v3 Basic Constraints: critical\n                CA:FALSE",
        "X509v3 Key Usage: critical\n                Key Encipherment\n",
        "X509v3 Authority Key Identifier",
    ] {
        assert!(text.contains(line), "{line}\n{text}");
    }
    assert!(names(certificate.subject_name()).is_empty());
    assert!(is_for(&der, 1));
    assert!(is_critical(&der, &SUBJECT_ALT_NAME_DER));
    let alternative = certificate.subject_alt_names().unwrap();
    let directory = alternative.iter().next().unwrap().directory_name().unwrap();
    assert_eq!(
        names(directory),
        expected([("2.23.133.2.1", "id:49424D00"), ("2.23.133.2.2", "vfio-user-tpm"), ("2.23.133.2.3", "id:20191023")])
    );
    // SEQUENCE of one Attribute: the object identifier, and a SET of one TPMSpecification { "2.0", 0, 164 }.
    let specification = [
        0x30, 0x19, 0x30, 0x17, 0x06, 0x05, 0x67, 0x81, 0x05, 0x02, 0x10, 0x31, 0x0e, 0x30, 0x0c, 0x0c, 0x03, b'2',
        b'.', b'0', 0x02, 0x01, 0x00, 0x02, 0x02, 0x00, 0xa4,
    ];
    assert!(der.windows(specification.len()).any(|window| window == specification));
}

#[test]
fn an_ecc_key_is_for_key_agreement() {
    let (_folder, certifier) = certifier(None);
    let der = certifier.endorsement(&public(&ec_key(Nid::SECP384R1)), &identity(), "EK").unwrap();
    let text = text(&X509::from_der(&der).unwrap());
    assert!(text.contains("X509v3 Key Usage: critical\n                Key Agreement\n"), "{text}");
}

#[test]
fn a_named_machine_is_the_subject() {
    let (_folder, certifier) = certifier(Some("vm 7 — test"));
    let der = certifier.endorsement(&public(&rsa_key()), &identity(), "EK").unwrap();
    let certificate = X509::from_der(&der).unwrap();
    assert_eq!(names(certificate.subject_name()), [("commonName".to_owned(), "vm 7 — test".to_owned())]);
    assert!(!is_critical(&der, &SUBJECT_ALT_NAME_DER));
}

#[test]
fn a_platform_certificate_names_the_platform() {
    let (_folder, certifier) = certifier(None);
    let der = certifier.platform(&public(&rsa_key())).unwrap();
    let certificate = X509::from_der(&der).unwrap();
    let alternative = certificate.subject_alt_names().unwrap();
    let directory = alternative.iter().next().unwrap().directory_name().unwrap();
    assert_eq!(
        names(directory),
        expected([("2.23.133.5.1.1", "a maker"), ("2.23.133.5.1.4", "virtual machine"), ("2.23.133.5.1.5", "1.0")])
    );
    assert!(is_for(&der, 2));
}

#[test]
fn each_certificate_has_a_positive_serial_number_of_its_own() {
    let (_folder, certifier) = certifier(None);
    let key = public(&ec_key(Nid::SECP384R1));
    let serials: std::collections::HashSet<_> = (0..20)
        .map(|_| {
            let certificate = X509::from_der(&certifier.platform(&key).unwrap()).unwrap();
            let serial = certificate.serial_number().to_bn().unwrap();
            assert!(!serial.is_negative() && (1..=SERIAL_BITS).contains(&serial.num_bits()));
            serial.to_hex_str().unwrap().to_string()
        })
        .collect();
    assert_eq!(serials.len(), 20);
}

#[test]
fn a_limited_validity_ends() {
    let (_folder, mut certifier) = certifier(None);
    certifier.validity = Validity::Days(10);
    let der = certifier.platform(&public(&rsa_key())).unwrap();
    let certificate = X509::from_der(&der).unwrap();
    assert_eq!(certificate.not_before().diff(certificate.not_after()).unwrap().days, 10);
}

#[test]
fn what_is_issued_is_recorded_with_serial_and_fingerprint() {
    let (folder, certifier) = certifier(Some("vm1"));
    let der = certifier.platform(&public(&rsa_key())).unwrap();
    let issued = std::fs::read_to_string(folder.path().join("issued")).unwrap();
    let fields: Vec<_> = issued.trim_end().split('\t').collect();
    let certificate = X509::from_der(&der).unwrap();
    assert_eq!(fields[0], certificate.serial_number().to_bn().unwrap().to_hex_str().unwrap().to_string());
    assert_eq!(fields[2..4], ["platform", "vm1"]);
    let fingerprint = BigNum::from_slice(&openssl::sha::sha256(&der)).unwrap();
    assert_eq!((fields[4].len(), BigNum::from_hex_str(fields[4]).unwrap()), (64, fingerprint));
}
