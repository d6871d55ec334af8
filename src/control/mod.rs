//! The control socket: short questions to the server, as HTTP on a UNIX socket. `docs/control.md` is the protocol.
//!
//! What is asked for and what the answer says is the business of whoever makes a [`ControlSocket`]. It is served by the
//! event loop, as an attendant: one question a connection, a few connections at a time, each with a deadline; the others
//! wait in the kernel's queue. An answer is made once, and goes out as it is read; if it is not, the connection ends.

#![forbid(unsafe_code)]
// A number from outside never overflows unseen. Tests may calculate.
#![cfg_attr(not(test), warn(clippy::arithmetic_side_effects))]

mod answer;
mod ask;
mod request;
mod socket;

pub use answer::{Answer, Outcome};
pub use ask::{AskError, Asked, ask};
pub use request::{MAX_REQUEST, Request, parse};
pub use socket::{Answerer, ControlSocket};
