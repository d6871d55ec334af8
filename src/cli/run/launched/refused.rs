//! Arguments of QEMU's by which more comes into the guest than is measured.

use std::ffi::OsString;

use anyhow::bail;

use super::options::Options;
use super::{option_values, values_of};

/// Options, and what they do.
const OPTIONS: [(&str, &str); 12] = [
    ("fw_cfg", "hands data to firmware and guest"),
    ("option-rom", "adds code that firmware runs"),
    ("acpitable", "adds code that the guest runs"),
    ("smbios", "hands settings to firmware and guest"),
    ("dtb", "describes another machine to the guest"),
    ("shim", "adds code that firmware runs"),
    ("pflash", "has firmware that the guest can change: give it as -drive if=pflash,format=raw,readonly=on,file=FILE"),
    ("readconfig", "can have any other option in its file"),
    ("set", "changes any other option"),
    ("incoming", "brings a machine that runs already"),
    ("loadvm", "brings a machine that runs already"),
    ("plugin", "can change what the guest runs"),
];

/// Properties of `-machine` that are options too.
const OF_MACHINE: [&str; 6] = ["kernel", "initrd", "append", "firmware", "dtb", "shim"];

/// Devices that put files into the guest's memory.
const LOADERS: [&str; 2] = ["loader", "guest-loader"];

/// Refuses what is not measured and yet is a part of what is launched.
pub(super) fn check(arguments: &[OsString]) -> anyhow::Result<()> {
    for (option, does) in OPTIONS {
        if values_of(arguments, &[option]).next().is_some() {
            bail!(not_covered(&format!("-{option}"), does));
        }
    }
    for value in option_values(arguments, &["device"]) {
        let device = Options::parse(value, "driver")?;
        if let Some(driver) = device.get("driver").filter(|driver| LOADERS.contains(driver)) {
            bail!(not_covered(&format!("-device {driver}"), "puts a file into the guest's memory"));
        }
        if device.get("romfile").is_some_and(|file| !file.is_empty()) {
            bail!(not_covered("romfile=", "adds code that firmware runs"));
        }
    }
    for value in option_values(arguments, &["global"]) {
        let text = value.to_string_lossy();
        if text.contains("romfile") && !text.ends_with("romfile=") {
            bail!(not_covered("-global with romfile", "adds code that firmware runs"));
        }
    }
    for value in option_values(arguments, &["machine", "M"]) {
        let machine = Options::parse(value, "type")?;
        if let Some(property) = OF_MACHINE.into_iter().find(|property| machine.get(property).is_some()) {
            let option = if property == "firmware" { "bios" } else { property };
            bail!("--measure auto does not look for {property}= in QEMU's -machine: give it as -{option}");
        }
    }
    // Linux' would be one file; of several, QEMU's multiboot makes modules with command lines.
    if option_values(arguments, &["initrd"]).any(|value| value.to_string_lossy().contains(',')) {
        bail!("--measure auto takes one file for QEMU's -initrd, without a comma in its name");
    }
    Ok(())
}

fn not_covered(option: &str, does: &str) -> String {
    format!(
        "--measure auto does not cover QEMU's {option}, which {does}: leave it out, or say yourself what is measured, as in \
         --measure kernel=PATH"
    )
}
