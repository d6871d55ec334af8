//! The ACPI tables by which an operating system finds the TPM: a description goes in, table bytes come out. No files,
//! no sockets.
//!
//! The TPM is an ACPI device below the node that the VMM's own tables have for the PCI device, so its `_CRS` can read
//! the PCI device's BAR when it is asked, and an operating system sees the window inside that BAR.
//!
//! One file for each kind of table. Of the SSDT, `ssdt.rs` has what all interfaces have in common, and `patch.rs` what it fills
//! into the TCG's table; a further interface is a variant of [`Interface`], and a file with what it adds.

#![forbid(unsafe_code)]

mod crb_doorbell;
mod initramfs;
mod interrupt;
mod machine;
mod patch;
mod pci_address;
mod placement;
mod ppi;
mod ssdt;
mod table;
mod tcpa;
mod tpm2;

use std::str::FromStr;

use thiserror::Error;

use crate::bar_map;
use crate::pci::Identity;
use crate::tpm::TpmVersion;

pub use interrupt::InterruptError;
pub use machine::{Machine, UnknownMachine, Vmm};
use patch::Patch;
pub use pci_address::{PciAddress, PciPath, PciPathError};
pub use placement::{BehindBridge, Placement, PlacementError};
use table::OemTable;
pub use table::Table;

/// The register interface through which the guest speaks to the TPM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Interface {
    /// The FIFO interface: TIS, in the words of a 2.0 TPM the FIFO of the PC Client Platform TPM Profile.
    Tis,
    /// The command response buffer of the PC Client Platform TPM Profile. TPM 2.0 only.
    Crb,
    /// A command response buffer whose commands start by a method in the ACPI tables, which rings the doorbell in
    /// configuration space: the TCG's "CRB with ACPI start". TPM 2.0 only.
    CrbDoorbell,
}

impl Interface {
    /// All interfaces that there are tables for.
    pub const ALL: [Self; 3] = [Self::Tis, Self::Crb, Self::CrbDoorbell];

    /// The name on the command line and in `tpm.json`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Tis => "tis",
            Self::Crb => "crb",
            Self::CrbDoorbell => "crb-doorbell",
        }
    }

    /// Bytes from the start of BAR0 that `_CRS` gives to the operating system's driver.
    #[must_use]
    pub const fn crs_length(self) -> u32 {
        match self {
            Self::Tis => bar_map::LOCALITIES.end(),
            Self::Crb | Self::CrbDoorbell => bar_map::COMMAND_BUFFER.end(),
        }
    }

    /// What suits most guests of a TPM of `version` in `machine`: of those that it can have there, the quickest that has
    /// localities and that all of the TCG's specifications know.
    #[must_use]
    pub const fn default_for(machine: Machine, version: TpmVersion) -> Self {
        match version {
            TpmVersion::V2_0 if Self::Crb.is_for_machine(machine) => Self::Crb,
            TpmVersion::V1_2 | TpmVersion::V2_0 => Self::Tis,
        }
    }

    /// Whether a TPM of `version` can have it.
    #[must_use]
    pub const fn is_for(self, version: TpmVersion) -> bool {
        matches!((self, version), (Self::Tis, _) | (_, TpmVersion::V2_0))
    }

    /// Whether it can be in `machine`. An operating system finds a CRB by a TPM2 table only, which the VMM has to add.
    #[must_use]
    pub const fn is_for_machine(self, machine: Machine) -> bool {
        match self {
            Self::Tis => true,
            Self::Crb | Self::CrbDoorbell => machine.adds_tables(),
        }
    }

    /// Where in BAR0 the control area is, for those that have one. Linux uses the localities of a CRB whose control area is
    /// 0x40 bytes from the start of `_CRS`.
    const fn control_area(self) -> Option<u32> {
        match self {
            Self::Tis => None,
            Self::Crb => Some(bar_map::LOCALITIES.offset + bar_map::CONTROL_AREA_START),
            Self::CrbDoorbell => Some(bar_map::CONTROL_AREA.offset + bar_map::CONTROL_AREA_START),
        }
    }

    /// The OEM's name for the tables.
    const fn oem_table(self) -> OemTable {
        let id = *match self {
            Self::Tis => b"TPMTIS\0\0",
            Self::Crb => b"TPMCRB\0\0",
            Self::CrbDoorbell => b"TPMCRBDB",
        };
        OemTable { id, revision: 1 }
    }
}

/// A name that is no [`Interface`].
#[derive(Debug, Error, PartialEq, Eq)]
#[error("there is no TPM interface \"{0}\": expected tis, crb or crb-doorbell")]
pub struct UnknownInterface(String);

impl FromStr for Interface {
    type Err = UnknownInterface;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        Self::ALL
            .into_iter()
            .find(|interface| interface.name() == name)
            .ok_or_else(|| UnknownInterface(name.to_owned()))
    }
}

/// What the tables describe.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TpmDevice {
    placement: Placement,
    identity: Identity,
    interface: Interface,
    version: TpmVersion,
    has_log: bool,
    /// The number of its interrupt (GSI); without one, drivers poll.
    interrupt: Option<u32>,
}

impl TpmDevice {
    /// A TPM of `version` with an area for the measurement log, unless it cannot have that interface, or not in that
    /// machine.
    pub fn new(
        placement: Placement,
        identity: Identity,
        interface: Interface,
        version: TpmVersion,
    ) -> Result<Self, InterfaceError> {
        let machine = placement.machine();
        if !interface.is_for(version) {
            Err(InterfaceError::Version { interface: interface.name(), version })
        } else if !interface.is_for_machine(machine) {
            Err(InterfaceError::Machine { interface: interface.name(), machine })
        } else {
            Ok(Self { placement, identity, interface, version, has_log: true, interrupt: None })
        }
    }

    /// The same without an area for the measurement log.
    #[must_use]
    pub fn without_log(self) -> Self {
        Self { has_log: false, ..self }
    }

    /// Whether it has an area for the measurement log.
    #[must_use]
    pub const fn has_log(&self) -> bool {
        self.has_log
    }

    /// The same with an interrupt, unless its interface has none, or nobody knows where one leads in its place.
    pub fn with_interrupt(self) -> Result<Self, InterruptError> {
        let interrupt = Some(interrupt::gsi(&self.placement, self.interface)?);
        Ok(Self { interrupt, ..self })
    }

    /// Whether it has an interrupt: the PCI device a pin, and the operating system its number.
    #[must_use]
    pub const fn has_interrupt(&self) -> bool {
        self.interrupt.is_some()
    }

    /// Where in the guest the PCI device sits.
    #[must_use]
    pub const fn placement(&self) -> &Placement {
        &self.placement
    }

    /// The identity by which the tables know the PCI device again.
    #[must_use]
    pub const fn identity(&self) -> Identity {
        self.identity
    }

    /// The register interface in BAR0.
    #[must_use]
    pub const fn interface(&self) -> Interface {
        self.interface
    }

    /// The TPM behind it.
    #[must_use]
    pub const fn version(&self) -> TpmVersion {
        self.version
    }
}

/// An interface that this TPM cannot have.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum InterfaceError {
    /// Not with this version.
    #[error("the interface {interface} came with TPM 2.0, and this TPM is a {version}: choose --interface=tis")]
    Version {
        /// The interface.
        interface: &'static str,
        /// The TPM's version.
        version: TpmVersion,
    },
    /// Not in this machine.
    #[error(
        "{machine} takes no ACPI tables of others, and the interface {interface} needs a TPM2 table, which Linux does not \
         take from an initramfs: choose --interface=tis, for the server too"
    )]
    Machine {
        /// The interface.
        interface: &'static str,
        /// The machine.
        machine: Machine,
    },
}

/// The tables that describe `device`, complete with header and checksum, in the order in which a VMM should add them:
/// the TPM's device, then what the TCG has for its version. For a machine whose VMM adds none, [`initramfs_ssdt`] alone.
#[must_use]
pub fn tables(device: &TpmDevice) -> Vec<Table> {
    if !device.placement.machine().adds_tables() {
        return initramfs_ssdt(device).into_iter().collect();
    }
    let ssdt = match device.interface {
        Interface::Tis | Interface::Crb => {
            let additions = ssdt::Additions {
                patch: Patch::of(device),
                objects: ppi::objects(device),
                ..ssdt::Additions::default()
            };
            ssdt::table(device, device.interface.oem_table(), &additions)
        }
        Interface::CrbDoorbell => crb_doorbell::ssdt(device),
    };
    let of_version = match device.version {
        TpmVersion::V1_2 => tcpa::table(),
        TpmVersion::V2_0 => tpm2::table(device.interface),
    };
    vec![ssdt, of_version]
}

/// The table that describes `device` to a Linux which installs it from an initramfs, without any other; none for a CRB, which
/// cannot be found that way.
#[must_use]
pub fn initramfs_ssdt(device: &TpmDevice) -> Option<Table> {
    initramfs::ssdt(device)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn device(interface: Interface, version: TpmVersion) -> Result<TpmDevice, InterfaceError> {
        device_in(Machine::Q35, interface, version)
    }

    fn device_in(machine: Machine, interface: Interface, version: TpmVersion) -> Result<TpmDevice, InterfaceError> {
        let placement = Placement::new(machine, "05.0".parse().unwrap(), None).unwrap();
        let identity = Identity { vendor_id: 0x7666, device_id: 0x5450, revision_id: 1, class_code: 0x10_8000 };
        TpmDevice::new(placement, identity, interface, version)
    }

    #[test]
    fn each_table_has_its_length_and_a_checksum_that_sums_to_zero() {
        let versions = [TpmVersion::V1_2, TpmVersion::V2_0];
        let devices = Interface::ALL.iter().flat_map(|interface| versions.map(|version| device(*interface, version)));
        for table in devices
            .flatten()
            .flat_map(|device| [tables(&device), initramfs_ssdt(&device).into_iter().collect()].concat())
        {
            let length = u32::from_le_bytes(*table.bytes[4..].first_chunk().unwrap());
            assert_eq!(length as usize, table.bytes.len(), "{table:?}");
            assert_eq!(table.bytes.iter().fold(0, |sum: u8, byte| sum.wrapping_add(*byte)), 0, "{table:?}");
            assert_eq!(&table.bytes[..4], table.signature.as_bytes());
        }
    }

    #[test]
    fn each_version_has_its_own_table_behind_the_ssdt() {
        for (version, signature) in [(TpmVersion::V1_2, "TCPA"), (TpmVersion::V2_0, "TPM2")] {
            let tables = tables(&device(Interface::Tis, version).unwrap());
            let signatures: Vec<_> = tables.iter().map(|table| table.signature).collect();
            assert_eq!(signatures, ["SSDT", signature]);
        }
    }

    #[test]
    fn a_1_2_has_no_interface_but_tis() {
        for interface in [Interface::Crb, Interface::CrbDoorbell] {
            let message = device(interface, TpmVersion::V1_2).unwrap_err().to_string();
            assert!(message.contains(interface.name()) && message.contains("--interface=tis"), "{message}");
        }
        for interface in Interface::ALL {
            assert!(device(interface, TpmVersion::V2_0).is_ok(), "{interface:?}");
        }
    }

    #[test]
    fn where_the_vmm_adds_no_tables_there_is_an_ssdt_alone_and_no_crb() {
        for machine in Machine::ALL.into_iter().filter(|machine| !machine.adds_tables()) {
            for interface in [Interface::Crb, Interface::CrbDoorbell] {
                let message = device_in(machine, interface, TpmVersion::V2_0).unwrap_err().to_string();
                assert!(message.contains(machine.name()) && message.contains("--interface=tis"), "{message}");
            }
            for version in [TpmVersion::V1_2, TpmVersion::V2_0] {
                let interface = Interface::default_for(machine, version);
                let device = device_in(machine, interface, version).unwrap();
                assert_eq!(tables(&device), [initramfs_ssdt(&device).unwrap()]);
            }
        }
    }

    #[test]
    fn for_an_initramfs_there_is_no_crb() {
        assert_eq!(initramfs_ssdt(&device(Interface::Crb, TpmVersion::V2_0).unwrap()), None);
        assert!(initramfs_ssdt(&device(Interface::Tis, TpmVersion::V2_0).unwrap()).is_some());
    }

    #[test]
    fn an_interface_is_known_by_its_name_only() {
        for interface in Interface::ALL {
            assert_eq!(interface.name().parse(), Ok(interface));
        }
        assert_eq!("TIS".parse::<Interface>(), Err(UnknownInterface("TIS".to_owned())));
    }
}
