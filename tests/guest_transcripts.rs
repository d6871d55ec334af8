//! The transcripts in docs/device-spec.md: what a real guest says of the device.
//!
//! A block `console` after a line `<!-- transcript: FLAGS -->` shows commands (behind `# `) and what they print in a guest
//! whose server has these flags. The test runs the commands and compares; `docs/transcripts` writes the document anew.

mod common;
mod guest;

use std::fs;
use std::path::{Path, PathBuf};

use common::server::Server;
use guest::{Guest, GuestConfig};

const MARK: &str = "<!-- transcript:";

fn document() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/device-spec.md")
}

/// A stretch of the document: its text, or a transcript.
enum Part {
    Text(String),
    Transcript { flags: Vec<String>, commands: Vec<Command> },
}

struct Command {
    line: String,
    output: String,
}

fn parts(document: &str) -> Vec<Part> {
    let mut parts = Vec::new();
    let mut text = String::new();
    let mut lines = document.lines();
    while let Some(line) = lines.next() {
        text += line;
        text += "\n";
        let Some(flags) = line.strip_prefix(MARK).and_then(|rest| rest.strip_suffix("-->")) else { continue };
        assert_eq!(lines.next(), Some("```console"), "what follows {line}");
        parts.push(Part::Text(std::mem::take(&mut text)));
        let mut commands: Vec<Command> = Vec::new();
        for line in lines.by_ref().take_while(|line| *line != "```") {
            if let Some(command) = line.strip_prefix("# ") {
                commands.push(Command { line: command.to_owned(), output: String::new() });
                continue;
            }
            let command = commands.last_mut().expect("a transcript begins with a command");
            command.output.extend([line, "\n"]);
        }
        parts.push(Part::Transcript { flags: flags.split_whitespace().map(str::to_owned).collect(), commands });
    }
    parts.push(Part::Text(text));
    parts
}

/// Runs the commands of a transcript in a guest; returns what each prints.
fn run(flags: &[String], commands: &[Command]) -> Vec<String> {
    let machine = if flags.iter().any(|flag| flag == "--machine=pc") { "pc" } else { "q35" };
    let server = Server::with_args(&flags.iter().map(Into::into).collect::<Vec<_>>());
    let mut guest = Guest::boot(&GuestConfig { machine, qemu_args: server.qemu_args(), ..GuestConfig::default() });
    commands.iter().map(|command| guest.check(&command.line)).collect()
}

/// A transcript without what differs from boot to boot: numbers in hexadecimal.
fn shape(output: &str) -> String {
    let mut shape = String::new();
    let mut rest = output;
    while let Some(first) = rest.chars().next() {
        let digits = rest.chars().take_while(char::is_ascii_hexdigit).count();
        if digits >= 2 {
            shape.push('#');
            rest = &rest[digits..];
        } else {
            let taken = digits.max(first.len_utf8());
            shape += &rest[..taken];
            rest = &rest[taken..];
        }
    }
    shape
}

#[test]
fn the_specification_shows_what_a_guest_says() {
    let document = document();
    let writes = std::env::var_os("WRITE_TRANSCRIPTS").is_some();
    let mut written = String::new();
    for part in parts(&fs::read_to_string(&document).expect("the document")) {
        let (flags, commands) = match part {
            Part::Text(text) => {
                written += &text;
                continue;
            }
            Part::Transcript { flags, commands } => (flags, commands),
        };
        let outputs = run(&flags, &commands);
        written += "```console\n";
        for (command, output) in commands.iter().zip(outputs) {
            assert!(!output.trim().is_empty(), "{} prints nothing", command.line);
            // Another kernel has other words.
            if !writes && !command.line.starts_with("dmesg") {
                assert_eq!(
                    shape(command.output.trim_end()),
                    shape(output.trim_end()),
                    "{}: run docs/transcripts",
                    command.line
                );
            }
            written.extend(["# ", &command.line, "\n", output.trim_end(), "\n"]);
        }
        written += "```\n";
    }
    if writes {
        fs::write(&document, written).expect("the document is written");
    }
}
