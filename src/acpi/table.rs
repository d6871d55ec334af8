//! The header that every table starts with (ACPI 6.5, section 5.2.6).

use acpi_tables::sdt::Sdt;

const HEADER_LENGTH: u32 = 36;
const OEM_ID: [u8; 6] = *b"VFUTPM";

/// One ACPI table, ready for a VMM to add.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Table {
    /// The signature in its header.
    pub signature: &'static str,
    /// The file that it is kept in.
    pub file_name: &'static str,
    /// The whole table: header, with length and checksum, and body.
    pub bytes: Vec<u8>,
}

/// The OEM's own name for a table, and which of several of that name it is: a later one takes an earlier one's place.
#[derive(Clone, Copy)]
pub(super) struct OemTable {
    pub(super) id: [u8; 8],
    pub(super) revision: u32,
}

/// Where a table says where the measurement log is, in bytes from its start.
#[derive(Clone, Copy)]
pub(super) struct LogFields {
    /// LAML, the log area's minimum length, 32 bits.
    pub(super) length_at: usize,
    /// LASA, the log area's start address, 64 bits.
    pub(super) address_at: usize,
}

/// `body` behind a header with the signature, the revision of the table's format, and the OEM's name for this table.
pub(super) fn bytes(signature: [u8; 4], revision: u8, oem_table: OemTable, body: &[u8]) -> Vec<u8> {
    let OemTable { id, revision: oem_revision } = oem_table;
    let mut table = Sdt::new(signature, HEADER_LENGTH, revision, OEM_ID, id, oem_revision);
    table.append_slice(body);
    table.as_slice().to_vec()
}
