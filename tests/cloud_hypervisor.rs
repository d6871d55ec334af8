//! What Cloud Hypervisor does with the device, in its order (`pci/src/vfio_user.rs` and `vfio.rs` of its source), by the client that
//! it uses, the `vfio_user` crate's. The program itself is not run.

mod common;

use std::os::fd::AsRawFd;

use common::server::Server;
use common::tpm_commands::{RC_SUCCESS, code_of, digest_of, pcr_extend, pcr_read};
use vfio_user::Client;

const CONFIG: u32 = 7;
const BAR0: u32 = 0;
const INTX: u32 = 0;

const COMMAND: u64 = 0x04;
const STATUS: u64 = 0x06;
const CAPABILITIES_LIST: u16 = 1 << 4;
const FIRST_BAR: u64 = 0x10;
const ROM: u64 = 0x30;

/// The machine, as far as it has to do with the device.
struct Machine(Client);

impl Machine {
    /// As at its start: of a reboot, too, for which the machine and its connection are made anew.
    fn start(server: &Server) -> Self {
        let mut client = Client::new(&server.socket()).expect("the server is there");
        // It never is, to this client: it reads the flag the wrong way round.
        if client.resettable() {
            client.reset().expect("reset");
        }
        Self(client)
    }

    fn config_dword(&mut self, offset: u64) -> u32 {
        let mut bytes = [0; 4];
        self.0.region_read(CONFIG, offset, &mut bytes).expect("configuration space");
        u32::from_le_bytes(bytes)
    }

    fn config_word(&mut self, offset: u64) -> u16 {
        let mut bytes = [0; 2];
        self.0.region_read(CONFIG, offset, &mut bytes).expect("configuration space");
        u16::from_le_bytes(bytes)
    }

    /// The bits of an address that can be written. The ones stay there: the guest's addresses are kept elsewhere.
    fn address_mask(&mut self, offset: u64) -> u32 {
        self.0.region_write(CONFIG, offset, &[0xff; 4]).expect("configuration space");
        self.config_dword(offset) & !0xf
    }

    fn read(&mut self, register: u64) -> u8 {
        let mut byte = [0];
        self.0.region_read(BAR0, register, &mut byte).expect("BAR0");
        byte[0]
    }

    fn write(&mut self, register: u64, value: u8) {
        self.0.region_write(BAR0, register, &[value]).expect("BAR0");
    }

    /// Runs a command as the guest's driver for TIS does.
    fn run(&mut self, command: &[u8]) -> Vec<u8> {
        const ACCESS: u64 = 0x00;
        const STS: u64 = 0x18;
        const DATA_FIFO: u64 = 0x24;
        self.write(ACCESS, 0x02); // requestUse
        self.write(STS, 0x40); // commandReady
        while self.read(STS) & 0x40 == 0 {}
        for byte in command {
            self.write(DATA_FIFO, *byte);
        }
        self.write(STS, 0x20); // tpmGo
        while self.read(STS) & 0x90 != 0x90 {} // stsValid, dataAvail
        let mut response = Vec::new();
        while self.read(STS) & 0x10 != 0 {
            response.push(self.read(DATA_FIFO));
        }
        response
    }
}

fn server() -> Server {
    Server::with_args(&["--machine=cloud-hypervisor".into()])
}

#[test]
fn it_finds_one_memory_bar_and_no_interrupt_capability_or_rom() {
    let server = server();
    let mut machine = Machine::start(&server);
    assert_eq!(machine.config_word(STATUS) & CAPABILITIES_LIST, 0);
    assert_eq!(machine.0.get_irq_info(INTX).expect("information").count, 0);
    // Neither in I/O space, nor of 64 bits, nor prefetchable.
    assert_eq!(machine.config_dword(FIRST_BAR) & 0xf, 0);
    let masks: Vec<_> = (0..6).map(|bar| machine.address_mask(FIRST_BAR + 4 * bar)).collect();
    assert_eq!(masks, [0xfffe_0000, 0, 0, 0, 0, 0]);
    assert_eq!(machine.address_mask(ROM), 0);
    let region = machine.0.region(BAR0).expect("BAR0");
    assert_eq!((region.size, region.flags), (0x2_0000, 3), "all of it is trapped");
}

#[test]
fn its_guest_uses_the_tpm_whatever_was_left_in_the_bar_and_finds_it_reset_after_a_reboot() {
    let server = server();
    for _ in 0..2 {
        let mut machine = Machine::start(&server);
        machine.address_mask(FIRST_BAR);
        let memory = tempfile::tempfile().expect("temporary file");
        machine.0.dma_map(0, 0, 0x10_0000, memory.as_raw_fd()).expect("guest memory");
        // What _CRS does.
        machine.0.region_write(CONFIG, COMMAND, &[0x02, 0x00]).expect("configuration space");
        assert_eq!(digest_of(&machine.run(&pcr_read(16))), [0; 32]);
        assert_eq!(code_of(&machine.run(&pcr_extend(16, [1; 32]))), RC_SUCCESS);
        assert_ne!(digest_of(&machine.run(&pcr_read(16))), [0; 32]);
    }
}
