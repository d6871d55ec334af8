//! What becomes of the TPM when QEMU puts a guest back to an earlier moment.
#![cfg(feature = "full-tests")]

mod common;
mod guest;

use std::fs;
use std::path::Path;

use common::server::Server;
use guest::{FIND_PCI_DEVICE, Guest, GuestConfig, Tpm};
use serde_json::json;

const TPM: Tpm = Tpm::V2_0;

/// QEMU neither saves nor refuses to save the device. It resets it and leaves it so: BAR0 has no address, and the guest,
/// which is where it was before, finds ones in the place of its TPM until it boots again.
#[test]
fn after_loadvm_a_guest_is_without_its_tpm_until_its_next_boot() {
    let server = Server::start();
    let folder = tempfile::tempdir().unwrap();
    let image = folder.path().join("snapshots.qcow2");
    make_image(&image);
    let mut qemu_args = server.qemu_args();
    qemu_args.extend(["-drive".into(), format!("if=none,id=d,format=qcow2,file={}", image.display()).into()]);
    let mut guest = Guest::boot(&GuestConfig { qemu_args, ..GuestConfig::default() });
    let monitor = |guest: &mut Guest, line: &str| {
        let said = guest.monitor("human-monitor-command", &json!({ "command-line": line }));
        assert_eq!(said, "", "{line}");
    };
    TPM.extend(&mut guest, 16, "measured");
    monitor(&mut guest, "savevm one");
    guest.check("tpm2_getrandom --hex 8");

    monitor(&mut guest, "loadvm one");

    assert_ne!(guest.run("tpm2_getrandom --hex 8").status, 0);
    // Command register and BAR0, which the guest's kernel has not touched.
    let config =
        guest.check(&format!("{FIND_PCI_DEVICE} xxd -p -s 4 -l 2 $device/config; xxd -p -s 16 -l 4 $device/config"));
    assert_eq!(config, "0000\n00000000\n");

    guest.reboot();
    guest.check("tpm2_getrandom --hex 8");
    assert_eq!(TPM.pcr(&mut guest, 16), TPM.zero());
    guest.quit();
}

/// A disk with nothing on it but room for snapshots. Source: QEMU's docs/interop/qcow2.txt, version 2.
fn make_image(path: &Path) {
    const CLUSTER: usize = 1 << 16;
    let mut image = vec![0; 4 * CLUSTER];
    let mut put = |at: usize, bytes: &[u8]| image[at..at + bytes.len()].copy_from_slice(bytes);
    let offset = |cluster: usize| ((cluster * CLUSTER) as u64).to_be_bytes();
    put(0, b"QFI\xfb");
    put(4, &2_u32.to_be_bytes());
    // Bits of a cluster's size, bytes of the disk, entries and place of the L1 table.
    put(20, &16_u32.to_be_bytes());
    put(24, &(1_u64 << 20).to_be_bytes());
    put(36, &1_u32.to_be_bytes());
    put(40, &offset(3));
    // Place and clusters of the refcount table, which has one block.
    put(48, &offset(1));
    put(56, &1_u32.to_be_bytes());
    put(CLUSTER, &offset(2));
    for cluster in 0..4 {
        put(2 * CLUSTER + 2 * cluster, &1_u16.to_be_bytes());
    }
    fs::write(path, image).unwrap();
}
