use super::*;

const PAYLOAD: &[u8] = b"seeds and secrets";

fn key(first: u8) -> Key {
    let bytes: Vec<u8> = (first..).take(40).collect();
    Key::read_from(&*bytes, "a test".to_owned()).unwrap()
}

fn label() -> Label {
    Label {
        version: TpmVersion::V2_0,
        blob: Blob::Permanent,
        generation: 0x0102_0304_0506,
        identity: Identity::new([7; 16]),
        written: Some(SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000)),
    }
}

fn plain() -> Vec<u8> {
    encode(&label(), PAYLOAD, None).unwrap()
}

fn sealed() -> Vec<u8> {
    encode(&label(), PAYLOAD, Some(&key(1))).unwrap()
}

/// As version 0.1 wrote it.
pub(in crate::state) fn format_1() -> Vec<u8> {
    let mut file = [&MAGIC[..], &[1, 0, 0, 0, 2, 1, 0, 0, 17, 0, 0, 0, 0, 0, 0, 0]].concat();
    let checksum = checksum(&file, PAYLOAD);
    file.extend(checksum);
    file.extend(PAYLOAD);
    file
}

#[test]
fn what_was_encoded_is_decoded() {
    for key in [None, Some(&key(1))] {
        for payload in [PAYLOAD, b""] {
            let file = encode(&label(), payload, key).unwrap();
            let undamaged = inspect(&file).unwrap();
            assert_eq!((undamaged.label, undamaged.format, undamaged.is_sealed()), (label(), 2, key.is_some()));
            assert_eq!(undamaged.payload_length(), payload.len());
            assert_eq!(undamaged.open(key).as_deref(), Ok(payload));
        }
    }
}

#[test]
fn the_layout_is_the_documented_one() {
    let file = plain();
    assert_eq!(file[..32], *b"VFUTPMST\x02\0\0\0\x02\x01\0\0\x11\0\0\0\0\0\0\0\x06\x05\x04\x03\x02\x01\0\0");
    assert_eq!(file[32..40], 1_800_000_000u64.to_le_bytes());
    assert_eq!(file[40..56], [7; 16]);
    assert_eq!(file[56..112], [0; 56]);
    assert_eq!(file[112..144], checksum(&file[..112], PAYLOAD));
    assert_eq!(&file[144..], PAYLOAD);
    assert_eq!(sealed().len(), 144 + PAYLOAD.len() + 16);
}

#[test]
fn nothing_of_a_sealed_payload_is_in_the_file_and_no_two_files_are_alike() {
    let (one, other) = (sealed(), sealed());
    assert!(!one.windows(5).any(|bytes| PAYLOAD.windows(5).any(|payload| payload == bytes)));
    assert!(one[56..112].chunks(8).zip(other[56..112].chunks(8)).all(|(one, other)| one != other));
    assert_ne!(one[144..], other[144..]);
}

#[test]
fn format_1_is_read() {
    let file = format_1();
    let undamaged = inspect(&file).unwrap();
    assert_eq!(undamaged.open(None).as_deref(), Ok(PAYLOAD));
    assert_eq!(undamaged.open(Some(&key(1))), Err(OpenError::NotSealed));
    assert_eq!((undamaged.label.generation, undamaged.label.identity), (0, None));
}

#[test]
fn every_single_bit_flip_is_found() {
    for good in [plain(), sealed(), format_1()] {
        for position in 0..good.len() {
            for bit in 0..8 {
                let mut bad = good.clone();
                bad[position] ^= 1 << bit;
                assert!(inspect(&bad).is_err(), "byte {position} bit {bit}");
            }
        }
    }
}

#[test]
fn every_truncation_is_found() {
    for good in [plain(), sealed(), format_1()] {
        for length in 0..good.len() {
            assert!(inspect(&good[..length]).is_err(), "{length} bytes");
        }
    }
}

#[test]
fn bytes_behind_the_end_are_found() {
    for mut longer in [plain(), sealed(), format_1()] {
        longer.push(0);
        assert!(matches!(inspect(&longer), Err(FormatError::Length { .. })));
    }
}

/// Somebody who repairs the checksum gets past it, and not past the seal.
#[test]
fn every_change_on_purpose_to_a_sealed_file_is_found() {
    let good = sealed();
    for position in (0..112).chain(144..good.len()) {
        let mut bad = good.clone();
        bad[position] ^= 1;
        let checksum = checksum(&bad[..112], &bad[144..]);
        bad[112..144].copy_from_slice(&checksum);
        assert!(!inspect(&bad).is_ok_and(|undamaged| undamaged.open(Some(&key(1))).is_ok()), "byte {position}");
    }
}

#[test]
fn a_wrong_key_is_told_from_damage_and_from_no_key() {
    let (sealed, plain) = (sealed(), plain());
    let (sealed, plain) = (inspect(&sealed).unwrap(), inspect(&plain).unwrap());
    assert_eq!(sealed.open(Some(&key(2))), Err(OpenError::OtherKey));
    assert_eq!(sealed.open(None), Err(OpenError::NoKey));
    assert_eq!(plain.open(Some(&key(1))), Err(OpenError::NotSealed));
    assert!(OpenError::NotSealed.to_string().contains("state rekey"));
}

#[test]
fn a_foreign_file_is_named_as_such() {
    assert!(matches!(inspect(b"\x00\x01swtpm"), Err(FormatError::Foreign)));
    assert!(matches!(inspect(b""), Err(FormatError::Foreign)));
}

#[test]
fn a_later_format_says_what_to_do() {
    let mut later = plain();
    later[8] = 3;
    let Err(error) = inspect(&later) else { panic!("it is later") };
    assert_eq!(error, FormatError::Format(3));
    assert!(error.to_string().contains("newer"));
}

#[test]
fn an_oversized_payload_is_not_written() {
    assert!(encode(&label(), &vec![0; MAX_PAYLOAD + 1], None).is_err());
}
