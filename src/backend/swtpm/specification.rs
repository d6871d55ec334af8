//! What an swtpm says of its TPM: the answer to GET_INFO, as libtpms' `TPMLIB_GetInfo` gives it.

use std::fmt;

use serde::Deserialize;

use crate::backend::BackendError;
use crate::tpm::TpmVersion;

/// The specification that a TPM follows.
#[derive(Debug, Deserialize)]
pub(super) struct Specification {
    family: String,
    level: u32,
    revision: u32,
}

#[derive(Deserialize)]
struct Info {
    #[serde(rename = "TPMSpecification")]
    specification: Specification,
}

impl Specification {
    /// Reads the answer to GET_INFO and holds it against the version that is wanted.
    ///
    /// # Errors
    /// [`BackendError::Refused`].
    pub(super) fn of_version(text: &str, wanted: TpmVersion) -> Result<Self, BackendError> {
        let Info { specification } = serde_json::from_str(text).map_err(|error| {
            BackendError::Refused(format!("swtpm does not say which TPM it runs; its answer to GET_INFO: {error}"))
        })?;
        let version = match specification.family.as_str() {
            "1.2" => TpmVersion::V1_2,
            "2.0" => TpmVersion::V2_0,
            other => {
                // Another program's words: no control characters in the log.
                let other: String = other.escape_debug().take(100).collect();
                return Err(BackendError::Refused(format!("swtpm runs a TPM {other}, and it has to be 1.2 or 2.0")));
            }
        };
        if version != wanted {
            let remedy = match wanted {
                TpmVersion::V2_0 => "with --tpm2",
                TpmVersion::V1_2 => "without --tpm2",
            };
            return Err(BackendError::Refused(format!(
                "swtpm runs a TPM {version}, and a TPM {wanted} is wanted: give --tpm-version {version}, or start swtpm \
                 {remedy}"
            )));
        }
        Ok(specification)
    }
}

impl fmt::Display for Specification {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { family, level, revision } = self;
        write!(f, "TPM {family} (level {level}, revision {revision})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TPM_1_2: &str = r#"{"TPMSpecification":{"family":"1.2","level":2,"revision":116}}"#;

    #[test]
    fn the_specification_is_read() {
        let specification = Specification::of_version(TPM_1_2, TpmVersion::V1_2).unwrap();
        assert_eq!(specification.to_string(), "TPM 1.2 (level 2, revision 116)");
    }

    #[test]
    fn the_other_version_is_refused_with_what_to_give() {
        let error = Specification::of_version(TPM_1_2, TpmVersion::V2_0).unwrap_err().to_string();
        assert!(error.contains("--tpm-version 1.2") && error.contains("with --tpm2"), "{error}");
    }

    #[test]
    fn anything_else_is_refused_without_its_control_characters() {
        for text in ["", "{}", "[1]", r#"{"TPMSpecification":{"family":"\u001b[2J","level":2,"revision":116}}"#] {
            let error = Specification::of_version(text, TpmVersion::V2_0).unwrap_err().to_string();
            assert!(!error.contains('\u{1b}'), "{error:?}");
        }
    }
}
