//! The program as a service: its configuration file, its log, and what a service manager hands it.

mod common;

use std::ffi::OsString;
use std::fs;
use std::path::Path;
use std::process::Command;

use common::raw_client::RawClient;
use common::server::Server;
use common::tis::Tis;
use common::tpm_commands::*;

const PROGRAM: &str = env!("CARGO_BIN_EXE_vfio-user-tpm");

/// A guest is served.
fn serve(socket: &Path) {
    let mut tis = Tis::new(RawClient::connect(socket));
    assert_eq!(code_of(&tis.run(&get_random(8))), RC_SUCCESS);
}

fn flag(name: &str, value: &Path) -> OsString {
    format!("--{name}={}", value.display()).into()
}

#[test]
fn a_file_says_what_is_served_and_a_command_line_what_else() {
    let folder = tempfile::tempdir().unwrap();
    let (file, state) = (folder.path().join("vm1.toml"), folder.path().join("state"));
    let text = format!("state-dir = '{}'\nsocket-path = '/nonexistent/socket'\nlog-level = 'debug'\n", state.display());
    fs::write(&file, text).unwrap();
    let server = Server::with_args(&[flag("config", &file)]);
    serve(&server.socket());
    assert!(server.log().contains(&format!("its state in {}", state.display())), "{}", server.log());
    assert!(server.log().contains("DEBUG"), "{}", server.log());
    assert!(server.terminate().success());
}

#[test]
fn what_is_wrong_with_a_file_is_a_wrong_command_line() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("vm1.toml");
    fs::write(&file, "# a TPM\nstate_dir = '/s'\n").unwrap();
    let (status, said) = Server::fail(&[flag("config", &file)]);
    assert_eq!(status.code(), Some(2));
    let expected = format!("the configuration file {}: line 2: state_dir: no flag of the server", file.display());
    assert!(said.contains(&expected), "{said}");
}

#[test]
fn run_hands_the_file_on_to_its_server() {
    let folder = tempfile::tempdir().unwrap();
    let (file, state) = (folder.path().join("vm1.toml"), folder.path().join("state"));
    fs::write(&file, format!("state-dir = '{}'\nmachine = 'pc'\ninterface = 'tis'\n", state.display())).unwrap();
    let output = Command::new(PROGRAM)
        .args([&"run".into(), &flag("config", &file)])
        .args(["--", "sh", "-c", "echo \"$@\"", "qemu"])
        .output()
        .unwrap();
    let (printed, log) = (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap());
    assert!(output.status.success() && printed.starts_with("-machine pc "), "{printed}{log}");
    assert!(state.join("tpm2.0-permanent.state").exists(), "{log}");
}
