//! docs/operations.md: its commands work as they stand, one after the other, and its log lines are the program's.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;

const PROGRAM: &str = env!("CARGO_BIN_EXE_vfio-user-tpm");

fn project() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn page() -> String {
    fs::read_to_string(project().join("docs/operations.md")).expect("docs/operations.md")
}

/// The blocks that are marked, with the host on which they are to run.
fn commands(page: &str) -> Vec<(String, String)> {
    let mut found = Vec::new();
    let mut lines = page.lines();
    while let Some(line) = lines.next() {
        let Some(mark) = line.trim().strip_prefix("<!-- run on ") else { continue };
        let host = mark.strip_suffix(" -->").expect("the end of the mark");
        let fence = lines.next().expect("a block after the mark");
        assert_eq!(fence.trim(), "```sh", "behind {line}");
        let indent = fence.len() - fence.trim_start().len();
        let block = lines.by_ref().take_while(|line| line.trim() != "```");
        let block: Vec<_> = block.map(|line| line.get(indent..).unwrap_or_default()).collect();
        found.push((host.to_owned(), block.join("\n")));
    }
    found
}

#[test]
fn the_commands_that_make_back_up_restore_rekey_and_move_a_tpm_work_as_they_stand() {
    let place = tempfile::tempdir().unwrap();
    let at = |name: &str| place.path().join(name);
    for folder in ["bin", "old", "new"] {
        fs::create_dir(at(folder)).unwrap();
    }
    symlink(PROGRAM, at("bin/vfio-user-tpm")).unwrap();
    let path = format!("{}:{}", at("bin").display(), std::env::var("PATH").unwrap());
    let commands = commands(&page());
    assert!(commands.len() >= 10 && commands.iter().any(|(host, _)| host == "new"), "{commands:#?}");
    let mut carried = false;
    for (host, block) in commands {
        if host == "new" && !std::mem::replace(&mut carried, true) {
            fs::copy(at("old/web-1.tpm"), at("new/web-1.tpm")).unwrap();
            fs::copy(at("old/web-1/key"), at("new/web-1.key")).unwrap();
        }
        let output = Command::new("bash")
            .args(["-euo", "pipefail", "-c", &block])
            .current_dir(at(&host))
            .env("PATH", &path)
            .env("HOME", place.path())
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "on {host}:\n{block}\n{said}");
        assert!(!said.contains(" ERROR]"), "on {host}:\n{block}\n{said}");
    }
    assert!(at("new/web-1/state/tpm2.0-permanent.state").exists() && at("new/web-1/description/tpm.json").exists());
    assert!(!at("old/web-1").exists());
}

#[test]
fn each_line_that_the_page_explains_is_one_of_the_programs() {
    let source = source(&project().join("src"));
    let page = page();
    let (_, section) = page.split_once("## What to do when").expect("the section");
    let rows =
        section.lines().skip_while(|line| !line.starts_with("|---")).skip(1).take_while(|line| line.starts_with('|'));
    let lines: Vec<_> = rows.map(|row| row.split('`').nth(1).expect("a line in backticks")).collect();
    assert!(lines.len() >= 10, "{lines:#?}");
    let missing: Vec<_> = lines.iter().filter(|line| !source.contains(**line)).collect();
    assert!(missing.is_empty(), "explained and never said: {missing:#?}");
}

/// All source, with texts that are broken over several lines in one.
fn source(folder: &Path) -> String {
    let mut source = String::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            source += &self::source(&path);
        } else {
            let text = fs::read_to_string(&path).unwrap();
            source += &text.split("\\\n").map(str::trim_start).collect::<String>();
        }
    }
    source
}
