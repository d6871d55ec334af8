//! What clients send along.

use std::fs::File;
use std::os::fd::OwnedFd;

use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::memfd::{MFdFlags, memfd_create};

use super::super::tape::Tape;

/// Some descriptor.
pub fn any(tape: &mut Tape<'_>) -> OwnedFd {
    match tape.below(8) {
        // A full one would make a careless signal wait for ever.
        0 => event(u64::MAX - 1, EfdFlags::empty()),
        1 => event(0, EfdFlags::EFD_SEMAPHORE),
        2 => memfd_create("fuzz", MFdFlags::MFD_CLOEXEC).expect("a memfd"),
        3 => File::open("/dev/null").expect("there is a /dev/null").into(),
        4 => nix::unistd::pipe().expect("a pipe").0,
        5 => super::pair().0,
        6 => event(0, EfdFlags::EFD_NONBLOCK),
        _ => event(0, EfdFlags::empty()),
    }
}

fn event(value: u64, flags: EfdFlags) -> OwnedFd {
    let event = EventFd::from_flags(flags | EfdFlags::EFD_CLOEXEC).expect("an eventfd");
    if value != 0 {
        event.write(value).expect("it is empty");
    }
    event.into()
}
