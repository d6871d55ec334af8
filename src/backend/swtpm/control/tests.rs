use proptest::prelude::*;

use super::*;

const DATA: &[u8] = b"data";

fn requests() -> Vec<Request<'static>> {
    vec![
        Request::GetCapability,
        Request::Init { delete_volatile: true },
        Request::Shutdown,
        Request::GetTpmEstablished,
        Request::SetLocality(Locality::FOUR),
        Request::HashStart,
        Request::HashData(DATA),
        Request::HashEnd,
        Request::CancelTpmCmd,
        Request::StoreVolatile,
        Request::ResetTpmEstablished(Locality::FOUR),
        Request::GetStateBlob { blob: Blob::Volatile, offset: 7, decrypted: true },
        Request::SetStateBlob { blob: Blob::SaveState, encrypted: true, data: DATA },
        Request::Stop,
        Request::GetConfig,
        Request::SetDataFd,
        Request::SetBufferSize(4096),
        Request::GetInfo,
        Request::LockStorage { retries: 9 },
    ]
}

/// A reply of these words and this data.
fn reply(words: &[u32], data: &[u8]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_be_bytes()).chain(data.iter().copied()).collect()
}

/// A good reply to each request.
fn good(request: Request<'_>) -> Vec<u8> {
    match request {
        Request::GetCapability => reply(&[0, 0x7fff], &[]),
        Request::GetTpmEstablished => reply(&[0], &[1, 0, 0, 0]),
        Request::GetStateBlob { .. } => reply(&[0, 2, 4, 4], DATA),
        Request::GetConfig => reply(&[0, 1], &[]),
        Request::SetBufferSize(_) => reply(&[0, 4096, 2816, 4096], &[]),
        Request::GetInfo => reply(&[0, 3, 3], b"{}\0"),
        _ => reply(&[0], &[]),
    }
}

#[test]
fn requests_are_numbered_from_1_in_the_order_of_swtpm() {
    for (number, request) in (1u32..).zip(requests()) {
        assert_eq!(request.encode().unwrap()[..4], number.to_be_bytes(), "{request:?}");
    }
}

#[test]
fn parameters_follow_the_number() {
    let parameters = |request: Request<'_>| request.encode().unwrap()[4..].to_vec();
    assert_eq!(parameters(Request::Init { delete_volatile: true }), [0, 0, 0, 1]);
    assert_eq!(parameters(Request::Init { delete_volatile: false }), [0; 4]);
    assert_eq!(parameters(Request::SetLocality(Locality::FOUR)), [4]);
    assert_eq!(parameters(Request::ResetTpmEstablished(Locality::FOUR)), [4]);
    assert_eq!(parameters(Request::HashData(DATA)), reply(&[4], DATA));
    let get = Request::GetStateBlob { blob: Blob::Volatile, offset: 7, decrypted: true };
    assert_eq!(parameters(get), reply(&[1, 2, 7], &[]));
    let set = Request::SetStateBlob { blob: Blob::SaveState, encrypted: true, data: DATA };
    assert_eq!(parameters(set), reply(&[2, 3, 4], DATA));
    assert_eq!(parameters(Request::SetBufferSize(4096)), reply(&[4096], &[]));
    assert_eq!(parameters(Request::GetInfo), reply(&[0, 1, 0, 0], &[]));
    assert_eq!(parameters(Request::LockStorage { retries: 9 }), reply(&[9], &[]));
    assert!(parameters(Request::Stop).is_empty());
}

#[test]
fn data_over_its_limit_is_not_encoded() {
    let data = vec![0; MAX_STATE_BLOB + 1];
    assert!(Request::HashData(&data[..=MAX_HASH_DATA]).encode().is_err());
    assert!(Request::HashData(&data[..MAX_HASH_DATA]).encode().is_ok());
    assert!(Request::SetStateBlob { blob: Blob::Permanent, encrypted: false, data: &data }.encode().is_err());
}

#[test]
fn a_reply_is_awaited_until_it_is_whole_and_may_not_be_longer() {
    for request in requests() {
        let mut bytes = good(request);
        for length in 0..bytes.len() {
            assert_eq!(request.parse_reply(&bytes[..length]), Ok(None), "{request:?}, {length} bytes");
        }
        assert!(matches!(request.parse_reply(&bytes), Ok(Some(_))), "{request:?}");
        bytes.push(0);
        assert!(matches!(request.parse_reply(&bytes), Err(ReplyError::TooLong { .. })), "{request:?}");
    }
}

#[test]
fn values_are_read() {
    let parse = |request: Request<'_>| format!("{:?}", request.parse_reply(&good(request)).unwrap().unwrap());
    assert_eq!(parse(Request::GetTpmEstablished), "TpmEstablished(true)");
    assert_eq!(parse(Request::GetInfo), "Info(\"{}\")");
    assert_eq!(parse(Request::SetBufferSize(0)), "BufferSize { size: 4096, minimum: 2816, maximum: 4096 }");
    let blob = Request::GetStateBlob { blob: Blob::Permanent, offset: 0, decrypted: false };
    assert_eq!(parse(blob), "StateBlob { encrypted: true, total: 4, data: [100, 97, 116, 97] }");
    let Ok(Some(Reply::Capabilities(capabilities))) =
        Request::GetCapability.parse_reply(&reply(&[0x8000_0000, 3], &[]))
    else {
        panic!("capabilities")
    };
    assert!(capabilities.contains(Capabilities::INIT | Capabilities::SHUTDOWN));
    assert_eq!(capabilities.names(), "INIT, SHUTDOWN");
}

#[test]
fn a_refusal_is_the_code_alone_or_with_values_where_libtpms_refuses() {
    for request in requests().into_iter().filter(|request| *request != Request::GetCapability) {
        let refused = Ok(Some(Reply::Refused(ResultCode(9))));
        assert_eq!(request.parse_reply(&reply(&[9], &[])), refused);
        match request {
            Request::GetTpmEstablished => assert_eq!(request.parse_reply(&reply(&[9, 0], &[])), refused),
            Request::GetStateBlob { .. } => assert_eq!(request.parse_reply(&reply(&[9, 0, 0, 0], &[])), refused),
            _ => assert!(request.parse_reply(&reply(&[9, 0], &[])).is_err(), "{request:?}"),
        }
    }
}

#[test]
fn impossible_values_are_refused() {
    let blob = Request::GetStateBlob { blob: Blob::Permanent, offset: 0, decrypted: false };
    let too_large = u32::try_from(MAX_STATE_BLOB + 1).unwrap();
    for (request, bytes) in [
        (Request::GetTpmEstablished, reply(&[0], &[2, 0, 0, 0])),
        (blob, reply(&[0, 0, u32::MAX, u32::MAX], &[])),
        (blob, reply(&[0, 0, too_large, too_large], &[])),
        (blob, reply(&[0, 0, 3, 4], DATA)),
        (Request::SetBufferSize(0), reply(&[0, 5000, 1, 4096], &[])),
        (Request::GetInfo, reply(&[0, 4000, 4000], &[])),
        (Request::GetInfo, reply(&[0, 9, 3], b"{}\0")),
        (Request::GetInfo, reply(&[0, 3, 3], b"{}!")),
        (Request::GetInfo, reply(&[0, 3, 3], &[0xff, 0xff, 0])),
        (Request::GetInfo, reply(&[0, 0, 0], &[])),
    ] {
        assert!(matches!(request.parse_reply(&bytes), Err(ReplyError::Nonsense { .. })), "{request:?} {bytes:?}");
    }
}

proptest! {
    #[test]
    fn any_bytes_are_read_without_panic(bytes in prop::collection::vec(any::<u8>(), 0..64), zero in any::<bool>()) {
        let mut bytes = bytes;
        if zero {
            bytes.iter_mut().take(4).for_each(|byte| *byte = 0);
        }
        for request in requests() {
            if let Ok(Some(Reply::StateBlob { total, data, .. })) = request.parse_reply(&bytes) {
                prop_assert!(data.len() <= total && data.len() <= bytes.len());
            }
        }
    }
}
