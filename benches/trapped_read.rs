//! What a trapped register read costs over the socket, against a bare ping-pong of messages of the same sizes between
//! two processes, against the same server without confinement, and against a server made of the `vfio_user` crate whose
//! registers are constants. All are measured in
//! turns within one run, so that a noisy machine disturbs them alike, and with both sides on one CPU and on two: waking
//! a CPU that sleeps costs more than everything else.
//!
//! `cargo bench --bench trapped_read`

#[path = "../tests/common/mod.rs"]
mod common;

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use common::raw_client::{REGION_READ, RawClient, access, message};
use common::server::Server;
use common::tis::{BAR0, STS};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;
use vfio_user::{DmaMapFlags, DmaUnmapFlags, ServerBackend, ServerRegion};

const ROUNDS: usize = 40;
const ACCESSES: u32 = 2000;
/// Bytes of a REGION_READ, and of its reply with 4 bytes of data.
const REQUEST: usize = 32;
const REPLY: usize = 36;

fn main() {
    match std::env::args().nth(1).as_deref() {
        Some("echo") => return answer_alike(),
        Some("crate") => return serve_by_crate(),
        _ => {}
    }
    let servers = [
        ("trapped read", Server::start()),
        ("without busy polling", Server::with_args(&["--busy-poll=0".into()])),
        ("nor confinement", Server::with_args(&["--busy-poll=0".into(), "--sandbox=none".into()])),
    ];
    let (bare, theirs) = UnixStream::pair().expect("socket pair");
    let mut echo = start("echo", theirs.into());
    let folder = tempfile::tempdir().expect("temporary folder");
    let socket = folder.path().join("socket");
    let mut other = start("crate", UnixListener::bind(&socket).expect("socket").into());

    let mut peers = vec![Peer { name: "bare ping-pong", pid: pid(&echo), client: RawClient::from_stream(bare) }];
    for (name, server) in &servers {
        peers.push(Peer { name, pid: server.pid(), client: negotiated(RawClient::connect(&server.socket())) });
    }
    let by_crate = negotiated(RawClient::connect(&socket));
    peers.push(Peer { name: "vfio_user crate", pid: pid(&other), client: by_crate });

    for (name, cpu) in [("one CPU", 0), ("two CPUs", 1)] {
        place(Pid::from_raw(0), 0);
        for peer in &peers {
            place(peer.pid, cpu);
        }
        let mut times = vec![Vec::new(); peers.len()];
        for _ in 0..ROUNDS {
            for (peer, times) in peers.iter_mut().zip(&mut times) {
                times.push(round(&mut peer.client.stream));
            }
        }
        let medians: Vec<f64> = times.into_iter().map(median).collect();
        println!("{name}:");
        for (peer, median) in peers.iter().zip(&medians) {
            println!("  {:22} {median:7.2} µs, {:.2} times the first", peer.name, median / medians[0]);
        }
    }
    drop(peers);
    echo.wait().expect("the echo process ends");
    other.wait().expect("the server of the crate ends");
}

/// A process that answers.
struct Peer<'a> {
    name: &'a str,
    pid: Pid,
    client: RawClient,
}

/// A client that has agreed on a version.
fn negotiated(mut client: RawClient) -> RawClient {
    client.negotiate();
    client
}

/// Starts this program again in another role.
fn start(role: &str, input: OwnedFd) -> Child {
    Command::new(std::env::current_exe().expect("own path"))
        .arg(role)
        .stdin(Stdio::from(input))
        .spawn()
        .expect("this program starts again")
}

fn pid(process: &Child) -> Pid {
    Pid::from_raw(process.id().try_into().expect("a process id"))
}

/// Puts a process on one CPU; 0 is this one.
fn place(process: Pid, cpu: usize) {
    let mut set = CpuSet::new();
    set.set(cpu).expect("a CPU's number");
    if let Err(errno) = sched_setaffinity(process, &set) {
        println!("there is no CPU {cpu} to be had: {errno}");
    }
}

/// Time of one access, on average over a round.
fn round(stream: &mut UnixStream) -> Duration {
    let request = message(1, REGION_READ, 0, &access(BAR0, STS, 4, &[]));
    assert_eq!(request.len(), REQUEST);
    let mut reply = [0; REPLY];
    let start = Instant::now();
    for _ in 0..ACCESSES {
        stream.write_all(&request).expect("the server reads");
        stream.read_exact(&mut reply).expect("the server answers");
    }
    start.elapsed() / ACCESSES
}

/// In microseconds.
fn median(mut times: Vec<Duration>) -> f64 {
    times.sort_unstable();
    times[times.len() / 2].as_secs_f64() * 1e6
}

fn standard_input() -> OwnedFd {
    std::io::stdin().as_fd().try_clone_to_owned().expect("a descriptor")
}

/// The other side of the bare ping-pong, on standard input.
fn answer_alike() {
    let mut stream = UnixStream::from(standard_input());
    let mut request = [0; REQUEST];
    while stream.read_exact(&mut request).is_ok() {
        stream.write_all(&[0; REPLY]).expect("the client reads");
    }
}

/// A server made of the crate, for one client of the listening socket on standard input.
fn serve_by_crate() {
    let region = ServerRegion {
        region_info: vfio_bindings::bindings::vfio::vfio_region_info { size: 0x5000, ..Default::default() },
        sparse_areas: Vec::new(),
        mmap_fd: None,
    };
    let server = vfio_user::Server::from_owned_fd(standard_input(), true, Vec::new(), vec![region]);
    server.run(&mut Constant).expect("the client leaves in order");
}

/// Registers that are all ones.
struct Constant;

impl ServerBackend for Constant {
    fn region_read(&mut self, _region: u32, _offset: u64, data: &mut [u8]) -> io::Result<()> {
        data.fill(0xff);
        Ok(())
    }

    fn region_write(&mut self, _region: u32, _offset: u64, _data: &[u8]) -> io::Result<()> {
        Ok(())
    }

    fn dma_map(&mut self, _: DmaMapFlags, _: u64, _: u64, _: u64, _: Option<File>) -> io::Result<()> {
        Ok(())
    }

    fn dma_unmap(&mut self, _: DmaUnmapFlags, _: u64, _: u64) -> io::Result<()> {
        Ok(())
    }

    fn reset(&mut self) -> io::Result<()> {
        Ok(())
    }

    fn set_irqs(&mut self, _: u32, _: u32, _: u32, _: u32, _: Vec<File>) -> io::Result<()> {
        Ok(())
    }
}
