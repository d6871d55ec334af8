//! What the tests of the ACPI tables share: the devices whose description is golden, and ACPICA's tools.
#![allow(dead_code, unreachable_pub, missing_docs)]

pub mod interpreter;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use vfio_user_tpm::acpi::{self, BehindBridge, Interface, Machine, Placement, TpmDevice};
use vfio_user_tpm::description::{Config, Description, Source};
use vfio_user_tpm::device;
use vfio_user_tpm::tpm::TpmVersion;

pub const VENDOR: u16 = device::VENDOR_ID;
pub const DEVICE: u16 = device::DEVICE_ID;

/// A description whose files are golden, in the folder of its name.
#[derive(Clone, Copy)]
pub struct Variant {
    pub name: &'static str,
    pub machine: Machine,
    pub path: &'static str,
    pub bridge_id: Option<&'static str>,
    pub interface: Interface,
    pub version: TpmVersion,
    pub interrupts: bool,
    pub source: Source,
}

/// A 2.0 TPM in a q35.
pub const Q35: Variant = Variant {
    name: "q35-tpm-2.0",
    machine: Machine::Q35,
    path: "05.0",
    bridge_id: None,
    interface: Interface::Tis,
    version: TpmVersion::V2_0,
    interrupts: false,
    source: Source::Embedded,
};

/// A TPM in a 64-bit ARM machine, where a table cannot be added but by the initramfs.
pub const VIRT: Variant = Variant { name: "virt", machine: Machine::Virt, ..Q35 };

/// With an interrupt.
pub const Q35_INTERRUPTS: Variant = Variant { name: "q35-interrupts", interrupts: true, ..Q35 };

pub const VARIANTS: [Variant; 8] = [
    Q35,
    Q35_INTERRUPTS,
    Variant { name: "q35-crb", interface: Interface::Crb, ..Q35 },
    Variant { name: "q35-crb-doorbell", interface: Interface::CrbDoorbell, ..Q35 },
    Variant { name: "pc-tpm-1.2", machine: Machine::Pc, version: TpmVersion::V1_2, source: Source::Ephemeral, ..Q35 },
    Variant { name: "behind-root-port", path: "06.1/00.0", bridge_id: Some("rp0"), source: Source::Ephemeral, ..Q35 },
    VIRT,
    Variant { name: "cloud-hypervisor", machine: Machine::CloudHypervisor, path: "1e.0", ..Q35 },
];

impl Variant {
    pub fn device(&self) -> TpmDevice {
        let consent = self.bridge_id.map(|id| BehindBridge { bridge_id: id.to_owned() });
        let placement = Placement::new(self.machine, self.path.parse().unwrap(), consent).unwrap();
        let device = TpmDevice::new(placement, device::identity(VENDOR, DEVICE), self.interface, self.version).unwrap();
        if self.interrupts { device.with_interrupt().unwrap() } else { device }
    }

    pub fn description(&self) -> Description {
        Description::new(Config {
            program_version: "0.0.0".to_owned(),
            device: self.device(),
            socket_path: "/run/vm/tpm.sock".into(),
            source: self.source,
        })
        .unwrap()
    }

    pub fn golden(&self, file_name: &str) -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(self.name).join(file_name)
    }
}

/// The table of `device` that is kept in this file.
pub fn table(device: &TpmDevice, file_name: &str) -> Vec<u8> {
    acpi::tables(device).into_iter().find(|table| table.file_name == file_name).unwrap().bytes
}

/// Runs one of ACPICA's tools in `folder`; what it said, on both streams, and whether it succeeded.
pub fn acpica(tool: &str, folder: &Path, arguments: &[&str]) -> (String, bool) {
    let output = Command::new(tool)
        .args(arguments)
        .current_dir(folder)
        .stdin(Stdio::null())
        .output()
        .unwrap_or_else(|error| panic!("cannot run {tool} ({error}): install the Debian package acpica-tools"));
    let said = [output.stdout, output.stderr].map(|stream| String::from_utf8_lossy(&stream).into_owned()).concat();
    (said, output.status.success())
}

/// Compiles `source` in `folder`, without an error or a warning, to the table it returns.
pub fn compile(folder: &Path, source: &str) -> Vec<u8> {
    let (said, success) = acpica("iasl", folder, &["-p", "compiled", source]);
    assert!(success && said.contains("0 Errors, 0 Warnings"), "iasl {source}:\n{said}");
    fs::read(folder.join("compiled.aml")).unwrap()
}
