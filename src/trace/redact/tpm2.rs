//! Commands and responses of TPM 2.0.
//!
//! Source: TPM 2.0 Library Part 1, section 18 (command and response structure); Part 2, section 10.13 (`TPMS_AUTH_COMMAND`,
//! `TPMS_AUTH_RESPONSE`), and 8.4 (`TPMA_SESSION`).

use super::copying::Copying;
use super::part::{self, Part};
use super::tpm2_commands::{Layout, layout};
use crate::tpm::Header;

const TPM_ST_NO_SESSIONS: u16 = 0x8001;
const TPM_ST_SESSIONS: u16 = 0x8002;
const TPM_RC_SUCCESS: u32 = 0;

/// What a session of a response has in front of its attributes: a nonce.
const SESSION: &[Part] = &[Part::Public];
/// And one of a command: its handle and a nonce.
const AUTHORIZATION: &[Part] = &[Part::Shown(4), Part::Public];

/// An attribute of a session: the command's first parameter is encrypted.
const DECRYPT: u8 = 1 << 5;
/// The response's first parameter is to be encrypted. Its session repeats that if it is.
const ENCRYPT: u8 = 1 << 6;

/// Bytes of a handle.
const HANDLE: usize = 4;

/// Copies what comes after the header of a command.
pub(super) fn command(copy: &mut Copying<'_>, header: Header) -> Option<()> {
    let Layout { handles, parameters, .. } = layout(header.code)?;
    copy.show(handles.checked_mul(HANDLE)?)?;
    let attributes = match header.tag {
        TPM_ST_NO_SESSIONS => 0,
        TPM_ST_SESSIONS => {
            let size = copy.u32()?;
            copy.area(size, |copy| sessions(copy, AUTHORIZATION))?
        }
        _ => return None,
    };
    self::parameters(copy, parameters, attributes & DECRYPT != 0)
}

/// Copies what comes after the header of a response.
pub(super) fn response(copy: &mut Copying<'_>, header: Header, command_code: u32) -> Option<()> {
    if header.code != TPM_RC_SUCCESS {
        // Nothing comes.
        return Some(());
    }
    let Layout { response_handles, response, .. } = layout(command_code)?;
    copy.show(response_handles.checked_mul(HANDLE)?)?;
    match header.tag {
        TPM_ST_NO_SESSIONS => part::copy(copy, response),
        TPM_ST_SESSIONS => {
            let size = copy.u32()?;
            let attributes = sessions(&mut copy.behind(size)?, SESSION)?;
            copy.area(size, |copy| parameters(copy, response, attributes & ENCRYPT != 0))?;
            sessions(copy, SESSION).map(drop)
        }
        _ => None,
    }
}

/// Copies parameters. The first is hidden if it is encrypted, even if it is harmless: its key is made of nonces, which are shown,
/// and an authorization value, which could be guessed until what comes out is what is expected.
fn parameters(copy: &mut Copying<'_>, parameters: &[Part], encrypted: bool) -> Option<()> {
    match parameters.split_first() {
        Some((first, others)) if encrypted => {
            // Nothing else can be encrypted, and so no TPM takes it.
            first.is_sized().then_some(())?;
            part::copy(copy, &[Part::Secret])?;
            part::copy(copy, others)
        }
        _ => part::copy(copy, parameters),
    }
}

/// Copies all sessions, and returns which attributes there are among them.
fn sessions(copy: &mut Copying<'_>, front: &[Part]) -> Option<u8> {
    let mut attributes = 0;
    while !copy.is_over() {
        part::copy(copy, front)?;
        attributes |= copy.u8()?;
        // HMAC or password.
        part::copy(copy, &[Part::Secret])?;
    }
    Some(attributes)
}
