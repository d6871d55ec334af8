//! What a VMM needs to attach the device, as files: the ACPI tables, the archive with which Linux installs them itself,
//! QEMU's `-device` argument and configuration, and `tpm.json`, which says everything in one place. Nothing here needs the
//! server to run.

#![forbid(unsafe_code)]

mod cloud_hypervisor;
mod initramfs;
mod libvirt;
mod qemu;
mod shell;
mod tpm_json;
mod write;

use std::io;
use std::path::{Path, PathBuf};

use thiserror::Error;

use crate::acpi::{self, Machine, Table, TpmDevice, Vmm};

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

impl Source {
    /// The name that the server's `--backend` has for it.
    #[must_use]
    pub const fn backend(self) -> &'static str {
        match self {
            Self::Ephemeral | Self::Embedded => "embedded",
            Self::SwtpmAttached | Self::SwtpmOwned => "swtpm",
            Self::Host => "passthrough",
        }
    }
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
    /// For the start of an initramfs; none for a CRB.
    acpi_initrd: Option<Vec<u8>>,
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
        let acpi_initrd = acpi::initramfs_ssdt(&device).map(|table| initramfs::archive(&table));
        let socket_path = absolute(&socket_path, "socket")?;
        Ok(Self { program_version, device, socket_path, source, tables, acpi_initrd })
    }

    /// All files, as they are to be in `folder`: the tables, `acpi-initrd.cpio` unless it is for a CRB, for QEMU
    /// `qemu-device.json` and `qemu.cfg` (if it has something to say), and at last `tpm.json`, which names the others.
    /// Writes nothing.
    pub fn files(&self, folder: &Path) -> Result<Vec<File>, DescriptionError> {
        let tpm_json = self.tpm_json(folder)?;
        let text = |name, text: String| File { name, contents: text.into_bytes() };
        let mut files: Vec<_> =
            self.tables.iter().map(|table| File { name: table.file_name, contents: table.bytes.clone() }).collect();
        files.extend(self.acpi_initrd.clone().map(|contents| File { name: initramfs::FILE, contents }));
        if self.machine().vmm() == Vmm::Qemu {
            files.push(text(qemu::DEVICE_FILE, line(qemu::device(self))));
            files.extend(qemu::config(self).map(|config| text(qemu::CONFIG_FILE, config)));
        }
        files.push(text(tpm_json::FILE, tpm_json));
        Ok(files)
    }

    /// The contents of `tpm.json`.
    pub fn tpm_json(&self, folder: &Path) -> Result<String, DescriptionError> {
        let arguments = match self.machine().vmm() {
            Vmm::Qemu => tpm_json::Arguments { qemu: Some(self.qemu_arguments(folder)?), cloud_hypervisor: None },
            Vmm::CloudHypervisor => {
                tpm_json::Arguments { qemu: None, cloud_hypervisor: Some(self.cloud_hypervisor_arguments()?) }
            }
        };
        Ok(line(tpm_json::render(self, &absolute_folder(folder)?, arguments)))
    }

    /// The archive for the start of an initramfs, from which Linux installs the ACPI table: uncompressed cpio.
    pub fn acpi_initrd(&self) -> Result<&[u8], DescriptionError> {
        self.acpi_initrd.as_deref().ok_or(DescriptionError::NoAcpiInitrd(self.device.interface().name()))
    }

    /// The arguments that attach the device to QEMU.
    pub fn qemu_arguments(&self, folder: &Path) -> Result<Vec<String>, DescriptionError> {
        self.must_be_for(Vmm::Qemu, "QEMU")?;
        qemu::arguments(self, &absolute_folder(folder)?)
    }

    /// The arguments that attach the device to Cloud Hypervisor.
    pub fn cloud_hypervisor_arguments(&self) -> Result<Vec<String>, DescriptionError> {
        self.must_be_for(Vmm::CloudHypervisor, "Cloud Hypervisor")?;
        cloud_hypervisor::arguments(self)
    }

    /// The arguments that attach the device to Cloud Hypervisor, quoted for a shell, on one line.
    pub fn cloud_hypervisor_command_line(&self) -> Result<String, DescriptionError> {
        Ok(line(shell::command_line(&self.cloud_hypervisor_arguments()?)))
    }

    /// The arguments that attach the device to QEMU, quoted for a shell, on one line.
    pub fn qemu_command_line(&self, folder: &Path) -> Result<String, DescriptionError> {
        Ok(line(shell::command_line(&self.qemu_arguments(folder)?)))
    }

    /// The `<qemu:commandline>` element that attaches the device to a libvirt domain.
    pub fn libvirt_xml(&self, folder: &Path) -> Result<String, DescriptionError> {
        libvirt::command_line(&self.qemu_arguments(folder)?)
    }

    fn machine(&self) -> Machine {
        self.device.placement().machine()
    }

    fn must_be_for(&self, vmm: Vmm, name: &'static str) -> Result<(), DescriptionError> {
        let machine = self.machine();
        if machine.vmm() == vmm { Ok(()) } else { Err(DescriptionError::OtherVmm { machine, vmm: name }) }
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
    /// Another VMM's machine.
    #[error("{vmm} has no machine {machine}: give the --machine that fits")]
    OtherVmm {
        /// The machine.
        machine: Machine,
        /// The VMM whose arguments were asked for.
        vmm: &'static str,
    },
    /// A socket whose path Cloud Hypervisor would take apart.
    #[error(
        "the socket's path, {0:?}, has a comma, a bracket or a quotation mark, which Cloud Hypervisor's options take for \
         something else: choose another path"
    )]
    CloudHypervisorPath(String),
    /// Linux would not find the TPM by an initramfs.
    #[error(
        "Linux finds the interface {0} by a TPM2 table only, and takes none from an initramfs: give --interface=tis, to \
         the server too"
    )]
    NoAcpiInitrd(&'static str),
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
