//! Linux with the TPM's interrupt. It takes one only if its command line says so, and tries it before it relies on it.

mod common;
mod guest;

use std::ffi::OsString;

use common::server::Server;
#[cfg(feature = "full-tests")]
use guest::Firmware;
use guest::{Guest, GuestConfig, Tpm};

/// Lets Linux take the interrupt: since 6.6 it does not by itself.
const WANTED: &str = "tpm_tis.interrupts=1";

fn boot(args: &[&str], config: GuestConfig) -> (Server, Guest) {
    let args: Vec<OsString> = ["--interface=tis"].iter().chain(args).map(Into::into).collect();
    let server = Server::with_args(&args);
    let guest = Guest::boot(&GuestConfig { qemu_args: server.qemu_args(), ..config });
    (server, guest)
}

/// How many interrupts the TPM's driver has had; `None` if it has none.
fn interrupts(guest: &mut Guest) -> Option<u32> {
    let line = guest.run("grep -w tpm0 /proc/interrupts").stdout;
    let counts = line.split_whitespace().skip(1).map_while(|word| word.parse::<u32>().ok());
    line.contains("tpm0").then(|| counts.sum())
}

/// What Linux says of a TPM whose interrupts do not work, or come without end.
fn complaints(guest: &mut Guest) -> Vec<String> {
    let log = guest.kernel_log().into_iter().map(|message| message.text);
    log.filter(|text| ["polling instead", "storm", "nobody cared"].iter().any(|words| text.contains(words))).collect()
}

#[track_caller]
fn interrupts_come_with_commands(guest: &mut Guest) {
    let mut before = interrupts(guest).expect("the driver has an interrupt");
    for event in ["one", "two", "three"] {
        Tpm::V2_0.extend(guest, 16, event);
        let after = interrupts(guest).expect("still");
        assert!(after > before, "{after} after {before}");
        before = after;
    }
    assert!(complaints(guest).is_empty(), "{:?}", complaints(guest));
}

#[test]
fn with_seabios_commands_end_with_interrupts_over_reboots() {
    let (_server, mut guest) =
        boot(&["--interrupts=on"], GuestConfig { append: WANTED.to_owned(), ..GuestConfig::default() });
    interrupts_come_with_commands(&mut guest);
    // Hundreds of interrupts.
    guest.check("for i in $(seq 20); do tpm2_getrandom 8 >/dev/null || exit; done");
    interrupts_come_with_commands(&mut guest);
    guest.reboot();
    interrupts_come_with_commands(&mut guest);
    guest.quit();
}

#[test]
#[cfg(feature = "full-tests")]
fn with_ovmf_and_in_another_slot_it_is_the_same() {
    let config = GuestConfig { firmware: Firmware::Ovmf, append: WANTED.to_owned(), ..GuestConfig::default() };
    let (_server, mut guest) = boot(&["--interrupts=on", "--pci-address=1b.0"], config);
    interrupts_come_with_commands(&mut guest);
    guest.quit();
}

#[test]
fn who_does_not_want_interrupts_polls_and_nobody_complains() {
    for (args, append) in [
        (&[][..], WANTED),
        // As Linux is by itself.
        (&["--interrupts=on"], ""),
        (&["--interrupts=on"], "tpm_tis.interrupts=1 noapic"),
    ] {
        let config = GuestConfig { append: append.to_owned(), ..GuestConfig::default() };
        let (_server, mut guest) = boot(args, config);
        Tpm::V2_0.extend(&mut guest, 16, "event");
        assert_eq!(interrupts(&mut guest), None, "{args:?} {append}");
        assert!(complaints(&mut guest).is_empty(), "{args:?} {append}: {:?}", complaints(&mut guest));
        guest.quit();
    }
}

/// The table names another interrupt than the one that comes.
#[test]
fn an_interrupt_that_never_comes_is_found_out_and_linux_polls() {
    let server = Server::with_args(&["--interface=tis".into(), "--interrupts=on".into()]);
    let table = server.description().join("ssdt.aml");
    let mut bytes = std::fs::read(&table).expect("the table");
    let descriptor = [0x89, 6, 0, 0b1001, 1, 21, 0, 0, 0];
    let at = bytes.windows(descriptor.len()).position(|bytes| bytes == descriptor).expect("the interrupt") + 5;
    (bytes[at], bytes[9]) = (23, bytes[9].wrapping_sub(2));
    std::fs::write(&table, bytes).expect("the table is written");
    let config = GuestConfig { qemu_args: server.qemu_args(), append: WANTED.to_owned(), ..GuestConfig::default() };
    let mut guest = Guest::boot(&config);

    let complaints = complaints(&mut guest);
    assert!(
        matches!(&complaints[..], [one] if one.contains("TPM interrupt not working, polling instead")),
        "{complaints:?}"
    );
    assert_eq!(interrupts(&mut guest), None);
    Tpm::V2_0.extend(&mut guest, 16, "event");
    assert_ne!(Tpm::V2_0.pcr(&mut guest, 16), Tpm::V2_0.zero());
    guest.quit();
}
