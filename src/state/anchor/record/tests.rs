use super::*;

const V2: TpmVersion = TpmVersion::V2_0;

fn key(byte: u8) -> Key {
    Key::from_master(&[byte; 32])
}

fn identity(byte: u8) -> Option<Identity> {
    Identity::new([byte; 16])
}

fn label(generation: u64) -> Label {
    Label { version: V2, blob: Blob::Permanent, generation, identity: identity(1), written: None }
}

/// A record that has seen generation 5 of the permanent blob.
fn record() -> Record {
    let mut record = Record::new();
    record.written(&label(5));
    record
}

/// Both slots, as the file holds them after the write number `sequence`.
fn slots(sequence: u64, key: Option<&Key>) -> [[u8; SLOT_SIZE]; 2] {
    let mut slots = [[0; SLOT_SIZE]; 2];
    for sequence in [sequence.saturating_sub(1), sequence] {
        let mut record = Record { sequence, ..Record::new() };
        record.written(&label(sequence));
        slots[usize::try_from(sequence % 2).unwrap()] = record.encode(key);
    }
    slots
}

#[test]
fn the_newest_record_is_read_whichever_slot_it_is_in() {
    for key in [None, Some(&key(1))] {
        for sequence in [0, 1, 6, 7, u64::MAX] {
            let mut record = Record::newest(&slots(sequence, key), key).unwrap();
            assert_eq!((record.sequence, record.identity), (sequence, identity(1)));
            assert_eq!(record.generation(V2, Blob::Permanent), sequence);
        }
    }
}

#[test]
fn a_slot_that_a_crash_left_half_written_leaves_the_one_before() {
    for length in 0..SLOT_SIZE {
        let mut slots = slots(7, None);
        slots[1][length..].fill(0xaa);
        assert_eq!(Record::newest(&slots, None).unwrap().sequence, 6, "{length}");
    }
}

#[test]
fn every_bit_flip_in_a_slot_is_found() {
    for key in [None, Some(&key(1))] {
        for position in 0..SLOT_SIZE {
            for bit in 0..8 {
                let mut slots = slots(0, key);
                slots[0][position] ^= 1 << bit;
                assert_eq!(Record::newest(&slots, key), Err(RecordError::Damaged), "byte {position} bit {bit}");
            }
        }
    }
}

#[test]
fn every_change_on_purpose_is_found_with_a_key() {
    let key = key(1);
    for position in 13..168 {
        let mut slots = slots(0, Some(&key));
        slots[0][position] ^= 1;
        let checksum = Sha256::digest(&slots[0][..168]);
        slots[0][168..].copy_from_slice(&checksum);
        assert!(Record::newest(&slots, Some(&key)).is_err(), "byte {position}");
    }
}

#[test]
fn keys_are_told_apart() {
    let (one, other) = (key(1), key(2));
    assert_eq!(Record::newest(&slots(3, Some(&one)), Some(&other)), Err(RecordError::OtherKey));
    assert_eq!(Record::newest(&slots(3, Some(&one)), None), Err(RecordError::NoKey));
    assert_eq!(Record::newest(&slots(3, None), Some(&one)), Err(RecordError::NotKeyed));
}

#[test]
fn the_layout_is_the_documented_one() {
    let slot = Record { sequence: 2, ..record() }.encode(None);
    assert_eq!(slot[..24], *b"VFUTPMRA\x01\0\0\0\0\0\0\0\x02\0\0\0\0\0\0\0");
    assert_eq!(slot[24..40], [1; 16]);
    assert_eq!(slot[40..88], [0; 48]);
    assert_eq!(slot[88..104], [5, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(slot[104..168], [0; 64]);
}

#[test]
fn the_same_and_the_next_generation_are_accepted_and_older_ones_are_not() {
    for found in [5, 6, 9] {
        let mut record = record();
        assert_eq!(record.observe(V2, Blob::Permanent, Some(&label(found))), Ok(()));
        assert_eq!(record.generation(V2, Blob::Permanent), found);
    }
    for found in [0, 4] {
        let mut record = record();
        let older = Err(Rollback::Older { found, known: 5 });
        assert_eq!(record.observe(V2, Blob::Permanent, Some(&label(found))), older);
        assert_eq!(record, self::record());
    }
}

#[test]
fn a_missing_blob_and_another_state_are_refused() {
    assert_eq!(record().observe(V2, Blob::Permanent, None), Err(Rollback::Missing { known: 5 }));
    let known = identity(1).unwrap();
    for other in [identity(2), None] {
        let label = Label { identity: other, ..label(9) };
        let observed = record().observe(V2, Blob::Permanent, Some(&label));
        assert_eq!(observed, Err(Rollback::OtherState { known }));
    }
}

#[test]
fn a_blob_that_was_never_seen_may_be_there_or_not() {
    assert_eq!(record().observe(V2, Blob::Volatile, None), Ok(()));
    let volatile = Label { blob: Blob::Volatile, ..label(1) };
    assert_eq!(record().observe(V2, Blob::Volatile, Some(&volatile)), Ok(()));
    assert_eq!(Record::new().observe(V2, Blob::Permanent, Some(&label(7))), Ok(()));
}

#[test]
fn while_a_blob_is_deleted_it_may_be_there_or_not_and_afterwards_not_again() {
    let mut deleting = record();
    deleting.deleting(V2, Blob::Permanent);
    let mut interrupted = deleting;
    assert_eq!(interrupted.observe(V2, Blob::Permanent, Some(&label(5))), Ok(()));
    assert_eq!(interrupted, record());
    assert_eq!(deleting.observe(V2, Blob::Permanent, None), Ok(()));
    assert_eq!(deleting.observe(V2, Blob::Permanent, None), Ok(()));
    assert_eq!(deleting.observe(V2, Blob::Permanent, Some(&label(5))), Err(Rollback::Deleted));
    assert_eq!(deleting.observe(V2, Blob::Permanent, Some(&label(6))), Ok(()));
}
