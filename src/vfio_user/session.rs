//! One client's session: a message in, replies out. It drives the [`Device`] and knows no sockets.

use std::os::fd::{BorrowedFd, OwnedFd};

use nix::errno::Errno;
use vfio_bindings::bindings::vfio::{
    VFIO_DEVICE_FLAGS_PCI, VFIO_DEVICE_FLAGS_RESET, VFIO_IRQ_INFO_AUTOMASKED, VFIO_IRQ_INFO_EVENTFD,
    VFIO_IRQ_INFO_MASKABLE,
};
use zerocopy::IntoBytes;

use super::access::{self, HeldAccesses, Operation};
use super::connection::Message;
use super::device::Device;
use super::dma::DmaTable;
use super::irqs::Irqs;
use super::outbox::Outbox;
use super::refusal::Refusal;
use super::region_info::region_info;
use super::version::{self, Agreed};
use super::wire::{
    self, Command, DeviceInfo, DmaMap, DmaUnmap, Header, IrqInfo, IrqSet, MAX_BODY_SIZE, MessageType, RegionAccess,
};

/// How the connection goes on after a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub(super) enum Next {
    Continue,
    /// There is nothing more to say to this client than what is in the outbox.
    Close,
}

/// What the server knows of the client it serves.
///
/// What a client can make the server keep at one time, connection and outbox included, is less than 8 MiB:
/// - the body of a message: 1 MiB and a header ([`MAX_BODY_SIZE`]); 2 MiB as its buffer grows, by what has arrived;
/// - replies: one of 1 MiB ([`super::wire::MAX_DATA_XFER_SIZE`]), 2 MiB as the buffer grows, and 16 held ones of 4 KiB. No
///   message is received while any is unsent;
/// - DMA windows: 65535 of 16 bytes in a B-tree, 3 MiB;
/// - interrupts: two eventfds and some words for each vector that the device has;
/// - the JSON of `VERSION` for a moment: 4 KiB as text, 0.5 MiB as a tree;
/// - descriptors for a moment: 253 of the message in hand, and 256 that are being closed ([`super::closer`]).
#[derive(Debug, Default)]
pub(super) struct Session {
    /// `None` before a successful `VERSION`.
    agreed: Option<Agreed>,
    irqs: Irqs,
    dma: DmaTable,
    held: HeldAccesses,
}

impl Session {
    /// Serves one message. Of its descriptors those that nobody needs stay where they are.
    pub(super) fn handle(&mut self, message: Message<'_>, device: &mut dyn Device, outbox: &mut Outbox) -> Next {
        let Message { header, body, descriptors, descriptors_lost } = message;
        let served = match header.message_type() {
            MessageType::Command => Self::admit(body, descriptors_lost)
                .and_then(|body| self.dispatch(&Request { header, body }, descriptors, device, outbox)),
            MessageType::Reply => {
                log::warn!("the client replies to a command that it was never sent; ignored");
                Ok(())
            }
            MessageType::Unknown(kind) => Err(Refusal::invalid(format!("a message has the unknown type {kind}"))),
        };
        self.held.resume(device, outbox);
        if let Err(refusal) = served {
            log::warn!("command {} of the client is refused: {refusal}", header.command);
            if !header.no_reply() {
                outbox.push(header.error_reply(refusal.errno), &[], 0);
            }
        }
        if self.agreed.is_none() {
            return Next::Close;
        }
        self.irqs.update(device);
        Next::Continue
    }

    /// Asks the device, after it was woken, for the answers that it still owes and for its interrupts.
    pub(super) fn resume(&mut self, device: &mut dyn Device, outbox: &mut Outbox) {
        self.held.resume(device, outbox);
        if self.agreed.is_some() {
            self.irqs.update(device);
        }
    }

    pub(super) fn has_negotiated(&self) -> bool {
        self.agreed.is_some()
    }

    /// What becomes readable when [`unmask`](Self::unmask) has something to do; `None` as long as the client has not asked
    /// for that.
    pub(super) fn unmask_events(&self) -> Option<BorrowedFd<'_>> {
        self.irqs.unmask_events()
    }

    /// Unmasks what the client's eventfds say, and raises again what the device still wants.
    pub(super) fn unmask(&mut self, device: &mut dyn Device) {
        self.irqs.take_unmasks();
        self.irqs.update(device);
    }

    /// Ends the session; what the client had set up goes with it. What waits is answered first: the client may have
    /// closed only its own half, or be the one that is left.
    pub(super) fn end(mut self, device: &mut dyn Device, outbox: &mut Outbox) {
        self.held.conclude(device, outbox);
        if self.agreed.is_some() {
            device.disconnected();
        }
    }

    /// Lets pass only messages that arrived as a whole.
    fn admit(body: Option<&[u8]>, descriptors_lost: bool) -> Result<&[u8], Refusal> {
        if descriptors_lost {
            return Err(Refusal::invalid("too many descriptors came with a message"));
        }
        body.ok_or_else(|| {
            Refusal::new(Errno::EMSGSIZE, format!("a body of at most {MAX_BODY_SIZE} bytes was expected"))
        })
    }

    fn dispatch(
        &mut self,
        request: &Request<'_>,
        descriptors: &mut Vec<OwnedFd>,
        device: &mut dyn Device,
        outbox: &mut Outbox,
    ) -> Result<(), Refusal> {
        let number = request.header.command.get();
        let command = Command::from_number(number)
            .ok_or_else(|| Refusal::unsupported(format!("there is no command {number}")))?;
        let agreed = match (command, self.agreed) {
            (Command::Version, None) => return self.version(request, device, outbox),
            (Command::Version, Some(_)) => return Err(Refusal::invalid("the version is negotiated already")),
            (_, None) => return Err(Refusal::invalid("the first command was expected to be VERSION")),
            (_, Some(agreed)) => agreed,
        };
        match command {
            Command::DmaMap => self.dma_map(request, descriptors.len(), &agreed, outbox),
            Command::DmaUnmap => self.dma_unmap(request, outbox),
            Command::DeviceGetInfo => Self::device_info(request, device, outbox),
            Command::DeviceGetRegionInfo => Self::region_info(request, &agreed, device, outbox),
            Command::DeviceGetIrqInfo => Self::irq_info(request, device, outbox),
            Command::DeviceSetIrqs => self.set_irqs(request, descriptors, device, outbox),
            Command::RegionRead => self.region_read(request, &agreed, device, outbox),
            Command::RegionWrite => self.region_write(request, &agreed, device, outbox),
            Command::DeviceReset => self.reset(request, device, outbox),
            Command::Version
            | Command::DeviceGetRegionIoFds
            | Command::DmaRead
            | Command::DmaWrite
            | Command::RegionWriteMulti
            | Command::DeviceFeature
            | Command::MigDataRead
            | Command::MigDataWrite => Err(Refusal::unsupported(format!("{command:?} is not offered"))),
        }
    }

    fn version(&mut self, request: &Request<'_>, device: &mut dyn Device, outbox: &mut Outbox) -> Result<(), Refusal> {
        let (agreed, reply) = version::negotiate(request.body)?;
        self.agreed = Some(agreed);
        device.connected();
        request.reply(&reply, outbox);
        Ok(())
    }

    fn dma_map(
        &mut self,
        request: &Request<'_>,
        descriptors: usize,
        agreed: &Agreed,
        outbox: &mut Outbox,
    ) -> Result<(), Refusal> {
        let (window, _) = wire::parse::<DmaMap>(request.body)?;
        wire::check_argsz::<DmaMap>(window.argsz)?;
        if descriptors > 1 {
            return Err(Refusal::invalid(format!("a DMA window has at most one descriptor, {descriptors} came")));
        }
        self.dma.map(&window, agreed)?;
        request.reply(&[], outbox);
        Ok(())
    }

    fn dma_unmap(&mut self, request: &Request<'_>, outbox: &mut Outbox) -> Result<(), Refusal> {
        let (window, _) = wire::parse::<DmaUnmap>(request.body)?;
        wire::check_argsz::<DmaUnmap>(window.argsz)?;
        self.dma.unmap(&window)?;
        request.reply(window.as_bytes(), outbox);
        Ok(())
    }

    fn device_info(request: &Request<'_>, device: &dyn Device, outbox: &mut Outbox) -> Result<(), Refusal> {
        let (asked, _) = wire::parse::<DeviceInfo>(request.body)?;
        wire::check_argsz::<DeviceInfo>(asked.argsz)?;
        let info = device.info();
        let reply = DeviceInfo {
            argsz: wire::structure_size::<DeviceInfo>(),
            flags: (VFIO_DEVICE_FLAGS_RESET | VFIO_DEVICE_FLAGS_PCI).into(),
            num_regions: info.regions.into(),
            num_irqs: info.irqs.into(),
        };
        request.reply(reply.as_bytes(), outbox);
        Ok(())
    }

    fn region_info(
        request: &Request<'_>,
        agreed: &Agreed,
        device: &dyn Device,
        outbox: &mut Outbox,
    ) -> Result<(), Refusal> {
        let (reply, descriptor) = region_info(request.body, agreed, device)?;
        request.reply_with(&reply, descriptor, outbox);
        Ok(())
    }

    fn irq_info(request: &Request<'_>, device: &dyn Device, outbox: &mut Outbox) -> Result<(), Refusal> {
        let (asked, _) = wire::parse::<IrqInfo>(request.body)?;
        wire::check_argsz::<IrqInfo>(asked.argsz)?;
        let index = asked.index.get();
        if index >= device.info().irqs {
            return Err(Refusal::invalid(format!("there is no interrupt index {index}")));
        }
        let irq = device.irq(index);
        let mut flags = VFIO_IRQ_INFO_EVENTFD;
        if irq.maskable {
            flags |= VFIO_IRQ_INFO_MASKABLE;
        }
        if irq.automasked {
            flags |= VFIO_IRQ_INFO_AUTOMASKED;
        }
        let reply = IrqInfo {
            argsz: wire::structure_size::<IrqInfo>(),
            flags: flags.into(),
            index: asked.index,
            count: irq.count.into(),
        };
        request.reply(reply.as_bytes(), outbox);
        Ok(())
    }

    fn set_irqs(
        &mut self,
        request: &Request<'_>,
        descriptors: &mut Vec<OwnedFd>,
        device: &dyn Device,
        outbox: &mut Outbox,
    ) -> Result<(), Refusal> {
        let (set, data) = wire::parse::<IrqSet>(request.body)?;
        if set.argsz.get() as usize != request.body.len() {
            return Err(Refusal::invalid(format!("argsz of {} was expected, it is {}", request.body.len(), set.argsz)));
        }
        let index = set.index.get();
        if index >= device.info().irqs {
            return Err(Refusal::invalid(format!("there is no interrupt index {index}")));
        }
        self.irqs.set(&set, data, device.irq(index), descriptors)?;
        request.reply(&[], outbox);
        Ok(())
    }

    fn region_read(
        &mut self,
        request: &Request<'_>,
        agreed: &Agreed,
        device: &mut dyn Device,
        outbox: &mut Outbox,
    ) -> Result<(), Refusal> {
        let (access, rest) = wire::parse::<RegionAccess>(request.body)?;
        if !rest.is_empty() {
            return Err(Refusal::invalid(format!("a read came with {} bytes of data", rest.len())));
        }
        access::check(&access, Operation::Read, agreed, device)?;
        self.held.begin(request.header, access, Operation::Read, device, outbox);
        Ok(())
    }

    fn region_write(
        &mut self,
        request: &Request<'_>,
        agreed: &Agreed,
        device: &mut dyn Device,
        outbox: &mut Outbox,
    ) -> Result<(), Refusal> {
        let (access, data) = wire::parse::<RegionAccess>(request.body)?;
        access::check(&access, Operation::Write(data), agreed, device)?;
        self.held.begin(request.header, access, Operation::Write(data), device, outbox);
        Ok(())
    }

    fn reset(&mut self, request: &Request<'_>, device: &mut dyn Device, outbox: &mut Outbox) -> Result<(), Refusal> {
        if !request.body.is_empty() {
            return Err(Refusal::invalid(format!("a reset came with {} bytes", request.body.len())));
        }
        self.held.conclude(device, outbox);
        device.reset();
        request.reply(&[], outbox);
        Ok(())
    }
}

/// A command that arrived as a whole.
#[derive(Clone, Copy, Debug)]
struct Request<'a> {
    header: Header,
    body: &'a [u8],
}

impl Request<'_> {
    /// Says that the command is done, if that is wanted.
    fn reply(&self, body: &[u8], outbox: &mut Outbox) {
        self.reply_with(body, None, outbox);
    }

    /// As [`reply`](Self::reply), with a descriptor.
    fn reply_with(&self, body: &[u8], descriptor: Option<OwnedFd>, outbox: &mut Outbox) {
        if self.header.no_reply() {
            return;
        }
        outbox.push(self.header.reply(), body, 0);
        if let Some(descriptor) = descriptor {
            outbox.attach(descriptor);
        }
    }
}

#[cfg(test)]
mod tests;
