//! The access sequences of the drivers that guests run, as their sources show them.

use super::*;

/// A driver's way of sending a command, of which it is told when `tpmGo` starts it, and of reading the response.
fn round_trip(send: fn(&mut Guest, &[u8]) -> Option<Effect>, receive: fn(&mut Guest) -> Vec<u8>) {
    let mut guest = Guest::new(TpmVersion::V2_0);
    for size in [10, 11, 12, 64, 247, 248, 249, 256, 257, 512, 1000, 4096] {
        assert_eq!(send(&mut guest, &message(size)), Some(Effect::Execute(Locality::ZERO)));
        assert_eq!(guest.tis.command(), message(size));
        guest.tis.complete(&message(4106 - size));
        assert_eq!(receive(&mut guest), message(4106 - size), "response of {}", 4106 - size);
    }
}

mod linux {
    //! `drivers/char/tpm/tpm_tis_core.c`: bytes on the FIFO, `burstCount` from a 32-bit read.

    use super::*;

    /// `tpm_tis_status`: one byte, of which three bits must be 0.
    fn status(guest: &mut Guest) -> u8 {
        let status = guest.read8(0, STS);
        assert_eq!(status & 0x23, 0, "Linux dumps its stack");
        status
    }

    fn burst_count(guest: &mut Guest) -> usize {
        let burst = guest.burst(0);
        assert_ne!(burst, 0, "Linux would wait");
        burst
    }

    /// `tpm_tis_request_locality`, with the check whether it was granted.
    fn request_locality(guest: &mut Guest) {
        guest.write8(0, ACCESS, REQUEST_USE);
        assert_eq!(guest.read8(0, ACCESS) & 0xa2, 0xa0);
    }

    /// `tpm_tis_send_main`: all but the last byte in bursts, `Expect` checked after each.
    fn send(guest: &mut Guest, command: &[u8]) -> Option<Effect> {
        request_locality(guest);
        if status(guest) & COMMAND_READY == 0 {
            assert_eq!(guest.write8(0, STS, COMMAND_READY), None);
            assert_ne!(status(guest) & COMMAND_READY, 0);
        }
        let (last, mut rest) = command.split_last().expect("a command");
        while !rest.is_empty() {
            let (burst, after) = rest.split_at(burst_count(guest).min(rest.len()));
            guest.send(0, burst);
            assert_eq!(status(guest) & (VALID | EXPECT), VALID | EXPECT);
            rest = after;
        }
        guest.write8(0, DATA_FIFO, *last);
        assert_eq!(status(guest) & (VALID | EXPECT), VALID);
        let effect = guest.write8(0, STS, GO);
        assert_eq!(status(guest) & DATA_AVAIL, 0);
        effect
    }

    /// `recv_data`.
    fn read(guest: &mut Guest, count: usize) -> Vec<u8> {
        let mut data = Vec::new();
        while data.len() < count {
            assert_eq!(status(guest) & (VALID | DATA_AVAIL), VALID | DATA_AVAIL);
            let burst = burst_count(guest).min(count - data.len());
            data.extend((0..burst).map(|_| guest.read8(0, DATA_FIFO)));
        }
        data
    }

    /// `tpm_tis_recv`: the header, the rest by its size, and then nothing may be left.
    fn receive(guest: &mut Guest) -> Vec<u8> {
        let mut response = read(guest, 10);
        let size = Header::parse(&response).expect("ten bytes").size;
        response.extend(read(guest, usize::try_from(size).expect("small") - 10));
        assert_eq!(status(guest) & (VALID | DATA_AVAIL), VALID, "Error left over data");
        guest.write8(0, STS, COMMAND_READY);
        guest.write8(0, ACCESS, RELINQUISH);
        response
    }

    #[test]
    fn commands_and_responses_of_any_size_go_through() {
        round_trip(send, receive);
    }

    #[test]
    fn a_cancelled_command_is_taken_as_cancelled() {
        let mut guest = Guest::new(TpmVersion::V2_0);
        send(&mut guest, &message(20));
        assert_eq!(guest.write8(0, STS, COMMAND_READY), Some(Effect::Cancel));
        // The poll loop takes neither for an end: complete is 0x90, cancelled is exactly 0x40.
        let waiting = status(&mut guest);
        assert_ne!(waiting & (VALID | DATA_AVAIL), VALID | DATA_AVAIL);
        assert_ne!(waiting, COMMAND_READY);
        guest.tis.complete(&message(10));
        assert_eq!(status(&mut guest), COMMAND_READY);
        guest.write8(0, ACCESS, RELINQUISH);
        assert_eq!(send(&mut guest, &message(20)), Some(Effect::Execute(Locality::ZERO)));
    }

    #[test]
    fn a_damaged_response_is_read_again_with_response_retry() {
        let mut guest = Guest::new(TpmVersion::V2_0);
        send(&mut guest, &message(20));
        guest.tis.complete(&message(400));
        read(&mut guest, 400);
        guest.write8(0, STS, RESPONSE_RETRY);
        assert_eq!(receive(&mut guest), message(400));
    }

    #[test]
    fn probing_switches_interrupts_off_and_reads_the_identity() {
        let mut guest = Guest::new(TpmVersion::V2_0);
        assert_eq!(guest.read32(0, DID_VID), 0x0001_1014);
        assert_ne!(guest.read8(0, ACCESS) & 0x80, 0);
        let enable = guest.read32(0, INT_ENABLE);
        request_locality(&mut guest);
        guest.write32(0, INT_ENABLE, (enable | 0x87) & 0x7fff_ffff);
        assert_eq!(guest.read32(0, INT_ENABLE), 0x8f);
        guest.write8(0, ACCESS, RELINQUISH);
        assert_eq!(guest.read8(0, ACCESS), 0x81);
    }
}

mod edk2 {
    //! `SecurityPkg/Library/Tpm2DeviceLibDTpm`: `burstCount` from two single bytes.

    use super::*;

    fn burst_count(guest: &mut Guest) -> u16 {
        let burst = u16::from_le_bytes([guest.read8(0, STS + 1), guest.read8(0, STS + 2)]);
        assert_ne!(burst, 0, "edk2 would wait");
        burst
    }

    /// `TisPcRequestUseTpm`, `TisPcPrepareCommand` and the first half of `Tpm2TisTpmCommand`: up to `burstCount`
    /// bytes in a row, the last ones too, then `Expect` must be clear.
    fn send(guest: &mut Guest, command: &[u8]) -> Option<Effect> {
        guest.write8(0, ACCESS, REQUEST_USE);
        assert_eq!(guest.read8(0, ACCESS) & 0xa0, 0xa0);
        guest.write8(0, STS, COMMAND_READY);
        assert_ne!(guest.read8(0, STS) & COMMAND_READY, 0);
        let mut rest = command;
        while !rest.is_empty() {
            let (burst, after) = rest.split_at(usize::from(burst_count(guest)).min(rest.len()));
            guest.send(0, burst);
            rest = after;
        }
        assert_eq!(guest.read8(0, STS) & (VALID | EXPECT), VALID);
        guest.write8(0, STS, GO)
    }

    /// The second half: what is left of a burst after the header goes on with the body.
    fn receive(guest: &mut Guest) -> Vec<u8> {
        assert_eq!(guest.read8(0, STS) & (VALID | DATA_AVAIL), VALID | DATA_AVAIL);
        let mut response = Vec::new();
        let mut burst = 0;
        let mut size = 10;
        while response.len() < size {
            if burst == 0 {
                burst = burst_count(guest);
            }
            response.push(guest.read8(0, DATA_FIFO));
            burst -= 1;
            if response.len() == 10 {
                let header = Header::parse(&response).expect("ten bytes");
                size = usize::try_from(header.size).expect("small");
            }
        }
        guest.write8(0, STS, COMMAND_READY);
        response
    }

    #[test]
    fn commands_and_responses_of_any_size_go_through() {
        round_trip(send, receive);
    }

    #[test]
    fn the_interface_is_recognised_as_ptp_fifo() {
        let mut guest = Guest::new(TpmVersion::V2_0);
        assert_ne!(guest.read8(0, ACCESS), 0xff, "present");
        let id = guest.read32(0, INTERFACE_ID);
        assert_eq!(id & 0xff, 0, "type and version: FIFO");
        assert_ne!(id & 1 << 13, 0, "CapFIFO");
        assert_eq!(guest.read32(0, INTF_CAPABILITY) >> 28 & 7, 3, "PTP");
    }

    #[test]
    fn a_command_that_takes_too_long_is_cancelled_and_still_answers() {
        let mut guest = Guest::new(TpmVersion::V2_0);
        send(&mut guest, &message(20));
        assert_eq!(guest.write32(0, STS, COMMAND_CANCEL), Some(Effect::Cancel));
        guest.tis.complete(&message(10));
        assert_eq!(receive(&mut guest), message(10));
    }
}

mod seabios {
    //! `src/hw/tpm_drivers.c`: releases every locality first, reads `burstCount` as the upper bytes of a 32-bit read
    //! cut to 16 bits, looks at `dataAvail` after each byte.

    use super::*;

    fn probe(guest: &mut Guest) {
        assert_ne!(guest.read32(0, ACCESS) & 0x80, 0);
        assert!(![0, u32::MAX].contains(&guest.read32(0, DID_VID)));
        let id = guest.read32(0, INTERFACE_ID);
        assert_eq!(id & 0xf, 0);
        assert_ne!(id & 1 << 13, 0);
        guest.write32(0, INTERFACE_ID, 0);
        guest.write32(0, INTERFACE_ID, 1 << 19);
        guest.write8(0, INT_ENABLE, 0);
    }

    fn send(guest: &mut Guest, command: &[u8]) -> Option<Effect> {
        if guest.read8(0, ACCESS) & 0x20 == 0 {
            for number in (0..5).rev() {
                assert_eq!(guest.write8(number, ACCESS, RELINQUISH), None);
            }
        }
        guest.write8(0, ACCESS, REQUEST_USE);
        assert_ne!(guest.read8(0, ACCESS) & 0x20, 0);
        guest.write8(0, STS, COMMAND_READY);
        assert_eq!(guest.read8(0, STS) & COMMAND_READY, COMMAND_READY);
        let mut rest = command;
        while !rest.is_empty() {
            let burst = usize::try_from(guest.read32(0, STS) >> 8 & 0xffff).expect("16 bits");
            assert_ne!(burst, 0, "SeaBIOS would wait");
            let (now, after) = rest.split_at(burst.min(rest.len()));
            guest.send(0, now);
            rest = after;
        }
        assert_eq!(guest.read8(0, STS) & VALID, VALID);
        guest.write8(0, STS, GO)
    }

    fn receive(guest: &mut Guest) -> Vec<u8> {
        assert_ne!(guest.read8(0, STS) & DATA_AVAIL, 0);
        let mut response = Vec::new();
        loop {
            response.push(guest.read8(0, DATA_FIFO));
            if guest.read8(0, STS) & DATA_AVAIL == 0 {
                break;
            }
        }
        guest.write8(0, STS, COMMAND_READY);
        response
    }

    #[test]
    fn the_tpm_is_found_and_its_interface_locked() {
        let mut guest = Guest::new(TpmVersion::V2_0);
        probe(&mut guest);
        assert_eq!(guest.read32(0, INTERFACE_ID), 0x8_2100);
    }

    #[test]
    fn commands_and_responses_of_any_size_go_through() {
        round_trip(send, receive);
    }

    #[test]
    fn a_locality_left_active_is_released_first() {
        let mut guest = Guest::owning(2);
        assert_eq!(send(&mut guest, &message(12)), Some(Effect::Execute(Locality::ZERO)));
    }
}
