//! What a trapped register read costs over the socket, against a bare ping-pong of messages of the same sizes between
//! two processes. Both are measured in turns within one run, so that a noisy machine disturbs both alike.
//!
//! `cargo bench --bench trapped_read`

#[path = "../tests/common/mod.rs"]
mod common;

use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use common::raw_client::{REGION_READ, RawClient, access, message};
use common::server::Server;
use common::tis::{BAR0, STS};

const ROUNDS: usize = 40;
const ACCESSES: u32 = 2000;
/// Bytes of a REGION_READ, and of its reply with 4 bytes of data.
const REQUEST: usize = 32;
const REPLY: usize = 36;

fn main() {
    if std::env::args().nth(1).as_deref() == Some("echo") {
        return echo();
    }
    let server = Server::start();
    let mut client = RawClient::connect(&server.socket());
    client.negotiate();
    let mut device = client.stream;

    let (mut bare, theirs) = UnixStream::pair().expect("socket pair");
    let mut partner = Command::new(std::env::current_exe().expect("own path"))
        .arg("echo")
        .stdin(Stdio::from(OwnedFd::from(theirs)))
        .spawn()
        .expect("the echo process starts");

    let (mut device_times, mut bare_times) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        device_times.push(round(&mut device));
        bare_times.push(round(&mut bare));
    }
    drop(bare);
    partner.wait().expect("the echo process ends");

    let (device, bare) = (median(&mut device_times), median(&mut bare_times));
    println!("trapped read     {:>8.2} µs", device.as_secs_f64() * 1e6);
    println!("bare ping-pong   {:>8.2} µs", bare.as_secs_f64() * 1e6);
    println!("ratio            {:>8.2}", device.as_secs_f64() / bare.as_secs_f64());
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

/// The other side of the bare ping-pong, on standard input.
fn echo() {
    let mut stream = UnixStream::from(std::io::stdin().as_fd().try_clone_to_owned().expect("a descriptor"));
    let mut request = [0; REQUEST];
    while stream.read_exact(&mut request).is_ok() {
        stream.write_all(&[0; REPLY]).expect("the client reads");
    }
}

fn median(times: &mut [Duration]) -> Duration {
    times.sort_unstable();
    times[times.len() / 2]
}
