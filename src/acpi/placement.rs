//! Where in the guest the PCI device sits: which machine, which address, which bus, which ACPI node.

use thiserror::Error;

use super::{Machine, PciAddress, PciPath};

/// The root bus's node in the tables of all machines (of Cloud Hypervisor's, that of PCI segment 0).
pub(super) const ROOT_BUS_NODE: &str = "\\_SB_.PCI0";

/// A place for the device that nothing in the machine takes already.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Placement {
    machine: Machine,
    path: PciPath,
    bus: String,
}

/// The consent to a place behind a bridge.
///
/// The root bus is where the device belongs. Behind a bridge, the guest's kernel can reset the TPM alone, by the
/// bridge's secondary bus reset, and then replay measurements into cleared PCRs: they prove nothing any more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BehindBridge {
    /// The bridge's id in QEMU, which is also the name of the bus behind it.
    pub bridge_id: String,
}

impl Placement {
    /// `path` in `machine`, unless one of the machine's own devices is always there, or it is behind a bridge without
    /// consent.
    pub fn new(machine: Machine, path: PciPath, consent: Option<BehindBridge>) -> Result<Self, PlacementError> {
        let on_root_bus = path.bridge.unwrap_or(path.device);
        if let Some(occupant) = machine.occupant(on_root_bus.slot()) {
            return Err(PlacementError::Taken { machine, address: on_root_bus, occupant });
        }
        if path.bridge.is_some() && !machine.has_known_bridges() {
            return Err(PlacementError::NoBridges { machine, path });
        }
        let bus = match (path.bridge, consent) {
            (None, None) => machine.root_bus().to_owned(),
            (Some(_), Some(BehindBridge { bridge_id })) => bridge_id,
            (Some(_), None) => return Err(PlacementError::BehindBridge(path)),
            (None, Some(BehindBridge { bridge_id })) => {
                return Err(PlacementError::NotBehindBridge { address: path.device, bridge_id });
            }
        };
        Ok(Self { machine, path, bus })
    }

    /// The machine.
    #[must_use]
    pub const fn machine(&self) -> Machine {
        self.machine
    }

    /// The device's address on its bus.
    #[must_use]
    pub const fn address(&self) -> PciAddress {
        self.path.device
    }

    /// The address on the root bus of the bridge in front of the device.
    #[must_use]
    pub const fn bridge(&self) -> Option<PciAddress> {
        self.path.bridge
    }

    /// QEMU's id of the bus, or Cloud Hypervisor's number of its PCI segment.
    #[must_use]
    pub fn bus(&self) -> &str {
        &self.bus
    }

    /// The PCI device's node in the VMM's own tables, each segment padded to 4 characters as in AML.
    ///
    /// QEMU puts the nodes of devices behind a bridge below the bridge. They are there for devices present at boot (on
    /// virt since QEMU 10.1) and, on q35's root ports and on all of pc's buses, for slots in which a device can be plugged.
    /// Cloud Hypervisor has one for each slot.
    #[must_use]
    pub fn acpi_node(&self) -> String {
        let devices = self.path.bridge.into_iter().chain([self.path.device]);
        let names = devices.map(|address| self.machine.node_name(address));
        [ROOT_BUS_NODE.to_owned()].into_iter().chain(names).collect::<Vec<_>>().join(".")
    }
}

/// The device cannot be put there.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum PlacementError {
    /// A device of the machine has the slot.
    #[error("in {machine}, {occupant} is at {address}: choose another slot, as in 05.0")]
    Taken {
        /// The machine.
        machine: Machine,
        /// The address asked for.
        address: PciAddress,
        /// What is there.
        occupant: &'static str,
    },
    /// Behind a bridge, without consent.
    #[error(
        "{0} is behind a bridge, where a guest could reset the TPM alone (by a secondary bus reset) and replay \
         measurements into cleared PCRs: give a slot on the root bus, as in 05.0, or accept that with \
         --force-behind-bridge and the bridge's id in QEMU"
    )]
    BehindBridge(PciPath),
    /// Behind a bridge, in a machine for which that is not known.
    #[error("{path} is behind a bridge, and for {machine} only the root bus is known: give a slot there, as in 05.0")]
    NoBridges {
        /// The machine.
        machine: Machine,
        /// The place asked for.
        path: PciPath,
    },
    /// The id of a bridge, but no bridge's address.
    #[error(
        "{address} is on the root bus, and not behind the bridge \"{bridge_id}\": put the bridge's address in front, \
         as in 06.0/00.0"
    )]
    NotBehindBridge {
        /// The address asked for.
        address: PciAddress,
        /// The bridge's id.
        bridge_id: String,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(machine: Machine, path: &str) -> Result<Placement, PlacementError> {
        Placement::new(machine, path.parse().unwrap(), None)
    }

    fn place_behind_rp0(path: &str) -> Result<Placement, PlacementError> {
        Placement::new(Machine::Q35, path.parse().unwrap(), Some(BehindBridge { bridge_id: "rp0".to_owned() }))
    }

    #[test]
    fn the_machines_own_slots_are_taken() {
        let message = place(Machine::Q35, "0.0").unwrap_err().to_string();
        assert_eq!(message, "in q35, the host bridge is at 00.0: choose another slot, as in 05.0");
        for (machine, taken, free) in [(Machine::Q35, "1f.0", "01.0"), (Machine::Pc, "01.0", "1f.0")] {
            assert!(matches!(place(machine, taken), Err(PlacementError::Taken { .. })), "{machine} {taken}");
            assert!(place(machine, free).is_ok(), "{machine} {free}");
        }
    }

    #[test]
    fn a_bridge_cannot_be_where_the_machines_own_devices_are() {
        let error = place_behind_rp0("1f.4/00.0").unwrap_err();
        assert!(matches!(error, PlacementError::Taken { .. }), "{error}");
    }

    #[test]
    fn the_node_has_qemus_name_for_the_slot_on_each_of_its_machines() {
        for machine in [Machine::Q35, Machine::Pc, Machine::Virt] {
            assert_eq!(place(machine, "05.0").unwrap().acpi_node(), "\\_SB_.PCI0.S28_");
            assert_eq!(place(machine, "1e.0").unwrap().acpi_node(), "\\_SB_.PCI0.SF0_");
        }
    }

    #[test]
    fn the_node_has_cloud_hypervisors_name_for_the_slot() {
        assert_eq!(place(Machine::CloudHypervisor, "05.0").unwrap().acpi_node(), "\\_SB_.PCI0.S005");
        assert_eq!(place(Machine::CloudHypervisor, "1e.0").unwrap().acpi_node(), "\\_SB_.PCI0.S030");
    }

    #[test]
    fn on_the_root_bus_the_bus_is_the_machines() {
        for (machine, bus) in Machine::ALL.into_iter().zip(["pcie.0", "pci.0", "pcie.0", "0"]) {
            assert_eq!(place(machine, "05.0").unwrap().bus(), bus);
        }
    }

    #[test]
    fn where_no_bridges_are_known_none_can_be_forced() {
        for machine in [Machine::Virt, Machine::CloudHypervisor] {
            let consent = Some(BehindBridge { bridge_id: "rp0".to_owned() });
            let message = Placement::new(machine, "06.0/00.0".parse().unwrap(), consent).unwrap_err().to_string();
            assert!(message.contains("06.0/00.0") && message.contains("as in 05.0"), "{message}");
        }
    }

    #[test]
    fn a_place_behind_a_bridge_is_refused_with_the_reason() {
        let message = place(Machine::Q35, "06.0/00.0").unwrap_err().to_string();
        assert!(message.contains("06.0/00.0 is behind a bridge"), "{message}");
        assert!(message.contains("replay measurements"), "{message}");
        assert!(message.contains("--force-behind-bridge"), "{message}");
    }

    #[test]
    fn with_consent_the_node_and_the_bus_are_the_bridges() {
        let placement = place_behind_rp0("06.1/00.0").unwrap();
        assert_eq!(placement.acpi_node(), "\\_SB_.PCI0.S31_.S00_");
        assert_eq!(placement.bus(), "rp0");
    }

    #[test]
    fn a_bridges_id_without_its_address_is_refused() {
        let error = place_behind_rp0("06.0").unwrap_err();
        assert!(error.to_string().contains("as in 06.0/00.0"), "{error}");
    }
}
