use super::*;
use crate::tpm::{BUFFER_SIZE, Fault, fault_response};

const V2_0: TpmVersion = TpmVersion::V2_0;

fn ready() -> Guest {
    let mut guest = Guest::owning(0);
    guest.write8(0, STS, COMMAND_READY);
    guest
}

/// A command of which only the header is true: its size field says `size`.
fn header(size: u32) -> [u8; 10] {
    Header { tag: 0x8001, size, code: 0x17b }.to_bytes()
}

#[test]
fn each_state_shows_its_status_byte() {
    let mut guest = Guest::owning(0);
    assert_eq!(guest.read8(0, STS), 0, "idle");
    guest.write8(0, STS, COMMAND_READY);
    assert_eq!(guest.read8(0, STS), COMMAND_READY, "ready: commandReady and nothing else");
    guest.send(0, &message(12)[..11]);
    assert_eq!(guest.read8(0, STS), VALID | EXPECT, "reception");
    guest.send(0, &message(12)[11..]);
    assert_eq!(guest.read8(0, STS), VALID, "command complete");
    guest.write8(0, STS, GO);
    assert_eq!(guest.read8(0, STS), VALID, "execution");
    guest.tis.complete(&message(10));
    assert_eq!(guest.read8(0, STS), VALID | DATA_AVAIL, "completion");
    guest.read::<8>(0, XDATA_FIFO);
    assert_eq!(guest.read8(0, STS), VALID | DATA_AVAIL, "two bytes left");
    guest.read::<2>(0, XDATA_FIFO);
    assert_eq!(guest.read8(0, STS), VALID, "response read");
}

#[test]
fn an_idle_tpm_takes_no_command() {
    let mut guest = Guest::owning(0);
    guest.send(0, &message(10));
    assert_eq!(guest.read8(0, STS), 0);
    assert_eq!(guest.write8(0, STS, GO), None);
}

#[test]
fn expect_clears_exactly_with_the_last_byte() {
    let mut guest = ready();
    for &byte in message(300).split_last().expect("not empty").1 {
        guest.write8(0, DATA_FIFO, byte);
        assert_eq!(guest.read8(0, STS), VALID | EXPECT);
    }
    guest.write8(0, DATA_FIFO, 0);
    assert_eq!(guest.read8(0, STS), VALID);
}

#[test]
fn data_avail_clears_exactly_with_the_last_byte() {
    let mut guest = Guest::executing(0, &message(10));
    guest.tis.complete(&message(300));
    for &byte in &message(300) {
        assert_eq!(guest.read8(0, STS), VALID | DATA_AVAIL);
        assert_eq!(guest.read8(0, DATA_FIFO), byte);
    }
    assert_eq!(guest.read8(0, STS), VALID);
    assert_eq!(guest.read8(0, DATA_FIFO), 0xff);
}

#[test]
fn bytes_after_the_command_are_dropped() {
    let mut guest = ready();
    guest.send(0, &message(12));
    guest.send(0, &[1, 2, 3]);
    assert_eq!(guest.write8(0, STS, GO), Some(Effect::Execute(Locality::ZERO)));
    guest.send(0, &[4, 5, 6]);
    assert_eq!(guest.tis.command(), message(12));
}

#[test]
fn a_write_that_ends_the_command_in_its_middle_drops_the_rest() {
    let mut guest = ready();
    let command = message(10);
    guest.write(0, XDATA_FIFO, &command[..8]);
    guest.write(0, DATA_FIFO, &[command[8], command[9], 0xaa, 0xbb]);
    guest.write8(0, STS, GO);
    assert_eq!(guest.tis.command(), command);
}

#[test]
fn fifo_bytes_go_in_ascending_order_at_every_width_and_lane() {
    let command = message(64);
    let mut guest = ready();
    guest.write(0, XDATA_FIFO + 0x33, &command[..13]);
    guest.write(0, DATA_FIFO + 3, &command[13..14]);
    guest.write(0, DATA_FIFO + 1, &command[14..17]);
    guest.write(0, XDATA_FIFO, &command[17..]);
    guest.write8(0, STS, GO);
    assert_eq!(guest.tis.command(), command);

    guest.tis.complete(&command);
    let mut response = guest.read::<13>(0, XDATA_FIFO + 0x33).to_vec();
    response.extend(guest.read::<1>(0, DATA_FIFO + 3));
    response.extend(guest.read::<3>(0, DATA_FIFO + 1));
    response.extend(guest.read::<47>(0, XDATA_FIFO));
    assert_eq!(response, command);
    assert_eq!(guest.read8(0, STS), VALID);
}

#[test]
fn an_access_over_the_fifos_end_moves_only_the_fifos_bytes() {
    let mut guest = Guest::executing(0, &message(10));
    guest.tis.complete(&message(20));
    assert_eq!(guest.read::<8>(0, 0x20), [0xff, 0xff, 0xff, 0xff, 0x80, 0x01, 0, 0]);
    assert_eq!(guest.read::<4>(0, DATA_FIFO + 2), [0, 20, 0xff, 0xff]);
    assert_eq!(guest.read::<4>(0, 0xbe), [0, 0, 0xff, 0xff]);
    assert_eq!(guest.receive(0), message(20)[8..]);
}

#[test]
fn a_response_longer_than_what_is_read_at_once_ends_in_ones() {
    let mut guest = Guest::executing(0, &message(10));
    guest.tis.complete(&message(10));
    let data: [u8; 16] = guest.read(0, XDATA_FIFO);
    assert_eq!(data[..10], message(10));
    assert_eq!(data[10..], [0xff; 6]);
}

#[test]
fn go_before_the_command_is_complete_is_ignored() {
    let mut guest = ready();
    assert_eq!(guest.write8(0, STS, GO), None);
    assert_eq!(guest.read8(0, STS), COMMAND_READY);
    guest.send(0, &message(12)[..11]);
    assert_eq!(guest.write8(0, STS, GO), None);
    guest.send(0, &message(12)[11..]);
    assert_eq!(guest.write8(0, STS, GO), Some(Effect::Execute(Locality::ZERO)));
}

#[test]
fn go_starts_a_command_once() {
    let mut guest = Guest::executing(0, &message(12));
    assert_eq!(guest.write8(0, STS, GO), None);
    guest.tis.complete(&message(12));
    assert_eq!(guest.write8(0, STS, GO), None);
    assert_eq!(guest.receive(0), message(12));
    assert_eq!(guest.write8(0, STS, GO), None);
}

#[test]
fn several_command_bits_at_once_are_ignored() {
    for both in [COMMAND_READY | GO, GO | RESPONSE_RETRY, COMMAND_READY | RESPONSE_RETRY] {
        let mut guest = ready();
        guest.send(0, &message(10));
        assert_eq!(guest.write8(0, STS, both), None);
        assert_eq!(guest.read8(0, STS), VALID, "{both:#x}");
    }
    let mut guest = Guest::executing(0, &message(10));
    assert_eq!(guest.write32(0, STS, COMMAND_CANCEL | u32::from(COMMAND_READY)), None);
    assert_eq!(guest.read8(0, STS), VALID);
}

#[test]
fn bits_that_are_no_commands_do_not_disturb_one() {
    let mut guest = Guest::owning(0);
    guest.write32(0, STS, 0x0cff_ff9d | u32::from(COMMAND_READY));
    assert_eq!(guest.read8(0, STS), COMMAND_READY);
}

#[test]
fn command_bits_count_only_in_bytes_that_are_written() {
    let mut guest = Guest::owning(0);
    guest.write(0, STS + 1, &[COMMAND_READY; 3]);
    assert_eq!(guest.read8(0, STS), 0);
    guest.write(0, 0x14, &[0, 0, 0, 0, COMMAND_READY, 0, 0, 0]);
    assert_eq!(guest.read8(0, STS), COMMAND_READY);
}

#[test]
fn command_ready_aborts_reception() {
    let mut guest = ready();
    guest.send(0, &message(12)[..7]);
    assert_eq!(guest.write8(0, STS, COMMAND_READY), None);
    assert_eq!(guest.read8(0, STS), COMMAND_READY);
    guest.send(0, &message(14));
    guest.write8(0, STS, GO);
    assert_eq!(guest.tis.command(), message(14));
}

#[test]
fn command_ready_ends_completion() {
    let mut guest = Guest::executing(0, &message(12));
    guest.tis.complete(&message(20));
    guest.read32(0, DATA_FIFO);
    guest.write8(0, STS, COMMAND_READY);
    assert_eq!(guest.read8(0, STS), COMMAND_READY);
    assert_eq!(guest.read8(0, DATA_FIFO), 0xff);
    guest.write8(0, STS, RESPONSE_RETRY);
    assert_eq!(guest.read8(0, STS), COMMAND_READY);
}

#[test]
fn command_ready_during_execution_cancels_and_is_ready_when_the_backend_is() {
    let mut guest = Guest::executing(0, &message(12));
    assert_eq!(guest.write8(0, STS, COMMAND_READY), Some(Effect::Cancel));
    assert_eq!(guest.write8(0, STS, COMMAND_READY), None, "cancelled already");
    assert_eq!(guest.read32(0, STS), 0x0400_0000, "nothing but the family until the backend is done");
    assert!(guest.tis.command().is_empty());
    guest.tis.complete(&message(20));
    assert_eq!(guest.read8(0, STS), COMMAND_READY, "no response shows");
    assert!(!guest.tis.is_busy());
}

#[test]
fn command_cancel_during_execution_cancels_and_the_command_completes() {
    let mut guest = Guest::executing(0, &message(12));
    assert_eq!(guest.write32(0, STS, COMMAND_CANCEL), Some(Effect::Cancel));
    assert_eq!(guest.read8(0, STS), VALID);
    guest.tis.complete(&message(10));
    assert_eq!(guest.receive(0), message(10));
}

#[test]
fn command_cancel_in_any_other_state_is_ignored() {
    let mut guest = ready();
    assert_eq!(guest.write32(0, STS, COMMAND_CANCEL), None);
    guest.send(0, &message(10));
    assert_eq!(guest.write32(0, STS, COMMAND_CANCEL), None);
    guest.write8(0, STS, GO);
    guest.tis.complete(&message(10));
    assert_eq!(guest.write32(0, STS, COMMAND_CANCEL), None);
    assert_eq!(guest.receive(0), message(10));
}

#[test]
fn tpm_1_2_knows_neither_command_cancel_nor_establishment_reset() {
    let mut guest = Guest::new(TpmVersion::V1_2);
    guest.write8(3, ACCESS, REQUEST_USE);
    assert_eq!(guest.write32(3, STS, RESET_ESTABLISHMENT), None);
    guest.write8(3, STS, COMMAND_READY);
    guest.send(3, &message(10));
    assert_eq!(
        guest.write32(3, STS, COMMAND_CANCEL | u32::from(GO)),
        Some(Effect::Execute(locality(3))),
        "a bit that doesn't exist doesn't count"
    );
    assert_eq!(guest.write32(3, STS, COMMAND_CANCEL), None);
}

#[test]
fn response_retry_rewinds_from_the_middle_and_after_the_end() {
    let mut guest = Guest::executing(0, &message(12));
    guest.tis.complete(&message(20));
    guest.read::<7>(0, XDATA_FIFO);
    guest.write8(0, STS, RESPONSE_RETRY);
    assert_eq!(guest.receive(0), message(20));
    guest.write8(0, STS, RESPONSE_RETRY);
    assert_eq!(guest.read8(0, STS), VALID | DATA_AVAIL);
    assert_eq!(guest.receive(0), message(20));
}

#[test]
fn response_retry_elsewhere_is_ignored() {
    let mut guest = ready();
    guest.send(0, &message(12)[..5]);
    guest.write8(0, STS, RESPONSE_RETRY);
    guest.send(0, &message(12)[5..]);
    guest.write8(0, STS, GO);
    assert_eq!(guest.tis.command(), message(12));
}

#[test]
fn burst_count_is_what_can_be_transferred_and_at_most_248() {
    let mut guest = Guest::owning(0);
    assert_eq!(guest.burst(0), 0, "idle");
    guest.write8(0, STS, COMMAND_READY);
    assert_eq!(guest.burst(0), 248);
    guest.send(0, &message(300)[..5]);
    assert_eq!(guest.burst(0), 248, "size not known yet");
    guest.send(0, &message(300)[5..100]);
    assert_eq!(guest.burst(0), 200);
    guest.send(0, &message(300)[100..]);
    assert_eq!(guest.burst(0), 0, "command complete");
    guest.write8(0, STS, GO);
    assert_eq!(guest.burst(0), 0, "execution");
    guest.tis.complete(&message(256));
    assert_eq!(guest.burst(0), 248);
    guest.read::<13>(0, XDATA_FIFO);
    assert_eq!(guest.burst(0), 243);
    guest.receive(0);
    assert_eq!(guest.burst(0), 0, "response read");
}

#[test]
fn burst_count_is_the_same_read_as_one_byte_or_two() {
    let mut guest = Guest::executing(0, &message(12));
    guest.tis.complete(&message(256));
    assert_eq!(guest.read8(0, STS + 1), 248, "not 0, as the low byte of 256 would be");
    assert_eq!(guest.read8(0, STS + 2), 0);
    assert_eq!(guest.read::<2>(0, STS + 1), [248, 0]);
}

#[test]
fn a_size_under_the_header_takes_the_header_and_is_answered_at_once() {
    for size in 0..10 {
        let mut guest = ready();
        guest.send(0, &header(size)[..9]);
        assert_eq!(guest.read8(0, STS), VALID | EXPECT, "size {size}");
        guest.send(0, &header(size)[9..]);
        assert_eq!(guest.read8(0, STS), VALID);
        assert_eq!(guest.write8(0, STS, GO), None);
        assert!(!guest.tis.is_busy());
        assert_eq!(guest.receive(0), fault_response(V2_0, Fault::CommandSize));
    }
}

#[test]
fn the_largest_command_fits() {
    let size = u32::try_from(BUFFER_SIZE).expect("4096");
    let mut guest = ready();
    guest.send(0, &message(size));
    assert_eq!(guest.write8(0, STS, GO), Some(Effect::Execute(Locality::ZERO)));
    assert_eq!(guest.tis.command(), message(size));
    guest.tis.complete(&message(size));
    assert_eq!(guest.receive(0), message(size));
}

#[test]
fn a_size_over_the_buffer_is_swallowed_whole_and_answered_at_once() {
    for size in [4097, 0x1_000a] {
        let mut guest = ready();
        for &byte in message(size).split_last().expect("not empty").1 {
            guest.write8(0, DATA_FIFO, byte);
        }
        assert_eq!(guest.read8(0, STS), VALID | EXPECT);
        assert_eq!(guest.burst(0), 1);
        guest.write8(0, DATA_FIFO, 0);
        assert_eq!(guest.read8(0, STS), VALID);
        assert_eq!(guest.write8(0, STS, GO), None);
        assert_eq!(guest.receive(0), fault_response(V2_0, Fault::CommandSize));
    }
}

#[test]
fn the_size_is_a_whole_u32() {
    for size in [0x1_000a, 0x8000_000a, u32::MAX] {
        let mut guest = ready();
        guest.send(0, &header(size));
        assert_eq!(guest.read8(0, STS), VALID | EXPECT, "{size:#x} is not 10");
        assert_eq!(guest.burst(0), 248);
        assert_eq!(guest.write8(0, STS, GO), None);
        guest.write8(0, STS, COMMAND_READY);
        assert_eq!(guest.read8(0, STS), COMMAND_READY);
    }
}

#[test]
fn a_tpm_1_2_answers_a_bad_size_in_its_own_words() {
    let mut guest = Guest::new(TpmVersion::V1_2);
    guest.write8(0, ACCESS, REQUEST_USE);
    guest.write8(0, STS, COMMAND_READY);
    guest.send(0, &header(3));
    guest.write8(0, STS, GO);
    assert_eq!(guest.receive(0), fault_response(TpmVersion::V1_2, Fault::CommandSize));
}

#[test]
fn a_response_that_is_not_whole_becomes_a_failure() {
    let too_long = vec![0; BUFFER_SIZE + 1];
    let whole_but_too_long = message(u32::try_from(BUFFER_SIZE).expect("4096") + 1);
    let bad: [&[u8]; 6] = [&[], &message(10)[..9], &message(20)[..19], &header(9), &too_long, &whole_but_too_long];
    for response in bad {
        let mut guest = Guest::executing(0, &message(12));
        guest.tis.complete(response);
        assert_eq!(guest.receive(0), fault_response(V2_0, Fault::Failure));
    }
}

#[test]
fn completion_without_a_command_is_ignored() {
    let mut guest = Guest::owning(0);
    guest.tis.complete(&message(20));
    assert_eq!(guest.read8(0, STS), 0);
    guest.write8(0, STS, COMMAND_READY);
    guest.tis.complete(&message(20));
    assert_eq!(guest.read8(0, STS), COMMAND_READY);
    guest.send(0, &message(12));
    guest.tis.complete(&message(20));
    guest.write8(0, STS, GO);
    assert_eq!(guest.tis.command(), message(12));
    guest.tis.complete(&message(20));
    guest.tis.complete(&message(30));
    assert_eq!(guest.receive(0), message(20));
}
