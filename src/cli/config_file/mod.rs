//! `--config FILE`: the server's flags in a file of TOML, by their long names.
//!
//! What the file says becomes arguments in front of those of the command line, so that values are checked, and defaults
//! found, where they always are. A flag of the command line takes the place of its key, a list's too, and of keys that
//! cannot stand beside it.
#![warn(clippy::arithmetic_side_effects)]

mod keys;

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs::OpenOptions;
use std::io::{self, Read};
use std::ops::Range;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::parser::ValueSource;
use clap::{Arg, ArgMatches, Args, Command};
use nix::libc;
use toml::de::DeTable;

/// Bytes in the longest file that is read. A list of flags has a few hundred.
const MAX_LENGTH: u64 = 64 * 1024;

const FLAG: &str = "config";

#[derive(Clone, Debug, Args)]
pub(super) struct ConfigArgs {
    /// File with flags of the server, in TOML, as in state-dir = "/tpm"; a flag of the command line counts instead of the
    /// file's. With a minus sign in front, as in --config=-FILE, it may be missing
    // Taken before the arguments are parsed; here for the help.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

/// What is wrong with a file, and where.
#[derive(Debug, thiserror::Error)]
enum ConfigError {
    #[error("cannot be read: {0}")]
    Read(#[from] io::Error),
    #[error("is no regular file")]
    Kind,
    #[error("is longer than {MAX_LENGTH} bytes")]
    Length,
    #[error("is no UTF-8 text")]
    Encoding,
    #[error("line {line}: {message}")]
    Syntax { line: usize, message: String },
    #[error("line {line}: {key}: {error}")]
    Key { line: usize, key: String, error: keys::KeyError },
}

/// Parses a command line, with the configuration file that it names, if any.
///
/// # Errors
/// Those of clap, also for what is wrong with the file.
pub(super) fn parse(mut command: Command, arguments: &[OsString]) -> Result<ArgMatches, clap::Error> {
    let Some(given) = Given::in_arguments(&command, arguments) else {
        return command.try_get_matches_from(arguments);
    };
    let shown = given.path.display().to_string();
    let entries = match given.read() {
        Ok(text) => text.map_or(Ok(Vec::new()), |text| given.entries(&command, &text)),
        Err(error) => Err(error),
    };
    let entries = entries
        .map_err(|error| command.error(ErrorKind::InvalidValue, format!("the configuration file {shown}: {error}")))?;
    // Behind the program's name, and a subcommand's.
    let place = if given.subcommand.is_some() { 2 } else { 1 };
    let (before, after) = arguments.split_at(place.min(arguments.len()));
    let from_file = entries.iter().flat_map(|entry| &entry.arguments);
    let all: Vec<_> = before.iter().chain(from_file).chain(after).cloned().collect();
    command.try_get_matches_from(all).map_err(|error| with_origin(error, &shown, &entries))
}

/// What one key becomes.
#[derive(Debug)]
struct Entry {
    key: String,
    arguments: Vec<OsString>,
}

/// A file that the command line names, and what else stands there.
#[derive(Debug)]
struct Given {
    path: PathBuf,
    may_be_missing: bool,
    subcommand: Option<String>,
    /// Identifiers of the flags on the command line.
    flags: BTreeSet<clap::Id>,
}

impl Given {
    /// Looks for the file's name where a flag is one, and not another's value. What is wrong with the arguments is found
    /// when they are parsed for good.
    fn in_arguments(command: &Command, arguments: &[OsString]) -> Option<Self> {
        let matches = command.clone().ignore_errors(true).try_get_matches_from(arguments).ok()?;
        let (subcommand, matches) = match matches.subcommand() {
            Some((name, matches)) => (Some(name.to_owned()), matches.clone()),
            None => (None, matches),
        };
        let path = matches.try_get_one::<PathBuf>(FLAG).ok()??;
        let (path, may_be_missing) = match path.as_os_str().as_bytes().strip_prefix(b"-") {
            Some(path) => (PathBuf::from(std::ffi::OsStr::from_bytes(path)), true),
            None => (path.clone(), false),
        };
        let on_line = |id: &&clap::Id| matches.value_source(id.as_str()) == Some(ValueSource::CommandLine);
        let flags = matches.ids().filter(on_line).cloned().collect();
        Some(Self { path, may_be_missing, subcommand, flags })
    }

    /// The file's text; nothing if it is not there and need not be.
    fn read(&self) -> Result<Option<String>, ConfigError> {
        // Not to wait for the other end of a pipe.
        let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY).open(&self.path);
        let file = match file {
            Err(error) if self.may_be_missing && error.kind() == io::ErrorKind::NotFound => return Ok(None),
            file => file?,
        };
        if !file.metadata()?.is_file() {
            return Err(ConfigError::Kind);
        }
        let mut bytes = Vec::new();
        file.take(MAX_LENGTH.saturating_add(1)).read_to_end(&mut bytes)?;
        if u64::try_from(bytes.len()).is_ok_and(|length| length > MAX_LENGTH) {
            return Err(ConfigError::Length);
        }
        String::from_utf8(bytes).map(Some).map_err(|_| ConfigError::Encoding)
    }

    /// The arguments that a file with this text stands for.
    fn entries(&self, program: &Command, text: &str) -> Result<Vec<Entry>, ConfigError> {
        let table = DeTable::parse(text).map_err(|error| ConfigError::Syntax {
            line: line_of(text, &error.span().unwrap_or_default()),
            message: error.message().to_owned(),
        })?;
        let command = self.subcommand.as_deref().and_then(|name| program.find_subcommand(name)).unwrap_or(program);
        let mut entries = Vec::new();
        for (key, value) in table.get_ref() {
            let name = key.get_ref().as_ref();
            let failed = |error| ConfigError::Key {
                line: line_of(text, &key.span()),
                key: name.escape_debug().to_string(),
                error,
            };
            let Some(flag) = keys::flag(program, command, name).map_err(failed)? else { continue };
            // Also where it does not count.
            let arguments = keys::arguments(flag, value.get_ref()).map_err(failed)?;
            if !self.overrides(command, flag) {
                entries.push(Entry { key: name.to_owned(), arguments });
            }
        }
        Ok(entries)
    }

    /// Whether the command line has this flag, or one that cannot stand beside it.
    fn overrides(&self, command: &Command, flag: &Arg) -> bool {
        let excludes = |one: &Arg, other: &clap::Id| {
            command.get_arg_conflicts_with(one).iter().any(|conflict| conflict.get_id() == other)
        };
        let choose_one = |one: &clap::Id, other: &clap::Id| {
            let has = |group: &clap::ArgGroup, id| group.get_args().any(|member| member == id);
            command.get_groups().any(|group| has(group, one) && has(group, other) && !group.clone().is_multiple())
        };
        let given = command.get_arguments().filter(|given| self.flags.contains(given.get_id()));
        given.into_iter().any(|given| {
            given.get_id() == flag.get_id()
                || excludes(flag, given.get_id())
                || excludes(given, flag.get_id())
                || choose_one(flag.get_id(), given.get_id())
        })
    }
}

/// The number of the line in which a span begins, from 1 on.
fn line_of(text: &str, span: &Range<usize>) -> usize {
    text.get(..span.start).unwrap_or(text).matches('\n').count().saturating_add(1)
}

/// Says of a flag that clap finds fault with that it comes from the file.
fn with_origin(mut error: clap::Error, file: &str, entries: &[Entry]) -> clap::Error {
    let named: Vec<_> = [ContextKind::InvalidArg, ContextKind::PriorArg]
        .into_iter()
        .filter_map(|kind| match error.get(kind)? {
            ContextValue::String(name) => Some(vec![name.clone()]),
            ContextValue::Strings(names) => Some(names.clone()),
            _ => None,
        })
        .flatten()
        .collect();
    let is_named = |entry: &&Entry| {
        let flag = |name: &String| name.strip_prefix("--")?.split([' ', '=', '[']).next().map(ToOwned::to_owned);
        named.iter().filter_map(flag).any(|name| name == entry.key)
    };
    let tips: Vec<_> =
        entries.iter().filter(is_named).map(|entry| format!("--{} stands in {file}", entry.key).into()).collect();
    if !tips.is_empty() {
        error.insert(ContextKind::Suggested, ContextValue::StyledStrs(tips));
    }
    error
}

#[cfg(test)]
mod tests;
