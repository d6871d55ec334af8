use std::path::Path;

use clap::{CommandFactory, FromArgMatches};
use proptest::prelude::*;
use tempfile::TempDir;

use super::super::Cli;
use super::*;
use crate::acpi::{Interface, Machine};

/// A folder with a file that has this text.
fn file(text: impl AsRef<[u8]>) -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("vm1.toml");
    std::fs::write(&path, text).unwrap();
    (folder, path)
}

fn config_flag(path: &Path) -> OsString {
    format!("--config={}", path.display()).into()
}

/// What the file comes to for a command line: its arguments, and what clap makes of all.
fn parsed(text: impl AsRef<[u8]>, before: &[&str], after: &[&str]) -> Result<ArgMatches, String> {
    let (_folder, path) = file(text);
    let words = |words: &[&str]| words.iter().map(OsString::from).collect::<Vec<_>>();
    let line: Vec<_> = [vec!["vfio-user-tpm".into()], words(before), vec![config_flag(&path)], words(after)].concat();
    let matches = parse(Cli::command(), &line).map_err(|error| error.to_string())?;
    Cli::from_arg_matches(&matches).map_err(|error| error.to_string())?;
    Ok(matches)
}

fn server(text: &str, after: &[&str]) -> Result<ArgMatches, String> {
    parsed(text, &[], after)
}

/// The values of a flag as they were given, each as text.
fn raw(matches: &ArgMatches, flag: &str) -> Vec<String> {
    let values = matches.get_raw(flag).into_iter().flatten();
    values.map(|value| value.to_str().unwrap().to_owned()).collect()
}

#[test]
fn keys_are_flags_of_the_server() {
    let text = "
        socket-path = '/run/tpm.sock'
        state-dir = \"/var/lib/tpm \\u00e4\"
        tpm-version = \"1.2\"
        allow-uid = [1, \"root\"]
        socket-group = 7
        socket-mode = \"0660\"
        reset-on-connect = true
        no-mmap = false
        completion-hold = 500
    ";
    let matches = server(text, &[]).unwrap();
    assert_eq!(raw(&matches, "socket_path"), ["/run/tpm.sock"]);
    assert_eq!(raw(&matches, "state_dir"), ["/var/lib/tpm ä"]);
    assert_eq!(raw(&matches, "allow_uid"), ["1", "root"]);
    assert_eq!(raw(&matches, "socket_group"), ["7"]);
    assert_eq!(raw(&matches, "completion_hold"), ["500"]);
    assert!(matches.get_flag("reset_on_connect") && !matches.get_flag("no_mmap"));
}

#[test]
fn a_flag_of_the_command_line_takes_the_place_of_its_key_a_lists_too() {
    let text = "socket-path = '/file'\nallow-uid = [1, 2]\nlog-level = 'warn'";
    let matches = server(text, &["--allow-uid=3", "--log-level", "error"]).unwrap();
    assert_eq!(raw(&matches, "socket_path"), ["/file"]);
    assert_eq!(raw(&matches, "allow_uid"), ["3"]);
    assert_eq!(raw(&matches, "log_level"), ["error"]);
}

#[test]
fn a_flag_of_the_command_line_takes_the_place_of_keys_that_cannot_stand_beside_it() {
    let text = "socket-path = '/file'\nkey-fd = 5\nstate-dir = '/s'";
    let matches = server(text, &["--fd=3", "--key-file=/k"]).unwrap();
    assert_eq!((raw(&matches, "socket_path"), raw(&matches, "key_fd")), (vec![], vec![]));
    let matches = server("socket-path = '/file'\nkey-file = '/k'\nstate-dir = '/s'", &["--key-fd=4"]).unwrap();
    assert_eq!(raw(&matches, "key_file"), [""; 0]);
}

#[test]
fn a_flag_that_may_stand_without_a_value_does_so_when_it_is_true() {
    let with = |line: &str| server(&format!("socket-path = '/s'\n{line}"), &[]).unwrap();
    assert_eq!(raw(&with("swtpm-exec = true"), "swtpm_exec"), ["swtpm"]);
    assert_eq!(raw(&with("swtpm-exec = false"), "swtpm_exec"), [""; 0]);
    assert_eq!(raw(&with("swtpm-exec = '/opt/swtpm'\nswtpm-arg = ['--log', '-x']"), "swtpm_args"), ["--log", "-x"]);
}

#[test]
fn run_takes_a_file_for_the_server_that_it_starts_and_refuses_what_it_cannot_keep() {
    let run = |text: &str| parsed(text, &["run"], &["--", "qemu", "--config", "/nonexistent"]);
    let matches = run("state-dir = '/s'\nlog-level = 'warn'").unwrap();
    assert_eq!(raw(matches.subcommand_matches("run").unwrap(), "state_dir"), ["/s"]);
    let error = run("allow-uid = [1]").unwrap_err();
    assert!(error.contains("line 1: allow-uid: `run` has no such flag"), "{error}");
}

#[test]
fn describe_passes_over_what_only_a_server_needs() {
    let text = "socket-path = '/s'\ndescription = '/d'\nsandbox = 'none'\nallow-uid = [1]\nmachine = 'pc'";
    let matches = parsed(text, &["describe"], &["--format=json"]).unwrap();
    assert_eq!(raw(matches.subcommand_matches("describe").unwrap(), "machine"), ["pc"]);
}

#[test]
fn what_is_wrong_is_said_with_file_line_and_key() {
    for (text, expected) in [
        ("state_dir = '/s'", "line 1: state_dir: no flag of the server has this name; did you mean state-dir?"),
        ("\n\nspeed = 1", "line 3: speed: no flag of the server has this name; --help"),
        ("format = 'json'", "format: this is a flag of `describe`"),
        ("pcr-banks = 'sha256'", "pcr-banks: this is a flag of `state init`"),
        ("config = '/other'", "config: a file cannot name another"),
        ("help = true", "help: this is for the command line only"),
        ("print-capabilities = true", "command line only"),
        ("obey-parent-only = true", "obey-parent-only: no flag"),
        ("tpm-version = 1.2", "tpm-version: expected a text in quotes, and this is a float"),
        ("state-dir = true", "state-dir: expected a text in quotes, and this is a boolean"),
        ("socket-mode = 0o660", "socket-mode: expected a text in quotes, and this is an integer"),
        ("busy-poll = 1.5", "busy-poll: expected a number, or a text in quotes, and this is a float"),
        ("busy-poll = 0x10", "busy-poll: expected a decimal number"),
        ("busy-poll = 99999999999999999999", "busy-poll: expected a decimal number"),
        ("reset-on-connect = 'yes'", "reset-on-connect: expected true or false, and this is a string"),
        ("allow-uid = 1", "allow-uid: expected a list, as in [\"one\", \"two\"], and this is an integer"),
        ("allow-uid = [[1]]", "allow-uid: expected a number, or a text in quotes, and this is an array"),
        ("[tpm]\nstate-dir = '/s'", "line 1: tpm: no flag"),
        ("[state-dir]", "state-dir: expected a text in quotes, and this is a table"),
        ("state-dir = \"a\\u0000b\"", "state-dir: a NUL character"),
        ("state-dir = '/a'\nstate-dir = '/b'", "line 2: duplicate key"),
        ("state-dir = '/s", "line 1: "),
        ("\"\\u001b[31m\" = 1", "line 1: \\u{1b}[31m: no flag"),
    ] {
        let error = server(text, &["--socket-path=/s"]).unwrap_err();
        assert!(error.contains("vm1.toml: line") && error.contains(expected), "{text}: {error}");
    }
}

#[test]
fn a_value_that_clap_refuses_is_said_to_be_the_files() {
    let error = server("socket-path = '/s'\nlog-level = 'loud'", &[]).unwrap_err();
    assert!(error.contains("'loud' for '--log-level") && error.contains("--log-level stands in /"), "{error}");
    let error = server("socket-path = '/s'\nfd = 3", &[]).unwrap_err();
    assert!(error.contains("--fd stands in /") && error.contains("--socket-path stands in /"), "{error}");
    let error = server("socket-path = '/s'", &["--log-level=loud"]).unwrap_err();
    assert!(!error.contains("stands in"), "{error}");
}

#[test]
fn what_is_no_text_of_reasonable_length_is_refused() {
    let all = |bytes: &[u8]| parsed(bytes, &[], &["--socket-path=/s"]).unwrap_err();
    assert!(all(b"state-dir = '\xff'").contains("no UTF-8"));
    let limit = usize::try_from(MAX_LENGTH).unwrap();
    assert!(parsed("#".repeat(limit), &[], &["--socket-path=/s"]).is_ok());
    assert!(all("#".repeat(limit + 1).as_bytes()).contains("longer than 65536 bytes"));
    let folder = tempfile::tempdir().unwrap();
    let pipe = folder.path().join("pipe");
    nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).unwrap();
    for (path, expected) in [(pipe.as_path(), "no regular file"), (folder.path(), "no regular file")] {
        let error = parse(Cli::command(), &["vfio-user-tpm".into(), config_flag(path)]).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
}

#[test]
fn a_file_may_be_missing_only_behind_a_minus_sign() {
    let missing = |flag: &str| parse(Cli::command(), &["vfio-user-tpm", "--fd=3", flag].map(OsString::from));
    assert!(missing("--config=-/nonexistent/vm1.toml").is_ok());
    let error = missing("--config=/nonexistent/vm1.toml").unwrap_err().to_string();
    assert!(error.contains("/nonexistent/vm1.toml: cannot be read: No such file"), "{error}");
    let (_folder, path) = file("speed = 1");
    assert!(missing(&format!("--config=-{}", path.display())).is_err());
}

#[test]
fn only_the_flag_itself_names_a_file() {
    for line in [
        &["--fd=3", "--swtpm-arg", "--config=/nonexistent"][..],
        &["run", "--", "qemu", "--config=/nonexistent"],
        &["worker"],
    ] {
        let line: Vec<_> = [&["vfio-user-tpm"], line].concat().into_iter().map(OsString::from).collect();
        assert!(parse(Cli::command(), &line).is_ok(), "{line:?}");
    }
    // Help is help.
    let (_folder, path) = file("speed = 1");
    let line = ["vfio-user-tpm".into(), config_flag(&path), "--help".into()];
    assert_eq!(parse(Cli::command(), &line).unwrap_err().kind(), ErrorKind::DisplayHelp);
}

/// The example's lines that are commented out, as they are when the mark is taken away.
fn examples() -> Vec<String> {
    let lines = include_str!("../../../dist/vfio-user-tpm.toml").lines();
    let lines = lines.filter_map(|line| line.strip_prefix('#'));
    lines.filter(|line| line.starts_with(|first: char| first.is_ascii_lowercase())).map(str::to_owned).collect()
}

#[test]
fn every_line_of_the_example_file_can_be_used() {
    assert!(server(include_str!("../../../dist/vfio-user-tpm.toml"), &["--fd=3"]).is_ok());
    for line in examples() {
        let result = server(&line, &["--socket-path=/s", "--trace-pcap=/t"]);
        assert!(result.is_ok(), "{line}: {}", result.unwrap_err());
    }
    // No key stands there twice.
    assert!(DeTable::parse(&examples().join("\n")).is_ok());
}

#[test]
fn the_example_file_has_every_flag_of_the_server() {
    let program = Cli::command();
    let examples = examples();
    let keys: BTreeSet<_> = examples.iter().filter_map(|line| line.split(" = ").next()).collect();
    let flags = program.get_arguments().filter(|flag| !flag.is_hide_set()).filter_map(Arg::get_long);
    let flags: BTreeSet<_> = flags.filter(|name| keys::flag(&program, &program, name).is_ok()).collect();
    assert_eq!(keys, flags);
}

/// What a flag can be, if that is one of a few names.
fn choices(flag: &Arg) -> Vec<String> {
    match flag.get_long() {
        // Parsed as they are everywhere else.
        Some("machine") => Machine::ALL.map(|machine| machine.to_string()).to_vec(),
        Some("interface") => Interface::ALL.map(|interface| interface.name().to_owned()).to_vec(),
        // A flag without a value has true and false.
        _ if !flag.get_action().takes_values() => Vec::new(),
        _ => flag.get_possible_values().iter().map(|value| value.get_name().to_owned()).collect(),
    }
}

#[test]
fn the_example_file_names_every_value_that_there_is_to_choose_from() {
    let program = Cli::command();
    let mut compared = BTreeSet::new();
    for paragraph in include_str!("../../../dist/vfio-user-tpm.toml").split("\n\n") {
        let comments: Vec<_> = paragraph.lines().filter_map(|line| line.strip_prefix("# ")).collect();
        let comments = comments.join(" ");
        let named: BTreeSet<_> = comments.split(|c: char| !c.is_ascii_alphanumeric() && c != '-').collect();
        for key in paragraph.lines().filter_map(|line| line.strip_prefix('#')?.split_once(" = ")).map(|(key, _)| key) {
            let Some(flag) = program.get_arguments().find(|flag| flag.get_long() == Some(key)) else { continue };
            let choices = choices(flag);
            let missing: Vec<_> = choices.iter().filter(|choice| !named.contains(choice.as_str())).collect();
            assert_eq!(missing, [""; 0], "{key}: {comments}");
            if !choices.is_empty() {
                compared.insert(key);
            }
        }
    }
    assert!(compared.is_superset(&["backend", "machine", "interface", "log-level", "sandbox"].into()), "{compared:?}");
}

proptest! {
    #[test]
    fn any_text_gives_arguments_or_an_error(text in "(([a-z-]{1,12}|state-dir|allow-uid|fd) ?= ?[\\[\\]'\"a-z0-9{}.,#\n -]{0,20}\n?){0,4}|\\PC{0,60}") {
        let given = Given {
            path: PathBuf::new(), may_be_missing: false, subcommand: None, flags: BTreeSet::new()
        };
        if let Ok(entries) = given.entries(&Cli::command(), &text) {
            for argument in entries.iter().flat_map(|entry| &entry.arguments) {
                prop_assert!(argument.as_bytes().starts_with(b"--") && !argument.as_bytes().contains(&0));
            }
        }
    }
}
