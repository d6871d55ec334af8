//! `tpm.json`: everything a VMM has to know about the device, for VMMs other than QEMU and for management layers.

use serde::Serialize;

use super::Description;
use crate::acpi::Interface;
use crate::bar_map::{self, Window};

pub(super) const FILE: &str = "tpm.json";

/// Counts up when a reader of the old form would misread the new one; new members alone don't count.
const FORMAT: u32 = 1;

#[derive(Serialize)]
struct TpmJson<'a> {
    format: u32,
    program: Program<'a>,
    /// The path on which the vfio-user server listens.
    socket: &'a str,
    tpm: Tpm,
    machine: &'static str,
    pci: Pci,
    bar0: Bar,
    acpi: Acpi<'a>,
    /// Arguments that attach the device to QEMU; not to be passed through a shell unquoted.
    qemu: Vec<String>,
}

#[derive(Serialize)]
struct Program<'a> {
    name: &'static str,
    version: &'a str,
}

#[derive(Serialize)]
struct Tpm {
    version: String,
    interface: &'static str,
}

/// Numbers are hexadecimal, as sysfs and lspci show them.
#[derive(Serialize)]
struct Pci {
    /// SLOT.FUNCTION on the root bus.
    address: String,
    vendor: String,
    device: String,
    class: String,
}

#[derive(Serialize)]
struct Bar {
    /// In bytes.
    size: u32,
    windows: Vec<BarWindow>,
}

#[derive(Serialize)]
struct BarWindow {
    name: &'static str,
    offset: u32,
    length: u32,
    /// Whether there is anything in this mode; if not, it reads 0xff.
    served: bool,
}

#[derive(Serialize)]
struct Acpi<'a> {
    /// The PCI device's node, which the VMM's own tables must have.
    parent: String,
    /// What `_CRS` claims from the start of BAR0, in bytes.
    crs_length: u32,
    tables: Vec<TableFile<'a>>,
}

#[derive(Serialize)]
struct TableFile<'a> {
    signature: &'a str,
    /// Its name beside this file.
    file: &'a str,
}

/// The file's text, with QEMU's arguments as given.
pub(super) fn render(description: &Description, qemu: Vec<String>) -> String {
    let Description { program_version, device, socket_path, tables } = description;
    super::json(serde_json::to_string_pretty(&TpmJson {
        format: FORMAT,
        program: Program { name: env!("CARGO_PKG_NAME"), version: program_version },
        socket: socket_path,
        tpm: Tpm { version: device.version.to_string(), interface: device.interface.name() },
        machine: device.placement.machine().name(),
        pci: Pci {
            address: device.placement.address().to_string(),
            vendor: format!("0x{:04x}", device.identity.vendor_id),
            device: format!("0x{:04x}", device.identity.device_id),
            class: format!("0x{:06x}", device.identity.class_code),
        },
        bar0: Bar {
            size: bar_map::SIZE,
            windows: bar_map::WINDOWS.iter().map(|window| bar_window(*window, device.interface)).collect(),
        },
        acpi: Acpi {
            parent: device.placement.acpi_node(),
            crs_length: device.interface.crs_length(),
            tables: tables
                .iter()
                .map(|table| TableFile { signature: table.signature, file: table.file_name })
                .collect(),
        },
        qemu,
    }))
}

fn bar_window(window: Window, interface: Interface) -> BarWindow {
    let served = match interface {
        Interface::Tis => window == bar_map::LOCALITIES,
    };
    BarWindow { name: window.name, offset: window.offset, length: window.length, served }
}
