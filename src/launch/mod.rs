//! Starts the processes in which TPMs run: directly, or through a spawner for a server that is confined.

mod direct;
mod spawner;
mod spawner_process;

pub use direct::Program;
pub use spawner::{SUBCOMMAND as SPAWNER, Spawner, SpawnerConfig};
pub use spawner_process::{Remover, SpawnerError, Spawning, run as run_spawner};

use std::fmt::Debug;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};

use direct::Started;
use spawner::Spawned;

/// Starts a program, as often as it is needed.
pub trait Launcher: Debug {
    /// Starts the program with this standard input. It gets no other descriptor but standard error, and ends with us at
    /// the latest.
    ///
    /// # Errors
    /// Those of the system calls that it takes. That a program cannot be started may also come by [`Process::end`].
    fn launch(&self, stdin: OwnedFd) -> io::Result<Process>;
}

/// A process that was launched, until it is gone. It is killed when this goes.
#[derive(Debug)]
pub struct Process(Inner);

#[derive(Debug)]
enum Inner {
    Started(Started),
    Spawned(Spawned),
}

impl Process {
    /// Kills it, whatever it does. It may take its time to go, for example while a disk does not answer;
    /// [`end`](Self::end) tells.
    pub fn kill(&mut self) {
        match &mut self.0 {
            Inner::Started(process) => process.kill(),
            Inner::Spawned(process) => process.kill(),
        }
    }

    /// How it ended, in words, once it has.
    pub fn end(&mut self) -> Option<&str> {
        match &mut self.0 {
            Inner::Started(process) => process.end(),
            Inner::Spawned(process) => process.end(),
        }
    }

    /// Becomes readable when [`end`](Self::end) has something to say.
    #[must_use]
    pub fn descriptor(&self) -> BorrowedFd<'_> {
        match &self.0 {
            Inner::Started(process) => process.descriptor(),
            Inner::Spawned(process) => process.descriptor(),
        }
    }
}
