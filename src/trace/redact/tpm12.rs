//! Commands and responses of TPM 1.2: a few are shown, and of the others only the header.
//!
//! Source: TPM Main Part 3, Commands. With an authorization (`TPM_TAG_RQU_AUTH1_COMMAND` and the like) none is shown.

use super::copying::Copying;
use super::part;
use super::part::Part::{self, List, Shown, ShownRest};
use crate::tpm::Header;

const TPM_TAG_RQU_COMMAND: u16 = 0x00c1;
const TPM_TAG_RSP_COMMAND: u16 = 0x00c4;
const TPM_SUCCESS: u32 = 0;

const NONCE: Part = Shown(20);
const DIGEST: Part = Shown(20);
/// Bytes behind their number.
const BYTES: Part = List(&[Shown(1)]);

/// By ordinal: what command and response consist of.
#[rustfmt::skip]
const SHOWN: &[(u32, &[Part], &[Part])] = &[
    /* TPM_OIAP                     */ (0x0a, &[], &[Shown(4), NONCE]),
    /* TPM_Extend                   */ (0x14, &[Shown(4), DIGEST], &[DIGEST]),
    /* TPM_PcrRead                  */ (0x15, &[Shown(4)], &[DIGEST]),
    /* TPM_SelfTestFull             */ (0x50, &[], &[]),
    /* TPM_ContinueSelfTest         */ (0x53, &[], &[]),
    /* TPM_ForceClear               */ (0x5d, &[], &[]),
    /* TPM_GetCapability            */ (0x65, &[Shown(4), BYTES], &[BYTES]),
    /* TPM_PhysicalEnable           */ (0x6f, &[], &[]),
    /* TPM_PhysicalDisable          */ (0x70, &[], &[]),
    /* TPM_PhysicalSetDeactivated   */ (0x72, &[Shown(1)], &[]),
    /* TPM_SetTempDeactivated       */ (0x73, &[], &[]),
    /* TPM_CreateEndorsementKeyPair */ (0x78, &[NONCE, Shown(4 + 2 + 2), BYTES], &[ShownRest]),
    /* TPM_ReadPubek                */ (0x7c, &[NONCE], &[ShownRest]),
    /* TPM_SaveState                */ (0x98, &[], &[]),
    /* TPM_Startup                  */ (0x99, &[Shown(2)], &[]),
    /* TPM_FlushSpecific            */ (0xba, &[Shown(8)], &[]),
    /* TSC_PhysicalPresence         */ (0x4000_000a, &[Shown(2)], &[]),
    /* TSC_ResetEstablishmentBit    */ (0x4000_000b, &[], &[]),
];

fn shown(ordinal: u32) -> Option<(&'static [Part], &'static [Part])> {
    let (_, command, response) = SHOWN.iter().find(|(shown, ..)| *shown == ordinal)?;
    Some((command, response))
}

/// Copies what comes after the header of a command.
pub(super) fn command(copy: &mut Copying<'_>, header: Header) -> Option<()> {
    let (command, _) = shown(header.code).filter(|_| header.tag == TPM_TAG_RQU_COMMAND)?;
    part::copy(copy, command)
}

/// Copies what comes after the header of a response.
pub(super) fn response(copy: &mut Copying<'_>, header: Header, ordinal: u32) -> Option<()> {
    if header.code != TPM_SUCCESS {
        // Nothing comes.
        return Some(());
    }
    let (_, response) = shown(ordinal).filter(|_| header.tag == TPM_TAG_RSP_COMMAND)?;
    part::copy(copy, response)
}
