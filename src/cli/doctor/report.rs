//! What was found, and how it is shown.

use std::fmt::Write as _;

use serde::Serialize;

/// Columns of the text.
const WIDTH: usize = 100;
/// Columns of the words in front: how bad, and of what.
const LEVEL_WIDTH: usize = 9;
const NAME_WIDTH: usize = 14;
/// What begins the line that says what to do.
const ADVICE: &str = "-> ";

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Level {
    Ok,
    /// It works, and not as well, or not for as long, as it should.
    Warning,
    /// It does not work.
    Problem,
}

/// What one check has found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Finding {
    check: &'static str,
    level: Level,
    found: String,
    /// What to do about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    advice: Option<String>,
}

impl Finding {
    pub(super) fn ok(check: &'static str, found: impl AsRef<str>) -> Self {
        Self { check, level: Level::Ok, found: printable(found.as_ref()), advice: None }
    }

    pub(super) fn warning(check: &'static str, found: impl AsRef<str>, advice: impl AsRef<str>) -> Self {
        Self { level: Level::Warning, advice: Some(printable(advice.as_ref())), ..Self::ok(check, found) }
    }

    pub(super) fn problem(check: &'static str, found: impl AsRef<str>, advice: impl AsRef<str>) -> Self {
        Self { level: Level::Problem, ..Self::warning(check, found, advice) }
    }

    #[cfg(test)]
    pub(super) fn level(&self) -> Level {
        self.level
    }

    /// All that it says, for tests.
    #[cfg(test)]
    pub(super) fn text(&self) -> String {
        format!("{}: {} {}", self.check, self.found, self.advice.as_deref().unwrap_or_default())
    }
}

/// All findings.
#[derive(Serialize)]
pub(super) struct Report {
    version: &'static str,
    checks: Vec<Finding>,
    problems: usize,
    warnings: usize,
}

impl Report {
    pub(super) fn new(checks: Vec<Finding>) -> Self {
        let count = |level| checks.iter().filter(|finding| finding.level == level).count();
        let (problems, warnings) = (count(Level::Problem), count(Level::Warning));
        Self { version: env!("CARGO_PKG_VERSION"), checks, problems, warnings }
    }

    pub(super) fn is_good(&self) -> bool {
        self.problems == 0
    }

    /// For people.
    pub(super) fn text(&self) -> String {
        let mut text = String::new();
        for Finding { check, level, found, advice } in &self.checks {
            let level = match level {
                Level::Ok => "ok",
                Level::Warning => "warning",
                Level::Problem => "problem",
            };
            let front = format!("{level:LEVEL_WIDTH$}{check:NAME_WIDTH$}");
            write_wrapped(&mut text, &front, found);
            let Some(advice) = advice else { continue };
            write_wrapped(&mut text, &format!("{:1$}{ADVICE}", "", LEVEL_WIDTH + NAME_WIDTH), advice);
        }
        text.push_str(&self.conclusion());
        text
    }

    fn conclusion(&self) -> String {
        let count = |number, name| format!("{number} {name}{}", if number == 1 { "" } else { "s" });
        match (self.problems, self.warnings) {
            (0, 0) => "\nNo problems: this machine is ready.\n".to_owned(),
            (0, warnings) => format!("\nNo problems, {}.\n", count(warnings, "warning")),
            (problems, 0) => format!("\n{}.\n", count(problems, "problem")),
            (problems, warnings) => format!("\n{}, {}.\n", count(problems, "problem"), count(warnings, "warning")),
        }
    }

    /// For programs.
    pub(super) fn json(&self) -> String {
        format!("{:#}\n", serde_json::json!(self))
    }
}

/// What can be shown on a terminal: much of it comes from other programs and from files.
pub(super) fn printable(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '"' | '\'' | '\\' => shown.push(character),
            // What is no picture: control characters, and those that change the direction of writing.
            other => shown.extend(other.escape_debug()),
        }
    }
    shown
}

/// Writes words behind `front`, and further lines below them.
fn write_wrapped(text: &mut String, front: &str, words: &str) {
    let indent = front.chars().count();
    let mut column = indent;
    text.push_str(front);
    for (number, word) in words.split(' ').enumerate() {
        let length = word.chars().count();
        if number > 0 && column.saturating_add(1).saturating_add(length) > WIDTH {
            // Writing to a string does not fail.
            let _ = write!(text, "\n{:indent$}", "");
            column = indent;
        } else if number > 0 {
            text.push(' ');
            column = column.saturating_add(1);
        }
        text.push_str(word);
        column = column.saturating_add(length);
    }
    text.push('\n');
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_finding_is_a_line_with_what_to_do_below() {
        let report = Report::new(vec![
            Finding::ok("kernel", "Linux 6.12"),
            Finding::warning("limits", "64 descriptors", "raise it"),
            Finding::problem("qemu", "none", "install one"),
        ]);
        let expected = "ok       kernel        Linux 6.12\n\
                        warning  limits        64 descriptors\n                       -> raise it\n\
                        problem  qemu          none\n                       -> install one\n\n\
                        1 problem, 1 warning.\n";
        assert_eq!(report.text(), expected);
        assert!(!report.is_good());
    }

    #[test]
    fn without_a_problem_all_is_well() {
        assert!(Report::new(vec![Finding::warning("a", "b", "c")]).is_good());
        let good = Report::new(vec![Finding::ok("a", "b")]);
        assert!(good.is_good() && good.text().ends_with("No problems: this machine is ready.\n"));
    }

    #[test]
    fn long_lines_are_broken_between_words() {
        let report = Report::new(vec![Finding::ok("kernel", "word ".repeat(40).trim())]);
        assert!(report.text().lines().all(|line| line.len() <= WIDTH), "{}", report.text());
        assert_eq!(report.text().matches("word").count(), 40);
        let unbroken = Report::new(vec![Finding::ok("kernel", "x".repeat(300))]);
        assert!(unbroken.text().contains(&"x".repeat(300)));
    }

    #[test]
    fn nothing_that_is_found_reaches_the_terminal_as_a_command() {
        let report = Report::new(vec![Finding::problem("qemu", "\u{1b}[2J\nfake \u{202e}line\u{7}", "\r")]);
        assert!(report.text().chars().all(|character| character == '\n' || !character.is_control()));
        assert!(!report.text().contains('\u{202e}'));
        assert_eq!(printable("it's \"C:\\\""), "it's \"C:\\\"");
    }

    #[test]
    fn programs_get_json() {
        let report = Report::new(vec![Finding::ok("a", "b"), Finding::problem("c", "d", "e")]);
        let json: serde_json::Value = serde_json::from_str(&report.json()).unwrap();
        assert_eq!((&json["problems"], &json["warnings"]), (&1.into(), &0.into()));
        let expected = serde_json::json!({"check": "c", "level": "problem", "found": "d", "advice": "e"});
        assert_eq!(json["checks"][1], expected);
        assert!(json["checks"][0].get("advice").is_none());
    }
}
