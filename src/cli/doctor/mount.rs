//! Which file system a folder is on, by the kernel's list of mounts.

use std::ffi::OsString;
use std::fs;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use super::report::Finding;

const NAME: &str = "file system";

/// File systems whose content is gone after a reboot, or with a container.
const FLEETING: [&str; 3] = ["tmpfs", "ramfs", "overlay"];

/// File systems of other machines, or that may be of one.
const REMOTE: [&str; 9] = ["nfs", "nfs4", "cifs", "smb3", "9p", "ceph", "afs", "fuse.sshfs", "virtiofs"];

/// File systems without owners and modes.
const WITHOUT_MODES: [&str; 4] = ["vfat", "exfat", "msdos", "ntfs3"];

/// The kind of file system that a path, absolute and without links, is on.
pub(super) fn kind_of(path: &Path) -> Option<String> {
    kind_in(&fs::read_to_string("/proc/self/mountinfo").ok()?, path)
}

/// Source: proc_pid_mountinfo(5). Of the mounts above the path the longest counts, and of several at one place the last.
fn kind_in(mountinfo: &str, path: &Path) -> Option<String> {
    let mounts = mountinfo.lines().filter_map(|line| {
        let (mount, file_system) = line.split_once(" - ")?;
        let point = unescape(mount.split(' ').nth(4)?);
        path.starts_with(&point).then(|| (point, file_system.split(' ').next().unwrap_or_default()))
    });
    let deepest = mounts.max_by_key(|(point, _)| point.components().count());
    deepest.map(|(_, kind)| kind.to_owned())
}

/// Spaces and the like stand there as `\040`.
fn unescape(text: &str) -> PathBuf {
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let [first, more @ ..] = rest {
        let digits = more.first_chunk::<3>().and_then(|digits| std::str::from_utf8(digits).ok());
        let escaped = digits.filter(|_| *first == b'\\').and_then(|digits| u8::from_str_radix(digits, 8).ok());
        bytes.push(escaped.unwrap_or(*first));
        rest = if escaped.is_some() { more.get(3..).unwrap_or_default() } else { more };
    }
    PathBuf::from(OsString::from_vec(bytes))
}

pub(super) fn judge(path: &Path, kind: Option<&str>) -> Finding {
    let path = path.display();
    let Some(kind) = kind else { return Finding::ok(NAME, format!("not known for {path}")) };
    let found = format!("{path} is on {kind}");
    if FLEETING.contains(&kind) {
        Finding::warning(
            NAME,
            format!("{found}: the TPM would be lost with the next reboot, or with the container"),
            "choose a --state-dir on a disk, or a volume",
        )
    } else if REMOTE.contains(&kind) {
        Finding::warning(
            NAME,
            format!(
                "{found}, from another machine: locks may not keep a second machine from the same state, and writes last \
                     as well as that machine sees to it"
            ),
            "choose a local disk; else make sure that one machine at a time uses the folder, and that the other machine syncs",
        )
    } else if WITHOUT_MODES.contains(&kind) {
        Finding::warning(
            NAME,
            format!("{found}, which knows no owners and modes: who may read it may read the TPM's secrets"),
            "choose a file system of Linux's own, or seal the state with --key-file",
        )
    } else {
        Finding::ok(NAME, found)
    }
}

#[cfg(test)]
mod tests {
    use super::super::report::Level;
    use super::*;

    const MOUNTS: &str = "22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw\n\
                          30 22 0:25 / /tmp rw - tmpfs tmpfs rw\n\
                          31 22 0:26 / /srv/my\\040disk rw master:2 - nfs4 host:/x rw\n\
                          32 30 0:27 / /tmp rw - xfs /dev/vdb rw\n\
                          broken line\n";

    #[test]
    fn the_mount_that_is_nearest_above_counts_and_the_last_of_several() {
        for (path, kind) in [
            ("/var/lib/tpm", "ext4"),
            ("/tmp", "xfs"),
            ("/tmp/a/b", "xfs"),
            ("/tmpfile", "ext4"),
            ("/srv/my disk/tpm", "nfs4"),
        ] {
            assert_eq!(kind_in(MOUNTS, Path::new(path)).as_deref(), Some(kind), "{path}");
        }
        assert_eq!(kind_in("", Path::new("/")), None);
    }

    #[test]
    fn escapes_are_undone_and_broken_ones_are_left() {
        assert_eq!(unescape("/a\\040b\\134"), Path::new("/a b\\"));
        assert_eq!(unescape("/a\\9\\"), Path::new("/a\\9\\"));
    }

    #[test]
    fn a_disk_is_good_and_all_else_is_told() {
        let level = |kind| judge(Path::new("/s"), kind).level();
        for kind in [Some("ext4"), Some("xfs"), Some("btrfs"), Some("zfs"), None] {
            assert_eq!(level(kind), Level::Ok, "{kind:?}");
        }
        for kind in ["tmpfs", "overlay", "nfs4", "fuse.sshfs", "vfat"] {
            assert_eq!(level(Some(kind)), Level::Warning, "{kind}");
        }
        assert!(judge(Path::new("/s"), Some("tmpfs")).text().contains("reboot"));
    }
}
