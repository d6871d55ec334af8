//! A virtual TPM in a process of its own, served to virtual machines over vfio-user.
//!
//! Each module is a room with one concern; `docs/architecture.md` says what each holds and what it must not know.

#![deny(unsafe_code)]
// What comes from outside never ends the process. Tests may (clippy.toml). The modules that read it forbid themselves
// unchecked arithmetic as well: elsewhere, numbers are our own, and overflow is for the tests to find.
#![warn(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, clippy::string_slice)]
#![warn(clippy::unreachable, clippy::todo, clippy::unimplemented)]

pub mod acpi;
pub mod backend;
pub mod bar_map;
pub mod cli;
pub mod completion_hold;
pub mod control;
pub mod counters;
pub mod description;
pub mod device;
pub mod engine;
pub mod frontend;
pub mod launch;
pub mod log_limit;
pub mod manufacture;
pub mod measure;
pub mod pci;
pub mod pcr_bank;
pub mod platform;
pub mod ppi;
pub mod sandbox;
pub mod seqpacket;
pub mod shared_pages;
pub mod state;
pub mod status;
pub mod syslog;
pub mod tpm;
pub mod trace;
pub mod vfio_user;
pub mod worker;
