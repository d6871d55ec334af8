//! What a CRB with ACPI start adds to the SSDT: that of a CRB, with the control area in memory that does not trap, and the
//! `_DSM` by which a driver has a command started, which is also that of physical presence.

use acpi_tables::aml::{
    Arg, BufferData, Equal, Field, FieldAccessType, FieldLockRule, FieldUpdateRule, If, Method, ONE, OpRegion,
    OpRegionSpace, Return, Store, Uuid, ZERO,
};
use acpi_tables::{Aml, AmlSink};

use super::TpmDevice;
use super::patch::Patch;
use super::ppi;
use super::ssdt::{self, Additions, named, path};
use super::table::Table;
use crate::bar_map;

/// The `_DSM` functions of the ACPI start method (TCG ACPI Specification 1.3, start method 8 of the TPM2 table).
const START_METHOD: &str = "6bbf6cab-5463-4714-b7cd-f0203c0368d4";
/// Function 1: start. It returns 0 for success.
const START: &dyn Aml = &ONE;
/// Function 0 of every `_DSM`: which functions there are, a bit for each (ACPI 6.5, section 9.1.1).
const QUERY: &dyn Aml = &ZERO;
const QUERY_AND_START: u8 = 1 << 0 | 1 << 1;

/// The SSDT of a CRB whose control area has a page of its own and whose commands start by the doorbell.
pub(super) fn ssdt(device: &TpmDevice) -> Table {
    ssdt::table(
        device,
        device.interface().oem_table(),
        &Additions {
            in_pci_device: vec![&Doorbell],
            patch: Patch::of(device),
            objects: vec![&ppi::Functions, &Dsm],
            ..Additions::default()
        },
    )
}

/// The doorbell in the PCI device's configuration space.
struct Doorbell;

impl Aml for Doorbell {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        OpRegion::new(path("BELL"), OpRegionSpace::PCIConfig, &bar_map::CONFIG_DOORBELL, &4_u8).to_aml_bytes(sink);
        let ring = vec![named(*b"RING", 32)];
        Field::new(path("BELL"), FieldAccessType::DWord, FieldLockRule::NoLock, FieldUpdateRule::Preserve, ring)
            .to_aml_bytes(sink);
    }
}

/// `_DSM`. It runs for each command, so what starts one comes first, and is one write that needs no address. Whether the
/// device is ours, `_STA` has said: without it, nobody has this method called. It is not serialized, which would take its
/// time.
struct Dsm;

impl Aml for Dsm {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        let (uuid, function) = (Arg(0), Arg(2));
        Method::new(
            path("_DSM"),
            4,
            false,
            vec![
                &If::new(
                    &Equal::new(&uuid, &Uuid::new(START_METHOD)),
                    vec![
                        &If::new(
                            &Equal::new(&function, START),
                            vec![&Store::new(&path("RING"), &ONE), &Return::new(&ZERO)],
                        ),
                        &If::new(
                            &Equal::new(&function, QUERY),
                            vec![&Return::new(&BufferData::new(vec![QUERY_AND_START]))],
                        ),
                    ],
                ),
                &ppi::Clause,
                &Return::new(&ppi::no_such_function()),
            ],
        )
        .to_aml_bytes(sink);
    }
}
