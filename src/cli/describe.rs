//! `describe`: writes the description of a device without serving it.

use std::path::PathBuf;

use clap::Args;

use super::device_args::{DeviceArgs, description_of};
use crate::description::Description;

/// Write what a VMM needs to attach the TPM, without serving it
///
/// Writes tpm.json, qemu-device.json and the ACPI tables. Give the same flags as to the server.
#[derive(Debug, Args)]
pub(super) struct DescribeArgs {
    /// Socket on which the server will listen
    #[arg(long, value_name = "PATH")]
    socket_path: PathBuf,

    /// Folder to write the files to; it is created if it is missing
    #[arg(long, value_name = "DIR")]
    description: PathBuf,

    #[command(flatten)]
    device: DeviceArgs,
}

pub(super) fn run(args: DescribeArgs) -> anyhow::Result<()> {
    let description = Description::new(description_of(args.device.device()?, args.socket_path))?;
    description.write_to(&args.description)?;
    Ok(())
}
