//! `tpm.json`: everything a VMM has to know about the device, for VMMs other than QEMU and for management layers.
//! `docs/tpm.schema.json` describes it to them.

use std::fmt::Write;

use serde::Serialize;
use sha2::{Digest, Sha256};

use super::{Description, Source, initramfs};
use crate::acpi::{Interface, Table};
use crate::bar_map::{self, Window};
use crate::tpm::TpmVersion;

pub(super) const FILE: &str = "tpm.json";

/// Counts up when a reader of the old form would misread the new one; new members alone don't count.
const FORMAT: u32 = 1;

#[derive(Serialize)]
struct TpmJson<'a> {
    format: u32,
    program: Program<'a>,
    /// The folder of this file and the tables.
    folder: &'a str,
    /// The path on which the vfio-user server listens.
    socket: &'a str,
    tpm: Tpm,
    state: StateMobility,
    reset: Reset,
    machine: &'static str,
    pci: Pci<'a>,
    bar0: Bar,
    acpi: Acpi<'a>,
    #[serde(flatten)]
    arguments: Arguments,
}

/// Arguments that attach the device to the machine's VMM, none for others; not to be passed through a shell unquoted.
#[derive(Serialize)]
pub(super) struct Arguments {
    pub(super) qemu: Option<Vec<String>>,
    pub(super) cloud_hypervisor: Option<Vec<String>>,
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
    backend: &'static str,
}

/// Whether the TPM can be moved to another server, and so the virtual machine to another host.
#[derive(Serialize)]
struct StateMobility {
    movable: bool,
    /// In words for a person.
    why: &'static str,
}

/// Whether the TPM begins anew, its PCRs cleared, when the machine does.
#[derive(Serialize)]
struct Reset {
    with_machine: bool,
    /// In words for a person.
    why: &'static str,
}

/// Numbers are hexadecimal, as sysfs and lspci show them.
#[derive(Serialize)]
struct Pci<'a> {
    /// The bus's id in QEMU, the PCI segment's number in Cloud Hypervisor.
    bus: &'a str,
    /// On the root bus, of the bridge in front of `bus`; none if `bus` is the root bus.
    bridge: Option<String>,
    /// SLOT.FUNCTION on `bus`.
    address: String,
    vendor: String,
    device: String,
    class: String,
    /// The pin by which it interrupts; none if drivers have to poll.
    interrupt_pin: Option<&'static str>,
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
    initrd: Option<InitrdFile>,
}

#[derive(Serialize)]
struct TableFile<'a> {
    signature: &'a str,
    /// Its name in the folder.
    file: &'a str,
    /// Of the whole file, in hexadecimal.
    sha256: String,
}

/// The archive from which Linux installs an SSDT of its own, in place of `tables`.
#[derive(Serialize)]
struct InitrdFile {
    /// Its name in the folder.
    file: &'static str,
    /// Of the whole file, in hexadecimal.
    sha256: String,
}

/// The file's text, with the folder and the VMM's arguments as given.
pub(super) fn render(description: &Description, folder: &str, arguments: Arguments) -> String {
    let Description { program_version, device, socket_path, source, tables, acpi_initrd } = description;
    let placement = device.placement();
    super::json(serde_json::to_string_pretty(&TpmJson {
        format: FORMAT,
        program: Program { name: env!("CARGO_PKG_NAME"), version: program_version },
        folder,
        socket: socket_path,
        tpm: Tpm {
            version: device.version().to_string(),
            interface: device.interface().name(),
            backend: source.backend(),
        },
        state: mobility(*source),
        reset: reset(*source),
        machine: placement.machine().name(),
        pci: Pci {
            bus: placement.bus(),
            bridge: placement.bridge().map(|address| address.to_string()),
            address: placement.address().to_string(),
            vendor: format!("0x{:04x}", device.identity().vendor_id),
            device: format!("0x{:04x}", device.identity().device_id),
            class: format!("0x{:06x}", device.identity().class_code),
            interrupt_pin: device.has_interrupt().then_some("INTA"),
        },
        bar0: Bar {
            size: bar_map::SIZE,
            windows: bar_map::WINDOWS.iter().map(|window| bar_window(*window, description)).collect(),
        },
        acpi: Acpi {
            parent: placement.acpi_node(),
            crs_length: device.interface().crs_length(),
            tables: tables.iter().map(table_file).collect(),
            initrd: acpi_initrd.as_ref().map(|archive| InitrdFile { file: initramfs::FILE, sha256: sha256(archive) }),
        },
        arguments,
    }))
}

const fn mobility(source: Source) -> StateMobility {
    let (movable, why) = match source {
        Source::Embedded | Source::SwtpmOwned => {
            (true, "it is in the server's state folder, which can be moved while the server is stopped")
        }
        Source::SwtpmAttached => {
            (true, "it is where swtpm was told to keep it, and can be moved while swtpm is stopped")
        }
        Source::Ephemeral => (false, "it is in the server's memory and ends with the server"),
        Source::Host => (false, "it is in the host's TPM and cannot leave the chip"),
    };
    StateMobility { movable, why }
}

const fn reset(source: Source) -> Reset {
    match source {
        Source::Host => Reset {
            with_machine: false,
            why: "the host's TPM is reset with the host only: PCRs keep their values, which the host and earlier guests \
                  have extended too",
        },
        Source::Ephemeral | Source::Embedded | Source::SwtpmAttached | Source::SwtpmOwned => {
            Reset { with_machine: true, why: "a reset of the device is a _TPM_Init" }
        }
    }
}

fn table_file(table: &Table) -> TableFile<'_> {
    TableFile { signature: table.signature, file: table.file_name, sha256: sha256(&table.bytes) }
}

fn sha256(bytes: &[u8]) -> String {
    let hex = |mut text: String, byte| {
        // Writing to a string does not fail.
        let _ = write!(text, "{byte:02x}");
        text
    };
    Sha256::digest(bytes).iter().fold(String::new(), hex)
}

fn bar_window(window: Window, Description { device, source, .. }: &Description) -> BarWindow {
    let has_presence = device.version() == TpmVersion::V2_0 && *source != Source::Host;
    let of_interface: &[Window] = match device.interface() {
        Interface::Tis => &[bar_map::LOCALITIES],
        Interface::Crb => &[bar_map::LOCALITIES, bar_map::COMMAND_BUFFER],
        Interface::CrbDoorbell => &[bar_map::DOORBELL, bar_map::CONTROL_AREA, bar_map::COMMAND_BUFFER],
    };
    let served = of_interface.contains(&window)
        || (window == bar_map::LOG && device.has_log())
        || (window == bar_map::PPI && has_presence);
    let Window { name, offset, length } = window;
    BarWindow { name, offset, length, served }
}
