//! The socket: whether a server could listen there, or whether somebody does. Nobody is connected to.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::report::Finding;
use super::state::may_write_to;
use crate::vfio_user::{AtPath, look_at};

const NAME: &str = "socket";

/// Bytes of the longest path that fits into a socket's address.
const LONGEST: usize = 107;

#[derive(Debug)]
pub(super) struct Socket {
    path: PathBuf,
    at_path: io::Result<AtPath>,
    folder: PathBuf,
    /// Whether this user may make a socket in the folder.
    writable: io::Result<()>,
    /// The folder's mode.
    mode: Option<u32>,
}

pub(super) fn gather(path: &Path) -> Socket {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new(".")).to_owned();
    Socket {
        path: path.to_owned(),
        at_path: look_at(path),
        writable: may_write_to(&folder),
        mode: fs::metadata(&folder).ok().map(|data| data.mode()),
        folder,
    }
}

pub(super) fn judge(socket: &Socket) -> Finding {
    let (path, folder) = (socket.path.display(), socket.folder.display());
    let length = socket.path.as_os_str().len();
    if length > LONGEST {
        return Finding::problem(
            NAME,
            format!("{path} is {length} bytes long, and {LONGEST} is the most for a socket's path"),
            "choose a shorter one, as /run/user/UID/tpm.sock",
        );
    }
    match (&socket.at_path, &socket.writable) {
        (Ok(AtPath::Bound), _) => Finding::ok(
            NAME,
            format!(
                "somebody listens on {path}: a server that QEMU can attach to, if it is one. A second one needs another path"
            ),
        ),
        (Ok(AtPath::NoSocket), _) => Finding::problem(
            NAME,
            format!("{path} is there, and is no socket"),
            "choose another path, or remove what is there",
        ),
        (_, Err(reason)) => Finding::problem(
            NAME,
            format!("no socket can be made in {folder}: {reason}"),
            match reason.kind() {
                io::ErrorKind::NotFound => format!("make the folder: mkdir -p {folder}"),
                _ => "choose a folder that this user may write to, as /run/user/UID".to_owned(),
            },
        ),
        (Err(reason), _) => Finding::problem(
            NAME,
            format!("{path} cannot be looked at: {reason}"),
            "choose another path, or run this as the user whose server it is",
        ),
        (Ok(AtPath::Abandoned | AtPath::Nothing), Ok(())) if is_open_to_all(socket.mode) => Finding::warning(
            NAME,
            format!("{folder} can be written to by others, who could put a socket of their own in the place of {path}"),
            format!("choose a folder of the server's user, or: chmod go-w {folder}"),
        ),
        (Ok(AtPath::Abandoned), Ok(())) => {
            Finding::ok(NAME, format!("{path} was left by a server that is gone; the next one replaces it"))
        }
        (Ok(AtPath::Nothing), Ok(())) => Finding::ok(NAME, format!("{path}, free for a server")),
    }
}

/// Whether others than the owner may replace files in a folder with this mode.
fn is_open_to_all(mode: Option<u32>) -> bool {
    const STICKY: u32 = 0o1000;
    mode.is_some_and(|mode| mode & 0o022 != 0 && mode & STICKY == 0)
}

/// The control socket of an swtpm that is to be attached to.
#[derive(Debug)]
pub(super) struct Control {
    path: PathBuf,
    at_path: io::Result<AtPath>,
}

pub(super) fn gather_control(path: &Path) -> Control {
    Control { path: path.to_owned(), at_path: look_at(path) }
}

pub(super) fn judge_control(control: &Control) -> Finding {
    const NAME: &str = "swtpm";
    let path = control.path.display();
    let found = match &control.at_path {
        Ok(AtPath::Bound) => return Finding::ok(NAME, format!("somebody listens on {path}")),
        Ok(AtPath::Nothing) => format!("{path} is not there"),
        Ok(AtPath::Abandoned) => format!("nobody listens on {path} any more"),
        Ok(AtPath::NoSocket) => format!("{path} is no socket"),
        Err(reason) => format!("{path} cannot be connected to: {reason}"),
    };
    Finding::problem(
        NAME,
        found,
        format!(
            "start it, as a user whose sockets this one may use: swtpm socket --tpm2 --tpmstate dir=DIR --ctrl type=unixio,path={path}"
        ),
    )
}

#[cfg(test)]
mod tests {
    use super::super::report::Level;
    use super::*;

    fn socket(at_path: io::Result<AtPath>) -> Socket {
        Socket { path: "/r/s".into(), at_path, folder: "/r".into(), writable: Ok(()), mode: Some(0o40_700) }
    }

    #[track_caller]
    fn says(socket: &Socket, level: Level, text: &str) {
        let finding = judge(socket);
        assert_eq!(finding.level(), level, "{}", finding.text());
        assert!(finding.text().contains(text), "{}", finding.text());
    }

    #[test]
    fn a_path_that_is_free_or_abandoned_or_served_is_good() {
        says(&socket(Ok(AtPath::Nothing)), Level::Ok, "free");
        says(&socket(Ok(AtPath::Abandoned)), Level::Ok, "replaces it");
        says(&socket(Ok(AtPath::Bound)), Level::Ok, "somebody listens");
        says(&Socket { mode: Some(0o41_777), ..socket(Ok(AtPath::Nothing)) }, Level::Ok, "free");
    }

    #[test]
    fn where_no_server_can_listen_is_a_problem() {
        let error = |kind: io::ErrorKind| Err(io::Error::from(kind));
        says(&socket(Ok(AtPath::NoSocket)), Level::Problem, "no socket");
        let long = PathBuf::from(format!("/{}", "x".repeat(107)));
        says(&Socket { path: long, ..socket(Ok(AtPath::Nothing)) }, Level::Problem, "108 bytes");
        let missing = Socket { writable: error(io::ErrorKind::NotFound), ..socket(Ok(AtPath::Nothing)) };
        says(&missing, Level::Problem, "mkdir -p /r");
        let forbidden = Socket { writable: error(io::ErrorKind::PermissionDenied), ..socket(Ok(AtPath::Nothing)) };
        says(&forbidden, Level::Problem, "may write to");
        says(&socket(Err(io::ErrorKind::PermissionDenied.into())), Level::Problem, "cannot be looked at");
        says(&Socket { mode: Some(0o40_777), ..socket(Ok(AtPath::Nothing)) }, Level::Warning, "chmod go-w");
    }

    #[test]
    fn an_swtpm_to_attach_to_has_to_listen() {
        let level = |at_path| judge_control(&Control { path: "/c".into(), at_path }).level();
        assert_eq!(level(Ok(AtPath::Bound)), Level::Ok);
        for at_path in [Ok(AtPath::Nothing), Ok(AtPath::Abandoned), Ok(AtPath::NoSocket)] {
            assert_eq!(level(at_path), Level::Problem);
        }
        assert_eq!(level(Err(io::ErrorKind::PermissionDenied.into())), Level::Problem);
    }
}
