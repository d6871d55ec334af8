//! Commands and responses without what may be secret in them.
//!
//! Nothing is taken out: a copy begins as zeros, and what is known to be harmless is copied into it, by lists of what each
//! command and each response consists of. Lengths stay, and so the copy can be read as the original. What is not as its list
//! says, or is on no list, keeps its header and nothing more.
//!
//! Harmless are headers, handles, algorithms, attributes and sizes; public areas, names and creation data; PCRs and the digests
//! that go into them; nonces; what policies refer to; what the TPM attests of itself. Not so authorization values and HMACs;
//! sensitive areas in the clear or encrypted; seeds; what is in NV memory; random numbers; what is encrypted, decrypted, hashed or
//! signed, and what comes of it; signatures, which an HMAC may be; tickets, which can stand for an authorization. Nor what
//! would tell whether a guess is right: hashes over what is hidden, and a known parameter that a session encrypts.

mod copying;
mod part;
mod tpm12;
mod tpm2;
mod tpm2_commands;

use zeroize::Zeroizing;

use crate::tpm::{HEADER_SIZE, Header, TpmVersion};
use copying::Copying;

/// A command to a TPM of `version`, with zeros for what may be secret.
#[must_use]
pub fn command(version: TpmVersion, command: &[u8]) -> Zeroizing<Vec<u8>> {
    redacted(command, |copy, header| match version {
        TpmVersion::V1_2 => tpm12::command(copy, header),
        TpmVersion::V2_0 => tpm2::command(copy, header),
    })
}

/// The response of a TPM of `version` to a command of this code (ordinal), with zeros for what may be secret. `None` stands for
/// a command that had no whole header.
#[must_use]
pub fn response(version: TpmVersion, command_code: Option<u32>, response: &[u8]) -> Zeroizing<Vec<u8>> {
    redacted(response, |copy, header| match version {
        TpmVersion::V1_2 => tpm12::response(copy, header, command_code?),
        TpmVersion::V2_0 => tpm2::response(copy, header, command_code?),
    })
}

/// `body` copies what comes after the header, all of it; if it cannot, only the header is shown.
fn redacted(message: &[u8], body: impl FnOnce(&mut Copying<'_>, Header) -> Option<()>) -> Zeroizing<Vec<u8>> {
    let mut copy = Copying::of(message);
    let copied = Header::of_whole(message).and_then(|header| {
        copy.show(HEADER_SIZE)?;
        body(&mut copy, header)?;
        copy.is_over().then_some(())
    });
    if copied.is_some() { copy.finish() } else { only_header(message) }
}

fn only_header(message: &[u8]) -> Zeroizing<Vec<u8>> {
    let mut copy = Copying::of(message);
    // Of what is shorter than a header, nobody knows what it is.
    let _ = copy.show(HEADER_SIZE);
    copy.finish()
}

#[cfg(test)]
mod tests;
