//! QEMU's command line for the device.

use serde::Serialize;

use super::{Description, DescriptionError};
use crate::acpi::Machine;

/// The file with the argument of `-device`.
pub(super) const DEVICE_FILE: &str = "qemu-device.json";

/// `-device` in its JSON form: the dotted form can't carry a socket.
#[derive(Serialize)]
struct Device<'a> {
    driver: &'static str,
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
    let device = Device {
        driver: "vfio-user-pci",
        addr: description.device.placement.address().to_string(),
        socket: Socket { r#type: "unix", path: &description.socket_path },
    };
    super::json(serde_json::to_string(&device))
}

/// All arguments that attach the device, with the tables in `folder`, an absolute path.
pub(super) fn arguments(description: &Description, folder: &str) -> Result<Vec<String>, DescriptionError> {
    if folder.contains(':') {
        return Err(DescriptionError::Colon(folder.to_owned()));
    }
    let mut arguments = vec!["-device".to_owned(), device(description)];
    for table in &description.tables {
        // A comma ends a value of QEMU's options; two are one.
        let file = format!("{folder}/{}", table.file_name).replace(',', ",,");
        arguments.extend(["-acpitable".to_owned(), format!("file={file}")]);
    }
    arguments.extend(["-global".to_owned(), no_s3(description.device.placement.machine()).to_owned()]);
    Ok(arguments)
}

/// A wake from S3 looks like a reset to the device and would zero the PCRs of a living guest, so the machine must not
/// offer S3.
const fn no_s3(machine: Machine) -> &'static str {
    match machine {
        Machine::Q35 => "ICH9-LPC.disable_s3=1",
    }
}
