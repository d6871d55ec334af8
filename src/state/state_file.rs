//! A file with a blob, by its name and its content.

use std::fmt;

use super::file::{self, FormatError, Label, Undamaged};
use super::{Blob, Key, StateError};
use crate::tpm::TpmVersion;

/// A file with a blob.
#[derive(Clone)]
pub struct StateFile {
    /// Version of the TPM, by the file's name.
    pub version: TpmVersion,
    /// Which blob, by the file's name.
    pub blob: Blob,
    /// The file's content.
    pub bytes: Vec<u8>,
}

impl StateFile {
    /// The file's name in the folder.
    #[must_use]
    pub fn name(&self) -> String {
        self.blob.file_name(self.version)
    }

    /// Finds out, without a key, whether it is whole and undamaged, and what it says that it is.
    ///
    /// # Errors
    /// [`StateError::Format`].
    pub fn inspect(&self) -> Result<Undamaged<'_>, StateError> {
        let undamaged = file::inspect(&self.bytes).and_then(|undamaged| {
            let named = (undamaged.label.version, undamaged.label.blob) == (self.version, self.blob);
            if named { Ok(undamaged) } else { Err(FormatError::OtherContent) }
        });
        undamaged.map_err(|reason| StateError::Format { name: self.name(), reason })
    }

    /// What it says that it is, and the payload.
    ///
    /// # Errors
    /// [`StateError::Format`], [`StateError::Key`].
    pub fn open(&self, key: Option<&Key>) -> Result<(Label, Vec<u8>), StateError> {
        let undamaged = self.inspect()?;
        let payload = undamaged.open(key).map_err(|reason| StateError::Key { name: self.name(), reason })?;
        Ok((undamaged.label, payload))
    }
}

/// Without the content, which is nobody's business.
impl fmt::Debug for StateFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, {} bytes", self.name(), self.bytes.len())
    }
}
