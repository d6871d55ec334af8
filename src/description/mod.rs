//! What a VMM needs to attach the device, as files: the ACPI tables, QEMU's `-device` argument and configuration, and
//! `tpm.json`, which says everything in one place. Nothing here needs the server to run.

#![forbid(unsafe_code)]

mod libvirt;
mod qemu;
mod shell;
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
    /// Which TPM is behind the registers.
    pub source: Source,
}

/// Where the TPM comes from, as far as it matters to those who move and reset virtual machines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// The embedded TPM; its state is nowhere but in the server.
    Ephemeral,
    /// The embedded TPM; its state is in a state folder.
    Embedded,
    /// A swtpm that the server attaches to; its state is where it was told to keep it.
    SwtpmAttached,
    /// A swtpm that the server starts, on a state folder.
    SwtpmOwned,
    /// The host's own TPM.
    Host,
}

/// A device that can be described: its socket has a path that JSON can hold.
///
/// All paths that are made of this begin with the folder in which the description's files are or will be; a relative
/// one is taken from the current directory.
#[derive(Clone, Debug)]
pub struct Description {
    program_version: String,
    device: TpmDevice,
    socket_path: String,
    source: Source,
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
        let Config { program_version, device, socket_path, source } = config;
        let tables = acpi::tables(&device);
        Ok(Self { program_version, device, socket_path: absolute(&socket_path, "socket")?, source, tables })
    }

    /// All files, as they are to be in `folder`: the tables, `qemu-device.json`, `qemu.cfg`, and at last `tpm.json`,
    /// which names the others. Writes nothing.
    pub fn files(&self, folder: &Path) -> Result<Vec<File>, DescriptionError> {
        let tpm_json = self.tpm_json(folder)?;
        let tables = self.tables.iter().map(|table| File { name: table.file_name, contents: table.bytes.clone() });
        let text = |name, text: String| File { name, contents: text.into_bytes() };
        Ok(tables
            .chain([
                text(qemu::DEVICE_FILE, line(qemu::device(self))),
                text(qemu::CONFIG_FILE, qemu::config(self)),
                text(tpm_json::FILE, tpm_json),
            ])
            .collect())
    }

    /// The contents of `tpm.json`.
    pub fn tpm_json(&self, folder: &Path) -> Result<String, DescriptionError> {
        Ok(line(tpm_json::render(self, &absolute_folder(folder)?, self.qemu_arguments(folder)?)))
    }

    /// The arguments that attach the device to QEMU.
    pub fn qemu_arguments(&self, folder: &Path) -> Result<Vec<String>, DescriptionError> {
        qemu::arguments(self, &absolute_folder(folder)?)
    }

    /// The arguments that attach the device to QEMU, quoted for a shell, on one line.
    pub fn qemu_command_line(&self, folder: &Path) -> Result<String, DescriptionError> {
        Ok(line(shell::command_line(&self.qemu_arguments(folder)?)))
    }

    /// The `<qemu:commandline>` element that attaches the device to a libvirt domain.
    pub fn libvirt_xml(&self, folder: &Path) -> Result<String, DescriptionError> {
        libvirt::command_line(&self.qemu_arguments(folder)?)
    }
}

fn absolute_folder(folder: &Path) -> Result<String, DescriptionError> {
    absolute(folder, "description's folder")
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

fn line(text: String) -> String {
    text + "\n"
}

/// The device can't be described, or not there.
#[derive(Debug, Error)]
pub enum DescriptionError {
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
    /// A control character in a path.
    #[error("XML, and so libvirt, cannot hold the control character in {0:?}: choose another path")]
    NotXml(String),
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
