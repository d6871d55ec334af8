//! Nothing stays open: of the whole process, so that only one input at a time is run.

use std::fs;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// Closing takes no longer, on any machine.
const PATIENCE: Duration = Duration::from_secs(10);

static ALONE: Mutex<()> = Mutex::new(());

/// Runs `body` and holds that the same descriptors are open after it as before.
pub fn unchanged_by(body: impl FnOnce()) {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let before = open();
    body();
    // Some are closed by a thread of their own.
    let end = Instant::now() + PATIENCE;
    while open() != before && Instant::now() < end {
        thread::sleep(Duration::from_micros(100));
    }
    assert_eq!(open(), before);
}

/// What each is open on; the one by which this is found out has no name that stays.
fn open() -> Vec<PathBuf> {
    let entries = fs::read_dir("/proc/self/fd").expect("there is a /proc").flatten();
    let mut open: Vec<_> = entries.filter_map(|entry| fs::read_link(entry.path()).ok()).collect();
    open.sort();
    open
}
