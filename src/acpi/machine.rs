//! The machines whose slots and names are known.

use std::fmt;
use std::str::FromStr;

use thiserror::Error;

use super::PciAddress;

/// A machine whose slots and ACPI names are known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Machine {
    /// QEMU's `q35`, with an ICH9 chipset.
    Q35,
    /// QEMU's `pc`, with an i440FX and a PIIX3.
    Pc,
    /// QEMU's `virt` for 64-bit ARM, with UEFI firmware: it is that which hands ACPI tables on.
    Virt,
    /// What Cloud Hypervisor makes.
    CloudHypervisor,
}

/// The program that makes a machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Vmm {
    /// QEMU.
    Qemu,
    /// Cloud Hypervisor.
    CloudHypervisor,
}

impl Machine {
    /// All machines that are known.
    pub const ALL: [Self; 4] = [Self::Q35, Self::Pc, Self::Virt, Self::CloudHypervisor];

    /// The name on the command line and in `tpm.json`: QEMU's for its machines, else that of the VMM.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Q35 => "q35",
            Self::Pc => "pc",
            Self::Virt => "virt",
            Self::CloudHypervisor => "cloud-hypervisor",
        }
    }

    /// The VMM that makes it.
    #[must_use]
    pub const fn vmm(self) -> Vmm {
        match self {
            Self::Q35 | Self::Pc | Self::Virt => Vmm::Qemu,
            Self::CloudHypervisor => Vmm::CloudHypervisor,
        }
    }

    /// Whether its VMM adds tables of others to its own. QEMU has `-acpitable` for x86 only.
    #[must_use]
    pub const fn adds_tables(self) -> bool {
        match self {
            Self::Q35 | Self::Pc => true,
            Self::Virt | Self::CloudHypervisor => false,
        }
    }

    /// Whether a new connection stands for a reset of the machine. Cloud Hypervisor makes machine and connection anew for a
    /// reboot and connects at no other time, and its client sends no DEVICE_RESET to a device that says it can be reset: it
    /// reads that flag the wrong way round (crate `vfio_user`, 0.1.7).
    #[must_use]
    pub const fn resets_by_connecting(self) -> bool {
        match self {
            Self::Q35 | Self::Pc | Self::Virt => false,
            Self::CloudHypervisor => true,
        }
    }

    /// The root bus: QEMU's id of it, or Cloud Hypervisor's number of the PCI segment.
    #[must_use]
    pub const fn root_bus(self) -> &'static str {
        match self {
            Self::Q35 | Self::Virt => "pcie.0",
            Self::Pc => "pci.0",
            Self::CloudHypervisor => "0",
        }
    }

    /// Whether the nodes of devices behind bridges are known.
    pub(super) const fn has_known_bridges(self) -> bool {
        match self {
            Self::Q35 | Self::Pc => true,
            Self::Virt | Self::CloudHypervisor => false,
        }
    }

    /// What sits in `slot` of the root bus in every machine of this kind.
    pub(super) const fn occupant(self, slot: u8) -> Option<&'static str> {
        match (self, slot) {
            (_, 0x00) => Some("the host bridge"),
            (Self::Q35, 0x1f) => Some("the ICH9 chipset"),
            (Self::Pc, 0x01) => Some("the PIIX3 chipset"),
            _ => None,
        }
    }

    /// The VMM's name for the node of a PCI device, 4 characters as in AML: QEMU's is S and the devfn in hexadecimal, Cloud
    /// Hypervisor's S and the slot in decimal.
    pub(super) fn node_name(self, address: PciAddress) -> String {
        match self.vmm() {
            Vmm::Qemu => format!("S{:02X}_", address.devfn()),
            Vmm::CloudHypervisor => format!("S{:03}", address.slot()),
        }
    }
}

impl fmt::Display for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A name that is no [`Machine`].
#[derive(Debug, Error, PartialEq, Eq)]
#[error("there is no machine \"{0}\": expected q35, pc, virt or cloud-hypervisor")]
pub struct UnknownMachine(String);

impl FromStr for Machine {
    type Err = UnknownMachine;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        Self::ALL.into_iter().find(|machine| machine.name() == name).ok_or_else(|| UnknownMachine(name.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_is_known_by_its_name_only() {
        for machine in Machine::ALL {
            assert_eq!(machine.name().parse(), Ok(machine));
        }
        assert_eq!("microvm".parse::<Machine>(), Err(UnknownMachine("microvm".to_owned())));
    }
}
