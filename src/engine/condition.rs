//! How a TPM is, for those who look at it from outside.

use crate::tpm::TpmVersion;

use super::{Engine, FirstStart, Goal, Phase};

/// How the TPM is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Condition {
    /// It starts for the first time.
    Starting,
    /// It takes commands, or is at one.
    Up,
    /// It is shut down and started again, after a reset.
    Resetting,
    /// It answers every command with a failure until the next reset, or could not start at all.
    Failed,
    /// It is shut down, for good.
    Stopping,
    /// It is off.
    Off,
}

impl Condition {
    /// All of them.
    pub const ALL: [Self; 6] = [Self::Starting, Self::Up, Self::Resetting, Self::Failed, Self::Stopping, Self::Off];

    /// The name in JSON and metrics.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Up => "up",
            Self::Resetting => "resetting",
            Self::Failed => "failed",
            Self::Stopping => "stopping",
            Self::Off => "off",
        }
    }

    /// Whether the TPM works: it takes commands now, or in a moment.
    #[must_use]
    pub const fn works(self) -> bool {
        matches!(self, Self::Up | Self::Resetting)
    }
}

/// How often something has happened to the TPM.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Events {
    /// It was brought up.
    pub starts: u64,
    /// It went into failure mode, or could not be started or stopped.
    pub failures: u64,
}

impl Engine {
    /// How the TPM is now.
    #[must_use]
    pub fn condition(&self) -> Condition {
        match (&self.phase, self.goal, &self.first_start) {
            (Phase::Off, Goal::Stop, _) => Condition::Off,
            (_, Goal::Stop, _) => Condition::Stopping,
            (_, _, FirstStart::Failed(_)) | (Phase::Failed, Goal::Serve, _) => Condition::Failed,
            (Phase::Off, ..) => Condition::Off,
            (_, _, FirstStart::Awaited) => Condition::Starting,
            (_, Goal::Reset, _) | (Phase::Initializing | Phase::Starting, ..) => Condition::Resetting,
            _ => Condition::Up,
        }
    }

    /// Why the TPM has failed, if it has: until it is up again. There may be another process's words in it.
    #[must_use]
    pub fn failure(&self) -> Option<&str> {
        self.failure.as_deref()
    }

    /// The TPM's version.
    #[must_use]
    pub fn version(&self) -> TpmVersion {
        self.platform.version()
    }

    /// What has happened so far.
    #[must_use]
    pub fn events(&self) -> Events {
        self.events
    }

    /// How often a process was started for the TPM.
    #[must_use]
    pub fn launches(&self) -> u64 {
        self.backend.launches()
    }

    /// What is known of the TPM besides its version, for people.
    #[must_use]
    pub fn about(&self) -> Option<String> {
        self.backend.about()
    }
}
