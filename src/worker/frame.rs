//! The frames between the server and the worker, one to a message of their socket pair.
//!
//! A frame is an 8-byte header - kind, locality or flags, two zero bytes, sequence number (native-endian u32) - and a
//! payload. Both sides are the same program on the same machine, and yet a worker that was taken over may send
//! anything: a frame that is not exactly as described here is an error, never a guess.
// A number from outside never overflows unseen. Tests may calculate.
#![cfg_attr(not(test), warn(clippy::arithmetic_side_effects))]

use std::fmt;
use std::os::fd::AsFd;

use thiserror::Error;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::seqpacket;
use crate::state::MASTER_SIZE;
use crate::tpm::{BUFFER_SIZE, HEADER_SIZE, Locality, TpmVersion};

/// Bytes in the largest frame.
pub const MAX_FRAME: usize = size_of::<FrameHeader>() + BUFFER_SIZE;

const START: u8 = 0x01;
const INITIALIZE: u8 = 0x02;
const EXECUTE: u8 = 0x03;
const RESET_ESTABLISHED: u8 = 0x04;
const TERMINATE: u8 = 0x05;
const START_DEVICE: u8 = 0x06;
const INITIALIZE_PROFILE: u8 = 0x07;
const HASH: u8 = 0x08;
const DONE: u8 = 0x81;
const RESPONSE: u8 = 0x82;
const FAILED: u8 = 0x83;

#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct FrameHeader {
    kind: u8,
    /// Locality of a request, `established` of DONE, TPM version of START and START_DEVICE.
    detail: u8,
    zero: [u8; 2],
    sequence: u32,
}

/// What the server asks of the worker.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Request<'a> {
    /// The first frame, never answered: the TPM's version, and the master key if its state is sealed. With it come the
    /// cancel socket and, unless the TPM is ephemeral, the state folder, its lock and perhaps its rollback anchor.
    Start(TpmVersion, Option<&'a [u8; MASTER_SIZE]>),
    /// The first frame for a TPM that is a device of the host, never answered. With it come the cancel socket, the device
    /// and, if there is one, the file that cancels its command. Without properties nobody knows yet what the device is: then
    /// it is a failure if the device does not answer, and not the TPM's response.
    StartDevice(Option<DeviceProperties>),
    /// `_TPM_Init`: power off, if on, and on again. Answered by [`Reply::Done`].
    Initialize,
    /// As [`Initialize`](Self::Initialize); a TPM that is made by it gets this profile, a text of libtpms.
    InitializeProfile(&'a str),
    /// `_TPM_Hash_Start`, `_TPM_Hash_Data` with this, `_TPM_Hash_End`, at locality 4. Answered by [`Reply::Done`].
    Hash(&'a [u8]),
    /// Run a command at a locality. Answered by [`Reply::Response`].
    Execute(Locality, &'a [u8]),
    /// Clear `tpmEstablished` from a locality. Answered by [`Reply::Done`].
    ResetEstablished(Locality),
    /// Power off. Answered by [`Reply::Done`].
    Terminate,
}

/// What is known of a TPM that is a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceProperties {
    /// In which version's words it is to be answered for it.
    pub version: TpmVersion,
    /// Bytes in the largest command that it takes, [`HEADER_SIZE`] to [`BUFFER_SIZE`].
    pub command_size: u16,
}

/// What the worker answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reply<'a> {
    /// Done.
    Done {
        /// The TPM's `tpmEstablished` flag.
        established: bool,
    },
    /// The TPM's response; whether it is well-formed is for the receiver to find out.
    Response(&'a [u8]),
    /// It could not be done; a text for the log.
    Failed(&'a str),
}

/// A frame that is not as the protocol says.
#[derive(Debug, Error, PartialEq, Eq)]
#[error("a frame of {length} bytes of kind {kind:#04x} does not fit the protocol")]
pub struct FrameError {
    /// Length received, in bytes.
    pub length: usize,
    /// First byte received.
    pub kind: u8,
}

impl<'a> Request<'a> {
    /// The request in a frame.
    pub fn encode(self, sequence: u32, frame: &mut Vec<u8>) {
        let size;
        let (kind, detail, payload): (_, _, &[u8]) = match self {
            Self::Start(version, key) => (START, version_number(version), key.map_or(&[], |key| key)),
            Self::StartDevice(None) => (START_DEVICE, 0, &[]),
            Self::StartDevice(Some(DeviceProperties { version, command_size })) => {
                size = command_size.to_ne_bytes();
                (START_DEVICE, version_number(version), &size)
            }
            Self::Initialize => (INITIALIZE, 0, &[]),
            Self::InitializeProfile(profile) => (INITIALIZE_PROFILE, 0, profile.as_bytes()),
            Self::Hash(data) => (HASH, 0, data),
            Self::Execute(locality, command) => (EXECUTE, locality.number(), command),
            Self::ResetEstablished(locality) => (RESET_ESTABLISHED, locality.number(), &[]),
            Self::Terminate => (TERMINATE, 0, &[]),
        };
        put(frame, kind, detail, sequence, payload);
    }

    /// The request in `frame`, with its sequence number.
    ///
    /// # Errors
    /// [`FrameError`].
    pub fn decode(frame: &'a [u8]) -> Result<(u32, Self), FrameError> {
        let error = || FrameError { length: frame.len(), kind: frame.first().copied().unwrap_or(0) };
        let (header, payload) = get(frame).ok_or_else(error)?;
        let locality = || Locality::new(header.detail);
        let request = match (header.kind, payload.is_empty()) {
            (START, true) => version(header.detail).map(|version| Self::Start(version, None)),
            (START, false) => match (version(header.detail), payload.try_into()) {
                (Some(version), Ok(key)) => Some(Self::Start(version, Some(key))),
                _ => None,
            },
            (START_DEVICE, true) if header.detail == 0 => Some(Self::StartDevice(None)),
            (START_DEVICE, false) => {
                DeviceProperties::decode(header.detail, payload).map(|properties| Self::StartDevice(Some(properties)))
            }
            (INITIALIZE, true) if header.detail == 0 => Some(Self::Initialize),
            (INITIALIZE_PROFILE, false) if header.detail == 0 => {
                std::str::from_utf8(payload).ok().map(Self::InitializeProfile)
            }
            (HASH, false) if header.detail == 0 => Some(Self::Hash(payload)),
            (EXECUTE, false) => locality().map(|locality| Self::Execute(locality, payload)),
            (RESET_ESTABLISHED, true) => locality().map(Self::ResetEstablished),
            (TERMINATE, true) if header.detail == 0 => Some(Self::Terminate),
            _ => None,
        };
        Ok((header.sequence, request.ok_or_else(error)?))
    }
}

impl DeviceProperties {
    fn decode(detail: u8, payload: &[u8]) -> Option<Self> {
        let command_size = u16::from_ne_bytes(payload.try_into().ok()?);
        let possible = (HEADER_SIZE..=BUFFER_SIZE).contains(&usize::from(command_size));
        possible.then_some(Self { version: version(detail)?, command_size })
    }
}

fn version_number(version: TpmVersion) -> u8 {
    match version {
        TpmVersion::V1_2 => 1,
        TpmVersion::V2_0 => 2,
    }
}

fn version(number: u8) -> Option<TpmVersion> {
    match number {
        1 => Some(TpmVersion::V1_2),
        2 => Some(TpmVersion::V2_0),
        _ => None,
    }
}

impl<'a> Reply<'a> {
    /// The reply in a frame.
    pub fn encode(self, sequence: u32, frame: &mut Vec<u8>) {
        let (kind, detail, payload) = match self {
            Self::Done { established } => (DONE, u8::from(established), &[][..]),
            Self::Response(response) => (RESPONSE, 0, response),
            Self::Failed(text) => (FAILED, 0, text.as_bytes()),
        };
        put(frame, kind, detail, sequence, payload);
    }

    /// The reply in `frame`, with its sequence number.
    ///
    /// # Errors
    /// [`FrameError`].
    pub fn decode(frame: &'a [u8]) -> Result<(u32, Self), FrameError> {
        let error = || FrameError { length: frame.len(), kind: frame.first().copied().unwrap_or(0) };
        let (header, payload) = get(frame).ok_or_else(error)?;
        let reply = match (header.kind, header.detail, payload.is_empty()) {
            (DONE, established @ (0 | 1), true) => Some(Self::Done { established: established == 1 }),
            (RESPONSE, 0, false) => Some(Self::Response(payload)),
            (FAILED, 0, _) => std::str::from_utf8(payload).ok().map(Self::Failed),
            _ => None,
        };
        Ok((header.sequence, reply.ok_or_else(error)?))
    }
}

/// Without what the frame carries: a key, or a guest's secrets.
impl fmt::Debug for Request<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Start(version, key) => {
                write!(f, "Start({version}, {})", if key.is_some() { "sealed" } else { "plain" })
            }
            Self::StartDevice(properties) => f.debug_tuple("StartDevice").field(properties).finish(),
            Self::Initialize => f.write_str("Initialize"),
            Self::InitializeProfile(profile) => f.debug_tuple("InitializeProfile").field(profile).finish(),
            Self::Hash(data) => write!(f, "Hash({} bytes)", data.len()),
            Self::Execute(locality, command) => write!(f, "Execute({locality}, {} bytes)", command.len()),
            Self::ResetEstablished(locality) => write!(f, "ResetEstablished({locality})"),
            Self::Terminate => f.write_str("Terminate"),
        }
    }
}

/// Longer payloads are cut: only a text can be too long, since commands and responses never exceed the buffer.
fn put(frame: &mut Vec<u8>, kind: u8, detail: u8, sequence: u32, payload: &[u8]) {
    frame.clear();
    frame.extend_from_slice(FrameHeader { kind, detail, zero: [0; 2], sequence }.as_bytes());
    frame.extend(payload.iter().take(BUFFER_SIZE));
}

fn get(frame: &[u8]) -> Option<(FrameHeader, &[u8])> {
    let (header, payload) = FrameHeader::read_from_prefix(frame).ok()?;
    (header.zero == [0; 2] && payload.len() <= BUFFER_SIZE).then_some((header, payload))
}

/// The message on the cancel socket: the sequence number of the command to cancel.
pub fn send_cancel(socket: impl AsFd, sequence: u32) -> nix::Result<()> {
    seqpacket::send(socket.as_fd(), &sequence.to_ne_bytes(), &[])
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn requests() -> Vec<Request<'static>> {
        vec![
            Request::Start(TpmVersion::V1_2, None),
            Request::Start(TpmVersion::V2_0, Some(&[0x5a; MASTER_SIZE])),
            Request::StartDevice(None),
            Request::StartDevice(Some(DeviceProperties { version: TpmVersion::V1_2, command_size: 1024 })),
            Request::Initialize,
            Request::InitializeProfile("{\"Name\":\"default-v1\"}"),
            Request::Hash(&[1; BUFFER_SIZE]),
            Request::Execute(Locality::FOUR, &[7; BUFFER_SIZE]),
            Request::ResetEstablished(Locality::ZERO),
            Request::Terminate,
        ]
    }

    #[test]
    fn every_request_arrives_as_it_was_sent() {
        let mut frame = Vec::new();
        for request in requests() {
            request.encode(77, &mut frame);
            assert_eq!(Request::decode(&frame), Ok((77, request)));
        }
    }

    #[test]
    fn every_reply_arrives_as_it_was_sent() {
        let mut frame = Vec::new();
        for reply in [
            Reply::Done { established: true },
            Reply::Done { established: false },
            Reply::Response(&[1; BUFFER_SIZE]),
            Reply::Failed("no state"),
        ] {
            reply.encode(u32::MAX, &mut frame);
            assert_eq!(Reply::decode(&frame), Ok((u32::MAX, reply)));
        }
    }

    #[test]
    fn a_start_with_part_of_a_key_is_refused() {
        let mut frame = Vec::new();
        Request::Start(TpmVersion::V2_0, Some(&[0x5a; MASTER_SIZE])).encode(1, &mut frame);
        assert!(Request::decode(&frame[..frame.len() - 1]).is_err());
        frame.push(0);
        assert!(Request::decode(&frame).is_err());
    }

    #[test]
    fn a_key_is_never_printed() {
        let request = Request::Start(TpmVersion::V2_0, Some(&[0x5a; MASTER_SIZE]));
        assert_eq!(format!("{request:?}"), "Start(2.0, sealed)");
    }

    #[test]
    fn a_request_without_a_detail_has_none() {
        for request in [Request::Initialize, Request::InitializeProfile("{}"), Request::Hash(&[1]), Request::Terminate]
        {
            let mut frame = Vec::new();
            request.encode(1, &mut frame);
            frame[1] = 1;
            assert!(Request::decode(&frame).is_err(), "{request:?}");
        }
    }

    #[test]
    fn a_locality_above_4_is_refused() {
        let mut frame = Vec::new();
        Request::Execute(Locality::ZERO, &[0; 10]).encode(1, &mut frame);
        frame[1] = 5;
        assert!(Request::decode(&frame).is_err());
    }

    #[test]
    fn a_device_that_takes_no_header_or_more_than_the_buffer_is_refused() {
        let mut frame = Vec::new();
        for command_size in [0, 9, 4097] {
            Request::StartDevice(Some(DeviceProperties { version: TpmVersion::V2_0, command_size }))
                .encode(1, &mut frame);
            assert!(Request::decode(&frame).is_err());
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_decoded_or_refused_and_never_larger_than_the_buffer(frame in prop::collection::vec(any::<u8>(), 0..5000)) {
            if let Ok((_, Request::Execute(_, command))) = Request::decode(&frame) {
                prop_assert!(!command.is_empty() && command.len() <= BUFFER_SIZE);
            }
            if let Ok((_, Reply::Response(response))) = Reply::decode(&frame) {
                prop_assert!(!response.is_empty() && response.len() <= BUFFER_SIZE);
            }
        }
    }
}
