//! The command line: any words, among them those that it knows.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;

use super::tape::Tape;

const WORDS: [&str; 109] = [
    "run",
    "describe",
    "worker",
    "launch",
    "state",
    "help",
    "--",
    "--help",
    "--version",
    "--print-capabilities",
    "--socket-path",
    "--socket-path=/run/tpm",
    "--fd",
    "--fd=3",
    "--fd=2147483648",
    "--description",
    "--description=/d",
    "--state-dir",
    "--state-dir=/s",
    "--backend",
    "--backend=swtpm",
    "--tpm-version",
    "--tpm-version=1.2",
    "--tpm-version=2.0",
    "--interface",
    "--interface=tis",
    "--machine",
    "--machine=pc",
    "--machine=q35",
    "--pci-address",
    "--pci-address=05.0",
    "--pci-address=06.0/00.0",
    "--pci-address=00:05.0",
    "--pci-address=1f.7",
    "--force-behind-bridge",
    "--force-behind-bridge=rp0",
    "--force-behind-bridge=",
    "--pci-id",
    "--pci-id=7666:5450",
    "--pci-id=1af4:1000",
    "--pci-id=ffff:ffff",
    "--startup",
    "--startup=none",
    "--startup=clear",
    "--reset-on-connect",
    "--guest-locality-4",
    "--interrupts",
    "--interrupts=on",
    "--interrupts=off",
    "--log-level",
    "--log-level=trace",
    "--obey-parent-only",
    "--format",
    "--format=json",
    "--format=libvirt",
    "--format=qemu-args",
    "--qemu",
    "--memory",
    "--backend=passthrough",
    "--key-file=/k",
    "=",
    "-",
    "",
    "-h",
    "-V",
    "3",
    "qemu-system-x86_64",
    "show",
    "verify",
    "export",
    "import",
    "rekey",
    "anchor",
    "spawner",
    "--tpm-path",
    "--tpm-path=/dev/tpm0",
    "--cancel-path=/c",
    "--swtpm",
    "--swtpm=/usr/bin/swtpm",
    "--swtpm-socket=/s",
    "--swtpm-arg=--log",
    "--swtpm-dir=/d",
    "--device=/dev/tpmrm0",
    "--key-fd=3",
    "--rollback-anchor=/a",
    "--new-key-file=/n",
    "--new-key-fd=4",
    "--no-key",
    "--force",
    "--to-swtpm=/t",
    "--from-swtpm=/f",
    "--swtpm-key=file=/k",
    "--overwrite",
    "--json",
    "--all",
    "/state",
    "\u{e9}",
    "-1",
    "--key-file",
    "log",
    "replay",
    "expect",
    "--measure",
    "--measure=kernel=/k",
    "--measure=cmdline=a b",
    "--measure=file:7=/f",
    "--measure-hcrtm",
    "--bank=sha256,sha384",
    "--log=/l",
];

pub fn run(data: &[u8]) {
    let mut tape = Tape::new(data);
    let mut arguments = vec![OsString::from("vfio-user-tpm")];
    while !tape.is_over() && arguments.len() < 24 {
        arguments.push(word(&mut tape));
    }
    if let Err(error) = vfio_user_tpm::cli::check(arguments) {
        let text = error.to_string();
        assert!(!text.is_empty());
    }
}

fn word(tape: &mut Tape<'_>) -> OsString {
    match tape.byte() {
        known @ 0..=191 => OsString::from(WORDS[usize::from(known) % WORDS.len()]),
        192..=223 => {
            // A flag with some other value.
            let flag = WORDS[usize::from(tape.byte()) % WORDS.len()].split('=').next().unwrap_or_default();
            let value = tape.short();
            OsString::from_vec([flag.as_bytes(), b"=", value].concat())
        }
        _ => OsString::from_vec(tape.short().to_vec()),
    }
}
