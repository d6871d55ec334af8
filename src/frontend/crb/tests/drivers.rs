//! The access sequences of the drivers that guests run, as their sources show them.

use super::*;

/// A driver's way of sending a command, of which it is told when START starts it, and of reading the response.
fn round_trip(send: fn(&mut Guest, &[u8]) -> Option<Effect>, receive: fn(&mut Guest) -> Vec<u8>) {
    let mut guest = Guest::new();
    for size in [10, 11, 12, 64, 500, 512, 1000, 4096] {
        assert_eq!(send(&mut guest, &message(size)), Some(Effect::Execute(Locality::ZERO)));
        assert_eq!(guest.crb.command(), message(size));
        assert_eq!(guest.read32(0, CTRL_START), 1, "it runs");
        guest.crb.complete(&message(4106 - size));
        assert_eq!(receive(&mut guest), message(4106 - size), "response of {}", 4106 - size);
    }
}

mod linux {
    //! `drivers/char/tpm/tpm_crb.c`: the buffer is mapped, everything else is accesses of 32 bits.

    use super::*;

    const ASSIGNED_AND_VALID: u32 = 0x82;

    /// `__crb_request_locality`: the state of its own page, as far as Linux looks.
    fn request_locality(guest: &mut Guest) {
        assert_eq!(guest.write32(0, LOC_CTRL, REQUEST_ACCESS), None);
        assert_eq!(guest.read32(0, LOC_STATE) & ASSIGNED_AND_VALID, ASSIGNED_AND_VALID);
    }

    /// `__crb_cmd_ready`, `__crb_go_idle`: the bit has to clear within 200 ms.
    fn request(guest: &mut Guest, bit: u32) {
        assert_eq!(guest.write32(0, CTRL_REQ, bit), None);
        assert_eq!(guest.read32(0, CTRL_REQ) & bit, 0);
    }

    /// `tpm_try_transmit` up to `crb_send`, which takes back an old cancellation first.
    fn send(guest: &mut Guest, command: &[u8]) -> Option<Effect> {
        request_locality(guest);
        request(guest, CMD_READY);
        assert_eq!(guest.write32(0, CTRL_CANCEL, 0), None);
        guest.start(0, command)
    }

    /// `crb_recv`: eight bytes, then the rest of what their size field says.
    fn receive(guest: &mut Guest) -> Vec<u8> {
        assert_eq!(guest.read32(0, CTRL_START) & 1, 0, "crb_status");
        assert_eq!(guest.read32(0, CTRL_STS) & 1, 0, "no error");
        let begin = guest.buffer(8);
        let size = u32::from_be_bytes(begin[2..6].try_into().expect("four bytes"));
        let response = guest.buffer(size.try_into().expect("small")).to_vec();
        request(guest, GO_IDLE);
        assert_eq!(guest.write32(0, LOC_CTRL, RELINQUISH), None);
        assert_eq!(guest.read32(0, LOC_STATE) & ASSIGNED_AND_VALID, 0x80);
        response
    }

    #[test]
    fn commands_and_responses_of_any_size_go_through() {
        round_trip(send, receive);
    }

    /// `crb_map_io`.
    #[test]
    fn probing_finds_the_buffer() {
        let mut guest = Guest::new();
        request_locality(&mut guest);
        request(&mut guest, CMD_READY);
        let address = u64::from(guest.read32(0, CTRL_CMD_HADDR)) << 32 | u64::from(guest.read32(0, CTRL_CMD_LADDR));
        assert_eq!(address, u64::from(BAR0 + COMMAND_BUFFER.offset));
        assert_eq!(guest.read32(0, CTRL_CMD_SIZE), 0x1000);
        assert_eq!(u64::from_le_bytes(guest.read(0, CTRL_RSP_ADDR)), address);
        assert_eq!(guest.read32(0, CTRL_RSP_SIZE), 0x1000, "equal sizes at one address");
        request(&mut guest, GO_IDLE);
        guest.write32(0, LOC_CTRL, RELINQUISH);
    }

    /// `crb_cancel` and `crb_req_canceled`.
    #[test]
    fn a_cancelled_command_ends_and_is_known_as_cancelled() {
        let mut guest = Guest::new();
        send(&mut guest, &message(20));
        assert_eq!(guest.write32(0, CTRL_CANCEL, 1), Some(Effect::Cancel));
        assert_eq!(guest.read32(0, CTRL_START), 1, "not yet");
        guest.crb.complete(&message(10));
        assert_eq!(guest.read32(0, CTRL_START), 0);
        assert_eq!(guest.read32(0, CTRL_CANCEL) & 1, 1, "crb_req_canceled");
        assert_eq!(receive(&mut guest), message(10));
        assert_eq!(send(&mut guest, &message(20)), Some(Effect::Execute(Locality::ZERO)));
        assert_eq!(guest.read32(0, CTRL_CANCEL), 0);
    }
}

mod edk2 {
    //! `SecurityPkg/Library/Tpm2DeviceLibDTpm/Tpm2Ptp.c`, with the buffer byte by byte where the registers say it is.

    use super::*;

    const DATA: u64 = COMMAND_BUFFER.offset as u64;

    fn send(guest: &mut Guest, command: &[u8]) -> Option<Effect> {
        assert_ne!(guest.read::<1>(0, LOC_STATE), [0xff], "present");
        guest.write32(0, LOC_CTRL, REQUEST_ACCESS);
        assert_eq!(guest.read32(0, LOC_STS) & 1, 1, "granted");
        assert_eq!(guest.read32(0, CTRL_STS) & IDLE, IDLE, "without CapCRBIdleBypass");
        guest.write32(0, CTRL_REQ, CMD_READY);
        assert_eq!(guest.read32(0, CTRL_REQ) & CMD_READY, 0);
        assert_eq!(guest.read32(0, CTRL_STS) & IDLE, 0);
        for (at, &byte) in (DATA..).zip(command) {
            assert_eq!(guest.write(0, at, &[byte]), None);
        }
        // It tells the TPM what the TPM has told it.
        guest.write32(0, CTRL_CMD_HADDR, 0);
        guest.write32(0, CTRL_CMD_LADDR, BAR0 + COMMAND_BUFFER.offset);
        guest.write32(0, CTRL_CMD_SIZE, 0xf80);
        guest.write(0, CTRL_RSP_ADDR, &u64::from(BAR0).to_le_bytes());
        guest.write32(0, CTRL_RSP_SIZE, 0xf80);
        guest.write32(0, CTRL_START, 1)
    }

    fn receive(guest: &mut Guest) -> Vec<u8> {
        assert_eq!(guest.read32(0, CTRL_START) & 1, 0);
        let mut response: Vec<u8> = (DATA..DATA + 10).map(|at| guest.read::<1>(0, at)[0]).collect();
        let size = Header::parse(&response).expect("ten bytes").size;
        response.extend((DATA + 10..DATA + u64::from(size)).map(|at| guest.read::<1>(0, at)[0]));
        guest.write32(0, CTRL_REQ, GO_IDLE);
        response
    }

    #[test]
    fn commands_and_responses_of_any_size_go_through() {
        round_trip(send, receive);
    }

    #[test]
    fn the_interface_is_recognised_as_crb() {
        let guest = Guest::new();
        let id = guest.read32(0, INTF_ID);
        assert_eq!(id & 0xff, 0x11, "type and version: CRB");
        assert_ne!(id & 1 << 14, 0, "CapCRB");
        assert_eq!(id & 1 << 9, 0, "no CapCRBIdleBypass");
        assert_eq!(guest.read32(0, INTF_ID + 4), 0x0001_1014, "vendor and device");
    }

    #[test]
    fn a_command_that_takes_too_long_is_cancelled_and_still_answers() {
        let mut guest = Guest::new();
        send(&mut guest, &message(20));
        assert_eq!(guest.write32(0, CTRL_CANCEL, 1), Some(Effect::Cancel));
        guest.crb.complete(&message(10));
        assert_eq!(guest.read32(0, CTRL_START), 0);
        guest.write32(0, CTRL_CANCEL, 0);
        assert_eq!(receive(&mut guest), message(10));
    }
}

mod seabios {
    //! `src/hw/tpm_drivers.c`: looks for the buffer before it asks for the TPM, writes single bytes to LOC_CTRL, and gets
    //! ready again after each command instead of idle.

    use super::*;

    fn send(guest: &mut Guest, command: &[u8]) -> Option<Effect> {
        guest.write(0, LOC_CTRL, &[1]);
        guest.write32(0, CTRL_REQ, CMD_READY);
        assert_eq!(guest.read32(0, CTRL_REQ) & CMD_READY, 0);
        guest.start(0, command)
    }

    fn receive(guest: &mut Guest) -> Vec<u8> {
        assert_eq!(guest.read32(0, CTRL_START) & 1, 0);
        assert_eq!(guest.read32(0, CTRL_STS) & 1, 0);
        let size = Header::parse(guest.buffer(10)).expect("ten bytes").size;
        let response = guest.buffer(size.try_into().expect("small")).to_vec();
        guest.write32(0, CTRL_REQ, CMD_READY);
        response
    }

    /// `crb_probe`, `crb_init`.
    #[test]
    fn the_tpm_is_found_without_a_locality_and_its_interface_locked() {
        let mut guest = Guest::new();
        let id = guest.read32(0, INTF_ID);
        assert_eq!((id & 0xf, id >> 17 & 0b11), (1, 1), "CRB, and selected");
        guest.write32(0, INTF_ID, 1 << 17);
        guest.write32(0, INTF_ID, 1 << 19);
        assert_eq!(guest.read32(0, INTF_ID), id | 1 << 19);
        assert_eq!(guest.read32(0, CTRL_CMD_HADDR), 0);
        assert_eq!(guest.read32(0, CTRL_CMD_LADDR), BAR0 + COMMAND_BUFFER.offset);
        assert_eq!(guest.read32(0, CTRL_CMD_SIZE), 0x1000);
        assert_eq!(u64::from_le_bytes(guest.read(0, CTRL_RSP_ADDR)), u64::from(BAR0 + COMMAND_BUFFER.offset));
    }

    #[test]
    fn commands_and_responses_of_any_size_go_through() {
        round_trip(send, receive);
    }
}

mod in_a_row {
    //! QEMU needs no cmdReady between commands, and drivers written against it might not write it.

    use super::*;

    fn send(guest: &mut Guest, command: &[u8]) -> Option<Effect> {
        if guest.read32(0, LOC_STS) & 1 == 0 {
            guest.write32(0, LOC_CTRL, REQUEST_ACCESS);
            guest.write32(0, CTRL_REQ, CMD_READY);
        }
        guest.start(0, command)
    }

    fn receive(guest: &mut Guest) -> Vec<u8> {
        let size = Header::parse(guest.buffer(10)).expect("ten bytes").size;
        guest.buffer(size.try_into().expect("small")).to_vec()
    }

    #[test]
    fn commands_and_responses_of_any_size_go_through() {
        round_trip(send, receive);
    }
}
