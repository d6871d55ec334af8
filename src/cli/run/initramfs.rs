//! The initramfs of a machine to which QEMU adds no tables: Linux installs the TPM's from there.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Write};
use std::path::Path;

use anyhow::Context;

use super::qemu::is_option;

/// QEMU's option.
const OPTION: &str = "-initrd";

/// The arguments for an initramfs that begins with `archive` and goes on with the one among the user's arguments, for which
/// the file `new` is made; nothing if there is none.
pub(super) fn arguments(user: &[OsString], archive: &[u8], new: &Path) -> anyhow::Result<Vec<OsString>> {
    let Some(old) = given(user) else { return Ok(Vec::new()) };
    let old_file = File::open(old).with_context(|| format!("cannot read the file of QEMU's -initrd, {old:?}"))?;
    join(archive, old_file, new).with_context(|| {
        let new = new.display();
        format!("cannot put the TPM's table in front of {old:?}, in {new}: set TMPDIR to a folder with space for it")
    })?;
    // Of several the last counts.
    Ok(vec![OPTION.into(), new.into()])
}

fn join(archive: &[u8], mut old: File, new: &Path) -> io::Result<()> {
    let mut file = File::create_new(new)?;
    file.write_all(archive)?;
    io::copy(&mut old, &mut file).map(|_bytes| ())
}

/// The initramfs that these arguments name.
fn given(arguments: &[OsString]) -> Option<&OsString> {
    let mut values = arguments.iter().zip(arguments.iter().skip(1)).rev();
    values.find_map(|(option, value)| is_option(option, &["initrd"]).then_some(value))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn with(user: &[&str]) -> anyhow::Result<Vec<OsString>> {
        let user: Vec<_> = user.iter().map(OsString::from).collect();
        arguments(&user, b"", Path::new("/nowhere/initramfs"))
    }

    #[test]
    fn the_archive_comes_before_the_users_initramfs() {
        let folder = tempfile::tempdir().unwrap();
        let [old, new] = ["old", "new"].map(|name| folder.path().join(name));
        fs::write(&old, "old").unwrap();
        let user = ["-initrd".into(), "/nowhere/first".into(), "--initrd".into(), old.into_os_string()];
        let expected = ["-initrd".into(), new.clone().into_os_string()];
        assert_eq!(arguments(&user, b"archive ", &new).unwrap(), expected);
        assert_eq!(fs::read_to_string(&new).unwrap(), "archive old");
    }

    #[test]
    fn without_an_initramfs_there_is_nothing_to_do() {
        assert!(with(&["-kernel", "vmlinuz"]).unwrap().is_empty());
        assert!(with(&["-initrd"]).unwrap().is_empty());
    }

    #[test]
    fn an_initramfs_that_is_not_there_is_named() {
        assert!(with(&["-initrd", "/nowhere/old"]).unwrap_err().to_string().contains("/nowhere/old"));
    }
}
