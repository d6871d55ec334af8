//! The other side: asks a server, and waits for its answer.

use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use httparse::{EMPTY_HEADER, Status};
use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, setsockopt, socket, sockopt};
use nix::sys::time::{TimeVal, TimeValLike};
use thiserror::Error;

/// How long a server may take in all, from the connection to the end of its answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// Bytes in the longest answer that is read.
const MAX_ANSWER: usize = 1 << 20;

/// Most header fields in an answer.
const MAX_FIELDS: usize = 32;

/// Why there is no answer.
#[derive(Debug, Error)]
pub enum AskError {
    /// Nobody can be asked.
    #[error("nothing answers: is the server running, and is this the PATH of its --control?")]
    Connect(#[source] io::Error),
    /// The user may not: the socket is another's, or the server has hung up.
    #[error("no answer is given: the control socket is only for the server's user; ask as that one, or as root")]
    Forbidden(#[source] io::Error),
    /// The server has not answered.
    #[error("the server does not answer: it is stopped, or busy with other questions")]
    Silence(#[source] io::Error),
    /// The answer is none, or not the whole of it.
    #[error("what answers is no control socket of vfio-user-tpm, or its answer was cut short: {0}")]
    Garbled(&'static str),
}

/// What a server has answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Asked {
    /// The status, as 200.
    pub status: u16,
    /// The text. It is another process's: there may be control characters in it.
    pub body: String,
}

/// Asks the server with this control socket for `resource`, as `/status`.
///
/// # Errors
/// [`AskError`].
pub fn ask(socket: &Path, resource: &str) -> Result<Asked, AskError> {
    ask_within(PATIENCE, socket, resource)
}

fn ask_within(patience: Duration, socket: &Path, resource: &str) -> Result<Asked, AskError> {
    let begun = Instant::now();
    let mut socket = connected(patience, socket).map_err(|errno| match errno {
        Errno::EACCES | Errno::EPERM => AskError::Forbidden(errno.into()),
        Errno::EAGAIN => AskError::Silence(errno.into()),
        errno => AskError::Connect(errno.into()),
    })?;
    let request = format!("GET {resource} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
    let left = || patience.saturating_sub(begun.elapsed());
    let answer = socket.write_all(request.as_bytes()).and_then(|()| received(&mut socket, left));
    let answer = answer.map_err(|error| match error.kind() {
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => AskError::Silence(error),
        _ => AskError::Forbidden(error),
    })?;
    if answer.is_empty() {
        return Err(AskError::Forbidden(io::ErrorKind::ConnectionAborted.into()));
    }
    read(&answer)
}

/// A connection. A server that is stopped does not accept it, so that is not waited for without an end.
fn connected(patience: Duration, path: &Path) -> nix::Result<UnixStream> {
    let address = UnixAddr::new(path)?;
    let socket = socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    let patience = TimeVal::milliseconds(patience.as_millis().try_into().unwrap_or(i64::MAX));
    setsockopt(&socket, sockopt::SendTimeout, &patience)?;
    connect(socket.as_raw_fd(), &address)?;
    Ok(socket.into())
}

/// All that comes, as long as time is `left`.
fn received(socket: &mut UnixStream, left: impl Fn() -> Duration) -> io::Result<Vec<u8>> {
    let mut answer = Vec::new();
    let mut part = [0; 4096];
    while answer.len() < MAX_ANSWER {
        let left = left();
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        // For one read. A peer that drips would begin it anew with each byte.
        socket.set_read_timeout(Some(left))?;
        match socket.read(&mut part) {
            Ok(0) => break,
            Ok(count) => answer.extend_from_slice(part.get(..count).unwrap_or_default()),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(answer)
}

/// Reads a whole answer.
fn read(answer: &[u8]) -> Result<Asked, AskError> {
    let mut fields = [EMPTY_HEADER; MAX_FIELDS];
    let mut response = httparse::Response::new(&mut fields);
    let Ok(Status::Complete(head)) = response.parse(answer) else {
        return Err(AskError::Garbled("it does not begin as HTTP does"));
    };
    let body = answer.get(head..).unwrap_or_default();
    let length = response.headers.iter().find(|field| field.name.eq_ignore_ascii_case("content-length"));
    let length = length.and_then(|field| std::str::from_utf8(field.value).ok()?.parse::<usize>().ok());
    if length != Some(body.len()) {
        return Err(AskError::Garbled("it has not the length that it tells"));
    }
    let body = std::str::from_utf8(body).map_err(|_| AskError::Garbled("it is no text"))?;
    Ok(Asked { status: response.code.unwrap_or(0), body: body.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::super::{Answer, Outcome};
    use super::*;

    #[test]
    fn an_answer_is_read_as_it_was_sent() {
        let answer = Answer::line(Outcome::ServiceUnavailable, "in failure mode").to_bytes();
        let asked = read(&answer).unwrap();
        assert_eq!((asked.status, asked.body.as_str()), (503, "in failure mode\n"));
    }

    #[test]
    fn an_answer_that_is_cut_short_or_none_is_told() {
        let answer = Answer::line(Outcome::Ok, "all is well").to_bytes();
        for bytes in [&answer[..answer.len() - 1], &answer[..20], b"SSH-2.0-OpenSSH\r\n", &[0xff; 40]] {
            assert!(matches!(read(bytes), Err(AskError::Garbled(_))));
        }
    }

    #[test]
    fn a_server_that_is_stopped_is_not_waited_for_without_an_end() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s");
        let _stopped = std::os::unix::net::UnixListener::bind(&path).unwrap();
        let error = ask_within(Duration::from_millis(10), &path, "/status").unwrap_err();
        assert!(matches!(error, AskError::Silence(_)), "{error}");
    }

    #[test]
    fn a_server_that_drips_is_not_waited_for_without_an_end() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s");
        let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
        let dripping = std::thread::spawn(move || {
            let (mut peer, _) = listener.accept().unwrap();
            while peer.write_all(b"H").is_ok() {
                std::thread::sleep(Duration::from_millis(1));
            }
        });
        let error = ask_within(Duration::from_millis(100), &path, "/status").unwrap_err();
        assert!(matches!(error, AskError::Silence(_)), "{error}");
        dripping.join().unwrap();
    }

    #[test]
    fn who_is_not_there_is_told_with_what_to_do() {
        let folder = tempfile::tempdir().unwrap();
        let error = ask(&folder.path().join("none"), "/status").unwrap_err().to_string();
        assert!(error.contains("--control"), "{error}");
    }
}
