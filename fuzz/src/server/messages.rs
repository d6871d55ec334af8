//! Messages of a client: whole ones with all kinds of contents, and others.

use super::super::tape::Tape;

const VERSION: u16 = 1;
const QEMU: &[u8] = br#"{"capabilities": {"max_msg_fds": 8, "max_data_xfer_size": 1048576, "pgsizes": 4096, "max_dma_maps": 65535, "max_bitmap_size": 33554432, "migration": {"pgsize": 4096}, "write_multiple": true}}"#;

/// A message with a size that is right, or said to be another.
pub fn any(tape: &mut Tape<'_>, id: u16) -> Vec<u8> {
    let command = match tape.byte() {
        common @ 0..=239 => u16::from(common % 20),
        _ => tape.u16(),
    };
    let flags = match tape.below(32) {
        0 => tape.u32(),
        1 => 1,
        2 | 3 => 0x10,
        _ => 0,
    };
    let body = body(tape, command);
    let size = match tape.below(32) {
        0 => tape.number32(),
        _ => u32::try_from(body.len() + 16).expect("small"),
    };
    message(id, command, size, flags, &body)
}

/// What QEMU begins with.
pub fn version(id: u16) -> Vec<u8> {
    let body = [&[0; 4], QEMU, &[0]].concat();
    message(id, VERSION, u32::try_from(body.len() + 16).expect("small"), 0, &body)
}

/// An access of a register's size, as guests cause them.
pub fn access(tape: &mut Tape<'_>, id: u16) -> Vec<u8> {
    let register = tape.choose::<u64>(&[0, 4, 8, 0x0c, 0x18, 0x24, 0x30, 0x80, 0xf00]);
    // The localities, the doorbell and physical presence.
    let offset = u64::from(tape.below(7)) * 0x1000 + register;
    let (writes, count) = (tape.flag(), tape.choose::<u32>(&[1, 4, 2, 8, 64]));
    let mut body = [&offset.to_le_bytes()[..], &0u32.to_le_bytes(), &count.to_le_bytes()].concat();
    if writes {
        let data = tape.bytes(count as usize);
        body.extend_from_slice(data);
        body.resize(16 + count as usize, 0);
    }
    let command = if writes { 10 } else { 9 };
    message(id, command, u32::try_from(body.len() + 16).expect("small"), 0, &body)
}

/// A guest's whole way to run a command, in one burst.
pub fn command(tape: &mut Tape<'_>, first_id: u16) -> Vec<Vec<u8>> {
    let length = tape.below(60).max(10);
    let mut command = [&[0x80, 1, 0, 0, 0, length][..], tape.bytes(usize::from(length) - 6)].concat();
    command.resize(length.into(), 0);
    let page = u64::from(tape.below(5)) * 0x1000;
    let writes: [(u64, &[u8]); 4] = [(0, &[2]), (0x18, &[0x40]), (0x80, &command), (0x18, &[0x20])];
    (first_id..)
        .zip(writes)
        .map(|(id, (register, data))| {
            let count = u32::try_from(data.len()).expect("small");
            let body = [&(page + register).to_le_bytes()[..], &[0; 4], &count.to_le_bytes(), data].concat();
            message(id, 10, count + 32, 0, &body)
        })
        .collect()
}

fn message(id: u16, command: u16, size: u32, flags: u32, body: &[u8]) -> Vec<u8> {
    let mut message = [id.to_le_bytes(), command.to_le_bytes()].concat();
    message.extend_from_slice(&size.to_le_bytes());
    message.extend_from_slice(&flags.to_le_bytes());
    message.extend_from_slice(&[0; 4]);
    message.extend_from_slice(body);
    message
}

fn body(tape: &mut Tape<'_>, command: u16) -> Vec<u8> {
    let mut body = match (tape.below(16), command) {
        (0, _) => return tape.short().to_vec(),
        (1, _) => words(tape, 10),
        (2, VERSION) => [&[0; 4], QEMU, &[0]].concat(),
        (_, VERSION) => return version_body(tape),
        (_, 2) => [&32u32.to_le_bytes()[..], &words(tape, 1), &longs(tape, 3)].concat(),
        (_, 3) => [&24u32.to_le_bytes()[..], &words(tape, 1), &longs(tape, 2)].concat(),
        (_, 4 | 7) => [&16u32.to_le_bytes()[..], &words(tape, 3)].concat(),
        (_, 5) => [&tape.choose::<u32>(&[32, 64, 96, 4096]).to_le_bytes()[..], &words(tape, 7)].concat(),
        (_, 8) => set_irqs(tape),
        (_, 9) => region_access(tape).0,
        (_, 10) => {
            let (mut body, count) = region_access(tape);
            let (data, fill) = (tape.short(), tape.byte());
            body.extend_from_slice(data);
            if tape.below(8) != 0 {
                body.resize(16 + usize::try_from(count.min(3 << 19)).expect("small"), fill);
            }
            body
        }
        (_, 13) => vec![],
        _ => words(tape, 6),
    };
    if tape.below(16) == 0 {
        body.truncate(tape.byte().into());
    }
    body
}

fn region_access(tape: &mut Tape<'_>) -> (Vec<u8>, u32) {
    let (region, count) = (tape.choose::<u32>(&[0, 0, 7, 1, 2, 3, 4, 5, 9]), tape.number32());
    let offset = match tape.below(4) {
        // About the end of one of the devices' regions.
        0 => {
            let size = tape.choose::<u64>(&[0x8000, 0x2_0000, 0x100, 2 << 20]);
            (size + u64::from(tape.below(3))).wrapping_sub(1).wrapping_sub(count.into())
        }
        _ => tape.number(),
    };
    ([&offset.to_le_bytes()[..], &region.to_le_bytes(), &count.to_le_bytes()].concat(), count)
}

fn version_body(tape: &mut Tape<'_>) -> Vec<u8> {
    let mut json = String::from(r#"{"capabilities":{"#);
    for name in ["max_msg_fds", "max_data_xfer_size", "pgsizes", "max_dma_maps"] {
        let value = match tape.below(8) {
            0 => continue,
            1 => format!("{:?}", String::from_utf8_lossy(tape.short())),
            2 => String::from("{\"of\":-1}"),
            _ => tape.number().to_string(),
        };
        json.extend(["\"", name, "\":", &value, ","]);
    }
    json += r#""x":0}}"#;
    let version = if tape.below(16) == 0 { tape.u32() } else { 0 };
    let mut body = [&version.to_le_bytes()[..], json.as_bytes()].concat();
    if tape.below(16) != 0 {
        body.push(0);
    }
    body
}

/// `DEVICE_SET_IRQS` with data that fits what its flags say, mostly.
fn set_irqs(tape: &mut Tape<'_>) -> Vec<u8> {
    let flags = match tape.below(8) {
        0 => tape.number32(),
        _ => 1 << tape.below(3) | 8 << tape.below(3),
    };
    let (index, start) = (tape.below(6).into(), tape.number32());
    let count = tape.number32();
    let data = match flags & 7 {
        2 => count,
        4 => count.saturating_mul(4),
        _ => 0,
    };
    let data = data.min(9000) as usize;
    let argsz = u32::try_from(20 + data).expect("small");
    let mut body = [argsz, flags, index, start, count].map(u32::to_le_bytes).concat();
    let bytes = tape.short();
    body.extend(bytes.iter().copied().chain(std::iter::repeat(1)).take(data));
    body
}

fn words(tape: &mut Tape<'_>, count: usize) -> Vec<u8> {
    (0..count).flat_map(|_| tape.number32().to_le_bytes()).collect()
}

fn longs(tape: &mut Tape<'_>, count: usize) -> Vec<u8> {
    (0..count).flat_map(|_| tape.number().to_le_bytes()).collect()
}
