//! libtpms, and swtpm where one is to be used.

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::program::{self, ProgramError, first_line};
use super::report::Finding;
use crate::worker::{library_version, profile};

/// The first libtpms that this program can be built with.
const NEEDED: (u8, u8, u8) = (0, 9, 0);
/// The first with profiles.
const WITH_PROFILES: (u8, u8, u8) = (0, 10, 0);

#[derive(Debug)]
pub(super) struct Libtpms {
    version: (u8, u8, u8),
    /// This program was built with a libtpms that has profiles.
    profiles: bool,
}

pub(super) fn gather_libtpms() -> Libtpms {
    Libtpms { version: library_version(), profiles: profile::SUPPORTED }
}

pub(super) fn judge_libtpms(libtpms: &Libtpms) -> Finding {
    let (major, minor, micro) = libtpms.version;
    let version = format!("version {major}.{minor}.{micro}");
    if libtpms.version < NEEDED {
        return Finding::problem("libtpms", version, "install libtpms 0.9 or later");
    }
    Finding::ok(
        "libtpms",
        match (libtpms.profiles, libtpms.version >= WITH_PROFILES) {
            (true, _) => format!("{version}, with profiles"),
            (false, false) => format!("{version}; profiles (state init --profile) begin with 0.10"),
            (false, true) => format!("{version}; this program was built with an older one, and has no profiles"),
        },
    )
}

#[derive(Debug)]
pub(super) struct Swtpm {
    /// It is the one to be started.
    wanted: bool,
    program: PathBuf,
    answer: Option<Result<String, ProgramError>>,
}

/// Asks the swtpm that is to be started, or the one that is there.
pub(super) fn gather_swtpm(wanted: Option<&Path>, patience: Duration) -> Swtpm {
    let program = wanted.unwrap_or(Path::new("swtpm")).to_owned();
    let answer = program::find(&program).map(|path| program::output(&path, &["--version"], patience));
    Swtpm { wanted: wanted.is_some(), program, answer }
}

pub(super) fn judge_swtpm(swtpm: &Swtpm) -> Finding {
    let Swtpm { wanted, program, answer } = swtpm;
    let found = match answer {
        Some(Ok(said)) if said.contains("TPM emulator") => return Finding::ok("swtpm", first_line(said)),
        Some(Ok(said)) => format!("{} is no swtpm: it says \"{}\"", program.display(), first_line(said)),
        Some(Err(error)) => format!("{} was asked for its version: {error}", program.display()),
        None if *wanted => format!("there is no {}", program.display()),
        None => return Finding::ok("swtpm", "not installed; only --backend=swtpm needs it"),
    };
    if *wanted {
        Finding::problem(
            "swtpm",
            found,
            "install swtpm (Debian: apt-get install swtpm), or say with --swtpm-exec where it is",
        )
    } else {
        Finding::warning("swtpm", found, "nothing, unless you want --backend=swtpm")
    }
}

#[cfg(test)]
mod tests {
    use super::super::report::Level;
    use super::*;

    #[test]
    fn profiles_are_had_by_whom_and_as_who_built_the_program() {
        for (version, profiles, level, text) in [
            ((0, 8, 9), false, Level::Problem, "0.9 or later"),
            ((0, 9, 2), false, Level::Ok, "begin with 0.10"),
            ((0, 10, 0), true, Level::Ok, "with profiles"),
            ((0, 10, 1), false, Level::Ok, "built with an older one"),
        ] {
            let finding = judge_libtpms(&Libtpms { version, profiles });
            assert_eq!(finding.level(), level);
            assert!(finding.text().contains(text), "{}", finding.text());
        }
    }

    #[test]
    fn the_library_that_is_linked_is_new_enough() {
        assert_eq!(judge_libtpms(&gather_libtpms()).level(), Level::Ok);
    }

    #[test]
    fn an_swtpm_is_needed_only_where_it_is_asked_for() {
        let level = |wanted, answer| judge_swtpm(&Swtpm { wanted, program: "swtpm".into(), answer }).level();
        let said = |text: &str| Some(Ok(text.to_owned()));
        assert_eq!(level(true, said("TPM emulator version 0.7.1, Copyright")), Level::Ok);
        assert_eq!((level(false, None), level(true, None)), (Level::Ok, Level::Problem));
        assert_eq!((level(false, said("?")), level(true, said("?"))), (Level::Warning, Level::Problem));
        let hangs = || Some(Err(ProgramError::Hangs(Duration::from_secs(3))));
        assert_eq!((level(false, hangs()), level(true, hangs())), (Level::Warning, Level::Problem));
    }
}
