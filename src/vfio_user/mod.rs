//! The vfio-user protocol: a server that gives one device at a time to one client at a time.
//!
//! The specification is QEMU's `docs/interop/vfio-user.rst`; its structures follow `linux/vfio.h`. A message's way:
//! `connection` cuts the stream into messages and attributes the descriptors, `session` decides about one message and
//! asks the [`Device`], `outbox` holds what is to be sent; `client` has one of each, and [`Server`] drives it from an
//! event loop.
// A number from outside never overflows unseen. Tests may calculate.
#![cfg_attr(not(test), warn(clippy::arithmetic_side_effects))]

mod access;
mod alarm;
mod attendant;
mod busy_poll;
mod client;
mod closer;
mod connection;
mod descriptors;
mod device;
mod dma;
mod irqs;
mod listener;
mod outbox;
mod refusal;
mod region_info;
mod rights;
mod server;
mod session;
mod socket_path;
mod version;
mod visitors;
mod wire;

pub use attendant::{ATTENDANT_TOKEN, Attendant, Connected, Connections, Peer};
pub use device::{
    Answer, Device, DeviceFailure, DeviceInfo, Interrupts, Irq, MappableArea, Mapping, Region, RegionFlags, Ticket,
};
pub use listener::{Listener, ListenerError, SocketClaim, remove_socket};
pub use rights::SocketRights;
pub use server::{DEVICE_TOKEN, Server, ServerError};
pub use socket_path::{AtPath, look_at};
pub use visitors::{Visitor, Visitors};
