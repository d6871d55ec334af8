//! QEMU's command line and configuration file for the device.

use serde::Serialize;

use super::{Description, DescriptionError};
use crate::acpi::Machine;

/// The file with the argument of `-device`.
pub(super) const DEVICE_FILE: &str = "qemu-device.json";
/// The file for `-readconfig`.
pub(super) const CONFIG_FILE: &str = "qemu.cfg";

/// `-device` in its JSON form: the dotted form can't carry a socket.
#[derive(Serialize)]
struct Device<'a> {
    driver: &'static str,
    /// Always named: in a machine with further host bridges (pxb) the first bus that QEMU finds need not be the root.
    bus: &'a str,
    addr: String,
    socket: Socket<'a>,
}

#[derive(Serialize)]
struct Socket<'a> {
    r#type: &'static str,
    path: &'a str,
}

/// The argument of `-device`, on one line.
pub(super) fn device(description: &Description) -> String {
    let placement = description.device.placement();
    let device = Device {
        driver: "vfio-user-pci",
        bus: placement.bus(),
        addr: placement.address().to_string(),
        socket: Socket { r#type: "unix", path: &description.socket_path },
    };
    super::json(serde_json::to_string(&device))
}

/// All arguments that attach the device, with the tables in `folder`, an absolute path. Where QEMU adds no tables, the
/// initramfs has to begin with the archive, which is left to the user: `-initrd` takes one file.
pub(super) fn arguments(description: &Description, folder: &str) -> Result<Vec<String>, DescriptionError> {
    let machine = description.device.placement().machine();
    let mut arguments = vec!["-device".to_owned(), device(description)];
    let tables = if machine.adds_tables() { description.tables.as_slice() } else { &[] };
    if !tables.is_empty() && folder.contains(':') {
        return Err(DescriptionError::Colon(folder.to_owned()));
    }
    for table in tables {
        // A comma ends a value of QEMU's options; two are one.
        let file = format!("{folder}/{}", table.file_name).replace(',', ",,");
        arguments.extend(["-acpitable".to_owned(), format!("file={file}")]);
    }
    if let Some(driver) = s3_driver(machine) {
        arguments.extend(["-global".to_owned(), format!("{driver}.disable_s3=1")]);
    }
    Ok(arguments)
}

/// What of the arguments QEMU takes from a file, if any: `-global` only. It would read `[acpi]` groups without an error and
/// add no table, and a device with a socket needs the JSON form, which is for the command line.
pub(super) fn config(description: &Description) -> Option<String> {
    let driver = s3_driver(description.device.placement().machine())?;
    Some(format!(
        "# For QEMU's -readconfig: switches S3 off, since a wake from S3 would clear the TPM's PCRs. The device and its\n\
         # ACPI tables can only be given on the command line: -device, -acpitable (see {}).\n\
         [global]\n  driver = \"{driver}\"\n  property = \"disable_s3\"\n  value = \"1\"\n",
        super::tpm_json::FILE,
    ))
}

/// The device whose property `disable_s3` decides whether the machine offers S3, if it has one. It must not: a wake from S3
/// looks like a reset to the TPM and would zero the PCRs of a living guest.
const fn s3_driver(machine: Machine) -> Option<&'static str> {
    match machine {
        Machine::Q35 => Some("ICH9-LPC"),
        Machine::Pc => Some("PIIX4_PM"),
        Machine::Virt | Machine::CloudHypervisor => None,
    }
}
