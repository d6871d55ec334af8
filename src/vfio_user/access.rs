//! Accesses to regions: what a client may ask for, and those that the device answers later ("VFIO_USER_REGION_READ",
//! "VFIO_USER_REGION_WRITE").

use zerocopy::IntoBytes;

use super::device::{Answer, Device, RegionFlags, Ticket};
use super::outbox::Outbox;
use super::refusal::Refusal;
use super::version::Agreed;
use super::wire::{Header, RegionAccess};

/// Accesses that may wait for the device at one time. Beyond, the device has to answer at once.
const MAX_HELD: usize = 16;

/// Bytes of an access that may wait: a guest's are at most 8. With [`MAX_HELD`] it bounds what their replies take.
const MAX_HELD_SIZE: u32 = 4096;

/// What an access does, with the data of a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Operation<'a> {
    Read,
    Write(&'a [u8]),
}

/// Checks an access against its region and what was agreed.
pub(super) fn check(
    request: &RegionAccess,
    operation: Operation<'_>,
    agreed: &Agreed,
    device: &dyn Device,
) -> Result<(), Refusal> {
    let (index, offset, count) = (request.region.get(), request.offset.get(), request.count.get());
    let needed = match operation {
        Operation::Read => RegionFlags::READ,
        Operation::Write(data) if data.len() == count as usize => RegionFlags::WRITE,
        Operation::Write(data) => {
            return Err(Refusal::invalid(format!("a write of {count} bytes came with {} bytes of data", data.len())));
        }
    };
    if count == 0 || count > agreed.max_data_xfer_size {
        return Err(Refusal::invalid(format!(
            "an access of 1 to {} bytes was expected, it is of {count}",
            agreed.max_data_xfer_size
        )));
    }
    if index >= device.info().regions {
        return Err(Refusal::invalid(format!("there is no region {index}")));
    }
    let region = device.region(index);
    if offset.checked_add(count.into()).is_none_or(|end| end > region.size) {
        return Err(Refusal::invalid(format!(
            "the access {offset:#x}+{count:#x} is not inside region {index} of {:#x} bytes",
            region.size
        )));
    }
    if !region.flags.contains(needed) {
        return Err(Refusal::invalid(format!("region {index} does not permit {needed:?}")));
    }
    Ok(())
}

/// An access that the device has begun and not answered.
#[derive(Clone, Copy, Debug)]
struct Held {
    header: Header,
    request: RegionAccess,
    /// Bytes that the reply carries: none for a write.
    data_size: usize,
    ticket: Ticket,
}

/// The accesses that wait for the device, oldest first.
#[derive(Debug, Default)]
pub(super) struct HeldAccesses(Vec<Held>);

impl HeldAccesses {
    /// Lets the device do a checked access, and replies or holds the reply back.
    pub(super) fn begin(
        &mut self,
        header: Header,
        request: RegionAccess,
        operation: Operation<'_>,
        device: &mut dyn Device,
        outbox: &mut Outbox,
    ) {
        let (index, offset) = (request.region.get(), request.offset.get());
        let data_size = match operation {
            Operation::Read => request.count.get() as usize,
            Operation::Write(_) => 0,
        };
        let answer = reply(header, request, data_size, outbox, |data| match operation {
            Operation::Read => device.read(index, offset, data),
            Operation::Write(written) => device.write(index, offset, written),
        });
        let Answer::Later(ticket) = answer else { return };
        let held = Held { header, request, data_size, ticket };
        if self.0.len() < MAX_HELD && request.count.get() <= MAX_HELD_SIZE {
            self.0.push(held);
        } else {
            held.conclude(device, outbox);
        }
    }

    /// Asks the device again for every answer, and sends those that are there.
    ///
    /// Also after each message: what one access does may be what another waits for.
    pub(super) fn resume(&mut self, device: &mut dyn Device, outbox: &mut Outbox) {
        self.0.retain_mut(|held| {
            let answer = reply(held.header, held.request, held.data_size, outbox, |data| {
                device.resume(held.ticket, data, false)
            });
            match answer {
                Answer::Now => false,
                Answer::Later(ticket) => {
                    held.ticket = ticket;
                    true
                }
            }
        });
    }

    /// Makes the device answer everything that waits.
    pub(super) fn conclude(&mut self, device: &mut dyn Device, outbox: &mut Outbox) {
        for held in self.0.drain(..) {
            held.conclude(device, outbox);
        }
    }
}

impl Held {
    fn conclude(self, device: &mut dyn Device, outbox: &mut Outbox) {
        let _now = reply(self.header, self.request, self.data_size, outbox, |data| {
            if let Answer::Later(_) = device.resume(self.ticket, data, true) {
                log::error!("the device does not answer an access to region {} that it must", self.request.region);
                data.fill(0xff);
            }
            Answer::Now
        });
    }
}

/// Builds the reply to an access in place; it is taken back if the answer is not there yet, or none is wanted.
fn reply(
    header: Header,
    request: RegionAccess,
    data_size: usize,
    outbox: &mut Outbox,
    answer: impl FnOnce(&mut [u8]) -> Answer,
) -> Answer {
    let answer = answer(outbox.push(header.reply(), request.as_bytes(), data_size));
    if header.no_reply() || answer != Answer::Now {
        outbox.retract();
    }
    answer
}
