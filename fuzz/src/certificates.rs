//! A CA as its user gives it: any files, and whole ones of a CA that is odd. And a state's key.

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::sync::OnceLock;

use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use openssl::asn1::{Asn1Integer, Asn1Object, Asn1OctetString, Asn1Time, Asn1Type};
use openssl::bn::{BigNum, BigNumContext};
use openssl::ec::{EcGroup, EcKey, EcPoint};
use openssl::error::ErrorStack;
use openssl::hash::MessageDigest;
use openssl::nid::Nid;
use openssl::pkey::{Id, PKey, Private, Public};
use openssl::rsa::Rsa;
use openssl::symm::Cipher;
use openssl::x509::extension::{BasicConstraints, KeyUsage, SubjectKeyIdentifier};
use openssl::x509::{X509, X509Extension, X509Name, X509NameBuilder};
use vfio_user_tpm::manufacture::ca::{Authority, CaError};
use vfio_user_tpm::manufacture::certificate::{Certifier, PlatformIdentity, Specification, TpmIdentity, Validity};
use vfio_user_tpm::state::Key;

use super::open_descriptors;
use super::tape::Tape;

const KEY: &str = "ca-key.pem";
const CERTIFICATE: &str = "ca-certificate.pem";
const PASSPHRASE: &[u8] = b"open sesame";
/// What a certificate's extension may be called: known ones, and one that nobody knows.
const EXTENSIONS: [&str; 8] =
    ["2.5.29.14", "2.5.29.15", "2.5.29.19", "2.5.29.35", "2.5.29.37", "2.5.29.17", "2.5.29.36", "1.2.3.4"];

pub fn run(data: &[u8]) {
    super::log_lines::check();
    let mut tape = Tape::new(data);
    open_descriptors::unchanged_by(|| match tape.below(8) {
        0 => state_key(tape.rest()),
        1 => any_files(&mut tape),
        2 | 3 => local(&mut tape),
        _ => odd(&mut tape),
    });
}

/// A key is as many bytes as it may be, and not the same few again and again.
fn state_key(bytes: &[u8]) {
    let different = (0..=u8::MAX).filter(|byte| bytes.contains(byte)).count();
    match Key::read_from(bytes, "a file".to_owned()) {
        Ok(_) => assert!((32..=4096).contains(&bytes.len()) && different >= 8),
        Err(error) => {
            assert!(!(32..=4096).contains(&bytes.len()) || different < 8);
            is_clear(&error);
        }
    }
}

fn any_files(tape: &mut Tape<'_>) {
    let folder = tempfile::tempdir().expect("a folder");
    let [key, certificate, passphrase] = [KEY, CERTIFICATE, "passphrase"].map(|name| folder.path().join(name));
    let sizes = [tape.u16(), tape.u16()].map(usize::from);
    let with_passphrase = tape.flag();
    let [key_bytes, passphrase_bytes] = sizes.map(|size| tape.bytes(size));
    fs::write(&key, key_bytes).expect("it can be written");
    fs::write(&passphrase, passphrase_bytes).expect("it can be written");
    fs::write(&certificate, tape.rest()).expect("it can be written");
    let authority = Authority::from_files(&key, &certificate, with_passphrase.then_some(&*passphrase));
    issues_or_says_why(authority, None, Validity::Unlimited);
}

/// A CA that a careless or playful user made: what is taken of it issues what others take.
fn odd(tape: &mut Tape<'_>) {
    let folder = tempfile::tempdir().expect("a folder");
    let [key_file, certificate_file, phrase_file] = [KEY, CERTIFICATE, "phrase"].map(|name| folder.path().join(name));
    let key = any_key(tape);
    let Ok(certificate) = certificate(tape, key) else { return };
    let Ok((pem, phrase)) = key_in_pem(tape, key) else { return };
    let (Ok(mut der), pem) = (certificate.to_der(), pem) else { return };
    for _ in 0..tape.below(4) / 2 {
        let at = usize::from(tape.u16()) % der.len();
        der[at] ^= tape.byte();
    }
    let mut file = in_pem(&der);
    if tape.below(8) == 0 {
        let other = tape.rest().to_vec();
        file.splice(0..0, other);
    }
    fs::write(&key_file, pem).expect("it can be written");
    fs::write(&certificate_file, file).expect("it can be written");
    if let Some(phrase) = &phrase {
        fs::write(&phrase_file, phrase).expect("it can be written");
    }
    let validity = if tape.flag() { Validity::Unlimited } else { Validity::Days(1 + tape.u32() % 365_000) };
    let subject = subject(tape);
    let authority = Authority::from_files(&key_file, &certificate_file, phrase.as_ref().map(|_| &*phrase_file));
    issues_or_says_why(authority, subject, validity);
}

/// Whatever lies in the folder of a local CA, nothing of it is replaced.
fn local(tape: &mut Tape<'_>) {
    let folder = tempfile::tempdir().expect("a folder");
    for name in [KEY, CERTIFICATE, "issued", "lock", "ca-key.pem.new", "ca-certificate.pem.new"] {
        let path = folder.path().join(name);
        match tape.below(8) {
            0 => fs::write(&path, tape.short()).expect("it can be written"),
            1 => fs::create_dir(&path).expect("it can be made"),
            2 => symlink(tape.choose(&["/nonexistent/x", "elsewhere", "ca-key.pem"]), &path).expect("it can be made"),
            3 => mkfifo(&path, Mode::S_IRWXU).expect("it can be made"),
            4 if name == KEY => {
                let pem = any_key(tape).private_key_to_pem_pkcs8().expect("a key");
                fs::write(&path, pem).expect("it can be written");
                fs::set_permissions(&path, Permissions::from_mode(0o600)).expect("it can be");
            }
            _ => {}
        }
    }
    let content = |name| {
        let path = folder.path().join(name);
        // A named pipe would be waited for.
        fs::metadata(&path).is_ok_and(|metadata| metadata.is_file()).then(|| fs::read(&path).expect("it can be read"))
    };
    let before = [KEY, CERTIFICATE].map(content);
    let subject = subject(tape);
    issues_or_says_why(Authority::local(folder.path()), subject, Validity::Unlimited);
    let after = [KEY, CERTIFICATE].map(content);
    for (before, after) in before.iter().zip(&after) {
        assert!(before.is_none() || before == after, "it was replaced");
    }
    issues_or_says_why(Authority::local(folder.path()), None, Validity::Unlimited);
    assert_eq!([KEY, CERTIFICATE].map(content), after);
}

/// What the CA that is taken issues, libcrypto parses again and finds signed by it; what it does not take it explains.
fn issues_or_says_why(authority: Result<Authority, CaError>, subject: Option<String>, validity: Validity) {
    let authority = match authority {
        Ok(authority) => authority,
        Err(error) => return is_clear(&error),
    };
    let name = authority.name();
    assert!(!name.is_empty() && name.chars().count() <= 100 && !name.chars().any(char::is_control), "{name:?}");
    let ca = authority.certificate().to_owned();
    let word = || "x".to_owned();
    let platform =
        PlatformIdentity { manufacturer: subject.clone().unwrap_or_else(word), model: word(), version: word() };
    let certifier = Certifier { authority, subject, platform, validity };
    let tpm = TpmIdentity {
        manufacturer: "id:49424D00".to_owned(),
        version: "id:20191023".to_owned(),
        specification: Specification { family: "2.0", level: 0, revision: 164 },
    };
    let [key, ..] = keys();
    let key: PKey<Public> = PKey::public_key_from_der(&key.public_key_to_der().expect("a key")).expect("a key");
    for issued in [certifier.platform(&key), certifier.endorsement(&key, &tpm, "EK")] {
        match issued {
            Ok(der) => is_issued_by(&der, &ca, &key, certifier.subject.as_deref()),
            Err(error) => is_clear(&error),
        }
    }
}

fn is_issued_by(der: &[u8], ca: &X509, key: &PKey<Public>, subject: Option<&str>) {
    let certificate = X509::from_der(der).expect("it is a certificate");
    assert_eq!(certificate.to_der().expect("it was parsed"), der);
    assert!(certificate.verify(&ca.public_key().expect("it has one")).expect("it can be verified"));
    let name = |name: &openssl::x509::X509NameRef| name.to_der().expect("a name");
    assert_eq!(name(certificate.issuer_name()), name(ca.subject_name()));
    assert!(certificate.public_key().expect("it has one").public_eq(key));
    let serial = certificate.serial_number().to_bn().expect("a number");
    assert!(!serial.is_negative() && serial.num_bits() > 0 && serial.num_bits() <= 159);
    let common: Vec<_> = certificate.subject_name().entries().map(|entry| entry.data().to_string().ok()).collect();
    assert_eq!(common, subject.map(|subject| Some(subject.to_owned())).into_iter().collect::<Vec<_>>());
    let text = String::from_utf8_lossy(&certificate.to_text().expect("it can be shown")).into_owned();
    assert!(text.contains("CA:FALSE") && text.contains("X509v3 Authority Key Identifier"), "{text}");
}

fn is_clear(error: &dyn std::error::Error) {
    let mut error = Some(error);
    while let Some(one) = error {
        let text = one.to_string();
        // That libcrypto does not like something helps nobody.
        let is_clear = !text.is_empty() && !text.chars().any(char::is_control) && !text.contains("libcrypto refuses");
        assert!(is_clear, "{text:?}: {:?}", one.source().map(ToString::to_string));
        error = one.source();
    }
}

/// Keys of many kinds, the same in each run; the first is an endorsement key as well.
fn keys() -> &'static [PKey<Private>; 8] {
    static KEYS: OnceLock<[PKey<Private>; 8]> = OnceLock::new();
    let raw = |size: usize, kind| PKey::private_key_from_raw_bytes(&vec![7; size], kind);
    let make = || {
        Ok::<_, ErrorStack>([
            elliptic(Nid::X9_62_PRIME256V1)?,
            rsa(2048)?,
            elliptic(Nid::SECP521R1)?,
            raw(32, Id::ED25519)?,
            raw(57, Id::ED448)?,
            raw(32, Id::X25519)?,
            elliptic(Nid::SECP224R1)?,
            rsa(512)?,
        ])
    };
    KEYS.get_or_init(|| make().expect("libcrypto has them"))
}

fn any_key(tape: &mut Tape<'_>) -> &'static PKey<Private> {
    &keys()[usize::from(tape.below(8))]
}

fn elliptic(curve: Nid) -> Result<PKey<Private>, ErrorStack> {
    let (group, number) = (EcGroup::from_curve_name(curve)?, BigNum::from_u32(0x5eed)?);
    let mut public = EcPoint::new(&group)?;
    let mut context = BigNumContext::new()?;
    public.mul_generator2(&group, &number, &mut context)?;
    PKey::from_ec_key(EcKey::from_private_components(&group, &number, &public)?)
}

fn rsa(bits: usize) -> Result<PKey<Private>, ErrorStack> {
    let mut context = BigNumContext::new()?;
    // The first primes after two numbers of half the bits.
    let mut prime = |byte: u8| {
        let mut number = BigNum::from_slice(&vec![byte; bits / 16])?;
        while !number.is_prime(64, &mut context)? {
            number.add_word(2)?;
        }
        Ok::<_, ErrorStack>(number)
    };
    let (one, exponent) = (BigNum::from_u32(1)?, BigNum::from_u32(65537)?);
    let (p, q) = (prime(0xf1)?, prime(0xe3)?);
    let [mut modulus, mut phi, mut private, mut dp, mut dq, mut inverse, mut less_p, mut less_q] =
        std::array::from_fn(|_| BigNum::new().expect("there is memory"));
    modulus.checked_mul(&p, &q, &mut context)?;
    less_p.checked_sub(&p, &one)?;
    less_q.checked_sub(&q, &one)?;
    phi.checked_mul(&less_p, &less_q, &mut context)?;
    private.mod_inverse(&exponent, &phi, &mut context)?;
    dp.nnmod(&private, &less_p, &mut context)?;
    dq.nnmod(&private, &less_q, &mut context)?;
    inverse.mod_inverse(&q, &p, &mut context)?;
    PKey::from_rsa(Rsa::from_private_components(modulus, exponent, private, p, q, dp, dq, inverse)?)
}

/// As names in certificates may be: 1 to 64 characters without control characters.
fn subject(tape: &mut Tape<'_>) -> Option<String> {
    let text = String::from_utf8_lossy(tape.short());
    let text: String = text.chars().filter(|c| !c.is_control()).take(64).collect();
    Some(text).filter(|text| !text.is_empty())
}

fn name(tape: &mut Tape<'_>) -> Result<X509Name, ErrorStack> {
    let mut name = X509NameBuilder::new()?;
    for _ in 0..tape.below(4) {
        let nid = tape.choose(&[Nid::COMMONNAME, Nid::COMMONNAME, Nid::ORGANIZATIONNAME, Nid::COUNTRYNAME]);
        let kind =
            tape.choose(&[Asn1Type::UTF8STRING, Asn1Type::BMPSTRING, Asn1Type::T61STRING, Asn1Type::OCTET_STRING]);
        let mut text = String::from_utf8_lossy(tape.short()).into_owned();
        if kind == Asn1Type::BMPSTRING {
            // Two bytes are a character, and to build what is no text is an error of ours.
            text.retain(|c| c.is_ascii());
            text.truncate(text.len() & !1);
        }
        // What is too long or of the wrong kind for it is left out.
        let _refused = name.append_entry_by_nid_with_type(nid, &text, kind);
    }
    Ok(name.build())
}

/// A certificate of the key, or nearly so.
fn certificate(tape: &mut Tape<'_>, key: &PKey<Private>) -> Result<X509, ErrorStack> {
    let mut builder = X509::builder()?;
    builder.set_version(if tape.below(8) == 0 { tape.below(4).into() } else { 2 })?;
    let mut serial = BigNum::from_slice(tape.bytes(3))?;
    serial.set_negative(tape.below(8) == 0);
    builder.set_serial_number(&*Asn1Integer::from_bn(&serial)?)?;
    let subject = name(tape)?;
    builder.set_subject_name(&subject)?;
    builder.set_issuer_name(&*if tape.below(4) == 0 { name(tape)? } else { subject })?;
    let begin = if tape.below(8) == 0 { tape.u16().into() } else { 0 };
    builder.set_not_before(&*Asn1Time::days_from_now(begin)?)?;
    builder.set_not_after(&*Asn1Time::days_from_now(if tape.below(8) == 0 { 0 } else { 100 })?)?;
    builder.set_pubkey(if tape.below(8) == 0 { any_key(tape) } else { key })?;
    for _ in 0..tape.below(6) {
        let extension = extension(tape, &builder)?;
        builder.append_extension(extension)?;
    }
    let [first, ..] = keys();
    let signer = if key.id() == Id::X25519 { first } else { key };
    let is_whole = matches!(signer.id(), Id::ED25519 | Id::ED448);
    builder.sign(signer, if is_whole { MessageDigest::null() } else { MessageDigest::sha256() })?;
    Ok(builder.build())
}

fn extension(tape: &mut Tape<'_>, builder: &openssl::x509::X509Builder) -> Result<X509Extension, ErrorStack> {
    match tape.below(6) {
        0 => {
            let mut constraints = BasicConstraints::new();
            constraints.critical().ca();
            if tape.flag() {
                constraints.pathlen(tape.below(3).into());
            }
            constraints.build()
        }
        1 => BasicConstraints::new().build(),
        2 => KeyUsage::new().critical().key_cert_sign().build(),
        3 => KeyUsage::new().critical().digital_signature().build(),
        4 => SubjectKeyIdentifier::new().build(&builder.x509v3_context(None, None)),
        _ => {
            let (oid, is_critical) = (Asn1Object::from_str(tape.choose(&EXTENSIONS))?, tape.flag());
            X509Extension::new_from_der(&oid, is_critical, &*Asn1OctetString::new_from_bytes(tape.short())?)
        }
    }
}

/// The key's file and the passphrase's, if there is one.
fn key_in_pem(tape: &mut Tape<'_>, key: &PKey<Private>) -> Result<(Vec<u8>, Option<Vec<u8>>), ErrorStack> {
    let phrase = tape.choose(&[&b"open sesame"[..], b"open sesame\r\nand more", b"open", b"", b"\nopen sesame"]);
    match tape.below(8) {
        0 => Ok((key.private_key_to_pem_pkcs8_passphrase(Cipher::aes_128_cbc(), PASSPHRASE)?, Some(phrase.to_vec()))),
        1 => Ok((key.private_key_to_pem_pkcs8_passphrase(Cipher::aes_128_cbc(), PASSPHRASE)?, None)),
        2 => Ok((key.ec_key()?.private_key_to_pem()?, None)),
        3 => Ok((key.private_key_to_pem_pkcs8()?, Some(phrase.to_vec()))),
        4 => Ok((any_key(tape).private_key_to_pem_pkcs8()?, None)),
        _ => Ok((key.private_key_to_pem_pkcs8()?, None)),
    }
}

fn in_pem(der: &[u8]) -> Vec<u8> {
    let text = openssl::base64::encode_block(der);
    let lines = text.as_bytes().chunks(64).flat_map(|line| [line, b"\n"].concat());
    b"-----BEGIN CERTIFICATE-----\n".iter().copied().chain(lines).chain(*b"-----END CERTIFICATE-----\n").collect()
}
