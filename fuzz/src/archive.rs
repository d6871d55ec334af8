//! Exported states: any bytes, and files that are whole with something wrong in them.

use sha2::{Digest, Sha256};
use vfio_user_tpm::state::archive::{decode, encode};
use vfio_user_tpm::state::file::{self, Identity, Label};
use vfio_user_tpm::state::{Blob, Key, StateFile};
use vfio_user_tpm::tpm::TpmVersion;

use super::tape::Tape;

/// Bytes before the checksum.
const FIELDS: usize = 24;

pub fn run(data: &[u8]) {
    let mut tape = Tape::new(data);
    if tape.below(4) == 0 {
        return read(tape.rest());
    }
    let mut archive = encode(&files(&mut tape));
    for _ in 0..tape.below(4) {
        let (position, value) = (usize::from(tape.u16()) % archive.len(), tape.byte());
        archive[position] = value;
    }
    match tape.below(8) {
        0 => archive.extend_from_slice(tape.short()),
        1 => archive.truncate(tape.u16().into()),
        _ => {}
    }
    read(&archive);
    if tape.flag() && archive.len() >= FIELDS + 32 {
        let length = archive.len() - FIELDS - 32;
        if tape.flag() {
            archive[16..24].copy_from_slice(&(length as u64).to_le_bytes());
        }
        let checksum = Sha256::new().chain_update(&archive[..FIELDS]).chain_update(&archive[FIELDS + 32..]).finalize();
        archive[FIELDS..FIELDS + 32].copy_from_slice(&checksum);
        read(&archive);
    }
}

/// What is taken is what would be written, and all in it is undamaged and there once.
fn read(bytes: &[u8]) {
    let files = match decode(bytes) {
        Ok(files) => files,
        Err(error) => return assert!(!error.to_string().is_empty()),
    };
    assert_eq!(encode(&files), bytes);
    assert!(!files.is_empty());
    for (index, one) in files.iter().enumerate() {
        let label = one.inspect().expect("it is undamaged").label;
        assert_eq!((label.version, label.blob), (one.version, one.blob));
        assert!(files[..index].iter().all(|other| (other.version, other.blob) != (one.version, one.blob)));
    }
}

fn files(tape: &mut Tape<'_>) -> Vec<StateFile> {
    let key = Key::from_master(&[7; 32]);
    (0..tape.below(8))
        .map(|_| {
            let version = tape.choose(&[TpmVersion::V1_2, TpmVersion::V2_0]);
            let blob = tape.choose(&Blob::ALL);
            let identity = Identity::new([tape.byte(); 16]);
            let label = Label { version, blob, generation: tape.number(), identity, written: None };
            let key = tape.flag().then_some(&key);
            let bytes = file::encode(&label, tape.short(), key).expect("it is small");
            StateFile { version, blob, bytes }
        })
        .collect()
}
