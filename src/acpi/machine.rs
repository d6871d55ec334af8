//! The machines whose slots and names are known.

use std::fmt;
use std::str::FromStr;

use thiserror::Error;

/// A machine whose slots and ACPI names are known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Machine {
    /// QEMU's `q35`, with an ICH9 chipset.
    Q35,
    /// QEMU's `pc`, with an i440FX and a PIIX3.
    Pc,
}

impl Machine {
    /// All machines that are known.
    pub const ALL: [Self; 2] = [Self::Q35, Self::Pc];

    /// The name on the command line and in `tpm.json`, which is also QEMU's.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Q35 => "q35",
            Self::Pc => "pc",
        }
    }

    /// QEMU's id of the root bus.
    #[must_use]
    pub const fn root_bus(self) -> &'static str {
        match self {
            Self::Q35 => "pcie.0",
            Self::Pc => "pci.0",
        }
    }

    /// What sits in `slot` of the root bus in every machine of this kind.
    pub(super) const fn occupant(self, slot: u8) -> Option<&'static str> {
        match (self, slot) {
            (_, 0x00) => Some("the host bridge"),
            (Self::Q35, 0x1f) => Some("the ICH9 chipset"),
            (Self::Pc, 0x01) => Some("the PIIX3 chipset"),
            _ => None,
        }
    }
}

impl fmt::Display for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A name that is no [`Machine`].
#[derive(Debug, Error, PartialEq, Eq)]
#[error("there is no machine \"{0}\": expected q35 or pc")]
pub struct UnknownMachine(String);

impl FromStr for Machine {
    type Err = UnknownMachine;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        Self::ALL.into_iter().find(|machine| machine.name() == name).ok_or_else(|| UnknownMachine(name.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_is_known_by_qemus_name_only() {
        for machine in Machine::ALL {
            assert_eq!(machine.name().parse(), Ok(machine));
        }
        assert_eq!("virt".parse::<Machine>(), Err(UnknownMachine("virt".to_owned())));
    }
}
