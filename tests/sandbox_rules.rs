//! No rule of the confinement is unused: the program as it is built is watched by strace(1) while it does all that it can,
//! and what it does is compared with its lists of system calls.
#![cfg(feature = "full-tests")]

mod common;

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use common::crb::{Crb, Start};
use common::process::until;
use common::raw_client::{RawClient, SET_IRQS, irq_set};
use common::server::Server;
use common::swtpm::{Listening, programs};
use common::tis::{COMMAND_READY, STS, Tis};
use common::tpm_commands::*;
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, getuid};
use tempfile::TempDir;
use vfio_user_tpm::control::ask;
use vfio_user_tpm::sandbox::{Call, SERVER_CALLS, SERVER_CALLS_TO_ATTACH, WORKER_CALLS};
use vfio_user_tpm::tpm::TpmVersion;

/// How strace shows the arguments of a server, and of a worker.
const SERVER: &str = "\"--socket-path=";
const WORKER: &str = "[\"vfio-user-tpm\", \"worker\"";
const DEADLINE: Duration = Duration::from_secs(60);
const NV: u32 = 0x0150_0001;
/// `VFIO_PCI_ERR_IRQ_INDEX`, which every PCI device has; an eventfd (`DATA_EVENTFD`, `ACTION_TRIGGER`), and a call
/// (`DATA_NONE`, `ACTION_TRIGGER`).
const ERR_IRQ: u32 = 3;
const ASSIGN: u32 = 0x24;
const CALL: u32 = 0x21;

/// A server whose system calls, and those of all that it starts, are written down.
struct Watched {
    server: Option<Server>,
    trace: TempDir,
}

impl Watched {
    fn start(args: &[OsString]) -> Self {
        let trace = tempfile::tempdir().unwrap();
        let prefix = trace.path().join("t");
        let strace: Vec<OsString> = ["strace", "-ff", "-ttt", "-qq", "-s", "32", "-o"]
            .map(OsString::from)
            .into_iter()
            .chain([prefix.into()])
            .collect();
        Self { server: Some(Server::through(&strace, args)), trace }
    }

    fn guest(&self) -> Tis {
        Tis::new(RawClient::connect(&self.server.as_ref().unwrap().socket()))
    }

    /// Ends it in order; returns whether all was well.
    fn end(&mut self) -> bool {
        kill(self.pids(SERVER)[0], Signal::SIGTERM).unwrap();
        self.server.take().unwrap().wait().success()
    }

    fn traces(&self) -> Vec<PathBuf> {
        fs::read_dir(self.trace.path()).unwrap().map(|file| file.unwrap().path()).collect()
    }

    /// The processes that were started with these arguments.
    fn pids(&self, arguments: &str) -> Vec<Pid> {
        let is_one = |path: &Path| {
            let text = fs::read_to_string(path).unwrap();
            text.lines().any(|line| line.contains(" execve(") && line.contains(arguments))
        };
        self.traces().iter().filter(|path| is_one(path)).map(|path| pid_of(path)).collect()
    }

    /// The calls of a process and its threads since it was confined.
    fn calls(&self, pid: Pid) -> BTreeSet<String> {
        let main = fs::read_to_string(self.trace.path().join(format!("t.{pid}"))).unwrap();
        let confined = main.lines().rfind(|line| line.contains(" seccomp(SECCOMP_SET_MODE_FILTER")).map(time_of);
        let confined = confined.unwrap_or_else(|| panic!("{pid} is not confined:\n{main}"));
        let threads = main.lines().filter(|line| line.contains("CLONE_THREAD"));
        let threads = threads.filter_map(|line| line.rsplit("= ").next()?.trim().parse().ok()).map(Pid::from_raw);
        let files = [pid].into_iter().chain(threads).map(|thread| self.trace.path().join(format!("t.{thread}")));
        let texts: Vec<_> = files.map(|path| fs::read_to_string(path).unwrap()).collect();
        let lines = texts.iter().flat_map(|text| text.lines()).filter(|line| time_of(line) > confined);
        lines.filter_map(name_of).collect()
    }
}

impl Drop for Watched {
    /// strace's death would not be theirs.
    fn drop(&mut self) {
        if self.server.is_some() {
            for pid in self.pids(SERVER) {
                let _ = kill(pid, Signal::SIGKILL);
            }
        }
    }
}

fn pid_of(trace: &Path) -> Pid {
    Pid::from_raw(trace.extension().unwrap().to_str().unwrap().parse().unwrap())
}

fn time_of(line: &str) -> f64 {
    line.split(' ').next().unwrap().parse().unwrap_or_else(|_| panic!("no time: {line}"))
}

/// The call of a line; none in one about a signal or the end.
fn name_of(line: &str) -> Option<String> {
    let (name, _) = line.split_once(' ')?.1.split_once('(')?;
    let is_name = name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_');
    is_name.then(|| name.to_owned())
}

fn ok(tis: &mut Tis, command: &[u8]) {
    assert_eq!(code_of(&tis.run(command)), RC_SUCCESS);
}

/// An eventfd for an interrupt, and the interrupt.
fn interrupt(tis: &mut Tis) {
    let eventfd = EventFd::from_value_and_flags(0, EfdFlags::EFD_NONBLOCK).unwrap();
    tis.client.request_with(SET_IRQS, &irq_set(ASSIGN, ERR_IRQ, 0, 1, &[]), &[eventfd.as_raw_fd()]).ok();
    tis.client.request(SET_IRQS, &irq_set(CALL, ERR_IRQ, 0, 1, &[])).ok();
    assert_eq!(eventfd.read(), Ok(1));
}

/// All that concerns the worker: keys and NV, a command that is cancelled, resets, an end that is not in order.
fn with_state() -> (BTreeSet<String>, BTreeSet<String>) {
    let folder = tempfile::tempdir().unwrap();
    let argument =
        |option: &str, name: &str| -> OsString { format!("{option}={}", folder.path().join(name).display()).into() };
    let args = [
        argument("--state-dir", "state"),
        argument("--rollback-anchor", "anchor"),
        argument("--trace-pcap", "trace"),
        format!("--allow-uid={}", getuid()).into(),
        argument("--control", "control"),
        "--log-level=debug".into(),
    ];
    let mut watched = Watched::start(&args);
    let mut tis = watched.guest();
    interrupt(&mut tis);
    ok(&mut tis, &nv_define(NV, 4));
    for resource in ["/status", "/metrics", "/health"] {
        assert_eq!(ask(&folder.path().join("control"), resource).unwrap().status, 200);
    }
    ok(&mut tis, &nv_write(NV, b"kept"));
    ok(&mut tis, &create_primary_ecc());
    tis.begin(&create_primary_rsa(2048, 1));
    tis.write32(STS, COMMAND_READY);
    tis.reset();
    ok(&mut tis, &get_random(8));
    let worker = watched.pids(WORKER)[0];
    kill(worker, Signal::SIGKILL).unwrap();
    until(DEADLINE, || (code_of(&tis.run(&get_random(8))) != RC_SUCCESS).then_some(())).expect("the worker is gone");
    tis.reset();
    ok(&mut tis, &nv_read(NV, 4));
    drop(tis);
    // libtpms has its own words for a state that is none.
    let mut tis = watched.guest();
    let state = folder.path().join("state").join("tpm2.0-permanent.state");
    fs::write(state, "damaged").unwrap();
    tis.reset();
    assert_ne!(code_of(&tis.run(&get_random(8))), RC_SUCCESS);
    assert!(!watched.end(), "what has failed is not ended well");
    let of_workers = watched.pids(WORKER).into_iter().flat_map(|pid| watched.calls(pid));
    (watched.calls(watched.pids(SERVER)[0]), of_workers.collect())
}

/// The memory of a CRB, for one client and then for the next.
fn with_shared_memory() -> BTreeSet<String> {
    let mut watched = Watched::start(&[Start::Register.interface().into()]);
    for _ in 0..2 {
        let client = RawClient::connect(&watched.server.as_ref().unwrap().socket());
        let mut crb = Crb::mapped(client, Start::Register);
        assert_eq!(code_of(&crb.run(&get_random(8))), RC_SUCCESS);
    }
    assert!(watched.end());
    watched.calls(watched.pids(SERVER)[0])
}

fn attached() -> BTreeSet<String> {
    let folder = tempfile::tempdir().unwrap();
    let mut swtpm = Listening::start(&programs()[0], TpmVersion::V2_0, folder.path(), &[]);
    let control = format!("--swtpm-ctrl={}", swtpm.control().display());
    let mut watched = Watched::start(&["--backend=swtpm".into(), control.into()]);
    let mut tis = watched.guest();
    ok(&mut tis, &get_random(8));
    // What comes in its place is connected to at the next reset.
    swtpm.process.signal(Signal::SIGKILL);
    swtpm.start_again();
    assert_ne!(code_of(&tis.run(&get_random(8))), RC_SUCCESS);
    tis.reset();
    ok(&mut tis, &get_random(8));
    drop(tis);
    assert!(watched.end());
    watched.calls(watched.pids(SERVER)[0])
}

/// What no run has to show says why; everything else was made.
fn assert_used(whose: &str, list: &[Call], made: &BTreeSet<String>) {
    let unused: Vec<_> = list
        .iter()
        .filter(|call| call.unseen.is_none() && !made.contains(call.name()))
        .map(|call| (call.name(), call.why))
        .collect();
    assert!(unused.is_empty(), "rules for the {whose} that nothing uses: {unused:?}; made were {made:?}");
}

#[test]
fn no_rule_is_unused() {
    let (mut server, worker) = with_state();
    server.extend(with_shared_memory());
    let attached = attached();
    println!("the server made {server:?}\nthe worker {worker:?}\nattached, the server made {attached:?}");
    let unexpected = |list: &[Call], made: &BTreeSet<String>| {
        made.iter().filter(|name| list.iter().all(|call| call.name() != *name)).cloned().collect::<Vec<_>>()
    };
    assert_eq!(unexpected(SERVER_CALLS, &server), [""; 0]);
    assert_eq!(unexpected(WORKER_CALLS, &worker), [""; 0]);
    assert_used("server", SERVER_CALLS, &server);
    assert_used("worker", WORKER_CALLS, &worker);
    assert_used("attached server", SERVER_CALLS_TO_ATTACH, &attached);
}

#[test]
fn roots_server_that_becomes_another_users_cannot_be_dumped_after_that() {
    if !common::root::can_become_others("roots_server_that_becomes_another_users_cannot_be_dumped_after_that") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let trace = folder.path().join("trace");
    let strace = Command::new("strace")
        .args(["-qq", "-o"])
        .arg(&trace)
        .args([env!("CARGO_BIN_EXE_vfio-user-tpm"), "--socket-path=/nonexistent/s", "--user=65534:65534"])
        .output()
        .unwrap();
    assert!(!strace.status.success());
    let trace = fs::read_to_string(trace).unwrap();
    let last =
        |call: &str| trace.lines().enumerate().filter(|(_, line)| line.starts_with(call)).last().map(|(at, _)| at);
    // The kernel makes what it dumps anew with the user: what a system's administrator wants of set-user-ID programs.
    let (user, forbidden) = (last("setuid(65534)"), last("prctl(PR_SET_DUMPABLE, "));
    assert!(user.is_some() && user < forbidden, "{trace}");
}
