//! The profile of a TPM 2.0: which algorithms and commands of libtpms it has, chosen once, when it is made.
//!
//! libtpms has profiles since 0.10. It keeps a TPM's profile in its state.

use std::str::FromStr;

use thiserror::Error;

use crate::tpm::BUFFER_SIZE;

/// Whether the libtpms that this program was built with has profiles.
pub const SUPPORTED: bool = cfg!(libtpms_profiles);

/// A profile, as libtpms reads it: JSON. Whether libtpms knows it, only libtpms can tell.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Profile {
    json: String,
}

/// Why a text is no profile that this program can ask for.
#[derive(Debug, Error)]
pub enum ProfileError {
    /// libtpms is too old.
    #[error(
        "this program was built with a libtpms older than 0.10, which has no profiles: leave --profile out, or build it with a newer one"
    )]
    Unsupported,
    /// Neither a name nor a JSON object.
    #[error("\"{text}\" is no profile: expected a name as default-v1, or a JSON object as {{\"Name\":\"custom\",…}}")]
    Form {
        /// What came, shortened.
        text: String,
    },
    /// Too long to be handed over.
    #[error("the profile is {0} bytes long, and {BUFFER_SIZE} is the most")]
    Length(usize),
}

impl Profile {
    /// The JSON text.
    #[must_use]
    pub fn json(&self) -> &str {
        &self.json
    }
}

/// A JSON object, or the name of a profile.
impl FromStr for Profile {
    type Err = ProfileError;

    fn from_str(text: &str) -> Result<Self, ProfileError> {
        let form = || ProfileError::Form { text: text.escape_debug().take(100).collect() };
        let json = if text.starts_with('{') {
            let _: serde_json::Value = serde_json::from_str(text).map_err(|_| form())?;
            text.to_owned()
        } else {
            let is_name = |byte: u8| byte.is_ascii_alphanumeric() || b"-_:.".contains(&byte);
            if text.is_empty() || !text.bytes().all(is_name) {
                return Err(form());
            }
            serde_json::json!({ "Name": text }).to_string()
        };
        match json.len() {
            _ if !SUPPORTED => Err(ProfileError::Unsupported),
            length if length > BUFFER_SIZE => Err(ProfileError::Length(length)),
            _ => Ok(Self { json }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(text: &str) -> String {
        text.parse::<Profile>().unwrap_err().to_string()
    }

    #[test]
    fn what_is_neither_a_name_nor_an_object_is_refused() {
        for text in ["", "two words", "{\"Name\":", "[1]", "name\n"] {
            assert!(error(text).contains("is no profile"), "{text}");
        }
    }

    #[test]
    #[cfg(libtpms_profiles)]
    fn a_name_stands_for_the_object_with_that_name() {
        assert_eq!("default-v1".parse::<Profile>().unwrap().json(), r#"{"Name":"default-v1"}"#);
        let object = r#"{"Name":"custom:x","Algorithms":"rsa"}"#.parse::<Profile>().unwrap();
        assert!(object.json().contains("Algorithms"));
        assert!(error(&format!("{{\"Name\":\"{}\"}}", "n".repeat(5000))).contains("4096"));
    }

    #[test]
    #[cfg(not(libtpms_profiles))]
    fn a_libtpms_without_profiles_is_named() {
        assert!(error("default-v1").contains("0.10"));
    }
}
