//! What the documents name is there: files, flags of the program and of what is used beside it; and the examples of
//! docs/device-spec.md work as they stand.

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use common::crb::{Crb, Start};
use common::process::{Process, until};
use common::raw_client::RawClient;
use common::swtpm::programs;
use common::tpm_commands::{RC_SUCCESS, code_of, get_random};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

const PROGRAM: &str = env!("CARGO_BIN_EXE_vfio-user-tpm");
const SPECIFICATION: &str = "docs/device-spec.md";
const PATIENCE: Duration = Duration::from_secs(60);

fn project() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: &str) -> String {
    fs::read_to_string(project().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// The documents, by their paths from the top.
fn documents() -> Vec<String> {
    let mut found = vec!["README.md".to_owned(), "CHANGELOG.md".to_owned(), "fuzz/README.md".to_owned()];
    for entry in fs::read_dir(project().join("docs")).expect("docs/") {
        let name = entry.expect("entry").file_name().into_string().expect("UTF-8");
        if Path::new(&name).extension().is_some_and(|extension| extension == "md") {
            found.push(format!("docs/{name}"));
        }
    }
    found.sort();
    found
}

/// What stands between backticks in a line of prose.
fn quoted(text: &str) -> impl Iterator<Item = &str> {
    let mut in_block = false;
    text.lines()
        .filter(move |line| {
            let fence = line.trim_start().starts_with("```");
            in_block ^= fence;
            !in_block && !fence
        })
        .flat_map(|line| line.split('`').skip(1).step_by(2))
}

/// The targets of links to files.
fn links(text: &str) -> impl Iterator<Item = &str> {
    text.split("](").skip(1).filter_map(|rest| rest.split([')', '#']).next()).filter(|target| !target.contains(':'))
}

/// A text without what a guest's own programs were asked, and said.
fn without_transcripts(text: &str) -> String {
    blocks(text, "console").iter().fold(text.to_owned(), |text, block| text.replace(block.as_str(), ""))
}

/// Code blocks in a language.
fn blocks(text: &str, language: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        if let Some(block) = line.strip_prefix("```") {
            let content: Vec<_> = lines.by_ref().take_while(|line| !line.starts_with("```")).collect();
            if block == language {
                found.push(content.join("\n"));
            }
        }
    }
    found
}

/// The long flags in a text.
fn flags(text: &str) -> impl Iterator<Item = String> {
    text.match_indices("--").filter_map(|(at, _)| {
        let begins = at == 0 || text[..at].ends_with([' ', '[', '(', '`', ',', '\n', '|', '"', '/', '\'']);
        let name: String =
            text[at + 2..].chars().take_while(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || *c == '-').collect();
        (begins && name.starts_with(|c: char| c.is_ascii_lowercase())).then(|| format!("--{name}"))
    })
}

fn help(program: &Path, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).arg("--help").output().expect("the program runs");
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

/// The flags of the program and all its subcommands that are not hidden.
fn flags_of_the_program() -> BTreeSet<String> {
    fn collect(words: &[&str], found: &mut BTreeSet<String>) {
        let text = help(Path::new(PROGRAM), words);
        found.extend(flags(&text));
        let commands = text.lines().skip_while(|line| *line != "Commands:").skip(1);
        for line in commands.take_while(|line| line.starts_with(' ')) {
            let Some(name) = line.strip_prefix("  ").filter(|rest| !rest.starts_with(' ')) else { continue };
            let name = name.split_whitespace().next().expect("a name");
            if name != "help" {
                collect(&[words, &[name]].concat(), found);
            }
        }
    }
    let mut found = BTreeSet::new();
    collect(&[], &mut found);
    found
}

#[test]
fn each_path_in_the_documents_is_there() {
    let folders = ["src/", "docs/", "tests/", "benches/", "fuzz/", "dist/", "vendor/"];
    let mut missing = Vec::new();
    for document in documents() {
        let text = read(&document);
        let named = quoted(&text).filter(|word| folders.iter().any(|folder| word.starts_with(folder)));
        // A path ends where a word does: `tests/guest/kit --help`.
        let named = named.filter_map(|word| word.split_whitespace().next());
        // A pattern or a placeholder names no file: its folder has to be there.
        let named = named.map(|path| {
            let fixed = path.find(['*', '{', '<', '…']).map_or(path, |at| &path[..at]);
            fixed.rsplit_once('/').filter(|_| fixed != path).map_or(fixed, |(folder, _)| folder)
        });
        let beside = project().join(&document).with_file_name("");
        let linked = links(&text).filter(|link| !link.is_empty());
        let is_there = |path: &&str| beside.join(path).exists() || project().join(path).exists();
        missing
            .extend(named.chain(linked).filter(|path| !is_there(path)).map(|path| (document.clone(), path.to_owned())));
    }
    assert!(missing.is_empty(), "named and not there: {missing:#?}");
}

#[test]
fn each_flag_in_the_documents_is_there() {
    let own = flags_of_the_program();
    assert!(own.contains("--state-dir") && own.contains("--to-swtpm"), "{own:?}");
    let script = |name: &str| read(name);
    let swtpm = help(&programs()[0], &["socket"]);
    let others: BTreeMap<&str, String> = BTreeMap::from([
        ("--full", script("test")),
        ("--quick", script("bench")),
        ("--release", help(Path::new("cargo"), &["build"])),
        ("--ctrl", swtpm.clone()),
        ("--daemon", swtpm.clone()),
        ("--server", swtpm.clone()),
        ("--tpm2", swtpm.clone()),
        ("--tpmstate", swtpm),
    ]);
    let mut unknown = Vec::new();
    for document in documents() {
        let text = without_transcripts(&read(&document));
        // Of the specification everything, of the others what is named in prose.
        let named: Vec<String> = if document == SPECIFICATION {
            flags(&text).collect()
        } else {
            quoted(&text).filter(|word| word.starts_with("--")).flat_map(flags).collect()
        };
        unknown.extend(
            named
                .into_iter()
                .filter(|flag| {
                    !own.contains(flag) && !others.get(flag.as_str()).is_some_and(|text| text.contains(flag.as_str()))
                })
                .map(|flag| (document.clone(), flag)),
        );
    }
    assert!(unknown.is_empty(), "named and not there: {unknown:#?}");
}

#[test]
fn the_specification_fits_a_terminal() {
    let text = read(SPECIFICATION);
    let long: Vec<_> = text.lines().filter(|line| line.chars().count() > 79).collect();
    assert!(long.is_empty(), "over 79 characters: {long:#?}");
}

/// A folder in which an example runs: nothing is in it but what the example makes, and the programs are in the path.
struct Place {
    folder: tempfile::TempDir,
}

impl Place {
    fn new() -> Self {
        let folder = tempfile::tempdir().expect("temporary folder");
        fs::create_dir(folder.path().join("bin")).expect("folder");
        let swtpm = programs()[0].clone();
        let swtpm = if swtpm.components().count() > 1 { swtpm } else { which(&swtpm) };
        for (program, name) in [(Path::new(PROGRAM), "vfio-user-tpm"), (&swtpm, "swtpm")] {
            symlink(program, folder.path().join("bin").join(name)).expect("link");
        }
        Self { folder }
    }

    fn socket(&self) -> PathBuf {
        self.folder.path().join("vm.sock")
    }

    /// Starts an example as a user would who pastes it into a shell.
    fn start(&self, example: &str) -> Process {
        let path = format!("{}:{}", self.folder.path().join("bin").display(), std::env::var("PATH").expect("PATH"));
        let script = format!("cd '{}' && PATH='{path}' && export PATH\n{example}", self.folder.path().display());
        // The last command takes the shell's place, so what ends the process ends the server.
        let script = script.replacen("\nvfio-user-tpm", "\nexec vfio-user-tpm", 1);
        Process::start(Path::new("/bin/sh"), ["-e", "-c", &script], self.folder.path().join("log"))
    }
}

impl Drop for Place {
    /// An swtpm that was sent to the background ends with the example.
    fn drop(&mut self) {
        for process in fs::read_dir("/proc").expect("/proc").flatten() {
            let Some(pid) = process.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
            if fs::read_link(process.path().join("cwd")).is_ok_and(|cwd| cwd == self.folder.path()) {
                let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
            }
        }
    }
}

fn which(name: &Path) -> PathBuf {
    let path = std::env::var_os("PATH").expect("PATH");
    let found = std::env::split_paths(&path).map(|folder| folder.join(name)).find(|program| program.is_file());
    found.expect("it has been run")
}

/// Every example that starts a server and needs no hardware.
#[test]
fn each_example_of_the_specification_serves_a_tpm() {
    let text = read(SPECIFICATION);
    let examples = blocks(&text, "sh");
    let examples: Vec<_> = examples.iter().filter(|example| example.contains("--socket-path vm.sock")).collect();
    assert!(examples.len() >= 4, "{examples:#?}");
    for example in examples {
        println!("{example}\n");
        let place = Place::new();
        let mut server = place.start(example);
        if example.starts_with("vfio-user-tpm describe") {
            assert!(server.wait(PATIENCE).expect("it ends").success(), "{}", server.output());
            assert!(place.folder.path().join("vm.tpm/tpm.json").exists(), "what a VMM needs is there");
            continue;
        }
        if example.contains("/dev/tpm0") {
            // Not taken from a host that has one.
            if !Path::new("/dev/tpm0").exists() {
                assert!(!server.wait(PATIENCE).expect("it ends").success());
                assert!(server.output().contains("/dev/tpm0"), "{}", server.output());
            }
            continue;
        }
        let listens = until(PATIENCE, || {
            assert!(server.exit_status().is_none(), "{example}\nended: {}", server.output());
            server.output().contains(" listening on ").then_some(())
        });
        assert!(listens.is_some(), "{example}\ndoes not listen: {}", server.output());
        let mut guest = Crb::mapped(RawClient::connect(&place.socket()), Start::Register);
        assert_eq!(code_of(&guest.run(&get_random(8))), RC_SUCCESS, "{example}");
        drop(guest);
        server.signal(Signal::SIGTERM);
        assert!(server.wait(PATIENCE).expect("it ends").success(), "{example}\n{}", server.output());
    }
}
