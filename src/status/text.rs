//! The report for a person.

use std::fmt::{self, Display, Write};
use std::time::Duration;

use super::{Commands, Presence, Report};

/// Characters of the longest bar in the histogram.
const BAR: u64 = 40;

/// What another process has said, with its control characters made visible; line breaks stay.
#[must_use]
pub fn legible(text: &str) -> String {
    let mut legible = String::with_capacity(text.len());
    for character in text.chars() {
        if character == '\n' || is_printable(character) {
            legible.push(character);
        } else {
            // As in JSON. It fails only where the writer does, which a string does not.
            let units =
                character.encode_utf16(&mut [0; 2]).iter().try_for_each(|unit| write!(legible, "\\u{unit:04x}"));
            let _: fmt::Result = units;
        }
    }
    legible
}

/// Neither a control character nor one that changes how others are shown.
fn is_printable(character: char) -> bool {
    !character.is_control() && (character.is_ascii() || character.escape_debug().len() == 1)
}

impl Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { format: _, program, tpm, device, client, connections, accesses, commands } = self;
        let started = i64::try_from(program.started).ok().and_then(|second| jiff::Timestamp::from_second(second).ok());
        let started = started.map_or_else(|| "a time that is none".to_owned(), |time| time.to_string());
        let uptime = Span(program.uptime_seconds);
        writeln!(
            f,
            "{} {}, process {}, since {started} ({uptime})",
            Words(&program.name),
            Words(&program.version),
            program.process
        )?;

        let state = if tpm.ephemeral { ", ephemeral" } else { "" };
        let about = tpm.about.as_ref().map_or_else(String::new, |about| format!(" ({})", Words(about)));
        writeln!(
            f,
            "TPM {}      {}: {}{state}{about}",
            Words(&tpm.version),
            Words(&tpm.condition),
            Words(&tpm.backend)
        )?;
        if let Some(failure) = &tpm.failure {
            writeln!(f, "             failed: {}", Words(failure))?;
        }
        let (starts, failures, launches) = (Times(tpm.starts), Times(tpm.failures), Times(tpm.process_starts));
        writeln!(f, "             brought up {starts}, failed {failures}, its process started {launches}")?;

        let bar0 = device.bar0.map_or_else(|| "nowhere".to_owned(), |address| format!("at {address:#x}"));
        let locality = device.locality.map_or_else(|| "no locality".to_owned(), |number| format!("locality {number}"));
        let resets = Times(device.resets);
        writeln!(
            f,
            "device       {}, BAR0 {bar0}, {locality}, {}, reset {resets}",
            Words(&device.interface),
            Words(&device.progress)
        )?;
        writeln!(
            f,
            "             {} reads, {} writes, {} of configuration space; {} answers held back",
            accesses.reads, accesses.writes, accesses.configuration, accesses.held_answers
        )?;

        if let Some(Presence { pending, last, response }) = device.presence {
            if let Some(pending) = pending {
                writeln!(f, "             physical presence operation {pending} waits for a reset")?;
            }
            if let (Some(last), Some(response)) = (last, response) {
                writeln!(f, "             physical presence operation {last} was answered with {response:#x}")?;
            }
        }

        match client {
            None => write!(f, "client       none")?,
            Some(client) => {
                let number = |number: Option<i64>| number.map_or_else(|| "?".to_owned(), |number| number.to_string());
                let (process, user) = (number(client.process.map(i64::from)), number(client.user.map(i64::from)));
                write!(f, "client       process {process} of user {user}, for {}", Span(client.connected_seconds))?;
            }
        }
        writeln!(f, "; {} served so far, {} refused", connections.made, connections.refused)?;
        commands.fmt(f)
    }
}

impl Display for Commands {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { answered, errors, cancelled, abandoned, by_command, by_error, latency } = self;
        writeln!(
            f,
            "commands     {answered} answered, {errors} of them with an error; {cancelled} cancelled, {abandoned} ended \
             by a reset"
        )?;
        if *answered == 0 {
            return Ok(());
        }
        writeln!(f, "\n{:40} {:>10} {:>10} {:>12}", "command", "answered", "errors", "mean")?;
        for tally in by_command {
            let mean = Span(tally.seconds / to_float(tally.answered)).to_string();
            writeln!(f, "{:40} {:>10} {:>10} {mean:>12}", Words(&tally.command), tally.answered, tally.errors)?;
        }
        let classes: Vec<_> = by_error.iter().filter(|tally| tally.errors > 0).collect();
        if !classes.is_empty() {
            writeln!(f, "\n{:40} {:>10}", "error", "responses")?;
            for tally in classes {
                writeln!(f, "{:40} {:>10}", Words(&tally.class), tally.errors)?;
            }
        }
        writeln!(f, "\n{:40} {:>10}", "took at most", "commands")?;
        let bounded = latency.buckets.iter().map(|bucket| (Span(bucket.at_most_seconds).to_string(), bucket.commands));
        let rows: Vec<_> = bounded.chain([("more".to_owned(), latency.above)]).collect();
        let most = rows.iter().map(|&(_, count)| count).max().unwrap_or(0).max(1);
        let first = rows.iter().position(|&(_, count)| count > 0).unwrap_or(0);
        let last = rows.iter().rposition(|&(_, count)| count > 0).unwrap_or(0);
        for (bound, count) in rows.get(first..=last).unwrap_or_default() {
            // Both are below 2^64, and so is the bar.
            let bar = usize::try_from(u128::from(*count) * u128::from(BAR) / u128::from(most)).unwrap_or(0);
            writeln!(f, "{bound:40} {count:>10} {}", "#".repeat(bar))?;
        }
        Ok(())
    }
}

/// A word or two of another process, on the line where they belong.
struct Words<'a>(&'a str);

impl Display for Words<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&legible(self.0).replace('\n', "\\u000a"))
    }
}

#[expect(clippy::cast_precision_loss, reason = "for a mean that is shown in three digits")]
fn to_float(count: u64) -> f64 {
    count as f64
}

/// A number of times.
struct Times(u64);

impl Display for Times {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            0 => f.write_str("never"),
            1 => f.write_str("once"),
            more => write!(f, "{more} times"),
        }
    }
}

/// A time span in seconds, in the unit that suits it.
struct Span(f64);

impl Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = Duration::try_from_secs_f64(self.0).unwrap_or_default().as_secs();
        match self.0 {
            short if short < 0.001 => write!(f, "{:.0} µs", short * 1e6),
            short if short < 1.0 => write!(f, "{} ms", Rounded(short * 1e3)),
            short if short < 60.0 => write!(f, "{} s", Rounded(short)),
            _ if seconds < 3600 => write!(f, "{} min {} s", seconds / 60, seconds % 60),
            _ if seconds < 86400 => write!(f, "{} h {} min", seconds / 3600, seconds / 60 % 60),
            _ => write!(f, "{} d {} h", seconds / 86400, seconds / 3600 % 24),
        }
    }
}

/// With a digit after the point only where that says something.
struct Rounded(f64);

impl Display for Rounded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.fract() == 0.0 || self.0 >= 100.0 { write!(f, "{:.0}", self.0) } else { write!(f, "{:.1}", self.0) }
    }
}

#[cfg(test)]
mod tests {
    use super::super::report::tests::example;
    use super::*;

    #[test]
    fn a_person_reads_it_in_a_few_lines() {
        let text = legible(&example().to_string());
        assert_eq!(text, include_str!("../../tests/status/report.txt"));
    }

    #[test]
    fn nobody_s_words_make_a_line_of_their_own() {
        let mut report = example();
        report.tpm.failure = Some("gone\n\nTPM 2.0      up".to_owned());
        let text = report.to_string();
        assert!(text.contains("failed: gone\\u000a\\u000aTPM 2.0      up\n"), "{text}");
    }

    #[test]
    fn control_characters_are_made_visible() {
        assert_eq!(legible("a\u{1b}[31m\tb\u{9b}\u{7f}\nc"), "a\\u001b[31m\\u0009b\\u009b\\u007f\nc");
        // In JSON they stay what they were.
        let odd = "\u{1b}\u{9b}\u{7f}\u{202e}\u{e0001}é😀";
        let json = legible(&serde_json::to_string(odd).unwrap());
        assert!(json.ends_with("é😀\"") && !json.contains('\u{202e}'), "{json}");
        assert_eq!(serde_json::from_str::<String>(&json).unwrap(), odd);
    }

    #[test]
    fn spans_are_in_the_unit_that_suits_them() {
        for (seconds, text) in [
            (0.0, "0 µs"),
            (0.00005, "50 µs"),
            (0.0025, "2.5 ms"),
            (0.25, "250 ms"),
            (30.0, "30 s"),
            (75.25, "1 min 15 s"),
            (90_061.5, "1 d 1 h"),
            (f64::NAN, "0 min 0 s"),
        ] {
            assert_eq!(Span(seconds).to_string(), text);
        }
    }
}
