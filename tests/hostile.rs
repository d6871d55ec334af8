//! A client that means harm, over a real socket, against the built program with its embedded TPM.
//!
//! Each test is one way to attack, made of random numbers from a printed seed (`HOSTILE_SEED` repeats one). After each
//! the server is the same process with the same TPM process, has as many descriptors and as much memory as before, has
//! logged little, and serves a good client.

mod common;

use std::fs;
use std::io::{ErrorKind, IoSlice, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use common::process::until;
use common::raw_client::*;
use common::server::Server;
use common::tis::{BAR0, CONFIG, Tis};
use common::tpm_commands::{RC_SUCCESS, code_of, get_random};
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::epoll::{Epoll, EpollCreateFlags};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg, setsockopt, sockopt};
use nix::unistd::Pid;

/// What is expected of the server takes less; a test that waits so long has failed.
const PATIENCE: Duration = Duration::from_secs(60);

/// What an attack may add to the memory in use when it is over: what the C library keeps of it.
const KEPT_MEMORY: u64 = 8 << 20;

/// What an attack may add to the most memory that was ever in use: a session takes 8 MiB at most (see `Session`), and the C
/// library some for itself.
const PEAK_MEMORY: u64 = 12 << 20;

/// What the log may grow by in an attack: ten lines a minute for each place in the code that a client can reach.
const LOG_SIZE: usize = EFFORT * (64 << 10);

/// How much is attacked: rounds are multiplied by this.
const EFFORT: usize = if cfg!(feature = "full-tests") { 20 } else { 1 };

const ASSIGN: u32 = 0x24;
const TRIGGER: u32 = 0x21;
/// An interrupt of the TPM device that a client may set up (`VFIO_PCI_ERR_IRQ_INDEX`).
const ERR_IRQ: u32 = 3;

/// Random numbers that can be had again (SplitMix64): many, and quickly also where nothing is optimized.
struct Random(u64);

impl Random {
    fn new(name: &str) -> Self {
        let number = match std::env::var("HOSTILE_SEED") {
            Ok(number) => number.parse().expect("HOSTILE_SEED is a number"),
            Err(_) => getrandom::u64().unwrap(),
        };
        println!("{name}: HOSTILE_SEED={number}");
        Self(number)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ mixed >> 31
    }

    /// Below `bound`.
    fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.next() % bound as u64).unwrap()
    }

    fn word(&mut self) -> u32 {
        u32::try_from(self.next() >> 32).unwrap()
    }

    fn bytes(&mut self, count: usize) -> Vec<u8> {
        let mut bytes = vec![0; count];
        for chunk in bytes.chunks_mut(8) {
            chunk.copy_from_slice(&self.next().to_le_bytes()[..chunk.len()]);
        }
        bytes
    }

    fn pick<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        &from[self.below(from.len())]
    }
}

/// A server under attack, and what it was like before.
struct Target {
    server: Server,
    engine: Pid,
    before: Usage,
    messages: usize,
    connections: usize,
    random: Random,
    name: &'static str,
}

/// What a process uses; memory in bytes.
#[derive(Clone, Debug)]
struct Usage {
    descriptors: Vec<String>,
    memory: u64,
    peak: u64,
    threads: u64,
}

impl Usage {
    fn of(process: Pid) -> Self {
        let status = fs::read_to_string(format!("/proc/{process}/status")).expect("the server is alive");
        let number = |name: &str| -> u64 {
            let line =
                status.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_else(|| panic!("{name} {status}"));
            line.split_whitespace().next().unwrap().parse().unwrap()
        };
        let descriptors = fs::read_dir(format!("/proc/{process}/fd")).unwrap();
        let mut descriptors: Vec<String> = descriptors
            .filter_map(|entry| Some(fs::read_link(entry.ok()?.path()).ok()?.to_string_lossy().into_owned()))
            .collect();
        descriptors.sort_unstable();
        Self {
            descriptors,
            memory: number("VmRSS:") * 1024,
            peak: number("VmHWM:") * 1024,
            threads: number("Threads:"),
        }
    }
}

impl Target {
    fn start(name: &'static str) -> Self {
        let server = Server::start();
        // The first client of all: without it, there is exactly its socket less.
        let tis = good_client(&server);
        let with_client = Usage::of(server.pid());
        drop(tis);
        let engine = server.engine().expect("the server has a TPM process");
        let mut target =
            Self { server, engine, before: with_client, messages: 0, connections: 0, random: Random::new(name), name };
        target.before = target.settle(|with_client, now| now.descriptors.len() + 1 == with_client.descriptors.len());
        target
    }

    fn attacker(&mut self) -> Attacker {
        self.connections += 1;
        Attacker::connect(&self.server)
    }

    /// Waits until nothing of any client is left.
    fn settle(&self, accept: impl Fn(&Usage, &Usage) -> bool) -> Usage {
        let mut last = Usage::of(self.server.pid());
        let settled = until(PATIENCE, || {
            last = Usage::of(self.server.pid());
            accept(&self.before, &last).then_some(())
        });
        assert!(settled.is_some(), "{}: before {:?}, after {last:?}", self.name, self.before);
        last
    }

    /// Checks that the attack has changed nothing.
    fn check(self) {
        drop(good_client(&self.server));
        let after = self.settle(|before, after| after.descriptors == before.descriptors);
        let log = self.server.log();
        println!(
            "{}: {} messages, {} connections; memory {} -> {} KiB, peak {} -> {} KiB, {} -> {} descriptors, log {} bytes",
            self.name,
            self.messages,
            self.connections,
            self.before.memory / 1024,
            after.memory / 1024,
            self.before.peak / 1024,
            after.peak / 1024,
            self.before.descriptors.len(),
            after.descriptors.len(),
            log.len(),
        );
        assert_eq!(self.server.engine(), Some(self.engine), "the TPM's process is the same");
        assert_eq!(after.threads, self.before.threads);
        assert!(after.memory <= self.before.memory + KEPT_MEMORY, "{} bytes are kept", after.memory);
        assert!(after.peak <= self.before.peak + PEAK_MEMORY, "{} bytes at the peak", after.peak);
        assert!(log.len() <= LOG_SIZE, "{} bytes of log", log.len());
        assert!(!log.contains("panicked"), "{log}");
        assert!(self.server.terminate().success());
    }
}

/// A client as there should be, which has used the TPM.
fn good_client(server: &Server) -> Tis {
    let mut tis = Tis::new(RawClient::connect(&server.socket()));
    tis.reset();
    for _ in 0..2 {
        assert_eq!(code_of(&tis.run(&get_random(16))), RC_SUCCESS);
    }
    tis
}

/// A client that never waits for ever, and takes whatever comes back.
struct Attacker {
    stream: UnixStream,
}

impl Attacker {
    fn connect(server: &Server) -> Self {
        let stream = UnixStream::connect(server.socket()).unwrap();
        stream.set_nonblocking(true).unwrap();
        Self { stream }
    }

    /// Sends bytes with descriptors, and takes replies while it has to wait; `false` if the server has hung up.
    fn send(&mut self, mut bytes: &[u8], mut descriptors: &[RawFd]) -> bool {
        while !bytes.is_empty() {
            match self.try_send(bytes, descriptors) {
                Ok(sent) => {
                    bytes = &bytes[sent..];
                    descriptors = &[];
                }
                Err(nix::errno::Errno::EAGAIN) => {
                    self.wait(PollFlags::POLLIN | PollFlags::POLLOUT);
                    if !self.drain() {
                        return false;
                    }
                }
                Err(_) => return false,
            }
        }
        true
    }

    fn try_send(&self, bytes: &[u8], descriptors: &[RawFd]) -> nix::Result<usize> {
        let rights = [ControlMessage::ScmRights(descriptors)];
        let rights = if descriptors.is_empty() { &[][..] } else { &rights };
        sendmsg::<()>(self.stream.as_raw_fd(), &[IoSlice::new(bytes)], rights, MsgFlags::MSG_NOSIGNAL, None)
    }

    /// Takes what is there; `false` if the server has hung up.
    fn drain(&mut self) -> bool {
        let mut buffer = [0; 4096];
        loop {
            match self.stream.read(&mut buffer) {
                Ok(0) => return false,
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return error.kind() == ErrorKind::WouldBlock,
            }
        }
    }

    #[track_caller]
    fn wait(&self, events: PollFlags) {
        let mut ready = [PollFd::new(self.stream.as_fd(), events)];
        let patience = PollTimeout::try_from(PATIENCE).unwrap();
        assert_ne!(poll(&mut ready, patience).unwrap(), 0, "the server does nothing");
    }

    fn negotiate(&mut self) -> bool {
        self.send(&message(1, VERSION, 0, &version(0, 0, QEMU_CAPABILITIES)), &[])
    }

    /// Says that nothing more comes, and waits until the server has taken everything and hung up.
    fn finish(mut self) {
        let _ = self.stream.shutdown(Shutdown::Write);
        while self.drain() {
            self.wait(PollFlags::POLLIN);
        }
    }

    /// Leaves at once, whatever is under way.
    fn leave(self) {
        let _ = self.stream.shutdown(Shutdown::Both);
    }
}

/// A session as a VMM has it, without its descriptors: each message is valid.
fn session() -> Vec<Vec<u8>> {
    let mut bodies = vec![(VERSION, version(0, 0, QEMU_CAPABILITIES)), (GET_INFO, device_info())];
    bodies.extend((0..9).map(|index| (GET_REGION_INFO, region_info(index))));
    bodies.extend((0..5).map(|index| (GET_IRQ_INFO, irq_info(index))));
    bodies.extend([
        (DMA_MAP, dma_map(3, 0, 0, 0xa0000)),
        (DMA_MAP, dma_map(1, 0, 0xc0000, 0x4000)),
        (SET_IRQS, irq_set(ASSIGN, ERR_IRQ, 0, 1, &[])),
        (SET_IRQS, irq_set(TRIGGER, ERR_IRQ, 0, 1, &[])),
        (REGION_READ, access(CONFIG, 0, 256, &[])),
        (REGION_WRITE, access(CONFIG, 4, 2, &[2, 0])),
        (REGION_WRITE, access(CONFIG, 0x10, 4, &[0xff; 4])),
        (REGION_READ, access(BAR0, 0, 1, &[])),
        (REGION_WRITE, access(BAR0, 0, 1, &[2])),
        (REGION_READ, access(BAR0, 0x18, 4, &[])),
        (REGION_WRITE, access(BAR0, 0x18, 4, &[0x40, 0, 0, 0])),
        (REGION_WRITE, access(BAR0, 0x24, 4, &[0x80, 1, 0, 0])),
        (REGION_WRITE, access(BAR0, 0x18, 4, &[0x20, 0, 0, 0])),
        (REGION_READ, access(BAR0, 0x24, 1, &[])),
        (DMA_UNMAP, dma_unmap(0, 0xc0000, 0x4000)),
        (SET_IRQS, irq_set(TRIGGER, ERR_IRQ, 0, 0, &[])),
        (DMA_UNMAP, dma_unmap(2, 0, 0)),
        (DEVICE_RESET, vec![]),
        (DEVICE_FEATURE, words(&[8, 0x20001])),
    ]);
    (1..).zip(bodies).map(|(id, (command, body))| message(id, command, 0, &body)).collect()
}

/// Numbers at which something may go over.
const EDGES: [u32; 14] = [
    0,
    1,
    15,
    16,
    17,
    0x1000,
    0x2_0000,
    (1 << 20) + 15,
    (1 << 20) + 33,
    0x7fff_ffff,
    0x8000_0000,
    u32::MAX - 15,
    u32::MAX - 1,
    u32::MAX,
];

/// Does something to a message that its receiver does not expect.
fn mutate(message: &mut Vec<u8>, random: &mut Random) {
    match random.below(7) {
        0 => {
            let at = random.below(message.len());
            message[at] ^= 1 << random.below(8);
        }
        1 => {
            let (word, value) = (random.below(message.len() / 4 + 1), *random.pick(&EDGES));
            if let Some(word) = message.chunks_exact_mut(4).nth(word) {
                word.copy_from_slice(&value.to_le_bytes());
            }
        }
        2 => message.truncate(1 + random.below(message.len())),
        3 => {
            let count = random.below(64);
            message.extend(random.bytes(count));
        }
        4 if message.len() >= 4 => {
            let command = u16::try_from(random.below(20)).unwrap();
            message[2..4].copy_from_slice(&command.to_le_bytes());
        }
        5 => {
            // A wrong size that claims to be right.
            let count = random.below(64);
            message.truncate(1.max(message.len().saturating_sub(count)));
            let other = random.below(64);
            message.extend(random.bytes(other));
        }
        _ => {
            let flags = random.word() & 0x3f;
            if let Some(word) = message.chunks_exact_mut(4).nth(2) {
                word.copy_from_slice(&flags.to_le_bytes());
            }
        }
    }
    // Mostly the stream stays in step, so that what follows is looked at as well.
    if message.len() >= 16 && random.below(8) != 0 {
        let size = u32::try_from(message.len()).unwrap();
        message[4..8].copy_from_slice(&size.to_le_bytes());
    }
}

#[test]
fn mutated_messages() {
    let mut target = Target::start("mutated messages");
    let valid = session();
    for _ in 0..300 * EFFORT {
        let mut attacker = target.attacker();
        let negotiated = target.random.below(10) != 0 && attacker.negotiate();
        for _ in 0..=target.random.below(100) {
            let mut message = target.random.pick(&valid).clone();
            if negotiated && message[2..4] == VERSION.to_le_bytes() {
                continue;
            }
            for _ in 0..target.random.below(4) {
                mutate(&mut message, &mut target.random);
            }
            target.messages += 1;
            if !attacker.send(&message, &[]) {
                break;
            }
        }
        attacker.finish();
    }
    target.check();
}

#[test]
fn garbage() {
    let mut target = Target::start("garbage");
    for _ in 0..300 * EFFORT {
        let mut attacker = target.attacker();
        if target.random.below(2) == 0 {
            attacker.negotiate();
        }
        let count = 1 + target.random.below(64 << 10);
        let mut garbage = target.random.bytes(count);
        // Sometimes small numbers, so that not all sizes are gigantic.
        if target.random.below(2) == 0 {
            for byte in &mut garbage {
                *byte &= 0x11;
            }
        }
        target.messages += 1;
        attacker.send(&garbage, &[]);
        attacker.finish();
    }
    target.check();
}

#[test]
fn lying_sizes() {
    let mut target = Target::start("lying sizes");
    for round in 0..100 * EFFORT {
        let mut attacker = target.attacker();
        if target.random.below(4) != 0 {
            attacker.negotiate();
        }
        let size = *target.random.pick(&EDGES);
        let (command, count) = (u16::try_from(target.random.below(19)).unwrap(), target.random.below(3 << 20));
        let body = vec![0; if round % 4 == 0 { count } else { count % 1000 }];
        target.messages += 1;
        attacker.send(&message_claiming(1, command, 0, size, &body), &[]);
        attacker.finish();
    }
    // JSON that takes much more memory than it is long, and nests deeper than a stack may be.
    for size in [3500, 60_000] {
        let long = r#"{"":0},"#.repeat(size / 7);
        for json in [format!("[{long}0]"), "[0],".repeat(size / 4), "[".repeat(size), r#"{"":"#.repeat(size / 4)] {
            for json in [format!(r#"{{"capabilities":{{"x":{json}}}}}"#), format!(r#"{{"x":{json}}}"#), json] {
                let mut attacker = target.attacker();
                target.messages += 1;
                attacker.send(&message(1, VERSION, 0, &version(0, 0, &json)), &[]);
                attacker.finish();
            }
        }
    }
    target.check();
}

#[test]
fn large_tables() {
    let mut target = Target::start("large tables");
    for _ in 0..EFFORT {
        let mut attacker = target.attacker();
        attacker.negotiate();
        for window in 0..70_000 {
            target.messages += 1;
            attacker.send(&message(1, DMA_MAP, 0x10, &dma_map(3, 0, window * 0x2000, 0x1000)), &[]);
        }
        attacker.finish();
    }
    target.check();
}

/// Descriptors of many kinds.
fn descriptors() -> Vec<OwnedFd> {
    let (one, other) = UnixStream::pair().unwrap();
    let (reader, writer) = nix::unistd::pipe2(OFlag::O_CLOEXEC).unwrap();
    let eventfd = EventFd::from_value_and_flags(0, EfdFlags::EFD_CLOEXEC).unwrap();
    let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).unwrap();
    let file = tempfile::tempfile().unwrap();
    vec![one.into(), other.into(), reader, writer, eventfd.into(), epoll.0, file.into()]
}

#[test]
fn floods_of_descriptors() {
    let mut target = Target::start("floods of descriptors");
    let descriptors = descriptors();
    let valid = session();
    for _ in 0..100 * EFFORT {
        let mut attacker = target.attacker();
        attacker.negotiate();
        for _ in 0..20 {
            let count = *target.random.pick(&[1, 2, 15, 16, 17, 100, 253, 253]);
            let rights: Vec<RawFd> = (0..count).map(|_| target.random.pick(&descriptors).as_raw_fd()).collect();
            let mut message = target.random.pick(&valid).clone();
            if target.random.below(2) == 0 {
                mutate(&mut message, &mut target.random);
            }
            // With any byte, not only with the first.
            let (first, rest) = message.split_at(target.random.below(message.len()));
            target.messages += 1;
            if !attacker.send(first, &rights[..count / 2]) || !attacker.send(rest, &rights) {
                break;
            }
        }
        if target.random.below(2) == 0 { attacker.finish() } else { attacker.leave() }
    }
    target.check();
}

#[test]
fn descriptors_that_do_not_let_themselves_be_closed() {
    let mut target = Target::start("descriptors that do not let themselves be closed");
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let (mut peers, mut closing) = (Vec::new(), Vec::new());
    for _ in 0..3 {
        let mut socket = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        peers.push(listener.accept().unwrap().0);
        setsockopt(&socket, sockopt::Linger, &libc::linger { l_onoff: 1, l_linger: 3600 }).unwrap();
        socket.set_nonblocking(true).unwrap();
        while socket.write(&[0; 4096]).is_ok() {}
        // In a socket in flight, so that this test's copy is never the last to be closed.
        let (sender, receiver) = UnixStream::pair().unwrap();
        let rights = [socket.as_raw_fd()];
        let rights = [ControlMessage::ScmRights(&rights)];
        sendmsg::<()>(sender.as_raw_fd(), &[IoSlice::new(b"x")], &rights, MsgFlags::empty(), None).unwrap();
        drop((socket, sender));
        let mut attacker = target.attacker();
        attacker.negotiate();
        target.messages += 1;
        attacker.send(&message(2, GET_INFO, 0, &device_info()), &[receiver.as_raw_fd()]);
        // Where the server is quicker, it is this that waits.
        closing.push(std::thread::spawn(move || drop(receiver)));
        attacker.finish();
        drop(good_client(&target.server));
    }
    drop(peers);
    for thread in closing {
        thread.join().unwrap();
    }
    target.check();
}

#[test]
fn thousands_of_connections() {
    let mut target = Target::start("thousands of connections");
    for _ in 0..2000 * EFFORT {
        let mut attacker = target.attacker();
        match target.random.below(4) {
            0 => drop(attacker.negotiate()),
            1 => drop(attacker.send(&[0; 7], &[])),
            _ => {}
        }
        attacker.leave();
    }
    // And while a good client is served.
    let mut tis = Tis::new(RawClient::connect(&target.server.socket()));
    for round in 0..2000 * EFFORT {
        target.attacker().leave();
        if round % 100 == 0 {
            assert_eq!(code_of(&tis.run(&get_random(8))), RC_SUCCESS);
        }
    }
    drop(tis);
    target.check();
}

#[test]
fn messages_byte_by_byte() {
    let mut target = Target::start("messages byte by byte");
    for _ in 0..5 * EFFORT {
        let mut attacker = target.attacker();
        for message in session() {
            target.messages += 1;
            for byte in message {
                assert!(attacker.send(&[byte], &[]));
            }
        }
        attacker.finish();
    }
    target.check();
}

#[test]
fn connections_that_end_at_every_byte_of_a_session() {
    let mut target = Target::start("connections that end at every byte of a session");
    let eventfd = EventFd::from_value_and_flags(0, EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC).unwrap();
    let stream = session().concat();
    for _ in 0..EFFORT {
        for end in 0..=stream.len() {
            let mut attacker = target.attacker();
            target.messages += 1;
            // The descriptor is before, in or after the message that takes one.
            let (first, rest) = stream[..end].split_at(target.random.below(end + 1));
            attacker.send(first, &[]);
            attacker.send(rest, &[eventfd.as_raw_fd()]);
            if end % 2 == 0 { attacker.leave() } else { attacker.finish() }
        }
    }
    target.check();
}

#[test]
fn readers_that_never_read() {
    let mut target = Target::start("readers that never read");
    let request = message(1, REGION_READ, 0, &access(BAR0, 0, 0x2_0000, &[])).repeat(100);
    for _ in 0..20 * EFFORT {
        let mut attacker = target.attacker();
        attacker.negotiate();
        // Until nothing more goes in, and a while longer.
        let mut refused = 0;
        while refused < 3 {
            if let Ok(sent) = attacker.try_send(&request, &[]) {
                target.messages += sent / (request.len() / 100);
            } else {
                refused += 1;
                thread::yield_now();
            }
        }
        attacker.leave();
    }
    target.check();
}

#[derive(Default)]
struct Done(AtomicBool);

struct Told<'a>(&'a Done);

impl Drop for Told<'_> {
    fn drop(&mut self) {
        self.0.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn eventfds_that_are_full_or_made_blocking() {
    let mut target = Target::start("eventfds that are full or made blocking");
    let eventfd = EventFd::from_value_and_flags(0, EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC).unwrap();
    let done = Done::default();
    thread::scope(|scope| {
        // Told also by a panic, for which the scope would wait.
        let told = Told(&done);
        // Fills it, and makes it blocking, all the time: a signal that finds it so would wait until somebody reads.
        scope.spawn(|| {
            while !done.0.load(Ordering::Relaxed) {
                fcntl(&eventfd, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).unwrap();
                let _ = eventfd.read();
                let _ = eventfd.write(u64::MAX - 1);
                fcntl(&eventfd, FcntlArg::F_SETFL(OFlag::empty())).unwrap();
            }
        });
        for _ in 0..20 * EFFORT {
            let mut attacker = target.attacker();
            attacker.negotiate();
            attacker.send(&message(2, SET_IRQS, 0, &irq_set(ASSIGN, ERR_IRQ, 0, 1, &[])), &[eventfd.as_raw_fd()]);
            let trigger = message(3, SET_IRQS, 0x10, &irq_set(TRIGGER, ERR_IRQ, 0, 1, &[])).repeat(100);
            for _ in 0..50 {
                target.messages += 100;
                attacker.send(&trigger, &[]);
            }
            attacker.finish();
        }
        drop(told);
    });
    target.check();
}
