//! The control socket and `vfio-user-tpm status`, with the built program: what is told of a TPM, to whom, and that nobody has
//! to wait for those who ask.

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::fs;
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::thread;
use std::time::Duration;

use common::crb::{Crb, Start};
use common::process::{Process, until};
use common::raw_client::RawClient;
use common::server::Server;
use common::swtpm::{Listening, programs};
use common::tis::{COMMAND_READY, STS, Tis};
use common::toy::ToyDevice;
use common::tpm_commands::{RC_SUCCESS, code_of, create_primary_rsa, get_random};
use common::{run_attended_in_thread, signal_thread};
use nix::sys::signal::{Signal, kill};
use serde_json::Value;
use tempfile::TempDir;
use vfio_user_tpm::control::{Answer, ControlSocket, MAX_REQUEST, Outcome, ask};
use vfio_user_tpm::tpm::TpmVersion;
use vfio_user_tpm::vfio_user::{Connections, Listener, Server as Loop};

const PROGRAM: &str = env!("CARGO_BIN_EXE_vfio-user-tpm");
const DEADLINE: Duration = Duration::from_secs(60);

/// A server that can be asked.
struct Bench {
    server: Server,
    folder: TempDir,
}

impl Bench {
    fn start(args: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let control = format!("--control={}", folder.path().join("control").display());
        let args: Vec<OsString> = args.iter().copied().chain([&*control]).map(OsString::from).collect();
        Self { server: Server::with_args(&args), folder }
    }

    fn control(&self) -> PathBuf {
        self.folder.path().join("control")
    }

    fn guest(&self) -> Tis {
        Tis::new(RawClient::connect(&self.server.socket()))
    }

    /// What it says of itself, and the exit status with which that is told.
    fn report(&self) -> (Value, i32) {
        let output = status(&self.control(), &["--json"]);
        let report = serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"));
        (report, output.status.code().unwrap())
    }

    /// As [`report`](Self::report), as soon as the TPM is in this condition.
    fn report_once(&self, condition: &str) -> (Value, i32) {
        let told =
            until(DEADLINE, || Some(self.report()).filter(|(report, _)| report["tpm"]["condition"] == condition));
        told.unwrap_or_else(|| panic!("never {condition}: {:?}", self.report()))
    }
}

fn status(control: &Path, args: &[&str]) -> Output {
    Command::new(PROGRAM).arg("status").arg("--control").arg(control).args(args).output().unwrap()
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

/// Says something to a control socket; what it answers until it hangs up.
fn say(control: &Path, request: &[u8]) -> String {
    let mut socket = UnixStream::connect(control).unwrap();
    socket.set_read_timeout(Some(DEADLINE)).unwrap();
    socket.write_all(request).unwrap();
    socket.shutdown(Shutdown::Write).unwrap();
    let mut answer = String::new();
    socket.read_to_string(&mut answer).unwrap();
    answer
}

#[test]
fn it_tells_what_a_guest_has_done() {
    let bench = Bench::start(&[]);
    let (before, _) = bench.report_once("up");
    assert_eq!((&before["client"], &before["device"]["bar0"]), (&Value::Null, &Value::Null));
    let mut tis = bench.guest();
    assert_eq!(code_of(&tis.run(&get_random(8))), RC_SUCCESS);
    assert_eq!(code_of(&tis.run(&get_random(8))), RC_SUCCESS);
    // No command has this code.
    assert_ne!(code_of(&tis.run(&[0x80, 0x01, 0, 0, 0, 10, 0x7f, 0xff, 0xff, 0xff])), RC_SUCCESS);
    tis.client.region_write(common::tis::CONFIG, 0x10, &0xfe80_0000_u32.to_le_bytes());
    let (report, code) = bench.report();
    assert_eq!(code, 0);
    let is = |path: &str, expected: Value| assert_eq!(report.pointer(path), Some(&expected), "{path} of {report:#}");
    is("/format", 1.into());
    is("/program/process", bench.server.pid().as_raw().into());
    is("/tpm/version", "2.0".into());
    is("/tpm/backend", "embedded".into());
    is("/tpm/ephemeral", true.into());
    is("/tpm/works", true.into());
    is("/tpm/process_starts", 1.into());
    is("/device/interface", "tis".into());
    is("/device/bar0", 0xfe80_0000_u32.into());
    is("/device/locality", 0.into());
    is("/client/process", std::process::id().into());
    is("/client/user", nix::unistd::geteuid().as_raw().into());
    is("/connections/made", 1.into());
    is("/commands/answered", 3.into());
    is("/commands/errors", 1.into());
    is("/commands/by_command/0/command", "TPM2_GetRandom".into());
    is("/commands/by_command/0/answered", 2.into());
    is("/commands/by_command/0/errors", 0.into());
    is("/commands/by_command/1/command", "other".into());
    is("/commands/by_command/1/errors", 1.into());
    let classes = report["commands"]["by_error"].as_array().unwrap();
    assert!(classes.iter().any(|class| class["class"] == "command" && class["errors"] == 1), "{classes:?}");
    let buckets = report["commands"]["latency"]["buckets"].as_array().unwrap();
    let counted: u64 = buckets.iter().map(|bucket| bucket["commands"].as_u64().unwrap()).sum();
    assert_eq!(counted + report["commands"]["latency"]["above"].as_u64().unwrap(), 3);
    assert!(report["accesses"]["reads"].as_u64().unwrap() > 6 && report["accesses"]["writes"].as_u64().unwrap() > 3);

    // A client that comes meanwhile is refused; one that has left is none.
    assert_eq!(UnixStream::connect(bench.server.socket()).unwrap().read(&mut [0]).unwrap(), 0);
    drop(tis);
    let left = until(DEADLINE, || Some(bench.report().0).filter(|report| report["client"].is_null())).unwrap();
    assert_eq!(left["connections"], serde_json::json!({ "made": 1, "refused": 1 }));
}

#[test]
fn a_person_and_a_shell_can_read_it() {
    let bench = Bench::start(&[]);
    bench.report_once("up");
    let person = status(&bench.control(), &[]);
    assert!(person.status.success() && text(&person.stdout).contains("TPM 2.0      up: embedded, ephemeral"));
    let quiet = status(&bench.control(), &["--quiet"]);
    assert!(quiet.status.success() && quiet.stdout.is_empty() && quiet.stderr.is_empty());
}

#[test]
fn failure_mode_is_told_until_a_reset_has_brought_a_new_tpm() {
    let bench = Bench::start(&[]);
    let mut tis = bench.guest();
    assert_eq!(code_of(&tis.run(&get_random(8))), RC_SUCCESS);
    bench.server.kill_engine();
    let (report, code) = bench.report_once("failed");
    assert_eq!((code, &report["tpm"]["works"], &report["tpm"]["failures"]), (1, &false.into(), &1.into()));
    assert!(report["tpm"]["failure"].as_str().unwrap().contains("gone"), "{report:#}");
    assert_ne!(code_of(&tis.run(&get_random(8))), RC_SUCCESS);
    for args in [&[][..], &["--quiet"], &["--prometheus"]] {
        assert_eq!(status(&bench.control(), args).status.code(), Some(1), "{args:?}");
    }
    tis.reset();
    let (report, code) = bench.report_once("up");
    assert_eq!((code, &report["tpm"]["failure"]), (0, &Value::Null));
    assert_eq!((&report["tpm"]["starts"], &report["tpm"]["process_starts"]), (&2.into(), &2.into()));
    assert_eq!(report["commands"]["by_error"][0], serde_json::json!({ "class": "failure", "errors": 1 }));
}

#[test]
fn what_ends_a_command_is_told() {
    let bench = Bench::start(&[]);
    let mut tis = bench.guest();
    assert_eq!(code_of(&tis.run(&get_random(8))), RC_SUCCESS);
    let mut has_told = |member: &str, end: fn(&mut Tis)| {
        // A key may be found before it is too late.
        let told = until(DEADLINE, || {
            tis.reset();
            tis.begin(&create_primary_rsa(2048, 1));
            end(&mut tis);
            (bench.report().0["commands"][member] != 0).then_some(())
        });
        assert!(told.is_some(), "{member}: {:#}", bench.report().0);
    };
    has_told("cancelled", |tis| tis.write32(STS, COMMAND_READY));
    has_told("abandoned", Tis::reset);
    assert_ne!(bench.report().0["device"]["resets"], 0);
}

#[test]
fn a_crb_counts_what_is_held_back() {
    let bench = Bench::start(&[Start::Register.interface(), "--completion-hold=5000"]);
    let mut crb = Crb::mapped(RawClient::connect(&bench.server.socket()), Start::Register);
    assert_eq!(code_of(&crb.run(&get_random(8))), RC_SUCCESS);
    let (report, _) = bench.report();
    assert_eq!(report["device"]["interface"], "crb");
    // A command may have ended before it is asked for.
    let held = until(DEADLINE, || {
        crb.run(&create_primary_rsa(2048, 1));
        (bench.report().0["accesses"]["held_answers"] != 0).then_some(())
    });
    assert!(held.is_some());
    assert_eq!(report["commands"]["by_command"][0]["command"], "TPM2_GetRandom");
}

#[test]
fn an_swtpm_says_what_it_is() {
    let folder = tempfile::tempdir().unwrap();
    let swtpm = Listening::start(&programs()[0], TpmVersion::V1_2, folder.path(), &[]);
    let control = format!("--swtpm-ctrl={}", swtpm.control().display());
    let bench = Bench::start(&["--backend=swtpm", "--tpm-version=1.2", &control]);
    let (report, _) = bench.report_once("up");
    assert_eq!((&report["tpm"]["backend"], &report["tpm"]["process_starts"]), (&"swtpm".into(), &0.into()));
    assert!(report["tpm"]["about"].as_str().unwrap().starts_with("TPM 1.2 "), "{report:#}");
}

#[test]
fn a_server_of_run_is_asked_by_what_it_runs() {
    let folder = tempfile::tempdir().unwrap();
    let control = folder.path().join("control");
    let run = Command::new(PROGRAM)
        .args(["run", "--log-level=error", "--control"])
        .arg(&control)
        .args(["--", "/bin/sh", "-c"])
        .arg(format!("exec {PROGRAM} status --quiet --control {}", control.display()))
        .output()
        .unwrap();
    assert!(run.status.success(), "{run:?}");
    assert!(!control.exists());
}

#[test]
fn the_socket_is_its_users_alone_and_goes_with_the_server() {
    let bench = Bench::start(&[]);
    let control = bench.control();
    assert_eq!(fs::metadata(&control).unwrap().permissions().mode() & 0o777, 0o600);
    let Bench { server, folder } = bench;
    assert!(server.terminate().success());
    assert!(!control.exists());
    let nobody = status(&control, &[]);
    assert_eq!(nobody.status.code(), Some(2));
    assert!(text(&nobody.stderr).contains("is the server running"), "{nobody:?}");
    drop(folder);
}

#[test]
fn who_is_no_server_is_told_from_one() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("s");
    let listener = UnixListener::bind(&path).unwrap();
    let other = thread::spawn(move || {
        for answer in ["", "\x1b[31mSSH-2.0\r\n", "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"] {
            let (mut client, _) = listener.accept().unwrap();
            let _request = client.read(&mut [0; 1024]).unwrap();
            client.write_all(answer.as_bytes()).unwrap();
        }
    });
    for expected in ["only for the server's user", "no control socket", "no report"] {
        let output = status(&path, &[]);
        let error = text(&output.stderr);
        assert!(output.status.code() == Some(2) && error.contains(expected), "{output:?}");
        assert!(error.chars().all(|character| character == '\n' || !character.is_control()), "{error:?}");
    }
    other.join().unwrap();
}

#[test]
fn anybody_who_speaks_http_can_ask() {
    let bench = Bench::start(&[]);
    bench.report_once("up");
    let control = bench.control();
    for (request, begins, ends) in [
        ("GET /health HTTP/1.1\r\nHost: tpm\r\n\r\n", "HTTP/1.1 200 OK\r\n", "\r\n\r\nup\n"),
        ("GET /health?verbose=1 HTTP/1.0\r\n\r\n", "HTTP/1.1 200 OK\r\n", "\r\n\r\nup\n"),
        ("GET /status HTTP/1.1\r\n\r\nGET /status", "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n", "}\n"),
        ("GET / HTTP/1.1\r\n\r\n", "HTTP/1.1 404 ", "\n"),
        ("PUT /health HTTP/1.1\r\n\r\n", "HTTP/1.1 405 ", "\n"),
        ("hello\r\n\r\n", "HTTP/1.1 400 ", "\n"),
        ("GET /health", "", ""),
        ("", "", ""),
    ] {
        let answer = say(&control, request.as_bytes());
        assert!(answer.starts_with(begins) && answer.ends_with(ends), "{request:?} is answered by {answer:?}");
        assert_eq!(answer.is_empty(), begins.is_empty(), "{request:?} is answered by {answer:?}");
    }
    let long = format!("GET /{} HTTP/1.1\r\n\r\n", "a".repeat(MAX_REQUEST));
    // Those bytes of it that are never read may end the connection before the answer is.
    let mut socket = UnixStream::connect(&control).unwrap();
    socket.write_all(&long.as_bytes()[..MAX_REQUEST]).unwrap();
    let mut answer = String::new();
    socket.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 431 "), "{answer}");
}

#[test]
fn metrics_are_in_prometheus_form_and_say_the_same() {
    let bench = Bench::start(&[]);
    let mut tis = bench.guest();
    for _ in 0..3 {
        assert_eq!(code_of(&tis.run(&get_random(8))), RC_SUCCESS);
    }
    let output = status(&bench.control(), &["--prometheus"]);
    assert!(output.status.success());
    let samples = parse_metrics(text(&output.stdout));
    let value = |name: &str| samples.get(name).copied().unwrap_or_else(|| panic!("no {name} in {samples:#?}"));
    assert_eq!(value("vfio_user_tpm_works").to_string(), "1");
    assert_eq!(value(r#"vfio_user_tpm_commands_total{command="TPM2_GetRandom"}"#).to_string(), "3");
    assert_eq!(value("vfio_user_tpm_command_duration_seconds_count").to_string(), "3");
    assert_eq!(value(r#"vfio_user_tpm_command_duration_seconds_bucket{le="+Inf"}"#).to_string(), "3");
    assert_eq!(value(r#"vfio_user_tpm_connections_total{outcome="served"}"#).to_string(), "1");
}

/// Reads Prometheus' text format as strictly as its description has it: each sample belongs to the family announced before
/// it, none comes twice, and a histogram's buckets grow.
fn parse_metrics(text: &str) -> BTreeMap<&str, f64> {
    let (mut samples, mut families) = (BTreeMap::new(), BTreeSet::new());
    let (mut family, mut kind, mut bucket) = ("", "", 0.0);
    for line in text.lines() {
        if let Some(help) = line.strip_prefix("# HELP ") {
            family = help.split_once(' ').unwrap().0;
            assert!(families.insert(family), "{family} comes twice");
            bucket = 0.0;
            continue;
        }
        if let Some(announced) = line.strip_prefix("# TYPE ") {
            let (name, of) = announced.split_once(' ').unwrap();
            assert!(name == family && ["counter", "gauge", "histogram"].contains(&of), "{line}");
            kind = of;
            continue;
        }
        let (sample, value) = line.rsplit_once(' ').unwrap();
        let value: f64 = value.parse().unwrap_or_else(|_| panic!("no number: {line}"));
        let (name, labels) = sample.split_once('{').unwrap_or((sample, "}"));
        let suffix = name.strip_prefix(family).unwrap_or_else(|| panic!("{line} under {family}"));
        let suffixes = if kind == "histogram" { &["_sum", "_count", "_bucket"][..] } else { &[""] };
        assert!(suffixes.contains(&suffix), "{line} in a {kind}");
        assert!(name.bytes().all(|byte| byte == b'_' || byte.is_ascii_lowercase()), "{line}");
        for label in labels.strip_suffix('}').unwrap().split(',').filter(|label| !label.is_empty()) {
            let (label, quoted) = label.split_once('=').unwrap();
            assert!(label.bytes().all(|byte| byte == b'_' || byte.is_ascii_lowercase()), "{line}");
            assert!(quoted.len() >= 2 && quoted.starts_with('"') && quoted.ends_with('"'), "{line}");
        }
        if suffix == "_bucket" {
            assert!(value >= bucket, "{line} is less than the bucket before");
            bucket = value;
        }
        assert!(value >= 0.0 && samples.insert(sample, value).is_none(), "{line}");
    }
    assert!(text.ends_with('\n') && !samples.is_empty());
    samples
}

#[test]
fn it_is_watched_until_a_signal_or_the_end_of_the_server() {
    let bench = Bench::start(&[]);
    let watch = |name: &str| {
        let control = bench.control();
        let args = ["status", "--json", "--watch=0.1", "--control", control.to_str().unwrap()];
        let mut watch = Process::start(Path::new(PROGRAM), args, bench.folder.path().join(name));
        let told = until(DEADLINE, || {
            assert_eq!(watch.exit_status(), None, "{}", watch.output());
            (watch.output().lines().count() >= 3).then_some(())
        });
        told.expect("it tells again and again");
        watch
    };
    let mut interrupted = watch("interrupted");
    interrupted.signal(Signal::SIGTERM);
    assert_eq!(interrupted.wait(DEADLINE).unwrap().signal(), Some(Signal::SIGTERM as i32));
    for line in interrupted.output().lines().take(3) {
        assert_eq!(serde_json::from_str::<Value>(line).unwrap()["format"], 1);
    }
    let mut left = watch("left");
    kill(bench.server.pid(), Signal::SIGTERM).unwrap();
    assert_eq!(left.wait(DEADLINE).unwrap().code(), Some(2));
}

/// A loop with a toy device, on whose control socket `/` gives much more than a socket takes, and anything else nothing.
fn toy(folder: &TempDir, limit: Duration) -> thread::JoinHandle<Result<(), vfio_user_tpm::vfio_user::ServerError>> {
    toy_on(folder, limit, Listener::bind(&folder.path().join("control")).unwrap())
}

fn toy_on(
    folder: &TempDir,
    limit: Duration,
    control: Listener,
) -> thread::JoinHandle<Result<(), vfio_user_tpm::vfio_user::ServerError>> {
    let server = Loop::new(Listener::bind(&folder.path().join("socket")).unwrap()).unwrap();
    let visitors = server.visitors(control).unwrap();
    let registry = server.registry().unwrap();
    let (device, _control) = ToyDevice::new(&registry);
    run_attended_in_thread(server, move || {
        let answer = |path: &str, _: &ToyDevice, _: &Connections| {
            (path == "/").then(|| Answer::line(Outcome::Ok, &"much ".repeat(1 << 20)))
        };
        let mut attendant = ControlSocket::new(visitors, registry, Box::new(answer)).unwrap();
        attendant.limit(limit);
        (device, attendant)
    })
}

#[test]
fn nobody_waits_for_those_who_say_nothing_or_do_not_read() {
    let folder = tempfile::tempdir().unwrap();
    let server = toy(&folder, Duration::from_secs(3600));
    let control = folder.path().join("control");
    let mut client = RawClient::connect(&folder.path().join("socket"));
    client.negotiate();
    let mut slow: Vec<_> = (0..4).map(|_| UnixStream::connect(&control).unwrap()).collect();
    for visitor in &mut slow[..2] {
        visitor.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
        // Some of the answer is there, and more than the socket takes is not.
        visitor.read_exact(&mut [0; 100]).unwrap();
    }
    slow[2].write_all(b"GET / HT").unwrap();
    for _ in 0..100 {
        client.region_read(common::toy::RAM, 0, 4);
    }
    // All places are taken: the next one waits until one is free, and is answered then.
    let next = thread::spawn({
        let control = control.clone();
        move || ask(&control, "/none").unwrap().status
    });
    drop(slow.pop());
    assert_eq!(next.join().unwrap(), 404);
    client.region_read(common::toy::RAM, 0, 4);
    // One that takes its time gets all of it.
    let mut answer = Vec::new();
    slow[0].read_to_end(&mut answer).unwrap();
    assert!(answer.len() > 5 << 20 && answer.ends_with(b"much \n"), "{} bytes", answer.len());
    signal_thread(&server, Signal::SIGTERM);
    server.join().unwrap().unwrap();
}

#[test]
fn those_whose_time_is_over_make_room() {
    let folder = tempfile::tempdir().unwrap();
    let control = folder.path().join("control");
    let listener = Listener::bind(&control).unwrap();
    // All have come, and said what they say, before anybody's time begins.
    let mut slow: Vec<_> = (0..12).map(|_| UnixStream::connect(&control).unwrap()).collect();
    slow[0].write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
    slow[1].write_all(b"GET /").unwrap();
    let mut last = UnixStream::connect(&control).unwrap();
    last.write_all(b"GET /none HTTP/1.1\r\n\r\n").unwrap();
    let server = toy_on(&folder, Duration::from_millis(10), listener);
    let mut answer = String::new();
    last.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 404 "), "{answer}");
    let mut told = String::new();
    slow[1].read_to_string(&mut told).unwrap();
    assert!(told.starts_with("HTTP/1.1 408 "), "{told}");
    for visitor in &mut slow[2..] {
        assert_eq!(visitor.read(&mut [0]).unwrap(), 0);
    }
    signal_thread(&server, Signal::SIGTERM);
    server.join().unwrap().unwrap();
}
