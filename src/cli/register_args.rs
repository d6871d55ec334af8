//! The arguments that say what a guest may do with the registers.

use clap::Args;

use crate::acpi::{Interface, TpmDevice};
use crate::frontend::crb::{Crb, CrbConfig, CrbDoorbell};
use crate::frontend::tis::{Tis, TisConfig};
use crate::frontend::{RegisterFile, Registers};
use crate::pci::Identity;
use crate::shared_pages::SharedPages;

#[derive(Clone, Copy, Debug, Args)]
pub(super) struct RegisterArgs {
    /// Let the guest use locality 4, which belongs to the hardware. For tests only: with it a guest can
    /// pretend to have been launched anew
    #[arg(long)]
    pub(super) guest_locality_4: bool,

    /// Offer no memory of a CRB for mapping, so that every access traps: for VMMs in which mapping makes trouble
    #[arg(long)]
    no_mmap: bool,
}

impl RegisterArgs {
    /// The device's registers as after power-on.
    pub(super) fn registers(self, device: &TpmDevice) -> Registers<SharedPages> {
        let Self { guest_locality_4, no_mmap } = self;
        let Identity { vendor_id, device_id, revision_id: revision, .. } = device.identity();
        let crb = CrbConfig { vendor_id, device_id, revision, guest_locality_4 };
        let pages = || if no_mmap { SharedPages::unmappable() } else { SharedPages::new() };
        let file = match device.interface() {
            Interface::Tis => {
                let version = device.version();
                let tis = Tis::new(TisConfig { version, vendor_id, device_id, revision, guest_locality_4 });
                // QEMU posts no writes to a region that it maps a part of, and this interface lives on writes.
                RegisterFile::Tis(tis, SharedPages::unmappable())
            }
            Interface::Crb => RegisterFile::Crb(Crb::new(crb, pages())),
            Interface::CrbDoorbell => RegisterFile::CrbDoorbell(CrbDoorbell::new(crb, pages())),
        };
        if device.has_log() { Registers::new(file) } else { Registers::without_log(file) }
    }
}
