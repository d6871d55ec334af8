//! The ACPI tables by which an operating system finds the TPM: a description goes in, table bytes come out. No files,
//! no sockets.
//!
//! The TPM is an ACPI device below the node that the VMM's own tables have for the PCI device, so its `_CRS` can read
//! the PCI device's BAR when it is asked, and an operating system sees the window inside that BAR.
//!
//! One file for each kind of table; a further interface is a variant of [`Interface`] and its file.

#![forbid(unsafe_code)]

mod machine;
mod pci_address;
mod placement;
mod table;
mod tcpa;
mod tis;
mod tpm2;

use std::str::FromStr;

use thiserror::Error;

use crate::pci::Identity;
use crate::tpm::TpmVersion;

pub use machine::{Machine, UnknownMachine};
pub use pci_address::{PciAddress, PciPath, PciPathError};
pub use placement::{BehindBridge, Placement, PlacementError};
pub use table::Table;

/// The register interface through which the guest speaks to the TPM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Interface {
    /// The FIFO interface: TIS, in the words of a 2.0 TPM the FIFO of the PC Client Platform TPM Profile.
    Tis,
}

impl Interface {
    /// All interfaces that there are tables for.
    pub const ALL: [Self; 1] = [Self::Tis];

    /// The name on the command line and in `tpm.json`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Tis => "tis",
        }
    }

    /// Bytes from the start of BAR0 that `_CRS` gives to the operating system's driver.
    #[must_use]
    pub const fn crs_length(self) -> u32 {
        match self {
            Self::Tis => tis::CRS_LENGTH,
        }
    }
}

/// A name that is no [`Interface`].
#[derive(Debug, Error, PartialEq, Eq)]
#[error("there is no TPM interface \"{0}\": expected tis")]
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
    /// Where in the guest the PCI device sits.
    pub placement: Placement,
    /// The identity by which the tables know the PCI device again.
    pub identity: Identity,
    /// The register interface in BAR0.
    pub interface: Interface,
    /// The TPM behind it.
    pub version: TpmVersion,
}

/// The tables that describe `device`, complete with header and checksum, in the order in which a VMM should add them:
/// the TPM's device, then what the TCG has for its version.
#[must_use]
pub fn tables(device: &TpmDevice) -> Vec<Table> {
    match device.interface {
        Interface::Tis => {
            let of_version = match device.version {
                TpmVersion::V1_2 => tcpa::table(),
                TpmVersion::V2_0 => tpm2::table(),
            };
            vec![tis::ssdt(device), of_version]
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn device(version: TpmVersion) -> TpmDevice {
        TpmDevice {
            placement: Placement::new(Machine::Q35, "05.0".parse().unwrap(), None).unwrap(),
            identity: Identity { vendor_id: 0x7666, device_id: 0x5450, revision_id: 1, class_code: 0x10_8000 },
            interface: Interface::Tis,
            version,
        }
    }

    #[test]
    fn each_table_has_its_length_and_a_checksum_that_sums_to_zero() {
        for table in [TpmVersion::V1_2, TpmVersion::V2_0].iter().flat_map(|version| tables(&device(*version))) {
            let length = u32::from_le_bytes(*table.bytes[4..].first_chunk().unwrap());
            assert_eq!(length as usize, table.bytes.len(), "{table:?}");
            assert_eq!(table.bytes.iter().fold(0, |sum: u8, byte| sum.wrapping_add(*byte)), 0, "{table:?}");
            assert_eq!(&table.bytes[..4], table.signature.as_bytes());
        }
    }

    #[test]
    fn each_version_has_its_own_table_behind_the_ssdt() {
        for (version, signature) in [(TpmVersion::V1_2, "TCPA"), (TpmVersion::V2_0, "TPM2")] {
            let signatures: Vec<_> = tables(&device(version)).iter().map(|table| table.signature).collect();
            assert_eq!(signatures, ["SSDT", signature]);
        }
    }

    #[test]
    fn an_interface_is_known_by_its_name_only() {
        assert_eq!("tis".parse(), Ok(Interface::Tis));
        assert_eq!("TIS".parse::<Interface>(), Err(UnknownInterface("TIS".to_owned())));
    }
}
