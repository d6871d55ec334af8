//! The engine with a backend, and the event loop that it needs: for tests without registers and without a socket.

use std::io;
use std::time::{Duration, Instant};

use mio::{Events, Poll, Token};
use vfio_user_tpm::backend::Backend;
use vfio_user_tpm::engine::{Engine, Wakeup};
use vfio_user_tpm::platform::{Platform, StartupPolicy};
use vfio_user_tpm::tpm::{Locality, TpmVersion};

use super::tpm_commands::{RC_SUCCESS, code_of, nv_data, nv_define, nv_read, nv_write};

/// Nothing that is expected takes this long; a test that waits so long has failed.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// The NV index that tests use.
pub const NV: u32 = 0x0150_0001;

/// Makes the index, and writes it.
pub fn store_nv(tpm: &mut EngineTpm, data: &[u8]) {
    tpm.ok(&nv_define(NV, u16::try_from(data.len()).unwrap()));
    tpm.ok(&nv_write(NV, data));
}

pub fn load_nv(tpm: &mut EngineTpm, size: u16) -> Vec<u8> {
    nv_data(&tpm.ok(&nv_read(NV, size)))
}

/// A TPM that is kept running.
pub struct EngineTpm {
    pub engine: Engine,
    poll: Poll,
    events: Events,
}

impl EngineTpm {
    /// Begins to start a TPM as firmware does.
    pub fn start(version: TpmVersion, backend: impl Backend + 'static) -> Self {
        let poll = Poll::new().unwrap();
        let wakeup = Wakeup { registry: poll.registry().try_clone().unwrap(), token: Token(1) };
        let platform = Platform::new(version, StartupPolicy::Clear);
        let mut engine = Engine::new(Box::new(backend), platform, Some(wakeup));
        engine.reset(Instant::now());
        Self { engine, poll, events: Events::with_capacity(8) }
    }

    /// Waits for the backend once. Without a deadline of the engine's there must be something to wait for.
    pub fn turn(&mut self) {
        let deadline = self.engine.deadline();
        let wait = deadline.map_or(PATIENCE, |at| at.saturating_duration_since(Instant::now()));
        match self.poll.poll(&mut self.events, Some(wait)) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return,
            polled => polled.unwrap(),
        }
        assert!(deadline.is_some() || !self.events.is_empty(), "nothing comes from the backend");
        self.engine.poll(Instant::now());
    }

    /// As [`turn`](Self::turn), but comes back soon when there is nothing.
    pub fn turn_briefly(&mut self) {
        match self.poll.poll(&mut self.events, Some(Duration::from_millis(10))) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            polled => polled.unwrap(),
        }
        self.engine.poll(Instant::now());
    }

    /// Lets the operation under way take too long.
    pub fn time_out(&mut self) {
        let deadline = self.engine.deadline().expect("an operation under way has a deadline");
        self.engine.poll(deadline);
    }

    pub fn begin(&mut self, locality: u8, command: &[u8]) {
        self.engine.execute(Locality::new(locality).unwrap(), command, Instant::now());
    }

    pub fn response(&mut self) -> Vec<u8> {
        loop {
            if let Some(response) = self.engine.take_response(<[u8]>::to_vec) {
                return response;
            }
            self.turn();
        }
    }

    pub fn run_at(&mut self, locality: u8, command: &[u8]) -> Vec<u8> {
        self.begin(locality, command);
        self.response()
    }

    pub fn run(&mut self, command: &[u8]) -> Vec<u8> {
        self.run_at(0, command)
    }

    pub fn ok(&mut self, command: &[u8]) -> Vec<u8> {
        let response = self.run(command);
        assert_eq!(code_of(&response), RC_SUCCESS, "{command:02x?}; start failure: {:?}", self.engine.start_failure());
        response
    }

    pub fn reset(&mut self) {
        self.engine.reset(Instant::now());
    }

    /// Shuts the TPM down in order.
    pub fn stop(self) {
        assert_eq!(self.end(), None);
    }

    /// Shuts the TPM down; returns why not in order, if so.
    pub fn end(mut self) -> Option<String> {
        self.engine.stop(Instant::now());
        while !self.engine.is_off() {
            self.turn();
        }
        self.engine.stop_failure().map(ToOwned::to_owned)
    }

    /// Why the TPM could not be started.
    pub fn start_failure(&mut self) -> String {
        loop {
            if let Some(reason) = self.engine.start_failure() {
                return reason.to_owned();
            }
            self.turn();
        }
    }
}
