//! The SSDT, as far as it is the same for each interface, which is all of it but for the CRB with ACPI start. The source form is
//! in `tests/golden/`, as `ssdt.asl` for each variant, held equal by a test.

use acpi_tables::aml::FieldEntry::Reserved;
use acpi_tables::aml::{
    And, BufferData, CreateDWordField, Device, EISAName, Equal, Field, FieldAccessType, FieldEntry, FieldLockRule,
    FieldUpdateRule, If, Memory32Fixed, Method, Name, OpRegion, OpRegionSpace, Or, Path, ResourceTemplate, Return,
    Scope, ZERO, Zero,
};
use acpi_tables::{Aml, AmlSink};

use super::TpmDevice;
use super::interrupt::WithInterrupt;
use super::patch::Patch;
use super::table::{self, OemTable, Table};
use crate::pci::Identity;
use crate::tpm::TpmVersion;

/// Revision 2 and later: integers may have 64 bits. Which they have is decided by the DSDT alone, and QEMU's has revision 1:
/// nothing here may need more than 32.
const REVISION: u8 = 2;

/// The PCI device's BAR0, as a name of the SSDT.
pub(super) const BAR0: &str = "BAR0";
/// The address bits of a 32-bit memory BAR; the bits below say its kind (PCI Local Bus 3.0, section 6.2.5.1). An offset in
/// the BAR is added to it by `Or`: it is a multiple of the BAR's size, and what an empty slot reads (all ones) does not
/// overflow to an address of RAM.
pub(super) const BAR_ADDRESS: u32 = 0xffff_fff0;
/// "Memory Space" of the PCI command register (section 6.2.2).
const COMMAND_MEMORY_SPACE: u8 = 1 << 1;
/// `_STA`: present, enabled and decoding its resources, shown in the UI, functioning (ACPI 6.5, section 6.3.7).
const STA_WORKING: u8 = 0x0f;
/// Where `_BAS` lies in a `Memory32Fixed` descriptor (ACPI 6.5, section 6.4.3.4).
const MEMORY32_FIXED_BAS: u8 = 4;
/// The operation's value is used, not stored: AML's `NullName` is the same byte as `ZeroOp`.
pub(super) const NO_TARGET: Zero = ZERO;

/// What an interface, or a way to the operating system, adds to the SSDT.
#[derive(Default)]
pub(super) struct Additions<'a> {
    /// The id of the device `TPM`, if it is not that of its version.
    pub(super) hardware_id: Option<&'a dyn Aml>,
    /// Objects of the PCI device, in whose scope its configuration space is reached.
    pub(super) in_pci_device: Vec<&'a dyn Aml>,
    /// What the SSDT fills into the TCG's table.
    pub(super) patch: Option<Patch>,
    /// Further objects of the device `TPM`.
    pub(super) objects: Vec<&'a dyn Aml>,
    /// What `_STA` does first.
    pub(super) in_sta: Vec<&'a dyn Aml>,
    /// What must not be 0 for `_CRS` to look for the BAR.
    pub(super) crs_if: Option<&'a dyn Aml>,
}

/// The SSDT that adds the device `TPM` below the PCI device's node.
pub(super) fn table(device: &TpmDevice, oem_table: OemTable, additions: &Additions<'_>) -> Table {
    let Additions { hardware_id, in_pci_device, patch, objects, in_sta, crs_if } = additions;
    let patch: Vec<_> = patch.iter().map(|patch| patch as &dyn Aml).collect();
    let update = Patch::update();
    let in_crs: Vec<_> = patch.iter().map(|_| &update as &dyn Aml).collect();
    let of_version = hardware_id_of(device.version());
    let mut body = Vec::new();
    Scope::new(
        path(&device.placement().acpi_node()),
        vec![
            &OpRegion::new(path("CFGS"), OpRegionSpace::PCIConfig, &ZERO, &0x40_u8),
            &config_field(FieldAccessType::DWord, vec![named(*b"VDID", 32), Reserved(96), named(*b"BAR0", 32)]),
            // A word, not more: ones written to the status register beside it clear its bits.
            &config_field(FieldAccessType::Word, vec![Reserved(32), named(*b"CMDR", 16)]),
            &Terms(in_pci_device),
            &Device::new(
                path("TPM_"),
                vec![
                    &Name::new(path("_HID"), hardware_id.unwrap_or(of_version.as_ref())),
                    &Name::new(path("_STR"), &unicode(&format!("TPM {} Device", device.version()))),
                    &Name::new(path("_UID"), &1_u8),
                    &Sta { first: Terms(in_sta), identity: device.identity() },
                    &Crs {
                        length: device.interface().crs_length(),
                        only_if: *crs_if,
                        further: Terms(&in_crs),
                        interrupt: device.interrupt,
                    },
                    &Terms(&patch),
                    &Terms(objects),
                ],
            ),
        ],
    )
    .to_aml_bytes(&mut body);
    let bytes = table::bytes(*b"SSDT", REVISION, oem_table, &body);
    Table { signature: "SSDT", file_name: "ssdt.aml", bytes }
}

/// The ids by which operating systems choose the driver (TCG ACPI Specification 1.3, "ACPI Device Object").
fn hardware_id_of(version: TpmVersion) -> Box<dyn Aml> {
    match version {
        TpmVersion::V1_2 => Box::new(EISAName::new("PNP0C31")),
        TpmVersion::V2_0 => Box::new("MSFT0101"),
    }
}

/// `_STA`: the TPM is there if our PCI device is, with an address. In its place the guest may find nothing (all ones)
/// or, where the VMM was given another slot, a device that must not be taken for a TPM.
struct Sta<'a> {
    first: Terms<'a>,
    identity: Identity,
}

impl Aml for Sta<'_> {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        let identity = u32::from(self.identity.device_id) << 16 | u32::from(self.identity.vendor_id);
        Method::new(
            path("_STA"),
            0,
            false,
            vec![
                &self.first,
                &If::new(
                    &Equal::new(&path("VDID"), &identity),
                    vec![&If::new(&And::new(&NO_TARGET, &path(BAR0), &BAR_ADDRESS), vec![&Return::new(&STA_WORKING)])],
                ),
                &Return::new(&ZERO),
            ],
        )
        .to_aml_bytes(sink);
    }
}

/// `_CRS`: the window at the BAR's address of this moment. Memory decoding is switched on, since firmware leaves it off
/// where it has no driver and no PCI driver of the operating system will; but not at address 0, where a BAR without an
/// address would cover RAM. Without an interrupt, drivers poll.
struct Crs<'a> {
    length: u32,
    only_if: Option<&'a dyn Aml>,
    /// What it does as well if the BAR has an address.
    further: Terms<'a>,
    interrupt: Option<u32>,
}

impl Aml for Crs<'_> {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        let (window, base, command, bar0) = (path("RBUF"), path("BASE"), path("CMDR"), path(BAR0));
        let read_base = And::new(&base, &bar0, &BAR_ADDRESS);
        let interrupt = self.interrupt.map(|gsi| WithInterrupt { window: &window, gsi });
        let interrupt = interrupt.as_ref().map(|interrupt| interrupt as &dyn Aml);
        let guarded = self.only_if.map(|condition| If::new(condition, vec![&read_base]));
        Method::new(
            path("_CRS"),
            0,
            true, // it creates named objects
            vec![
                &Name::new(path("RBUF"), &ResourceTemplate::new(vec![&Memory32Fixed::new(true, 0, self.length)])),
                &CreateDWordField::new(&base, &window, &MEMORY32_FIXED_BAS),
                guarded.as_ref().map_or(&read_base as &dyn Aml, |guarded| guarded),
                &If::new(
                    &base,
                    vec![
                        &Or::new(&command, &command, &COMMAND_MEMORY_SPACE),
                        &self.further,
                        &Terms(interrupt.as_slice()),
                    ],
                ),
                &Return::new(&window),
            ],
        )
        .to_aml_bytes(sink);
    }
}

/// Some terms in a row.
struct Terms<'a>(&'a [&'a dyn Aml]);

impl Aml for Terms<'_> {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        self.0.iter().for_each(|term| term.to_aml_bytes(sink));
    }
}

/// A name or path; each segment has 4 characters, else `Path::new` panics.
pub(super) fn path(name: &str) -> Path {
    Path::new(name)
}

pub(super) fn named(name: [u8; 4], bits: usize) -> FieldEntry {
    FieldEntry::Named(name, bits)
}

/// Names for parts of the PCI device's configuration space.
fn config_field(access: FieldAccessType, entries: Vec<FieldEntry>) -> Field {
    Field::new(path("CFGS"), access, FieldLockRule::NoLock, FieldUpdateRule::Preserve, entries)
}

/// ASL's `Unicode ()`: UTF-16 with a final NUL, in a buffer.
fn unicode(text: &str) -> BufferData {
    BufferData::new(text.encode_utf16().chain([0]).flat_map(u16::to_le_bytes).collect())
}
