//! The report, in the form of its JSON. `docs/control.md` says what each member means.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use crate::acpi::Interface;
use crate::counters;
use crate::description::Source;
use crate::device::TpmDevice;
use crate::tpm::Locality;
use crate::vfio_user::Connections;

/// The form of the JSON. It counts up when a reader of the old form would misread the new one.
pub const FORMAT: u32 = 1;

/// What does not change while a server runs.
#[derive(Clone, Debug)]
pub struct About {
    /// The program's version, as `CARGO_PKG_VERSION`.
    pub program_version: String,
    /// Which TPM is behind the registers.
    pub source: Source,
    /// What the guest sees of it.
    pub interface: Interface,
    /// When the server was started.
    pub started: (SystemTime, Instant),
}

/// How a server is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// [`FORMAT`].
    pub format: u32,
    /// The server.
    pub program: Program,
    /// The TPM.
    pub tpm: Tpm,
    /// What the guest sees of it.
    pub device: Device,
    /// Who is connected.
    pub client: Option<Client>,
    /// Clients so far.
    pub connections: ConnectionCounts,
    /// Accesses so far.
    pub accesses: Accesses,
    /// The guest's commands so far.
    pub commands: Commands,
}

/// A server.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Program {
    /// `vfio-user-tpm`.
    pub name: String,
    /// Its version.
    pub version: String,
    /// Its process.
    pub process: u32,
    /// Seconds since 1970-01-01 UTC when it was started, by the machine's clock of then.
    pub started: u64,
    /// Seconds since then.
    pub uptime_seconds: f64,
}

/// A TPM.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Tpm {
    /// `2.0` or `1.2`.
    pub version: String,
    /// By the name of `--backend`.
    pub backend: String,
    /// Its state ends with the server.
    pub ephemeral: bool,
    /// What the backend says of it, for people.
    pub about: Option<String>,
    /// By its [name](crate::engine::Condition::name).
    pub condition: String,
    /// It takes commands now, or in a moment.
    pub works: bool,
    /// Why it has failed, for people.
    pub failure: Option<String>,
    /// How often it was brought up.
    pub starts: u64,
    /// How often it went into failure mode, or could not be started or stopped.
    pub failures: u64,
    /// How often a process was started for it.
    pub process_starts: u64,
}

/// What a guest sees.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Device {
    /// By the name of `--interface`.
    pub interface: String,
    /// Where BAR0 is in the guest's memory, if it is anywhere.
    pub bar0: Option<u32>,
    /// The locality that has the TPM.
    pub locality: Option<u8>,
    /// How far the guest is with its command, by its [name](crate::frontend::Progress::name).
    pub progress: String,
    /// How often it was reset.
    pub resets: u64,
    /// What the guest has asked for by physical presence, where it can.
    #[serde(default)]
    pub presence: Option<Presence>,
}

/// Operations by physical presence, by their numbers in the TCG's specification.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Presence {
    /// The one that the next reset carries out, or that is being carried out.
    pub pending: Option<u32>,
    /// The last one that was carried out.
    pub last: Option<u32>,
    /// The response to it; 0 for success.
    pub response: Option<u32>,
}

/// A client that is connected.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Client {
    /// Its process when it connected; 0 for one that this server's namespace does not show.
    pub process: Option<i32>,
    /// Its user then.
    pub user: Option<u32>,
    /// For how long.
    pub connected_seconds: f64,
}

/// Clients so far.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ConnectionCounts {
    /// Those that were served.
    pub made: u64,
    /// Those that were not.
    pub refused: u64,
}

/// Accesses of clients.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Accesses {
    /// Reads of BAR0.
    pub reads: u64,
    /// Writes to BAR0.
    pub writes: u64,
    /// Accesses to configuration space.
    pub configuration: u64,
    /// Answers that were held back until a command had ended.
    pub held_answers: u64,
}

/// Commands of guests.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Commands {
    /// Those that were answered.
    pub answered: u64,
    /// Those of them whose response code was not 0.
    pub errors: u64,
    /// Those that the guest has cancelled.
    pub cancelled: u64,
    /// Those that a reset has ended.
    pub abandoned: u64,
    /// Those that were answered, by command; without those that there were none of.
    pub by_command: Vec<CommandTally>,
    /// Errors by their class.
    pub by_error: Vec<ErrorTally>,
    /// What they took.
    pub latency: Latency,
}

/// One command.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CommandTally {
    /// The specification's name, or `other`.
    pub command: String,
    /// How many were answered.
    pub answered: u64,
    /// How many of those with an error.
    pub errors: u64,
    /// What they took in all.
    pub seconds: f64,
}

/// One class of errors.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ErrorTally {
    /// By its [name](counters::ErrorClass::name).
    pub class: String,
    /// How many.
    pub errors: u64,
}

/// How long commands took, from the guest's start of a command to its response.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Latency {
    /// In ascending order.
    pub buckets: Vec<Bucket>,
    /// Commands above the last bucket's bound.
    pub above: u64,
    /// All of them together.
    pub sum_seconds: f64,
}

/// A bucket of a histogram.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Bucket {
    /// Its upper bound.
    pub at_most_seconds: f64,
    /// Commands in it, and not in one before.
    pub commands: u64,
}

impl Report {
    /// How the server is now.
    #[must_use]
    pub fn new(about: &About, device: &TpmDevice, connections: &Connections) -> Self {
        let (engine, activity) = (device.engine(), device.activity());
        let (condition, events) = (engine.condition(), engine.events());
        let (since_the_epoch, start) = about.started;
        Self {
            format: FORMAT,
            program: Program {
                name: env!("CARGO_PKG_NAME").to_owned(),
                version: about.program_version.clone(),
                process: std::process::id(),
                started: since_the_epoch.duration_since(UNIX_EPOCH).as_ref().map_or(0, Duration::as_secs),
                uptime_seconds: start.elapsed().as_secs_f64(),
            },
            tpm: Tpm {
                version: engine.version().to_string(),
                backend: about.source.backend().to_owned(),
                ephemeral: about.source == Source::Ephemeral,
                about: engine.about(),
                condition: condition.name().to_owned(),
                works: condition.works(),
                failure: engine.failure().map(str::to_owned),
                starts: events.starts,
                failures: events.failures,
                process_starts: engine.launches(),
            },
            device: Device {
                interface: about.interface.name().to_owned(),
                bar0: Some(device.bar0_address()).filter(|&address| address != 0),
                locality: device.active_locality().map(Locality::number),
                progress: device.progress().name().to_owned(),
                resets: activity.resets,
                presence: device.presence().map(|presence| Presence {
                    pending: presence.pending().map(|request| request.operation),
                    last: presence.last().map(|outcome| outcome.operation),
                    response: presence.last().map(|outcome| outcome.response),
                }),
            },
            client: connections.current.map(|client| Client {
                process: client.peer.map(|peer| peer.process),
                user: client.peer.map(|peer| peer.user),
                connected_seconds: client.since.elapsed().as_secs_f64(),
            }),
            connections: ConnectionCounts { made: connections.made, refused: connections.refused },
            accesses: Accesses {
                reads: activity.reads,
                writes: activity.writes,
                configuration: activity.config_accesses,
                held_answers: activity.held_answers,
            },
            commands: Commands::new(device.commands(), activity.cancels),
        }
    }
}

impl Commands {
    fn new(counters: &counters::CommandCounters, cancelled: u64) -> Self {
        let by_command = counters.tallies().map(|(command, tally)| CommandTally {
            command: command.to_owned(),
            answered: tally.answered,
            errors: tally.errors,
            seconds: seconds(tally.nanoseconds),
        });
        let by_error =
            counters.errors().map(|(class, errors)| ErrorTally { class: class.name().to_owned(), errors }).collect();
        let latency = counters.latency();
        let bucket = |(bound, commands)| Bucket { at_most_seconds: seconds(bound), commands };
        Self {
            answered: latency.count_of_all(),
            errors: counters.errors().fold(0, |sum, (_, errors)| errors.saturating_add(sum)),
            cancelled,
            abandoned: counters.abandoned(),
            by_command: by_command.collect(),
            by_error,
            latency: Latency {
                buckets: latency.buckets().map(bucket).collect(),
                above: latency.above(),
                sum_seconds: seconds(latency.sum()),
            },
        }
    }
}

fn seconds(nanoseconds: u64) -> f64 {
    Duration::from_nanos(nanoseconds).as_secs_f64()
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A report with something everywhere, as JSON: what pins the names and forms of the members.
    const JSON: &str = include_str!("../../tests/status/report.json");

    pub(crate) fn example() -> Report {
        let counts = [(0.0001, 3), (0.0005, 1), (0.25, 2)];
        let buckets = counts.map(|(at_most_seconds, commands)| Bucket { at_most_seconds, commands });
        let tally = |command: &str, answered, errors, seconds| CommandTally {
            command: command.to_owned(),
            answered,
            errors,
            seconds,
        };
        Report {
            format: FORMAT,
            program: Program {
                name: "vfio-user-tpm".to_owned(),
                version: "1.2.3".to_owned(),
                process: 1234,
                started: 1_800_000_000,
                uptime_seconds: 90_061.5,
            },
            tpm: Tpm {
                version: "2.0".to_owned(),
                backend: "swtpm".to_owned(),
                ephemeral: false,
                about: Some("TPM 2.0 (level 0, revision 164)\u{1b}[31m".to_owned()),
                condition: "failed".to_owned(),
                works: false,
                failure: Some("swtpm has closed its control channel".to_owned()),
                starts: 3,
                failures: 1,
                process_starts: 2,
            },
            device: Device {
                interface: "crb".to_owned(),
                bar0: Some(0xfe80_0000),
                locality: Some(0),
                progress: "completion".to_owned(),
                resets: 2,
                presence: Some(Presence { pending: Some(5), last: Some(23), response: Some(0xffff_fff1) }),
            },
            client: Some(Client { process: Some(4711), user: Some(1000), connected_seconds: 75.25 }),
            connections: ConnectionCounts { made: 2, refused: 1 },
            accesses: Accesses { reads: 100, writes: 50, configuration: 7, held_answers: 5 },
            commands: Commands {
                answered: 7,
                errors: 3,
                cancelled: 1,
                abandoned: 1,
                by_command: vec![tally("TPM2_CreatePrimary", 3, 1, 30.5), tally("TPM2_GetRandom", 4, 2, 0.001)],
                by_error: vec![
                    ErrorTally { class: "failure".to_owned(), errors: 2 },
                    ErrorTally { class: "lockout".to_owned(), errors: 1 },
                ],
                latency: Latency { buckets: buckets.to_vec(), above: 1, sum_seconds: 30.501 },
            },
        }
    }

    #[test]
    fn the_json_has_the_members_that_are_documented_and_no_others() {
        let json = serde_json::to_string_pretty(&example()).unwrap();
        assert_eq!(json, JSON.trim_end());
        assert_eq!(serde_json::from_str::<Report>(JSON).unwrap(), example());
        let document = include_str!("../../docs/control.md");
        let mut members = Vec::new();
        paths(&serde_json::to_value(example()).unwrap(), "", &mut members);
        for member in members {
            assert!(document.contains(&format!("| `{member}` |")), "docs/control.md does not tell of {member}");
        }
    }

    /// The paths of all members, as `a.b` and `a.b[].c`.
    fn paths(value: &serde_json::Value, prefix: &str, found: &mut Vec<String>) {
        match value {
            serde_json::Value::Object(members) => {
                for (name, value) in members {
                    let path = if prefix.is_empty() { name.clone() } else { format!("{prefix}.{name}") };
                    paths(value, &path, found);
                }
            }
            serde_json::Value::Array(elements) => paths(&elements[0], &format!("{prefix}[]"), found),
            _ => found.push(prefix.to_owned()),
        }
    }

    #[test]
    fn members_that_come_later_are_no_harm() {
        let mut json = serde_json::to_value(example()).unwrap();
        json["tpm"]["colour"] = "blue".into();
        assert_eq!(serde_json::from_value::<Report>(json).unwrap(), example());
    }
}
