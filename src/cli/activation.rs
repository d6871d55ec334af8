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

/// The name of the socket on which one can ask how the TPM is (`--control`); any other is the clients'.
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
    #[error("expected one socket for clients, and {0} came: the .socket unit needs exactly one ListenStream=")]
    Clients(usize),
    #[error("expected at most one socket named \"{CONTROL}\", and {0} came")]
    Controls(usize),
}

/// What the environment says of the sockets.
#[derive(Clone, Copy, Debug, Default)]
struct Environment<'a> {
    pid: Option<&'a str>,
    count: Option<&'a str>,
    names: Option<&'a str>,
}

/// The sockets that were handed over: of UNIX streams, and somebody listens on them.
#[derive(Debug)]
pub(super) struct Sockets {
    /// On which clients are to be served.
    pub(super) clients: OwnedFd,
    /// On which one can ask how the TPM is.
    pub(super) control: Option<OwnedFd>,
}

/// Their numbers.
#[derive(Debug, PartialEq, Eq)]
struct Numbers {
    clients: RawFd,
    control: Option<RawFd>,
}

/// Takes over what the service manager has handed over.
pub(super) fn take() -> anyhow::Result<Sockets> {
    let [pid, count, names] = [PID, COUNT, NAMES].map(|name| std::env::var(name).ok());
    let given = Environment { pid: pid.as_deref(), count: count.as_deref(), names: names.as_deref() };
    let Numbers { clients, control } = numbers(given, std::process::id())?;
    Ok(Sockets { clients: socket(clients)?, control: control.map(socket).transpose()? })
}

/// Family and kind are looked at by who serves it.
fn socket(number: RawFd) -> anyhow::Result<OwnedFd> {
    let socket = inherited::take(COUNT, number)?;
    let listens = getsockopt(&socket, sockopt::AcceptConn);
    let listens = listens.with_context(|| format!("{COUNT}: descriptor {} is no socket", socket.as_raw_fd()))?;
    ensure!(listens, "{COUNT}: nobody listens on descriptor {}: the .socket unit needs Accept=no", socket.as_raw_fd());
    Ok(socket)
}

/// Which descriptor is for what, in process `ours`.
fn numbers(given: Environment<'_>, ours: u32) -> Result<Numbers, ActivationError> {
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
    let (controls, clients): (Vec<_>, Vec<_>) = numbers.zip(&names).partition(|(_, name)| **name == CONTROL);
    match (&*clients, &*controls) {
        ([(clients, _)], []) => Ok(Numbers { clients: *clients, control: None }),
        ([(clients, _)], [(control, _)]) => Ok(Numbers { clients: *clients, control: Some(*control) }),
        ([_], _) => Err(ActivationError::Controls(controls.len())),
        _ => Err(ActivationError::Clients(clients.len())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn given(pid: &str, count: &str, names: Option<&str>) -> Result<Numbers, ActivationError> {
        numbers(Environment { pid: Some(pid), count: Some(count), names }, 42)
    }

    fn number(pid: &str, count: &str, names: Option<&str>) -> Result<RawFd, ActivationError> {
        given(pid, count, names).map(|numbers| numbers.clients)
    }

    #[test]
    fn the_one_socket_is_for_clients_whatever_its_name() {
        assert_eq!(number("42", "1", None), Ok(3));
        assert_eq!(number("42", "1", Some("vfio-user-tpm@vm1.socket")), Ok(3));
        assert_eq!(number("42", "1", Some("")), Ok(3));
    }

    #[test]
    fn a_socket_named_control_is_for_questions() {
        assert_eq!(given("42", "2", Some("vfio-user:control")), Ok(Numbers { clients: 3, control: Some(4) }));
        assert_eq!(given("42", "2", Some("control:")), Ok(Numbers { clients: 4, control: Some(3) }));
        assert_eq!(given("42", "1", None), Ok(Numbers { clients: 3, control: None }));
    }

    #[test]
    fn sockets_of_another_process_are_none_of_ours() {
        assert_eq!(number("41", "1", None), Err(ActivationError::OtherProcess("41".to_owned(), 42)));
        assert!(matches!(number("", "1", None), Err(ActivationError::OtherProcess(..))));
        assert_eq!(numbers(Environment::default(), 42), Err(ActivationError::NotActivated(PID)));
        let only_pid = Environment { pid: Some("42"), ..Environment::default() };
        assert_eq!(numbers(only_pid, 42), Err(ActivationError::NotActivated(COUNT)));
    }

    #[test]
    fn more_or_fewer_sockets_than_one_and_a_wrong_number_of_names_are_refused() {
        assert_eq!(number("42", "2", None), Err(ActivationError::Clients(2)));
        assert_eq!(number("42", "2", Some("a")), Err(ActivationError::Names(1, 2)));
        assert_eq!(number("42", "1", Some("control")), Err(ActivationError::Clients(0)));
        assert_eq!(number("42", "3", Some("control:a:control")), Err(ActivationError::Controls(2)));
        for count in ["0", "-1", "17", "99999999999", "", "one"] {
            assert_eq!(number("42", count, None), Err(ActivationError::Count(count.to_owned())));
        }
    }
}
