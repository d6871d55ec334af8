//! A TPM that is a device of the host.
//!
//! What Linux does with such a device: a `write` takes one whole command and returns when the chip has answered, however
//! long that takes and whatever signals come; a `read` then gives the response. Sources: Linux,
//! drivers/char/tpm/tpm-dev-common.c and Documentation/security/tpm/.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl, open};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::stat::Mode;
use nix::unistd::{read, write};
use zeroize::Zeroizing;

use super::frame::{DeviceProperties, Reply, Request};
use super::process::{HeldTpm, answer};
use crate::tpm::{BUFFER_SIZE, Fault, Header, Locality, TpmVersion, fault_response};

/// Most responses that are thrown away before the first command. Linux keeps one.
const MAX_OLD_RESPONSES: usize = 4;

/// Opens for reading and writing what a path descriptor (`O_PATH`) stands for.
pub(crate) fn open_path_descriptor(path: BorrowedFd<'_>) -> nix::Result<OwnedFd> {
    let path = format!("/proc/self/fd/{}", path.as_raw_fd());
    open(path.as_str(), OFlag::O_RDWR | OFlag::O_CLOEXEC | OFlag::O_NOCTTY, Mode::empty())
}

/// A TPM of the host.
#[derive(Debug)]
pub struct DeviceTpm {
    device: Device,
    /// None while it is not known what the device is.
    properties: Option<DeviceProperties>,
    /// What has gone wrong since the last reset, to say each thing once.
    complaints: Vec<Trouble>,
}

#[derive(Debug)]
enum Device {
    /// It opens only once, and stays open.
    Exclusive(OwnedFd),
    /// One of many users of a resource manager, which keeps sessions and objects for each open file apart, and flushes
    /// them when it is closed. That waits for the chip, so it must not be the server that closes it last: the server has
    /// no more than a path.
    Shared { path: OwnedFd, opened: Option<OwnedFd> },
}

/// Why the device gave no response to a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Trouble {
    Errno(Errno),
    Empty,
    Malformed,
    TooLong,
}

impl DeviceTpm {
    /// A TPM behind an open device, or behind the path of a device that it opens itself.
    ///
    /// # Errors
    /// What is wrong with the descriptor.
    pub fn new(device: OwnedFd, properties: Option<DeviceProperties>) -> Result<Self, String> {
        let flags = fcntl(&device, FcntlArg::F_GETFL).map_err(|errno| format!("the device is no file: {errno}"))?;
        let device = if OFlag::from_bits_retain(flags).contains(OFlag::O_PATH) {
            Device::Shared { path: device, opened: None }
        } else {
            Device::Exclusive(device)
        };
        Ok(Self { device, properties, complaints: Vec::new() })
    }

    /// The reply to one request, as a worker gives it. For fuzzing, which has no process for it.
    ///
    /// # Errors
    /// The text of [`Reply::Failed`].
    #[doc(hidden)]
    pub fn answer<'a>(&mut self, request: Request<'_>, response: &'a mut Vec<u8>) -> Result<Reply<'a>, String> {
        answer(self, request, response)
    }

    /// What the guest gets for a command that the device did not answer.
    ///
    /// # Errors
    /// If it will never answer again.
    fn fault_for(&mut self, trouble: Trouble) -> Result<Fault, String> {
        match trouble {
            Trouble::Errno(Errno::EPIPE | Errno::ENODEV | Errno::ENXIO | Errno::ENOTCONN | Errno::ECONNRESET) => {
                return Err(format!(
                    "{trouble}: its driver has let go of it; when it is back, start this program and the VM again"
                ));
            }
            // In which version's words a fault is to be said is what is asked.
            _ if self.properties.is_none() => return Err(trouble.to_string()),
            // So ends a cancelled command with chips that drop it.
            Trouble::Errno(Errno::ECANCELED) => return Ok(Fault::Canceled),
            _ => {}
        }
        if !self.complaints.contains(&trouble) {
            log::warn!("{trouble}; the guest's command fails. Until the next reset the same is not reported again");
            self.complaints.push(trouble);
        }
        Ok(Fault::Failure)
    }
}

impl HeldTpm for DeviceTpm {
    fn set_profile(&mut self, _profile: &str) -> Result<(), String> {
        Err("a TPM of the host has its profile from its maker".to_owned())
    }

    /// Nothing can reset the chip alone. A response that a worker before this one did not fetch is thrown away; behind a
    /// resource manager, so is what the guest has loaded.
    fn initialize(&mut self) -> Result<(), String> {
        self.complaints.clear();
        match &mut self.device {
            Device::Exclusive(device) => drain(device.as_fd()),
            Device::Shared { path, opened } => {
                *opened = None;
                let device = open_path_descriptor(path.as_fd())
                    .map_err(|errno| format!("the TPM's device cannot be opened: {errno}"))?;
                *opened = Some(device);
            }
        }
        Ok(())
    }

    fn hash(&mut self, _data: &[u8]) -> Result<(), String> {
        Err("the host's TPM takes its H-CRTM's measurement from the host".to_owned())
    }

    fn terminate(&mut self) {
        if let Device::Shared { opened, .. } = &mut self.device {
            *opened = None;
        }
    }

    fn process(&mut self, locality: Locality, command: &[u8], response: &mut Vec<u8>) -> Result<(), String> {
        let command_size = self.properties.map_or(BUFFER_SIZE, |properties| properties.command_size.into());
        let fault = if locality != Locality::ZERO {
            // Linux works at locality 0 only, and has no way to ask for another.
            Fault::Locality
        } else if command.len() > command_size || Header::of_whole(command).is_none() {
            Fault::CommandSize
        } else {
            let device = match &self.device {
                Device::Exclusive(device) | Device::Shared { opened: Some(device), .. } => device,
                Device::Shared { opened: None, .. } => return Err("the TPM's device is not open".to_owned()),
            };
            match transact(device.as_fd(), command, response) {
                Ok(()) => return Ok(()),
                // Who asks what it is sees it as it is.
                Err(Trouble::Malformed) if self.properties.is_none() => return Ok(()),
                Err(trouble) => self.fault_for(trouble)?,
            }
        };
        let version = self.properties.map_or(TpmVersion::V2_0, |properties| properties.version);
        response.clear();
        response.extend_from_slice(&fault_response(version, fault));
        Ok(())
    }

    fn opens(&self) -> Option<BorrowedFd<'_>> {
        match &self.device {
            Device::Exclusive(_) => None,
            Device::Shared { path, .. } => Some(path.as_fd()),
        }
    }

    fn established(&self) -> bool {
        false
    }

    fn reset_established(&mut self, _locality: Locality) -> Result<(), String> {
        Err("tpmEstablished of the host's TPM is not the guest's to reset".to_owned())
    }
}

impl std::fmt::Display for Trouble {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Errno(errno) => write!(f, "the TPM's device fails: {}", io::Error::from(*errno)),
            Self::Empty => f.write_str("the TPM's device gave no response"),
            Self::Malformed => f.write_str("the TPM's device gave a response whose header does not fit its length"),
            Self::TooLong => write!(f, "the TPM's device gave a response of more than {BUFFER_SIZE} bytes"),
        }
    }
}

/// Runs one command: one write, one read.
fn transact(device: BorrowedFd<'_>, command: &[u8], response: &mut Vec<u8>) -> Result<(), Trouble> {
    if write(device, command).map_err(Trouble::Errno)? != command.len() {
        return Err(Trouble::Empty);
    }
    // One byte more than there may be.
    response.resize(BUFFER_SIZE.saturating_add(1), 0);
    let length = loop {
        match read(device, response) {
            Err(Errno::EINTR) => {}
            length => break length.map_err(Trouble::Errno)?,
        }
    };
    match length {
        0 => Err(Trouble::Empty),
        1..=BUFFER_SIZE => {
            response.truncate(length);
            Header::of_whole(response).map(drop).ok_or(Trouble::Malformed)
        }
        _ => Err(Trouble::TooLong),
    }
}

/// Throws away responses that nobody has read. Does not wait for any.
fn drain(device: BorrowedFd<'_>) {
    // Of others, and perhaps secret.
    let mut old = Zeroizing::new([0; BUFFER_SIZE]);
    for _ in 0..MAX_OLD_RESPONSES {
        let mut ready = [PollFd::new(device, PollFlags::POLLIN)];
        if poll(&mut ready, PollTimeout::ZERO) != Ok(1) || !matches!(read(device, old.as_mut_slice()), Ok(1..)) {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::seqpacket;

    #[test]
    fn nothing_is_answered_for_a_device_of_which_nothing_is_known() {
        let errnos = [Errno::ECANCELED, Errno::ENODEV, Errno::ETIME];
        let troubles =
            errnos.map(Trouble::Errno).into_iter().chain([Trouble::Empty, Trouble::Malformed, Trouble::TooLong]);
        let mut tpm = DeviceTpm::new(seqpacket::pair().unwrap().0, None).unwrap();
        for trouble in troubles {
            assert!(tpm.fault_for(trouble).is_err(), "{trouble}");
        }
    }
}
