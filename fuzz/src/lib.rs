//! What is fuzzed: one function for each target, which takes any bytes and panics where something is wrong.
//!
//! cargo-fuzz runs them with coverage (`fuzz_targets/`), and `tests/fuzz_smoke.rs` of the program with a few inputs in
//! every test run. They see nothing of the program but what is public.

pub mod anchor;
pub mod archive;
pub mod arguments;
pub mod certificates;
pub mod crb;
pub mod description;
pub mod device_state;
pub mod event_log;
pub mod frames;
pub mod probe;
pub mod redaction;
pub mod registers;
pub mod server;
pub mod spawner;
pub mod state_file;
pub mod swtpm;
pub mod swtpm_file;
pub mod worker;

mod crb_model;
mod log_lines;
pub mod open_descriptors;
mod pages;
mod tape;
mod tis_model;
