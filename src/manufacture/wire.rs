//! Commands out, responses in, byte by byte. Both TPM versions are big-endian.

use std::fmt;

use super::ManufactureError;
use crate::backend::synchronous::{Synchronous, SynchronousError};
use crate::tpm::{HEADER_SIZE, Header};

/// What runs TPM commands, whichever TPM it is.
pub(super) trait Transport {
    /// Runs a command; the response may be anything.
    fn run(&mut self, command: &[u8]) -> Result<&[u8], SynchronousError>;
    /// `_TPM_Init`.
    fn reset(&mut self) -> Result<(), SynchronousError>;
}

impl<B: crate::backend::Backend> Transport for Synchronous<'_, B> {
    fn run(&mut self, command: &[u8]) -> Result<&[u8], SynchronousError> {
        self.execute(command)
    }

    fn reset(&mut self) -> Result<(), SynchronousError> {
        self.initialize()
    }
}

/// A command under construction.
#[derive(Clone)]
pub(super) struct Command {
    name: &'static str,
    tag: u16,
    code: u32,
    body: Vec<u8>,
}

impl Command {
    /// A command without handles and parameters; the name is for messages.
    pub(super) fn new(name: &'static str, tag: u16, code: u32) -> Self {
        Self { name, tag, code, body: Vec::new() }
    }

    pub(super) fn u8(self, value: u8) -> Self {
        self.bytes(&[value])
    }

    pub(super) fn u16(self, value: u16) -> Self {
        self.bytes(&value.to_be_bytes())
    }

    pub(super) fn u32(self, value: u32) -> Self {
        self.bytes(&value.to_be_bytes())
    }

    pub(super) fn bytes(mut self, bytes: &[u8]) -> Self {
        self.body.extend_from_slice(bytes);
        self
    }

    /// Bytes with their length in front, as in a `TPM2B`.
    pub(super) fn sized(self, bytes: &[u8]) -> Self {
        // What does not fit into the length does not fit into a command either, and is refused by the TPM.
        self.u16(u16::try_from(bytes.len()).unwrap_or(u16::MAX)).bytes(bytes)
    }

    fn to_bytes(&self) -> Vec<u8> {
        let size = u32::try_from(HEADER_SIZE.saturating_add(self.body.len())).unwrap_or(u32::MAX);
        [&Header { tag: self.tag, size, code: self.code }.to_bytes()[..], &self.body].concat()
    }

    /// Runs the command; what follows the header of a successful response.
    pub(super) fn run(&self, tpm: &mut dyn Transport) -> Result<Response, ManufactureError> {
        match self.try_run(tpm)? {
            Ok(response) => Ok(response),
            Err(code) => Err(ManufactureError::Refused { command: self.name, code }),
        }
    }

    /// As [`run`](Self::run); the TPM's response code is not an error of ours.
    pub(super) fn try_run(&self, tpm: &mut dyn Transport) -> Result<Result<Response, u32>, ManufactureError> {
        let response = tpm.run(&self.to_bytes())?;
        let malformed = ManufactureError::Response { command: self.name };
        match (Header::of_whole(response), response.get(HEADER_SIZE..)) {
            (Some(Header { code: 0, .. }), Some(body)) => Ok(Ok(Response { name: self.name, body: body.to_vec() })),
            (Some(Header { code, .. }), _) => Ok(Err(code)),
            (None, _) => Err(malformed),
        }
    }
}

/// Parameters may be secret.
impl fmt::Debug for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Command").field("name", &self.name).finish_non_exhaustive()
    }
}

/// What a TPM has answered, behind the header.
#[derive(Debug)]
pub(super) struct Response {
    name: &'static str,
    body: Vec<u8>,
}

impl Response {
    /// Reads the response with `parse`; a response that ends too early is malformed.
    pub(super) fn read<T>(&self, parse: impl FnOnce(&mut Reader<'_>) -> Option<T>) -> Result<T, ManufactureError> {
        self.parse(|body| parse(&mut Reader(body)))
    }

    /// As [`read`](Self::read), for what reads bytes itself.
    pub(super) fn parse<T>(&self, parse: impl FnOnce(&[u8]) -> Option<T>) -> Result<T, ManufactureError> {
        parse(&self.body).ok_or(ManufactureError::Response { command: self.name })
    }
}

/// Reads from the front of untrusted bytes.
#[derive(Debug)]
pub(super) struct Reader<'a>(pub(super) &'a [u8]);

impl<'a> Reader<'a> {
    pub(super) fn bytes(&mut self, count: usize) -> Option<&'a [u8]> {
        let (bytes, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(bytes)
    }

    pub(super) fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.bytes(N)?.try_into().ok()
    }

    pub(super) fn u8(&mut self) -> Option<u8> {
        self.array().map(u8::from_be_bytes)
    }

    pub(super) fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_be_bytes)
    }

    pub(super) fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_be_bytes)
    }

    /// A `TPM2B`: a length of two bytes, and as many bytes.
    pub(super) fn sized(&mut self) -> Option<&'a [u8]> {
        let length = self.u16()?;
        self.bytes(length.into())
    }
}

/// Answers every command with the same bytes.
#[cfg(test)]
pub(super) struct Canned(pub(super) Vec<u8>);

#[cfg(test)]
impl Transport for Canned {
    fn run(&mut self, _: &[u8]) -> Result<&[u8], SynchronousError> {
        Ok(&self.0)
    }

    fn reset(&mut self) -> Result<(), SynchronousError> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_carries_its_size() {
        let command = Command::new("TPM2_Startup", 0x8001, 0x144).u16(0);
        assert_eq!(command.to_bytes(), [0x80, 1, 0, 0, 0, 12, 0, 0, 1, 0x44, 0, 0]);
    }

    #[test]
    fn a_response_code_is_told_with_its_command() {
        let mut tpm = Canned(vec![0x80, 1, 0, 0, 0, 10, 0, 0, 1, 0x01]);
        let error = Command::new("TPM2_X", 0x8001, 1).run(&mut tpm).unwrap_err().to_string();
        assert!(error.contains("TPM2_X") && error.contains("0x101"), "{error}");
    }

    #[test]
    fn a_response_of_another_length_than_it_says_is_refused() {
        let mut tpm = Canned(vec![0x80, 1, 0, 0, 0, 11, 0, 0, 0, 0]);
        assert!(matches!(
            Command::new("TPM2_X", 0x8001, 1).run(&mut tpm),
            Err(ManufactureError::Response { command: "TPM2_X" })
        ));
    }

    #[test]
    fn a_reader_never_reads_past_the_end() {
        assert_eq!(Reader(&[0, 5, 1, 2]).sized(), None);
        assert_eq!(Reader(&[0, 2, 1, 2]).sized(), Some(&[1, 2][..]));
        assert_eq!(Reader(&[1]).u16(), None);
    }
}
