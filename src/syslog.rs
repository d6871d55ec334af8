//! The system's log, by its socket (syslog(3)): a logger that never waits for it.
//!
//! A line is a datagram, `<PRIORITY>TAG[PID]: text`, which journald, rsyslog and syslog-ng take. Its time is theirs to
//! say: to know the local one would take files. A line that the log does not take at once is lost and counted; the next one
//! that it takes comes behind one with that number. If the log is started anew with another socket, all further lines are
//! lost: who is confined cannot connect again.
#![forbid(unsafe_code)]
#![warn(clippy::arithmetic_side_effects)]

use std::fmt;
use std::io;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use log::{Level, LevelFilter, Log, Metadata, Record};

/// The facility `daemon` (syslog(3)), in the place that it has in a priority.
const DAEMON: u8 = 3 << 3;

/// Bytes in the longest datagram. The rest of a line is cut off; what a log has to take is a kibibyte (RFC 3164, 4.1).
const MAX_LENGTH: usize = 2048;

/// A level's severity (syslog(3)), also what journald reads in `<N>` in front of a line (sd-daemon(3)).
#[must_use]
pub fn severity(level: Level) -> u8 {
    match level {
        Level::Error => 3,
        Level::Warn => 4,
        Level::Info => 6,
        Level::Debug | Level::Trace => 7,
    }
}

/// A connection to the system's log.
#[derive(Debug)]
pub struct Syslog {
    socket: UnixDatagram,
    /// `TAG[PID]`.
    tag: String,
    level: LevelFilter,
    /// Lines that were not taken and that the log has not been told of.
    lost: AtomicU64,
}

impl Syslog {
    /// Connects to the log at `socket`, to write lines of at most `level` as this process.
    ///
    /// # Errors
    /// Nobody listens there, or this user may not write to it.
    pub fn connect(socket: &Path, level: LevelFilter) -> io::Result<Self> {
        let connection = UnixDatagram::unbound()?;
        connection.set_nonblocking(true)?;
        connection.connect(socket)?;
        // Asked once: each time would be a system call.
        let tag = format!("{}[{}]", env!("CARGO_PKG_NAME"), std::process::id());
        Ok(Self { socket: connection, tag, level, lost: AtomicU64::new(0) })
    }

    fn write(&self, level: Level, text: impl fmt::Display) -> io::Result<()> {
        let mut line = format!("<{}>{}: {text}", DAEMON | severity(level), self.tag);
        let cut = (0..=MAX_LENGTH.min(line.len())).rev().find(|at| line.is_char_boundary(*at));
        line.truncate(cut.unwrap_or(0));
        // Not by send(2), which the worker does not need for anything else.
        nix::unistd::write(&self.socket, line.as_bytes())?;
        Ok(())
    }

    /// Says how many lines were lost, if any were.
    fn tell_of_lost(&self) -> io::Result<()> {
        let lost = self.lost.load(Ordering::Relaxed);
        if lost > 0 {
            self.write(Level::Warn, format_args!("{lost} lines are missing here: the log did not take them"))?;
            self.lost.fetch_sub(lost, Ordering::Relaxed);
        }
        Ok(())
    }
}

impl Log for Syslog {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.level() <= self.level
    }

    fn log(&self, record: &Record<'_>) {
        if !self.enabled(record.metadata()) {
            return;
        }
        for line in record.args().to_string().lines() {
            if self.tell_of_lost().and_then(|()| self.write(record.level(), line)).is_err() {
                self.lost.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    fn flush(&self) {
        // There is nobody else to tell.
        let _ = self.tell_of_lost();
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    /// A log that a test reads, and one connected to it.
    fn connected() -> (tempfile::TempDir, UnixDatagram, Syslog) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        let log = UnixDatagram::bind(&path).unwrap();
        log.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        let syslog = Syslog::connect(&path, LevelFilter::Info).unwrap();
        (folder, log, syslog)
    }

    fn say(syslog: &Syslog, level: Level, text: &str) {
        syslog.log(&Record::builder().level(level).args(format_args!("{text}")).build());
    }

    fn read(log: &UnixDatagram) -> String {
        let mut line = [0; 2 * MAX_LENGTH];
        let length = log.recv(&mut line).unwrap();
        String::from_utf8(line[..length].to_vec()).unwrap()
    }

    #[test]
    fn lines_have_priority_name_and_process() {
        let (_folder, log, syslog) = connected();
        let pid = std::process::id();
        say(&syslog, Level::Debug, "not wanted");
        say(&syslog, Level::Info, "one\ntwo");
        say(&syslog, Level::Error, "three");
        assert_eq!(read(&log), format!("<30>vfio-user-tpm[{pid}]: one"));
        assert_eq!(read(&log), format!("<30>vfio-user-tpm[{pid}]: two"));
        assert_eq!(read(&log), format!("<27>vfio-user-tpm[{pid}]: three"));
    }

    #[test]
    fn a_log_that_nobody_reads_is_not_waited_for_and_hears_what_it_has_missed() {
        let (_folder, log, syslog) = connected();
        let mut said = 0_u64;
        while syslog.lost.load(Ordering::Relaxed) < 3 {
            said += 1;
            say(&syslog, Level::Info, "a line");
        }
        for _ in 0..said - 3 {
            assert!(read(&log).ends_with("a line"));
        }
        say(&syslog, Level::Info, "at last");
        assert!(read(&log).ends_with("]: 3 lines are missing here: the log did not take them"));
        assert!(read(&log).ends_with("]: at last"));
    }

    #[test]
    fn a_log_that_is_gone_is_no_harm() {
        let (_folder, log, syslog) = connected();
        drop(log);
        say(&syslog, Level::Error, "anybody there?");
        syslog.flush();
        assert_eq!(syslog.lost.load(Ordering::Relaxed), 1);
    }

    #[test]
    fn a_long_line_is_cut_between_characters() {
        let (_folder, log, syslog) = connected();
        say(&syslog, Level::Info, &"ä".repeat(MAX_LENGTH));
        assert!((MAX_LENGTH - 1..=MAX_LENGTH).contains(&read(&log).len()));
    }
}
