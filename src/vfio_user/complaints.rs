//! A bound on what a client can make the server write to its log.

use std::fmt;

/// Lines that one connection may cause.
const LIMIT: u32 = 16;

/// Warns about a client, at most [`LIMIT`] times a connection.
#[derive(Debug, Default)]
pub(super) struct Complaints {
    made: u32,
}

impl Complaints {
    pub(super) fn warn(&mut self, complaint: fmt::Arguments<'_>) {
        if self.made >= LIMIT {
            return;
        }
        self.made += 1;
        log::warn!("{complaint}");
        if self.made == LIMIT {
            log::warn!("further complaints about this client are not logged");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn complaints_end_at_the_limit() {
        let mut complaints = Complaints::default();
        for number in 0..1000 {
            complaints.warn(format_args!("complaint {number}"));
        }
        assert_eq!(complaints.made, LIMIT);
    }
}
