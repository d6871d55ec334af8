//! What a VMM needs to attach the device, as files: QEMU's `-device` argument, the ACPI tables, and `tpm.json`, which
//! says everything in one place. Nothing here needs the server to run.

#![forbid(unsafe_code)]

mod qemu;
mod tpm_json;
mod write;

use std::io;
use std::path::{Path, PathBuf};

use thiserror::Error;

use crate::acpi::{self, Table, TpmDevice};

/// What to describe.
#[derive(Clone, Debug)]
pub struct Config {
    /// The program's version, as `CARGO_PKG_VERSION`.
    pub program_version: String,
    /// The device.
    pub device: TpmDevice,
    /// The socket on which the server listens. A relative path is taken from the current directory.
    pub socket_path: PathBuf,
}

/// A device that can be described: it has tables, and its socket a path that JSON can hold.
#[derive(Clone, Debug)]
pub struct Description {
    program_version: String,
    device: TpmDevice,
    socket_path: String,
    tables: Vec<Table>,
}

/// One file of the description.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct File {
    /// Its name in the description's folder.
    pub name: &'static str,
    /// All its bytes.
    pub contents: Vec<u8>,
}

impl Description {
    /// Checks what can't be described and makes the tables.
    pub fn new(config: Config) -> Result<Self, DescriptionError> {
        let Config { program_version, device, socket_path } = config;
        Ok(Self {
            program_version,
            device,
            socket_path: absolute(&socket_path, "socket")?,
            tables: acpi::tables(&device)?,
        })
    }

    /// The arguments that attach the device to QEMU, with the tables in `folder` (a relative path is taken from the
    /// current directory). Not to be passed through a shell unquoted.
    pub fn qemu_arguments(&self, folder: &Path) -> Result<Vec<String>, DescriptionError> {
        qemu::arguments(self, &absolute(folder, "description's folder")?)
    }

    /// All files, as they are to be in `folder` (a relative path is taken from the current directory): the tables,
    /// `qemu-device.json`, and at last `tpm.json`, which names the others. Writes nothing.
    pub fn files(&self, folder: &Path) -> Result<Vec<File>, DescriptionError> {
        let folder = absolute(folder, "description's folder")?;
        let arguments = qemu::arguments(self, &folder)?;
        let tables = self.tables.iter().map(|table| File { name: table.file_name, contents: table.bytes.clone() });
        Ok(tables
            .chain([
                File { name: qemu::DEVICE_FILE, contents: line(qemu::device(self)) },
                File { name: tpm_json::FILE, contents: line(tpm_json::render(self, arguments)) },
            ])
            .collect())
    }
}

/// The path from the root, which is the same for a VMM started elsewhere.
fn absolute(path: &Path, what: &'static str) -> Result<String, DescriptionError> {
    std::path::absolute(path)
        .map_err(|source| DescriptionError::Path { what, path: path.to_owned(), source })?
        .into_os_string()
        .into_string()
        .map_err(|path| DescriptionError::NotUtf8 { what, path: path.into() })
}

/// Serializing fails only where an implementation of `Serialize` does, or for maps whose keys are no strings; the
/// description's types are derived structs.
#[expect(clippy::expect_used, reason = "see above; nothing from outside decides it")]
fn json(text: serde_json::Result<String>) -> String {
    text.expect("derived structs of strings, numbers and lists become JSON")
}

fn line(mut text: String) -> Vec<u8> {
    text.push('\n');
    text.into_bytes()
}

/// The device can't be described, or not there.
#[derive(Debug, Error)]
pub enum DescriptionError {
    /// No tables.
    #[error(transparent)]
    Unsupported(#[from] acpi::Unsupported),
    /// A path that can't be made absolute.
    #[error("cannot tell where the {what} \"{path}\" is: give an absolute path")]
    Path {
        /// What the path is for.
        what: &'static str,
        /// The path as given.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// A path that JSON can't hold.
    #[error("the path of the {what}, {path:?}, is not UTF-8, and JSON holds nothing else: choose another path")]
    NotUtf8 {
        /// What the path is for.
        what: &'static str,
        /// The path as given.
        path: PathBuf,
    },
    /// A folder whose name QEMU would split.
    #[error(
        "the description's folder, {0:?}, has a colon in its path, and QEMU's -acpitable takes that for the end of a \
         file name: choose another path"
    )]
    Colon(String),
    /// The folder can't be made.
    #[error("cannot create the description's folder {path:?}: give a folder that this user can create or write to")]
    CreateFolder {
        /// The folder.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// A file can't be written.
    #[error("cannot write {path:?}: give a folder for the description that this user can write to, with space left")]
    Write {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
}

#[cfg(test)]
mod tests;
