//! The firmware that QEMU starts: `-bios`, flash, or what it brings along.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context, bail};

use super::options::Options;
use super::{Pinning, option_values, values_of};
use crate::acpi::Machine;
use crate::cli::run::{launch, this_program};

/// What QEMU takes on a PC.
const DEFAULT: &str = "bios-256k.bin";

/// The properties of `-machine` that name nodes for flash, the first of which has the firmware.
const FLASH: [&str; 2] = ["pflash0", "pflash1"];

/// What a node of `-blockdev` may have, so that the guest finds in it what is in the file.
const NODE_KEYS: [&str; 14] = [
    "driver",
    "node-name",
    "read-only",
    "auto-read-only",
    "filename",
    "file",
    "discard",
    "detect-zeroes",
    "force-share",
    "locking",
    "aio",
    "direct",
    "no-flush",
    "drop-cache",
];

impl Pinning<'_> {
    pub(super) fn firmware(&mut self, default: impl FnOnce() -> anyhow::Result<Option<PathBuf>>) -> anyhow::Result<()> {
        let drives = self.flash_drives()?;
        let nodes = self.flash_nodes()?;
        if drives || nodes {
            if drives && nodes {
                bail!("QEMU's arguments have flash by -drive and by -machine: give it in one way");
            }
            if values_of(&self.arguments, &["bios"]).next().is_some() {
                bail!("QEMU's arguments have both -bios and flash: give one of them");
            }
            return Ok(());
        }
        if let Some(index) = values_of(&self.arguments, &["bios"]).last() {
            let Some(named) = self.arguments.get(index).cloned() else { return Ok(()) };
            if !Path::new(&named).exists() {
                bail!("--measure auto takes the path of a file for QEMU's -bios, and there is no {named:?}");
            }
            let copy = self.pin_firmware(Path::new(&named))?;
            if let Some(value) = self.arguments.get_mut(index) {
                *value = copy.into();
            }
        } else if let Some(file) = default()? {
            let copy = self.pin_firmware(&file)?;
            self.arguments.extend(["-bios".into(), copy.into()]);
        }
        Ok(())
    }

    /// `-drive if=pflash`. Gives whether there is any.
    fn flash_drives(&mut self) -> anyhow::Result<bool> {
        let mut next = 0;
        let mut units = Vec::new();
        for index in values_of(&self.arguments, &["drive"]).collect::<Vec<_>>() {
            let Some(value) = self.arguments.get(index) else { continue };
            let mut drive = Options::parse(value, "file")?;
            if drive.get("if") != Some("pflash") {
                continue;
            }
            let unit = drive.get("unit").or(drive.get("index"));
            let unit: u32 = unit.map_or(Ok(next), str::parse).context("a number of a flash drive of QEMU's")?;
            next = unit.saturating_add(1);
            let file = drive.get("file").context("a flash drive of QEMU's lacks file=")?.to_owned();
            units.push(unit);
            if !drive.is_on(&["readonly", "read-only"]) {
                refuse_changing_firmware(unit == 0, &file)?;
                continue;
            }
            if drive.get("format") != Some("raw") || drive.keys().any(|key| key == "driver" || key.contains('.')) {
                bail!("--measure auto needs format=raw for the firmware {file}, and no more about its format");
            }
            let copy = self.pin_firmware(Path::new(&file))?;
            drive.set("file", &copy.to_string_lossy());
            if let Some(value) = self.arguments.get_mut(index) {
                *value = drive.to_argument().into();
            }
        }
        if !units.is_empty() && units.iter().filter(|unit| **unit == 0).count() != 1 {
            bail!("of QEMU's flash drives one has to be the first, which has the firmware");
        }
        Ok(!units.is_empty())
    }

    /// `-machine pflash0=NODE` with `-blockdev`. Gives whether there is any.
    fn flash_nodes(&mut self) -> anyhow::Result<bool> {
        let machine = option_values(&self.arguments, &["machine", "M"]).map(|value| Options::parse(value, "type"));
        let machine = machine.collect::<anyhow::Result<Vec<_>>>()?;
        let node_of = |flash| machine.iter().rev().find_map(|machine| machine.get(flash)).map(str::to_owned);
        let nodes = FLASH.map(node_of);
        if nodes == [None, None] {
            return Ok(false);
        }
        for (unit, node) in nodes.into_iter().enumerate() {
            match node {
                Some(node) => self.flash_node(&node, unit == 0)?,
                None if unit == 0 => bail!("QEMU's arguments have pflash1 without pflash0, which has the firmware"),
                None => {}
            }
        }
        Ok(true)
    }

    fn flash_node(&mut self, name: &str, is_firmware: bool) -> anyhow::Result<()> {
        let (_, node) = self.node(name)?;
        let read_only = node.is_on(&["read-only"]);
        // The file is in the node itself, nested in it, or in another one.
        let (below, prefix) = match (node.get("driver"), node.get("file")) {
            (Some("raw"), Some(file)) => (file.to_owned(), ""),
            (Some("raw"), None) => (name.to_owned(), "file."),
            _ => (name.to_owned(), ""),
        };
        let (index, mut file) = self.node(&below)?;
        let key = format!("{prefix}filename");
        let path = match (file.get(&format!("{prefix}driver")), file.get(&key)) {
            (Some("file"), Some(path)) => path.to_owned(),
            _ => bail!(
                "--measure auto needs a file for QEMU's flash node {name}: driver=file, or driver=raw in front of it"
            ),
        };
        if !read_only {
            return refuse_changing_firmware(is_firmware, &path);
        }
        let known = |key: &&str| key.rsplit('.').next().is_some_and(|last| NODE_KEYS.contains(&last));
        if let Some(other) = node.keys().chain(file.keys()).find(|key| !known(key)) {
            bail!("--measure auto does not know what {other} does to QEMU's flash node {name}: leave it out");
        }
        let copy = self.pin_firmware(Path::new(&path))?;
        file.set(&key, &copy.to_string_lossy());
        file.set(&format!("{prefix}read-only"), "on");
        if let Some(value) = self.arguments.get_mut(index) {
            *value = file.to_argument().into();
        }
        Ok(())
    }

    /// The node of this name, and where it stands.
    fn node(&self, name: &str) -> anyhow::Result<(usize, Options)> {
        for index in values_of(&self.arguments, &["blockdev"]) {
            let Some(value) = self.arguments.get(index) else { continue };
            let node = Options::parse(value, "driver")?;
            if node.get("node-name") == Some(name) {
                return Ok((index, node));
            }
        }
        bail!("QEMU's arguments lack the -blockdev with node-name={name} that its -machine names")
    }
}

/// Flash that can be written to is for variables, and they are not measured.
fn refuse_changing_firmware(is_firmware: bool, file: &str) -> anyhow::Result<()> {
    if is_firmware {
        bail!(
            "the guest can change its firmware {file}, so it is not measured: make it read-only (readonly=on for a \
             -drive, read-only=on for a -blockdev), and give its variables in a second flash"
        );
    }
    log::warn!("{file} has the firmware's variables, which the guest can change: they are not measured");
    Ok(())
}

/// The firmware that QEMU takes if nothing names one, by asking it where it looks for its files.
pub(in crate::cli::run) fn default_of(
    program: &OsStr,
    user: &[OsString],
    machine: Machine,
) -> anyhow::Result<Option<PathBuf>> {
    if !matches!(machine, Machine::Q35 | Machine::Pc) {
        return Ok(None);
    }
    if user.first().is_some_and(|first| !first.as_bytes().starts_with(b"-")) {
        bail!(
            "QEMU is started by another program, so it is not asked where its own firmware is: name the firmware, as in \
             -bios /usr/share/seabios/{DEFAULT}"
        );
    }
    let mut asking = this_program();
    asking.args([launch::SUBCOMMAND, "--"]).arg(program);
    for folder in option_values(user, &["L"]) {
        asking.arg("-L").arg(folder);
    }
    let answer = asking.args(["-L", "help"]).stdin(Stdio::null()).output().context("cannot start QEMU")?;
    let folders = answer.stdout.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
    let file = folders.map(|folder| Path::new(OsStr::from_bytes(folder)).join(DEFAULT)).find(|file| file.is_file());
    match file {
        Some(file) => Ok(Some(file)),
        None => bail!(
            "{program:?} does not tell by -L help where its firmware {DEFAULT} is: name the firmware, as in -bios \
             /usr/share/seabios/{DEFAULT}"
        ),
    }
}
