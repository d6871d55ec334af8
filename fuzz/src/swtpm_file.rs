//! swtpm's state files and the words for its keys.

use vfio_user_tpm::state::swtpm::file::{FormatError, decode, encode};
use vfio_user_tpm::state::swtpm::{KeySource, SwtpmKey};

use super::tape::Tape;

pub fn run(data: &[u8]) {
    let mut tape = Tape::new(data);
    match tape.below(4) {
        0 => read(tape.rest()),
        1 => written(&mut tape),
        2 => parts(&mut tape),
        _ => {
            let text = String::from_utf8_lossy(tape.rest());
            if let Err(error) = text.parse::<KeySource>() {
                assert!(!error.to_string().is_empty());
            }
        }
    }
}

fn keys() -> [SwtpmKey; 2] {
    [SwtpmKey::aes_128([1; 16]), SwtpmKey::aes_256([2; 32])]
}

fn read(bytes: &[u8]) {
    match decode(bytes, None) {
        Ok(blob) => assert_eq!(encode(&blob, None).expect("it needs no key")[10..], bytes[10..]),
        Err(error) => assert!(!error.to_string().is_empty()),
    }
    for key in keys() {
        assert!(decode(bytes, Some(&key)).is_err(), "nobody knows the key");
    }
}

/// Encrypted ones are taken only as they were written.
fn written(tape: &mut Tape<'_>) {
    let [short, long] = keys();
    let (key, other) = if tape.flag() { (short, long) } else { (long, short) };
    let (position, change) = (usize::from(tape.u16()), tape.byte());
    let blob = tape.rest();
    let mut file = encode(blob, Some(&key)).expect("there are random numbers");
    assert_eq!(decode(&file, Some(&key)).as_deref(), Ok(blob));
    assert_eq!(decode(&file, None), Err(FormatError::KeyMissing));
    assert!(matches!(decode(&file, Some(&other)), Err(FormatError::KeyLength { .. })));
    let position = position % file.len();
    file[position] ^= change;
    // The lowest version that a reader must know may be 2 as well.
    assert!(change == 0 || position == 1 || decode(&file, Some(&key)).is_err(), "byte {position}");
}

/// A header that fits, and any parts behind it.
fn parts(tape: &mut Tape<'_>) {
    let flags = tape.choose::<u16>(&[0, 1, 9, 8, 0xffff]);
    let mut parts = vec![];
    while !tape.is_over() && parts.len() < 1024 {
        let tag = tape.choose::<u16>(&[1, 2, 3, 6, 0, 1, 2, 3]);
        let content = tape.short();
        let length = if tape.below(8) == 0 { tape.number32() } else { u32::try_from(content.len()).expect("small") };
        parts.extend(tag.to_be_bytes());
        parts.extend(length.to_be_bytes());
        parts.extend(content);
    }
    let length = u32::try_from(parts.len() + 10).expect("small");
    read(&[&[2, 1, 0, 10][..], &flags.to_be_bytes(), &length.to_be_bytes(), &parts].concat());
}
