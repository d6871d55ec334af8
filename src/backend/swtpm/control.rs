//! swtpm's control channel: each of its requests as bytes, and what each reply may look like.
//!
//! A request is its number (u32) and its parameters, all big-endian, in one write: swtpm takes what has arrived for the
//! whole. A reply is a result code (u32) and, unless that says an error, its values; only GET_CAPABILITY is answered by
//! the bare capabilities. Replies come from another program: one that is not exactly as described here is an error.
//!
//! Source: swtpm 0.7.1 and 0.10.2, `include/swtpm/tpm_ioctl.h` (numbers and structures) and `src/swtpm/ctrlchannel.c`
//! (when a reply is shortened to its result code).

use std::fmt;

use bitflags::bitflags;
use thiserror::Error;

use crate::state::Blob;
use crate::tpm::Locality;

/// Bytes in the longest reply but those with a state blob: GET_INFO's header and its text.
pub const MAX_REPLY: usize = 12 + MAX_INFO;

/// Bytes in GET_INFO's longest text, with its final zero byte (`PTM_GETINFO_SIZE`).
const MAX_INFO: usize = 3072;

/// Bytes in the largest state blob that is believed; real ones have some ten thousand.
pub const MAX_STATE_BLOB: usize = 4 << 20;

/// Bytes in the largest piece of data for HASH_DATA.
pub const MAX_HASH_DATA: usize = 4096;

bitflags! {
    /// What an swtpm can do on its control channel (`PTM_CAP_*`).
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Capabilities: u64 {
        /// [`Request::Init`].
        const INIT = 1;
        /// [`Request::Shutdown`].
        const SHUTDOWN = 1 << 1;
        /// [`Request::GetTpmEstablished`].
        const GET_TPMESTABLISHED = 1 << 2;
        /// [`Request::SetLocality`].
        const SET_LOCALITY = 1 << 3;
        /// [`Request::HashStart`], [`Request::HashData`] and [`Request::HashEnd`].
        const HASHING = 1 << 4;
        /// [`Request::CancelTpmCmd`].
        const CANCEL_TPM_CMD = 1 << 5;
        /// [`Request::StoreVolatile`].
        const STORE_VOLATILE = 1 << 6;
        /// [`Request::ResetTpmEstablished`].
        const RESET_TPMESTABLISHED = 1 << 7;
        /// [`Request::GetStateBlob`].
        const GET_STATEBLOB = 1 << 8;
        /// [`Request::SetStateBlob`].
        const SET_STATEBLOB = 1 << 9;
        /// [`Request::Stop`].
        const STOP = 1 << 10;
        /// [`Request::GetConfig`].
        const GET_CONFIG = 1 << 11;
        /// [`Request::SetDataFd`].
        const SET_DATAFD = 1 << 12;
        /// [`Request::SetBufferSize`].
        const SET_BUFFERSIZE = 1 << 13;
        /// [`Request::GetInfo`].
        const GET_INFO = 1 << 14;
        /// The data channel also takes commands with a header that names their locality. Not used.
        const SEND_COMMAND_HEADER = 1 << 15;
        /// [`Request::LockStorage`].
        const LOCK_STORAGE = 1 << 16;
        // Newer ones that have no name here.
        const _ = !0;
    }
}

impl Capabilities {
    /// The names of the single capabilities, for a person: `SET_DATAFD, GET_INFO`. Those without a name are left out.
    #[must_use]
    pub fn names(self) -> String {
        let names: Vec<_> = self.iter_names().map(|(name, _)| name).collect();
        names.join(", ")
    }
}

bitflags! {
    /// Which keys an swtpm was given (`PTM_CONFIG_FLAG_*`).
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Config: u32 {
        /// Its state files are encrypted.
        const FILE_KEY = 1;
        /// State blobs that it hands out are encrypted.
        const MIGRATION_KEY = 2;
        const _ = !0;
    }
}

/// `PTM_INIT_FLAG_DELETE_VOLATILE`.
const DELETE_VOLATILE: u32 = 1;
/// `PTM_STATE_FLAG_DECRYPTED`.
const STATE_DECRYPTED: u32 = 1;
/// `PTM_STATE_FLAG_ENCRYPTED`.
const STATE_ENCRYPTED: u32 = 2;
/// `SWTPM_INFO_TPMSPECIFICATION`.
const INFO_TPM_SPECIFICATION: u64 = 1;

/// What can be asked of an swtpm.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request<'a> {
    /// What the control channel can do. Answered by [`Reply::Capabilities`].
    GetCapability,
    /// Powers the TPM off, if on, and on. The TPM resumes from the file that STORE_VOLATILE left, if there is one.
    Init {
        /// Deletes that file afterwards.
        delete_volatile: bool,
    },
    /// Powers the TPM off and ends swtpm.
    Shutdown,
    /// The `tpmEstablished` flag; only while the TPM is on. Answered by [`Reply::TpmEstablished`].
    GetTpmEstablished,
    /// Sets the locality of the commands to come.
    SetLocality(Locality),
    /// Begins a hash sequence at locality 4 (`_TPM_Hash_Start`); only while the TPM is on.
    HashStart,
    /// Data of the hash sequence (`_TPM_Hash_Data`), at most [`MAX_HASH_DATA`] bytes.
    HashData(&'a [u8]),
    /// Ends the hash sequence (`_TPM_Hash_End`).
    HashEnd,
    /// Cancels the command under way. swtpm has one thread, which comes to read this when that command has ended.
    CancelTpmCmd,
    /// Writes the running TPM's volatile state to a file, from which the next INIT resumes.
    StoreVolatile,
    /// Clears `tpmEstablished` from a locality; only while the TPM is on.
    ResetTpmEstablished(Locality),
    /// A blob of the running TPM's state, from an offset in bytes. Answered by [`Reply::StateBlob`].
    GetStateBlob {
        /// Which.
        blob: Blob,
        /// From where.
        offset: u32,
        /// Decrypted, if swtpm has a key for its files. A migration key is applied all the same.
        decrypted: bool,
    },
    /// Gives the TPM a blob; only while the TPM is off.
    SetStateBlob {
        /// Which.
        blob: Blob,
        /// The data is encrypted by the migration key.
        encrypted: bool,
        /// The whole blob, at most [`MAX_STATE_BLOB`] bytes.
        data: &'a [u8],
    },
    /// Powers the TPM off.
    Stop,
    /// Which keys swtpm has. Answered by [`Reply::Config`].
    GetConfig,
    /// Gives swtpm its end of the data channel, as the one descriptor that goes with the request. Refused while it has
    /// one.
    SetDataFd,
    /// Sets the largest command and response in bytes; only while the TPM is off. 0 asks for it. Answered by
    /// [`Reply::BufferSize`].
    SetBufferSize(u32),
    /// The specification that the TPM follows, as JSON. Answered by [`Reply::Info`].
    GetInfo,
    /// Locks the state's storage again after a GET_STATEBLOB that gave it up. INIT and SET_STATEBLOB lock it by themselves.
    LockStorage {
        /// How often to try again, every 10 ms.
        retries: u32,
    },
}

impl Request<'_> {
    /// The specification's name, for messages.
    #[must_use]
    pub fn name(self) -> &'static str {
        self.number_and_name().1
    }

    fn number_and_name(self) -> (u32, &'static str) {
        match self {
            Self::GetCapability => (0x01, "GET_CAPABILITY"),
            Self::Init { .. } => (0x02, "INIT"),
            Self::Shutdown => (0x03, "SHUTDOWN"),
            Self::GetTpmEstablished => (0x04, "GET_TPMESTABLISHED"),
            Self::SetLocality(_) => (0x05, "SET_LOCALITY"),
            Self::HashStart => (0x06, "HASH_START"),
            Self::HashData(_) => (0x07, "HASH_DATA"),
            Self::HashEnd => (0x08, "HASH_END"),
            Self::CancelTpmCmd => (0x09, "CANCEL_TPM_CMD"),
            Self::StoreVolatile => (0x0a, "STORE_VOLATILE"),
            Self::ResetTpmEstablished(_) => (0x0b, "RESET_TPMESTABLISHED"),
            Self::GetStateBlob { .. } => (0x0c, "GET_STATEBLOB"),
            Self::SetStateBlob { .. } => (0x0d, "SET_STATEBLOB"),
            Self::Stop => (0x0e, "STOP"),
            Self::GetConfig => (0x0f, "GET_CONFIG"),
            Self::SetDataFd => (0x10, "SET_DATAFD"),
            Self::SetBufferSize(_) => (0x11, "SET_BUFFERSIZE"),
            Self::GetInfo => (0x12, "GET_INFO"),
            Self::LockStorage { .. } => (0x13, "LOCK_STORAGE"),
        }
    }

    /// The request as bytes, to go out in one write.
    ///
    /// # Errors
    /// [`TooLong`] for data that exceeds the request's limit.
    pub fn encode(self) -> Result<Vec<u8>, TooLong> {
        let mut bytes = self.number_and_name().0.to_be_bytes().to_vec();
        let mut put = |word: u32| bytes.extend(word.to_be_bytes());
        match self {
            Self::GetCapability
            | Self::Shutdown
            | Self::GetTpmEstablished
            | Self::HashStart
            | Self::HashEnd
            | Self::CancelTpmCmd
            | Self::StoreVolatile
            | Self::Stop
            | Self::GetConfig
            | Self::SetDataFd => {}
            Self::Init { delete_volatile } => put(if delete_volatile { DELETE_VOLATILE } else { 0 }),
            Self::SetLocality(locality) | Self::ResetTpmEstablished(locality) => bytes.push(locality.number()),
            Self::HashData(data) => {
                put(length(data, MAX_HASH_DATA, self)?);
                bytes.extend(data);
            }
            Self::GetStateBlob { blob, offset, decrypted } => {
                put(if decrypted { STATE_DECRYPTED } else { 0 });
                put(blob_type(blob));
                put(offset);
            }
            Self::SetStateBlob { blob, encrypted, data } => {
                put(if encrypted { STATE_ENCRYPTED } else { 0 });
                put(blob_type(blob));
                put(length(data, MAX_STATE_BLOB, self)?);
                bytes.extend(data);
            }
            Self::SetBufferSize(size) => put(size),
            Self::GetInfo => {
                bytes.extend(INFO_TPM_SPECIFICATION.to_be_bytes());
                // Offset and padding.
                bytes.extend([0; 8]);
            }
            Self::LockStorage { retries } => put(retries),
        }
        Ok(bytes)
    }

    /// Reads the reply to this request from what has arrived since it was sent; `None` while more has to come.
    ///
    /// # Errors
    /// [`ReplyError`].
    pub fn parse_reply(self, bytes: &[u8]) -> Result<Option<Reply<'_>>, ReplyError> {
        let mut fields = Fields(bytes);
        match self.read(&mut fields) {
            Ok(reply) if fields.0.is_empty() => Ok(Some(reply)),
            Ok(_) => {
                let surplus = fields.0.len();
                let expected = bytes.len().saturating_sub(surplus);
                Err(ReplyError::TooLong { request: self.name(), expected, surplus })
            }
            Err(Unread::Incomplete) => Ok(None),
            Err(Unread::Nonsense(what)) => Err(ReplyError::Nonsense { request: self.name(), what }),
        }
    }

    fn read<'b>(self, fields: &mut Fields<'b>) -> Result<Reply<'b>, Unread> {
        if self == Self::GetCapability {
            let capabilities = (u64::from(fields.word()?) << 32) | u64::from(fields.word()?);
            return Ok(Reply::Capabilities(Capabilities::from_bits_retain(capabilities)));
        }
        let code = fields.word()?;
        if code != 0 {
            // Where swtpm refuses a request it sends the code alone; where libtpms does, the values may come too.
            let _values = match self {
                Self::GetTpmEstablished if !fields.0.is_empty() => fields.take(4)?,
                Self::GetStateBlob { .. } if !fields.0.is_empty() => fields.take(12)?,
                _ => &[],
            };
            return Ok(Reply::Refused(ResultCode(code)));
        }
        match self {
            Self::GetTpmEstablished => match fields.word()?.to_be_bytes() {
                [bit @ (0 | 1), _, _, _] => Ok(Reply::TpmEstablished(bit == 1)),
                _ => Err(Unread::Nonsense("a flag that is neither 0 nor 1")),
            },
            Self::GetStateBlob { .. } => {
                let (flags, total, length) = (fields.word()?, fields.size()?, fields.size()?);
                if total > MAX_STATE_BLOB || length > total {
                    return Err(Unread::Nonsense("an impossible length"));
                }
                let data = fields.take(length)?;
                Ok(Reply::StateBlob { encrypted: flags & STATE_ENCRYPTED != 0, total, data })
            }
            Self::GetConfig => Ok(Reply::Config(Config::from_bits_retain(fields.word()?))),
            Self::SetBufferSize(_) => {
                let (size, minimum, maximum) = (fields.word()?, fields.word()?, fields.word()?);
                if !(minimum..=maximum).contains(&size) {
                    return Err(Unread::Nonsense("a size outside its own limits"));
                }
                Ok(Reply::BufferSize { size, minimum, maximum })
            }
            Self::GetInfo => {
                let (total, length) = (fields.size()?, fields.size()?);
                if total > MAX_INFO || length != total {
                    return Err(Unread::Nonsense("an impossible length"));
                }
                let text = fields.take(length)?.strip_suffix(&[0]).and_then(|text| std::str::from_utf8(text).ok());
                text.map(Reply::Info).ok_or(Unread::Nonsense("something that is not text"))
            }
            _ => Ok(Reply::Done),
        }
    }
}

/// The number of a blob (`PTM_BLOB_TYPE_*`).
fn blob_type(blob: Blob) -> u32 {
    match blob {
        Blob::Permanent => 1,
        Blob::Volatile => 2,
        Blob::SaveState => 3,
    }
}

fn length(data: &[u8], limit: usize, request: Request<'_>) -> Result<u32, TooLong> {
    let error = TooLong { request: request.name(), length: data.len(), limit };
    if data.len() > limit {
        return Err(error);
    }
    u32::try_from(data.len()).map_err(|_| error)
}

/// What has not been read yet of a reply.
struct Fields<'b>(&'b [u8]);

enum Unread {
    Incomplete,
    Nonsense(&'static str),
}

impl<'b> Fields<'b> {
    fn take(&mut self, length: usize) -> Result<&'b [u8], Unread> {
        let (taken, rest) = self.0.split_at_checked(length).ok_or(Unread::Incomplete)?;
        self.0 = rest;
        Ok(taken)
    }

    fn word(&mut self) -> Result<u32, Unread> {
        let (taken, rest) = self.0.split_first_chunk().ok_or(Unread::Incomplete)?;
        self.0 = rest;
        Ok(u32::from_be_bytes(*taken))
    }

    fn size(&mut self) -> Result<usize, Unread> {
        usize::try_from(self.word()?).map_err(|_| Unread::Nonsense("an impossible length"))
    }
}

/// What an swtpm answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reply<'a> {
    /// It did what was asked.
    Done,
    /// It did not.
    Refused(ResultCode),
    /// To [`Request::GetCapability`].
    Capabilities(Capabilities),
    /// To [`Request::GetTpmEstablished`].
    TpmEstablished(bool),
    /// To [`Request::GetStateBlob`].
    StateBlob {
        /// The data is encrypted by swtpm's migration key.
        encrypted: bool,
        /// Bytes from the request's offset to the blob's end.
        total: usize,
        /// The bytes from the offset on.
        data: &'a [u8],
    },
    /// To [`Request::GetConfig`].
    Config(Config),
    /// To [`Request::SetBufferSize`], in bytes.
    BufferSize {
        /// What the TPM uses now: between the other two, and not always what was asked.
        size: u32,
        /// The least it could use.
        minimum: u32,
        /// The most it could use.
        maximum: u32,
    },
    /// To [`Request::GetInfo`].
    Info(&'a str),
}

/// Why a request was refused: a TPM 1.2 result code, whatever the TPM's version. Never 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ResultCode(pub u32);

impl ResultCode {
    /// `TPM_BAD_LOCALITY`.
    pub const BAD_LOCALITY: Self = Self(0x3d);
}

impl fmt::Display for ResultCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let meaning = match self.0 {
            0x03 => "TPM_BAD_PARAMETER: it does not understand the request",
            0x09 => "TPM_FAIL: its own log says why",
            0x0a => "TPM_BAD_ORDINAL: it does not know the request, or not while the TPM is on or off",
            0x1f => "TPM_IOERROR: it could not read or write",
            0x21 => "TPM_DECRYPT_ERROR: its key does not fit the state",
            0x3d => "TPM_BAD_LOCALITY: not from this locality",
            0x800 => "TPM_RETRY: there is no such blob",
            _ => return write!(f, "{:#x}", self.0),
        };
        write!(f, "{:#x} ({meaning})", self.0)
    }
}

/// Data that does not fit into a request.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[error("{request} takes at most {limit} bytes of data, and {length} were to be sent")]
pub struct TooLong {
    /// The request.
    pub request: &'static str,
    /// Bytes that were to be sent.
    pub length: usize,
    /// Most bytes that it takes.
    pub limit: usize,
}

/// A reply that is none.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum ReplyError {
    /// It has bytes after its end.
    #[error("its reply to {request} has {expected} bytes, and {surplus} more follow")]
    TooLong {
        /// What was asked.
        request: &'static str,
        /// Bytes in the reply.
        expected: usize,
        /// Bytes behind it.
        surplus: usize,
    },
    /// A value in it cannot be.
    #[error("its reply to {request} has {what}")]
    Nonsense {
        /// What was asked.
        request: &'static str,
        /// What it has.
        what: &'static str,
    },
}

#[cfg(test)]
mod tests;
