//! Rollback anchors: what is in the file when it is opened.

use std::fs::File;
use std::io::Write;
use std::os::fd::AsRawFd;
use std::path::PathBuf;

use nix::sys::memfd::{MFdFlags, memfd_create};
use sha2::{Digest, Sha256};
use vfio_user_tpm::state::anchor::AnchorError;
use vfio_user_tpm::state::{Anchor, Key};

use super::open_descriptors;
use super::tape::Tape;

const SLOT: usize = 200;
const DISTANCE: usize = 4096;

pub fn run(data: &[u8]) {
    super::log_lines::check();
    open_descriptors::unchanged_by(|| {
        let mut tape = Tape::new(data);
        let mut content = vec![0; 2 * DISTANCE];
        for at in [0, DISTANCE] {
            let slot = if tape.flag() { record(&mut tape) } else { tape.short().to_vec() };
            content[at..at + slot.len().min(SLOT)].copy_from_slice(&slot[..slot.len().min(SLOT)]);
        }
        if tape.below(4) == 0 {
            content.resize(tape.number32().min(20_000) as usize, 0);
        }
        open(&content, None);
        open(&content, Some(&Key::from_master(&[7; 32])));
    });
}

/// One that was made without a key is taken without one only; and nobody here has made one with a key.
fn open(content: &[u8], key: Option<&Key>) {
    let file = memfd_create("anchor", MFdFlags::MFD_CLOEXEC).expect("a memfd");
    let mut file = File::from(file);
    file.write_all(content).expect("there is memory");
    let path = PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()));
    match Anchor::open(&path, key) {
        Ok(anchor) => {
            assert!(key.is_none(), "nobody knows the key");
            drop(anchor);
        }
        Err(AnchorError::Record(error)) => assert!(!error.to_string().is_empty()),
        Err(error) => assert!(matches!(error, AnchorError::Read(_)), "{error}"),
    }
}

/// A record with the fields that one has, some of them others, and the checksum that fits.
fn record(tape: &mut Tape<'_>) -> Vec<u8> {
    let mut slot = [b"VFUTPMRA", &1u32.to_le_bytes()[..], &[0; 4]].concat();
    slot.extend(tape.number().to_le_bytes());
    slot.extend([tape.byte(); 16]);
    for _ in 0..6 {
        slot.extend(tape.number().to_le_bytes());
        slot.extend([tape.below(5), 0, 0, 0, 0, 0, 0, 0]);
    }
    slot.resize(168, 0);
    for _ in 0..tape.below(4) {
        let position = usize::from(tape.byte()) % slot.len();
        slot[position] = tape.byte();
    }
    let checksum = Sha256::digest(&slot);
    slot.extend(checksum);
    slot
}
