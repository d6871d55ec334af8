//! What `--measure` names.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use thiserror::Error;

use crate::measure::event_log::EventType;

/// Something to measure.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// A part of what a unified kernel image would have.
    Section(Section, Content),
    /// The machine's firmware.
    Firmware(SourceFile),
    /// Any file, into a PCR of choice.
    File(FilePcr, SourceFile),
}

/// A file, and how events name it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourceFile {
    /// Where it is.
    pub path: PathBuf,
    /// The guest reads it in the log, no PCR depends on it: of [`From`], the last part of the path, without the folders
    /// of the host.
    pub name: String,
}

impl From<PathBuf> for SourceFile {
    fn from(path: PathBuf) -> Self {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        Self { path, name }
    }
}

/// The sections that are measured, in systemd's order (`unified_sections` in systemd's src/fundamental/uki.c).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Section {
    /// `.linux`
    Kernel,
    /// `.cmdline`
    CommandLine,
    /// `.initrd`
    Initrd,
}

impl Section {
    /// All, in the order in which they are measured.
    pub const ALL: [Self; 3] = [Self::Kernel, Self::CommandLine, Self::Initrd];

    /// The section's name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Kernel => ".linux",
            Self::CommandLine => ".cmdline",
            Self::Initrd => ".initrd",
        }
    }

    /// The word that names it on the command line.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Kernel => "kernel",
            Self::CommandLine => "cmdline",
            Self::Initrd => "initrd",
        }
    }
}

/// Where the bytes are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Content {
    /// In a file, whose name is in no event.
    Path(PathBuf),
    /// Here.
    Bytes(Vec<u8>),
}

/// A PCR for files of any kind: 0 to 15 without 7.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FilePcr(u8);

impl FilePcr {
    /// The PCR of this index, if a file may be measured into it.
    #[must_use]
    pub const fn new(index: u8) -> Option<Self> {
        if index <= 15 && index != 7 { Some(Self(index)) } else { None }
    }

    /// The index.
    #[must_use]
    pub const fn index(self) -> u8 {
        self.0
    }

    /// Whether it is one of those that are the firmware's, which a separator closes.
    #[must_use]
    pub const fn is_of_firmware(self) -> bool {
        self.0 < 8
    }

    /// The type of the events, by what the profile has the PCR for (section 3.3.4): 0 and 2 code, 1 and 3 configuration, 4
    /// to 6 what has no type of its own, the others the operating system's, where `EV_IPL` is usual.
    #[must_use]
    pub const fn event_type(self) -> EventType {
        match self.0 {
            0 | 2 => EventType::EFI_PLATFORM_FIRMWARE_BLOB2,
            1 | 3 => EventType::PLATFORM_CONFIG_FLAGS,
            4..=7 => EventType::COMPACT_HASH,
            _ => EventType::IPL,
        }
    }
}

/// Not something to measure.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum SourceError {
    /// No such form.
    #[error(
        "{0:?} is nothing to measure: expected kernel=PATH, initrd=PATH, cmdline=STRING, firmware=PATH or file:PCR=PATH"
    )]
    Unknown(OsString),
    /// No path.
    #[error("{0}= lacks the path of a file")]
    NoPath(String),
    /// Not a PCR for files.
    #[error(
        "nothing is measured into PCR {0}: expected 0 to 6 or 8 to 15; 7 tells of Secure Boot, of which nothing is claimed; \
         the others the guest can reset, or belong to a dynamic launch"
    )]
    Pcr(String),
}

impl Source {
    /// Reads `kernel=PATH`, `initrd=PATH`, `cmdline=STRING`, `firmware=PATH` or `file:PCR=PATH`. A path and a string are
    /// all that is behind the first `=`.
    ///
    /// # Errors
    /// [`SourceError`].
    pub fn parse(text: &OsStr) -> Result<Self, SourceError> {
        let unknown = || SourceError::Unknown(text.to_owned());
        let bytes = text.as_bytes();
        let at = bytes.iter().position(|byte| *byte == b'=').ok_or_else(unknown)?;
        let (word, value) = bytes.split_at_checked(at).ok_or_else(unknown)?;
        let word = std::str::from_utf8(word).map_err(|_| unknown())?;
        let value = value.get(1..).unwrap_or_default();
        let path = || match value {
            [] => Err(SourceError::NoPath(word.to_owned())),
            _ => Ok(PathBuf::from(OsStr::from_bytes(value))),
        };
        Ok(match word {
            "kernel" => Self::Section(Section::Kernel, Content::Path(path()?)),
            "initrd" => Self::Section(Section::Initrd, Content::Path(path()?)),
            "cmdline" => Self::Section(Section::CommandLine, Content::Bytes(value.to_vec())),
            "firmware" => Self::Firmware(path()?.into()),
            _ => {
                let index = word.strip_prefix("file:").ok_or_else(unknown)?;
                let digits = !index.is_empty() && index.bytes().all(|byte| byte.is_ascii_digit());
                let pcr = index.parse().ok().filter(|_| digits).and_then(FilePcr::new);
                Self::File(pcr.ok_or_else(|| SourceError::Pcr(index.to_owned()))?, path()?.into())
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Source, SourceError> {
        Source::parse(OsStr::new(text))
    }

    #[test]
    fn each_form_is_read_and_values_may_have_anything_in_them() {
        assert_eq!(
            parse("firmware=/a=b,c"),
            Ok(Source::Firmware(SourceFile { path: "/a=b,c".into(), name: "a=b,c".to_owned() }))
        );
        let cmdline = Source::Section(Section::CommandLine, Content::Bytes(b"root=/dev/vda ro".to_vec()));
        assert_eq!(parse("cmdline=root=/dev/vda ro"), Ok(cmdline));
        assert_eq!(parse("cmdline="), Ok(Source::Section(Section::CommandLine, Content::Bytes(vec![]))));
        assert_eq!(parse("file:14=x"), Ok(Source::File(FilePcr(14), PathBuf::from("x").into())));
        for section in [Section::Kernel, Section::Initrd] {
            let expected = Source::Section(section, Content::Path("p".into()));
            assert_eq!(parse(&format!("{}=p", section.word())), Ok(expected));
        }
    }

    #[test]
    fn what_is_not_measured_says_what_is() {
        for (text, expected) in [
            ("", "expected kernel=PATH"),
            ("kernel", "expected kernel=PATH"),
            ("file=x", "expected kernel=PATH"),
            ("Kernel=x", "expected kernel=PATH"),
            ("kernel=", "kernel= lacks the path"),
            ("file:3=", "file:3= lacks the path"),
            ("file:7=x", "PCR 7: expected 0 to 6 or 8 to 15"),
            ("file:16=x", "PCR 16:"),
            ("file:+1=x", "PCR +1:"),
            ("file:=x", "PCR :"),
            ("file:999=x", "PCR 999:"),
        ] {
            let message = parse(text).unwrap_err().to_string();
            assert!(message.contains(expected), "{text}: {message}");
        }
    }
}
