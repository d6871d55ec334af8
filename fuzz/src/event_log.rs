//! TCG event logs: any bytes, and logs that are whole with something wrong in them.

use vfio_user_tpm::measure::digests::BANKS;
use vfio_user_tpm::measure::event_log::{
    AlgorithmSize, Digest, Event, EventLog, EventType, Format, HcrtmComponent, MAX_LOG, SpecId, describe, parse,
    startup_locality_data,
};
use vfio_user_tpm::measure::replay::replay;
use vfio_user_tpm::pcr_bank::PcrBank;
use vfio_user_tpm::tpm::Locality;

use super::tape::Tape;

/// Types whose data have a structure, and others.
const TYPES: [u32; 24] = [
    0x0,
    0x3,
    0x3,
    0x4,
    0x5,
    0x6,
    0x8,
    0xd,
    0x8000_0001,
    0x8000_0002,
    0x8000_0003,
    0x8000_0004,
    0x8000_0006,
    0x8000_0007,
    0x8000_0008,
    0x8000_0009,
    0x8000_000a,
    0x8000_000b,
    0x8000_000c,
    0x8000_000d,
    0x8000_0010,
    0x8000_00e0,
    0x8000_00e4,
    0x1234_5678,
];

pub fn run(data: &[u8]) {
    let mut tape = Tape::new(data);
    if tape.below(4) == 0 {
        return read(tape.rest());
    }
    let log = log(&mut tape);
    let mut bytes = log.to_bytes(MAX_LOG).expect("it is small and its digests are the log's");
    let needed = bytes.len();
    assert!(needed == 0 || log.to_bytes(needed - 1).is_err());
    for _ in 0..tape.below(6) {
        let (position, value) = (usize::from(tape.u16()), tape.byte());
        if let Some(byte) = bytes.get_mut(position) {
            *byte = value;
        }
    }
    match tape.below(6) {
        0 => bytes.extend_from_slice(tape.short()),
        1 => bytes.truncate(tape.u16().into()),
        2 => bytes.resize(bytes.len() + 300, tape.choose(&[0, 0xff])),
        _ => {}
    }
    read(&bytes);
}

/// What is taken is what would be written, with unused room behind it; and whatever it says can be said.
fn read(bytes: &[u8]) {
    let log = match parse(bytes) {
        Ok(log) => log,
        Err(error) => return said(&error.to_string()),
    };
    let written = log.to_bytes(MAX_LOG).expect("it was read from no more");
    let (same, rest) = bytes.split_at(written.len());
    assert!(written == same, "{log:?}");
    assert!(rest.iter().skip_while(|byte| **byte == 0).all(|byte| *byte == 0xff));
    assert_eq!(parse(&written).as_ref(), Ok(&log));
    for event in &log.events {
        let text = describe(event);
        assert!(text.chars().count() < 12_000 && !text.chars().any(char::is_control), "{text:?}");
        assert!(event.data.is_empty() || !text.is_empty());
        said(&event.event_type.to_string());
    }
    match replay(&log) {
        Ok(replayed) => {
            assert_eq!(replayed.iter().map(|one| one.bank).collect::<Vec<_>>(), log.banks());
            for one in replayed {
                match one.pcrs {
                    Ok(pcrs) => assert!(pcrs.values().all(|value| Some(value.len()) == one.bank.digest_size())),
                    Err(error) => said(&error.to_string()),
                }
            }
        }
        Err(error) => said(&error.to_string()),
    }
}

fn said(text: &str) {
    assert!(!text.is_empty() && !text.chars().any(char::is_control), "{text:?}");
}

fn log(tape: &mut Tape<'_>) -> EventLog {
    let format = if tape.below(4) == 0 {
        Format::Sha1
    } else {
        let mut spec_id = SpecId::new(&BANKS[..usize::from(tape.below(5))]);
        if spec_id.algorithms.is_empty() {
            spec_id.algorithms.push(AlgorithmSize { bank: PcrBank::from_algorithm(0xbeef), digest_size: 9 });
        }
        spec_id.vendor_info = tape.short().to_vec();
        Format::CryptoAgile(spec_id)
    };
    let events = (0..tape.below(6)).map(|_| event(tape, &format)).collect();
    EventLog { format, events }
}

fn event(tape: &mut Tape<'_>, format: &Format) -> Event {
    let sizes = match format {
        Format::Sha1 => vec![(PcrBank::SHA1, 20)],
        Format::CryptoAgile(spec_id) => {
            spec_id.algorithms.iter().map(|one| (one.bank, one.digest_size.into())).collect()
        }
    };
    let fill = tape.byte();
    let mut digests: Vec<_> =
        sizes.iter().map(|(bank, size)| Digest { bank: *bank, value: vec![fill; *size] }).collect();
    if fill == 1 && matches!(format, Format::CryptoAgile(_)) {
        digests.pop();
    }
    let pcr = if fill == 2 { tape.u32() } else { tape.below(24).into() };
    let event_type = EventType(tape.choose(&TYPES));
    Event { pcr, event_type, digests, data: content(tape) }
}

fn content(tape: &mut Tape<'_>) -> Vec<u8> {
    match tape.below(8) {
        0 => startup_locality_data(tape.choose(&[Locality::ZERO, Locality::FOUR])),
        1 => HcrtmComponent::of_digest(tape.short(), tape.choose(&BANKS), tape.short()).to_bytes(),
        // A variable: a GUID, the lengths of name and value, both.
        2 => {
            let (name, value) = (tape.short(), tape.short());
            let name: Vec<u8> = name.iter().flat_map(|byte| [*byte, 0]).collect();
            let sizes = [name.len() as u64 / 2, value.len() as u64].map(u64::to_le_bytes).concat();
            [tape.bytes(16), &sizes, &name, value].concat()
        }
        // Something of a size that is in front of it, in one byte or four.
        3 => [&[tape.byte()], tape.short()].concat(),
        4 => [&u32::from(tape.byte()).to_le_bytes()[..], &u32::from(tape.byte()).to_le_bytes(), tape.short()].concat(),
        _ => tape.short().to_vec(),
    }
}
