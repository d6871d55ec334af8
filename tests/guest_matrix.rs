//! The same checks in every kind of guest: machine, firmware, processors, version of the TPM. The cells under `full-tests`
//! run with `./test --full` only.

mod common;
mod guest;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use common::server::Server;
use guest::Firmware::{Ovmf, SeaBios};
use guest::Tpm::{V1_2, V2_0};
use guest::{FIND_PCI_DEVICE, Firmware, Guest, GuestConfig, KernelMessage, Tpm};
use vfio_user_tpm::measure::Hex;
use vfio_user_tpm::measure::event_log::{DEFAULT_ROOM, Digest, Event, EventLog, EventType, Format, SpecId};
use vfio_user_tpm::pcr_bank::PcrBank;

/// Where the guest runs, apart from its TPM.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Board {
    machine: &'static str,
    firmware: Firmware,
    cpus: u32,
}

/// How the guest speaks to its TPM: the server's arguments for that.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Interface {
    args: &'static [&'static str],
    driver: &'static str,
}

const TIS: Interface = Interface { args: &[], driver: "tpm_tis" };
const CRB: Interface = Interface { args: &["--interface=crb"], driver: "tpm_crb" };
const DOORBELL: Interface = Interface { args: &["--interface=crb-doorbell"], driver: "tpm_crb" };
/// With the memory reached by trapped accesses, as where a VMM has switched its mappings off.
const CRB_UNMAPPED: Interface = Interface { args: &["--interface=crb", "--no-mmap"], ..CRB };
#[cfg(feature = "full-tests")]
const DOORBELL_UNMAPPED: Interface = Interface { args: &["--interface=crb-doorbell", "--no-mmap"], ..CRB };

/// One test for each row: name, machine, firmware, number of processors, TPM, interface.
macro_rules! cells {
    ($(
        $(#[$attribute:meta])*
        $name:ident: $machine:literal, $firmware:expr, $cpus:literal, $tpm:expr, $interface:expr;
    )*) => {$(
        #[test]
        $(#[$attribute])*
        fn $name() {
            check(Board { machine: $machine, firmware: $firmware, cpus: $cpus }, $tpm, $interface);
        }
    )*};
}

cells! {
    q35_seabios_tpm_2_0:           "q35", SeaBios, 1, V2_0, TIS;
    q35_seabios_tpm_1_2:           "q35", SeaBios, 1, V1_2, TIS;
    q35_seabios_4_cpus_tpm_2_0:    "q35", SeaBios, 4, V2_0, TIS;
    q35_ovmf_tpm_2_0:              "q35", Ovmf,    1, V2_0, TIS;
    q35_ovmf_tpm_1_2:              "q35", Ovmf,    1, V1_2, TIS;
    pc_seabios_tpm_2_0:            "pc",  SeaBios, 1, V2_0, TIS;
    pc_seabios_tpm_1_2:            "pc",  SeaBios, 1, V1_2, TIS;
    q35_seabios_crb:               "q35", SeaBios, 1, V2_0, CRB;
    q35_seabios_crb_doorbell:      "q35", SeaBios, 1, V2_0, DOORBELL;
    q35_seabios_crb_unmapped:      "q35", SeaBios, 1, V2_0, CRB_UNMAPPED;
    q35_ovmf_crb:                  "q35", Ovmf,    1, V2_0, CRB;
    q35_ovmf_crb_doorbell:         "q35", Ovmf,    1, V2_0, DOORBELL;
    pc_seabios_crb:                "pc",  SeaBios, 1, V2_0, CRB;
    pc_seabios_crb_doorbell:       "pc",  SeaBios, 1, V2_0, DOORBELL;
    #[cfg(feature = "full-tests")]
    q35_seabios_doorbell_unmapped: "q35", SeaBios, 1, V2_0, DOORBELL_UNMAPPED;
    #[cfg(feature = "full-tests")]
    q35_seabios_4_cpus_crb:        "q35", SeaBios, 4, V2_0, CRB;
    #[cfg(feature = "full-tests")]
    q35_seabios_4_cpus_doorbell:   "q35", SeaBios, 4, V2_0, DOORBELL;
    #[cfg(feature = "full-tests")]
    q35_seabios_4_cpus_tpm_1_2:    "q35", SeaBios, 4, V1_2, TIS;
    #[cfg(feature = "full-tests")]
    q35_ovmf_4_cpus_tpm_2_0:       "q35", Ovmf,    4, V2_0, TIS;
    #[cfg(feature = "full-tests")]
    q35_ovmf_4_cpus_tpm_1_2:       "q35", Ovmf,    4, V1_2, TIS;
    #[cfg(feature = "full-tests")]
    pc_seabios_4_cpus_tpm_2_0:     "pc",  SeaBios, 4, V2_0, TIS;
    #[cfg(feature = "full-tests")]
    pc_seabios_4_cpus_tpm_1_2:     "pc",  SeaBios, 4, V1_2, TIS;
    #[cfg(feature = "full-tests")]
    pc_ovmf_tpm_2_0:               "pc",  Ovmf,    1, V2_0, TIS;
    #[cfg(feature = "full-tests")]
    pc_ovmf_tpm_1_2:               "pc",  Ovmf,    1, V1_2, TIS;
    #[cfg(feature = "full-tests")]
    pc_ovmf_4_cpus_tpm_2_0:        "pc",  Ovmf,    4, V2_0, TIS;
    #[cfg(feature = "full-tests")]
    pc_ovmf_4_cpus_tpm_1_2:        "pc",  Ovmf,    4, V1_2, TIS;
}

/// What has to hold in each guest.
fn check(board: Board, tpm: Tpm, interface: Interface) {
    // First, since no test may start a guest while it has one: the number of guests is limited.
    let known = complaints_without_tpm(board);
    let args = ["--machine", board.machine, "--tpm-version", tpm.version()];
    let args: Vec<_> = args.iter().chain(interface.args).map(Into::into).collect();
    let server = Server::with_args(&args);
    let mut guest = Guest::boot(&GuestConfig { qemu_args: server.qemu_args(), ..config(board) });
    assert_eq!(guest.run("test -d /sys/firmware/efi").status == 0, board.firmware == Ovmf);

    linux_has_bound_its_driver(&mut guest, tpm, interface);
    nobody_complains(&guest.kernel_log(), &known);
    every_cpu_reaches_the_tpm(&mut guest, board, tpm);
    // Guest root has no way to reset the TPM alone, and to replay measurements.
    guest.check(&format!("{FIND_PCI_DEVICE} test -d $device && ! test -e $device/reset"));

    // IMA measures into it from the start.
    assert_ne!(tpm.pcr(&mut guest, 10), tpm.zero());
    assert_eq!(tpm.pcr(&mut guest, 16), tpm.zero());
    tpm.extend(&mut guest, 16, "event");
    let extended = tpm.pcr(&mut guest, 16);
    assert_eq!(extended, tpm.extended(&mut guest, &tpm.zero(), "event"));
    tpm.write_nv(&mut guest, "kept over a reboot");
    nothing_is_in_the_log(&mut guest, tpm);
    // At last: IMA has no TPM any more afterwards.
    linux_shows_the_log_that_is_in_its_area(&mut guest, tpm);

    guest.reboot();

    nobody_complains(&guest.kernel_log(), &known);
    assert_eq!(tpm.pcr(&mut guest, 16), tpm.zero());
    assert_ne!(tpm.pcr(&mut guest, 10), tpm.zero());
    tpm.assert_nv(&mut guest, "kept over a reboot");
    nothing_is_in_the_log(&mut guest, tpm);
    guest.quit();
}

fn config(board: Board) -> GuestConfig {
    let Board { machine, firmware, cpus } = board;
    GuestConfig { machine, firmware, cpus, ..GuestConfig::default() }
}

#[track_caller]
fn linux_has_bound_its_driver(guest: &mut Guest, tpm: Tpm, interface: Interface) {
    // The other driver says nothing when all is well.
    if interface == TIS {
        let log = guest.kernel_log();
        let announcement = format!(": {} TPM (vendor-id 0x7666, device-id 0x5450, ", tpm.version());
        let mut texts = log.iter().map(|message| &message.text);
        assert!(texts.any(|text| text.starts_with("tpm_tis ") && text.contains(&announcement)), "{log:#?}");
    }
    guest.check("test -c /dev/tpm0");
    assert_eq!(guest.check("cat /sys/class/tpm/tpm0/tpm_version_major"), format!("{}\n", tpm.major()));
    // Newer kernels call one of them tpm_crb_acpi.
    let driver = guest.check("basename $(readlink /sys/class/tpm/tpm0/device/driver)");
    assert!(driver.starts_with(interface.driver), "{driver}");
    // The TPM is below the PCI device's own node: slot 5, function 0.
    assert_eq!(guest.check("cat /sys/class/tpm/tpm0/device/firmware_node/path"), "\\_SB_.PCI0.S28_.TPM_\n");
}

/// The kernel does not warn of anything but what is known.
#[track_caller]
fn nobody_complains(log: &[KernelMessage], known: &BTreeSet<String>) {
    let complaints: Vec<_> =
        log.iter().filter(|message| message.is_complaint() && !known.contains(&message.text)).collect();
    assert!(complaints.is_empty(), "{complaints:#?}");
}

/// What the kernel warns of on a board without a TPM, which is booted once for all tests that ask.
fn complaints_without_tpm(board: Board) -> BTreeSet<String> {
    static KNOWN: Mutex<BTreeMap<Board, Arc<OnceLock<BTreeSet<String>>>>> = Mutex::new(BTreeMap::new());
    let of_board = KNOWN.lock().unwrap_or_else(PoisonError::into_inner).entry(board).or_default().clone();
    let complaints = of_board.get_or_init(|| {
        let mut guest = Guest::boot(&config(board));
        let log = guest.kernel_log();
        guest.quit();
        log.into_iter().filter(KernelMessage::is_complaint).map(|message| message.text).collect()
    });
    complaints.clone()
}

/// A script that prints the log as Linux has read it when its driver was bound.
const SHOW_LOG: &str = "cat /sys/kernel/security/tpm*/binary_bios_measurements";

/// Nobody has measured anything: a log of TPM 1.2 is empty then, and one of 2.0, which would begin with a Spec ID event, is
/// not there.
#[track_caller]
fn nothing_is_in_the_log(guest: &mut Guest, tpm: Tpm) {
    match tpm {
        V1_2 => assert_eq!(guest.check(&format!("{SHOW_LOG} | wc -c")), "0\n"),
        V2_0 => drop(guest.check("test -d /sys/kernel/security && ! ls /sys/kernel/security/tpm*")),
    }
}

/// The table names the area; a log that somebody writes there, as firmware would, Linux reads when it binds its driver.
#[track_caller]
fn linux_shows_the_log_that_is_in_its_area(guest: &mut Guest, tpm: Tpm) {
    let find_area = format!("{FIND_PCI_DEVICE} read -r bar0 rest <$device/resource && area=$((bar0 + 0x10000)) &&");
    let named = match tpm {
        V1_2 => "od -A n -t x4 -j 38 -N 12 /sys/firmware/acpi/tables/TCPA",
        V2_0 => "od -A n -t x4 -j 64 -N 12 /sys/firmware/acpi/tables/TPM2",
    };
    let expected = guest.check(&format!("{find_area} printf ' 00010000 %08x 00000000' $area"));
    assert_eq!(guest.check(named).trim_end(), expected);

    let log = log(tpm);
    let words = log.chunks(4).map(|chunk| {
        let mut word = [0; 4];
        word[..chunk.len()].copy_from_slice(chunk);
        format!("{:#010x}", u32::from_le_bytes(word))
    });
    let words = words.collect::<Vec<_>>().join(" ");
    guest.check(&format!(
        "{find_area} for word in {words}; do devmem $area 32 $word || exit; area=$((area + 4)); done &&
        tpm=$(readlink -f /sys/class/tpm/tpm0/device) && driver=$(readlink -f $tpm/driver) && cd $driver &&
        echo $(basename $tpm) >unbind && echo $(basename $tpm) >bind"
    ));
    let shown = guest.check(&format!("{SHOW_LOG} | xxd -p -c 32"));
    assert_eq!(shown.replace('\n', ""), Hex(&log).to_string());
}

/// A log of two events, and the Spec ID event where one belongs.
fn log(tpm: Tpm) -> Vec<u8> {
    let (format, bank, size) = match tpm {
        V1_2 => (Format::Sha1, PcrBank::SHA1, 20),
        V2_0 => (Format::CryptoAgile(SpecId::new(&[PcrBank::SHA256])), PcrBank::SHA256, 32),
    };
    let event = |pcr, event_type, data: &[u8]| {
        let digests = vec![Digest { bank, value: vec![0x5a; size] }];
        Event { pcr, event_type, digests, data: data.to_vec() }
    };
    let events = vec![event(4, EventType::IPL, b"a kernel"), event(4, EventType::SEPARATOR, &[0; 4])];
    EventLog { format, events }.to_bytes(DEFAULT_ROOM).unwrap()
}

#[track_caller]
fn every_cpu_reaches_the_tpm(guest: &mut Guest, board: Board, tpm: Tpm) {
    assert_eq!(guest.check("nproc"), format!("{}\n", board.cpus));
    for cpu in 0..board.cpus {
        let pinned = format!("taskset -p {:x} $$ >/dev/null && {}", 1 << cpu, tpm.pcr_script(16));
        assert_eq!(guest.check(&pinned).trim(), tpm.zero(), "from CPU {cpu}");
    }
}
