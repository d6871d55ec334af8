//! Closing what comes from clients, without waiting for it.
//!
//! The last close of a descriptor can take as long as somebody else likes: that of a TCP socket with `SO_LINGER`, of a file
//! whose file system is a process (FUSE) or a server (NFS), and of a socket in which such descriptors still travel. A
//! client can send any of them. So they are closed by threads that nobody waits for.

use std::io;
use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use nix::sys::signal::{SigSet, SigmaskHow};

/// As many descriptors can be hard to close before the others have to wait for them.
const THREADS: usize = 4;

/// Descriptors that may be on their way to being closed while more are received. With those of one more message
/// (`SCM_MAX_FD`, 253) it stays well below the usual limit of 1024 for a process.
const ROOM: usize = 256;

/// Bytes of a thread's stack; it calls nothing but `close`.
const STACK_SIZE: usize = 64 << 10;

/// The threads that close. They end with the last clone of this.
#[derive(Clone, Debug)]
pub(super) struct Closer {
    queue: Sender<OwnedFd>,
    /// How many descriptors are not closed yet.
    pending: Arc<AtomicUsize>,
}

impl Closer {
    pub(super) fn start() -> io::Result<Self> {
        let (queue, work) = mpsc::channel();
        let (work, pending) = (Arc::new(Mutex::new(work)), Arc::new(AtomicUsize::new(0)));
        // New threads inherit the mask: signals are for the event loop.
        let mask = SigSet::all().thread_swap_mask(SigmaskHow::SIG_BLOCK)?;
        let (ready, are_ready) = mpsc::channel();
        let started = (0..THREADS).try_for_each(|_| {
            let (work, pending, ready) = (Arc::clone(&work), Arc::clone(&pending), ready.clone());
            let builder = thread::Builder::new().name("closer".to_owned()).stack_size(STACK_SIZE);
            let run = move || {
                drop(ready);
                run(&work, &pending);
            };
            builder.spawn(run).map(drop)
        });
        mask.thread_set_mask()?;
        // What a thread does before its work, it could not do in a server that is confined meanwhile. Once all are at work
        // nobody is left who could send anything here.
        drop(ready);
        let _: Result<(), _> = are_ready.recv();
        started.map(|()| Self { queue, pending })
    }

    /// Has descriptors closed, and returns at once.
    pub(super) fn close(&self, descriptors: impl IntoIterator<Item = OwnedFd>) {
        for descriptor in descriptors {
            self.pending.fetch_add(1, Ordering::SeqCst);
            // It fails only if all threads are gone, which they are not before this is.
            let _ = self.queue.send(descriptor);
        }
    }

    /// Ends a connection: the other side sees it at once, and the socket is closed with what still travels in it.
    pub(super) fn hang_up(&self, socket: UnixStream) {
        if let Err(error) = socket.shutdown(Shutdown::Both) {
            log::debug!("a connection cannot be shut down: {error}");
        }
        self.close([socket.into()]);
    }

    /// Whether more descriptors may be received now. If not, it takes only a moment, unless all threads are stuck.
    pub(super) fn has_room(&self) -> bool {
        self.pending.load(Ordering::SeqCst) <= ROOM
    }
}

fn run(work: &Mutex<Receiver<OwnedFd>>, pending: &AtomicUsize) {
    loop {
        // The lock is given back before the descriptor is closed.
        let next = work.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok(descriptor) = next else { return };
        drop(descriptor);
        pending.fetch_sub(1, Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};
    use std::time::Duration;

    use nix::libc;
    use nix::sys::socket::{setsockopt, sockopt};

    use super::*;

    /// Two sockets of which closing the first waits for the second to be read, for an hour.
    fn lingering() -> (OwnedFd, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut socket = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (peer, _) = listener.accept().unwrap();
        setsockopt(&socket, sockopt::Linger, &libc::linger { l_onoff: 1, l_linger: 3600 }).unwrap();
        socket.set_nonblocking(true).unwrap();
        while socket.write(&[0; 4096]).is_ok() {}
        (socket.into(), peer)
    }

    #[test]
    fn descriptors_are_closed_while_some_take_long() {
        let closer = Closer::start().unwrap();
        let (stuck, _peers): (Vec<_>, Vec<_>) = (1..THREADS).map(|_| lingering()).unzip();
        closer.close(stuck);
        let (mut kept, given) = UnixStream::pair().unwrap();
        closer.close([given.into()]);
        kept.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        assert_eq!(kept.read(&mut [0]).unwrap(), 0);
        assert!(closer.has_room());
    }

    #[test]
    fn room_ends_when_all_take_long_and_comes_back() {
        let closer = Closer::start().unwrap();
        let (stuck, peers): (Vec<_>, Vec<_>) = (0..THREADS).map(|_| lingering()).unzip();
        closer.close(stuck);
        closer.close((0..ROOM).map(|_| std::fs::File::open("/dev/null").unwrap().into()));
        assert!(!closer.has_room());
        // With data that nobody has read, this resets the connections.
        drop(peers);
        while !closer.has_room() {
            thread::yield_now();
        }
    }
}
