//! What the benchmark on the host and its client in the guest say to each other, line by line over the harness's channel.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

/// A TPM command that is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Work {
    GetRandom,
    PcrRead,
    GetCapability,
    Hash,
    NvRead,
    SignRsa,
    SignEcc,
}

impl Work {
    pub(crate) const ALL: [Self; 7] =
        [Self::GetRandom, Self::PcrRead, Self::GetCapability, Self::Hash, Self::NvRead, Self::SignRsa, Self::SignEcc];

    /// The word in a request.
    fn word(self) -> &'static str {
        match self {
            Self::GetRandom => "get-random",
            Self::PcrRead => "pcr-read",
            Self::GetCapability => "get-capability",
            Self::Hash => "hash",
            Self::NvRead => "nv-read",
            Self::SignRsa => "sign-rsa",
            Self::SignEcc => "sign-ecc",
        }
    }

    /// For a person.
    pub(crate) fn title(self) -> &'static str {
        match self {
            Self::GetRandom => "GetRandom, 32 bytes",
            Self::PcrRead => "PCR_Read, one PCR",
            Self::GetCapability => "GetCapability, 93 commands",
            Self::Hash => "Hash, 1 KiB",
            Self::NvRead => "NV_Read, 1 KiB",
            Self::SignRsa => "Sign, RSA-2048",
            Self::SignEcc => "Sign, ECC P-256",
        }
    }
}

/// What the client says when it is there, and has made its keys.
pub(crate) const READY: &str = "ready";
/// What it says at the moment when it has done what was asked.
pub(crate) const END: &str = "end";

/// What the client is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Request {
    /// To run a command again and again, and to say [`END`].
    Time { work: Work, rounds: u32 },
    /// To tell what has been measured ([`Timed`]). A request of its own, so that telling is not measured.
    Results,
    /// To use the disk for a time and, on another CPU, the TPM or not; and to say what was done ([`Done`]).
    Load { milliseconds: u32, with_tpm: bool },
}

/// What was measured of a command.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Timed {
    /// How often the client's thread has slept in all: what the driver's waits cost.
    pub(crate) sleeps: u32,
    /// Bytes of the last response.
    pub(crate) response: u32,
    /// Time of each command, from the write to the whole response.
    pub(crate) times: Vec<Duration>,
}

/// What was done under load.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Done {
    /// Reads and writes of the disk, 4 KiB each.
    pub(crate) disk: u32,
    /// TPM commands.
    pub(crate) tpm: u32,
}

/// A line that was not understood.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Malformed(String);

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "not understood: {:?}", self.0)
    }
}

impl fmt::Display for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Time { work, rounds } => write!(f, "time {} {rounds}", work.word()),
            Self::Results => f.write_str("results"),
            Self::Load { milliseconds, with_tpm } => write!(f, "load {milliseconds} {with_tpm}"),
        }
    }
}

impl FromStr for Request {
    type Err = Malformed;

    fn from_str(line: &str) -> Result<Self, Malformed> {
        let words: Vec<&str> = line.split(' ').collect();
        let request = match words[..] {
            ["time", work, rounds] => Work::ALL
                .into_iter()
                .find(|known| known.word() == work)
                .zip(rounds.parse().ok())
                .map(|(work, rounds)| Self::Time { work, rounds }),
            ["results"] => Some(Self::Results),
            ["load", milliseconds, with_tpm] => milliseconds
                .parse()
                .ok()
                .zip(with_tpm.parse().ok())
                .map(|(milliseconds, with_tpm)| Self::Load { milliseconds, with_tpm }),
            _ => None,
        };
        request.ok_or_else(|| Malformed(line.to_owned()))
    }
}

impl fmt::Display for Timed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.sleeps, self.response)?;
        self.times.iter().try_for_each(|time| write!(f, " {}", time.as_nanos()))
    }
}

impl FromStr for Timed {
    type Err = Malformed;

    fn from_str(line: &str) -> Result<Self, Malformed> {
        let numbers: Option<Vec<u32>> = line.split(' ').map(|number| number.parse().ok()).collect();
        match numbers.as_deref() {
            Some([sleeps, response, nanoseconds @ ..]) => {
                let times = nanoseconds.iter().map(|time| Duration::from_nanos(u64::from(*time))).collect();
                Ok(Self { sleeps: *sleeps, response: *response, times })
            }
            _ => Err(Malformed(line.to_owned())),
        }
    }
}

impl fmt::Display for Done {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.disk, self.tpm)
    }
}

impl FromStr for Done {
    type Err = Malformed;

    fn from_str(line: &str) -> Result<Self, Malformed> {
        let numbers = line.split_once(' ').and_then(|(disk, tpm)| Some((disk.parse().ok()?, tpm.parse().ok()?)));
        numbers.map(|(disk, tpm)| Self { disk, tpm }).ok_or_else(|| Malformed(line.to_owned()))
    }
}

#[cfg(test)]
#[allow(unused, reason = "tests/benchmark.rs runs these; a bench without a harness leaves them out")]
mod tests {
    use super::*;

    #[test]
    fn what_one_side_says_the_other_understands() {
        let requests = Work::ALL.map(|work| Request::Time { work, rounds: 200 });
        let others = [Request::Results, Request::Load { milliseconds: 500, with_tpm: true }];
        for request in requests.into_iter().chain(others) {
            assert_eq!(request.to_string().parse(), Ok(request));
        }
        for times in [vec![], vec![Duration::from_nanos(1), Duration::from_millis(1300)]] {
            let timed = Timed { sleeps: 3, response: 44, times };
            assert_eq!(timed.to_string().parse(), Ok(timed));
        }
        let done = Done { disk: 70_000, tpm: 0 };
        assert_eq!(done.to_string().parse(), Ok(done));
    }

    #[test]
    fn other_lines_are_refused() {
        for line in ["", "time", "time hash", "time hash -1", "time sleep 1", "load 1", "load 1 2", "results 1"] {
            assert_eq!(line.parse::<Request>(), Err(Malformed(line.into())));
        }
        for line in ["", "1", "1 2 ", "1 2 -3", "sh: not found"] {
            assert_eq!(line.parse::<Timed>(), Err(Malformed(line.into())));
        }
        for line in ["", "1", "1 2 3", "1 -2"] {
            assert_eq!(line.parse::<Done>(), Err(Malformed(line.into())));
        }
    }
}
