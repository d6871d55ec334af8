//! Negotiation: what the client proposes in `VERSION`, and what is agreed ("VFIO_USER_VERSION").
//!
//! The reply never says more than was proposed, and is never longer than the request: QEMU receives it into the
//! request's buffer.

use std::ffi::CStr;

use nix::errno::Errno;
use serde_json::{Map, Value};
use zerocopy::IntoBytes;

use super::descriptors::MAX_MESSAGE_DESCRIPTORS;
use super::dma::{MAX_DMA_MAPS, MIN_PAGE_SIZE};
use super::refusal::Refusal;
use super::wire::{self, MAX_DATA_XFER_SIZE, Version};

/// The version of the protocol that this server speaks.
const MAJOR: u16 = 0;
const MINOR: u16 = 0;

/// Bytes of JSON that a client may send; QEMU's are about 200. As a tree in memory JSON may take a hundred times its size.
const MAX_VERSION_DATA: usize = 4 << 10;

/// What holds for a connection after its negotiation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Agreed {
    /// Descriptors that the client takes with one message.
    pub(super) max_msg_fds: usize,
    /// Bytes of data in one access.
    pub(super) max_data_xfer_size: u32,
    /// DMA windows at one time.
    pub(super) max_dma_maps: usize,
    /// Bytes that DMA windows are aligned to.
    pub(super) page_size: u64,
}

impl Default for Agreed {
    /// What the specification says of capabilities that are not negotiated.
    fn default() -> Self {
        Self {
            max_msg_fds: 1,
            max_data_xfer_size: MAX_DATA_XFER_SIZE,
            max_dma_maps: MAX_DMA_MAPS,
            page_size: MIN_PAGE_SIZE,
        }
    }
}

/// Answers the body of a `VERSION` request with what is agreed and the body of the reply.
pub(super) fn negotiate(body: &[u8]) -> Result<(Agreed, Vec<u8>), Refusal> {
    let (version, data) = wire::parse::<Version>(body)?;
    if version.major.get() != MAJOR {
        return Err(Refusal::new(
            Errno::EPROTONOSUPPORT,
            format!(
                "the client speaks version {}.{} of the protocol, this server {MAJOR}.{MINOR}",
                version.major, version.minor
            ),
        ));
    }
    let proposed = capabilities(data)?;

    let mut agreed = Agreed::default();
    let mut answer = Map::new();
    if let Some(theirs) = number(&proposed, "max_msg_fds")? {
        let smaller = usize::try_from(theirs).unwrap_or(usize::MAX).min(MAX_MESSAGE_DESCRIPTORS);
        agreed.max_msg_fds = smaller;
        answer.insert("max_msg_fds".into(), smaller.into());
    }
    if let Some(theirs) = number(&proposed, "max_data_xfer_size")? {
        let smaller = u32::try_from(theirs).unwrap_or(u32::MAX).min(MAX_DATA_XFER_SIZE);
        agreed.max_data_xfer_size = smaller;
        answer.insert("max_data_xfer_size".into(), smaller.into());
    }
    if let Some(theirs) = number(&proposed, "max_dma_maps")? {
        let smaller = usize::try_from(theirs).unwrap_or(usize::MAX).min(MAX_DMA_MAPS);
        agreed.max_dma_maps = smaller;
        answer.insert("max_dma_maps".into(), smaller.into());
    }
    if let Some(theirs) = number(&proposed, "pgsizes")? {
        // Bookkeeping can do with any page size from 4 KiB on. If nothing is left, the default holds.
        let common = theirs & MIN_PAGE_SIZE.wrapping_neg();
        if common != 0 {
            agreed.page_size = 1 << common.trailing_zeros();
            answer.insert("pgsizes".into(), common.into());
        }
    }

    let mut reply = Version { major: MAJOR.into(), minor: MINOR.into() }.as_bytes().to_vec();
    let json = Value::Object(Map::from_iter([("capabilities".into(), Value::Object(answer))])).to_string();
    if reply.len().saturating_add(json.len()) < body.len() {
        reply.extend_from_slice(json.as_bytes());
        reply.push(0);
        Ok((agreed, reply))
    } else {
        // No room for what was agreed, so nothing was.
        Ok((Agreed::default(), reply))
    }
}

/// The `capabilities` object of the version data; empty if there is none.
fn capabilities(data: &[u8]) -> Result<Map<String, Value>, Refusal> {
    if data.is_empty() {
        return Ok(Map::new());
    }
    if data.len() > MAX_VERSION_DATA {
        return Err(Refusal::new(
            Errno::EMSGSIZE,
            format!("version data of at most {MAX_VERSION_DATA} bytes was expected, {} came", data.len()),
        ));
    }
    let text = CStr::from_bytes_with_nul(data)
        .map_err(|error| Refusal::invalid(format!("the version data is not terminated by one NUL: {error}")))?
        .to_str()
        .map_err(|error| Refusal::invalid(format!("the version data is not UTF-8: {error}")))?;
    let mut object: Map<String, Value> = serde_json::from_str(text)
        .map_err(|error| Refusal::invalid(format!("the version data is not a JSON object: {error}")))?;
    match object.remove("capabilities") {
        None => Ok(Map::new()),
        Some(Value::Object(capabilities)) => Ok(capabilities),
        Some(_) => Err(Refusal::invalid("the version data's capabilities are not a JSON object")),
    }
}

/// The capability `name`, if it is proposed.
fn number(proposed: &Map<String, Value>, name: &str) -> Result<Option<u64>, Refusal> {
    proposed
        .get(name)
        .map(|value| {
            value.as_u64().ok_or_else(|| {
                Refusal::invalid(format!("the capability {name} was expected to be a non-negative integer"))
            })
        })
        .transpose()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The `VERSION` body of a client with this JSON.
    fn body(major: u16, minor: u16, json: &str) -> Vec<u8> {
        let mut body = Version { major: major.into(), minor: minor.into() }.as_bytes().to_vec();
        body.extend_from_slice(json.as_bytes());
        body.push(0);
        body
    }

    /// What the server answers to this JSON.
    fn answer(json: &str) -> Value {
        let request = body(0, 0, json);
        let (_, reply) = negotiate(&request).unwrap();
        assert!(reply.len() <= request.len());
        let (&terminator, json) = reply.get(4..).unwrap().split_last().unwrap();
        assert_eq!(terminator, 0);
        serde_json::from_slice(json).unwrap()
    }

    fn errno(body: &[u8]) -> Errno {
        negotiate(body).unwrap_err().errno
    }

    #[test]
    fn capabilities_are_the_smaller_of_both_sides() {
        let small = r#"{"capabilities":{"max_msg_fds":8,"max_data_xfer_size":4096,"max_dma_maps":10,"pgsizes":4096}}"#;
        assert_eq!(answer(small), serde_json::from_str::<Value>(small).unwrap());
        let (agreed, _) = negotiate(&body(0, 0, small)).unwrap();
        assert_eq!(agreed, Agreed { max_msg_fds: 8, max_data_xfer_size: 4096, max_dma_maps: 10, page_size: 4096 });

        let large = r#"{"capabilities":{"max_msg_fds":253,"max_data_xfer_size":99999999999,"max_dma_maps":999999}}"#;
        let ours = r#"{"capabilities":{"max_msg_fds":16,"max_data_xfer_size":1048576,"max_dma_maps":65535}}"#;
        assert_eq!(answer(large), serde_json::from_str::<Value>(ours).unwrap());
    }

    #[test]
    fn nothing_is_answered_that_was_not_proposed() {
        let proposed =
            r#"{"capabilities":{"max_msg_fds":1,"write_multiple":true,"twin_socket":{"supported":true},"x":{}},"y":1}"#;
        assert_eq!(answer(proposed), serde_json::from_str::<Value>(r#"{"capabilities":{"max_msg_fds":1}}"#).unwrap());
        assert_eq!(answer(r#"{"capabilities":{}}"#), serde_json::from_str::<Value>(r#"{"capabilities":{}}"#).unwrap());
    }

    #[test]
    fn reply_without_room_for_its_json_has_none_and_the_defaults_hold() {
        let request = body(0, 0, "{}");
        let (agreed, reply) = negotiate(&request).unwrap();
        assert_eq!(reply, [0, 0, 0, 0]);
        assert_eq!(agreed, Agreed::default());
    }

    #[test]
    fn request_without_json_is_answered_without_json() {
        let (agreed, reply) = negotiate(&[0, 0, 0, 0]).unwrap();
        assert_eq!(reply, [0, 0, 0, 0]);
        assert_eq!(agreed, Agreed::default());
    }

    #[test]
    fn minor_is_never_above_the_servers() {
        let (_, reply) = negotiate(&body(0, 7, r#"{"capabilities":{}}"#)).unwrap();
        assert_eq!(reply.get(..4).unwrap(), [0, 0, 0, 0]);
    }

    #[test]
    fn other_major_is_refused() {
        assert_eq!(errno(&body(1, 0, "{}")), Errno::EPROTONOSUPPORT);
    }

    #[test]
    fn malformed_version_data_is_refused() {
        assert_eq!(errno(&[]), Errno::EINVAL);
        assert_eq!(errno(&[0, 0, 0]), Errno::EINVAL);
        assert_eq!(errno(b"\0\0\0\0{}"), Errno::EINVAL, "no NUL");
        assert_eq!(errno(b"\0\0\0\0{}\0x\0"), Errno::EINVAL, "two NULs");
        assert_eq!(errno(b"\0\0\0\0{\"\xff\":1}\0"), Errno::EINVAL, "not UTF-8");
        for json in ["", "{", "[]", "3", "null", "{} {}", r#"{"capabilities":[]}"#, r#"{"capabilities":1}"#] {
            assert_eq!(errno(&body(0, 0, json)), Errno::EINVAL, "{json}");
        }
        for value in ["-1", "1.5", "\"8\"", "[]", "null", "true", "1e3", "18446744073709551616"] {
            for name in ["max_msg_fds", "max_data_xfer_size", "max_dma_maps", "pgsizes"] {
                let json = format!(r#"{{"capabilities":{{"{name}":{value}}}}}"#);
                assert_eq!(errno(&body(0, 0, &json)), Errno::EINVAL, "{json}");
            }
        }
    }

    #[test]
    fn deeply_nested_or_huge_version_data_is_refused() {
        let deep = format!(r#"{{"x":{}{}}}"#, "[".repeat(1500), "]".repeat(1500));
        assert_eq!(errno(&body(0, 0, &deep)), Errno::EINVAL);
        let huge = format!(r#"{{"x":"{}"}}"#, "y".repeat(MAX_VERSION_DATA));
        assert_eq!(errno(&body(0, 0, &huge)), Errno::EMSGSIZE);
    }

    #[test]
    fn page_sizes_below_4_kib_fall_away() {
        let (agreed, _) = negotiate(&body(0, 0, r#"{"capabilities":{"pgsizes":66048}}"#)).unwrap();
        assert_eq!(agreed.page_size, 65536);
        let (agreed, _) = negotiate(&body(0, 0, r#"{"capabilities":{"pgsizes":512}}"#)).unwrap();
        assert_eq!(agreed.page_size, 4096);
    }
}
