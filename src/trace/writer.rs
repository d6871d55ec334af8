//! The thread that writes a trace, and its queue.

use std::convert::Infallible;
use std::io::{self, Write};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, SyncSender, TrySendError};
use std::thread;
use std::time::{Duration, SystemTime};

use nix::sys::signal::{SigSet, SigmaskHow};

use super::Message;
use super::capture::{Capture, OVERHEAD};
use super::file::TraceFile;

/// Messages that may wait to be written: 4 MiB at most.
const ROOM: usize = 1024;

/// Bytes of the thread's stack.
const STACK_SIZE: usize = 256 << 10;

/// How long the end waits for what is still to be written.
const END_LIMIT: Duration = Duration::from_secs(5);

/// The thread, which ends with this.
pub(super) struct Writer {
    /// `None` at the end.
    queue: Option<SyncSender<Message>>,
    /// Never says anything, and ends with the thread.
    ended: Receiver<Infallible>,
}

impl Writer {
    pub(super) fn start(file: TraceFile, limit: u64, with_secrets: bool) -> io::Result<Self> {
        let (queue, messages) = mpsc::sync_channel(ROOM);
        let (alive, ended) = mpsc::channel();
        // As in `vfio_user::closer`: signals are for the event loop, and a thread has to be at work before it is confined.
        let mask = SigSet::all().thread_swap_mask(SigmaskHow::SIG_BLOCK)?;
        let (ready, is_ready) = mpsc::channel::<Infallible>();
        let started = thread::Builder::new().name("trace".to_owned()).stack_size(STACK_SIZE).spawn(move || {
            let mut output = Output { file, capture: Capture::new(), written: 0, limit };
            drop(ready);
            output.run(with_secrets, &messages);
            // Whoever waits for the end may rely on what was logged.
            drop(alive);
        });
        mask.thread_set_mask()?;
        let _: Result<_, _> = is_ready.recv();
        started.map(|_| Self { queue: Some(queue), ended })
    }

    /// Has a message written, and returns at once.
    pub(super) fn try_write(&self, message: Message) -> Result<(), TrySendError<Message>> {
        match &self.queue {
            Some(queue) => queue.try_send(message),
            None => Err(TrySendError::Disconnected(message)),
        }
    }
}

/// Waits until all is written, but not for ever.
impl Drop for Writer {
    fn drop(&mut self) {
        self.queue = None;
        if self.ended.recv_timeout(END_LIMIT) == Err(RecvTimeoutError::Timeout) {
            log::warn!("the end of the trace is lost: its file does not take it");
        }
    }
}

/// Where the thread writes to.
struct Output {
    file: TraceFile,
    capture: Capture,
    written: u64,
    limit: u64,
}

impl Output {
    /// Writes until there are no more messages, or no more can be written.
    fn run(&mut self, with_secrets: bool, messages: &Receiver<Message>) {
        let begun = self.append(|capture| capture.begin(with_secrets));
        let result = begun.and_then(|()| messages.iter().try_for_each(|message| self.message(&message)));
        if let Err(error) = result {
            log::warn!("the trace in {} has ended: {error}", self.file.path.display());
        }
    }

    fn message(&mut self, message: &Message) -> io::Result<()> {
        // There is always room for the end.
        let most = message.bytes.len().saturating_add(2 * OVERHEAD);
        if self.written.saturating_add(u64::try_from(most).unwrap_or(u64::MAX)) > self.limit {
            self.append(|capture| capture.end(SystemTime::now()))?;
            return Err(io::Error::other("it has its largest size (--trace-limit)"));
        }
        self.append(|capture| capture.message(message))
    }

    /// What cannot be written whole is taken back: the file stays one that can be read.
    fn append(&mut self, add: impl FnOnce(&mut Capture) -> &[u8]) -> io::Result<()> {
        let bytes = add(&mut self.capture);
        let length = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
        self.file.file.write_all(bytes).inspect_err(|_| {
            // A FIFO has no length.
            let _ = self.file.file.set_len(self.written);
        })?;
        self.capture.forget();
        self.written = self.written.saturating_add(length);
        Ok(())
    }
}
