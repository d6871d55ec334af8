//! The certificates of a TPM: that its endorsement keys are a TPM's, and that it belongs to a platform.
//!
//! Endorsement certificates follow the TCG EK Credential Profile for TPM Family 2.0, section 3.2; those of TPM 1.2 have
//! the same form. The platform certificate is an X.509 public-key certificate over the first endorsement key, as
//! swtpm's tools make it, and not the attribute certificate of the Platform Certificate Profile: what reads the NV index
//! in a virtual machine expects that.

use openssl::asn1::{Asn1Object, Asn1OctetString, Asn1Time};
use openssl::bn::{BigNum, MsbOption};
use openssl::error::ErrorStack;
use openssl::nid::Nid;
use openssl::pkey::{HasPublic, Id, PKeyRef, Public};
use openssl::stack::Stack;
use openssl::x509::extension::{AuthorityKeyIdentifier, BasicConstraints, ExtendedKeyUsage, KeyUsage};
use openssl::x509::store::X509StoreBuilder;
use openssl::x509::verify::X509VerifyFlags;
use openssl::x509::{X509, X509Builder, X509Extension, X509Name, X509NameBuilder, X509StoreContext};
use yasna::Tag;

use super::ManufactureError;
use super::ca::Authority;

/// `tcg-kp-EKCertificate`.
const EK_CERTIFICATE: &str = "2.23.133.8.1";
/// `tcg-kp-PlatformAttributeCertificate`, which swtpm's platform certificates have as their extended key usage.
const PLATFORM_CERTIFICATE: &str = "2.23.133.8.2";
/// `tcg-at-tpmManufacturer`, `-tpmModel`, `-tpmVersion`.
const TPM_NAMES: [&str; 3] = ["2.23.133.2.1", "2.23.133.2.2", "2.23.133.2.3"];
/// `tcg-at-platformManufacturerStr`, `-platformModel`, `-platformVersion`.
const PLATFORM_NAMES: [&str; 3] = ["2.23.133.5.1.1", "2.23.133.5.1.4", "2.23.133.5.1.5"];
/// `tcg-at-tpmSpecification`.
const TPM_SPECIFICATION: [u64; 5] = [2, 23, 133, 2, 16];
/// X.520's `subjectDirectoryAttributes` and `subjectAltName`.
const SUBJECT_DIRECTORY_ATTRIBUTES: &str = "2.5.29.9";
const SUBJECT_ALT_NAME: &str = "2.5.29.17";

/// RFC 5280, 4.1.2.5: the certificate has no well-defined end.
const NEVER: &str = "99991231235959Z";
/// Bits of a serial number; with the sign it stays within the 20 bytes of RFC 5280.
const SERIAL_BITS: i32 = 159;

/// The model that the certificates name: this program.
const MODEL: &str = env!("CARGO_PKG_NAME");

/// What a TPM says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TpmIdentity {
    /// Manufacturer, as `id:` and eight hexadecimal digits.
    pub manufacturer: String,
    /// Firmware version, likewise.
    pub version: String,
    /// Which specification it follows.
    pub specification: Specification,
}

/// `TPMSpecification`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Specification {
    /// Family, as in "2.0".
    pub family: &'static str,
    /// Level.
    pub level: u32,
    /// Revision, hundredfold: 164 is 1.64.
    pub revision: u32,
}

/// The platform that the TPM belongs to, in the words of its certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlatformIdentity {
    /// Who makes it.
    pub manufacturer: String,
    /// What it is.
    pub model: String,
    /// Its version.
    pub version: String,
}

/// Until when certificates are valid.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Validity {
    /// As long as there are certificates.
    Unlimited,
    /// Days from now.
    Days(u32),
}

impl Validity {
    /// The time as a certificate has it.
    pub(super) fn end(self) -> Result<Asn1Time, ErrorStack> {
        match self {
            Self::Unlimited => Asn1Time::from_str_x509(NEVER),
            Self::Days(days) => Asn1Time::days_from_now(days),
        }
    }
}

/// Issues the certificates of one TPM.
#[derive(Debug)]
pub struct Certifier {
    /// Who signs them.
    pub authority: Authority,
    /// The common name of their subject; without one, the subject is empty.
    pub subject: Option<String>,
    /// The platform of the platform certificate.
    pub platform: PlatformIdentity,
    /// Until when they are valid.
    pub validity: Validity,
}

impl Certifier {
    /// The endorsement certificate (DER) for `key`, an endorsement key that is called `what` in the CA's records.
    ///
    /// # Errors
    /// libcrypto's, the CA's, and [`ManufactureError::NotVerifiable`].
    pub fn endorsement(
        &self,
        key: &PKeyRef<Public>,
        tpm: &TpmIdentity,
        what: &'static str,
    ) -> Result<Vec<u8>, ManufactureError> {
        let names = [tpm.manufacturer.as_str(), MODEL, tpm.version.as_str()];
        let attributes = specification_attribute(tpm.specification);
        let attributes = extension(SUBJECT_DIRECTORY_ATTRIBUTES, false, &attributes)?;
        self.issue(key, what, EK_CERTIFICATE, &TPM_NAMES.into_iter().zip(names).collect::<Vec<_>>(), Some(attributes))
    }

    /// The platform certificate (DER) for `key`, the platform's first endorsement key.
    ///
    /// # Errors
    /// As [`endorsement`](Self::endorsement).
    pub fn platform(&self, key: &PKeyRef<Public>) -> Result<Vec<u8>, ManufactureError> {
        let PlatformIdentity { manufacturer, model, version } = &self.platform;
        let names = [manufacturer.as_str(), model, version];
        let names = PLATFORM_NAMES.into_iter().zip(names).collect::<Vec<_>>();
        self.issue(key, "platform", PLATFORM_CERTIFICATE, &names, None)
    }

    fn issue(
        &self,
        key: &PKeyRef<Public>,
        what: &'static str,
        extended_key_usage: &str,
        names: &[(&str, &str)],
        more: Option<X509Extension>,
    ) -> Result<Vec<u8>, ManufactureError> {
        let issuer = self.authority.certificate();
        let mut subject = X509NameBuilder::new()?;
        if let Some(name) = &self.subject {
            subject.append_entry_by_nid(Nid::COMMONNAME, name)?;
        }
        let mut builder = begin(key, issuer.subject_name(), &subject.build(), self.validity)?;

        // An empty subject makes the alternative name the only one (RFC 5280, 4.2.1.6).
        let names = extension(SUBJECT_ALT_NAME, self.subject.is_none(), &directory_name(names)?)?;
        let mut usage = KeyUsage::new();
        usage.critical();
        let usage = if key.id() == Id::RSA { usage.key_encipherment() } else { usage.key_agreement() }.build()?;
        let mut authority = AuthorityKeyIdentifier::new();
        // A CA without a key identifier is named by its issuer and serial number.
        let authority = match issuer.subject_key_id() {
            Some(_) => authority.keyid(true),
            None => authority.issuer(true),
        }
        .build(&builder.x509v3_context(Some(issuer), None))
        .map_err(|_| ManufactureError::NotVerifiable("its key identifier cannot be used".to_owned()))?;
        builder.append_extension(names)?;
        builder.append_extension(BasicConstraints::new().critical().build()?)?;
        builder.append_extension(usage)?;
        builder.append_extension(ExtendedKeyUsage::new().other(extended_key_usage).build()?)?;
        builder.append_extension(authority)?;
        if let Some(more) = more {
            builder.append_extension(more)?;
        }
        self.authority.sign(&mut builder)?;

        let certificate = builder.build();
        self.verify(&certificate)?;
        self.authority.record(&certificate, what, self.subject.as_deref())?;
        Ok(certificate.to_der()?)
    }

    /// Looks at the certificate as who verifies it later does, with the issuer as the one whom he trusts.
    fn verify(&self, certificate: &X509) -> Result<(), ManufactureError> {
        let mut store = X509StoreBuilder::new()?;
        store.add_cert(self.authority.certificate().to_owned())?;
        store.set_flags(X509VerifyFlags::PARTIAL_CHAIN)?;
        let (store, chain) = (store.build(), Stack::new()?);
        let mut context = X509StoreContext::new()?;
        let reason = context.init(&store, certificate, &chain, |context| {
            Ok((!context.verify_cert()?).then(|| context.error().error_string().to_owned()))
        })?;
        reason.map_or(Ok(()), |reason| Err(ManufactureError::NotVerifiable(reason)))
    }
}

/// A certificate that has all but extensions and signature.
pub(super) fn begin<T: HasPublic>(
    key: &PKeyRef<T>,
    issuer: &openssl::x509::X509NameRef,
    subject: &X509Name,
    validity: Validity,
) -> Result<X509Builder, ErrorStack> {
    let mut serial = BigNum::new()?;
    while serial.num_bits() == 0 {
        serial.rand(SERIAL_BITS, MsbOption::MAYBE_ZERO, false)?;
    }
    let mut builder = X509::builder()?;
    // X.509 version 3.
    builder.set_version(2)?;
    builder.set_serial_number(serial.to_asn1_integer()?.as_ref())?;
    builder.set_issuer_name(issuer)?;
    builder.set_subject_name(subject)?;
    builder.set_not_before(Asn1Time::days_from_now(0)?.as_ref())?;
    builder.set_not_after(validity.end()?.as_ref())?;
    builder.set_pubkey(key)?;
    Ok(builder)
}

fn extension(oid: &str, critical: bool, contents: &[u8]) -> Result<X509Extension, ErrorStack> {
    let oid = Asn1Object::from_str(oid)?;
    X509Extension::new_from_der(&oid, critical, Asn1OctetString::new_from_bytes(contents)?.as_ref())
}

/// `GeneralNames` with one directory name, of one attribute each for these pairs of object identifier and text.
fn directory_name(names: &[(&str, &str)]) -> Result<Vec<u8>, ErrorStack> {
    let mut builder = X509NameBuilder::new()?;
    for (oid, text) in names {
        builder.append_entry_by_text_with_type(oid, text, openssl::asn1::Asn1Type::UTF8STRING)?;
    }
    let name = builder.build().to_der()?;
    Ok(yasna::construct_der(|writer| {
        writer.write_sequence(|writer| {
            writer.next().write_tagged(Tag::context(4), |writer| writer.write_der(&name));
        });
    }))
}

/// `SubjectDirectoryAttributes` with the `TPMSpecification`.
fn specification_attribute(specification: Specification) -> Vec<u8> {
    yasna::construct_der(|writer| {
        writer.write_sequence(|writer| {
            writer.next().write_sequence(|writer| {
                writer.next().write_oid(&yasna::models::ObjectIdentifier::from_slice(&TPM_SPECIFICATION));
                writer.next().write_set_of(|writer| {
                    writer.next().write_sequence(|writer| {
                        writer.next().write_utf8_string(specification.family);
                        writer.next().write_u32(specification.level);
                        writer.next().write_u32(specification.revision);
                    });
                });
            });
        });
    })
}

#[cfg(test)]
mod tests;
