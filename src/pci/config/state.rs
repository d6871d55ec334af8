//! The configuration space as plain data.

use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::{CONFIG_SIZE, ConfigSpace, Identity, InterruptPin, MemoryBar};

/// All that a [`ConfigSpace`] remembers. Whether an interrupt is pending, its owner has to say again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ConfigSpaceState {
    /// What it reads: [`CONFIG_SIZE`] bytes. Those that cannot be written are there too, to tell another device.
    pub content: Vec<u8>,
}

/// Why a [`ConfigSpaceState`] is none that a device's configuration space can be in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum ConfigSpaceStateError {
    /// There is too little or too much.
    #[error("the configuration space has {0} bytes: expected {CONFIG_SIZE}")]
    Size(usize),
    /// Bits that no write changes are others: those of a BAR's size, of an identity, of what the device doesn't have.
    #[error(
        "byte {offset:#04x} of the configuration space is {found:#04x}: expected {expected:#04x}, but for the bits of {writable:#04x}"
    )]
    ReadOnly {
        /// Where.
        offset: usize,
        /// What is there.
        found: u8,
        /// What is there after power-on.
        expected: u8,
        /// The bits that may differ.
        writable: u8,
    },
}

impl ConfigSpace {
    /// The configuration space as plain data.
    #[must_use]
    pub fn state(&self) -> ConfigSpaceState {
        let Self { content, initial: _, writable: _, interrupt_pending: _ } = self;
        ConfigSpaceState { content: content.to_vec() }
    }

    /// The configuration space that [`state`](Self::state) gave, of a device with this identity, BAR and pin.
    ///
    /// # Errors
    /// [`ConfigSpaceStateError`] for what such a device cannot have come to.
    pub fn from_state(
        identity: Identity,
        bar0: MemoryBar,
        pin: InterruptPin,
        state: &ConfigSpaceState,
    ) -> Result<Self, ConfigSpaceStateError> {
        let ConfigSpaceState { content } = state;
        let content: [u8; CONFIG_SIZE] =
            content.as_slice().try_into().map_err(|_| ConfigSpaceStateError::Size(content.len()))?;
        let fresh = Self::new(identity, bar0, pin);
        let bytes = content.into_iter().zip(fresh.initial).zip(fresh.writable);
        for (offset, ((found, expected), writable)) in bytes.enumerate() {
            if (found ^ expected) & !writable != 0 {
                return Err(ConfigSpaceStateError::ReadOnly { offset, found, expected, writable });
            }
        }
        Ok(Self { content, ..fresh })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const IDENTITY: Identity =
        Identity { vendor_id: 0x7666, device_id: 0x5450, revision_id: 1, class_code: 0x10_80_00 };

    fn bar() -> MemoryBar {
        MemoryBar::new(0x2_0000).unwrap()
    }

    fn fresh() -> ConfigSpace {
        ConfigSpace::new(IDENTITY, bar(), InterruptPin::IntA)
    }

    /// A write to anywhere in the space and a little over its end.
    fn write() -> impl Strategy<Value = (u64, Vec<u8>)> {
        (0..260u64, prop::collection::vec(any::<u8>(), 0..9))
    }

    fn write_all(config: &mut ConfigSpace, writes: &[(u64, Vec<u8>)]) {
        for (offset, data) in writes {
            config.write(*offset, data);
        }
    }

    fn import(content: Vec<u8>) -> Result<ConfigSpace, ConfigSpaceStateError> {
        ConfigSpace::from_state(IDENTITY, bar(), InterruptPin::IntA, &ConfigSpaceState { content })
    }

    /// The state of a fresh device in which one byte is another.
    fn changed(offset: usize, byte: u8) -> Result<ConfigSpace, ConfigSpaceStateError> {
        let mut content = fresh().state().content;
        content[offset] = byte;
        import(content)
    }

    #[test]
    fn a_state_of_another_size_is_refused() {
        for length in [0, 255, 257, 4096] {
            assert_eq!(import(vec![0; length]), Err(ConfigSpaceStateError::Size(length)));
        }
    }

    #[test]
    fn a_bar_that_is_not_at_a_multiple_of_its_size_is_refused() {
        assert_eq!(changed(0x12, 0xfe).map(|config| config.bar0_address()), Ok(0x00fe_0000));
        let refusal = ConfigSpaceStateError::ReadOnly { offset: 0x12, found: 0xff, expected: 0, writable: 0xfe };
        assert_eq!(changed(0x12, 0xff), Err(refusal));
    }

    #[test]
    fn another_device_is_refused() {
        let other = ConfigSpace::new(Identity { device_id: 0x5451, ..IDENTITY }, bar(), InterruptPin::IntA);
        let refusal = ConfigSpaceStateError::ReadOnly { offset: 2, found: 0x51, expected: 0x50, writable: 0 };
        assert_eq!(import(other.state().content), Err(refusal));
    }

    #[test]
    fn reserved_command_bits_and_a_second_bar_are_refused() {
        assert!(changed(0x04, 0x01).is_err(), "there is no I/O space");
        assert!(changed(0x14, 0x01).is_err(), "there is no BAR 1");
    }

    proptest! {
        #[test]
        fn a_copy_behaves_as_the_original(
            before in prop::collection::vec(write(), 0..20),
            after in prop::collection::vec(write(), 0..20),
        ) {
            let mut original = fresh();
            write_all(&mut original, &before);
            let json = serde_json::to_string(&original.state()).unwrap();
            let state = serde_json::from_str(&json).unwrap();
            let mut copy = ConfigSpace::from_state(IDENTITY, bar(), InterruptPin::IntA, &state).unwrap();
            prop_assert_eq!(&copy, &original);
            for (offset, data) in after {
                original.write(offset, &data);
                copy.write(offset, &data);
                let (mut of_original, mut of_copy) = (vec![0; data.len()], vec![0; data.len()]);
                original.read(offset, &mut of_original);
                copy.read(offset, &mut of_copy);
                prop_assert_eq!(of_copy, of_original);
            }
            prop_assert_eq!(copy.state(), original.state());
            copy.reset();
            prop_assert_eq!(copy, fresh());
        }

        /// The device keeps of what is written the bits that it has; what is flipped then may be others.
        #[test]
        fn any_state_is_refused_or_one_that_writes_lead_to(
            written in prop::collection::vec(any::<u8>(), CONFIG_SIZE),
            flips in prop::collection::vec((0..CONFIG_SIZE, any::<u8>()), 0..3),
            writes in prop::collection::vec(write(), 0..20),
        ) {
            let mut reached = fresh();
            reached.write(0, &written);
            let mut content = reached.state().content;
            for (offset, bits) in flips {
                content[offset] ^= bits;
            }
            let Ok(mut config) = import(content.clone()) else { return Ok(()) };

            let mut same = fresh();
            same.write(0, &content);
            prop_assert_eq!(&config, &same);
            write_all(&mut config, &writes);
            prop_assert!(import(config.state().content).is_ok());
        }

        #[test]
        fn any_bytes_are_refused_or_come_back(content in prop::collection::vec(any::<u8>(), 0..300)) {
            if let Ok(config) = import(content.clone()) {
                prop_assert_eq!(config.state().content, content);
            }
        }
    }
}
