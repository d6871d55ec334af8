//! The PCI face of a device: its configuration space.

#![forbid(unsafe_code)]
// A number from outside never overflows unseen. Tests may calculate.
#![cfg_attr(not(test), warn(clippy::arithmetic_side_effects))]

mod config;

pub use config::{
    CONFIG_SIZE, ConfigSpace, ConfigSpaceState, ConfigSpaceStateError, Identity, InterruptPin, MemoryBar,
};
