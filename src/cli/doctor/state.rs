//! The state folder: whether a server could use it, and whether what is in it is whole. Nothing in it is changed.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::sys::statvfs::statvfs;
use nix::unistd::{Uid, geteuid};
use rustix::fs::{Access, AtFlags, CWD, accessat};

use super::mount;
use super::report::Finding;
use crate::cli::key_args::KeyArgs;
use crate::state::{Key, KeyError, StateError, StateView};

const NAME: &str = "state folder";
const FILE: &str = "state file";

/// A file of the state is at most as large, and the new one is written beside the old one.
const ROOM: u64 = 8 << 20;

/// Whose state is to be in the folder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Tenant {
    Embedded,
    Swtpm,
}

#[derive(Debug)]
pub(super) enum Folder {
    /// It would be made, if there is a folder above.
    Missing {
        path: PathBuf,
        above: io::Result<()>,
    },
    Unusable {
        path: PathBuf,
        reason: io::Error,
    },
    Found(Found),
}

#[derive(Debug)]
pub(super) struct Found {
    path: PathBuf,
    owner: Uid,
    user: Uid,
    mode: u32,
    writable: io::Result<()>,
    holder: io::Result<Option<String>>,
    files: Result<Vec<File>, StateError>,
    foreign: Option<StateError>,
    unfinished_tpm: bool,
    unfinished_replacing: bool,
    /// Bytes that are free.
    room: Option<u64>,
}

#[derive(Debug)]
struct File {
    name: String,
    generation: u64,
    content: Content,
}

#[derive(Debug)]
enum Content {
    Whole { sealed: bool },
    SealedAndNoKey,
    Refused(StateError),
}

/// What is known of the folder, the file system below it, and the rollback anchor.
#[derive(Debug)]
pub(super) struct State {
    folder: Folder,
    mount: (PathBuf, Option<String>),
    key: Option<KeyFacts>,
    anchor: Option<(PathBuf, Anchor)>,
}

#[derive(Debug)]
struct KeyFacts {
    from: String,
    /// Of a key file.
    mode: Option<u32>,
    error: Option<KeyError>,
}

#[derive(Debug)]
enum Anchor {
    Missing,
    /// A server may be writing to both.
    InUse,
    Checked(Result<(), StateError>),
}

pub(super) fn gather(path: &Path, tenant: Tenant, keys: &KeyArgs) -> anyhow::Result<State> {
    let (key, key_facts) = read_key(keys)?;
    // Whoever reads a path in the output may be elsewhere.
    let path = &std::path::absolute(path)?;
    let (folder, view) = look_into(path, tenant, key.as_ref());
    let nearest = path.ancestors().find_map(|folder| folder.canonicalize().ok()).unwrap_or_else(|| path.clone());
    let kind = mount::kind_of(&nearest);
    let anchor = keys.anchor().map(|anchor| (anchor.to_owned(), look_at_anchor(anchor, &folder, view, key)));
    Ok(State { folder, mount: (nearest, kind), key: key_facts, anchor })
}

fn read_key(keys: &KeyArgs) -> anyhow::Result<(Option<Key>, Option<KeyFacts>)> {
    let from = match (keys.file(), keys.descriptor()) {
        (Some(path), _) => path.display().to_string(),
        (None, Some(number)) => format!("descriptor {number}"),
        (None, None) => return Ok((None, None)),
    };
    let mode = keys.file().and_then(|path| path.metadata().ok()).filter(fs::Metadata::is_file).map(|data| data.mode());
    let facts = |error| Some(KeyFacts { from, mode, error });
    match keys.key() {
        Ok(key) => Ok((key, facts(None))),
        Err(error) => error.downcast::<KeyError>().map(|error| (None, facts(Some(error)))),
    }
}

fn look_into(path: &Path, tenant: Tenant, key: Option<&Key>) -> (Folder, Option<StateView>) {
    match StateView::open(path).and_then(|view| found(path, &view, tenant, key).map(|found| (found, view))) {
        Ok((found, view)) => (Folder::Found(found), Some(view)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let above = path.parent().map_or(Ok(()), may_write_to);
            (Folder::Missing { path: path.to_owned(), above }, None)
        }
        Err(reason) => (Folder::Unusable { path: path.to_owned(), reason }, None),
    }
}

fn found(path: &Path, view: &StateView, tenant: Tenant, key: Option<&Key>) -> io::Result<Found> {
    let metadata = view.metadata()?;
    let files = match tenant {
        Tenant::Embedded => view.files(),
        Tenant::Swtpm => Ok(Vec::new()),
    };
    let file = |file: &crate::state::StateFile| {
        let inspected = file.inspect().map(|undamaged| (undamaged.label.generation, undamaged.is_sealed()));
        let (generation, content) = match inspected {
            Err(error) => (0, Content::Refused(error)),
            Ok((generation, true)) if key.is_none() => (generation, Content::SealedAndNoKey),
            Ok((generation, sealed)) => {
                (generation, file.open(key).map_or_else(Content::Refused, |_| Content::Whole { sealed }))
            }
        };
        File { name: file.name(), generation, content }
    };
    let foreign = match tenant {
        Tenant::Embedded => view.refuse_swtpm(),
        Tenant::Swtpm => view.refuse_embedded(),
    };
    Ok(Found {
        path: path.to_owned(),
        owner: Uid::from_raw(metadata.uid()),
        user: geteuid(),
        mode: metadata.mode() & 0o777,
        writable: may_write_to(path),
        holder: view.holder(),
        files: files.map(|files| files.iter().map(file).collect()),
        foreign: foreign.err(),
        unfinished_tpm: view.has_unfinished_tpm(),
        unfinished_replacing: view.has_unfinished_replacing(),
        room: statvfs(path).ok().map(|room| room.blocks_available().saturating_mul(room.fragment_size())),
    })
}

fn look_at_anchor(path: &Path, folder: &Folder, view: Option<StateView>, key: Option<Key>) -> Anchor {
    if !path.exists() {
        return Anchor::Missing;
    }
    let Folder::Found(found) = folder else { return Anchor::Checked(Ok(())) };
    let Some(view) = view.filter(|_| matches!(found.holder, Ok(None))) else { return Anchor::InUse };
    Anchor::Checked(view.files().and_then(|files| view.check_anchor(path, key, &files)))
}

/// Whether this user may make and remove files in a folder.
pub(super) fn may_write_to(folder: &Path) -> io::Result<()> {
    let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
    if !folder.metadata()?.is_dir() {
        return Err(io::ErrorKind::NotADirectory.into());
    }
    Ok(accessat(CWD, folder, Access::WRITE_OK | Access::EXEC_OK, AtFlags::EACCESS)?)
}

pub(super) fn judge(state: &State) -> Vec<Finding> {
    let mut findings = judge_folder(&state.folder);
    let (path, kind) = &state.mount;
    findings.push(mount::judge(path, kind.as_deref()));
    findings.extend(state.key.as_ref().map(judge_key));
    findings.extend(state.anchor.as_ref().map(|(path, anchor)| judge_anchor(path, anchor)));
    findings
}

fn judge_folder(folder: &Folder) -> Vec<Finding> {
    let found = match folder {
        Folder::Missing { path, above: Ok(()) } => {
            return vec![Finding::ok(
                NAME,
                format!("{} is not there yet; the first start makes it, and a TPM in it", path.display()),
            )];
        }
        Folder::Missing { path, above: Err(reason) } => {
            let advice = match path.parent().filter(|_| reason.kind() == io::ErrorKind::NotFound) {
                Some(parent) => format!("make the folder above: mkdir -p {}", parent.display()),
                None => {
                    "choose a folder that this user may make, or make it and give it to the server's user".to_owned()
                }
            };
            let found = format!("{} is not there, and cannot be made: {reason}", path.display());
            return vec![Finding::problem(NAME, found, advice)];
        }
        Folder::Unusable { path, reason } => {
            let advice = match reason.kind() {
                io::ErrorKind::NotADirectory => "give a folder. The state of a host's TPM stays in its chip",
                _ => "run this as the user whose server it is, or give that user the folder (chown)",
            };
            return vec![Finding::problem(NAME, format!("{}: {reason}", path.display()), advice)];
        }
        Folder::Found(found) => found,
    };
    let mut findings = vec![judge_place(found)];
    findings.extend(judge_rights(found));
    findings.extend(judge_content(found));
    findings
}

fn judge_place(found: &Found) -> Finding {
    let path = found.path.display();
    match (&found.holder, &found.writable) {
        (Ok(Some(holder)), _) => Finding::ok(
            NAME,
            format!(
                "{path} is in use by process {holder}: a second server, and commands that change it, will be refused"
            ),
        ),
        (_, Err(reason)) => Finding::problem(
            NAME,
            format!("no right to write to {path}: {reason}"),
            format!("run this as the user whose server it is, or give this user the folder: chown -R USER {path}"),
        ),
        (Err(reason), Ok(())) => Finding::problem(
            NAME,
            format!("the file lock in {path} cannot be opened: {reason}"),
            format!("give this user the folder with all that is in it: chown -R USER {path}"),
        ),
        (Ok(None), Ok(())) if found.room.is_some_and(|room| room < ROOM) => Finding::problem(
            NAME,
            format!(
                "{path} has {} KiB left on its disk: what a guest stores in its TPM may not fit",
                found.room.unwrap_or(0) / 1024
            ),
            "make room on the disk",
        ),
        (Ok(None), Ok(())) => Finding::ok(NAME, format!("{path}, free for a server")),
    }
}

fn judge_rights(found: &Found) -> Vec<Finding> {
    let path = found.path.display();
    let mut findings = Vec::new();
    if found.mode & 0o077 != 0 {
        findings.push(Finding::warning(
            NAME,
            format!("{path} is open to other users (mode {:o}), and the TPM's secrets are in it", found.mode),
            format!("chmod 700 {path}"),
        ));
    }
    if found.owner != found.user {
        findings.push(Finding::warning(
            NAME,
            format!("{path} belongs to user {}, and this one is {}", found.owner, found.user),
            format!("run this, and the server, as user {}, or give the folder away: chown -R USER {path}", found.owner),
        ));
    }
    findings
}

fn judge_content(found: &Found) -> Vec<Finding> {
    let path = found.path.display();
    let mut findings: Vec<_> = match &found.files {
        Ok(files) if files.is_empty() && found.foreign.is_none() => {
            vec![Finding::ok(FILE, "none: the next start makes a new TPM, state init one with certificates")]
        }
        Ok(files) => files.iter().map(judge_file).collect(),
        Err(error) => vec![Finding::problem(FILE, error.to_string(), "restore it from a backup, and look at the disk")],
    };
    findings.extend(
        found
            .foreign
            .as_ref()
            .map(|error| Finding::problem(NAME, error.to_string(), "choose another folder, or move the state as said")),
    );
    if found.unfinished_tpm {
        findings.push(Finding::warning(
            NAME,
            format!("{path}/making was left by a state init or clone that was interrupted, with the secrets of a TPM"),
            format!("if no such command runs: rm -r {path}/making"),
        ));
    }
    if found.unfinished_replacing {
        findings.push(Finding::warning(
            NAME,
            "an import or a change of keys was interrupted, and what is said of the files is of the half of it",
            "nothing: the next start, or command, finishes it",
        ));
    }
    findings
}

fn judge_file(file: &File) -> Finding {
    let File { name, generation, content } = file;
    match content {
        Content::Whole { sealed } => Finding::ok(
            FILE,
            format!(
                "{name}, generation {generation}: whole, {}",
                if *sealed { "and the key fits" } else { "not sealed (--key-file)" }
            ),
        ),
        Content::SealedAndNoKey => Finding::warning(
            FILE,
            format!("{name}, generation {generation}: undamaged, sealed, and no key was given"),
            "give the server's --key-file here too, and it is tried",
        ),
        Content::Refused(error @ StateError::Key { .. }) => Finding::problem(
            FILE,
            error.to_string(),
            "give the key that it was sealed with, if it was (--key-file). Without that key the state is lost",
        ),
        Content::Refused(error) => Finding::problem(FILE, error.to_string(), "see docs/state.md: backup and restore"),
    }
}

fn judge_key(key: &KeyFacts) -> Finding {
    let KeyFacts { from, mode, error } = key;
    match (error, mode) {
        (Some(error), _) => {
            Finding::problem("key", error.to_string(), "give the file with the key, as this user may read it")
        }
        (None, Some(mode)) if mode & 0o077 != 0 => Finding::warning(
            "key",
            format!("{from} is open to other users (mode {:o})", mode & 0o777),
            format!("chmod 600 {from}"),
        ),
        (None, _) => Finding::ok("key", format!("{from} can be read")),
    }
}

fn judge_anchor(path: &Path, anchor: &Anchor) -> Finding {
    const NAME: &str = "anchor";
    let path = path.display();
    match anchor {
        Anchor::Missing => Finding::warning(
            NAME,
            format!("{path} is not there: the next start makes it, and takes whatever state is there for the newest"),
            "nothing, if it is to be made; else find out where it has gone",
        ),
        Anchor::InUse => Finding::ok(NAME, format!("{path}; not held against the state while that is in use")),
        Anchor::Checked(Ok(())) => Finding::ok(NAME, format!("{path} knows no newer state")),
        Anchor::Checked(Err(error)) => Finding::problem(
            NAME,
            error.to_string(),
            "put the newest state back. If the older one is meant: vfio-user-tpm state anchor --force",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::super::report::Level;
    use super::*;

    fn found() -> Found {
        Found {
            path: "/s".into(),
            owner: Uid::from_raw(1000),
            user: Uid::from_raw(1000),
            mode: 0o700,
            writable: Ok(()),
            holder: Ok(None),
            files: Ok(Vec::new()),
            foreign: None,
            unfinished_tpm: false,
            unfinished_replacing: false,
            room: Some(1 << 30),
        }
    }

    #[track_caller]
    fn says(folder: &Folder, level: Level, text: &str) {
        let findings = judge_folder(folder);
        let worst = findings.iter().map(Finding::level).max().unwrap();
        let all: Vec<_> = findings.iter().map(Finding::text).collect();
        assert_eq!(worst, level, "{all:#?}");
        assert!(all.iter().any(|finding| finding.contains(text)), "{text}: {all:#?}");
    }

    fn error(kind: io::ErrorKind) -> io::Error {
        kind.into()
    }

    fn with(content: Content) -> Folder {
        let file = File { name: "tpm2.0-permanent.state".to_owned(), generation: 7, content };
        Folder::Found(Found { files: Ok(vec![file]), ..found() })
    }

    #[test]
    fn a_folder_that_is_there_or_can_be_made_is_good() {
        says(&Folder::Found(found()), Level::Ok, "free for a server");
        says(&Folder::Missing { path: "/s".into(), above: Ok(()) }, Level::Ok, "makes it");
        let held =
            Found { holder: Ok(Some("77".into())), writable: Err(error(io::ErrorKind::PermissionDenied)), ..found() };
        says(&Folder::Found(held), Level::Ok, "process 77");
    }

    #[test]
    fn a_folder_that_cannot_be_used_is_a_problem() {
        let above = Err(error(io::ErrorKind::NotFound));
        says(&Folder::Missing { path: "/a/s".into(), above }, Level::Problem, "mkdir -p /a");
        for (kind, text) in [(io::ErrorKind::NotADirectory, "a folder"), (io::ErrorKind::PermissionDenied, "chown")] {
            says(&Folder::Unusable { path: "/s".into(), reason: error(kind) }, Level::Problem, text);
        }
        let denied = || Err(error(io::ErrorKind::PermissionDenied));
        says(&Folder::Found(Found { writable: denied(), ..found() }), Level::Problem, "chown -R");
        says(&Folder::Found(Found { room: Some(4096), ..found() }), Level::Problem, "4 KiB");
        let foreign = Some(StateError::Swtpm { name: "tpm2-00.permall" });
        says(&Folder::Found(Found { foreign, ..found() }), Level::Problem, "state import --from-swtpm");
    }

    #[test]
    fn a_folder_that_others_can_look_into_is_a_warning() {
        says(&Folder::Found(Found { mode: 0o755, ..found() }), Level::Warning, "chmod 700 /s");
        says(&Folder::Found(Found { owner: Uid::from_raw(0), ..found() }), Level::Warning, "belongs to user 0");
        says(&Folder::Found(Found { unfinished_tpm: true, ..found() }), Level::Warning, "rm -r /s/making");
        says(&Folder::Found(Found { unfinished_replacing: true, ..found() }), Level::Warning, "finishes it");
    }

    #[test]
    fn each_state_file_is_told_with_whether_the_key_fits() {
        says(&with(Content::Whole { sealed: true }), Level::Ok, "the key fits");
        says(&with(Content::Whole { sealed: false }), Level::Ok, "not sealed");
        says(&with(Content::SealedAndNoKey), Level::Warning, "--key-file");
        let refused = StateError::Empty;
        says(&with(Content::Refused(refused)), Level::Problem, "backup");
    }

    #[test]
    fn a_key_is_readable_and_its_users_alone() {
        let level = |mode, error| judge_key(&KeyFacts { from: "/k".into(), mode, error }).level();
        assert_eq!(level(Some(0o100_600), None), Level::Ok);
        assert_eq!(level(None, None), Level::Ok);
        assert_eq!(level(Some(0o100_644), None), Level::Warning);
        let unreadable = KeyError::Read { from: "/k".into(), reason: error(io::ErrorKind::NotFound) };
        assert_eq!(level(None, Some(unreadable)), Level::Problem);
    }

    #[test]
    fn an_anchor_that_knows_better_is_a_problem() {
        let level = |anchor| judge_anchor(Path::new("/a"), &anchor).level();
        assert_eq!((level(Anchor::Checked(Ok(()))), level(Anchor::InUse)), (Level::Ok, Level::Ok));
        assert_eq!(level(Anchor::Missing), Level::Warning);
        assert_eq!(level(Anchor::Checked(Err(StateError::Empty))), Level::Problem);
    }
}
