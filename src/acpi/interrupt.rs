//! Which interrupt the PCI device's pin is, as `_CRS` finds it out.
//!
//! A pin leads to a global system interrupt (GSI) by way of the platform, and which one that is `_PRT` says, for drivers of
//! PCI devices. The TPM's driver is none: it takes what `_CRS` names. So the same is computed here, of what QEMU does with
//! INTA# of a slot on the root bus.
//!
//! That works where nothing has to be switched on: with q35's APIC. Its older interrupt controllers, and pc always, get PCI
//! interrupts by way of links (PIRQ), which Linux disables and enables for drivers of PCI devices only.

use acpi_tables::aml::{ConcatRes, If, Interrupt, Name, Path, ResourceTemplate, Return};
use acpi_tables::{Aml, AmlSink};
use thiserror::Error;

use super::ssdt::{NO_TARGET, path};
use super::{Interface, Machine, PciAddress, Placement};

/// No interrupt can be described.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum InterruptError {
    /// The interface has no interrupts.
    #[error(
        "the interface {0} has no registers for interrupts: choose --interface=tis or crb, or leave --interrupts out"
    )]
    Interface(&'static str),
    /// Nobody knows where the pin leads.
    #[error(
        "no interrupt of a device in {0} is known that a TPM's driver could take: --interrupts=on is for q35, on the root bus; \
         leave it out, and drivers poll"
    )]
    Place(Machine),
}

/// The GSI of a TPM there, while the operating system uses the APIC.
pub(super) fn gsi(placement: &Placement, interface: Interface) -> Result<u32, InterruptError> {
    if interface == Interface::CrbDoorbell {
        return Err(InterruptError::Interface(interface.name()));
    }
    match (placement.machine(), placement.bridge()) {
        (Machine::Q35, None) => Ok(q35_gsi(placement.address())),
        (machine, _) => Err(InterruptError::Place(machine)),
    }
}

/// Where q35 routes INTA# of a slot: PIRQ A to H are the GSIs 16 to 23. Slots up to 23 have E to H in turn, 24 and 30 have E,
/// those between A (the `_PRT` that QEMU makes).
const fn q35_gsi(address: PciAddress) -> u32 {
    const PIRQ_A: u32 = 16;
    const PIRQ_E: u32 = 20;
    match address.slot() {
        0x19..=0x1d => PIRQ_A,
        0x18 | 0x1e => PIRQ_E,
        slot => PIRQ_E + (slot % 4) as u32,
    }
}

/// The end of `_CRS` where the BAR has an address: returns `window`, and behind it the interrupt while the operating system
/// uses the APIC. Level triggered, active high and shared, as q35 has its PCI interrupts.
pub(super) struct WithInterrupt<'a> {
    pub(super) window: &'a Path,
    pub(super) gsi: u32,
}

/// Where QEMU's DSDT keeps what the operating system has said by `_PIC`: 1 for the APIC (ACPI 6.5, section 5.8.1).
const MODE: &str = "\\PICF";

impl Aml for WithInterrupt<'_> {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        let (mode, descriptor) = (path(MODE), path("IBUF"));
        let interrupt = Interrupt::new(true, false, false, true, self.gsi);
        // A machine that keeps its mode elsewhere one day has no interrupt.
        If::new(
            &CondRefOf(&mode),
            vec![&If::new(
                &mode,
                vec![
                    &Name::new(path("IBUF"), &ResourceTemplate::new(vec![&interrupt])),
                    &Return::new(&ConcatRes::new(&NO_TARGET, self.window, &descriptor)),
                ],
            )],
        )
        .to_aml_bytes(sink);
    }
}

/// `CondRefOf`: whether there is an object of this name (ACPI 6.5, section 19.6.14).
struct CondRefOf<'a>(&'a Path);

impl Aml for CondRefOf<'_> {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        const COND_REF_OF_OP: [u8; 2] = [0x5b, 0x12];
        sink.vec(&COND_REF_OF_OP);
        self.0.to_aml_bytes(sink);
        NO_TARGET.to_aml_bytes(sink);
    }
}

#[cfg(test)]
mod tests {
    use super::super::PciPath;
    use super::*;

    fn place(machine: Machine, at: &str) -> Placement {
        Placement::new(machine, at.parse::<PciPath>().unwrap(), None).unwrap()
    }

    /// As QEMU's `_PRT` of q35 has it for INTA#.
    #[test]
    fn q35_has_the_slots_in_turn_on_four_interrupts_but_for_those_of_the_chipset() {
        for (slot, number) in [("01", 21), ("02", 22), ("03", 23), ("04", 20), ("05", 21), ("18", 20), ("1e", 20)] {
            assert_eq!(gsi(&place(Machine::Q35, slot), Interface::Tis), Ok(number), "{slot}");
        }
        for slot in ["19", "1b", "1d"] {
            assert_eq!(gsi(&place(Machine::Q35, slot), Interface::Crb), Ok(16), "{slot}");
        }
    }

    #[test]
    fn where_no_interrupt_is_known_that_is_said() {
        for machine in [Machine::Pc, Machine::Virt, Machine::CloudHypervisor] {
            let message = gsi(&place(machine, "05.0"), Interface::Tis).unwrap_err().to_string();
            assert!(message.contains(machine.name()) && message.contains("is for q35"), "{message}");
        }
        let message = gsi(&place(Machine::Q35, "05.0"), Interface::CrbDoorbell).unwrap_err().to_string();
        assert!(message.contains("crb-doorbell") && message.contains("--interface=tis"), "{message}");
    }
}
