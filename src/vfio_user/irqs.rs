//! The client's interrupts: which eventfd stands for which vector ("VFIO_USER_DEVICE_SET_IRQS").

use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::stat::{SFlag, fstat};
use nix::unistd::write;
use vfio_bindings::bindings::vfio::{
    VFIO_IRQ_SET_ACTION_MASK, VFIO_IRQ_SET_ACTION_TRIGGER, VFIO_IRQ_SET_ACTION_TYPE_MASK, VFIO_IRQ_SET_ACTION_UNMASK,
    VFIO_IRQ_SET_DATA_BOOL, VFIO_IRQ_SET_DATA_EVENTFD, VFIO_IRQ_SET_DATA_NONE, VFIO_IRQ_SET_DATA_TYPE_MASK,
};

use super::device::Irq;
use super::refusal::Refusal;
use super::wire::IrqSet;

/// An eventfd of the client that can be signalled without waiting.
#[derive(Debug)]
struct EventFd(OwnedFd);

impl EventFd {
    /// Takes a descriptor if it is an eventfd, and makes it non-blocking.
    ///
    /// What can block or have other effects when it is written to (a file, a pipe, a socket, a device) is refused: an
    /// eventfd is an anonymous inode, and those alone have no file type. `O_NONBLOCK` changes the open file that
    /// is shared with the client; VMMs create their eventfds with it.
    fn new(descriptor: OwnedFd) -> Result<Self, Refusal> {
        let unusable = |errno| Refusal::new(errno, format!("an interrupt's descriptor cannot be used: {errno}"));
        let file_type = fstat(&descriptor).map_err(unusable)?.st_mode & SFlag::S_IFMT.bits();
        if file_type != 0 {
            return Err(Refusal::invalid(format!(
                "an interrupt's descriptor is no eventfd (file type {file_type:#o})"
            )));
        }
        let flags = OFlag::from_bits_retain(fcntl(&descriptor, FcntlArg::F_GETFL).map_err(unusable)?);
        fcntl(&descriptor, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK)).map_err(unusable)?;
        Ok(Self(descriptor))
    }

    /// Adds 1 to the counter. A counter that is full already says what has to be said.
    ///
    /// The client could have taken `O_NONBLOCK` back, so it is asked first whether there is room. The time between is left
    /// to a client that wants to stop its own device.
    fn signal(&self) -> Result<(), Errno> {
        let mut room = [PollFd::new(self.0.as_fd(), PollFlags::POLLOUT)];
        if poll(&mut room, PollTimeout::ZERO)? == 0 {
            return Ok(());
        }
        match write(&self.0, &1_u64.to_ne_bytes()) {
            Ok(_) | Err(Errno::EAGAIN) => Ok(()),
            Err(errno) => Err(errno),
        }
    }
}

/// What the client has set up for one vector.
#[derive(Debug, Default)]
struct Vector {
    /// Signalled to raise the interrupt.
    trigger: Option<EventFd>,
    /// Signalled by the client to unmask the interrupt (KVM's resample).
    unmask: Option<EventFd>,
    masked: bool,
}

/// The interrupts of one connection, by index and vector. A vector that was never set up has no entry.
#[derive(Debug, Default)]
pub(super) struct Irqs {
    vectors: BTreeMap<(u32, u32), Vector>,
}

/// What a request does to its vectors ("ACTION" flags).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Action {
    Mask,
    Unmask,
    Trigger,
}

impl Irqs {
    /// Carries out a request on index `request.index`, of which the device says `irq`. It is done wholly or not at all.
    ///
    /// Each request has exactly one data and one action flag. With eventfds there come as many as vectors, or none to
    /// deassign them, as QEMU does.
    pub(super) fn set(
        &mut self,
        request: &IrqSet,
        data: &[u8],
        irq: Irq,
        descriptors: &mut Vec<OwnedFd>,
    ) -> Result<(), Refusal> {
        let flags = request.flags.get();
        let action = match flags & VFIO_IRQ_SET_ACTION_TYPE_MASK {
            VFIO_IRQ_SET_ACTION_MASK => Action::Mask,
            VFIO_IRQ_SET_ACTION_UNMASK => Action::Unmask,
            VFIO_IRQ_SET_ACTION_TRIGGER => Action::Trigger,
            _ => return Err(Refusal::invalid(format!("exactly one action was expected in the flags {flags:#x}"))),
        };
        if flags & !(VFIO_IRQ_SET_ACTION_TYPE_MASK | VFIO_IRQ_SET_DATA_TYPE_MASK) != 0 {
            return Err(Refusal::invalid(format!("unknown flags in {flags:#x}")));
        }
        let (index, start, count) = (request.index.get(), request.start.get(), request.count.get());
        let Some(end) = start.checked_add(count).filter(|&end| end <= irq.count) else {
            return Err(Refusal::invalid(format!(
                "interrupt {index} has {} vectors, {start}+{count} are not among them",
                irq.count
            )));
        };
        let data_type = flags & VFIO_IRQ_SET_DATA_TYPE_MASK;
        if data_type != VFIO_IRQ_SET_DATA_EVENTFD && !descriptors.is_empty() {
            return Err(Refusal::invalid("descriptors came with a request that takes none"));
        }
        if data_type != VFIO_IRQ_SET_DATA_BOOL && !data.is_empty() {
            return Err(Refusal::invalid("data came with a request that takes none"));
        }
        if count == 0 {
            return match (data_type, action, start) {
                (VFIO_IRQ_SET_DATA_NONE, Action::Trigger, 0) => {
                    self.disable(index);
                    Ok(())
                }
                _ => {
                    Err(Refusal::invalid(format!("no vectors, which only disables (flags {flags:#x}, start {start})")))
                }
            };
        }
        if action != Action::Trigger && !irq.maskable {
            return Err(Refusal::invalid(format!("interrupt {index} cannot be masked")));
        }
        match data_type {
            VFIO_IRQ_SET_DATA_NONE => {
                for vector in start..end {
                    self.act(index, vector, action);
                }
                Ok(())
            }
            VFIO_IRQ_SET_DATA_BOOL if data.len() == count as usize => {
                for (vector, _) in (start..end).zip(data).filter(|&(_, &chosen)| chosen != 0) {
                    self.act(index, vector, action);
                }
                Ok(())
            }
            VFIO_IRQ_SET_DATA_BOOL => {
                Err(Refusal::invalid(format!("{count} booleans were expected, {} came", data.len())))
            }
            VFIO_IRQ_SET_DATA_EVENTFD => self.assign(index, start..end, action, descriptors),
            _ => Err(Refusal::invalid(format!("exactly one kind of data was expected in the flags {flags:#x}"))),
        }
    }

    /// Forgets everything about an index.
    fn disable(&mut self, index: u32) {
        self.vectors.retain(|&(other, _), _| other != index);
    }

    /// Masks, unmasks or triggers a vector by the client's word.
    fn act(&mut self, index: u32, vector: u32, action: Action) {
        match action {
            Action::Mask => self.vectors.entry((index, vector)).or_default().masked = true,
            Action::Unmask => self.vectors.entry((index, vector)).or_default().masked = false,
            Action::Trigger => self.signal(index, vector),
        }
    }

    /// Gives each vector its eventfd, or takes them away if none came.
    fn assign(
        &mut self,
        index: u32,
        vectors: std::ops::Range<u32>,
        action: Action,
        descriptors: &mut Vec<OwnedFd>,
    ) -> Result<(), Refusal> {
        if !descriptors.is_empty() && descriptors.len() != vectors.len() {
            return Err(Refusal::invalid(format!(
                "{} or no eventfds were expected, {} came",
                vectors.len(),
                descriptors.len()
            )));
        }
        if action == Action::Mask {
            return Err(Refusal::unsupported("masking by eventfd is not offered"));
        }
        let eventfds = descriptors.drain(..).map(EventFd::new).collect::<Result<Vec<_>, _>>()?;
        let mut eventfds = eventfds.into_iter();
        for vector in vectors {
            let entry = self.vectors.entry((index, vector)).or_default();
            match action {
                Action::Trigger => entry.trigger = eventfds.next(),
                Action::Unmask | Action::Mask => entry.unmask = eventfds.next(),
            }
        }
        Ok(())
    }

    /// Raises an interrupt, if the client has given it an eventfd and has not masked it.
    fn signal(&self, index: u32, vector: u32) {
        let Some(Vector { trigger: Some(trigger), masked: false, .. }) = self.vectors.get(&(index, vector)) else {
            return;
        };
        if let Err(errno) = trigger.signal() {
            log::debug!("interrupt {index}.{vector} cannot be signalled: {errno}");
        }
    }
}

#[cfg(test)]
mod tests;
