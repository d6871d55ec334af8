//! The arguments that say which device it is and where it sits; for serving it and for describing it.

use std::path::PathBuf;

use clap::builder::NonEmptyStringValueParser;
use clap::{Args, ValueEnum};
use thiserror::Error;

use crate::acpi::{BehindBridge, Interface, Machine, PciPath, Placement, TpmDevice};
use crate::description::Source;
use crate::tpm::TpmVersion;
use crate::{description, device};

#[derive(Clone, Debug, Args)]
pub(super) struct DeviceArgs {
    /// Version of the TPM: 2.0 or 1.2 [default: 2.0, or that of the host's TPM]
    #[arg(long, value_name = "VERSION", value_parser = tpm_version)]
    pub(super) tpm_version: Option<TpmVersion>,

    /// Registers that the guest sees: tis; for TPM 2.0 also crb, or crb-doorbell (a CRB with ACPI start)
    /// [default: crb; for TPM 1.2, and in virt and cloud-hypervisor, tis]
    #[arg(long)]
    interface: Option<Interface>,

    /// Machine that the description is for: QEMU's q35, pc or (ARM) virt, or cloud-hypervisor
    #[arg(long, default_value = "q35")]
    machine: Machine,

    /// Slot on the machine's root bus that the description is for, in hexadecimal. Behind a bridge
    /// (--force-behind-bridge), the bridge's SLOT.FUNCTION, a slash, and the slot there, as in 06.0/00.0
    #[arg(long, default_value = "05.0", value_name = "SLOT.0")]
    pci_address: PciPath,

    /// Describe a TPM behind the bridge with this id in QEMU, as in -device pcie-root-port,id=rp0. With it the TPM's
    /// measurements prove nothing against the guest's root, who can reset the TPM alone by way of the bridge
    #[arg(long, value_name = "ID", value_parser = NonEmptyStringValueParser::new())]
    force_behind_bridge: Option<String>,

    /// Whether drivers can have an interrupt instead of polling: in q35, with --interface tis or crb. Linux takes
    /// one if its command line has tpm_tis.interrupts=1
    #[arg(long, value_enum, default_value_t = Interrupts::Off)]
    interrupts: Interrupts,

    /// PCI vendor and device id, in hexadecimal
    #[arg(long, default_value_t = PciId { vendor: device::VENDOR_ID, device: device::DEVICE_ID }, value_name = "VVVV:DDDD")]
    pci_id: PciId,

    /// Leave out the memory for the measurement log, which the tables name to the operating system
    #[arg(long)]
    no_log: bool,
}

impl DeviceArgs {
    /// The device with a TPM of `version`, if it can be where it is to be, with the registers asked for.
    pub(super) fn device(&self, version: TpmVersion) -> anyhow::Result<TpmDevice> {
        let PciId { vendor, device } = self.pci_id;
        let consent = self.force_behind_bridge.clone().map(|bridge_id| BehindBridge { bridge_id });
        let placement = Placement::new(self.machine, self.pci_address, consent)?;
        let interface = self.interface.unwrap_or(Interface::default_for(self.machine, version));
        let device = TpmDevice::new(placement, device::identity(vendor, device), interface, version)?;
        let device = if self.no_log { device.without_log() } else { device };
        Ok(match self.interrupts {
            Interrupts::Off => device,
            Interrupts::On => device.with_interrupt()?,
        })
    }
}

/// What is needed to describe a device that listens on `socket_path`.
pub(super) fn description_of(device: TpmDevice, socket_path: PathBuf, source: Source) -> description::Config {
    description::Config { program_version: env!("CARGO_PKG_VERSION").to_owned(), device, socket_path, source }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Interrupts {
    /// There are none.
    Off,
    /// By the pin INTA# of the PCI device.
    On,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct PciId {
    vendor: u16,
    device: u16,
}

impl std::fmt::Display for PciId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:04x}:{:04x}", self.vendor, self.device)
    }
}

#[derive(Debug, Error)]
enum PciIdError {
    #[error("\"{0}\" is no PCI id: expected vendor and device in four hexadecimal digits each, as in 7666:5450")]
    Form(String),
    #[error("vendor {0:04x} means that there is no device: choose another")]
    NoDevice(u16),
    #[error("Linux's virtio driver takes every device of vendor 1af4 for its own: choose another")]
    Virtio,
}

impl std::str::FromStr for PciId {
    type Err = PciIdError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let number = |digits: &str| {
            let well_formed = digits.len() == 4 && digits.bytes().all(|byte| byte.is_ascii_hexdigit());
            well_formed.then(|| u16::from_str_radix(digits, 16).ok()).flatten()
        };
        let ids = text.split_once(':').and_then(|(vendor, device)| Some((number(vendor)?, number(device)?)));
        match ids.ok_or_else(|| PciIdError::Form(text.to_owned()))? {
            (vendor @ (0 | 0xffff), _) => Err(PciIdError::NoDevice(vendor)),
            (0x1af4, _) => Err(PciIdError::Virtio),
            (vendor, device) => Ok(Self { vendor, device }),
        }
    }
}

pub(super) fn tpm_version(text: &str) -> Result<TpmVersion, String> {
    match text {
        "2.0" => Ok(TpmVersion::V2_0),
        "1.2" => Ok(TpmVersion::V1_2),
        _ => Err("expected 2.0 or 1.2".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pci_id_is_shown_as_it_is_given() {
        assert_eq!("1b36:00ff".parse::<PciId>().unwrap().to_string(), "1b36:00ff");
    }

    #[test]
    fn ids_that_would_not_work_are_refused_with_the_reason() {
        for (text, reason) in [
            ("7666", "as in 7666:5450"),
            ("+666:5450", "as in 7666:5450"),
            ("76666:5450", "as in 7666:5450"),
            ("ffff:0001", "no device"),
            ("1af4:1000", "virtio"),
        ] {
            let error = text.parse::<PciId>().unwrap_err().to_string();
            assert!(error.contains(reason), "{error}");
        }
    }
}
