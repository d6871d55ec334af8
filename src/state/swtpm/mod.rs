//! The state folder of [swtpm](https://github.com/stefanberger/swtpm), so that TPMs move in from it and out to it.
//!
//! swtpm keeps the blobs of libtpms as we do, in files of its own: [`mod@file`] is their format, [`SwtpmKey`] what they may
//! be encrypted with, [`SwtpmFolder`] the folder with its lock. Formats and names as of swtpm 0.7 to 0.10.

pub mod file;
mod folder;
mod key;

pub use folder::{SwtpmFolder, SwtpmFolderError, SwtpmState};
pub use key::{KeyError, KeySource, SwtpmKey};
