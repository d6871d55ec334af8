//! `--print-capabilities`: what this program can do, for management layers. The form is that of the vhost-user backend
//! program conventions (QEMU's docs/interop/vhost-user.rst), on which those of vfio-user are based: a type and features.

use std::ffi::OsString;

use clap::{Arg, ArgAction, CommandFactory, ValueEnum};
use serde::Serialize;

use super::Cli;
use super::backend_args::BackendKind;
use crate::acpi::{Interface, Machine};
use crate::tpm::TpmVersion;

pub(super) const FLAG: &str = "print-capabilities";

/// Flags that every such program has, and those that are no way of serving.
const NO_FEATURES: [&str; 5] = ["socket-path", "fd", "help", "version", FLAG];

#[derive(Serialize)]
struct Capabilities {
    /// The kind of device, as in a vhost-user backend's description.
    r#type: &'static str,
    protocol: &'static str,
    version: &'static str,
    /// Flags of the command line that are understood, without their dashes.
    features: Vec<String>,
    backends: Vec<String>,
    #[serde(rename = "tpm-versions")]
    tpm_versions: [String; 2],
    interfaces: Vec<&'static str>,
    machines: Vec<&'static str>,
}

/// The flag as the help shows it. The parser never meets it: see [`are_asked_for`].
pub(super) fn flag() -> Arg {
    Arg::new(FLAG)
        .long(FLAG)
        .action(ArgAction::SetTrue)
        .display_order(1000)
        .help("Print what this program can do, as JSON, and exit; all other arguments are ignored")
}

/// Whether the flag is among the program's own arguments. By the conventions the others are ignored, even if they are
/// wrong or missing.
pub(super) fn are_asked_for(args: impl IntoIterator<Item = OsString>) -> bool {
    args.into_iter().skip(1).take_while(|arg| arg != "--").any(|arg| arg.to_str() == Some(&format!("--{FLAG}")))
}

/// What is printed.
pub(super) fn json() -> String {
    let command = Cli::command();
    let flags = command
        .get_arguments()
        .filter(|flag| !flag.is_hide_set())
        .filter_map(Arg::get_long)
        .filter(|flag| !NO_FEATURES.contains(flag));
    let backends = BackendKind::value_variants().iter().filter_map(ValueEnum::to_possible_value);
    let capabilities = Capabilities {
        r#type: "tpm",
        protocol: "vfio-user",
        version: env!("CARGO_PKG_VERSION"),
        features: flags.map(str::to_owned).collect(),
        backends: backends.map(|backend| backend.get_name().to_owned()).collect(),
        tpm_versions: [TpmVersion::V2_0, TpmVersion::V1_2].map(|version| version.to_string()),
        interfaces: Interface::ALL.iter().map(|interface| interface.name()).collect(),
        machines: Machine::ALL.iter().map(|machine| machine.name()).collect(),
    };
    format!("{:#}", serde_json::json!(capabilities))
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use serde_json::Value;

    use super::*;

    fn asked(args: &[&str]) -> bool {
        are_asked_for(std::iter::once("vfio-user-tpm").chain(args.iter().copied()).map(OsString::from))
    }

    #[test]
    fn other_arguments_are_ignored_and_those_of_another_program_are_not_ours() {
        assert!(asked(&["--print-capabilities"]));
        assert!(asked(&["--fd=3", "--nonsense", "--print-capabilities"]));
        assert!(!asked(&["run", "--", "qemu", "--print-capabilities"]));
        assert!(!asked(&["--socket-path=--print-capabilities"]));
    }

    #[test]
    fn it_is_a_type_and_features_that_the_command_line_accepts() {
        let json: Value = serde_json::from_str(&json()).unwrap();
        assert_eq!(json["type"], "tpm");
        let features: Vec<_> = json["features"].as_array().unwrap().iter().map(|name| name.as_str().unwrap()).collect();
        assert!(features.contains(&"state-dir") && !features.contains(&"help"), "{features:?}");
        for (flag, values) in [
            ("backend", "backends"),
            ("tpm-version", "tpm-versions"),
            ("interface", "interfaces"),
            ("machine", "machines"),
        ] {
            assert!(features.contains(&flag));
            for value in json[values].as_array().unwrap() {
                let flag = format!("--{flag}={}", value.as_str().unwrap());
                assert!(Cli::try_parse_from(["vfio-user-tpm", "--fd=3", &flag]).is_ok(), "{flag}");
            }
        }
    }

    #[test]
    fn the_help_shows_the_flag() {
        assert!(Cli::command().render_help().to_string().contains("--print-capabilities"));
    }
}
