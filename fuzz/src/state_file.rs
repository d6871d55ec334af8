//! Files of the state folder: any bytes, and whole ones with something wrong in them.

use std::time::{Duration, SystemTime};

use sha2::{Digest, Sha256};
use vfio_user_tpm::state::file::{Identity, Label, OpenError, encode, inspect};
use vfio_user_tpm::state::{Blob, Key};
use vfio_user_tpm::tpm::TpmVersion;

use super::tape::Tape;

/// Bytes before the checksum.
const FIELDS: usize = 112;
const MASTER: [u8; 32] = [7; 32];

pub fn run(data: &[u8]) {
    let mut tape = Tape::new(data);
    match tape.below(4) {
        0 => read(tape.rest()),
        1 => damaged(&mut tape),
        2 => forged(&mut tape),
        _ => summed_again(&mut tape),
    }
}

/// What is taken without a key is what would be written, apart from what nobody reads in a plain file.
fn read(bytes: &[u8]) {
    let file = match inspect(bytes) {
        Ok(file) => file,
        Err(error) => return assert!(!error.to_string().is_empty()),
    };
    let key = Key::from_master(&MASTER);
    if file.is_sealed() {
        assert_eq!(file.open(None), Err(OpenError::NoKey));
        assert_eq!(file.open(Some(&key)), Err(OpenError::OtherKey));
        return;
    }
    assert_eq!(file.open(Some(&key)), Err(OpenError::NotSealed));
    let payload = file.open(None).expect("it is plain");
    assert_eq!(payload.len(), file.payload_length());
    assert!(bytes.ends_with(&payload));
    if file.format == 2 && bytes[56..FIELDS] == [0; FIELDS - 56] && file.label.written.is_some() {
        assert_eq!(encode(&file.label, &payload, None).expect("it has been before"), bytes);
    }
}

fn label(tape: &mut Tape<'_>) -> Label {
    Label {
        version: tape.choose(&[TpmVersion::V1_2, TpmVersion::V2_0]),
        blob: tape.choose(&Blob::ALL),
        generation: tape.number(),
        identity: Identity::new([tape.byte(); 16]),
        written: SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(tape.u32().into())),
    }
}

/// A file with one byte changed is not taken.
fn damaged(tape: &mut Tape<'_>) {
    let (label, sealed) = (label(tape), tape.flag());
    let (position, change) = (usize::from(tape.u16()), tape.byte());
    let payload = tape.rest();
    let key = Key::from_master(&MASTER);
    let key = sealed.then_some(&key);
    let mut file = encode(&label, payload, key).expect("it is small");
    let found = inspect(&file).expect("just written");
    assert_eq!(found.label, label);
    assert_eq!(found.open(key).as_deref(), Ok(payload));
    let position = position % file.len();
    file[position] ^= change;
    assert_eq!(inspect(&file).is_ok(), change == 0, "byte {position}");
}

/// Nor is a sealed one that somebody has changed who has no key, however well he does.
fn forged(tape: &mut Tape<'_>) {
    let (label, other) = (label(tape), tape.flag());
    let changes: Vec<_> = (0..tape.below(4)).map(|_| (usize::from(tape.byte()), tape.byte())).collect();
    let payload = tape.rest();
    let key = Key::from_master(&MASTER);
    let whole = encode(&label, payload, Some(&key)).expect("it is small");
    let mut file = whole.clone();
    for (position, change) in changes {
        let position = if position < FIELDS { position } else { position + 32 };
        if let Some(byte) = file.get_mut(position) {
            *byte ^= change;
        }
    }
    sum(&mut file);
    let opened = inspect(&file).ok().and_then(|found| found.open(Some(&key)).ok());
    assert_eq!(opened.is_some(), file == whole);
    let other = if other { Key::from_master(&[8; 32]) } else { key };
    assert_eq!(inspect(&whole).expect("just written").open(Some(&other)).is_ok(), other.master() == &MASTER);
}

/// A plain file with anything in its header, and the checksum that fits it.
fn summed_again(tape: &mut Tape<'_>) {
    let label = label(tape);
    let changes: Vec<_> = (0..tape.below(4)).map(|_| (usize::from(tape.byte()), tape.byte())).collect();
    let mut file = encode(&label, tape.rest(), None).expect("it is small");
    for (position, value) in changes {
        file[position % FIELDS] = value;
    }
    sum(&mut file);
    read(&file);
}

fn sum(file: &mut [u8]) {
    let checksum = Sha256::new().chain_update(&file[..FIELDS]).chain_update(&file[FIELDS + 32..]).finalize();
    file[FIELDS..FIELDS + 32].copy_from_slice(&checksum);
}
