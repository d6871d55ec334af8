//! Nothing stays open: counted for the whole process, so that only one input at a time is run.

use std::fs;
use std::sync::{Mutex, PoisonError};

static ALONE: Mutex<()> = Mutex::new(());

/// Runs `body` and holds that as many descriptors are open after it as before.
pub fn unchanged_by(body: impl FnOnce()) {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let before = count();
    body();
    assert_eq!(count(), before, "open descriptors");
}

fn count() -> usize {
    fs::read_dir("/proc/self/fd").expect("there is a /proc").count()
}
