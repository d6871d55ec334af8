//! What a package installs besides the program: manual pages, completions, the descriptor for management layers.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;

const PROGRAM: &str = env!("CARGO_BIN_EXE_vfio-user-tpm");

#[track_caller]
fn printed(output: &Output) -> String {
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.is_empty(), "{}: {said}", output.status);
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn program(args: &[&str]) -> String {
    printed(&Command::new(PROGRAM).args(args).output().unwrap())
}

/// The subcommands that the help of a command lists.
fn subcommands(command: &[&str]) -> Vec<String> {
    let help = program(&[command, &["--help"]].concat());
    let listed = help.split("\nCommands:\n").nth(1).unwrap_or_default();
    let names = listed.lines().take_while(|line| !line.is_empty()).filter_map(|line| line.split_whitespace().next());
    names.filter(|name| *name != "help").map(str::to_owned).collect()
}

/// A page as a reader sees it; groff finds no fault with it.
fn rendered(page: &Path) -> String {
    let output =
        Command::new("groff").args(["-man", "-ww", "-Tutf8", "-Kutf8", "-P-c", "-P-b", "-P-u"]).arg(page).output();
    printed(&output.expect("groff (groff-base)"))
}

#[test]
fn each_subcommand_has_a_manual_page_that_groff_finds_no_fault_with() {
    let folder = tempfile::tempdir().unwrap();
    program(&["manual", folder.path().to_str().unwrap()]);
    let files = fs::read_dir(folder.path()).unwrap().map(|file| file.unwrap().file_name().into_string().unwrap());
    let files: BTreeSet<_> = files.collect();
    let mut expected = BTreeSet::from(["vfio-user-tpm.1".to_owned()]);
    for command in subcommands(&[]) {
        expected.insert(format!("vfio-user-tpm-{command}.1"));
        let below = subcommands(&[&command]).into_iter();
        expected.extend(below.map(|below| format!("vfio-user-tpm-{command}-{below}.1")));
    }
    assert_eq!(files, expected);
    assert!(files.contains("vfio-user-tpm-state-init.1"));
    for file in files {
        let page = rendered(&folder.path().join(&file));
        for section in ["NAME", "SYNOPSIS", "DESCRIPTION", "OPTIONS", "EXIT STATUS", "SEE ALSO"] {
            assert!(page.lines().any(|line| line == section), "{file} has no {section}:\n{page}");
        }
        assert!(!page.contains("spawner"), "{file} shows what is hidden");
    }
}

#[test]
fn the_programs_page_has_files_environment_and_how_it_is_called() {
    let folder = tempfile::tempdir().unwrap();
    program(&["manual", folder.path().to_str().unwrap()]);
    let page = rendered(&folder.path().join("vfio-user-tpm.1"));
    for expected in ["/etc/vfio-user-tpm/NAME.toml", "NOTIFY_SOCKET", "--print-capabilities", "vfio-user-tpm-state(1)"]
    {
        assert!(page.contains(expected), "{expected}:\n{page}");
    }
    let called = page.lines().skip_while(|line| *line != "SYNOPSIS").nth(1).unwrap();
    assert!(called.trim_start().starts_with("vfio-user-tpm [OPTIONS] <--socket-path <PATH>|--fd"), "{called}");
}

#[test]
fn a_folder_for_pages_that_is_not_there_is_said() {
    let output = Command::new(PROGRAM).args(["manual", "/nonexistent"]).output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.code() == Some(1) && said.contains("cannot write /nonexistent/vfio-user-tpm.1"), "{said}");
}

#[test]
fn bash_loads_its_completions_and_completes() {
    let folder = tempfile::tempdir().unwrap();
    let script = folder.path().join("vfio-user-tpm");
    fs::write(&script, program(&["completions", "bash"])).unwrap();
    let bash = |args: &[&str]| printed(&Command::new("bash").args(args).arg(&script).output().unwrap());
    assert_eq!(bash(&["-n"]), "");
    let complete = r#". "$0"
        COMP_WORDS=(vfio-user-tpm $WORDS) COMP_CWORD=${#COMP_WORDS[@]}
        COMP_CWORD=$((COMP_CWORD - 1))
        function=$(complete -p vfio-user-tpm) function=${function#*-F } function=${function%% *}
        $function vfio-user-tpm "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD - 1]}"
        printf '%s\n' "${COMPREPLY[@]}""#;
    for (words, expected) in [
        ("--state", "--state-dir"),
        ("--interface --ba", "--backend"),
        ("state ini", "init"),
        ("--sandbox land", "landlock"),
    ] {
        let complete = format!("WORDS='{words}'\n{complete}");
        let offered = bash(&["-c", &complete]);
        assert!(offered.lines().any(|word| word == expected), "{words}: {offered}");
    }
    for shell in ["zsh", "fish"] {
        let script = program(&["completions", shell]);
        assert!(script.contains("state-dir") && !script.contains("spawner"), "{shell}");
    }
}

#[test]
fn the_descriptor_is_about_the_program_as_it_is() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("dist/share/vfio-user/50-vfio-user-tpm.json");
    let descriptor: Value = serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap();
    let capabilities: Value = serde_json::from_str(&program(&["--print-capabilities"])).unwrap();
    // The members that QEMU's docs/interop/vhost-user.json has for a backend, and no others.
    let members: BTreeSet<_> = descriptor.as_object().unwrap().keys().map(String::as_str).collect();
    assert_eq!(members, BTreeSet::from(["binary", "description", "tags", "type"]));
    assert_eq!(descriptor["type"], capabilities["type"]);
    let protocol = format!("protocol={}", capabilities["protocol"].as_str().unwrap());
    assert!(descriptor["tags"].as_array().unwrap().contains(&protocol.into()), "{descriptor}");
    for version in capabilities["tpm-versions"].as_array().unwrap() {
        assert!(descriptor["description"].as_str().unwrap().contains(version.as_str().unwrap()), "{descriptor}");
    }
    // Where the units look for it as well.
    let binary = descriptor["binary"].as_str().unwrap();
    let unit = Path::new(env!("CARGO_MANIFEST_DIR")).join("dist/systemd/vfio-user-tpm@.service");
    assert!(fs::read_to_string(unit).unwrap().contains(&format!("ExecStart={binary} ")), "{binary}");
    assert!(Path::new(binary).is_absolute() && Path::new(binary).file_name() == Path::new(PROGRAM).file_name());
}
