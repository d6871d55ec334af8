//! What happens to a TPM behind a root port, or on a bus with hot-plug.

mod common;
mod guest;

use std::ffi::OsString;

use common::server::Server;
use guest::{FIND_PCI_DEVICE, Guest, GuestConfig, Tpm};
use serde_json::{Value, json};

const TPM: Tpm = Tpm::V2_0;

const ROOT_PORT: [&str; 2] = ["-device", "pcie-root-port,id=rp0,bus=pcie.0,addr=06.0,chassis=1"];
const BEHIND_ROOT_PORT: [&str; 2] = ["--pci-address=06.0/00.0", "--force-behind-bridge=rp0"];

/// A server for a TPM behind a root port, and QEMU's arguments.
fn server_behind_root_port() -> (Server, Vec<OsString>) {
    let server = Server::with_args(&BEHIND_ROOT_PORT.map(Into::into));
    let qemu_args = ROOT_PORT.map(Into::into).into_iter().chain(server.qemu_args()).collect();
    (server, qemu_args)
}

/// Gives an id to the TPM in QEMU's arguments, and returns its description as it is then.
fn set_id(qemu_args: &mut [OsString], id: &str) -> Value {
    let argument = qemu_args
        .iter_mut()
        .find(|argument| argument.to_str().is_some_and(|text| text.contains("vfio-user-pci")))
        .expect("the device is among the arguments");
    let mut device: Value = serde_json::from_str(argument.to_str().expect("UTF-8")).expect("JSON");
    device["id"] = json!(id);
    *argument = device.to_string().into();
    device
}

/// Why a place behind a bridge has to be forced. (On the root bus there is no such way: `tests/guest_matrix.rs`.)
#[test]
fn behind_a_root_port_guest_root_resets_the_tpm_alone_by_the_bus() {
    let (_server, qemu_args) = server_behind_root_port();
    let mut guest = Guest::boot(&GuestConfig { qemu_args, ..GuestConfig::default() });
    assert_eq!(guest.check("cat /sys/class/tpm/tpm0/device/firmware_node/path"), "\\_SB_.PCI0.S30_.S00_.TPM_\n");
    assert_ne!(TPM.pcr(&mut guest, 10), TPM.zero());
    assert_eq!(guest.check(&format!("{FIND_PCI_DEVICE} cat $device/reset_method")), "bus\n");

    guest.check(&format!("{FIND_PCI_DEVICE} echo 1 >$device/reset"));

    assert_eq!(TPM.pcr(&mut guest, 10), TPM.zero());
    guest.quit();
}

#[test]
fn behind_a_root_port_the_tpm_can_be_unplugged_and_plugged_in_again() {
    let (server, mut qemu_args) = server_behind_root_port();
    let device = set_id(&mut qemu_args, "tpm");
    let guest = Guest::boot(&GuestConfig { qemu_args, ..GuestConfig::default() });
    unplug_and_plug_in_again(guest, &device);
    drop(server);
}

/// The only bus of this machine has hot-plug.
#[cfg(feature = "full-tests")]
#[test]
fn on_pc_the_tpm_can_be_unplugged_and_plugged_in_again() {
    let server = Server::with_args(&["--machine", "pc"].map(Into::into));
    let mut qemu_args = server.qemu_args();
    let device = set_id(&mut qemu_args, "tpm");
    let guest = Guest::boot(&GuestConfig { machine: "pc", qemu_args, ..GuestConfig::default() });
    unplug_and_plug_in_again(guest, &device);
}

/// What Linux 7.3 does: with the PCI device gone, the ACPI device (whose _STA then says 0) and its driver stay, and the driver
/// fails each command. When the PCI device is back, Linux gives its BAR an address, maybe another one, but does not look at
/// the ACPI device again: nobody evaluates _CRS, so memory decoding stays off and the driver has the old address. The TPM
/// is there for whoever finds it by PCI, and for the driver after a reboot. It has been reset.
#[track_caller]
fn unplug_and_plug_in_again(mut guest: Guest, device: &Value) {
    TPM.write_nv(&mut guest, "kept while unplugged");
    TPM.extend(&mut guest, 16, "before");

    // Twice: what is plugged in is as good as what was there at boot.
    for _ in 0..2 {
        guest.unplug("tpm");
        assert_ne!(guest.run("grep -lx 0x108000 /sys/bus/pci/devices/*/class").status, 0);
        assert_ne!(guest.run("tpm2_getrandom --hex 8").status, 0);
        guest.plug(device);
        guest.check("until grep -qlx 0x108000 /sys/bus/pci/devices/*/class; do usleep 100000; done");
    }

    let response = guest.check(&format!(
        ". /lib/tis.sh && tis_unbind && {FIND_PCI_DEVICE} echo 1 >$device/enable &&
         tis_request 0 && tis_pcr_read 0 16"
    ));
    assert_eq!(response, format!("{}\n", TPM.zero()));

    guest.reboot();
    TPM.assert_nv(&mut guest, "kept while unplugged");
    guest.quit();
}
