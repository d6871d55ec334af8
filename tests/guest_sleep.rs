//! What becomes of the TPM when the guest sleeps.

mod common;
mod guest;

use std::ffi::OsString;

use common::server::Server;
use guest::{Guest, GuestConfig, Tpm};

const TPM: Tpm = Tpm::V2_0;

fn boot(qemu_args: Vec<OsString>) -> Guest {
    Guest::boot(&GuestConfig { qemu_args, ..GuestConfig::default() })
}

#[test]
fn with_s3_switched_off_a_guest_that_sleeps_keeps_its_pcrs() {
    let server = Server::start();
    let mut guest = boot(server.qemu_args());
    // "deep" would be S3, which cannot be had: "mem" is the sleep in which no power is cut.
    assert_eq!(guest.check("cat /sys/power/mem_sleep"), "[s2idle]\n");
    assert_ne!(guest.run("echo deep >/sys/power/mem_sleep").status, 0);
    TPM.extend(&mut guest, 16, "before sleep");
    let (pcr_10, pcr_16) = (TPM.pcr(&mut guest, 10), TPM.pcr(&mut guest, 16));

    assert_eq!(guest.suspend_to_idle().status, 0);

    assert_eq!(guest.check("cat /sys/power/suspend_stats/success"), "1\n");
    assert_ne!(pcr_16, TPM.zero());
    assert_eq!(TPM.pcr(&mut guest, 16), pcr_16);
    assert_eq!(TPM.pcr(&mut guest, 10), pcr_10);
    guest.check("tpm2_getrandom --hex 8");
    guest.quit();
}

/// Why it has to be switched off: QEMU resets its devices when a guest wakes from S3, and the TPM cannot tell that from a
/// reboot. Linux has sent TPM2_Shutdown(STATE) and expects its firmware to resume the TPM; it finds one whose PCRs are
/// cleared (and IMA's measurements with them), and could replay others.
#[test]
fn without_the_switch_a_wake_from_s3_clears_the_pcrs_of_a_running_guest() {
    let server = Server::start();
    let mut qemu_args = server.qemu_args();
    let switch = qemu_args.pop().expect("arguments");
    assert_eq!((qemu_args.pop(), switch), (Some("-global".into()), "ICH9-LPC.disable_s3=1".into()));
    let mut guest = boot(qemu_args);
    assert_eq!(guest.check("cat /sys/power/mem_sleep"), "s2idle [deep]\n");
    assert_ne!(TPM.pcr(&mut guest, 10), TPM.zero());

    assert_eq!(guest.suspend_to_ram().status, 0);

    assert_eq!(TPM.pcr(&mut guest, 10), TPM.zero());
    guest.quit();
}
