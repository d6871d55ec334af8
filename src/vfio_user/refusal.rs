//! Why a request is answered with an error reply.

use nix::errno::Errno;
use thiserror::Error;

/// A request that is not served. The reply carries only the errno; the reason is for the log.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{reason}")]
pub(super) struct Refusal {
    pub(super) errno: Errno,
    pub(super) reason: String,
}

impl Refusal {
    pub(super) fn new(errno: Errno, reason: impl Into<String>) -> Self {
        Self { errno, reason: reason.into() }
    }

    /// The request breaks the protocol.
    pub(super) fn invalid(reason: impl Into<String>) -> Self {
        Self::new(Errno::EINVAL, reason)
    }

    /// The request is one that this server does not offer.
    pub(super) fn unsupported(reason: impl Into<String>) -> Self {
        Self::new(Errno::EOPNOTSUPP, reason)
    }
}
