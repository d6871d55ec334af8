use proptest::prelude::*;

use super::*;

const NO_SESSIONS: u16 = 0x8001;
const SESSIONS: u16 = 0x8002;

/// What a message consists of: what is shown, and what is hidden.
#[derive(Clone)]
enum Piece {
    Show(Vec<u8>),
    Hide(Vec<u8>),
}
use Piece::{Hide, Show};

fn show(bytes: impl AsRef<[u8]>) -> Piece {
    Show(bytes.as_ref().to_vec())
}

fn hide(bytes: impl AsRef<[u8]>) -> Piece {
    Hide(bytes.as_ref().to_vec())
}

/// A handle.
fn handle(number: u32) -> Piece {
    show(number.to_be_bytes())
}

fn size(bytes: &[u8]) -> Vec<u8> {
    u16::try_from(bytes.len()).unwrap().to_be_bytes().to_vec()
}

/// A TPM2B that is shown.
fn public(bytes: &[u8]) -> Vec<Piece> {
    vec![show([size(bytes), bytes.to_vec()].concat())]
}

/// A TPM2B that is hidden.
fn secret(bytes: &[u8]) -> Vec<Piece> {
    vec![show(size(bytes)), hide(bytes)]
}

/// The sessions of a command: a password, and a session with a nonce and an HMAC.
fn authorization() -> Vec<Piece> {
    let password = [show([0x40, 0, 0, 9, 0, 0, 1]), show([0, 8]), hide("password")];
    let session = [show([2, 0, 0, 0]), show([0, 5]), show("nonce"), show([1, 0, 4]), hide("hmac")];
    [&[show((17 + 18_u32).to_be_bytes())][..], &password, &session].concat()
}

/// The sessions of a response.
fn acknowledgement() -> Vec<Piece> {
    vec![show([0, 0, 1, 0, 0]), show([0, 5]), show("nonce"), show([1, 0, 4]), hide("hmac")]
}

/// A ticket.
fn ticket() -> Vec<Piece> {
    [vec![show([0x80, 0x24, 0x40, 0, 0, 1])], secret(b"ticket")].concat()
}

/// A signature.
fn signature() -> Vec<Piece> {
    vec![show([0, 0x18]), hide([0, 0x0b, 0, 2, 7, 7, 0, 2, 8, 8])]
}

/// The message, and what is to be left of it.
fn message(tag: u16, code: u32, pieces: &[Vec<Piece>]) -> (Vec<u8>, Vec<u8>) {
    let body: Vec<_> = pieces.concat();
    let length = body.iter().map(|(Show(bytes) | Hide(bytes))| bytes.len()).sum::<usize>() + HEADER_SIZE;
    let header = Header { tag, size: u32::try_from(length).unwrap(), code }.to_bytes();
    let (mut whole, mut left) = (header.to_vec(), header.to_vec());
    for piece in body {
        let (Show(bytes) | Hide(bytes)) = &piece;
        whole.extend(bytes);
        left.extend(if let Show(bytes) = &piece { bytes.clone() } else { vec![0; bytes.len()] });
    }
    (whole, left)
}

/// A response's parameters behind their size.
fn parameters(pieces: &[Vec<Piece>]) -> Vec<Piece> {
    let pieces = pieces.concat();
    let length: usize = pieces.iter().map(|(Show(bytes) | Hide(bytes))| bytes.len()).sum();
    [vec![show(u32::try_from(length).unwrap().to_be_bytes())], pieces].concat()
}

fn redacted_command(whole: &[u8]) -> Vec<u8> {
    command(TpmVersion::V2_0, whole).to_vec()
}

fn only_its_header(message: &[u8]) -> Vec<u8> {
    [&message[..HEADER_SIZE], &vec![0; message.len() - HEADER_SIZE]].concat()
}

fn one_pcr() -> Vec<Piece> {
    vec![show([0, 0, 0, 1, 0, 0x0b, 3, 1, 0, 0])]
}

fn handles(handles: &[u32]) -> Vec<Piece> {
    handles.iter().copied().map(handle).collect()
}

/// A command: its name, tag and code, and what follows.
type Case = (&'static str, u16, u32, Vec<Vec<Piece>>);

fn assert_shown_in_part(commands: Vec<Case>) {
    for (name, tag, code, pieces) in commands {
        let (whole, left) = message(tag, code, &pieces);
        assert_eq!(redacted_command(&whole), left, "{name}");
        // What is longer or shorter than it should be, is not what it seems.
        for broken in [[&whole[..], &[1]].concat(), whole[..whole.len() - 1].to_vec()] {
            let size = u32::try_from(broken.len()).unwrap().to_be_bytes();
            let resized = [&broken[..2], &size, &broken[6..]].concat();
            // A signature may be as long as it likes.
            if !["NV_SetBits", "PolicySigned"].contains(&name) {
                assert_eq!(redacted_command(&resized), only_its_header(&resized), "{name}");
            }
            assert_eq!(redacted_command(&broken), only_its_header(&broken), "{name}");
        }
    }
}

#[test]
fn of_commands_that_make_and_measure_what_is_harmless_is_shown_and_nothing_else() {
    let sha256 = || vec![show([0, 0, 0, 1, 0, 0x0b]), show([0xd1; 32])];
    assert_shown_in_part(vec![
        ("Startup", NO_SESSIONS, 0x144, vec![vec![show([0, 0])]]),
        ("GetRandom", NO_SESSIONS, 0x17b, vec![vec![show([0, 32])]]),
        ("StirRandom", NO_SESSIONS, 0x146, vec![secret(b"entropy")]),
        ("GetCapability", NO_SESSIONS, 0x17a, vec![vec![show([0, 0, 0, 6, 0, 0, 1, 0, 0, 0, 0, 1])]]),
        ("Hash", NO_SESSIONS, 0x17d, vec![secret(b"data"), vec![show([0, 0x0b, 0x40, 0, 0, 7])]]),
        ("PCR_Read", NO_SESSIONS, 0x17e, vec![one_pcr()]),
        ("PCR_Extend", SESSIONS, 0x182, vec![handles(&[0]), authorization(), sha256()]),
        ("PCR_Event", SESSIONS, 0x13c, vec![handles(&[0]), authorization(), secret(b"event")]),
        (
            "CreatePrimary",
            SESSIONS,
            0x131,
            vec![
                handles(&[0x4000_0001]),
                authorization(),
                secret(b"\0\x04auth\0\x04data"),
                public(b"area"),
                public(b"info"),
                one_pcr(),
            ],
        ),
        (
            "Create",
            SESSIONS,
            0x153,
            vec![
                handles(&[0x8000_0000]),
                authorization(),
                secret(b"\0\x04auth\0\x04data"),
                public(b"area"),
                public(b""),
                one_pcr(),
            ],
        ),
        ("Load", SESSIONS, 0x157, vec![handles(&[1]), authorization(), secret(b"private"), public(b"area")]),
        // An RSA key, and a symmetric one.
        ("LoadExternal", NO_SESSIONS, 0x167, vec![secret(b""), public(b"\0\x01"), vec![show([0x40, 0, 0, 7])]]),
        ("LoadExternal", NO_SESSIONS, 0x167, vec![secret(b"key"), secret(b"\0\x25"), vec![show([0x40, 0, 0, 7])]]),
        (
            "Import",
            SESSIONS,
            0x156,
            vec![
                handles(&[1]),
                authorization(),
                secret(b"key"),
                public(b"\0\x23area"),
                secret(b"duplicate"),
                secret(b"seed"),
                vec![show([0, 6, 0, 128, 0, 0x43])],
            ],
        ),
    ]);
}

#[test]
fn of_commands_that_use_and_authorize_what_is_harmless_is_shown_and_nothing_else() {
    assert_shown_in_part(vec![
        ("Unseal", SESSIONS, 0x15e, vec![handles(&[0x8000_0001]), authorization()]),
        (
            "RSA_Decrypt",
            SESSIONS,
            0x159,
            vec![handles(&[1]), authorization(), secret(b"cipher"), vec![show([0, 0x17, 0, 0x0b])], secret(b"label")],
        ),
        (
            "EncryptDecrypt",
            SESSIONS,
            0x164,
            vec![handles(&[1]), authorization(), vec![show([0, 0, 0x43])], secret(b"iv"), secret(b"data")],
        ),
        ("HMAC", SESSIONS, 0x155, vec![handles(&[1]), authorization(), secret(b"data"), vec![show([0, 0x0b])]]),
        (
            "Sign",
            SESSIONS,
            0x15d,
            vec![handles(&[1]), authorization(), secret(&[0xd2; 32]), vec![show([0, 0x18, 0, 0x0b])], ticket()],
        ),
        (
            "Quote",
            SESSIONS,
            0x158,
            vec![handles(&[1]), authorization(), public(b"nonce"), vec![show([0, 0x10])], one_pcr()],
        ),
        ("HierarchyChangeAuth", SESSIONS, 0x129, vec![handles(&[0x4000_000c]), authorization(), secret(&[0xa1; 32])]),
        ("NV_DefineSpace", SESSIONS, 0x12a, vec![handles(&[1]), authorization(), secret(b"auth"), public(b"public")]),
        ("NV_Write", SESSIONS, 0x137, vec![handles(&[1, 2]), authorization(), secret(b"data"), vec![show([0, 4])]]),
        ("NV_SetBits", SESSIONS, 0x135, vec![handles(&[1, 2]), authorization(), vec![hide([0xb1; 8])]]),
        ("NV_Read", SESSIONS, 0x14e, vec![handles(&[1, 2]), authorization(), vec![show([0, 8, 0, 0])]]),
        (
            "PolicyNV",
            SESSIONS,
            0x149,
            vec![handles(&[1, 2, 3]), authorization(), secret(b"operand"), vec![show([0, 0, 0, 1])]],
        ),
        ("PolicyOR", NO_SESSIONS, 0x171, vec![handles(&[3]), vec![show([0, 0, 0, 2])], secret(b"one"), secret(b"two")]),
        ("PolicyCpHash", NO_SESSIONS, 0x16e, vec![handles(&[3]), secret(b"cp")]),
        ("PolicyNameHash", NO_SESSIONS, 0x170, vec![handles(&[3]), public(b"names")]),
        ("PolicyParameters", NO_SESSIONS, 0x19c, vec![handles(&[3]), secret(b"parameters")]),
        (
            "PolicySecret",
            SESSIONS,
            0x151,
            vec![
                handles(&[1, 3]),
                authorization(),
                public(b"nonce"),
                secret(b"cp"),
                public(b"ref"),
                vec![show([0; 4])],
            ],
        ),
        (
            "PolicySigned",
            NO_SESSIONS,
            0x160,
            vec![handles(&[1, 3]), public(b"nonce"), secret(b"cp"), public(b"ref"), vec![show([0; 4])], signature()],
        ),
        (
            "StartAuthSession",
            NO_SESSIONS,
            0x176,
            vec![
                handles(&[0x4000_0007, 0x4000_0007]),
                public(b"nonce"),
                secret(b"salt"),
                vec![show([1, 0, 0x10, 0, 0x0b])],
            ],
        ),
        ("ContextLoad", NO_SESSIONS, 0x161, vec![vec![show([3; 16])], secret(b"context")]),
        ("FlushContext", NO_SESSIONS, 0x165, vec![vec![show([0x80, 0, 0, 0])]]),
    ]);
}

#[test]
fn of_responses_what_is_harmless_is_shown_and_nothing_else() {
    for (name, tag, code, pieces) in [
        ("GetRandom", NO_SESSIONS, 0x17b, vec![secret(b"random")]),
        ("GetCapability", NO_SESSIONS, 0x17a, vec![vec![show([0, 0, 0, 0, 6, 0, 0, 0, 1, 0, 0, 1, 0, 1, 2, 3, 4])]]),
        ("GetCapability, vendor", NO_SESSIONS, 0x17a, vec![vec![show([0, 0, 0, 1, 0]), hide("what it likes")]]),
        (
            "PCR_Read",
            NO_SESSIONS,
            0x17e,
            vec![vec![show([0, 0, 0, 9])], one_pcr(), vec![show([0, 0, 0, 1])], public(&[7; 32])],
        ),
        ("ReadClock", NO_SESSIONS, 0x181, vec![vec![show([5; 25])]]),
        ("ReadPublic", NO_SESSIONS, 0x173, vec![public(b"area"), public(b"name"), public(b"qualified name")]),
        ("StartAuthSession", NO_SESSIONS, 0x176, vec![vec![handle(0x0200_0000)], public(b"nonce")]),
        ("ContextSave", NO_SESSIONS, 0x162, vec![vec![show([3; 16])], secret(b"context")]),
        ("Hash", NO_SESSIONS, 0x17d, vec![secret(&[0xd3; 32]), ticket()]),
        (
            "CreatePrimary",
            SESSIONS,
            0x131,
            vec![
                vec![handle(0x8000_0000)],
                parameters(&[public(b"area"), public(b"data"), public(b"hash"), ticket(), public(b"name")]),
                acknowledgement(),
            ],
        ),
        (
            "Create",
            SESSIONS,
            0x153,
            vec![
                parameters(&[secret(b"private"), public(b"area"), public(b"data"), public(b"hash"), ticket()]),
                acknowledgement(),
            ],
        ),
        ("Load", SESSIONS, 0x157, vec![vec![handle(0x8000_0001)], parameters(&[public(b"name")]), acknowledgement()]),
        ("Unseal", SESSIONS, 0x15e, vec![parameters(&[secret(b"what is sealed")]), acknowledgement()]),
        ("RSA_Decrypt", SESSIONS, 0x159, vec![parameters(&[secret(b"message")]), acknowledgement()]),
        ("EncryptDecrypt2", SESSIONS, 0x193, vec![parameters(&[secret(b"data"), secret(b"iv")]), acknowledgement()]),
        ("HMAC", SESSIONS, 0x155, vec![parameters(&[secret(b"hmac")]), acknowledgement()]),
        ("Sign", SESSIONS, 0x15d, vec![parameters(&[signature()]), acknowledgement()]),
        ("Quote", SESSIONS, 0x158, vec![parameters(&[public(b"attest"), signature()]), acknowledgement()]),
        (
            "PCR_Event",
            SESSIONS,
            0x13c,
            vec![parameters(&[vec![show([0, 0, 0, 1, 0, 0x0b]), hide([0xd4; 32])]]), acknowledgement()],
        ),
        (
            "EventSequenceComplete",
            SESSIONS,
            0x185,
            vec![parameters(&[vec![show([0, 0, 0, 1, 0, 4]), hide([0xd5; 20])]]), acknowledgement()],
        ),
        ("LoadExternal", NO_SESSIONS, 0x167, vec![vec![handle(0x8000_0000)], secret(b"name")]),
        ("PolicyGetDigest", NO_SESSIONS, 0x189, vec![secret(&[0xd6; 32])]),
        (
            "GetSessionAuditDigest",
            SESSIONS,
            0x14d,
            vec![parameters(&[secret(b"attest"), signature()]), acknowledgement()],
        ),
        (
            "GetCommandAuditDigest",
            SESSIONS,
            0x133,
            vec![parameters(&[secret(b"attest"), signature()]), acknowledgement()],
        ),
        ("NV_Certify", SESSIONS, 0x184, vec![parameters(&[secret(b"attest"), signature()]), acknowledgement()]),
        ("NV_Read", SESSIONS, 0x14e, vec![parameters(&[secret(b"data")]), acknowledgement()]),
        ("PolicySecret", SESSIONS, 0x151, vec![parameters(&[public(b"time"), ticket()]), acknowledgement()]),
        ("ECDH_ZGen", SESSIONS, 0x154, vec![parameters(&[secret(b"shared")]), acknowledgement()]),
        ("HierarchyChangeAuth", SESSIONS, 0x129, vec![parameters(&[]), acknowledgement()]),
    ] {
        let (whole, left) = message(tag, 0, &pieces);
        assert_eq!(*response(TpmVersion::V2_0, Some(code), &whole), left, "{name}");
        // To an unknown command, and with an error, which has nothing behind it.
        for (code, whole) in [
            (Some(0x2000_0001), whole.clone()),
            (None, whole.clone()),
            (Some(code), {
                let mut failed = whole.clone();
                failed[9] = 1;
                failed
            }),
        ] {
            assert_eq!(*response(TpmVersion::V2_0, code, &whole), only_its_header(&whole), "{name}");
        }
    }
    let (failure, _) = message(NO_SESSIONS, 0x9a2, &[]);
    assert_eq!(*response(TpmVersion::V2_0, Some(0x15e), &failure), failure);
}

/// Sessions of a command and of its response, with these attributes.
fn sessions_with(attributes: u8) -> (Vec<Piece>, Vec<Piece>) {
    let session = [show([0, 5]), show("nonce"), show([attributes, 0, 4]), hide("hmac")];
    let of_command = [&[show(18_u32.to_be_bytes()), handle(0x0200_0000)][..], &session].concat();
    (of_command, [&[show([0, 0, 1, 0, 0])][..], &session].concat())
}

#[test]
fn an_encrypted_parameter_is_hidden_whatever_it_is() {
    for (attributes, first) in [(0x01, public(b"nonce")), (0x41, public(b"nonce")), (0x21, secret(b"nonce"))] {
        let (sessions, _) = sessions_with(attributes);
        let pieces = [handles(&[1]), sessions, first, vec![show([0, 0x10])], one_pcr()];
        let (whole, left) = message(SESSIONS, 0x158, &pieces);
        assert_eq!(redacted_command(&whole), left, "{attributes:#x}");
    }
    for (attributes, first) in [(0x01, public(b"attest")), (0x21, public(b"attest")), (0x41, secret(b"attest"))] {
        let (_, sessions) = sessions_with(attributes);
        let (whole, left) = message(SESSIONS, 0, &[parameters(&[first, signature()]), sessions]);
        assert_eq!(*response(TpmVersion::V2_0, Some(0x158), &whole), left, "{attributes:#x}");
    }
    // What has no size cannot be encrypted, and may be anything: TPM2_GetRandom, and what answers TPM2_ReadClock.
    let (sessions, acknowledgement) = sessions_with(0x61);
    let (whole, _) = message(SESSIONS, 0x17b, &[sessions.clone(), vec![show([0, 8])]]);
    assert_eq!(redacted_command(&whole), only_its_header(&whole));
    let (whole, _) = message(SESSIONS, 0, &[parameters(&[vec![show([5; 25])]]), acknowledgement.clone()]);
    assert_eq!(*response(TpmVersion::V2_0, Some(0x181), &whole), only_its_header(&whole));
    // Nothing is there to be encrypted.
    let (whole, left) = message(SESSIONS, 0x15e, &[handles(&[1]), sessions]);
    assert_eq!(redacted_command(&whole), left);
    let (whole, left) = message(SESSIONS, 0, &[parameters(&[]), acknowledgement]);
    assert_eq!(*response(TpmVersion::V2_0, Some(0x129), &whole), left);
}

#[test]
fn unknown_commands_keep_their_header_and_no_more() {
    for (tag, code) in [(NO_SESSIONS, 0x2000_0001), (SESSIONS, 0x1ff), (NO_SESSIONS, 0), (0xc1, 0x144), (0, 0x144)] {
        let (whole, _) = message(tag, code, &[vec![show("anything")]]);
        assert_eq!(redacted_command(&whole), only_its_header(&whole));
    }
    assert_eq!(redacted_command(b"short"), [0; 5]);
    assert_eq!(redacted_command(b""), [0; 0]);
}

#[test]
fn counts_and_sizes_are_not_believed() {
    for body in [&[0xff, 0xff, 0xff, 0xff][..], &[0, 0, 0, 2, 0, 0x0b, 3, 1, 0, 0], &[0, 0, 0, 1, 0, 0x0b, 9, 1, 0, 0]]
    {
        let (whole, _) = message(NO_SESSIONS, 0x17e, &[vec![show(body)]]);
        assert_eq!(redacted_command(&whole), only_its_header(&whole));
    }
    // A digest of an unknown algorithm; sessions that are longer than their area, and the other way round.
    let (whole, _) = message(NO_SESSIONS, 0x182, &[vec![handle(0), show([0, 0, 0, 1, 0, 0xff, 1, 2])]]);
    assert_eq!(redacted_command(&whole), only_its_header(&whole));
    for size in [0_u32, 8, 16, 18, u32::MAX] {
        let pieces =
            [vec![handle(1), show(size.to_be_bytes()), show([0x40, 0, 0, 9, 0, 0, 1, 0, 8]), hide("password")]];
        let (whole, _) = message(SESSIONS, 0x15e, &pieces);
        assert_eq!(redacted_command(&whole), only_its_header(&whole), "{size}");
    }
}

#[test]
fn of_tpm_1_2_little_is_shown() {
    let command = |tag, ordinal, pieces: &[Vec<Piece>]| {
        let (whole, left) = message(tag, ordinal, pieces);
        assert_eq!(*super::command(TpmVersion::V1_2, &whole), left, "{ordinal:#x}");
        let (whole, _) = message(0xc2, ordinal, pieces);
        assert_eq!(*super::command(TpmVersion::V1_2, &whole), only_its_header(&whole), "{ordinal:#x}");
    };
    let response = |ordinal, pieces: &[Vec<Piece>]| {
        let (whole, left) = message(0xc4, 0, pieces);
        assert_eq!(*super::response(TpmVersion::V1_2, Some(ordinal), &whole), left, "{ordinal:#x}");
        let (whole, _) = message(0xc5, 0, pieces);
        assert_eq!(*super::response(TpmVersion::V1_2, Some(ordinal), &whole), only_its_header(&whole), "{ordinal:#x}");
    };
    command(0xc1, 0x99, &[vec![show([0, 1])]]);
    command(0xc1, 0x14, &[vec![show([0, 0, 0, 10]), show([7; 20])]]);
    command(0xc1, 0x65, &[vec![show([0, 0, 0, 5, 0, 0, 0, 4, 0, 0, 1, 1])]]);
    command(0xc1, 0xcd, &[vec![hide([0, 0, 0x10, 0, 0, 0, 0, 0, 0, 0, 0, 4]), hide("data")]]);
    response(0x14, &[vec![show([9; 20])]]);
    response(0x65, &[vec![show([0, 0, 0, 4, 0, 0, 0, 1])]]);
    // TPM_GetRandom, TPM_NV_ReadValue.
    for ordinal in [0x46, 0xcf] {
        response(ordinal, &[vec![hide([0, 0, 0, 4]), hide("data")]]);
    }
}

fn any_version() -> impl Strategy<Value = TpmVersion> {
    prop_oneof![Just(TpmVersion::V1_2), Just(TpmVersion::V2_0)]
}

proptest! {
    /// Of any message, the copy has the same length, and each byte is the same or zero; a copy has nothing more to hide.
    #[test]
    fn a_copy_is_the_message_with_zeros_in_it(
        version in any_version(),
        tag in prop_oneof![Just(0x8001_u16), Just(0x8002), Just(0xc1), Just(0xc4), any::<u16>()],
        code in prop_oneof![0x11f..0x1a4_u32, 0..0x100_u32, any::<u32>()],
        to in 0x11f..0x1a4_u32,
        succeeded in any::<bool>(),
        body in prop::collection::vec(prop_oneof![3 => Just(0_u8), 2 => 0..16_u8, 1 => any::<u8>()], 0..200),
    ) {
        let whole = |code| {
            let size = u32::try_from(HEADER_SIZE + body.len()).unwrap();
            [&Header { tag, size, code }.to_bytes()[..], &body].concat()
        };
        let sent = whole(code);
        let answered = whole(if succeeded { 0 } else { code });
        for (message, is_command) in [(&sent, true), (&answered, false)] {
            let redact = |message: &[u8]| {
                if is_command { command(version, message) } else { response(version, Some(to), message) }
            };
            let copy = redact(message);
            prop_assert_eq!(copy.len(), message.len());
            prop_assert_eq!(&copy[..HEADER_SIZE], &message[..HEADER_SIZE]);
            prop_assert!(copy.iter().zip(message).all(|(copied, byte)| copied == byte || *copied == 0));
            prop_assert_eq!(&redact(&copy), &copy);
        }
    }

    #[test]
    fn bytes_of_any_kind_are_survived(version in any_version(), bytes in prop::collection::vec(any::<u8>(), 0..64)) {
        let copies = [command(version, &bytes), response(version, Some(0x15e), &bytes)];
        prop_assert!(copies.iter().all(|copy| copy.len() == bytes.len()));
    }
}
