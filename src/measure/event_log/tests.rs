//! Of the log as a whole: there and back, what is refused, and what is shown.

use proptest::prelude::*;

use super::*;
use crate::tpm::Locality;

fn digest(bank: PcrBank, fill: u8) -> Digest {
    Digest { bank, value: vec![fill; bank.digest_size().unwrap()] }
}

fn event(event_type: EventType, data: &[u8]) -> Event {
    let digests = vec![digest(PcrBank::SHA1, 1), digest(PcrBank::SHA256, 2)];
    Event { pcr: 5, event_type, digests, data: data.to_vec() }
}

fn crypto_agile(events: Vec<Event>) -> EventLog {
    EventLog { format: Format::CryptoAgile(SpecId::new(&[PcrBank::SHA256, PcrBank::SHA1])), events }
}

fn bytes(log: &EventLog) -> Vec<u8> {
    log.to_bytes(MAX_LOG).unwrap()
}

/// Bytes of the Spec ID event of [`crypto_agile`].
const SPEC_ID: usize = 32 + 37;

fn sha1(events: Vec<Event>) -> EventLog {
    let of_sha1 = |event: Event| Event { digests: vec![digest(PcrBank::SHA1, 1)], ..event };
    EventLog { format: Format::Sha1, events: events.into_iter().map(of_sha1).collect() }
}

#[test]
fn the_bytes_are_those_of_the_specification() {
    let log = bytes(&crypto_agile(vec![event(EventType::SEPARATOR, &[0; 4])]));
    // PCR 0, EV_NO_ACTION, a digest of zeros, 37 bytes.
    assert_eq!(log[..8], [0, 0, 0, 0, 3, 0, 0, 0]);
    assert_eq!(log[8..28], [0; 20]);
    assert_eq!(log[28..32], [37, 0, 0, 0]);
    assert_eq!(&log[32..48], b"Spec ID Event03\0");
    // Client, 2.0 errata 106, 64 bits; SHA-1 and SHA-256; no vendor information.
    assert_eq!(log[48..SPEC_ID], [0, 0, 0, 0, 0, 2, 106, 2, 2, 0, 0, 0, 4, 0, 20, 0, 0x0b, 0, 32, 0, 0]);
    assert_eq!(log[SPEC_ID..SPEC_ID + 14], [5, 0, 0, 0, 4, 0, 0, 0, 2, 0, 0, 0, 4, 0]);
    assert_eq!(log[log.len() - 8..], [4, 0, 0, 0, 0, 0, 0, 0]);

    let log = bytes(&sha1(vec![event(EventType::SEPARATOR, &[9; 4])]));
    assert_eq!(log[..9], [5, 0, 0, 0, 4, 0, 0, 0, 1]);
    assert_eq!(log[27..], [1, 4, 0, 0, 0, 9, 9, 9, 9]);
}

#[test]
fn what_was_written_is_read_whatever_fills_the_rest_of_the_room() {
    for log in [crypto_agile(vec![event(EventType::IPL, b"x")]), sha1(vec![event(EventType::IPL, b"x")])] {
        for fill in [0, 0xff] {
            let mut area = bytes(&log);
            area.resize(DEFAULT_ROOM, fill);
            assert_eq!(parse(&area).unwrap(), log);
            // An event of zeros would not be read again.
            area.resize(DEFAULT_ROOM + 100, 0xff);
            assert_eq!(parse(&area).unwrap(), log);
        }
    }
    let empty = crypto_agile(vec![]);
    assert_eq!(parse(&bytes(&empty)).unwrap(), empty);
}

#[test]
fn a_log_that_does_not_fit_is_not_written() {
    let log = crypto_agile(vec![event(EventType::IPL, &[7; 100])]);
    let needed = bytes(&log).len();
    assert_eq!(log.to_bytes(needed).unwrap().len(), needed);
    assert_eq!(log.to_bytes(needed - 1), Err(WriteError::NoRoom { needed, room: needed - 1 }));
}

#[test]
fn a_digest_that_the_log_cannot_have_is_not_written() {
    let mut log = crypto_agile(vec![event(EventType::IPL, b""), event(EventType::IPL, b"")]);
    log.events[1].digests[0] = digest(PcrBank::SHA512, 1);
    assert_eq!(log.to_bytes(MAX_LOG), Err(WriteError::Digest { number: 2, bank: PcrBank::SHA512 }));
    log.events[1].digests[0] = Digest { bank: PcrBank::SHA1, value: vec![0; 19] };
    assert_eq!(log.to_bytes(MAX_LOG), Err(WriteError::Digest { number: 2, bank: PcrBank::SHA1 }));
    let mut log = sha1(vec![event(EventType::IPL, b"")]);
    log.events[0].digests.clear();
    assert_eq!(log.to_bytes(MAX_LOG), Err(WriteError::Digest { number: 0, bank: PcrBank::SHA1 }));
}

#[test]
fn what_is_cut_off_is_refused_with_the_place() {
    let log = bytes(&crypto_agile(vec![event(EventType::IPL, b"data")]));
    // The first four are zeros: nothing.
    for length in 5..log.len() {
        // Without its event it is a whole log.
        if length != SPEC_ID {
            assert!(matches!(parse(&log[..length]), Err(ParseError::Cut { .. })), "{length} bytes");
        }
    }
    let message = parse(&log[..log.len() - 1]).unwrap_err().to_string();
    let place = format!("at offset {}, an event's data should have 4 bytes, and 3 are left", log.len() - 4);
    assert!(message.contains(&place), "{message}");
    assert_eq!(parse(&[]), Err(ParseError::Empty));
    assert_eq!(parse(&[0; 100]), Err(ParseError::Empty));
    assert_eq!(parse(&vec![1; MAX_LOG + 1]), Err(ParseError::TooLarge { found: MAX_LOG + 1 }));
}

#[test]
fn a_spec_id_event_that_is_wrong_is_refused_with_the_place() {
    let good = bytes(&crypto_agile(vec![event(EventType::IPL, b"data")]));
    for (at, value, place) in [
        (0, 1, 0),
        (27, 1, 0),
        // The number of algorithms, their sizes, the second the same as the first.
        (56, 0, 56),
        (56, 17, 56),
        (62, 21, 60),
        (66, 0, 64),
        (64, 4, 64),
        // One byte more than the vendor information.
        (28, 38, SPEC_ID),
    ] {
        let mut bad = good.clone();
        bad[at] = value;
        let error = parse(&bad).unwrap_err();
        assert!(matches!(error, ParseError::SpecId { offset, .. } if offset == place), "{at}: {error}");
    }
}

#[test]
fn algorithms_without_a_name_are_read_and_those_that_the_log_does_not_name_are_not() {
    let mut log = crypto_agile(vec![event(EventType(0x1234_5678), b"data")]);
    let Format::CryptoAgile(spec_id) = &mut log.format else { panic!("crypto-agile") };
    let unknown = PcrBank::from_algorithm(0x7777);
    spec_id.algorithms[1] = AlgorithmSize { bank: unknown, digest_size: 5 };
    log.events[0].digests[1] = Digest { bank: unknown, value: vec![3; 5] };
    assert_eq!(parse(&bytes(&log)).unwrap(), log);

    let good = bytes(&log);
    let second = SPEC_ID + 12 + 22;
    let mut bad = good.clone();
    bad[second] = 0x78;
    let bank = PcrBank::from_algorithm(0x7778);
    assert_eq!(parse(&bad), Err(ParseError::Algorithm { offset: second, bank }));
    let mut bad = good.clone();
    bad[second..second + 2].copy_from_slice(&[4, 0]);
    assert_eq!(parse(&bad), Err(ParseError::Twice { offset: second, bank: PcrBank::SHA1 }));
    let mut bad = good;
    bad[SPEC_ID + 8] = 3;
    assert_eq!(parse(&bad), Err(ParseError::Digests { offset: SPEC_ID + 8, most: 2, found: 3 }));
}

#[test]
fn a_log_of_tpm_1_2_may_begin_with_its_own_spec_id_event() {
    let mut spec_id = event(EventType::NO_ACTION, b"Spec ID Event02\0\0\0\0\0\x02\x01\x02\x01\0");
    spec_id.digests = vec![digest(PcrBank::SHA1, 0)];
    let log = sha1(vec![spec_id, event(EventType::IPL, b"x")]);
    assert_eq!(parse(&bytes(&log)).unwrap(), log);
    assert_eq!(log.number(1), 1);
}

#[test]
fn a_startup_locality_is_one_only_in_its_own_event() {
    let said = event(EventType::NO_ACTION, &startup_locality_data(Locality::FOUR));
    assert_eq!(startup_locality(&said), Some(Locality::FOUR));
    for (event_type, data) in [
        (EventType::IPL, &b"StartupLocality\0\x03"[..]),
        (EventType::NO_ACTION, b"StartupLocality\0"),
        (EventType::NO_ACTION, b"StartupLocality\0\x05"),
        (EventType::NO_ACTION, b"StartupLocality\0\x03\0"),
        (EventType::NO_ACTION, b"startupLocality\0\x03"),
    ] {
        assert_eq!(startup_locality(&event(event_type, data)), None);
    }
}

#[track_caller]
fn shown(event_type: EventType, data: &[u8], expected: &str) {
    assert_eq!(describe(&event(event_type, data)), expected);
}

fn utf_16(text: &str) -> Vec<u8> {
    text.encode_utf16().flat_map(u16::to_le_bytes).collect()
}

#[test]
fn data_are_shown_as_their_type_says() {
    shown(EventType::SEPARATOR, &[0; 4], "separator");
    shown(EventType::SEPARATOR, &[1, 0, 0, 0], "separator after an error");
    shown(EventType::NO_ACTION, b"StartupLocality\0\x03", "StartupLocality 3");
    shown(EventType::NO_ACTION, b"SP800-155 Event\0\x01\x02", "\"SP800-155 Event\", 0102");
    let component = HcrtmComponent::of_digest(b"fw", PcrBank::SHA1, &[0xab; 3]);
    shown(EventType::NO_ACTION, &component.to_bytes(), "H-CRTM component \"fw\": sha1 ababab");
    shown(EventType::EVENT_TAG, b"\xec\x22\x3b\x8f\x0d\0\0\0Linux initrd\0", "tag 0x8f3b22ec: \"Linux initrd\"");
    let blob = [&[0, 0x10, 0, 0, 0, 0, 0, 0][..], &[7, 0, 0, 0, 0, 0, 0, 0]].concat();
    shown(EventType::EFI_PLATFORM_FIRMWARE_BLOB, &blob, "7 bytes at 0x1000");
    shown(EventType::EFI_PLATFORM_FIRMWARE_BLOB2, &[b"\x02FV", &blob[..]].concat(), "\"FV\", 7 bytes at 0x1000");
    shown(EventType::EFI_PLATFORM_FIRMWARE_BLOB2, &[b"\0", &blob[..]].concat(), "\"\", 7 bytes at 0x1000");
    let guid = [0x61, 0xdf, 0xe4, 0x8b, 0xca, 0x93, 0xd2, 0x11, 0xaa, 0x0d, 0x00, 0xe0, 0x98, 0x03, 0x2b, 0x8c];
    let sizes = [10, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0];
    let variable = [&guid[..], &sizes, &utf_16("SecureBoot"), &[1]].concat();
    let expected = "variable \"SecureBoot\" of 8be4df61-93ca-11d2-aa0d-00e098032b8c: 01";
    shown(EventType::EFI_VARIABLE_DRIVER_CONFIG, &variable, expected);
}

#[test]
fn what_is_not_as_its_type_says_is_shown_all_the_same() {
    shown(EventType::EFI_VARIABLE_BOOT, &[0xff; 3], "ffffff");
    shown(EventType::EFI_VARIABLE_BOOT, &[0xff; 40], &"ff".repeat(40));
    shown(EventType::EFI_PLATFORM_FIRMWARE_BLOB2, b"\xffnot so long", "ff6e6f7420736f206c6f6e67");
    shown(EventType::EVENT_TAG, b"text", "\"text\"");
    shown(EventType(77), b"", "");
    shown(EventType(77), &[0x80; 65], &("80".repeat(64) + "…"));
}

#[test]
fn texts_of_either_width_are_shown_without_what_a_terminal_obeys() {
    shown(EventType::ACTION, b"Calling INT 19h", "\"Calling INT 19h\"");
    shown(EventType::IPL, &utf_16(".linux\0"), "\".linux\"");
    // An even number of bytes, which could be Chinese.
    shown(EventType::IPL, b"LOADED_IMAGE::LoadOptions\0", "\"LOADED_IMAGE::LoadOptions\"");
    shown(EventType::IPL, &utf_16("\u{4e2d} a"), "\"\u{4e2d} a\"");
    shown(EventType::IPL, b"a\nb\"c\\d\xc3\xa9\0", "\"a\\nb\\\"c\\\\dé\"");
    // An escape sequence is no text; what turns the direction of writing is escaped.
    shown(EventType::IPL, b"\x1b[2J", "1b5b324a");
    shown(EventType::IPL, "a\u{202e}b".as_bytes(), "\"a\\u{202e}b\"");
    shown(EventType::IPL, &utf_16("a\u{202e}b"), "\"a\\u{202e}b\"");
    shown(EventType::IPL, &[b'x'; 1001], &format!("\"{}\"…", "x".repeat(1000)));
}

prop_compose! {
    fn any_event(algorithms: Vec<AlgorithmSize>)(
        pcr: u32,
        // Not all zeros: at the end of a log that would be unused room.
        event_type in 1..u32::MAX,
        data in prop::collection::vec(any::<u8>(), 0..64),
        fills in prop::collection::vec(any::<u8>(), algorithms.len()),
        count in 0..=algorithms.len(),
        algorithms in Just(algorithms).prop_shuffle(),
    ) -> Event {
        let value = |(algorithm, fill): (&AlgorithmSize, &u8)| Digest {
            bank: algorithm.bank,
            value: vec![*fill; algorithm.digest_size.into()],
        };
        let digests = algorithms.iter().zip(&fills).map(value).take(count).collect();
        Event { pcr, event_type: EventType(event_type), digests, data }
    }
}

fn any_log() -> impl Strategy<Value = EventLog> {
    let banks = prop::sample::subsequence(crate::measure::digests::BANKS.to_vec(), 1..=4);
    let spec_id = (banks, any::<u32>(), any::<[u8; 4]>(), prop::collection::vec(any::<u8>(), 0..20));
    spec_id.prop_flat_map(|(banks, platform_class, [minor, major, errata, size], vendor_info)| {
        let mut spec_id = SpecId::new(&banks);
        spec_id.platform_class = platform_class;
        spec_id.vendor_info = vendor_info;
        (spec_id.version_minor, spec_id.version_major, spec_id.errata, spec_id.uintn_size) =
            (minor, major, errata, size);
        // One that nobody knows.
        spec_id.algorithms.push(AlgorithmSize { bank: PcrBank::from_algorithm(0xbeef), digest_size: 9 });
        let events = prop::collection::vec(any_event(spec_id.algorithms.clone()), 0..8);
        events.prop_map(move |events| EventLog { format: Format::CryptoAgile(spec_id.clone()), events })
    })
}

proptest! {
    #[test]
    fn any_log_that_is_written_is_read_as_it_was(log in any_log()) {
        prop_assert_eq!(parse(&bytes(&log)).unwrap(), log);
    }

    #[test]
    fn any_change_to_a_log_is_read_or_refused(
        log in any_log(),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
        length: prop::sample::Index,
    ) {
        let mut bytes = bytes(&log);
        for (at, value) in changes {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        bytes.truncate(length.index(bytes.len()) + 1);
        if let Ok(log) = parse(&bytes) {
            prop_assert!(bytes.starts_with(&log.to_bytes(MAX_LOG).unwrap()));
            for event in &log.events {
                prop_assert!(!describe(event).chars().any(char::is_control));
            }
        }
    }

    #[test]
    fn any_bytes_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = parse(&bytes);
    }
}
