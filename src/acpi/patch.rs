//! What the SSDT fills into the TCG's table: where a CRB's control area is, and the measurement log.
//!
//! The table is written when the BAR has no address yet. So the SSDT puts the addresses into the table as it lies in the
//! guest's memory, and keeps the checksum right: whoever reads the table anew, as the next kernel does after a kexec, would
//! take it for a broken one otherwise.

use acpi_tables::aml::FieldEntry::Reserved;
use acpi_tables::aml::{
    Add, And, Arg, Field, FieldAccessType, FieldEntry, FieldLockRule, FieldUpdateRule, If, Local, Method, MethodCall,
    Or, Path, Return, ShiftRight, Store, Subtract,
};
use acpi_tables::{Aml, AmlSink};

use super::ssdt::{BAR_ADDRESS, BAR0, NO_TARGET, named, path};
use super::{TpmDevice, tcpa, tpm2};
use crate::bar_map::LOG;
use crate::tpm::TpmVersion;

/// Where a table's header has its checksum, in bytes.
const CHECKSUM: usize = 9;

/// Fields of the table. They are updated by `_INI`, before a driver looks for them, and by `_CRS`, since the BAR may have
/// moved. Linux asks for `_CRS` first.
pub(super) struct Patch {
    signature: &'static str,
    /// In ascending order.
    fields: Vec<PatchedField>,
}

/// A field of 32 bits; the higher half of an address, behind it, stays 0.
struct PatchedField {
    name: Segment,
    /// Bytes from the start of the table.
    offset: usize,
    value: Value,
}

/// A name of the SSDT.
struct Segment([u8; 4]);

impl Aml for Segment {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        sink.vec(&self.0);
    }
}

#[derive(Clone, Copy)]
enum Value {
    Number(u32),
    /// The address of what is here in BAR0.
    InBar(u32),
}

impl Patch {
    /// What there is to fill in for `device`, if anything.
    pub(super) fn of(device: &TpmDevice) -> Option<Self> {
        let (signature, log) = match device.version() {
            TpmVersion::V1_2 => ("TCPA", tcpa::LOG_AREA),
            TpmVersion::V2_0 => ("TPM2", tpm2::LOG_AREA),
        };
        let field = |name: &[u8; 4], offset, value| PatchedField { name: Segment(*name), offset, value };
        let control_area = device.interface().control_area();
        let control_area = control_area.map(|offset| field(b"CTLA", tpm2::CONTROL_AREA_AT, Value::InBar(offset)));
        let log = device.has_log().then(|| {
            [
                field(b"LAML", log.length_at, Value::Number(LOG.length)),
                field(b"LASA", log.address_at, Value::InBar(LOG.offset)),
            ]
        });
        let fields: Vec<_> = control_area.into_iter().chain(log.into_iter().flatten()).collect();
        if fields.is_empty() { None } else { Some(Self { signature, fields }) }
    }

    /// The call that updates the table.
    pub(super) fn update() -> MethodCall<'static> {
        MethodCall::new(path("PTCH"), Vec::new())
    }

    /// The checksum and the fields, as the names of the SSDT's region `TREG`.
    fn names(&self) -> Vec<FieldEntry> {
        let mut entries = vec![Reserved(CHECKSUM * 8), named(*b"CKSM", 8)];
        let mut end = CHECKSUM + 1;
        for PatchedField { name, offset, .. } in &self.fields {
            if *offset > end {
                entries.push(Reserved((offset - end) * 8));
            }
            entries.push(named(name.0, 32));
            end = offset + 4;
        }
        entries
    }
}

impl Aml for Patch {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        DataTableRegion { name: path("TREG"), signature: self.signature }.to_aml_bytes(sink);
        Field::new(
            path("TREG"),
            FieldAccessType::Byte, // what lies beside these is not touched
            FieldLockRule::NoLock,
            FieldUpdateRule::Preserve,
            self.names(),
        )
        .to_aml_bytes(sink);
        ByteSum.to_aml_bytes(sink);
        let updates: Vec<&dyn Aml> = self.fields.iter().map(|field| field as &dyn Aml).collect();
        Method::new(
            path("PTCH"),
            0,
            true, // one at a time: it reads the checksum and writes it back
            vec![&If::new(&MethodCall::new(path("_STA"), Vec::new()), updates)],
        )
        .to_aml_bytes(sink);
        Method::new(path("_INI"), 0, false, vec![&Self::update()]).to_aml_bytes(sink);
    }
}

/// The statements that bring it up to date, and the checksum with it.
impl Aml for PatchedField {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        let (checksum, old, new) = (path("CKSM"), &self.name, Local(0));
        match self.value {
            Value::Number(number) => Store::new(&new, &number).to_aml_bytes(sink),
            Value::InBar(offset) => {
                Or::new(&new, &And::new(&NO_TARGET, &path(BAR0), &BAR_ADDRESS), &offset).to_aml_bytes(sink);
            }
        }
        Subtract::new(&checksum, &Add::new(&NO_TARGET, &checksum, &ByteSum::of(old)), &ByteSum::of(&new))
            .to_aml_bytes(sink);
        Store::new(old, &new).to_aml_bytes(sink);
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
