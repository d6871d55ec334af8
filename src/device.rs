//! The TPM as a PCI device: configuration space, register file and engine put together behind [`Device`].

use std::time::Instant;

use crate::bar_map;
use crate::engine::Engine;
use crate::frontend::Effect;
use crate::frontend::tis::{Tis, TisConfig};
use crate::pci::{CONFIG_SIZE, ConfigSpace, Identity, MemoryBar};
use crate::vfio_user::{Answer, Device, DeviceFailure, DeviceInfo, Irq, Region, RegionFlags, Ticket};
use vfio_bindings::bindings::vfio as ffi;

/// The default PCI vendor id: no allocation of the PCI-SIG has it, and no driver binds to it.
pub const VENDOR_ID: u16 = 0x7666;
/// The default PCI device id.
pub const DEVICE_ID: u16 = 0x5450;
/// PCI revision id, and `TPM_RID`.
const REVISION_ID: u8 = 1;
/// Encryption controller, other.
const CLASS_CODE: u32 = 0x10_8000;

const BAR0: MemoryBar = match MemoryBar::new(bar_map::SIZE) {
    Some(bar) => bar,
    None => panic!("the BAR's size is a power of two"),
};

/// The identity of a TPM with these ids.
#[must_use]
pub const fn identity(vendor_id: u16, device_id: u16) -> Identity {
    Identity { vendor_id, device_id, revision_id: REVISION_ID, class_code: CLASS_CODE }
}

/// The TPM device.
pub struct TpmDevice {
    config: ConfigSpace,
    registers: Tis,
    engine: Engine,
    reset_on_connect: bool,
}

impl TpmDevice {
    /// A device that begins to start its TPM.
    ///
    /// With `reset_on_connect`, each client finds a TPM as after power-on, whether or not it sends `DEVICE_RESET`.
    #[must_use]
    pub fn new(identity: Identity, registers: TisConfig, engine: Engine, reset_on_connect: bool) -> Self {
        let config = ConfigSpace::new(identity, BAR0);
        let mut device = Self { config, registers: Tis::new(registers), engine, reset_on_connect };
        device.reset();
        device
    }

    /// Why the TPM could not be stopped in order, if so.
    #[must_use]
    pub fn stop_failure(&self) -> Option<&str> {
        self.engine.stop_failure()
    }

    fn carry_out(&mut self, effect: Effect) {
        let now = Instant::now();
        match effect {
            Effect::Execute(locality) => self.engine.execute(locality, self.registers.command(), now),
            Effect::Cancel => self.engine.cancel(now),
            Effect::ResetEstablishment(locality) => self.engine.reset_establishment(locality, now),
        }
        self.take_over();
    }

    /// Shows the guest what the engine has finished.
    fn take_over(&mut self) {
        self.registers.set_establishment(self.engine.established());
        if let Some(response) = self.engine.take_response() {
            self.registers.complete(response);
        }
    }
}

/// Register accesses are the way of every command, byte by byte: no look at the clock, no allocation, no system call,
/// but for the write that starts or cancels a command.
impl Device for TpmDevice {
    fn info(&self) -> DeviceInfo {
        DeviceInfo { regions: ffi::VFIO_PCI_NUM_REGIONS, irqs: ffi::VFIO_PCI_NUM_IRQS }
    }

    fn region(&self, index: u32) -> Region {
        let size = match index {
            ffi::VFIO_PCI_BAR0_REGION_INDEX => u64::from(bar_map::SIZE),
            ffi::VFIO_PCI_CONFIG_REGION_INDEX => CONFIG_SIZE as u64,
            _ => return Region::NONE,
        };
        Region { size, flags: RegionFlags::READ | RegionFlags::WRITE }
    }

    fn irq(&self, index: u32) -> Irq {
        // The device polls: it has no interrupt pin and no MSI. QEMU warns if it cannot register for errors and for
        // the request to give the device back.
        let count = match index {
            ffi::VFIO_PCI_ERR_IRQ_INDEX | ffi::VFIO_PCI_REQ_IRQ_INDEX => 1,
            _ => 0,
        };
        Irq { count, maskable: false, automasked: false }
    }

    fn read(&mut self, index: u32, offset: u64, data: &mut [u8]) -> Answer {
        match index {
            ffi::VFIO_PCI_CONFIG_REGION_INDEX => self.config.read(offset, data),
            ffi::VFIO_PCI_BAR0_REGION_INDEX => self.registers.read(offset, data),
            _ => data.fill(0xff),
        }
        Answer::Now
    }

    fn write(&mut self, index: u32, offset: u64, data: &[u8]) -> Answer {
        match index {
            ffi::VFIO_PCI_CONFIG_REGION_INDEX => self.config.write(offset, data),
            ffi::VFIO_PCI_BAR0_REGION_INDEX => {
                if let Some(effect) = self.registers.write(offset, data) {
                    self.carry_out(effect);
                }
            }
            _ => {}
        }
        Answer::Now
    }

    fn resume(&mut self, _ticket: Ticket, data: &mut [u8], _must_answer: bool) -> Answer {
        // No access is answered later yet.
        data.fill(0xff);
        Answer::Now
    }

    fn reset(&mut self) {
        self.config.reset();
        self.registers.reset();
        self.engine.reset(Instant::now());
        self.take_over();
    }

    fn connected(&mut self) {
        if self.reset_on_connect {
            self.reset();
        }
    }

    fn wake(&mut self) {
        self.engine.poll(Instant::now());
        self.take_over();
    }

    fn deadline(&self) -> Option<Instant> {
        self.engine.deadline()
    }

    fn stop(&mut self) {
        self.engine.stop(Instant::now());
    }

    fn stopped(&self) -> bool {
        self.engine.is_off()
    }

    fn take_failure(&mut self) -> Option<DeviceFailure> {
        self.engine.start_failure().map(|reason| format!("the TPM cannot start: {reason}").into())
    }
}
