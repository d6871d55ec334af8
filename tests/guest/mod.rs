//! Harness for tests with a real guest: upstream QEMU under TCG, a Debian kernel, busybox and tpm2-tools
//! (`tests/guest/kit`; `kit-arm64`, which has no tpm2-tools), driven over a serial port.
//!
//! Nothing here depends on timing: the deadlines only turn a hang into a failure that says where it hung.
#![allow(dead_code, unused_imports)] // not every test uses all of it

mod channel;
mod kernel_log;
mod kit;
mod programs;
mod qmp;
mod tpm;
mod vm;

pub(crate) use kernel_log::KernelMessage;
pub(crate) use kit::kit;
pub(crate) use programs::Programs;
pub(crate) use tpm::{FIND_PCI_DEVICE, Tpm};
pub(crate) use vm::{Firmware, Guest, GuestConfig};
