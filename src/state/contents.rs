//! The state of a TPM as a value: what moves between state folders, exported files and the folders of other programs.

use std::fmt;

use super::Blob;
use crate::tpm::TpmVersion;

/// All that TPMs keep, as they gave it: not sealed, and without generations.
///
/// At most one payload for each blob of each version.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Contents(Vec<StoredBlob>);

/// One blob and where it belongs.
#[derive(Clone, PartialEq, Eq)]
pub struct StoredBlob {
    /// Version of the TPM that gave it.
    pub version: TpmVersion,
    /// Which of its blobs.
    pub blob: Blob,
    /// The bytes as the TPM gave them: secrets among them.
    pub payload: Vec<u8>,
}

impl Contents {
    /// Puts a payload in; one that is there for the same blob is replaced.
    pub fn insert(&mut self, version: TpmVersion, blob: Blob, payload: Vec<u8>) {
        self.0.retain(|stored| (stored.version, stored.blob) != (version, blob));
        self.0.push(StoredBlob { version, blob, payload });
    }

    /// The payload of a blob, if it is there.
    #[must_use]
    pub fn get(&self, version: TpmVersion, blob: Blob) -> Option<&[u8]> {
        self.iter().find(|stored| (stored.version, stored.blob) == (version, blob)).map(|stored| &*stored.payload)
    }

    /// All blobs, in the order in which they were put in.
    pub fn iter(&self) -> impl Iterator<Item = &StoredBlob> {
        self.0.iter()
    }

    /// Whether nothing is in it.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// Without the payload, which is nobody's business.
impl fmt::Debug for StoredBlob {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of TPM {}, {} bytes", self.blob, self.version, self.payload.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_blob_is_there_once() {
        let mut contents = Contents::default();
        contents.insert(TpmVersion::V2_0, Blob::Permanent, b"old".to_vec());
        contents.insert(TpmVersion::V1_2, Blob::Permanent, b"other".to_vec());
        contents.insert(TpmVersion::V2_0, Blob::Permanent, b"new".to_vec());
        assert_eq!(contents.iter().count(), 2);
        assert_eq!(contents.get(TpmVersion::V2_0, Blob::Permanent), Some(&b"new"[..]));
        assert_eq!(contents.get(TpmVersion::V2_0, Blob::Volatile), None);
    }

    #[test]
    fn secrets_do_not_get_into_logs() {
        let mut contents = Contents::default();
        contents.insert(TpmVersion::V2_0, Blob::Permanent, vec![0x5a; 3]);
        assert!(!format!("{contents:?}").contains("90"), "{contents:?}");
    }
}
