//! `describe`: writes the description of a device without serving it, and prints it for those who attach the device.

use std::io::{self, IsTerminal, Write};
use std::path::PathBuf;

use anyhow::{Context, bail};
use clap::{Args, ValueEnum};

use super::backend_args::BackendArgs;
use super::config_file::ConfigArgs;
use super::device_args::{DeviceArgs, description_of};
use crate::description::Description;

/// Write what a VMM needs to attach the TPM, without serving it
///
/// Writes tpm.json, qemu-device.json, qemu.cfg, the ACPI tables, and acpi-initrd.cpio: to be put in front of the initramfs
/// of a Linux whose VMM adds no tables (--interface=tis only). Give the same flags as to the server.
#[derive(Debug, Args)]
pub(super) struct DescribeArgs {
    #[command(flatten)]
    config: ConfigArgs,

    /// Socket on which the server will listen
    #[arg(long, value_name = "PATH")]
    socket_path: PathBuf,

    /// Folder to write the files to; it is created if it is missing
    #[arg(long, value_name = "DIR")]
    description: PathBuf,

    /// Also print what attaches the TPM, with the files in that folder
    #[arg(long, value_enum)]
    format: Option<Format>,

    #[command(flatten)]
    backend: BackendArgs,

    #[command(flatten)]
    device: DeviceArgs,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Format {
    /// The contents of tpm.json
    Json,
    /// QEMU's arguments on one line, quoted for a shell
    QemuArgs,
    /// The <qemu:commandline> element of a libvirt domain
    Libvirt,
    /// Cloud Hypervisor's arguments on one line, quoted for a shell
    CloudHypervisor,
    /// The contents of acpi-initrd.cpio, which are binary
    AcpiInitrd,
}

pub(super) fn run(args: DescribeArgs) -> anyhow::Result<()> {
    let DescribeArgs { config: _, socket_path, description: folder, format, backend, device } = args;
    let backend = backend.config()?;
    let device = device.device(backend.version(device.tpm_version)?)?;
    let description = Description::new(description_of(device, socket_path, backend.source()))?;
    if format == Some(Format::AcpiInitrd) && io::stdout().is_terminal() {
        bail!(
            "the archive is binary, and this is a terminal: send it to a file (> acpi-initrd.cpio), or leave --format out \
               and take acpi-initrd.cpio from the folder"
        );
    }
    // Made before anything is written, so that a description that cannot be printed leaves no files.
    let printed = match format {
        None => Vec::new(),
        Some(Format::Json) => description.tpm_json(&folder)?.into_bytes(),
        Some(Format::QemuArgs) => description.qemu_command_line(&folder)?.into_bytes(),
        Some(Format::Libvirt) => description.libvirt_xml(&folder)?.into_bytes(),
        Some(Format::CloudHypervisor) => description.cloud_hypervisor_command_line()?.into_bytes(),
        Some(Format::AcpiInitrd) => description.acpi_initrd()?.to_vec(),
    };
    description.write_to(&folder)?;
    io::stdout().write_all(&printed).context("cannot print the description")
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::super::Cli;

    #[test]
    fn it_takes_the_servers_flags_and_a_format() {
        for format in ["json", "qemu-args", "libvirt", "cloud-hypervisor", "acpi-initrd"] {
            let args = ["vfio-user-tpm", "describe", "--socket-path=/s", "--description=/d", "--state-dir=/t"];
            let more = ["--machine=pc", "--tpm-version=1.2", "--format", format];
            assert!(Cli::try_parse_from(args.iter().chain(&more)).is_ok(), "{format}");
        }
    }

    #[test]
    fn it_needs_a_folder_since_qemu_reads_the_tables_from_there() {
        let args = ["vfio-user-tpm", "describe", "--socket-path=/s", "--format=json"];
        let error = Cli::try_parse_from(args).unwrap_err().to_string();
        assert!(error.contains("--description"), "{error}");
    }
}
