//! How the program's processes are confined, and whose they are.

use std::ffi::OsString;

use clap::{Args, ValueEnum};

use super::access_args::group;
use crate::sandbox::{Confinement, Level, NewUser, OnViolation};

#[derive(Clone, Debug, Args)]
pub(super) struct SandboxArgs {
    /// How far the program's processes confine themselves
    #[arg(long, value_enum, default_value = "full")]
    sandbox: SandboxLevel,

    /// With --sandbox=full: what comes of a system call that the program does not need
    #[arg(long, value_enum, default_value = "kill", value_name = "ACTION")]
    seccomp: SeccompAction,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum SandboxLevel {
    /// Not at all
    None,
    /// Files by Landlock, without a filter of system calls
    Landlock,
    /// Landlock and seccomp
    Full,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum SeccompAction {
    /// The process that makes it is killed
    Kill,
    /// It fails
    Errno,
    /// It is made, and the kernel logs it
    Log,
    /// It is made
    None,
}

#[derive(Debug, Args)]
pub(super) struct UserArgs {
    /// Become this user before anything is opened, when started by root: socket, state and devices have to be within
    /// its reach
    #[arg(long, value_name = "USER[:GROUP]", value_parser = user)]
    pub(super) user: Option<NewUser>,
}

impl SandboxArgs {
    pub(super) fn confinement(&self) -> Confinement {
        let level = match self.sandbox {
            SandboxLevel::None => Level::None,
            SandboxLevel::Landlock => Level::Landlock,
            SandboxLevel::Full => Level::Full,
        };
        let on_violation = match self.seccomp {
            SeccompAction::Kill => OnViolation::Kill,
            SeccompAction::Errno => OnViolation::Errno,
            SeccompAction::Log => OnViolation::Log,
            SeccompAction::None => OnViolation::None,
        };
        Confinement { level, on_violation }
    }

    /// The same flags, for another process of this program.
    pub(super) fn to_args(&self) -> Vec<OsString> {
        let name = |value: Option<clap::builder::PossibleValue>| {
            value.map(|value| value.get_name().to_owned()).unwrap_or_default()
        };
        let sandbox = format!("--sandbox={}", name(self.sandbox.to_possible_value()));
        let seccomp = format!("--seccomp={}", name(self.seccomp.to_possible_value()));
        vec![sandbox.into(), seccomp.into()]
    }
}

fn user(text: &str) -> Result<NewUser, String> {
    match text.split_once(':') {
        Some((user, name)) => NewUser::new(user, Some(group(name)?)),
        None => NewUser::new(text, None),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        sandbox: SandboxArgs,
    }

    fn parse(args: &[OsString]) -> SandboxArgs {
        Cli::try_parse_from([OsString::from("vfio-user-tpm")].iter().chain(args)).unwrap().sandbox
    }

    #[test]
    fn the_default_is_everything_and_another_process_gets_the_same() {
        assert_eq!(parse(&[]).confinement(), Confinement { level: Level::Full, on_violation: OnViolation::Kill });
        for args in [["--sandbox=none", "--seccomp=log"], ["--sandbox=landlock", "--seccomp=none"]] {
            let args = args.map(OsString::from);
            assert_eq!(parse(&args).to_args(), args);
        }
    }

    #[test]
    fn a_user_is_a_name_or_a_number_with_a_group() {
        assert!(user("root").is_ok() && user("0").is_ok() && user("1234567:0").is_ok());
        assert_eq!(user("root:root"), user("0:0"));
        for text in ["", ":", "root:", "1234567", "4294967295:0", "no such name", "root:no such name"] {
            assert!(user(text).is_err(), "{text}");
        }
    }
}
