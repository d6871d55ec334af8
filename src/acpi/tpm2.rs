//! The TPM2 table (TCG ACPI Specification 1.3, "TPM2 Table"): that there is a 2.0 TPM, and how a command is started.

use super::Interface;
use super::table::{self, LogFields, Table};

const REVISION: u8 = 4;
const PLATFORM_CLASS_CLIENT: u16 = 0;
/// No control area: with the FIFO interface there is none, and that of a CRB lies in a BAR that has no address yet. The SSDT
/// fills it in (`patch.rs`).
const CONTROL_AREA: u64 = 0;
/// Where that is in the table, in bytes.
pub(super) const CONTROL_AREA_AT: usize = 40;
pub(super) const LOG_AREA: LogFields = LogFields { length_at: 64, address_at: 68 };

/// How a command is started (TCG ACPI Specification 1.3, "TPM2 Table", start method).
const fn start_method(interface: Interface) -> u32 {
    match interface {
        Interface::Tis => 6,         // memory-mapped I/O: the FIFO interface
        Interface::Crb => 7,         // command response buffer
        Interface::CrbDoorbell => 8, // command response buffer with ACPI start
    }
}

/// The table of a TPM with this interface, 76 bytes.
///
/// The log area's fields are there, as ACPICA demands of revision 4, but empty: firmware may clear what a static table
/// names as the log area (SeaBIOS does), so none is named before the guest's ACPI interpreter runs (`patch.rs`).
pub(super) fn table(interface: Interface) -> Table {
    let mut body = Vec::with_capacity(40);
    body.extend(PLATFORM_CLASS_CLIENT.to_le_bytes());
    body.extend([0; 2]); // reserved
    body.extend(CONTROL_AREA.to_le_bytes());
    body.extend(start_method(interface).to_le_bytes());
    body.extend([0; 12]); // parameters: these start methods have none
    body.extend(0_u32.to_le_bytes()); // LAML, log area minimum length
    body.extend(0_u64.to_le_bytes()); // LASA, log area start address
    let bytes = table::bytes(*b"TPM2", REVISION, interface.oem_table(), &body);
    Table { signature: "TPM2", file_name: "tpm2.aml", bytes }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn linux_finds_the_start_method_at_48_in_a_table_of_at_least_52_bytes() {
        for (interface, method) in [(Interface::Tis, 6), (Interface::Crb, 7), (Interface::CrbDoorbell, 8)] {
            let bytes = table(interface).bytes;
            assert_eq!(bytes.len(), 76);
            assert_eq!(bytes[48..52], [method, 0, 0, 0]);
        }
    }

    #[test]
    fn no_log_area_is_named_for_firmware_to_clear() {
        for interface in Interface::ALL {
            assert_eq!(table(interface).bytes[64..76], [0; 12], "{interface:?}");
        }
    }
}
