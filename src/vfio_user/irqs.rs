//! The client's interrupts: which eventfd stands for which vector ("VFIO_USER_DEVICE_SET_IRQS").

use std::collections::BTreeMap;
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl, readlink};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::unistd::{read, write};
use vfio_bindings::bindings::vfio::{
    VFIO_IRQ_SET_ACTION_MASK, VFIO_IRQ_SET_ACTION_TRIGGER, VFIO_IRQ_SET_ACTION_TYPE_MASK, VFIO_IRQ_SET_ACTION_UNMASK,
    VFIO_IRQ_SET_DATA_BOOL, VFIO_IRQ_SET_DATA_EVENTFD, VFIO_IRQ_SET_DATA_NONE, VFIO_IRQ_SET_DATA_TYPE_MASK,
};

use super::alarm;
use super::device::{Device, Interrupts, Irq};
use super::refusal::Refusal;
use super::wire::IrqSet;

/// An eventfd of the client that can be signalled without waiting.
#[derive(Debug)]
struct EventFd(OwnedFd);

impl EventFd {
    /// Refuses what is no eventfd: writing to it, asking whether it is ready, even `fstat` could block or have other effects.
    ///
    /// Other anonymous inodes (an epoll instance may contain anything) look the same by their file type. So the kernel is
    /// asked for the name, which nothing else can have: files have a path there, with a slash.
    fn check(descriptor: &OwnedFd) -> Result<(), Refusal> {
        let link = format!("/proc/self/fd/{}", descriptor.as_raw_fd());
        let name = readlink(link.as_str()).map_err(unusable)?;
        if name == "anon_inode:[eventfd]" {
            return Ok(());
        }
        // The name of a file is the client's to choose.
        Err(Refusal::invalid(format!("an interrupt's descriptor is no eventfd but {name:.100?}")))
    }

    /// Takes a [checked](Self::check) descriptor and makes it non-blocking. `O_NONBLOCK` changes the open file that is shared
    /// with the client; VMMs create their eventfds with it.
    fn new(descriptor: OwnedFd) -> Result<Self, Refusal> {
        let flags = OFlag::from_bits_retain(fcntl(&descriptor, FcntlArg::F_GETFL).map_err(unusable)?);
        fcntl(&descriptor, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK)).map_err(unusable)?;
        Ok(Self(descriptor))
    }

    /// Adds 1 to the counter. A counter that is full already says what has to be said.
    ///
    /// The client could have taken `O_NONBLOCK` back, so it is asked first whether there is room; and if the client fills
    /// the counter in between, the call is interrupted (`EINTR`).
    fn signal(&self) -> Result<(), Errno> {
        // A counter that has overflowed is an error and has no room either.
        if !self.is_ready(PollFlags::POLLOUT)? {
            return Ok(());
        }
        match alarm::limited(|| write(&self.0, &1_u64.to_ne_bytes())) {
            Ok(_) | Err(Errno::EAGAIN) => Ok(()),
            Err(errno) => Err(errno),
        }
    }

    /// Takes back what was signalled, with the same care; returns whether there was something: else it has been heard.
    fn take_back(&self) -> Result<bool, Errno> {
        if !self.is_ready(PollFlags::POLLIN)? {
            return Ok(false);
        }
        match alarm::limited(|| read(&self.0, &mut [0; 8])) {
            Ok(_) => Ok(true),
            Err(Errno::EAGAIN) => Ok(false),
            Err(errno) => Err(errno),
        }
    }

    fn is_ready(&self, events: PollFlags) -> Result<bool, Errno> {
        let mut eventfd = [PollFd::new(self.0.as_fd(), events)];
        poll(&mut eventfd, PollTimeout::ZERO)?;
        Ok(eventfd.iter().any(|eventfd| eventfd.revents().is_some_and(|ready| ready.contains(events))))
    }
}

/// An eventfd of the client that unmasks a vector (KVM's resample).
///
/// It is watched by edge and never read: each signal of the client makes one event, and reading could block if the client
/// reads too.
#[derive(Debug)]
struct UnmaskEventFd {
    eventfd: EventFd,
    events: Arc<Epoll>,
}

impl UnmaskEventFd {
    fn new(eventfd: EventFd, vector: VectorId, events: &Arc<Epoll>) -> Result<Self, Refusal> {
        let event = EpollEvent::new(EpollFlags::EPOLLIN | EpollFlags::EPOLLET, vector.into());
        events.add(&eventfd.0, event).map_err(unwatchable)?;
        Ok(Self { eventfd, events: Arc::clone(events) })
    }
}

impl Drop for UnmaskEventFd {
    /// Closing is not enough: the client has the same eventfd, so it would be watched further.
    fn drop(&mut self) {
        if let Err(errno) = self.events.delete(&self.eventfd.0) {
            log::debug!("an eventfd cannot be unwatched: {errno}");
        }
    }
}

fn unusable(errno: Errno) -> Refusal {
    Refusal::new(errno, format!("an interrupt's descriptor cannot be used: {errno}"))
}

fn unwatchable(errno: Errno) -> Refusal {
    Refusal::new(errno, format!("an eventfd cannot be watched: {errno}"))
}

/// A vector of an index.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct VectorId {
    index: u32,
    vector: u32,
}

impl From<VectorId> for u64 {
    fn from(id: VectorId) -> Self {
        u64::from(id.index) << 32 | u64::from(id.vector)
    }
}

/// What is known of a line.
#[derive(Debug, Default)]
struct Line {
    /// It was signalled, and has masked itself by that; whether that is heard is not known.
    signalled: bool,
    /// The device has just asserted it.
    asserted: bool,
}

/// What the client has set up for one vector, and what waits for it.
#[derive(Debug, Default)]
struct Vector {
    /// Signalled to raise the interrupt.
    trigger: Option<EventFd>,
    /// Signalled by the client to unmask the interrupt.
    unmask: Option<UnmaskEventFd>,
    masked: bool,
    /// The device has sent a message while it was masked.
    pending: bool,
    /// Of a line.
    line: Line,
}

impl Vector {
    /// Tells the client, if it wants to know. An eventfd for which the server had to wait gets no second chance.
    fn signal(&mut self) {
        if let Some(Err(errno)) = self.trigger.as_ref().map(EventFd::signal) {
            log::warn!("an interrupt cannot be signalled and is given up: {errno}");
            self.trigger = None;
        }
    }

    /// The line is not asserted any more. If nobody has heard its signal, none was.
    fn lower(&mut self) {
        self.line.signalled = false;
        match self.trigger.as_ref().map(EventFd::take_back) {
            None | Some(Ok(false)) => {}
            Some(Ok(true)) => self.masked = false,
            Some(Err(errno)) => {
                log::warn!("an interrupt cannot be taken back and is given up: {errno}");
                self.trigger = None;
            }
        }
    }

    fn unmask(&mut self) {
        self.masked = false;
        self.line.signalled = false;
        if std::mem::take(&mut self.pending) {
            self.signal();
        }
    }
}

/// The interrupts of one connection. A vector that was never set up has no entry.
///
/// Only what the client has said is kept here. Whether a line is asserted is the device's to know, and is asked again
/// whenever it can matter.
#[derive(Debug, Default)]
pub(super) struct Irqs {
    vectors: BTreeMap<VectorId, Vector>,
    /// Tells which eventfds have unmasked; there is none before the first of them.
    unmask_events: Option<Arc<Epoll>>,
}

impl Interrupts for Irqs {
    /// Signals a line once; it is then masked until the client unmasks it ("AUTOMASKED").
    fn line(&mut self, index: u32) {
        let Some(vector) = self.vectors.get_mut(&VectorId { index, vector: 0 }) else { return };
        vector.line.asserted = true;
        if vector.trigger.is_some() && !vector.masked {
            vector.masked = true;
            vector.line.signalled = true;
            vector.signal();
        }
    }

    fn message(&mut self, index: u32, vector: u32) {
        match self.vectors.get_mut(&VectorId { index, vector }) {
            Some(vector) if vector.masked => vector.pending = vector.trigger.is_some(),
            Some(vector) => vector.signal(),
            None => {}
        }
    }
}

/// What a request does to its vectors ("ACTION" flags).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Action {
    Mask,
    Unmask,
    Trigger,
}

impl Irqs {
    /// Asks the device for its interrupts. A line that is asserted no more is signalled no more, if that is not heard yet: a
    /// client that raises it late (QEMU without KVM) would tell the guest of an interrupt that there is not, and Linux
    /// gives a device up that does so often.
    pub(super) fn update(&mut self, device: &mut dyn Device) {
        device.interrupts(self);
        for vector in self.vectors.values_mut() {
            if !std::mem::take(&mut vector.line.asserted) && vector.line.signalled {
                vector.lower();
            }
        }
    }

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
                    self.act(VectorId { index, vector }, action);
                }
                Ok(())
            }
            VFIO_IRQ_SET_DATA_BOOL if data.len() == count as usize => {
                for (vector, _) in (start..end).zip(data).filter(|&(_, &chosen)| chosen != 0) {
                    self.act(VectorId { index, vector }, action);
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
        self.vectors.retain(|id, _| id.index != index);
    }

    /// Masks, unmasks or triggers a vector by the client's word.
    fn act(&mut self, id: VectorId, action: Action) {
        match action {
            Action::Mask => self.vectors.entry(id).or_default().masked = true,
            Action::Unmask => self.vectors.entry(id).or_default().unmask(),
            // A test of the way from the eventfd on: it neither heeds the mask nor sets it, as with Linux.
            Action::Trigger => {
                if let Some(vector) = self.vectors.get_mut(&id) {
                    vector.signal();
                }
            }
        }
    }

    /// Gives each vector its eventfd, or takes them away if none came.
    fn assign(
        &mut self,
        index: u32,
        vectors: Range<u32>,
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
        descriptors.iter().try_for_each(EventFd::check)?;
        let eventfds = descriptors.drain(..).map(EventFd::new).collect::<Result<Vec<_>, _>>()?;
        let ids = vectors.map(|vector| VectorId { index, vector });
        match action {
            Action::Trigger => {
                let mut eventfds = eventfds.into_iter();
                for id in ids {
                    let vector = self.vectors.entry(id).or_default();
                    vector.trigger = eventfds.next();
                    vector.line.signalled = false;
                }
                Ok(())
            }
            Action::Unmask => self.assign_unmasks(ids, eventfds),
            Action::Mask => Err(Refusal::unsupported("masking by eventfd is not offered")),
        }
    }

    /// Watches the eventfds, or takes them away if there are none.
    fn assign_unmasks(
        &mut self,
        ids: impl Iterator<Item = VectorId> + Clone,
        eventfds: Vec<EventFd>,
    ) -> Result<(), Refusal> {
        let mut watched = Vec::new();
        if !eventfds.is_empty() {
            let events = match &self.unmask_events {
                Some(events) => Arc::clone(events),
                None => Arc::new(Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).map_err(unwatchable)?),
            };
            for (id, eventfd) in ids.clone().zip(eventfds) {
                watched.push(UnmaskEventFd::new(eventfd, id, &events)?);
            }
            self.unmask_events = Some(events);
        }
        let mut watched = watched.into_iter();
        for id in ids {
            self.vectors.entry(id).or_default().unmask = watched.next();
        }
        Ok(())
    }

    /// What becomes readable when [`take_unmasks`](Self::take_unmasks) has something to do.
    pub(super) fn unmask_events(&self) -> Option<BorrowedFd<'_>> {
        self.unmask_events.as_ref().map(|events| events.0.as_fd())
    }

    /// Unmasks the vectors whose eventfds were signalled; if they are many, some wait for the next call.
    pub(super) fn take_unmasks(&mut self) {
        let Some(events) = &self.unmask_events else { return };
        let mut signalled = [EpollEvent::empty(); 16];
        let count = events.wait(&mut signalled, EpollTimeout::ZERO).unwrap_or_else(|errno| {
            log::debug!("it cannot be found out what is unmasked: {errno}");
            0
        });
        for (id, vector) in &mut self.vectors {
            if signalled.iter().take(count).any(|event| event.data() == u64::from(*id)) {
                vector.unmask();
            }
        }
    }
}

#[cfg(test)]
mod tests;
