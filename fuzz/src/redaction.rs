//! What a trace shows of any command and any response: the same with zeros in it, which has nothing more to hide.

use vfio_user_tpm::tpm::{HEADER_SIZE, Header, TpmVersion};
use vfio_user_tpm::trace::redact;

use super::tape::Tape;

pub fn run(data: &[u8]) {
    let mut tape = Tape::new(data);
    let version = tape.choose(&[TpmVersion::V2_0, TpmVersion::V2_0, TpmVersion::V2_0, TpmVersion::V1_2]);
    // Most are as long as they say.
    let (is_response, fits) = (tape.flag(), tape.below(8) != 0);
    let code = u32::from(tape.u16());
    let command_code = (tape.below(8) != 0).then_some(code);
    let mut message = tape.rest().to_vec();
    if let (true, Ok(size), Some(header)) = (fits, u32::try_from(message.len()), Header::parse(&message)) {
        message[..HEADER_SIZE].copy_from_slice(&Header { size, ..header }.to_bytes());
    }
    let redacted = |message: &[u8]| {
        if is_response { redact::response(version, command_code, message) } else { redact::command(version, message) }
    };
    let copy = redacted(&message);
    assert_eq!(copy.len(), message.len());
    assert!(copy.iter().zip(&message).all(|(copied, byte)| copied == byte || *copied == 0));
    assert_eq!(redacted(&copy), copy);
    let Some(header) = Header::parse(&message) else { return assert!(copy.iter().all(|byte| *byte == 0)) };
    assert_eq!(copy[..HEADER_SIZE], message[..HEADER_SIZE]);
    let hides = |from: usize| copy[from..].iter().all(|byte| *byte == 0);
    if Header::of_whole(&message).is_none() || (is_response && (header.code != 0 || command_code.is_none())) {
        assert!(hides(HEADER_SIZE));
    }
    let asked = if is_response { code } else { header.code };
    match (version, asked) {
        // Of manufacturers; TPM_GetRandom, TPM_NV_WriteValue, TPM_NV_ReadValue.
        (TpmVersion::V2_0, 0..=0x11e | 0x1a2..) | (TpmVersion::V1_2, 0x46 | 0xcd | 0xcf) => assert!(hides(HEADER_SIZE)),
        // TPM2_GetRandom: nothing behind the size, if there are no sessions.
        (TpmVersion::V2_0, 0x17b) if is_response && header.tag == 0x8001 && copy.len() >= 12 => assert!(hides(12)),
        _ => {}
    }
}
