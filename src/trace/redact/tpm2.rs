//! Commands and responses of TPM 2.0.
//!
//! Source: TPM 2.0 Library Part 1, section 18 (command and response structure); Part 2, section 10.13 (`TPMS_AUTH_COMMAND`,
//! `TPMS_AUTH_RESPONSE`).

use super::copying::Copying;
use super::part::{self, Part};
use super::tpm2_commands::{Layout, layout};
use crate::tpm::Header;

const TPM_ST_NO_SESSIONS: u16 = 0x8001;
const TPM_ST_SESSIONS: u16 = 0x8002;
const TPM_RC_SUCCESS: u32 = 0;

/// A session of a response: nonce, attributes, HMAC.
const SESSION: &[Part] = &[Part::Public, Part::Shown(1), Part::Secret];
/// A session of a command: its handle, nonce, attributes, and HMAC or password.
const AUTHORIZATION: &[Part] = &[Part::Shown(4), Part::Public, Part::Shown(1), Part::Secret];

/// Bytes of a handle.
const HANDLE: usize = 4;

/// Copies what comes after the header of a command.
pub(super) fn command(copy: &mut Copying<'_>, header: Header) -> Option<()> {
    let Layout { handles, parameters, .. } = layout(header.code)?;
    copy.show(handles.checked_mul(HANDLE)?)?;
    match header.tag {
        TPM_ST_NO_SESSIONS => {}
        TPM_ST_SESSIONS => {
            let size = copy.u32()?;
            copy.area(size, |copy| sessions(copy, AUTHORIZATION))?;
        }
        _ => return None,
    }
    part::copy(copy, parameters)
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
            copy.area(size, |copy| part::copy(copy, response))?;
            sessions(copy, SESSION)
        }
        _ => None,
    }
}

fn sessions(copy: &mut Copying<'_>, session: &[Part]) -> Option<()> {
    while !copy.is_over() {
        part::copy(copy, session)?;
    }
    Some(())
}
