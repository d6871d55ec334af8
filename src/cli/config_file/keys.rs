//! Which keys a file may have, and which values.

use std::any::TypeId;
use std::ffi::OsString;
use std::os::fd::RawFd;

use clap::{Arg, ArgAction, Command};
use nix::unistd::{Gid, Uid};
use thiserror::Error;
use toml::de::DeValue;

use super::super::capabilities;
use super::FLAG;

/// Flags that are not for a file: they do something else than serve.
const NO_KEYS: [&str; 3] = ["help", "version", capabilities::FLAG];

/// The subcommand that serves nothing.
const DESCRIBE: &str = "describe";

/// What is wrong with a key or its value.
#[derive(Debug, Error, PartialEq, Eq)]
pub(super) enum KeyError {
    #[error("no flag of the server has this name; --help lists them")]
    Unknown,
    #[error("no flag of the server has this name; did you mean {0}?")]
    Misspelt(String),
    #[error("this is a flag of `{0}`, and a file has those of the server: give it on the command line")]
    OtherCommand(String),
    #[error("a file cannot name another: what it is to say has to stand in this one")]
    Nested,
    #[error("this is for the command line only")]
    CommandLineOnly,
    #[error("`{0}` has no such flag: it is for a server that is started by itself")]
    NotHere(String),
    #[error("expected {expected}, and this is {}", found(.came))]
    Type { expected: &'static str, came: &'static str },
    #[error("a NUL character cannot be part of an argument")]
    Nul,
    #[error("expected a decimal number of at most 64 bits")]
    Number,
}

fn found(kind: &str) -> String {
    let article = if kind.starts_with(['a', 'i']) { "an" } else { "a" };
    format!("{article} {kind}")
}

/// The flag of `command` that a key stands for. None if it is one of the server's that `command`, which only describes it,
/// has no use for.
///
/// # Errors
/// [`KeyError`]. A command that serves takes all that the file says, or refuses it.
pub(super) fn flag<'a>(program: &Command, command: &'a Command, key: &str) -> Result<Option<&'a Arg>, KeyError> {
    if key == FLAG {
        return Err(KeyError::Nested);
    }
    if NO_KEYS.contains(&key) {
        return Err(KeyError::CommandLineOnly);
    }
    if !has_flag(program, key) {
        let respelt = key.replace('_', "-").to_ascii_lowercase();
        return Err(match other_command(program, key) {
            Some(name) => KeyError::OtherCommand(name),
            None if has_flag(program, &respelt) => KeyError::Misspelt(respelt),
            None => KeyError::Unknown,
        });
    }
    match command.get_arguments().find(|flag| flag.get_long() == Some(key)) {
        None if command.get_name() == DESCRIBE => Ok(None),
        None => Err(KeyError::NotHere(command.get_name().to_owned())),
        flag => Ok(flag),
    }
}

fn has_flag(command: &Command, name: &str) -> bool {
    command.get_arguments().any(|flag| flag.get_long() == Some(name) && !flag.is_hide_set())
}

/// The subcommand that has such a flag, for people.
fn other_command(program: &Command, key: &str) -> Option<String> {
    program.get_subcommands().filter(|command| !command.is_hide_set()).find_map(|command| {
        let name = command.get_name();
        let below = || other_command(command, key).map(|below| format!("{name} {below}"));
        if has_flag(command, key) { Some(name.to_owned()) } else { below() }
    })
}

/// The arguments that a key with this value stands for.
///
/// # Errors
/// [`KeyError`], for a value of another kind than the flag's.
pub(super) fn arguments(flag: &Arg, value: &DeValue<'_>) -> Result<Vec<OsString>, KeyError> {
    let name = flag.get_long().unwrap_or_default();
    let with_value = |value: &DeValue<'_>| Ok(format!("--{name}={}", text(flag, value)?).into());
    match (flag.get_action(), value) {
        (ArgAction::SetTrue, DeValue::Boolean(given)) => Ok(only_if(*given, name)),
        (ArgAction::SetTrue, other) => Err(wrong("true or false", other)),
        (ArgAction::Append, DeValue::Array(values)) => values.iter().map(|value| with_value(value.get_ref())).collect(),
        (ArgAction::Append, other) => Err(wrong("a list, as in [\"one\", \"two\"]", other)),
        // A flag that can stand without a value.
        (_, DeValue::Boolean(given)) if flag.get_num_args().is_some_and(|range| range.min_values() == 0) => {
            Ok(only_if(*given, name))
        }
        (_, value) => Ok(vec![with_value(value)?]),
    }
}

fn only_if(given: bool, name: &str) -> Vec<OsString> {
    if given { vec![format!("--{name}").into()] } else { Vec::new() }
}

/// One value, as it stands on a command line.
fn text(flag: &Arg, value: &DeValue<'_>) -> Result<String, KeyError> {
    match value {
        DeValue::String(text) if text.contains('\0') => Err(KeyError::Nul),
        DeValue::String(text) => Ok(text.as_ref().to_owned()),
        DeValue::Integer(number) if takes_numbers(flag) => {
            let decimal = Some(number).filter(|number| number.radix() == 10);
            let number = decimal.and_then(|number| number.as_str().parse::<i64>().ok());
            number.map(|number| number.to_string()).ok_or(KeyError::Number)
        }
        other if takes_numbers(flag) => Err(wrong("a number, or a text in quotes", other)),
        other => Err(wrong("a text in quotes", other)),
    }
}

/// Whether a flag's value may be a decimal number. The bits of a mode are not among them: TOML's 0660 and 0o660 are none.
fn takes_numbers(flag: &Arg) -> bool {
    let kinds = [TypeId::of::<u64>(), TypeId::of::<RawFd>(), TypeId::of::<Uid>(), TypeId::of::<Gid>()];
    kinds.iter().any(|kind| flag.get_value_parser().type_id() == *kind)
}

fn wrong(expected: &'static str, came: &DeValue<'_>) -> KeyError {
    KeyError::Type { expected, came: came.type_str() }
}
