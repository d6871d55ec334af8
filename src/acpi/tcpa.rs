//! The TCPA table (TCG ACPI Specification 1.3, "TCPA Capabilities Table"): where the measurement log of a 1.2 TPM is.

use super::Interface;
use super::table::{self, LogFields, Table};

/// Of the table's format for specification family 1.2.
const REVISION: u8 = 2;
const PLATFORM_CLASS_CLIENT: u16 = 0;
pub(super) const LOG_AREA: LogFields = LogFields { length_at: 38, address_at: 42 };

/// The table of a client platform, 50 bytes.
///
/// It names no log area: firmware may clear what a static table names as the log area (SeaBIOS does), so none is named
/// before the guest's ACPI interpreter runs (`patch.rs`).
pub(super) fn table() -> Table {
    let mut body = Vec::with_capacity(14);
    body.extend(PLATFORM_CLASS_CLIENT.to_le_bytes());
    body.extend(0_u32.to_le_bytes()); // LAML, log area minimum length
    body.extend(0_u64.to_le_bytes()); // LASA, log area start address
    let bytes = table::bytes(*b"TCPA", REVISION, Interface::Tis.oem_table(), &body);
    Table { signature: "TCPA", file_name: "tcpa.aml", bytes }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clients_table_has_50_bytes_and_names_no_log_area_for_firmware_to_clear() {
        let bytes = table().bytes;
        assert_eq!(bytes.len(), 50);
        assert_eq!(bytes[36..], [0; 14]);
    }
}
