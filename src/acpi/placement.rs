//! Where in the guest the PCI device sits: which machine, which slot of its root bus, which ACPI node.

use std::fmt;
use std::str::FromStr;

use thiserror::Error;

/// Highest slot on a bus.
const LAST_SLOT: u8 = 0x1f;

/// A machine whose slots and ACPI names are known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Machine {
    /// QEMU's `q35`.
    Q35,
}

impl Machine {
    /// All machines that are known.
    pub const ALL: [Self; 1] = [Self::Q35];

    /// The name on the command line and in `tpm.json`, which is also QEMU's.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Q35 => "q35",
        }
    }

    /// What sits in `slot` of the root bus in every machine of this kind.
    const fn occupant(self, slot: u8) -> Option<&'static str> {
        match (self, slot) {
            (Self::Q35, 0) => Some("the host bridge"),
            (Self::Q35, LAST_SLOT) => Some("the ICH9 chipset"),
            _ => None,
        }
    }
}

impl fmt::Display for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Machine {
    type Err = PlacementError;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        Self::ALL
            .into_iter()
            .find(|machine| machine.name() == name)
            .ok_or_else(|| PlacementError::Machine(name.to_owned()))
    }
}

/// An address on the root bus: slot 00 to 1f, function 0.
///
/// Written as QEMU's `addr=` takes it, SLOT or SLOT.FUNCTION, **both hexadecimal**: `1e.0` is slot 30. Other functions
/// are refused: a guest looks for them only behind a function 0 that announces them. So are other buses: below a bridge
/// a guest could reset the TPM alone and replay measurements into fresh PCRs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PciAddress {
    slot: u8,
}

impl PciAddress {
    /// Slot and function in one byte, as configuration cycles carry them.
    #[must_use]
    pub const fn devfn(self) -> u8 {
        self.slot << 3
    }
}

impl fmt::Display for PciAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:02x}.0", self.slot)
    }
}

impl FromStr for PciAddress {
    type Err = PlacementError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.contains(':') {
            return Err(PlacementError::OtherBus(text.to_owned()));
        }
        let (slot, function) = text.split_once('.').unwrap_or((text, "0"));
        match (hexadecimal(slot), hexadecimal(function)) {
            (Some(slot @ ..=LAST_SLOT), Some(0)) => Ok(Self { slot }),
            (Some(..=LAST_SLOT), Some(1..=7)) => Err(PlacementError::Function(text.to_owned())),
            _ => Err(PlacementError::Address(text.to_owned())),
        }
    }
}

/// One or two hexadecimal digits, without the sign that `from_str_radix` would take.
fn hexadecimal(digits: &str) -> Option<u8> {
    let all_digits = digits.bytes().all(|byte| byte.is_ascii_hexdigit());
    (all_digits && digits.len() <= 2).then(|| u8::from_str_radix(digits, 16).ok()).flatten()
}

/// A place for the device that nothing in the machine takes already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Placement {
    machine: Machine,
    address: PciAddress,
}

impl Placement {
    /// `address` in `machine`, unless one of the machine's own devices is always there.
    pub fn new(machine: Machine, address: PciAddress) -> Result<Self, PlacementError> {
        match machine.occupant(address.slot) {
            Some(occupant) => Err(PlacementError::Taken { machine, address, occupant }),
            None => Ok(Self { machine, address }),
        }
    }

    /// The machine.
    #[must_use]
    pub const fn machine(self) -> Machine {
        self.machine
    }

    /// The address on the machine's root bus.
    #[must_use]
    pub const fn address(self) -> PciAddress {
        self.address
    }

    /// The PCI device's node in the VMM's own tables, each segment padded to 4 characters as in AML.
    #[must_use]
    pub fn acpi_node(self) -> String {
        match self.machine {
            // QEMU names the devices of its root bus S and devfn.
            Machine::Q35 => format!("\\_SB_.PCI0.S{:02X}_", self.address.devfn()),
        }
    }
}

/// The device cannot be put there.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum PlacementError {
    /// The machine has no such name.
    #[error("there is no machine \"{0}\": expected q35")]
    Machine(String),
    /// Not an address at all.
    #[error("\"{0}\" is no PCI address: expected SLOT.FUNCTION in hexadecimal as in 05.0, slots 01 to 1e, function 0")]
    Address(String),
    /// An address with a bus.
    #[error(
        "\"{0}\" names a bus, but the TPM has to sit on the root bus (below a bridge a guest could reset the TPM \
         alone): give only SLOT.FUNCTION, as in 05.0"
    )]
    OtherBus(String),
    /// A function other than 0.
    #[error(
        "\"{0}\" is not function 0, and a guest finds other functions only behind a function 0 that announces them: \
         give a slot of its own to the TPM, as in 05.0"
    )]
    Function(String),
    /// A device of the machine has the slot.
    #[error("in {machine}, {occupant} is at {address}: choose another slot for the TPM, as in 05.0")]
    Taken {
        /// The machine.
        machine: Machine,
        /// The address asked for.
        address: PciAddress,
        /// What is there.
        occupant: &'static str,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<PciAddress, PlacementError> {
        text.parse()
    }

    fn place(text: &str) -> Result<Placement, PlacementError> {
        Placement::new(Machine::Q35, parse(text)?)
    }

    #[test]
    fn an_address_is_hexadecimal_as_in_qemu() {
        assert_eq!(parse("1e.0").unwrap().devfn(), 0xf0);
        assert_eq!(parse("10").unwrap().devfn(), 0x80);
    }

    #[test]
    fn one_address_in_several_spellings_is_shown_in_one() {
        for text in ["5", "05", "5.0", "05.0", "05.00"] {
            assert_eq!(parse(text).unwrap().to_string(), "05.0", "{text}");
        }
    }

    #[test]
    fn what_is_no_address_is_refused_with_an_example() {
        for text in
            ["", ".", "5.", ".0", "20.0", "005.0", "5.8", "5.0.0", "+5.0", "-1", "0x5", "five", " 5", "5.0\n", "٥.0"]
        {
            let error = parse(text).unwrap_err();
            assert_eq!(error, PlacementError::Address(text.to_owned()));
            assert!(error.to_string().contains("as in 05.0"), "{error}");
        }
    }

    #[test]
    fn functions_behind_the_first_are_refused() {
        assert_eq!(parse("05.1"), Err(PlacementError::Function("05.1".to_owned())));
        assert_eq!(parse("05.7"), Err(PlacementError::Function("05.7".to_owned())));
    }

    #[test]
    fn buses_are_refused_with_the_reason() {
        for text in ["00:05.0", "0000:01:00.0"] {
            let error = parse(text).unwrap_err();
            assert!(error.to_string().contains("below a bridge a guest could reset the TPM"), "{error}");
        }
    }

    #[test]
    fn the_machines_own_slots_are_taken() {
        let message = place("0.0").unwrap_err().to_string();
        assert_eq!(message, "in q35, the host bridge is at 00.0: choose another slot for the TPM, as in 05.0");
        assert!(place("1f.0").is_err());
        assert!(place("1e.0").is_ok());
    }

    #[test]
    fn the_node_has_qemus_name_for_the_slot() {
        assert_eq!(place("05.0").unwrap().acpi_node(), "\\_SB_.PCI0.S28_");
        assert_eq!(place("1e.0").unwrap().acpi_node(), "\\_SB_.PCI0.SF0_");
    }

    #[test]
    fn a_machine_is_known_by_qemus_name_only() {
        assert_eq!("q35".parse(), Ok(Machine::Q35));
        assert_eq!("virt".parse::<Machine>(), Err(PlacementError::Machine("virt".to_owned())));
    }
}
