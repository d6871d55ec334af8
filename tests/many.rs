//! Many servers on one host: how long they take to start, what they need of memory, and that who is idle costs nothing.
//!
//! The table that this prints (`--nocapture`) is where the figures in docs/operations.md are from.
#![cfg(feature = "full-tests")]

mod common;

use std::fmt;
use std::fs;
use std::iter::Sum;
use std::ops::Add;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use common::crb::{Crb, Start};
use common::process::{Process, until};
use common::raw_client::RawClient;
use common::server::children;
use common::swtpm::{Client, Listening, programs};
use common::tpm_commands::{RC_SUCCESS, code_of, get_random, startup_clear};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::Signal;
use nix::unistd::Pid;
use tempfile::TempDir;
use vfio_user_tpm::backend::swtpm::control::Request;
use vfio_user_tpm::tpm::TpmVersion;

const PROGRAM: &str = env!("CARGO_BIN_EXE_vfio-user-tpm");
const COUNT: usize = 200;
const PATIENCE: Duration = Duration::from_secs(120);

/// How long the idle servers are watched.
const IDLE: Duration = Duration::from_secs(5);

/// A server with its state and its socket in a folder of its own, which says when its TPM is up.
struct Server {
    process: Process,
    dir: TempDir,
    ready: UnixDatagram,
    started: Instant,
}

impl Server {
    fn start() -> Self {
        let dir = tempfile::Builder::new().prefix("tpm-").tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        let ready = UnixDatagram::bind(at("ready")).unwrap();
        ready.set_read_timeout(Some(PATIENCE)).unwrap();
        let args = [
            format!("NOTIFY_SOCKET={}", at("ready").display()),
            PROGRAM.to_owned(),
            format!("--socket-path={}", at("socket").display()),
            format!("--state-dir={}", at("state").display()),
        ];
        let started = Instant::now();
        let process = Process::start(Path::new("env"), args, at("log"));
        Self { process, dir, ready, started }
    }

    /// Waits until its TPM is up; the time since its start.
    fn wait_until_ready(&self) -> Duration {
        let mut message = [0; 256];
        let length = self.ready.recv(&mut message).expect("the server says that its TPM is up");
        assert!(message[..length].starts_with(b"READY=1"));
        self.started.elapsed()
    }

    fn socket(&self) -> PathBuf {
        self.dir.path().join("socket")
    }

    /// Server, spawner and worker.
    fn processes(&self) -> [Pid; 3] {
        let only_child = |of: Pid| {
            let children = children(of);
            assert_eq!(children.len(), 1, "children of {of}: {children:?}");
            children[0]
        };
        let spawner = only_child(self.process.pid());
        [self.process.pid(), spawner, only_child(spawner)]
    }
}

/// Memory of a process in KiB: with its part of what it shares, and its own alone.
#[derive(Clone, Copy, Default)]
struct Memory {
    pss: u64,
    anonymous: u64,
}

impl Memory {
    /// `None` if the kernel does not let us look: a process that leaves no core dump shows its memory to root alone.
    fn of(process: Pid) -> Option<Self> {
        let file = fs::read_to_string(format!("/proc/{process}/smaps_rollup")).ok()?;
        let field = |name: &str| {
            let value = file.lines().find_map(|line| line.strip_prefix(name))?;
            value.trim().strip_suffix(" kB")?.parse().ok()
        };
        Some(Self { pss: field("Pss:")?, anonymous: field("Pss_Anon:")? })
    }

    fn of_all(processes: impl IntoIterator<Item = Pid>) -> Option<Self> {
        processes.into_iter().map(Self::of).sum()
    }
}

impl Add for Memory {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self { pss: self.pss + other.pss, anonymous: self.anonymous + other.anonymous }
    }
}

impl Sum for Memory {
    fn sum<I: Iterator<Item = Self>>(values: I) -> Self {
        values.fold(Self::default(), Self::add)
    }
}

impl fmt::Display for Memory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let each = |kib: u64| kib / COUNT as u64;
        write!(
            f,
            "{:>6} KiB each, {:>6} of them anonymous; {:>4} MiB in all",
            each(self.pss),
            each(self.anonymous),
            self.pss / 1024
        )
    }
}

/// What a process has done so far. One that sleeps does nothing of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Activity {
    voluntary_switches: u64,
    other_switches: u64,
    /// In clock ticks.
    cpu: u64,
}

impl Activity {
    /// Of all threads of a process.
    fn of(process: Pid) -> Self {
        let tasks = fs::read_dir(format!("/proc/{process}/task")).expect("the process is there");
        let mut activity = Self::default();
        for task in tasks.map(|task| task.unwrap().path()) {
            let status = fs::read_to_string(task.join("status")).unwrap();
            let field = |name: &str| -> u64 {
                status.lines().find_map(|line| line.strip_prefix(name)).unwrap().trim().parse().unwrap()
            };
            activity.voluntary_switches += field("voluntary_ctxt_switches:");
            activity.other_switches += field("nonvoluntary_ctxt_switches:");
            let stat = fs::read_to_string(task.join("stat")).unwrap();
            // After the name, which may hold anything: utime and stime are the fields 14 and 15, the state is the third.
            let fields: Vec<_> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
            activity.cpu += fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap();
        }
        activity
    }
}

/// Threads of a process.
fn threads(process: Pid) -> usize {
    fs::read_dir(format!("/proc/{process}/task")).unwrap().count()
}

fn own_descriptors() -> usize {
    fs::read_dir("/proc/self/fd").unwrap().count()
}

fn median(times: &[Duration]) -> Duration {
    let mut sorted = times.to_vec();
    sorted.sort();
    sorted[sorted.len() / 2]
}

fn print_memory(name: &str, memory: Option<Memory>) {
    match memory {
        Some(memory) => println!("{name:<24} {memory}"),
        None => println!("{name:<24} not shown to others than root"),
    }
}

#[test]
fn two_hundred_servers_start_answer_cost_nothing_while_idle_and_leave_nothing() {
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, most.min(65536), most).unwrap();
    let descriptors = own_descriptors();

    // In waves, so that a start is as quick as it can be on this machine.
    let wave = thread::available_parallelism().map_or(1, Into::into);
    let began = Instant::now();
    let (mut servers, mut start_times) = (Vec::new(), Vec::new());
    while servers.len() < COUNT {
        let started: Vec<_> = (0..wave.min(COUNT - servers.len())).map(|_| Server::start()).collect();
        thread::scope(|scope| {
            let waits: Vec<_> = started.iter().map(|server| scope.spawn(|| server.wait_until_ready())).collect();
            start_times.extend(waits.into_iter().map(|wait| wait.join().unwrap()));
        });
        servers.extend(started);
    }
    let all_started = began.elapsed();

    // All connections stay open.
    let began = Instant::now();
    let mut guests: Vec<_> =
        servers.iter().map(|server| Crb::mapped(RawClient::connect(&server.socket()), Start::Register)).collect();
    for guest in &mut guests {
        assert_eq!(code_of(&guest.run(&get_random(16))), RC_SUCCESS);
    }
    let all_answered = began.elapsed();

    let processes: Vec<_> = servers.iter().map(Server::processes).collect();
    let of_kind = |kind: usize| processes.iter().map(move |all| all[kind]);
    let every = || processes.iter().flatten().copied();
    let memory = Memory::of_all(every());
    let by_kind = [0, 1, 2].map(|kind| Memory::of_all(of_kind(kind)));

    // What has just worked comes to rest.
    let activity = || every().map(Activity::of).collect::<Vec<_>>();
    let at_rest = until(PATIENCE, || {
        let before = activity();
        thread::sleep(Duration::from_millis(500));
        (activity() == before).then_some(before)
    });
    let before = at_rest.expect("the servers come to rest");
    thread::sleep(IDLE);
    let after = activity();
    let ticks: u64 = after.iter().zip(&before).map(|(after, before)| after.cpu - before.cpu).sum();
    let switches = |all: &[Activity]| all.iter().map(|one| one.voluntary_switches + one.other_switches).sum::<u64>();

    println!("{COUNT} servers, {} threads in {} processes", every().map(threads).sum::<usize>(), every().count());
    println!(
        "start, {wave} at a time      median {:?}, longest {:?}; all in {all_started:?}",
        median(&start_times),
        start_times.iter().max().unwrap()
    );
    println!("connect, one command     all in {all_answered:?}");
    print_memory("memory", memory);
    for (name, memory) in ["  server", "  spawner", "  worker"].into_iter().zip(by_kind) {
        print_memory(name, memory);
    }
    println!(
        "idle for {IDLE:?}            {} context switches, {ticks} clock ticks of CPU",
        switches(&after) - switches(&before)
    );
    assert_eq!(before, after, "an idle server does nothing");

    for server in &mut servers {
        server.process.signal(Signal::SIGTERM);
    }
    let sockets: Vec<_> = servers.iter().map(Server::socket).collect();
    for server in &mut servers {
        let status = server.process.wait(PATIENCE).expect("a server ends");
        assert!(status.success(), "{status}: {}", server.process.output());
        assert!(!server.socket().exists(), "the socket is left");
    }
    // Spawner and worker end when their server has.
    let left = || every().filter(|pid| Path::new("/proc").join(pid.to_string()).exists()).collect::<Vec<_>>();
    assert!(until(PATIENCE, || left().is_empty().then_some(())).is_some(), "processes are left: {:?}", left());
    let bound = fs::read_to_string("/proc/net/unix").unwrap();
    assert!(sockets.iter().all(|socket| !bound.contains(socket.to_str().unwrap())));
    drop((guests, servers));
    assert_eq!(own_descriptors(), descriptors);

    for program in programs() {
        print_memory(&format!("{COUNT} of {}", program.display()), swtpms(program));
    }
}

/// Memory of as many swtpm, each with a TPM that has run a command.
fn swtpms(program: &Path) -> Option<Memory> {
    let swtpms: Vec<_> = (0..COUNT)
        .map(|_| {
            let folder = tempfile::tempdir().unwrap();
            let swtpm = Listening::start(program, TpmVersion::V2_0, folder.path(), &[]);
            let mut client = Client::connect(&swtpm.control());
            client.set_data_channel();
            client.done(Request::Init { delete_volatile: false });
            for command in [startup_clear(), get_random(16)] {
                assert_eq!(code_of(&client.run(&command)), RC_SUCCESS);
            }
            (swtpm, client, folder)
        })
        .collect();
    Memory::of_all(swtpms.iter().map(|(swtpm, ..)| swtpm.process.pid()))
}
