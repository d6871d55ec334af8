//! Runs one backend for the event loop: brings the TPM up and down, one command at a time, within deadlines.
//!
//! Nothing here blocks. An operation is begun; [`Engine::poll`] takes what the backend has finished and decides what
//! comes next. A TPM that fails or dies costs the guest a failure response to each command, until the next reset brings
//! up a new one.
//!
//! ```text
//!            reset                         platform's commands
//!   Off ───────────────▶ Initializing ───▶ Starting ─────────▶ Idle ◀──▶ Executing
//!    ▲                     ▲                                    │
//!    │ stop                │ reset                              │ reset, stop
//!   Terminating ◀── ShuttingDown ◀──────────────────────────────┘         (any failure: Failed)
//!
//!   Terminating, and a stop in any failure, end in Ending: what ran the TPM is killed, and Off once it is gone.
//! ```

mod condition;

use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use mio::unix::SourceFd;
use mio::{Interest, Registry, Token};
use zeroize::{Zeroize, Zeroizing};

use crate::backend::{Backend, BackendError, Done};
use crate::platform::{Action, Platform, Step};
use crate::tpm::{BUFFER_SIZE, Fault, Header, Locality, fault_response};
use crate::trace::{Sender, Tracer};
pub use condition::{Condition, Events};

/// Longest start of a TPM, by one operation. A new TPM 1.2 generates a key, and a busy disk takes long to write.
const START_LIMIT: Duration = Duration::from_secs(60);
/// Longest of all commands. Drivers give up after 5 minutes.
const COMMAND_LIMIT: Duration = Duration::from_secs(600);
/// Longest wait for a command that its guest has cancelled. Not every algorithm can be interrupted.
const CANCEL_LIMIT: Duration = Duration::from_secs(10);
/// Longest wait for a command that a reset or the end has cancelled. The guest waits for the TPM meanwhile.
const ABORT_LIMIT: Duration = Duration::from_secs(2);
/// Longest shutdown, by one operation: it writes to a disk that may be busy.
const SHUTDOWN_LIMIT: Duration = Duration::from_secs(20);

/// How the event loop hears of the backend.
#[derive(Debug)]
pub struct Wakeup {
    /// The loop's registry.
    pub registry: Registry,
    /// The token under which the backend's descriptor is registered.
    pub token: Token,
}

/// A TPM that is kept running.
pub struct Engine {
    backend: Box<dyn Backend>,
    platform: Platform,
    wakeup: Option<Wakeup>,
    phase: Phase,
    goal: Goal,
    /// When the operation under way has taken too long.
    deadline: Option<Instant>,
    guest: Guest,
    /// Empty, unless a command waits.
    command: Zeroizing<Vec<u8>>,
    /// Empty, unless the guest has not taken it yet.
    response: Zeroizing<Vec<u8>>,
    reset_established: Option<Locality>,
    established: bool,
    /// No guest's command has run since `_TPM_Init`, so that another one would change nothing.
    pristine: bool,
    first_start: FirstStart,
    on_first_start: Option<Box<dyn FnOnce() + Send>>,
    tracer: Tracer,
    /// Why the TPM was not stopped in order.
    stop_failure: Option<String>,
    /// Why the TPM is in failure mode.
    failure: Option<String>,
    events: Events,
}

/// What the backend is doing.
#[derive(Debug)]
enum Phase {
    Off,
    Failed,
    Initializing,
    /// Does what the platform wants done.
    Starting,
    Idle,
    Executing,
    ResettingEstablished,
    ShuttingDown,
    Terminating,
    /// Powered off; what ran it is about to be gone.
    Ending,
}

/// What is to come when the operation under way has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Goal {
    Serve,
    Reset,
    Stop,
}

/// Where the guest's command is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Guest {
    Nothing,
    /// In `command`, until the TPM is ready for it.
    Waiting(Locality),
    /// With the backend.
    Running,
    /// Its response is in `response`.
    Answered,
}

/// Whether the TPM has ever been up. A TPM that cannot start at all is an error to tell the user, not the guest.
#[derive(Debug)]
enum FirstStart {
    Awaited,
    Done,
    Failed(String),
}

impl Engine {
    /// An engine whose TPM is off.
    #[must_use]
    pub fn new(backend: Box<dyn Backend>, platform: Platform, wakeup: Option<Wakeup>) -> Self {
        Self {
            backend,
            platform,
            wakeup,
            phase: Phase::Off,
            goal: Goal::Serve,
            deadline: None,
            guest: Guest::Nothing,
            command: Vec::with_capacity(BUFFER_SIZE).into(),
            response: Vec::with_capacity(BUFFER_SIZE).into(),
            reset_established: None,
            established: false,
            pristine: false,
            first_start: FirstStart::Awaited,
            on_first_start: None,
            tracer: Tracer::default(),
            stop_failure: None,
            failure: None,
            events: Events::default(),
        }
    }

    /// Has `action` called when the TPM is up for the first time.
    pub fn on_first_start(&mut self, action: impl FnOnce() + Send + 'static) {
        self.on_first_start = Some(Box::new(action));
    }

    /// Has `tracer` told of all that is given to the TPM, and of all that it answers.
    pub fn trace(&mut self, tracer: Tracer) {
        self.tracer = tracer;
    }

    /// `_TPM_Init`: shuts a running TPM down in order and starts it anew. What the guest has under way is forgotten.
    /// Returns at once; commands wait until the TPM is up. A TPM that nobody has used since its start stays as it is, unless
    /// its platform wants it started.
    pub fn reset(&mut self, now: Instant) {
        self.forget_guest();
        // A TPM that has died, and of which nobody has heard yet, is none that can stay as it is.
        self.poll(now);
        match (&self.phase, self.goal) {
            // Already on the way to a fresh TPM, or there.
            (_, Goal::Stop | Goal::Reset) | (Phase::Initializing | Phase::Starting, _) => {}
            (Phase::Idle, Goal::Serve) if self.pristine && !self.platform.wants_start() => {}
            _ => self.pursue(Goal::Reset, now),
        }
    }

    /// Shuts the TPM down in order and powers it off, for good; [`is_off`](Self::is_off) tells when that is done.
    pub fn stop(&mut self, now: Instant) {
        self.forget_guest();
        if self.goal != Goal::Stop && !self.is_off() {
            self.pursue(Goal::Stop, now);
        }
    }

    /// Runs a guest's command. The one before must have been answered or forgotten.
    pub fn execute(&mut self, locality: Locality, command: &[u8], now: Instant) {
        if self.guest == Guest::Running {
            log::error!("a command came while another runs; it is not run");
            return;
        }
        self.command.zeroize();
        self.command.extend_from_slice(command);
        self.guest = Guest::Waiting(locality);
        self.advance(now);
    }

    /// Ends the guest's command early, if the TPM can. It is answered all the same.
    pub fn cancel(&mut self, now: Instant) {
        match self.guest {
            Guest::Waiting(_) => self.answer_with(Fault::Canceled),
            Guest::Running => {
                // One that may not obey runs on, and its guest waits: ended by force, the TPM would be of no use until the
                // next reset.
                if self.backend.cancel() {
                    self.limit(CANCEL_LIMIT, now);
                }
            }
            Guest::Nothing | Guest::Answered => {}
        }
    }

    /// Clears `tpmEstablished` from a locality, as soon as the TPM has time.
    pub fn reset_establishment(&mut self, locality: Locality, now: Instant) {
        self.reset_established = Some(locality);
        self.advance(now);
    }

    /// Takes what the backend has finished and goes on; also enforces deadlines. To be called when the backend's
    /// descriptor is ready and when [`deadline`](Self::deadline) has passed.
    pub fn poll(&mut self, now: Instant) {
        loop {
            let outcome = self.backend.poll(&mut self.response);
            match self.watch().and(outcome.transpose()) {
                Ok(None) => break,
                Ok(Some(done)) => self.finish(Ok(done), now),
                Err(error) => self.finish(Err(error), now),
            }
            if self.guest != Guest::Answered {
                self.response.zeroize();
            }
        }
        let too_late = self.deadline.is_some_and(|deadline| deadline <= now);
        if matches!(self.phase, Phase::Ending) {
            if too_late || self.backend.is_gone() {
                self.phase = Phase::Off;
                self.deadline = None;
            }
        } else if too_late {
            self.kill();
            self.finish(Err(BackendError::Gone("it did not answer in time and was ended".to_owned())), now);
        }
    }

    /// Gives the response to the guest's command to `take`, if there is one: once, then it is wiped.
    pub fn take_response<T>(&mut self, take: impl FnOnce(&[u8]) -> T) -> Option<T> {
        if self.guest != Guest::Answered {
            return None;
        }
        self.guest = Guest::Nothing;
        let taken = take(&self.response);
        self.response.zeroize();
        Some(taken)
    }

    /// What does a firmware's work.
    pub fn platform_mut(&mut self) -> &mut Platform {
        &mut self.platform
    }

    /// The TPM's `tpmEstablished` flag, as last known.
    #[must_use]
    pub fn established(&self) -> bool {
        self.established
    }

    /// When [`poll`](Self::poll) is to be called at the latest.
    #[must_use]
    pub fn deadline(&self) -> Option<Instant> {
        self.deadline
    }

    /// Whether the TPM is powered off.
    #[must_use]
    pub fn is_off(&self) -> bool {
        matches!(self.phase, Phase::Off)
    }

    /// What the platform says of the start of this TPM, if the TPM is up.
    #[must_use]
    pub fn event_log(&self) -> Option<&[u8]> {
        let is_up = matches!(self.phase, Phase::Idle | Phase::Executing | Phase::ResettingEstablished);
        self.platform.event_log().filter(|_| is_up && self.goal == Goal::Serve)
    }

    /// Why the TPM could not be started the first time; a later failure is the guest's to see.
    #[must_use]
    pub fn start_failure(&self) -> Option<&str> {
        match &self.first_start {
            FirstStart::Failed(reason) => Some(reason),
            FirstStart::Awaited | FirstStart::Done => None,
        }
    }

    /// Why the TPM could not be stopped in order, if so: what its last commands did may be lost.
    #[must_use]
    pub fn stop_failure(&self) -> Option<&str> {
        self.stop_failure.as_deref()
    }

    /// Takes up a new goal. A guest's command that runs is cancelled, and has little time to end.
    fn pursue(&mut self, goal: Goal, now: Instant) {
        self.goal = goal;
        match self.phase {
            Phase::Off | Phase::Failed | Phase::Idle => self.advance(now),
            Phase::Executing => {
                self.backend.cancel();
                self.limit(ABORT_LIMIT, now);
            }
            Phase::Initializing
            | Phase::Starting
            | Phase::ResettingEstablished
            | Phase::ShuttingDown
            | Phase::Terminating
            | Phase::Ending => {
                // A start may take long, and can be broken off without harm.
                if goal == Goal::Stop {
                    self.limit(SHUTDOWN_LIMIT, now);
                }
            }
        }
    }

    /// Begins what is due, if nothing is under way.
    fn advance(&mut self, now: Instant) {
        match (&self.phase, self.goal) {
            (Phase::Idle, Goal::Serve) => {
                if let Some(locality) = self.reset_established.take() {
                    let begun = self.backend.reset_established(locality);
                    self.begin(begun, Phase::ResettingEstablished, START_LIMIT, now);
                } else if let Guest::Waiting(locality) = self.guest {
                    self.guest = Guest::Running;
                    self.pristine = false;
                    self.platform.guest_runs(&self.command);
                    self.tracer.command(Sender::Guest, locality, &self.command);
                    let begun = self.backend.execute(locality, &self.command);
                    // Passwords may be in it.
                    self.command.zeroize();
                    self.begin(begun, Phase::Executing, COMMAND_LIMIT, now);
                }
            }
            (Phase::Idle, Goal::Reset | Goal::Stop) => match self.platform.shutdown() {
                Some(step) => {
                    self.tracer.command(Sender::Platform, Locality::ZERO, step.bytes());
                    let begun = self.backend.execute(Locality::ZERO, step.bytes());
                    self.begin(begun, Phase::ShuttingDown, SHUTDOWN_LIMIT, now);
                }
                None => self.power_down(now),
            },
            (Phase::Failed | Phase::Off, Goal::Serve) => {
                self.reset_established = None;
                if matches!(self.guest, Guest::Waiting(_)) {
                    self.answer_with(Fault::Failure);
                }
            }
            (Phase::Failed | Phase::Off, Goal::Reset) => self.initialize(now),
            (Phase::Failed, Goal::Stop) => {
                self.stop_failure.get_or_insert_with(|| "it has failed before".to_owned());
                self.end(now);
            }
            (Phase::Off, Goal::Stop) => self.end(now),
            _ => {}
        }
    }

    /// The TPM has been shut down, or need not be: cuts its power.
    fn power_down(&mut self, now: Instant) {
        if self.goal == Goal::Stop {
            let begun = self.backend.terminate();
            self.begin(begun, Phase::Terminating, SHUTDOWN_LIMIT, now);
        } else {
            self.initialize(now);
        }
    }

    fn initialize(&mut self, now: Instant) {
        self.goal = Goal::Serve;
        self.reset_established = None;
        let begun = self.backend.initialize();
        let begun = self.watch().and(begun);
        self.begin(begun, Phase::Initializing, START_LIMIT, now);
    }

    /// Notes that an operation is under way, or that it could not be begun.
    fn begin(&mut self, begun: Result<(), BackendError>, phase: Phase, limit: Duration, now: Instant) {
        self.phase = phase;
        self.deadline = None;
        self.limit(limit, now);
        if let Err(error) = begun {
            self.finish(Err(error), now);
        }
    }

    /// An operation has ended.
    fn finish(&mut self, outcome: Result<Done, BackendError>, now: Instant) {
        if matches!(self.phase, Phase::Off | Phase::Failed | Phase::Ending) {
            // Nobody asked. A backend that talks by itself is not listened to.
            return self.kill();
        }
        self.deadline = None;
        if let Ok(Done::Control { established }) = outcome {
            self.established = established;
        }
        if let (Phase::Starting | Phase::Executing | Phase::ShuttingDown, Ok(Done::Response)) = (&self.phase, &outcome)
        {
            self.tracer.response(&self.response);
        }
        match (std::mem::replace(&mut self.phase, Phase::Idle), outcome) {
            (Phase::Initializing, Ok(Done::Control { .. })) => match self.platform.start() {
                Ok(()) => self.next_step(now),
                Err(error) => self.fail(&format!("the system gives no random numbers: {error}"), now),
            },
            (Phase::Starting, Ok(done)) if is_answer(done, self.platform.step()) => {
                match self.platform.answered(&self.response) {
                    Ok(()) => self.next_step(now),
                    Err(error) => self.fail(&error.to_string(), now),
                }
            }
            (Phase::Executing, Ok(Done::Response)) => {
                if Header::of_whole(&self.response).is_none() || self.response.len() > BUFFER_SIZE {
                    // Nothing more that it says is to be relied on.
                    self.kill();
                    return self.fail("it gave no well-formed response", now);
                }
                self.platform.guest_ran(&self.response);
                if self.guest == Guest::Running {
                    self.guest = Guest::Answered;
                }
                self.advance(now);
            }
            (Phase::ResettingEstablished, Ok(Done::Control { .. }) | Err(BackendError::Refused(_))) => {
                self.advance(now);
            }
            (Phase::ShuttingDown, Ok(Done::Response)) => {
                match Header::of_whole(&self.response) {
                    Some(Header { code: 0, .. }) => {}
                    other => self.note_shutdown_failure(other.map(|header| header.code)),
                }
                self.power_down(now);
            }
            (Phase::Terminating, Ok(Done::Control { .. })) => self.end(now),
            (Phase::Idle, Err(error)) => {
                self.kill();
                self.fail(&error.to_string(), now);
            }
            (_, Err(error)) => self.fail(&error.to_string(), now),
            (_, Ok(_)) => {
                self.kill();
                self.fail("its process broke the protocol", now);
            }
        }
    }

    fn next_step(&mut self, now: Instant) {
        if self.goal != Goal::Serve {
            self.phase = Phase::Idle;
            return self.advance(now);
        }
        if let Some(step) = self.platform.step() {
            let begun = match &step.action {
                Action::Hash(data) => self.backend.hash(data),
                Action::Execute(command) => {
                    self.tracer.command(Sender::Platform, Locality::ZERO, command);
                    self.backend.execute(Locality::ZERO, command)
                }
            };
            self.begin(begun, Phase::Starting, START_LIMIT, now);
        } else if self.platform.wants_start() {
            self.phase = Phase::Idle;
            self.pursue(Goal::Reset, now);
        } else {
            log::debug!("the TPM is up");
            self.first_start = FirstStart::Done;
            self.failure = None;
            self.events.starts = self.events.starts.saturating_add(1);
            if let Some(action) = self.on_first_start.take() {
                action();
            }
            self.pristine = true;
            self.phase = Phase::Idle;
            self.advance(now);
        }
    }

    /// Failure mode: said once, and the guest gets a failure response to each command until the next reset.
    fn fail(&mut self, reason: &str, now: Instant) {
        self.phase = Phase::Failed;
        self.platform.failed();
        self.failure = Some(reason.to_owned());
        self.events.failures = self.events.failures.saturating_add(1);
        match (&self.first_start, self.goal) {
            (_, Goal::Stop) => self.stop_failure = Some(reason.to_owned()),
            (FirstStart::Awaited, _) => self.first_start = FirstStart::Failed(reason.to_owned()),
            (FirstStart::Failed(_), _) => {}
            (FirstStart::Done, Goal::Reset) => log::warn!("the TPM failed while it was reset: {reason}"),
            (FirstStart::Done, Goal::Serve) => {
                log::error!("the TPM is in failure mode until the next reset: {reason}");
            }
        }
        if self.guest == Guest::Running {
            self.answer_with(Fault::Failure);
        }
        self.advance(now);
    }

    fn answer_with(&mut self, fault: Fault) {
        self.command.zeroize();
        self.response.zeroize();
        self.response.extend_from_slice(&fault_response(self.platform.version(), fault));
        self.guest = Guest::Answered;
    }

    fn forget_guest(&mut self) {
        self.guest = Guest::Nothing;
        self.command.zeroize();
        self.response.zeroize();
        self.reset_established = None;
    }

    /// Sets the deadline of the operation under way, unless it has an earlier one.
    fn limit(&mut self, limit: Duration, now: Instant) {
        let new = now.checked_add(limit);
        self.deadline = match (self.deadline, new) {
            (Some(old), Some(new)) => Some(old.min(new)),
            (old, new) => new.or(old),
        };
    }

    /// A TPM that does not take its shutdown counts it as one it never got. Before firmware has started it up, it can't.
    fn note_shutdown_failure(&mut self, code: Option<u32>) {
        const TPM_RC_INITIALIZE: u32 = 0x100;
        let reason = match code {
            Some(TPM_RC_INITIALIZE) => return,
            Some(code) => format!("it answered TPM2_Shutdown with {code:#x}"),
            None => "it gave no well-formed answer to TPM2_Shutdown".to_owned(),
        };
        log::warn!("the TPM was not shut down in order: {reason}");
        if self.goal == Goal::Stop {
            self.stop_failure = Some(reason);
        }
    }

    /// The TPM is off, for good; what ran it goes away.
    fn end(&mut self, now: Instant) {
        self.kill();
        self.phase = Phase::Ending;
        self.deadline = None;
        self.limit(ABORT_LIMIT, now);
        if self.backend.is_gone() {
            self.phase = Phase::Off;
            self.deadline = None;
        }
    }

    fn kill(&mut self) {
        self.backend.kill();
        if let Err(error) = self.watch() {
            log::error!("{error}");
        }
    }

    /// Waits for the descriptors that the backend now has. A closed one leaves the registry by itself.
    fn watch(&mut self) -> Result<(), BackendError> {
        let Some(wakeup) = &self.wakeup else { return Ok(()) };
        while let Some(descriptor) = self.backend.take_new_descriptor() {
            wakeup
                .registry
                .register(&mut SourceFd(&descriptor.as_raw_fd()), wakeup.token, Interest::READABLE)
                .map_err(|error| BackendError::Gone(format!("cannot wait for its process: {error}")))?;
        }
        Ok(())
    }
}

/// Whether an operation has ended as it ends for this step.
fn is_answer(done: Done, step: Option<&Step>) -> bool {
    match step.map(|step| &step.action) {
        Some(Action::Execute(_)) => done == Done::Response,
        Some(Action::Hash(_)) => matches!(done, Done::Control { .. }),
        None => false,
    }
}

#[cfg(test)]
mod tests;
