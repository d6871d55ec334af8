//! A short run of everything that is fuzzed (see fuzz/README.md): the seeds in the repository, and some thousand changes
//! to them. The same in each run: what fails once fails again.
#![allow(unreachable_pub, missing_docs)]

#[path = "../fuzz/src/lib.rs"]
mod fuzz;

use std::fs;
use std::panic::{self, AssertUnwindSafe};
use std::path::Path;

/// Longest changed input, in bytes.
const LONGEST: usize = 1024;

fn smoke(target: &str, run: fn(&[u8]), cases: u32) {
    let cases = if cfg!(feature = "full-tests") { cases * 10 } else { cases };
    let mut seeds = vec![];
    // Another test may be counting.
    fuzz::open_descriptors::unchanged_by(|| seeds = read_seeds(target));
    assert!(!seeds.is_empty(), "there are no seeds for {target}");
    for seed in &seeds {
        checked(run, seed);
    }
    let mut random = Random(0x5eed);
    for _ in 0..cases {
        checked(run, &changed(&seeds, &mut random));
    }
}

/// In the order of their names, which no system changes.
fn read_seeds(target: &str) -> Vec<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/seeds").join(target);
    let mut paths: Vec<_> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    paths.iter().map(|path| fs::read(path).unwrap()).collect()
}

fn checked(run: fn(&[u8]), input: &[u8]) {
    if let Err(panic) = panic::catch_unwind(AssertUnwindSafe(|| run(input))) {
        eprintln!("the input was {input:#04x?}");
        panic::resume_unwind(panic);
    }
}

/// A seed with some bytes changed, taken out, put in, or taken from another.
fn changed(seeds: &[Vec<u8>], random: &mut Random) -> Vec<u8> {
    let mut input = seeds[random.below(seeds.len())].clone();
    for _ in 0..=random.below(8) {
        let at = random.below(input.len() + 1);
        let end = (at + random.below(16)).min(input.len());
        match random.below(6) {
            0 => drop(input.drain(at..end)),
            1 => input.insert(at, random.byte()),
            2 => {
                let other = &seeds[random.below(seeds.len())];
                let from = random.below(other.len() + 1);
                input.splice(at..end, other[from..].iter().copied());
            }
            3 => {
                let again = input[at..end].to_vec();
                input.splice(at..at, again);
            }
            _ => {
                if let Some(byte) = input.get_mut(at) {
                    *byte = random.byte();
                }
            }
        }
    }
    input.truncate(LONGEST);
    input
}

/// SplitMix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ mixed >> 31
    }

    fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.next() % bound as u64).expect("below a usize")
    }

    fn byte(&mut self) -> u8 {
        let [byte, ..] = self.next().to_le_bytes();
        byte
    }
}

#[test]
fn a_server_survives_its_clients_and_answers_each_command_once() {
    smoke("server", fuzz::server::run, 2000);
}

#[test]
fn the_register_file_does_what_its_model_does() {
    smoke("registers", fuzz::registers::run, 3000);
}

#[test]
fn a_crb_does_what_its_model_does_whatever_the_guest_writes_meanwhile() {
    smoke("crb", fuzz::crb::run, 3000);
}

#[test]
fn an_exported_device_is_taken_back_only_if_it_can_be() {
    smoke("device_state", fuzz::device_state::run, 5000);
}

#[test]
fn frames_are_what_they_encode_to() {
    smoke("frames", fuzz::frames::run, 5000);
}

#[test]
fn a_worker_can_say_anything() {
    smoke("worker", fuzz::worker::run, 100);
}

#[test]
fn a_state_file_is_taken_only_whole_and_under_its_name() {
    smoke("state_file", fuzz::state_file::run, 3000);
}

#[test]
fn any_words_on_the_command_line_are_taken_or_refused() {
    smoke("arguments", fuzz::arguments::run, 500);
}

#[test]
fn what_describes_the_device_is_read_back_as_it_was_meant() {
    smoke("description", fuzz::description::run, 3000);
}

#[test]
fn an_swtpm_can_say_anything() {
    smoke("swtpm", fuzz::swtpm::run, 2000);
}

#[test]
fn an_encrypted_state_of_swtpm_is_taken_only_as_it_was_written() {
    smoke("swtpm_file", fuzz::swtpm_file::run, 3000);
}

#[test]
fn an_exported_state_is_taken_only_whole() {
    smoke("archive", fuzz::archive::run, 3000);
}

#[test]
fn any_rollback_anchor_is_taken_or_refused() {
    smoke("anchor", fuzz::anchor::run, 3000);
}

#[test]
fn a_server_and_a_spawner_can_say_anything_to_each_other() {
    smoke("spawner", fuzz::spawner::run, 2000);
}

#[test]
fn a_chip_of_the_host_can_answer_anything() {
    smoke("probe", fuzz::probe::run, 5000);
}

#[test]
fn a_ca_that_is_taken_issues_certificates_and_another_is_refused_with_a_reason() {
    smoke("certificates", fuzz::certificates::run, 500);
}

#[test]
fn a_trace_shows_a_message_with_zeros_in_it() {
    smoke("redaction", fuzz::redaction::run, 5000);
}

#[test]
fn any_event_log_is_read_as_it_would_be_written_or_refused() {
    smoke("event_log", fuzz::event_log::run, 5000);
}
