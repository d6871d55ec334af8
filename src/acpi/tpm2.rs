//! The TPM2 table (TCG ACPI Specification 1.3, "TPM2 Table"): that there is a 2.0 TPM, and how a command is started.

use super::table::{self, Table};

const REVISION: u8 = 4;
const PLATFORM_CLASS_CLIENT: u16 = 0;
/// No control area: its address is of use to a CRB only.
const CONTROL_AREA: u64 = 0;
/// Start method 6: memory-mapped I/O, the FIFO interface.
const START_METHOD_FIFO: u32 = 6;

/// The table of a TPM with the FIFO interface, 76 bytes.
///
/// The log area's fields are there, as ACPICA demands of revision 4, but empty: firmware may clear what a static table
/// names as the log area (SeaBIOS does), so none can be named before the guest's ACPI interpreter runs.
pub(super) fn table() -> Table {
    let mut body = Vec::with_capacity(40);
    body.extend(PLATFORM_CLASS_CLIENT.to_le_bytes());
    body.extend([0; 2]); // reserved
    body.extend(CONTROL_AREA.to_le_bytes());
    body.extend(START_METHOD_FIFO.to_le_bytes());
    body.extend([0; 12]); // parameters: the start method has none
    body.extend(0_u32.to_le_bytes()); // LAML, log area minimum length
    body.extend(0_u64.to_le_bytes()); // LASA, log area start address
    Table { signature: "TPM2", file_name: "tpm2.aml", bytes: table::bytes(*b"TPM2", REVISION, *b"TPMTIS\0\0", &body) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn linux_finds_the_start_method_at_48_in_a_table_of_at_least_52_bytes() {
        let bytes = table().bytes;
        assert_eq!(bytes.len(), 76);
        assert_eq!(bytes[48..52], [6, 0, 0, 0]);
    }

    #[test]
    fn no_log_area_is_named_for_firmware_to_clear() {
        assert_eq!(table().bytes[64..76], [0; 12]);
    }
}
