//! A bound on what a peer, a guest or a backend can make the program write to its log.
//!
//! It sits in front of the logger, so it holds for every line of every module, also for those that nobody thought to be
//! in a stranger's hands. Lines for finding faults (`debug`, `trace`) are not limited: who asks for them wants them all.
#![forbid(unsafe_code)]

use std::collections::HashMap;
use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use log::{Level, Log, Metadata, Record};

/// Lines that one place in the code may write in a [`WINDOW`]; the rest is counted.
const LINES: u32 = 10;

const WINDOW: Duration = Duration::from_secs(60);

/// Characters that are kept of a line, to say later what there was more of.
const KEPT: usize = 200;

/// A logger whose lines are limited.
#[derive(Debug)]
pub struct LimitedLog<L> {
    inner: L,
    /// As many as there are places in the program that log.
    places: Mutex<HashMap<Place, Window>>,
}

/// Where in the code a line comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Place {
    file: &'static str,
    line: u32,
}

/// What a place has written lately.
#[derive(Debug)]
struct Window {
    since: Instant,
    /// Lines so far, those included that were only counted.
    lines: u64,
    level: Level,
    /// The beginning of the last line that was written.
    last: String,
}

/// What becomes of a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Write,
    /// It is written, and the next ones will not be.
    WriteLast,
    Count,
}

impl<L> LimitedLog<L> {
    /// Limits the lines that reach `inner`.
    pub fn new(inner: L) -> Self {
        Self { inner, places: Mutex::default() }
    }

    fn places(&self) -> MutexGuard<'_, HashMap<Place, Window>> {
        // What a panic may have left half done is only a count.
        self.places.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn admit(&self, place: Place, level: Level, text: fmt::Arguments<'_>, now: Instant) -> Verdict {
        let mut places = self.places();
        let window = places.entry(place).or_insert_with(|| Window { since: now, lines: 0, level, last: String::new() });
        window.lines = window.lines.saturating_add(1);
        let limit = u64::from(LINES);
        if window.lines > limit {
            return Verdict::Count;
        }
        if window.lines < limit {
            return Verdict::Write;
        }
        window.last = text.to_string().chars().take(KEPT).collect();
        Verdict::WriteLast
    }

    /// Forgets the windows that have ended, and gives those in which lines were only counted.
    fn take_ended(&self, has_ended: impl Fn(&Window) -> bool) -> Vec<Window> {
        let mut ended = Vec::new();
        self.places().retain(|_, window| {
            let over = has_ended(window);
            if over && window.lines > LINES.into() {
                let last = std::mem::take(&mut window.last);
                ended.push(Window { last, ..*window });
            }
            !over
        });
        ended
    }
}

impl<L: Log> LimitedLog<L> {
    fn report(&self, windows: Vec<Window>) {
        for Window { lines, level, last, .. } in windows {
            let more = lines.saturating_sub(LINES.into());
            self.inner.log(&Record::builder().level(level).args(format_args!("{more} more like: {last}")).build());
        }
    }
}

impl<L: Log> Log for LimitedLog<L> {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        self.inner.enabled(metadata)
    }

    fn log(&self, record: &Record<'_>) {
        if record.level() > Level::Info || !self.enabled(record.metadata()) {
            return self.inner.log(record);
        }
        let now = Instant::now();
        self.report(self.take_ended(|window| now.saturating_duration_since(window.since) >= WINDOW));
        let place = Place { file: record.file_static().unwrap_or_default(), line: record.line().unwrap_or_default() };
        match self.admit(place, record.level(), *record.args(), now) {
            Verdict::Write => self.inner.log(record),
            Verdict::WriteLast => {
                self.inner.log(
                    &Record::builder()
                        .metadata(record.metadata().clone())
                        .args(format_args!("{} (more like this are only counted for a while)", record.args()))
                        .build(),
                );
            }
            Verdict::Count => {}
        }
    }

    /// Also says what was only counted so far.
    fn flush(&self) {
        self.report(self.take_ended(|_| true));
        self.inner.flush();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Keeps what is logged.
    #[derive(Default)]
    struct Kept(Mutex<Vec<String>>);

    impl Log for Kept {
        fn enabled(&self, metadata: &Metadata<'_>) -> bool {
            metadata.level() <= Level::Debug
        }

        fn log(&self, record: &Record<'_>) {
            self.0.lock().unwrap().push(record.args().to_string());
        }

        fn flush(&self) {}
    }

    fn log(log: &LimitedLog<Kept>, level: Level, line: u32, text: &str) {
        let args = format_args!("{text}");
        log.log(&Record::builder().level(level).file_static(Some("peer.rs")).line(Some(line)).args(args).build());
    }

    fn kept(log: &LimitedLog<Kept>) -> Vec<String> {
        std::mem::take(&mut log.inner.0.lock().unwrap())
    }

    #[test]
    fn a_place_that_logs_much_is_cut_short_and_the_others_are_not() {
        let limited = LimitedLog::new(Kept::default());
        for _ in 0..1000 {
            log(&limited, Level::Info, 1, "noise");
        }
        log(&limited, Level::Error, 2, "important");
        let lines = kept(&limited);
        assert_eq!(lines.len(), LINES as usize + 1);
        assert!(lines.iter().rev().nth(1).is_some_and(|line| line.starts_with("noise (more")), "{lines:?}");
        assert_eq!(lines.last().map(String::as_str), Some("important"));
    }

    #[test]
    fn what_was_only_counted_is_told_at_the_end_of_its_window() {
        let limited = LimitedLog::new(Kept::default());
        for _ in 0..25 {
            log(&limited, Level::Warn, 1, "noise");
        }
        kept(&limited);
        let start = limited.places().values().next().unwrap().since;
        assert!(limited.take_ended(|window| window.since > start).is_empty());
        limited.report(limited.take_ended(|window| window.since <= start));
        assert_eq!(kept(&limited), ["15 more like: noise"]);
        log(&limited, Level::Warn, 1, "noise");
        assert_eq!(kept(&limited), ["noise"], "a new window has begun");
    }

    #[test]
    fn nothing_is_told_of_places_that_kept_within_the_limit() {
        let limited = LimitedLog::new(Kept::default());
        for _ in 0..LINES {
            log(&limited, Level::Warn, 1, "noise");
        }
        kept(&limited);
        limited.flush();
        assert!(kept(&limited).is_empty());
    }

    #[test]
    fn lines_for_finding_faults_are_all_there() {
        let limited = LimitedLog::new(Kept::default());
        for _ in 0..100 {
            log(&limited, Level::Debug, 1, "detail");
        }
        assert_eq!(kept(&limited).len(), 100);
    }

    #[test]
    fn little_is_kept_of_a_long_line() {
        let limited = LimitedLog::new(Kept::default());
        for _ in 0..20 {
            log(&limited, Level::Info, 1, &"x".repeat(100_000));
        }
        kept(&limited);
        limited.flush();
        assert!(kept(&limited).iter().all(|line| line.len() < 2 * KEPT));
    }
}
