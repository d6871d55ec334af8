//! What QEMU launches, by its command line: sealed copies for QEMU, and the same to be measured.

mod firmware;
mod options;
mod refused;

use std::ffi::{OsStr, OsString};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};

use super::qemu::is_option;
use super::sealed::Sealed;
pub(super) use firmware::default_of;

/// What is launched.
#[derive(Debug)]
pub(super) struct Launched {
    /// The user's arguments, with copies in the place of files.
    pub(super) arguments: Vec<OsString>,
    /// The server's flags by which the copies are measured.
    pub(super) flags: Vec<OsString>,
    /// To be kept until the children have been started.
    _copies: Vec<Sealed>,
}

/// Makes copies of what these arguments launch. `default_firmware` finds the firmware that QEMU takes by itself, if it does
/// so; in `folder`, which is new, copies have the names by which the guest's log calls them.
///
/// # Errors
/// What cannot be read, and what the arguments launch besides.
pub(super) fn pin(
    user: &[OsString],
    folder: &Path,
    default_firmware: impl FnOnce() -> anyhow::Result<Option<PathBuf>>,
) -> anyhow::Result<Launched> {
    refused::check(user)?;
    let mut pinning = Pinning { arguments: user.to_vec(), flags: Vec::new(), copies: Vec::new(), folder };
    pinning.kernel()?;
    pinning.firmware(default_firmware)?;
    if pinning.flags.is_empty() {
        bail!("--measure auto finds neither kernel nor firmware in QEMU's arguments: there is nothing to measure");
    }
    // Settings of the host's could add anything.
    pinning.arguments.push("-no-user-config".into());
    let Pinning { arguments, flags, copies, .. } = pinning;
    Ok(Launched { arguments, flags, _copies: copies })
}

struct Pinning<'a> {
    arguments: Vec<OsString>,
    flags: Vec<OsString>,
    copies: Vec<Sealed>,
    folder: &'a Path,
}

impl Pinning<'_> {
    fn kernel(&mut self) -> anyhow::Result<()> {
        if !self.pin_file("kernel", "kernel")? {
            return Ok(());
        }
        // Without one it is empty, and that is to be told from another.
        let cmdline = option_values(&self.arguments, &["append"]).last().unwrap_or_default().to_owned();
        self.measure("cmdline", &cmdline);
        self.pin_file("initrd", "initrd")?;
        Ok(())
    }

    /// Puts a copy in the place of the file that an option names. Of several the last counts.
    fn pin_file(&mut self, option: &str, word: &str) -> anyhow::Result<bool> {
        let Some(index) = values_of(&self.arguments, &[option]).last() else { return Ok(false) };
        let Some(value) = self.arguments.get_mut(index) else { return Ok(false) };
        let copy = Sealed::copy(Path::new(value))?;
        *value = copy.path().into();
        let path = value.clone();
        self.copies.push(copy);
        self.measure(word, &path);
        Ok(true)
    }

    /// Copies and measures a firmware file; gives the copy's path for QEMU.
    fn pin_firmware(&mut self, path: &Path) -> anyhow::Result<PathBuf> {
        let copy = Sealed::copy(path)?;
        let for_qemu = copy.path();
        // A descriptor has no name; a link to it in a folder of its own has.
        let folder = self.folder.join(self.copies.len().to_string());
        let link = folder.join(path.file_name().unwrap_or_default());
        let made = std::fs::create_dir_all(&folder).and_then(|()| symlink(&for_qemu, &link));
        made.with_context(|| format!("cannot make {}: set TMPDIR to another folder", link.display()))?;
        self.copies.push(copy);
        self.measure("firmware", link.as_os_str());
        Ok(for_qemu)
    }

    fn measure(&mut self, word: &str, value: &OsStr) {
        let mut flag = OsString::from(format!("--measure={word}="));
        flag.push(value);
        self.flags.push(flag);
    }
}

/// Where the values of these options stand.
fn values_of<'a>(arguments: &'a [OsString], options: &'a [&'a str]) -> impl Iterator<Item = usize> + 'a {
    let pairs = arguments.iter().zip(1..arguments.len());
    pairs.filter(|(option, _)| is_option(option, options)).map(|(_, value)| value)
}

/// The values of these options.
fn option_values<'a>(arguments: &'a [OsString], options: &'a [&'a str]) -> impl Iterator<Item = &'a OsStr> + 'a {
    values_of(arguments, options).filter_map(|index| arguments.get(index)).map(OsString::as_os_str)
}

#[cfg(test)]
mod tests;
