//! The SSDT for Linux to install from an initramfs, where the VMM adds no tables of others.
//!
//! Linux installs SSDTs from there, but no TPM2 table: that signature is not among those that it takes. Its driver for
//! `MSFT0101` asks for the table, the one for `PNP0C31` does not, and finds out by itself which version the TPM has. So a
//! 2.0 TPM has the id of a 1.2 here. That driver knows TIS only; the one for a CRB finds nothing without a TPM2 table.

use acpi_tables::Aml;
use acpi_tables::aml::{EISAName, Name, ONE, Package, Store, ZERO};

use super::placement::ROOT_BUS_NODE;
use super::ppi;
use super::ssdt::{self, Additions, path};
use super::table::{OemTable, Table};
use super::{Interface, TpmDevice};

/// Higher than that of the tables for a VMM: should the VMM have added its SSDT after all, Linux puts this one in that one's
/// place, and there is one TPM.
const OEM_REVISION: u32 = 2;

/// Whether `_STA` has been asked for, as a name of the SSDT.
const ASKED: &str = "ASKD";

/// The SSDT; none for a CRB.
///
/// Linux on ARM cannot reach configuration space before it has set the root bus up, and complains of methods that try.
/// `_DEP` makes it wait with the TPM until then (ACPI 6.5, section 6.5.8). It evaluates `_CRS` of all devices before, in
/// search of cameras, but `_STA` not: so `_CRS` looks at nothing until `_STA` has been asked for.
pub(super) fn ssdt(device: &TpmDevice) -> Option<Table> {
    let oem_table = match device.interface() {
        Interface::Tis => OemTable { revision: OEM_REVISION, ..device.interface().oem_table() },
        Interface::Crb | Interface::CrbDoorbell => return None,
    };
    let (root_bus, asked) = (path(ROOT_BUS_NODE), path(ASKED));
    let (depends, was_asked) = (Package::new(vec![&root_bus]), Name::new(path(ASKED), &ZERO));
    let depends = Name::new(path("_DEP"), &depends);
    Some(ssdt::table(
        device,
        oem_table,
        &Additions {
            hardware_id: Some(&EISAName::new("PNP0C31")),
            objects: [vec![&depends as &dyn Aml, &was_asked], ppi::objects(device)].concat(),
            in_sta: vec![&Store::new(&asked, &ONE)],
            crs_if: Some(&asked),
            ..Additions::default()
        },
    ))
}
