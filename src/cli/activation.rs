//! Sockets that a service manager listens on and hands over when somebody comes: `LISTEN_FDS` (sd_listen_fds(3)).

use std::os::fd::{AsRawFd, OwnedFd, RawFd};

use anyhow::{Context, ensure};
use nix::sys::socket::{getsockopt, sockopt};
use thiserror::Error;

use super::inherited;

/// The process for which the sockets are.
const PID: &str = "LISTEN_PID";
/// How many there are, from [`FIRST`] on.
const COUNT: &str = "LISTEN_FDS";
/// What they are called (`FileDescriptorName=`), between colons. Without names of their own, all of them are called as the
/// unit, or "unknown".
const NAMES: &str = "LISTEN_FDNAMES";

/// The number of the first descriptor (`SD_LISTEN_FDS_START`).
const FIRST: RawFd = 3;
/// More would be somebody else's.
const MAX: RawFd = 16;

/// The name of a socket that is not for clients. Nothing is served on one yet; any other name is the clients'.
const CONTROL: &str = "control";

#[derive(Debug, Error, PartialEq, Eq)]
enum ActivationError {
    #[error(
        "--socket-activation is for a service that is started by its .socket unit, and {0} is not set; give --socket-path \
         to listen by oneself"
    )]
    NotActivated(&'static str),
    #[error("the sockets are for process {0}, and this is {1}: the service has to start this program itself")]
    OtherProcess(String, u32),
    #[error("{COUNT} is {0:?}, and a number from 1 to {MAX} was expected")]
    Count(String),
    #[error("{NAMES} has {0} names, and there are {1} sockets")]
    Names(usize, usize),
    #[error("there is no socket named \"{CONTROL}\" here: leave it out of the .socket unit")]
    Control,
    #[error("expected one socket for clients, and {0} came: the .socket unit needs exactly one ListenStream=")]
    Clients(usize),
}

/// What the environment says of the sockets.
#[derive(Clone, Copy, Debug, Default)]
struct Environment<'a> {
    pid: Option<&'a str>,
    count: Option<&'a str>,
    names: Option<&'a str>,
}

/// Takes over the socket on which clients are to be served: a UNIX stream socket on which somebody listens.
pub(super) fn take() -> anyhow::Result<OwnedFd> {
    let [pid, count, names] = [PID, COUNT, NAMES].map(|name| std::env::var(name).ok());
    let given = Environment { pid: pid.as_deref(), count: count.as_deref(), names: names.as_deref() };
    let socket = inherited::take(COUNT, number_for_clients(given, std::process::id())?)?;
    // Family and kind are looked at by who serves it.
    let listens = getsockopt(&socket, sockopt::AcceptConn);
    let listens = listens.with_context(|| format!("{COUNT}: descriptor {} is no socket", socket.as_raw_fd()))?;
    ensure!(listens, "{COUNT}: nobody listens on descriptor {}: the .socket unit needs Accept=no", socket.as_raw_fd());
    Ok(socket)
}

/// The number of the descriptor that is for clients, in process `ours`.
fn number_for_clients(given: Environment<'_>, ours: u32) -> Result<RawFd, ActivationError> {
    let pid = given.pid.ok_or(ActivationError::NotActivated(PID))?;
    if pid.parse() != Ok(ours) {
        return Err(ActivationError::OtherProcess(pid.to_owned(), ours));
    }
    let count = given.count.ok_or(ActivationError::NotActivated(COUNT))?;
    let numbers = match count.parse::<RawFd>() {
        Ok(known @ 1..=MAX) => FIRST..FIRST + known,
        _ => return Err(ActivationError::Count(count.to_owned())),
    };
    let names = given.names.map_or(vec![""; numbers.len()], |names| names.split(':').collect());
    if names.len() != numbers.len() {
        return Err(ActivationError::Names(names.len(), numbers.len()));
    }
    let clients: Vec<_> = numbers.zip(&names).filter(|(_, name)| **name != CONTROL).collect();
    match *clients {
        _ if names.contains(&CONTROL) => Err(ActivationError::Control),
        [(number, _)] => Ok(number),
        _ => Err(ActivationError::Clients(clients.len())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn number(pid: &str, count: &str, names: Option<&str>) -> Result<RawFd, ActivationError> {
        number_for_clients(Environment { pid: Some(pid), count: Some(count), names }, 42)
    }

    #[test]
    fn the_one_socket_is_for_clients_whatever_its_name() {
        assert_eq!(number("42", "1", None), Ok(3));
        assert_eq!(number("42", "1", Some("vfio-user-tpm@vm1.socket")), Ok(3));
        assert_eq!(number("42", "1", Some("")), Ok(3));
    }

    #[test]
    fn sockets_of_another_process_are_none_of_ours() {
        assert_eq!(number("41", "1", None), Err(ActivationError::OtherProcess("41".to_owned(), 42)));
        assert!(matches!(number("", "1", None), Err(ActivationError::OtherProcess(..))));
        assert_eq!(number_for_clients(Environment::default(), 42), Err(ActivationError::NotActivated(PID)));
        let only_pid = Environment { pid: Some("42"), ..Environment::default() };
        assert_eq!(number_for_clients(only_pid, 42), Err(ActivationError::NotActivated(COUNT)));
    }

    #[test]
    fn more_or_fewer_sockets_than_one_and_a_wrong_number_of_names_are_refused() {
        assert_eq!(number("42", "2", None), Err(ActivationError::Clients(2)));
        assert_eq!(number("42", "2", Some("a")), Err(ActivationError::Names(1, 2)));
        assert_eq!(number("42", "2", Some("a:control")), Err(ActivationError::Control));
        for count in ["0", "-1", "17", "99999999999", "", "one"] {
            assert_eq!(number("42", count, None), Err(ActivationError::Count(count.to_owned())));
        }
    }
}
