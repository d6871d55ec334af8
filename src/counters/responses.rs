//! Response codes in a few classes: what an operator would do something about.
//!
//! Sources: TPM 2.0 Library Part 2, section 6.6 (`TPM_RC`); TPM Main 1.2 Part 2, section 16.

use crate::tpm::TpmVersion;

/// Bit 7: a code of format one, about a handle, a parameter or a session.
const FORMAT_ONE: u32 = 0x080;
/// The number of an error in format one, with the bit that says so.
const FORMAT_ONE_ERROR: u32 = 0x0bf;
/// Bit 6 in format one: about a parameter.
const PARAMETER: u32 = 0x040;
/// Bit 11 in format one: about a session, not a handle.
const SESSION: u32 = 0x800;
/// Codes of format one fit in these bits.
const FORMAT_ONE_BITS: u32 = 0xfff;

/// What kind of error a response tells of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorClass {
    /// The TPM is in failure mode, or there is none: `TPM_RC_FAILURE`; `TPM_FAIL`, `TPM_FAILEDSELFTEST` (1.2).
    Failure,
    /// A wrong or missing authorization: `TPM_RC_AUTH_FAIL`, `TPM_RC_BAD_AUTH`, `TPM_RC_POLICY_FAIL` and their like.
    Authorization,
    /// Locked out after too many of those: `TPM_RC_LOCKOUT`; `TPM_DEFEND_LOCK_RUNNING` (1.2).
    Lockout,
    /// Cancelled: `TPM_RC_CANCELED`. TPM 1.2 has no code for it.
    Canceled,
    /// To be sent again: `TPM_RC_RETRY`, `TPM_RC_TESTING`, `TPM_RC_YIELDED`, `TPM_RC_NV_RATE`, `TPM_RC_NV_UNAVAILABLE`;
    /// `TPM_RETRY`, `TPM_NEEDS_SELFTEST`, `TPM_DOING_SELFTEST` (1.2).
    Retry,
    /// A command that this TPM has not, or not in this place: `TPM_RC_COMMAND_CODE`, `TPM_RC_COMMAND_SIZE`,
    /// `TPM_RC_BAD_TAG`, `TPM_RC_INITIALIZE`, `TPM_RC_LOCALITY`; their like in 1.2.
    Command,
    /// A handle, parameter or session that does not fit (format one; 2.0 only). Also how software asks what there is.
    Argument,
    /// Any other.
    Other,
}

impl ErrorClass {
    /// How many there are.
    pub(super) const COUNT: usize = Self::ALL.len();

    /// All classes.
    pub const ALL: [Self; 8] = [
        Self::Failure,
        Self::Authorization,
        Self::Lockout,
        Self::Canceled,
        Self::Retry,
        Self::Command,
        Self::Argument,
        Self::Other,
    ];

    /// The name in JSON and metrics.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Failure => "failure",
            Self::Authorization => "authorization",
            Self::Lockout => "lockout",
            Self::Canceled => "canceled",
            Self::Retry => "retry",
            Self::Command => "command",
            Self::Argument => "argument",
            Self::Other => "other",
        }
    }

    /// The class of a response code; `None` for success.
    #[must_use]
    pub fn of(version: TpmVersion, code: u32) -> Option<Self> {
        match (version, code) {
            (_, 0) => None,
            (TpmVersion::V2_0, code) => Some(Self::of_2_0(code)),
            (TpmVersion::V1_2, code) => Some(Self::of_1_2(code)),
        }
    }

    fn of_2_0(code: u32) -> Self {
        if code & !FORMAT_ONE_BITS == 0 && code & FORMAT_ONE != 0 {
            let about_argument = code & (PARAMETER | SESSION) != SESSION;
            return match code & FORMAT_ONE_ERROR {
                // TPM_RC_AUTH_FAIL, TPM_RC_POLICY_FAIL, TPM_RC_BAD_AUTH, TPM_RC_POLICY_CC
                0x08e | 0x09d | 0x0a2 | 0x0a4 if !about_argument => Self::Authorization,
                _ => Self::Argument,
            };
        }
        match code {
            0x101 => Self::Failure,
            // TPM_RC_AUTH_TYPE, TPM_RC_AUTH_MISSING, TPM_RC_POLICY, TPM_RC_AUTH_UNAVAILABLE, TPM_RC_NV_AUTHORIZATION
            0x124..=0x126 | 0x12f | 0x149 => Self::Authorization,
            0x921 => Self::Lockout,
            0x909 => Self::Canceled,
            // TPM_RC_YIELDED, TPM_RC_TESTING, TPM_RC_NV_RATE, TPM_RC_RETRY, TPM_RC_NV_UNAVAILABLE
            0x908 | 0x90a | 0x920 | 0x922 | 0x923 => Self::Retry,
            // TPM_RC_BAD_TAG, TPM_RC_INITIALIZE, TPM_RC_COMMAND_SIZE, TPM_RC_COMMAND_CODE, TPM_RC_LOCALITY
            0x01e | 0x100 | 0x142 | 0x143 | 0x907 => Self::Command,
            _ => Self::Other,
        }
    }

    fn of_1_2(code: u32) -> Self {
        match code {
            // TPM_FAIL, TPM_FAILEDSELFTEST
            0x09 | 0x1c => Self::Failure,
            // TPM_AUTHFAIL, TPM_AUTH2FAIL
            0x01 | 0x1d => Self::Authorization,
            0x803 => Self::Lockout,
            0x800..=0x802 => Self::Retry,
            // TPM_BAD_ORDINAL, TPM_BAD_PARAM_SIZE, TPM_BADTAG, TPM_INVALID_POSTINIT, TPM_BAD_LOCALITY
            0x0a | 0x19 | 0x1e | 0x26 | 0x3d => Self::Command,
            _ => Self::Other,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tpm::{Fault, Header, fault_response};

    #[test]
    fn codes_of_2_0_have_the_class_that_the_specification_gives_their_bits() {
        for (code, class) in [
            (0x101, ErrorClass::Failure),
            (0x98e, ErrorClass::Authorization), // TPM_RC_AUTH_FAIL, session 1
            (0x9a2, ErrorClass::Authorization), // TPM_RC_BAD_AUTH, session 1
            (0x99d, ErrorClass::Authorization), // TPM_RC_POLICY_FAIL, session 1
            (0x921, ErrorClass::Lockout),
            (0x1c4, ErrorClass::Argument), // TPM_RC_VALUE, parameter 1
            (0x18b, ErrorClass::Argument), // TPM_RC_HANDLE, handle 1
            (0x2d5, ErrorClass::Argument), // TPM_RC_SIZE, parameter 2
            (0x143, ErrorClass::Command),
            (0x922, ErrorClass::Retry),
            (0x909, ErrorClass::Canceled),
            (0x14c, ErrorClass::Other), // TPM_RC_NV_DEFINED
            (0x8000_0080, ErrorClass::Other),
            (u32::MAX, ErrorClass::Other),
        ] {
            assert_eq!(ErrorClass::of(TpmVersion::V2_0, code), Some(class), "{code:#x}");
        }
    }

    #[test]
    fn success_is_no_error_and_our_own_faults_have_their_class() {
        for version in [TpmVersion::V1_2, TpmVersion::V2_0] {
            assert_eq!(ErrorClass::of(version, 0), None);
            for (fault, class) in [
                (Fault::Failure, ErrorClass::Failure),
                (Fault::Retry, ErrorClass::Retry),
                (Fault::Locality, ErrorClass::Command),
                (Fault::CommandSize, ErrorClass::Command),
            ] {
                let code = Header::parse(&fault_response(version, fault)).unwrap().code;
                assert_eq!(ErrorClass::of(version, code), Some(class), "{version} {fault:?}");
            }
        }
    }

    #[test]
    fn the_classes_are_numbered_as_they_are_listed() {
        for (number, class) in ErrorClass::ALL.into_iter().enumerate() {
            assert_eq!(class as usize, number);
        }
    }
}
