//! A client that builds its messages byte by byte, independent of the server's own structures.

use std::io::{ErrorKind, IoSlice, IoSliceMut, Read, Write};
use std::net::Shutdown;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use nix::cmsg_space;
use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg};

pub const VERSION: u16 = 1;
pub const DMA_MAP: u16 = 2;
pub const DMA_UNMAP: u16 = 3;
pub const GET_INFO: u16 = 4;
pub const GET_REGION_INFO: u16 = 5;
pub const GET_REGION_IO_FDS: u16 = 6;
pub const GET_IRQ_INFO: u16 = 7;
pub const SET_IRQS: u16 = 8;
pub const REGION_READ: u16 = 9;
pub const REGION_WRITE: u16 = 10;
pub const DMA_READ: u16 = 11;
pub const DMA_WRITE: u16 = 12;
pub const DEVICE_RESET: u16 = 13;
pub const REGION_WRITE_MULTI: u16 = 15;
pub const DEVICE_FEATURE: u16 = 16;
pub const MIG_DATA_READ: u16 = 17;
pub const MIG_DATA_WRITE: u16 = 18;

pub const REPLY: u32 = 0x1;
pub const NO_REPLY: u32 = 0x10;
pub const ERROR: u32 = 0x20;

/// The capabilities of QEMU's `VERSION`.
pub const QEMU_CAPABILITIES: &str = r#"{"capabilities": {"max_msg_fds": 8, "max_data_xfer_size": 1048576, "pgsizes": 4096, "max_dma_maps": 65535, "max_bitmap_size": 33554432, "migration": {"pgsize": 4096}, "write_multiple": true}}"#;

/// No answer that is expected takes this long, on any machine; a test that waits so long has failed.
const PATIENCE: Duration = Duration::from_secs(60);

#[derive(Debug)]
pub struct Reply {
    pub id: u16,
    pub command: u16,
    pub flags: u32,
    pub error: u32,
    pub body: Vec<u8>,
    pub descriptors: Vec<OwnedFd>,
}

impl Reply {
    /// The errno of an error reply, 0 of any other; checks that the reply has the form of either.
    pub fn errno(&self) -> i32 {
        if self.flags == REPLY {
            assert_eq!(self.error, 0);
            return 0;
        }
        assert_eq!(self.flags, REPLY | ERROR, "{self:?}");
        assert_ne!(self.error, 0);
        assert!(self.body.is_empty(), "an error reply is only a header");
        self.error.try_into().unwrap()
    }

    /// The body of a reply that is no error.
    pub fn ok(self) -> Vec<u8> {
        assert_eq!(self.errno(), 0, "{self:?}");
        self.body
    }
}

#[derive(Debug)]
pub struct RawClient {
    pub stream: UnixStream,
    next_id: u16,
}

impl RawClient {
    pub fn connect(path: &Path) -> Self {
        Self::from_stream(UnixStream::connect(path).unwrap())
    }

    pub fn from_stream(stream: UnixStream) -> Self {
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        Self { stream, next_id: 100 }
    }

    /// Negotiates as QEMU does.
    pub fn negotiate(&mut self) {
        let reply = self.request(VERSION, &version(0, 0, QEMU_CAPABILITIES)).ok();
        assert_eq!(reply.get(..4), Some(&[0; 4][..]));
    }

    /// A message id that was not used before.
    pub fn fresh_id(&mut self) -> u16 {
        self.next_id = self.next_id.wrapping_add(1);
        self.next_id
    }

    /// Sends a whole message; returns its id.
    pub fn send(&mut self, command: u16, flags: u32, body: &[u8], descriptors: &[RawFd]) -> u16 {
        let id = self.fresh_id();
        self.send_bytes(&message(id, command, flags, body), descriptors);
        id
    }

    /// Sends bytes in one piece, with descriptors.
    pub fn send_bytes(&mut self, bytes: &[u8], descriptors: &[RawFd]) {
        if descriptors.is_empty() {
            self.stream.write_all(bytes).unwrap();
            return;
        }
        let rights = [ControlMessage::ScmRights(descriptors)];
        let parts = [IoSlice::new(bytes)];
        let sent = sendmsg::<()>(self.stream.as_raw_fd(), &parts, &rights, MsgFlags::MSG_NOSIGNAL, None).unwrap();
        self.stream.write_all(&bytes[sent..]).unwrap();
    }

    /// Receives the next message.
    pub fn receive(&mut self) -> Reply {
        let mut header = [0; 16];
        let mut descriptors = Vec::new();
        let size = {
            let mut space = cmsg_space!([RawFd; 16]);
            let mut parts = [IoSliceMut::new(&mut header)];
            let flags = MsgFlags::MSG_CMSG_CLOEXEC;
            let received = recvmsg::<()>(self.stream.as_raw_fd(), &mut parts, Some(&mut space), flags).unwrap();
            for control in received.cmsgs().unwrap() {
                if let ControlMessageOwned::ScmRights(rights) = control {
                    // SAFETY: these descriptors have just been received, and are owned by nobody else.
                    descriptors.extend(rights.into_iter().map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }));
                }
            }
            received.bytes
        };
        assert_eq!(size, 16, "the header comes in one piece");
        let mut body = vec![0; u32_at(&header, 4) as usize - 16];
        self.stream.read_exact(&mut body).unwrap();
        Reply {
            id: u16_at(&header, 0),
            command: u16_at(&header, 2),
            flags: u32_at(&header, 8),
            error: u32_at(&header, 12),
            body,
            descriptors,
        }
    }

    /// Sends a command and receives its reply.
    pub fn request(&mut self, command: u16, body: &[u8]) -> Reply {
        self.request_with(command, body, &[])
    }

    /// Sends a command with descriptors and receives its reply.
    pub fn request_with(&mut self, command: u16, body: &[u8], descriptors: &[RawFd]) -> Reply {
        let id = self.send(command, 0, body, descriptors);
        let reply = self.receive();
        assert_eq!((reply.id, reply.command), (id, command));
        reply
    }

    /// Checks that the server is in step: the next thing it says is the reply to this.
    pub fn assert_in_step(&mut self) {
        assert_eq!(self.request(GET_INFO, &device_info()).ok().len(), 16);
    }

    /// Checks that the server has closed the connection and says nothing more.
    pub fn assert_closed(mut self) {
        let mut rest = Vec::new();
        match self.stream.read_to_end(&mut rest) {
            Ok(_) => assert!(rest.is_empty(), "{rest:?}"),
            Err(error) => assert_eq!(error.kind(), ErrorKind::ConnectionReset),
        }
    }

    pub fn region_read(&mut self, region: u32, offset: u64, count: u32) -> Vec<u8> {
        let reply = self.request(REGION_READ, &access(region, offset, count, &[])).ok();
        let (fixed, data) = reply.split_at(16);
        assert_eq!(fixed, access(region, offset, count, &[]));
        assert_eq!(data.len(), count as usize);
        data.to_vec()
    }

    pub fn region_write(&mut self, region: u32, offset: u64, data: &[u8]) {
        let count = data.len().try_into().unwrap();
        let reply = self.request(REGION_WRITE, &access(region, offset, count, data)).ok();
        assert_eq!(reply, access(region, offset, count, &[]));
    }
}

impl Drop for RawClient {
    /// Leaves at once. To close would not be enough: a process that another test is just starting may for a moment hold a
    /// copy of the socket, and the server would refuse the next client because this one is still there.
    fn drop(&mut self) {
        let _ = self.stream.shutdown(Shutdown::Both);
    }
}

/// A message with the right size in its header.
pub fn message(id: u16, command: u16, flags: u32, body: &[u8]) -> Vec<u8> {
    message_claiming(id, command, flags, (16 + body.len()).try_into().unwrap(), body)
}

/// A message with any size in its header.
pub fn message_claiming(id: u16, command: u16, flags: u32, size: u32, body: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    bytes.extend(id.to_le_bytes());
    bytes.extend(command.to_le_bytes());
    bytes.extend(words(&[size, flags, 0]));
    bytes.extend(body);
    bytes
}

/// The body of `VERSION`, with a terminator after the JSON.
pub fn version(major: u16, minor: u16, json: &str) -> Vec<u8> {
    [&major.to_le_bytes()[..], &minor.to_le_bytes(), json.as_bytes(), &[0]].concat()
}

/// The body of `DEVICE_GET_INFO`.
pub fn device_info() -> Vec<u8> {
    words(&[16, 0, 0, 0])
}

/// The body of `DEVICE_GET_REGION_INFO`.
pub fn region_info(index: u32) -> Vec<u8> {
    words(&[32, 0, index, 0, 0, 0, 0, 0])
}

/// The body of `DEVICE_GET_IRQ_INFO`.
pub fn irq_info(index: u32) -> Vec<u8> {
    words(&[16, 0, index, 0])
}

/// The body of `DEVICE_SET_IRQS`.
pub fn irq_set(flags: u32, index: u32, start: u32, count: u32, data: &[u8]) -> Vec<u8> {
    let mut body = words(&[(20 + data.len()).try_into().unwrap(), flags, index, start, count]);
    body.extend(data);
    body
}

/// The body of `REGION_READ` or `REGION_WRITE`.
pub fn access(region: u32, offset: u64, count: u32, data: &[u8]) -> Vec<u8> {
    [&offset.to_le_bytes()[..], &region.to_le_bytes(), &count.to_le_bytes(), data].concat()
}

/// The body of `DMA_MAP`.
pub fn dma_map(flags: u32, offset: u64, address: u64, size: u64) -> Vec<u8> {
    let mut body = words(&[32, flags]);
    body.extend([offset, address, size].into_iter().flat_map(u64::to_le_bytes));
    body
}

/// The body of `DMA_UNMAP`.
pub fn dma_unmap(flags: u32, address: u64, size: u64) -> Vec<u8> {
    let mut body = words(&[24, flags]);
    body.extend([address, size].into_iter().flat_map(u64::to_le_bytes));
    body
}

/// Little-endian 32-bit words.
pub fn words(words: &[u32]) -> Vec<u8> {
    words.iter().copied().flat_map(u32::to_le_bytes).collect()
}

pub fn u16_at(bytes: &[u8], offset: usize) -> u16 {
    u16::from_le_bytes(bytes[offset..offset + 2].try_into().unwrap())
}

pub fn u32_at(bytes: &[u8], offset: usize) -> u32 {
    u32::from_le_bytes(bytes[offset..offset + 4].try_into().unwrap())
}

pub fn u64_at(bytes: &[u8], offset: usize) -> u64 {
    u64::from_le_bytes(bytes[offset..offset + 8].try_into().unwrap())
}
