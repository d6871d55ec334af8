//! PCI addresses, as QEMU's `addr=` takes them.

use std::fmt;
use std::str::FromStr;

use thiserror::Error;

/// Highest slot on a bus.
const LAST_SLOT: u8 = 0x1f;

/// A slot, 00 to 1f, and a function in it, 0 to 7.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PciAddress {
    slot: u8,
    function: u8,
}

impl PciAddress {
    /// The slot, 00 to 1f.
    #[must_use]
    pub const fn slot(self) -> u8 {
        self.slot
    }

    /// Slot and function in one byte, as configuration cycles carry them.
    #[must_use]
    pub const fn devfn(self) -> u8 {
        self.slot << 3 | self.function
    }

    /// SLOT or SLOT.FUNCTION, hexadecimal.
    fn parse(text: &str) -> Option<Self> {
        let (slot, function) = text.split_once('.').unwrap_or((text, "0"));
        match (hexadecimal(slot)?, hexadecimal(function)?) {
            (slot @ ..=LAST_SLOT, function @ ..=7) => Some(Self { slot, function }),
            _ => None,
        }
    }
}

impl fmt::Display for PciAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:02x}.{}", self.slot, self.function)
    }
}

/// One or two hexadecimal digits, without the sign that `from_str_radix` would take.
fn hexadecimal(digits: &str) -> Option<u8> {
    let all_digits = digits.bytes().all(|byte| byte.is_ascii_hexdigit());
    (all_digits && digits.len() <= 2).then(|| u8::from_str_radix(digits, 16).ok()).flatten()
}

/// Where the TPM sits, seen from the root bus: an address there, or the address of a bridge and one behind it.
///
/// Written as QEMU's `addr=` takes addresses, SLOT or SLOT.FUNCTION, **both hexadecimal**: `1e.0` is slot 30. A bridge's
/// address comes first, with a slash: `06.0/00.0`. The TPM itself is function 0: a guest looks for other functions only
/// behind a function 0 that announces them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PciPath {
    /// The bridge on the root bus behind which the TPM sits.
    pub bridge: Option<PciAddress>,
    /// The TPM, on the root bus or behind the bridge.
    pub device: PciAddress,
}

impl fmt::Display for PciPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.bridge {
            Some(bridge) => write!(f, "{bridge}/{}", self.device),
            None => self.device.fmt(f),
        }
    }
}

impl FromStr for PciPath {
    type Err = PciPathError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.contains(':') {
            return Err(PciPathError::BusNumber(text.to_owned()));
        }
        let no_address = || PciPathError::Address(text.to_owned());
        let (bridge, device) = match text.split_once('/') {
            Some((bridge, device)) => (Some(PciAddress::parse(bridge).ok_or_else(no_address)?), device),
            None => (None, text),
        };
        match PciAddress::parse(device).ok_or_else(no_address)? {
            device @ PciAddress { function: 0, .. } => Ok(Self { bridge, device }),
            _ => Err(PciPathError::Function(text.to_owned())),
        }
    }
}

/// A text that is no [`PciPath`].
#[derive(Debug, Error, PartialEq, Eq)]
pub enum PciPathError {
    /// Not an address at all.
    #[error(
        "\"{0}\" is no PCI address: expected SLOT.FUNCTION in hexadecimal as in 05.0, slots 00 to 1f, function 0, or \
         a bridge's address in front, as in 06.0/00.0"
    )]
    Address(String),
    /// An address with the number of a bus.
    #[error(
        "\"{0}\" names a bus by number, but only the guest's firmware gives buses numbers: give SLOT.FUNCTION on the \
         root bus, as in 05.0"
    )]
    BusNumber(String),
    /// A function other than 0.
    #[error(
        "\"{0}\" is not function 0, and a guest finds other functions only behind a function 0 that announces them: \
         give a slot of its own to the TPM, as in 05.0"
    )]
    Function(String),
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<PciPath, PciPathError> {
        text.parse()
    }

    #[test]
    fn an_address_is_hexadecimal_as_in_qemu() {
        assert_eq!(parse("1e.0").unwrap().device.devfn(), 0xf0);
        assert_eq!(parse("10").unwrap().device.devfn(), 0x80);
    }

    #[test]
    fn one_address_in_several_spellings_is_shown_in_one() {
        for text in ["5", "05", "5.0", "05.0", "05.00"] {
            assert_eq!(parse(text).unwrap().to_string(), "05.0", "{text}");
        }
        assert_eq!(parse("1c.7/0").unwrap().to_string(), "1c.7/00.0");
    }

    #[test]
    fn a_bridge_may_be_any_function() {
        let path = parse("2.3/00.0").unwrap();
        assert_eq!((path.bridge.unwrap().devfn(), path.device.devfn()), (0x13, 0));
    }

    #[test]
    fn what_is_no_address_is_refused_with_an_example() {
        for text in [
            "", ".", "5.", ".0", "20.0", "005.0", "5.8", "5.0.0", "+5.0", "-1", "0x5", "five", " 5", "5.0\n", "٥.0",
            "/", "/5", "6/", "6.8/0", "6/0/0", "rp0/0",
        ] {
            let error = parse(text).unwrap_err();
            assert_eq!(error, PciPathError::Address(text.to_owned()));
            assert!(error.to_string().contains("as in 05.0"), "{error}");
        }
    }

    #[test]
    fn functions_behind_the_first_are_refused() {
        for text in ["05.1", "05.7", "06.0/00.1"] {
            assert_eq!(parse(text), Err(PciPathError::Function(text.to_owned())));
        }
    }

    #[test]
    fn bus_numbers_are_refused_with_the_reason() {
        for text in ["00:05.0", "0000:01:00.0"] {
            let error = parse(text).unwrap_err();
            assert!(error.to_string().contains("by number"), "{error}");
        }
    }
}
