//! The host's TPM: rights, and who has it open. It is not opened, which would keep others out for that moment.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::unistd::{Gid, Group, Uid, User as Account};
use rustix::fs::{Access, AtFlags, CWD, accessat};
use rustix::io::Errno;

use super::report::Finding;
use crate::backend::passthrough::version_by_sysfs;
use crate::tpm::TpmVersion;

const NAME: &str = "host's TPM";
const DEVICES: [&str; 2] = ["/dev/tpm0", "/dev/tpmrm0"];

/// Users of a device that are named.
const NAMED: usize = 5;

#[derive(Debug)]
pub(super) struct HostTpm {
    /// The one that is to be handed through.
    wanted: bool,
    path: PathBuf,
    access: Result<(), Errno>,
    /// Whose it is, if it is there.
    owner: Option<Owner>,
    version: Option<TpmVersion>,
    /// Who has it open, as far as this user may know.
    users: Vec<User>,
}

/// Rights on a device.
#[derive(Debug)]
struct Owner {
    user: String,
    group: String,
    mode: u32,
}

#[derive(Debug)]
struct User {
    pid: u32,
    name: String,
}

/// Looks at the TPM that is to be handed through, or at those that are usually there.
pub(super) fn gather(wanted: Option<&Path>) -> Vec<HostTpm> {
    let paths = wanted.map_or_else(|| DEVICES.map(PathBuf::from).to_vec(), |path| vec![path.to_owned()]);
    let look = |path: PathBuf| HostTpm {
        wanted: wanted.is_some(),
        access: accessat(CWD, &path, Access::READ_OK | Access::WRITE_OK, AtFlags::EACCESS),
        owner: Owner::of(&path),
        version: version_by_sysfs(&path),
        users: path.canonicalize().map(|path| users_of(&path)).unwrap_or_default(),
        path,
    };
    paths.into_iter().map(look).collect()
}

impl Owner {
    fn of(path: &Path) -> Option<Self> {
        let metadata = fs::metadata(path).ok()?;
        let user = Account::from_uid(Uid::from_raw(metadata.uid())).ok().flatten().map(|user| user.name);
        let group = Group::from_gid(Gid::from_raw(metadata.gid())).ok().flatten().map(|group| group.name);
        Some(Self {
            user: user.unwrap_or_else(|| metadata.uid().to_string()),
            group: group.unwrap_or_else(|| metadata.gid().to_string()),
            mode: metadata.mode() & 0o777,
        })
    }

    /// How to get the right to use it. A group of root's is nobody's to be in.
    fn advice(&self) -> String {
        let Self { user, group, mode } = self;
        if mode & 0o060 == 0o060 && group != "root" {
            format!("become a member of the group {group}, in a unit by SupplementaryGroups={group}")
        } else {
            format!(
                "run this as user {user}, or give it to a group by a udev rule (see \"Other TPMs\" in docs/service.md)"
            )
        }
    }
}

/// By the links in /proc, which are not followed.
fn users_of(path: &Path) -> Vec<User> {
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    let users = processes.filter_map(|process| {
        let pid = process.file_name().to_str()?.parse().ok()?;
        let mut open = fs::read_dir(process.path().join("fd")).ok()?.flatten();
        let has_it = open.any(|descriptor| fs::read_link(descriptor.path()).is_ok_and(|link| link == path));
        let name = fs::read_to_string(process.path().join("comm")).unwrap_or_default();
        has_it.then(|| User { pid, name: name.trim().to_owned() })
    });
    users.collect()
}

pub(super) fn judge(tpms: &[HostTpm]) -> Vec<Finding> {
    if tpms.iter().all(|tpm| !tpm.wanted && tpm.is_missing()) {
        return vec![Finding::ok(NAME, "none; only --backend=passthrough needs one")];
    }
    tpms.iter().filter(|tpm| tpm.wanted || !tpm.is_missing()).map(judge_one).collect()
}

impl HostTpm {
    fn is_missing(&self) -> bool {
        !matches!(self.access, Ok(()) | Err(Errno::ACCESS | Errno::PERM))
    }

    /// Whether others can use it at the same time.
    fn is_shared(&self) -> bool {
        self.path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"tpmrm"))
    }
}

fn judge_one(tpm: &HostTpm) -> Finding {
    let path = tpm.path.display();
    let version = tpm.version.map_or_else(|| "a TPM".to_owned(), |version| format!("a TPM {version}"));
    let users: Vec<_> = tpm.users.iter().take(NAMED).map(|User { pid, name }| format!("{name} ({pid})")).collect();
    let (found, advice) = match tpm.access {
        Err(Errno::ACCESS | Errno::PERM) => match &tpm.owner {
            Some(owner @ Owner { user, group, mode }) => (
                format!(
                    "{path}, {version}: no right to read and write it; it is user {user}'s and group {group}'s (mode {mode:o})"
                ),
                owner.advice(),
            ),
            None => (
                format!("{path}, {version}: no right to read and write it, nor to see whose it is"),
                "run this as a user who can look into its folder".to_owned(),
            ),
        },
        Err(errno) => (
            format!("{path}: {errno}"),
            "see what ls /dev/tpm* shows, and hand the device to a container; else say --tpm-path".to_owned(),
        ),
        Ok(()) if !users.is_empty() && !tpm.is_shared() => (
            format!("{path}, {version}, is in use by {}, and opens only once", users.join(", ")),
            "end that process, or share the TPM with it by /dev/tpmrm0".to_owned(),
        ),
        Ok(()) => {
            let shared = if users.is_empty() { String::new() } else { format!(", shared with {}", users.join(", ")) };
            return Finding::ok(NAME, format!("{path}, {version}, can be used{shared}"));
        }
    };
    if tpm.wanted {
        Finding::problem(NAME, found, advice)
    } else {
        Finding::ok(NAME, format!("{found}; only for --backend=passthrough: {advice}"))
    }
}

#[cfg(test)]
mod tests {
    use super::super::report::Level;
    use super::*;

    fn tpm(wanted: bool, path: &str, access: Result<(), Errno>, users: &[&str]) -> HostTpm {
        let users = users.iter().map(|name| User { pid: 7, name: (*name).to_owned() }).collect();
        // As Debian's rules have it.
        let group = if path.contains("tpmrm") { "tss" } else { "root" };
        let owner = Some(Owner { user: "tss".to_owned(), group: group.to_owned(), mode: 0o660 });
        HostTpm { wanted, path: path.into(), access, owner, version: Some(TpmVersion::V2_0), users }
    }

    #[track_caller]
    fn says(tpm: HostTpm, level: Level, text: &str) {
        let findings = judge(&[tpm]);
        assert_eq!((findings.len(), findings[0].level()), (1, level), "{findings:?}");
        assert!(findings[0].text().contains(text), "{findings:?}");
    }

    #[test]
    fn a_tpm_that_is_to_be_handed_through_has_to_be_free() {
        says(tpm(true, "/dev/tpm0", Ok(()), &[]), Level::Ok, "can be used");
        says(tpm(true, "/dev/tpm0", Ok(()), &["tpm2-abrmd"]), Level::Problem, "tpm2-abrmd (7)");
        says(tpm(true, "/dev/tpmrm0", Ok(()), &["tpm2-abrmd"]), Level::Ok, "shared with");
        let denied = |path| tpm(true, path, Err(Errno::ACCESS), &[]);
        says(denied("/dev/tpm0"), Level::Problem, "user tss's and group root's (mode 660)");
        says(denied("/dev/tpm0"), Level::Problem, "run this as user tss, or");
        says(denied("/dev/tpmrm0"), Level::Problem, "SupplementaryGroups=tss");
        says(HostTpm { owner: None, ..denied("/dev/tpm0") }, Level::Problem, "whose it is");
        says(tpm(true, "/dev/tpm9", Err(Errno::NOENT), &[]), Level::Problem, "ls /dev/tpm*");
    }

    #[test]
    fn where_none_is_wanted_nothing_is_wrong_with_it() {
        says(tpm(false, "/dev/tpm0", Err(Errno::NOENT), &[]), Level::Ok, "none");
        says(tpm(false, "/dev/tpm0", Err(Errno::ACCESS), &[]), Level::Ok, "tss");
        says(tpm(false, "/dev/tpm0", Ok(()), &["tcsd"]), Level::Ok, "tcsd");
    }

    #[test]
    fn who_has_a_file_open_is_found() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().canonicalize().unwrap().join("tpm0");
        let open = fs::File::create(&path).unwrap();
        assert!(users_of(&path).iter().any(|user| user.pid == std::process::id()));
        drop(open);
        assert!(!users_of(&path).iter().any(|user| user.pid == std::process::id()));
    }
}
