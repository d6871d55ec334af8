//! Guests whose VMM adds no ACPI tables: Linux installs the TPM's from the initramfs. QEMU's virt (64-bit ARM) is such a
//! machine, and q35 plays one.

mod common;
mod guest;

use std::path::Path;
use std::process::Command;

use common::server::Server;
use guest::{Firmware, Guest, GuestConfig, Tpm, kit};

const TPM: Tpm = Tpm::V2_0;

const NODE: &str = "\\_SB_.PCI0.S28_.TPM_\n";

/// The first of QEMU's arguments: `-device` and the device.
const DEVICE: usize = 2;

fn q35(server: &Server) -> GuestConfig {
    let first_archive = Some(server.description().join("acpi-initrd.cpio"));
    GuestConfig { qemu_args: server.qemu_args(), first_archive, ..GuestConfig::default() }
}

/// Linux has got the table from the initramfs, and complains of nothing that has to do with the TPM.
#[track_caller]
fn linux_has_taken_the_table(guest: &mut Guest, how: &str) {
    let log = guest.kernel_log();
    let taken = format!("ACPI: Table Upgrade: {how} [SSDT-VFUTPM-  TPMTIS]");
    assert_eq!(log.iter().filter(|message| message.text == taken).count(), 1, "{log:#?}");
    let complaints: Vec<_> = log
        .iter()
        .filter(|message| {
            message.is_complaint() && ["TPM", "tpm", "tis", "ACPI Error"].iter().any(|word| message.text.contains(word))
        })
        .collect();
    assert!(complaints.is_empty(), "{complaints:#?}");
    assert_eq!(guest.check("cat /sys/class/tpm/tpm0/device/firmware_node/path"), NODE);
    assert_eq!(guest.check("basename $(readlink /sys/class/tpm/tpm0/device/driver)"), "tpm_tis\n");
}

#[track_caller]
fn q35_without_tables(tpm: Tpm) {
    let server = Server::with_args(&["--tpm-version", tpm.version()].map(Into::into));
    let mut config = q35(&server);
    config.qemu_args.truncate(DEVICE);
    let mut guest = Guest::boot(&config);
    linux_has_taken_the_table(&mut guest, "install");
    assert_eq!(guest.check("cat /sys/class/tpm/tpm0/tpm_version_major"), format!("{}\n", tpm.major()));
    // IMA measures into it from the start.
    assert_ne!(tpm.pcr(&mut guest, 10), tpm.zero());
    tpm.extend(&mut guest, 16, "event");
    let extended = tpm.extended(&mut guest, &tpm.zero(), "event");
    assert_eq!(tpm.pcr(&mut guest, 16), extended);
    guest.quit();
}

#[test]
fn on_q35_a_2_0_is_found() {
    q35_without_tables(Tpm::V2_0);
}

#[test]
#[cfg(feature = "full-tests")]
fn on_q35_a_1_2_is_found() {
    q35_without_tables(Tpm::V1_2);
}

/// As when the archive is in an initramfs that is used with and without tables from the VMM.
#[test]
fn where_the_vmm_has_added_its_table_too_linux_takes_the_other_in_its_place() {
    let server = Server::start();
    let mut guest = Guest::boot(&q35(&server));
    linux_has_taken_the_table(&mut guest, "override");
    assert_eq!(guest.check("ls -d /dev/tpm?"), "/dev/tpm0\n");
    assert_eq!(TPM.pcr(&mut guest, 16), TPM.zero());
    guest.quit();
}

/// A program that has nothing to do with ours can read the archive, too.
#[test]
fn busybox_unpacks_the_archive() {
    let server = Server::start();
    let folder = tempfile::tempdir().expect("temporary folder");
    let unpack = "\"$0\" cpio -i <\"$1\" && find . -type f";
    let output = Command::new("sh")
        .args(["-c", unpack])
        .arg(kit().join("root/usr/bin/busybox"))
        .arg(server.description().join("acpi-initrd.cpio"))
        .current_dir(folder.path())
        .output()
        .expect("sh");
    assert_eq!(String::from_utf8_lossy(&output.stdout), "./kernel/firmware/acpi/ssdt.aml\n", "{output:?}");
    assert!(std::fs::read(folder.path().join("kernel/firmware/acpi/ssdt.aml")).expect("table").starts_with(b"SSDT"));
}

/// On ARM, as `run` starts it. Debian's kernel has the driver as a module there.
#[test]
fn on_virt_run_starts_a_guest_that_finds_its_tpm() {
    const LOAD_DRIVER: &str = "insmod /tpm_tis_core.ko.xz && insmod /tpm_tis.ko.xz";
    let state = tempfile::tempdir().expect("temporary folder");
    let state = state.path().join("tpm");
    let run = ["run", "--machine=virt", "--log-level=warn", "--state-dir", state.to_str().expect("path"), "--"];
    let launcher = [env!("CARGO_BIN_EXE_vfio-user-tpm")].iter().chain(&run).map(Into::into).collect();
    let mut guest =
        Guest::boot(&GuestConfig { machine: "virt", firmware: Firmware::Aavmf, launcher, ..GuestConfig::default() });
    assert_eq!(guest.check("uname -m"), "aarch64\n");
    assert!(Path::new(&state).is_dir());

    guest.check(LOAD_DRIVER);
    linux_has_taken_the_table(&mut guest, "install");
    let random = guest.check(". /lib/tpm20.sh && tpm20_getrandom 8");
    assert_eq!(random.trim().len(), 16, "{random}");
    let digest = guest.check("printf event | sha256sum | cut -c 1-64");
    guest.check(&format!(". /lib/tpm20.sh && tpm20_extend 16 {digest}"));
    let extended = TPM.extended(&mut guest, &TPM.zero(), "event");
    assert_eq!(guest.check(". /lib/tpm20.sh && tpm20_pcr_read 16").trim(), extended);

    guest.reboot();

    guest.check(LOAD_DRIVER);
    linux_has_taken_the_table(&mut guest, "install");
    assert_eq!(guest.check(". /lib/tpm20.sh && tpm20_pcr_read 16").trim(), TPM.zero());
    guest.quit();
}
