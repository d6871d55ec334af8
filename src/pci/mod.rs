//! The PCI face of a device: its configuration space.

#![forbid(unsafe_code)]

mod config;

pub use config::{CONFIG_SIZE, ConfigSpace, ConfigSpaceState, ConfigSpaceStateError, Identity, MemoryBar};
