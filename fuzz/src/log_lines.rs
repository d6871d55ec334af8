//! Makes every log line, so that what formats it runs too, and holds that no peer can put control characters into one.

use std::sync::Once;

use log::{LevelFilter, Log, Metadata, Record};

struct Checked;

impl Log for Checked {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.target().starts_with("vfio_user_tpm")
    }

    fn log(&self, record: &Record<'_>) {
        if self.enabled(record.metadata()) {
            let line = record.args().to_string();
            assert!(!line.chars().any(char::is_control), "{line:?}");
            assert!(line.len() < 8192, "a line of {} bytes", line.len());
        }
    }

    fn flush(&self) {}
}

pub fn check() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        log::set_logger(&Checked).expect("there is no other");
        log::set_max_level(LevelFilter::Trace);
    });
}
