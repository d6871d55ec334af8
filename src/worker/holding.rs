//! What a worker may be given to hold, as its command line says.
//!
//! A worker does what its first frame says with the descriptors that come along, and is confined to them only then. A server
//! that was taken over says what it likes, and its client can send it descriptors, even such as the client itself has no
//! right to open: the worker would reach for the server what neither reaches. So what a worker is for is said where it is
//! started, by a command line that was fixed before there was a client.

use std::fmt;
use std::os::fd::{AsFd, BorrowedFd};
use std::str::FromStr;

use nix::sys::stat::fstat;

use super::frame::Request;

/// What a worker may hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Holding {
    /// An ephemeral TPM, and no file.
    Nothing,
    /// A TPM with its state in this folder.
    Folder(FileNumbers),
    /// The TPM that is this device.
    Device(FileNumbers),
}

/// A file's device's and inode's number. No other file has them as long as somebody has this one open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileNumbers {
    device: u64,
    inode: u64,
}

impl FileNumbers {
    /// Those of an open file.
    ///
    /// # Errors
    /// Those of `fstat(2)`.
    pub fn of(file: impl AsFd) -> nix::Result<Self> {
        fstat(file).map(|stat| Self { device: stat.st_dev, inode: stat.st_ino })
    }
}

impl Holding {
    /// Whether a worker for this may do what its first frame says; `file` is the first descriptor besides the cancel socket.
    pub(super) fn admits(self, request: &Request<'_>, file: Option<BorrowedFd<'_>>) -> bool {
        match (self, request, file) {
            (Self::Nothing, Request::Start(..), None) => true,
            (Self::Folder(numbers), Request::Start(..), Some(file))
            | (Self::Device(numbers), Request::StartDevice(_), Some(file)) => FileNumbers::of(file) == Ok(numbers),
            _ => false,
        }
    }
}

/// As on the command line: `nothing`, `folder:DEVICE:INODE`, `device:DEVICE:INODE`.
impl fmt::Display for Holding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (kind, FileNumbers { device, inode }) = match self {
            Self::Nothing => return f.write_str("nothing"),
            Self::Folder(numbers) => ("folder", numbers),
            Self::Device(numbers) => ("device", numbers),
        };
        write!(f, "{kind}:{device}:{inode}")
    }
}

impl FromStr for Holding {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let numbers = |text: &str| {
            let (device, inode) = text.split_once(':')?;
            Some(FileNumbers { device: device.parse().ok()?, inode: inode.parse().ok()? })
        };
        let holding = match text.split_once(':') {
            None => (text == "nothing").then_some(Self::Nothing),
            Some(("folder", text)) => numbers(text).map(Self::Folder),
            Some(("device", text)) => numbers(text).map(Self::Device),
            Some(_) => None,
        };
        holding.ok_or_else(|| "expected nothing, folder:DEVICE:INODE or device:DEVICE:INODE".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_read_as_it_is_written() {
        let numbers = FileNumbers { device: 65024, inode: u64::MAX };
        for holding in [Holding::Nothing, Holding::Folder(numbers), Holding::Device(numbers)] {
            assert_eq!(holding.to_string().parse(), Ok(holding));
        }
        for text in ["", "folder", "nothing:1:2", "folder:1", "folder:1:2:3", "device:1:-2", "lock:1:2"] {
            assert!(text.parse::<Holding>().is_err(), "{text}");
        }
    }
}
