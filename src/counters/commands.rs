//! The commands of the guest, by their code.

use std::time::Instant;

use super::{ErrorClass, Latency, tpm12, tpm20};
use crate::tpm::{Header, TpmVersion};

/// The name under which commands count whose code is on no list.
const OTHER: &str = "other";

/// What became of the commands with one code.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Commands that were answered.
    pub answered: u64,
    /// Those of them whose response code was not 0.
    pub errors: u64,
    /// What they took in all, in nanoseconds, from the guest's start of the command on.
    pub nanoseconds: u64,
}

/// Counts a guest's commands.
#[derive(Clone, Debug)]
pub struct CommandCounters {
    version: TpmVersion,
    codes: &'static [(u32, &'static str)],
    /// One for each code, and the last for all others.
    tallies: Box<[Tally]>,
    errors: [u64; ErrorClass::COUNT],
    latency: Latency,
    /// The place among the tallies of the command under way, and when it was started.
    under_way: Option<(usize, Instant)>,
    abandoned: u64,
}

impl CommandCounters {
    /// Counters of a TPM of this version, all zero.
    #[must_use]
    pub fn new(version: TpmVersion) -> Self {
        let codes = match version {
            TpmVersion::V1_2 => tpm12::COMMANDS,
            TpmVersion::V2_0 => tpm20::COMMANDS,
        };
        Self {
            version,
            codes,
            tallies: vec![Tally::default(); codes.len().saturating_add(1)].into(),
            errors: [0; ErrorClass::COUNT],
            latency: Latency::default(),
            under_way: None,
            abandoned: 0,
        }
    }

    /// The guest starts this command.
    pub fn begin(&mut self, command: &[u8], now: Instant) {
        let code = Header::parse(command).map(|header| header.code);
        let place = code.and_then(|code| self.codes.binary_search_by_key(&code, |&(known, _)| known).ok());
        self.under_way = Some((place.unwrap_or(self.codes.len()), now));
    }

    /// The command under way has this response. Without one there is nothing to count.
    pub fn end(&mut self, response: &[u8], now: Instant) {
        let Some((place, since)) = self.under_way.take() else { return };
        let Some(tally) = self.tallies.get_mut(place) else { return };
        let took = u64::try_from(now.saturating_duration_since(since).as_nanos()).unwrap_or(u64::MAX);
        tally.answered = tally.answered.saturating_add(1);
        tally.nanoseconds = tally.nanoseconds.saturating_add(took);
        self.latency.count(took);
        // What is no response reaches the guest as a failure.
        let class = match Header::of_whole(response) {
            Some(header) => ErrorClass::of(self.version, header.code),
            None => Some(ErrorClass::Failure),
        };
        if let Some(class) = class {
            tally.errors = tally.errors.saturating_add(1);
            if let Some(count) = self.errors.get_mut(class as usize) {
                *count = count.saturating_add(1);
            }
        }
    }

    /// A reset has come first: the command under way, if there is one, is never answered.
    pub fn abandon(&mut self) {
        if self.under_way.take().is_some() {
            self.abandoned = self.abandoned.saturating_add(1);
        }
    }

    /// Commands that a reset has ended.
    #[must_use]
    pub fn abandoned(&self) -> u64 {
        self.abandoned
    }

    /// The names under which commands were answered, in the order of their codes; `other` comes last.
    pub fn tallies(&self) -> impl Iterator<Item = (&'static str, Tally)> {
        let names = self.codes.iter().map(|&(_, name)| name).chain([OTHER]);
        names.zip(self.tallies.iter().copied()).filter(|(_, tally)| tally.answered > 0)
    }

    /// How many responses there were of each class of errors.
    pub fn errors(&self) -> impl Iterator<Item = (ErrorClass, u64)> {
        ErrorClass::ALL.into_iter().zip(self.errors)
    }

    /// What commands took.
    #[must_use]
    pub fn latency(&self) -> &Latency {
        &self.latency
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;

    fn message(code: u32) -> [u8; 10] {
        Header { tag: 0x8001, size: 10, code }.to_bytes()
    }

    fn run(counters: &mut CommandCounters, code: u32, response: &[u8], took: Duration) {
        let now = Instant::now();
        counters.begin(&message(code), now);
        counters.end(response, now + took);
    }

    #[test]
    fn the_codes_are_in_order_so_that_they_are_found() {
        for version in [TpmVersion::V1_2, TpmVersion::V2_0] {
            let counters = CommandCounters::new(version);
            assert!(counters.codes.is_sorted_by(|(a, _), (b, _)| a < b), "{version}");
            let mut names: Vec<_> = counters.codes.iter().map(|(_, name)| name).collect();
            names.sort_unstable();
            names.dedup();
            assert_eq!(names.len(), counters.codes.len());
        }
    }

    #[test]
    fn a_command_counts_under_the_name_of_its_version_with_its_time() {
        for (version, code, name) in [
            (TpmVersion::V2_0, 0x17b, "TPM2_GetRandom"),
            (TpmVersion::V2_0, 0x11f, "TPM2_NV_UndefineSpaceSpecial"),
            (TpmVersion::V2_0, 0x2000_0000, "TPM2_Vendor_TCG_Test"),
            (TpmVersion::V1_2, 0x46, "TPM_GetRandom"),
            (TpmVersion::V1_2, 0x4000_000a, "TSC_PhysicalPresence"),
            (TpmVersion::V1_2, 0x17b, "other"),
            (TpmVersion::V2_0, 0x46, "other"),
        ] {
            let mut counters = CommandCounters::new(version);
            run(&mut counters, code, &message(0), Duration::from_micros(5));
            let expected = Tally { answered: 1, errors: 0, nanoseconds: 5000 };
            assert_eq!(counters.tallies().collect::<Vec<_>>(), [(name, expected)]);
            assert!(counters.errors().all(|(_, count)| count == 0));
        }
    }

    #[test]
    fn errors_count_by_command_and_by_class() {
        let mut counters = CommandCounters::new(TpmVersion::V2_0);
        run(&mut counters, 0x131, &message(0x921), Duration::ZERO);
        run(&mut counters, 0x131, &message(0), Duration::ZERO);
        // Longer than it says, and nothing.
        run(&mut counters, 0x131, &[&message(0)[..], &[0]].concat(), Duration::ZERO);
        run(&mut counters, 0x131, &[], Duration::ZERO);
        let (name, tally) = counters.tallies().next().unwrap();
        assert_eq!((name, tally.answered, tally.errors), ("TPM2_CreatePrimary", 4, 3));
        let errors: Vec<_> = counters.errors().filter(|&(_, count)| count > 0).collect();
        assert_eq!(errors, [(ErrorClass::Failure, 2), (ErrorClass::Lockout, 1)]);
    }

    #[test]
    fn what_a_reset_ends_has_no_latency() {
        let mut counters = CommandCounters::new(TpmVersion::V2_0);
        counters.begin(&message(0x17b), Instant::now());
        counters.abandon();
        counters.abandon();
        counters.end(&message(0), Instant::now());
        assert_eq!((counters.abandoned(), counters.latency().count_of_all()), (1, 0));
        assert_eq!(counters.tallies().count(), 0);
    }

    proptest! {
        #[test]
        fn whatever_a_guest_sends_counts_once_and_the_storage_stays(
            messages in prop::collection::vec((prop::collection::vec(any::<u8>(), 0..20), any::<u32>()), 0..100),
        ) {
            let mut counters = CommandCounters::new(TpmVersion::V2_0);
            let size = counters.tallies.len();
            for (command, code) in &messages {
                counters.begin(command, Instant::now());
                counters.end(&message(*code), Instant::now());
            }
            let answered: u64 = counters.tallies().map(|(_, tally)| tally.answered).sum();
            let errors: u64 = counters.tallies().map(|(_, tally)| tally.errors).sum();
            prop_assert_eq!(answered, messages.len() as u64);
            prop_assert_eq!(errors, counters.errors().map(|(_, count)| count).sum::<u64>());
            prop_assert_eq!(counters.latency().count_of_all(), answered);
            prop_assert_eq!(counters.tallies.len(), size);
        }
    }
}
