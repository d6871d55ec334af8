//! Who signs the certificates: a CA that is given, or one of this machine's own that is made when it is first needed.
//!
//! A folder of a local CA holds `ca-key.pem` (mode 0600), `ca-certificate.pem`, which is what to give to verifiers,
//! `issued`, a line for each certificate, and `lock`.

use std::fs::{DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

use nix::fcntl::OFlag;
use openssl::bn::BigNum;
use openssl::ec::{EcGroup, EcKey};
use openssl::error::ErrorStack;
use openssl::hash::MessageDigest;
use openssl::nid::Nid;
use openssl::pkey::{Id, PKey, Private};
use openssl::x509::extension::{BasicConstraints, KeyUsage, SubjectKeyIdentifier};
use openssl::x509::{X509, X509Builder, X509NameBuilder, X509Ref};
use rustix::fs::{FlockOperation, flock};
use thiserror::Error;
use zeroize::Zeroizing;

use super::certificate::{Validity, begin};

const KEY: &str = "ca-key.pem";
const CERTIFICATE: &str = "ca-certificate.pem";
const ISSUED: &str = "issued";
const LOCK: &str = "lock";

/// Most that is read of a key, a certificate or a passphrase, in bytes.
const MAX_FILE: u64 = 1 << 20;
/// Longest wait for another process that uses the same CA.
const LOCK_LIMIT: Duration = Duration::from_secs(30);
const LOCK_INTERVAL: Duration = Duration::from_millis(50);

/// Why there is nobody to sign.
#[derive(Debug, Error)]
pub enum CaError {
    /// A file cannot be read.
    #[error("cannot read {}: {reason}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        reason: io::Error,
    },
    /// A file cannot be written.
    #[error("cannot write {}: {reason}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        reason: io::Error,
    },
    /// Not a key.
    #[error(
        "{} holds no private key in PEM that can be read{}: {reason}", path.display(),
        if *encrypted { " with that passphrase" } else { "; one with a passphrase needs --ca-passphrase-file" }
    )]
    Key {
        /// The file.
        path: PathBuf,
        /// A passphrase was given.
        encrypted: bool,
        /// libcrypto's reason.
        reason: ErrorStack,
    },
    /// A kind of key that this program does not sign with.
    #[error("the key in {} is of a kind that cannot sign certificates here: use RSA, an elliptic curve, or Ed25519", .0.display())]
    KeyKind(PathBuf),
    /// Not a certificate.
    #[error("{} holds no certificate in PEM that can be read: {reason}", path.display())]
    Certificate {
        /// The file.
        path: PathBuf,
        /// libcrypto's reason.
        reason: ErrorStack,
    },
    /// Key and certificate of two CAs.
    #[error("the certificate in {} is not of the key in {}: give both of the same CA", certificate.display(), key.display())]
    Mismatch {
        /// The file with the certificate.
        certificate: PathBuf,
        /// The file with the key.
        key: PathBuf,
    },
    /// Half of a local CA.
    #[error(
        "{} has a certificate and no key: restore {KEY} from a backup, or choose another folder for a new CA", .0.display()
    )]
    NoKey(PathBuf),
    /// Another process holds the lock.
    #[error("the CA in {} has been in use by another process for {} s: end that process, or try again", .0.display(), LOCK_LIMIT.as_secs())]
    Locked(PathBuf),
    /// libcrypto does not do something.
    #[error("libcrypto refuses")]
    Crypto(#[from] ErrorStack),
}

/// A CA that is ready to sign.
pub struct Authority {
    key: PKey<Private>,
    certificate: X509,
    /// A local CA keeps a list, and is locked as long as this lives.
    local: Option<Local>,
}

#[derive(Debug)]
struct Local {
    folder: PathBuf,
    _lock: File,
}

/// Without the key.
impl std::fmt::Debug for Authority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Authority").field("local", &self.local).finish_non_exhaustive()
    }
}

impl Authority {
    /// A CA from a key and its certificate, both in PEM files. Of several certificates in the file, the first is its own.
    ///
    /// # Errors
    /// [`CaError`].
    pub fn from_files(key: &Path, certificate: &Path, passphrase: Option<&Path>) -> Result<Self, CaError> {
        let pem = read_secret(key)?;
        let phrase = passphrase.map(read_secret).transpose()?;
        let given = phrase.as_ref().map(|phrase| first_line(phrase)).unwrap_or_default();
        // Without a callback, libcrypto would ask the terminal. One that does not fit into its buffer is none.
        let parsed = PKey::private_key_from_pem_callback(&pem, |buffer| {
            let Some(room) = buffer.get_mut(..given.len()) else { return Ok(0) };
            room.copy_from_slice(given);
            Ok(given.len())
        });
        let private =
            parsed.map_err(|reason| CaError::Key { path: key.to_owned(), encrypted: phrase.is_some(), reason })?;
        let authority = Self { key: private, certificate: read_certificate(certificate)?, local: None };
        authority.check(key, certificate)
    }

    /// The CA in `folder`; it is made if there is none. Waits for another process that uses it.
    ///
    /// # Errors
    /// [`CaError`].
    pub fn local(folder: &Path) -> Result<Self, CaError> {
        let write = |reason| CaError::Write { path: folder.to_owned(), reason };
        DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(write)?;
        let lock = lock(folder)?;
        let (key_path, certificate_path) = (folder.join(KEY), folder.join(CERTIFICATE));
        let key = if is_there(&key_path)? {
            let pem = read_secret(&key_path)?;
            PKey::private_key_from_pem_callback(&pem, |_| Ok(0)).map_err(|reason| CaError::Key {
                path: key_path.clone(),
                encrypted: false,
                reason,
            })?
        } else if is_there(&certificate_path)? {
            return Err(CaError::NoKey(folder.to_owned()));
        } else {
            let key = PKey::from_ec_key(EcKey::generate(EcGroup::from_curve_name(Nid::SECP384R1)?.as_ref())?)?;
            write_whole(&key_path, &Zeroizing::new(key.private_key_to_pem_pkcs8()?), 0o600)?;
            key
        };
        check_kind(&key, &key_path)?;
        // A key without a certificate is what a crash between the two leaves.
        let certificate = if is_there(&certificate_path)? {
            read_certificate(&certificate_path)?
        } else {
            let certificate = self_signed(&key)?;
            write_whole(&certificate_path, &certificate.to_pem()?, 0o644)?;
            log::info!("made a CA in {}: who verifies TPMs needs its {CERTIFICATE}", folder.display());
            certificate
        };
        let local = Local { folder: folder.to_owned(), _lock: lock };
        Self { key, certificate, local: Some(local) }.check(&key_path, &certificate_path)
    }

    fn check(self, key: &Path, certificate: &Path) -> Result<Self, CaError> {
        check_kind(&self.key, key)?;
        let public = self.certificate.public_key();
        let public = public.map_err(|reason| CaError::Certificate { path: certificate.to_owned(), reason })?;
        if !public.public_eq(&self.key) {
            return Err(CaError::Mismatch { certificate: certificate.to_owned(), key: key.to_owned() });
        }
        Ok(self)
    }

    /// The CA's own certificate.
    #[must_use]
    pub fn certificate(&self) -> &X509Ref {
        &self.certificate
    }

    /// The CA's name, for people: the last part of its subject, which is the common name if it has one.
    #[must_use]
    pub fn name(&self) -> String {
        let text =
            |entry: &openssl::x509::X509NameEntryRef| entry.data().to_string().ok().filter(|text| !text.is_empty());
        let name = self.certificate.subject_name();
        let common = name.entries_by_nid(Nid::COMMONNAME).last().and_then(text);
        let name = common.or_else(|| name.entries().last().and_then(text));
        name.map_or_else(|| "a CA without a name".to_owned(), |name| name.escape_debug().take(100).collect())
    }

    /// Signs a certificate.
    pub(super) fn sign(&self, builder: &mut X509Builder) -> Result<(), ErrorStack> {
        builder.sign(&self.key, signature_digest(&self.key)?.unwrap_or_else(MessageDigest::null))
    }

    /// Writes down that a certificate was issued, where this CA keeps a list: a line of serial number, time, what it is
    /// for, its subject, and the certificate's SHA-256, with tabs between them.
    ///
    /// # Errors
    /// [`CaError::Write`]; the certificate is not to be used then.
    pub(super) fn record(&self, certificate: &X509Ref, what: &str, subject: Option<&str>) -> Result<(), CaError> {
        let Some(local) = &self.local else { return Ok(()) };
        let serial = certificate.serial_number().to_bn()?.to_hex_str()?;
        let fingerprint = BigNum::from_slice(&certificate.digest(MessageDigest::sha256())?)?;
        let fingerprint = fingerprint.to_hex_str()?.to_string();
        let line = format!(
            "{}\t{}\t{what}\t{}\t{fingerprint:0>64}\n",
            &*serial,
            certificate.not_before(),
            subject.unwrap_or("-")
        );
        let path = local.folder.join(ISSUED);
        let flags = (OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK).bits();
        let written = OpenOptions::new()
            .append(true)
            .create(true)
            .mode(0o600)
            .custom_flags(flags)
            .open(&path)
            .and_then(|mut file| file.write_all(line.as_bytes()).and_then(|()| file.sync_all()));
        written.map_err(|reason| CaError::Write { path, reason })
    }
}

fn check_kind(key: &PKey<Private>, path: &Path) -> Result<(), CaError> {
    signature_digest(key)?.map(drop).ok_or_else(|| CaError::KeyKind(path.to_owned()))
}

/// The digest with which a key signs, the null digest for one that needs none; `None` for a key that does not sign.
fn signature_digest(key: &PKey<Private>) -> Result<Option<MessageDigest>, ErrorStack> {
    Ok(match key.id() {
        Id::RSA | Id::RSA_PSS => Some(MessageDigest::sha256()),
        Id::EC => Some(match key.ec_key()?.group().degree() {
            ..=256 => MessageDigest::sha256(),
            257..=384 => MessageDigest::sha384(),
            _ => MessageDigest::sha512(),
        }),
        Id::ED25519 | Id::ED448 => Some(MessageDigest::null()),
        _ => None,
    })
}

/// The root certificate of a local CA. It signs endorsement and platform certificates only, and no other CA.
fn self_signed(key: &PKey<Private>) -> Result<X509, ErrorStack> {
    let mut number = [0; 4];
    openssl::rand::rand_bytes(&mut number)?;
    let mut name = X509NameBuilder::new()?;
    // Another name for each, so that verifiers can tell them apart.
    let common_name = format!("{} local CA {:08x}", env!("CARGO_PKG_NAME"), u32::from_be_bytes(number));
    name.append_entry_by_nid(Nid::COMMONNAME, &common_name)?;
    let name = name.build();
    let mut builder = begin(key, &name, &name, Validity::Unlimited)?;
    builder.append_extension(BasicConstraints::new().critical().ca().pathlen(0).build()?)?;
    builder.append_extension(KeyUsage::new().critical().key_cert_sign().crl_sign().build()?)?;
    let identifier = SubjectKeyIdentifier::new().build(&builder.x509v3_context(None, None))?;
    builder.append_extension(identifier)?;
    builder.sign(key, signature_digest(key)?.unwrap_or_else(MessageDigest::null))?;
    Ok(builder.build())
}

fn lock(folder: &Path) -> Result<File, CaError> {
    let path = folder.join(LOCK);
    let flags = (OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK).bits();
    let mut options = OpenOptions::new();
    let file = options.read(true).write(true).create(true).truncate(false).mode(0o600).custom_flags(flags).open(&path);
    let file = file.map_err(|reason| CaError::Write { path: path.clone(), reason })?;
    let begin = Instant::now();
    loop {
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(file),
            Err(rustix::io::Errno::WOULDBLOCK | rustix::io::Errno::INTR) if begin.elapsed() < LOCK_LIMIT => {
                sleep(LOCK_INTERVAL);
            }
            Err(rustix::io::Errno::WOULDBLOCK) => return Err(CaError::Locked(folder.to_owned())),
            Err(errno) => return Err(CaError::Write { path, reason: errno.into() }),
        }
    }
}

fn is_there(path: &Path) -> Result<bool, CaError> {
    path.try_exists().map_err(|reason| CaError::Read { path: path.to_owned(), reason })
}

fn read_certificate(path: &Path) -> Result<X509, CaError> {
    let (pem, _) = read(path)?;
    X509::from_pem(&pem).map_err(|reason| CaError::Certificate { path: path.to_owned(), reason })
}

/// Reads a file that only this user should be able to read.
fn read_secret(path: &Path) -> Result<Zeroizing<Vec<u8>>, CaError> {
    let (bytes, mode) = read(path)?;
    if mode & 0o077 != 0 {
        log::warn!("{} is open to other users (mode {:o}): chmod 600 it", path.display(), mode & 0o777);
    }
    Ok(bytes)
}

/// A file's content and mode.
fn read(path: &Path) -> Result<(Zeroizing<Vec<u8>>, u32), CaError> {
    let failed = |reason| CaError::Read { path: path.to_owned(), reason };
    let file = OpenOptions::new().read(true).custom_flags(OFlag::O_NONBLOCK.bits()).open(path).map_err(failed)?;
    let metadata = file.metadata().map_err(failed)?;
    if !metadata.is_file() {
        return Err(failed(io::Error::other("it is not a regular file")));
    }
    if metadata.len() > MAX_FILE {
        return Err(failed(io::Error::other(format!("it is larger than {MAX_FILE} bytes"))));
    }
    // Enough room from the start: a growing buffer would leave copies of a secret behind.
    let room = usize::try_from(metadata.len()).unwrap_or(0).saturating_add(1);
    let mut bytes = Zeroizing::new(Vec::with_capacity(room));
    file.take(MAX_FILE).read_to_end(&mut bytes).map_err(failed)?;
    Ok((bytes, metadata.mode()))
}

/// A passphrase file may end with a line break that is not meant.
fn first_line(bytes: &[u8]) -> &[u8] {
    bytes.split(|byte| matches!(byte, b'\n' | b'\r')).next().unwrap_or_default()
}

/// Writes a file that is whole or not there.
fn write_whole(path: &Path, bytes: &[u8], mode: u32) -> Result<(), CaError> {
    let new = path.with_extension("pem.new");
    let written = (|| {
        match std::fs::remove_file(&new) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(&new)?;
        file.set_permissions(Permissions::from_mode(mode))?;
        file.write_all(bytes)?;
        file.sync_all()?;
        std::fs::rename(&new, path)?;
        File::open(path.parent().unwrap_or(Path::new(".")))?.sync_all()
    })();
    written.map_err(|reason| {
        // A half-written key is of no use to anybody.
        let _ = std::fs::remove_file(&new);
        CaError::Write { path: path.to_owned(), reason }
    })
}

#[cfg(test)]
mod tests;
