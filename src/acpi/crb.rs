//! What a CRB adds to the SSDT: the operating system learns where the control area is.
//!
//! It looks for that in the TPM2 table, which is written when the BAR has no address yet. So the SSDT puts the address into
//! the table as it lies in the guest's memory, and keeps the checksum right: whoever reads the table anew, as the next kernel
//! does after a kexec, would take it for a broken one otherwise.

use acpi_tables::aml::FieldEntry::Reserved;
use acpi_tables::aml::{
    Add, And, Arg, Field, FieldAccessType, FieldLockRule, FieldUpdateRule, If, Local, Method, MethodCall, Or, Path,
    Return, ShiftRight, Store, Subtract,
};
use acpi_tables::{Aml, AmlSink};

use super::TpmDevice;
use super::ssdt::{self, Additions, BAR_ADDRESS, BAR0, NO_TARGET, named, path};
use super::table::Table;
use crate::bar_map;

/// The SSDT of a CRB whose control area is among the registers of locality 0. Linux uses a CRB's localities if the control
/// area is 0x40 bytes from the start of `_CRS`.
pub(super) fn ssdt(device: &TpmDevice) -> Table {
    let control_area = ControlArea { bar_offset: bar_map::LOCALITIES.offset + bar_map::CONTROL_AREA_START };
    ssdt::table(
        device,
        device.interface().oem_table(),
        &Additions { objects: vec![&control_area], in_crs: vec![&ControlArea::update()], ..Additions::default() },
    )
}

/// The control area's address in the TPM2 table. It is updated by `_INI`, before a driver looks for it, and by `_CRS`, since
/// the BAR may have moved. Linux asks for `_CRS` first.
pub(super) struct ControlArea {
    /// Where in BAR0 the control area is.
    pub(super) bar_offset: u32,
}

impl ControlArea {
    /// The call that updates the table.
    pub(super) fn update() -> MethodCall<'static> {
        MethodCall::new(path("PTCH"), Vec::new())
    }
}

impl Aml for ControlArea {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        let (checksum, address, new) = (path("CKSM"), path("CTLA"), Local(0));
        DataTableRegion { name: path("T2RG"), signature: "TPM2" }.to_aml_bytes(sink);
        Field::new(
            path("T2RG"),
            FieldAccessType::Byte, // what lies beside these is not touched
            FieldLockRule::NoLock,
            FieldUpdateRule::Preserve,
            vec![
                Reserved(9 * 8),
                named(*b"CKSM", 8), // the header's checksum
                Reserved(30 * 8),
                named(*b"CTLA", 32), // the lower half of the control area's address; the higher one stays 0
            ],
        )
        .to_aml_bytes(sink);
        ByteSum.to_aml_bytes(sink);
        Method::new(
            path("PTCH"),
            0,
            true, // one at a time: it reads the checksum and writes it back
            vec![&If::new(
                &MethodCall::new(path("_STA"), Vec::new()),
                vec![
                    &Or::new(&new, &And::new(&NO_TARGET, &path(BAR0), &BAR_ADDRESS), &self.bar_offset),
                    &Subtract::new(
                        &checksum,
                        &Add::new(&NO_TARGET, &checksum, &ByteSum::of(&address)),
                        &ByteSum::of(&new),
                    ),
                    &Store::new(&address, &new),
                ],
            )],
        )
        .to_aml_bytes(sink);
        Method::new(path("_INI"), 0, false, vec![&Self::update()]).to_aml_bytes(sink);
    }
}

/// A method that adds the four bytes of a number up. Only the sum's low byte counts, so the bytes need not be taken apart.
struct ByteSum;

impl ByteSum {
    /// The call.
    fn of(number: &dyn Aml) -> MethodCall<'_> {
        MethodCall::new(path("BSUM"), vec![number])
    }
}

impl Aml for ByteSum {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        let (number, none) = (&Arg(0), &NO_TARGET);
        Method::new(
            path("BSUM"),
            1,
            false,
            vec![&Return::new(&Add::new(
                none,
                &Add::new(none, number, &ShiftRight::new(none, number, &8_u8)),
                &Add::new(none, &ShiftRight::new(none, number, &16_u8), &ShiftRight::new(none, number, &24_u8)),
            ))],
        )
        .to_aml_bytes(sink);
    }
}

/// `DataTableRegion`: a table of the guest as an operation region, here whoever its OEM is (ACPI 6.5, section 19.6,
/// "DataTableRegion").
struct DataTableRegion {
    name: Path,
    signature: &'static str,
}

impl Aml for DataTableRegion {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        const DATA_REGION_OP: [u8; 2] = [0x5b, 0x88];
        sink.vec(&DATA_REGION_OP);
        self.name.to_aml_bytes(sink);
        for text in [self.signature, "", ""] {
            text.to_aml_bytes(sink);
        }
    }
}
