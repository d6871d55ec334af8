//! What a platform's firmware does for its TPM, and no firmware does for this one: Startup, what the guest has asked for by
//! physical presence, measuring what is launched, closing the platform hierarchy, and an orderly Shutdown before power is
//! cut.
//!
//! Sources: TCG PC Client Platform Firmware Profile (the platform hierarchy is closed before anything else runs);
//! TPM 2.0 Library Part 3, sections 9.3 (TPM2_Startup), 9.4 (TPM2_Shutdown), 24.8 (TPM2_HierarchyChangeAuth);
//! TPM Main 1.2 Part 3, TPM_Startup and TSC_PhysicalPresence.

#[cfg(not(test))]
mod measuring;
#[cfg(test)]
pub(crate) mod measuring;
mod presence;

use std::collections::VecDeque;
use std::fmt;

use thiserror::Error;
use zeroize::{Zeroize, Zeroizing};

use crate::measure::launch::Launch;
use crate::ppi::{self, Request};
use crate::tpm::{Header, TpmVersion};
use measuring::Measuring;
use presence::Presence;

const TPM_TAG_RQU_COMMAND: u16 = 0x00c1;
const TPM_ORD_STARTUP: u32 = 0x99;
const TSC_ORD_PHYSICAL_PRESENCE: u32 = 0x4000_000a;
const TPM_ST_CLEAR: [u8; 2] = [0, 1];
const TPM_PHYSICAL_PRESENCE_CMD_ENABLE: [u8; 2] = [0, 0x20];
const TPM_PHYSICAL_PRESENCE_NOTPRESENT_LOCK: [u8; 2] = [0, 0x10 | 0x04];

pub(crate) const TPM_ST_NO_SESSIONS: u16 = 0x8001;
pub(crate) const TPM_ST_SESSIONS: u16 = 0x8002;
const TPM_CC_HIERARCHY_CHANGE_AUTH: u32 = 0x129;
const TPM_CC_STARTUP: u32 = 0x144;
const TPM_CC_SHUTDOWN: u32 = 0x145;
const TPM_SU_CLEAR: [u8; 2] = [0, 0];
pub(crate) const TPM_RH_PLATFORM: [u8; 4] = [0x40, 0, 0, 0x0c];
/// `TPMS_AUTH_COMMAND` with an empty password: size 9, `TPM_RS_PW`, no nonce, no attributes, no password.
pub(crate) const EMPTY_PASSWORD: [u8; 13] = [0, 0, 0, 9, 0x40, 0, 0, 0x09, 0, 0, 0, 0, 0];

/// Bytes of the random platformAuth.
const PLATFORM_AUTH_SIZE: usize = 32;

/// Who does what firmware does (`--startup`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StartupPolicy {
    /// We do: `TPM2_Startup(CLEAR)`, then the platform hierarchy is closed.
    Clear,
    /// A firmware that knows the device does.
    None,
    /// The host's firmware has done it, and the host shuts the TPM down: it is not ours to start, close or shut down.
    Host,
}

/// One thing that the platform does to the TPM.
#[derive(Clone, PartialEq, Eq)]
pub struct Step {
    /// What it is, for the log.
    pub name: &'static str,
    /// What is done.
    pub action: Action,
    then: Then,
}

/// What a response is to the platform.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Then {
    /// It has to be a success.
    GoOn,
    /// So it has, and what is in it says what is to be measured next.
    Measure,
    /// The guest has asked for the command: it need not be a success, and may lead to another one.
    Request,
}

/// What is done to the TPM. It may hold a secret, which is gone with it.
#[derive(Clone, PartialEq, Eq)]
pub enum Action {
    /// A whole command, at locality 0.
    Execute(Vec<u8>),
    /// `_TPM_Hash_Start`, `_TPM_Hash_Data` with these bytes, `_TPM_Hash_End`.
    Hash(Vec<u8>),
}

impl Step {
    fn command(name: &'static str, command: Vec<u8>) -> Self {
        Self { name, action: Action::Execute(command), then: Then::GoOn }
    }

    fn asking(name: &'static str, command: Vec<u8>) -> Self {
        Self { name, action: Action::Execute(command), then: Then::Measure }
    }

    fn hash(name: &'static str, data: Vec<u8>) -> Self {
        Self { name, action: Action::Hash(data), then: Then::GoOn }
    }

    /// A command that carries out what the guest has asked for.
    pub(crate) fn requested(name: &'static str, command: Vec<u8>) -> Self {
        Self { name, action: Action::Execute(command), then: Then::Request }
    }

    /// The command, or what is hashed.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        match &self.action {
            Action::Execute(bytes) | Action::Hash(bytes) => bytes,
        }
    }
}

impl Drop for Action {
    fn drop(&mut self) {
        match self {
            Self::Execute(bytes) | Self::Hash(bytes) => bytes.zeroize(),
        }
    }
}

/// The command may hold a secret.
impl fmt::Debug for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Step").field("name", &self.name).finish_non_exhaustive()
    }
}

/// Why a TPM is not given to a guest: a step has failed.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum StepError {
    /// By the TPM's word.
    #[error("the TPM answered {name} with {code:#x}")]
    Refused {
        /// The step.
        name: &'static str,
        /// The response code.
        code: u32,
    },
    /// What it answered is no response.
    #[error("the TPM gave no well-formed answer to {name}")]
    Malformed {
        /// The step.
        name: &'static str,
    },
    /// What it answered leads nowhere.
    #[error("{0}")]
    Stopped(String),
}

/// The platform of one TPM.
#[derive(Debug)]
pub struct Platform {
    version: TpmVersion,
    policy: StartupPolicy,
    /// The guest's last command is a TPM2_Shutdown that makes ours needless.
    shutdown_runs: bool,
    /// It succeeded, and nothing came after it.
    shut_down_by_guest: bool,
    measuring: Option<Measuring>,
    /// What is to be done yet before a guest may use the TPM; the first is under way.
    steps: VecDeque<Step>,
    presence: Presence,
}

impl Platform {
    /// The platform of a TPM of `version`.
    #[must_use]
    pub fn new(version: TpmVersion, policy: StartupPolicy) -> Self {
        Self {
            version,
            policy,
            shutdown_runs: false,
            shut_down_by_guest: false,
            measuring: None,
            steps: VecDeque::new(),
            presence: Presence::default(),
        }
    }

    /// Has `launch` measured at each start, and a log of it made for which there are `room` bytes. That needs a TPM 2.0
    /// that this platform starts up.
    #[must_use]
    pub fn measuring(mut self, launch: Launch, room: usize) -> Self {
        self.measuring = Some(Measuring::new(launch, room));
        self
    }

    /// The log of what was measured at this start; complete when no step is left.
    #[must_use]
    pub fn event_log(&self) -> Option<&[u8]> {
        self.measuring.as_ref().and_then(Measuring::log)
    }

    /// The TPM's version.
    #[must_use]
    pub fn version(&self) -> TpmVersion {
        self.version
    }

    /// Begins with what is to be done after `_TPM_Init`, in order; [`step`](Self::step) has the first. Each must succeed
    /// before a guest may use the TPM, but for what it has asked for itself: a guest never finds one of which a measurement
    /// is missing.
    ///
    /// The platform hierarchy is closed by a random authorization value that nobody keeps, so that a guest's root can
    /// neither clear the TPM nor change what belongs to the platform. The hierarchy stays enabled, as on a PC. TPM 1.2
    /// has no such hierarchy; there, physical presence is locked until the next start, to the same end.
    ///
    /// # Errors
    /// If the system has no random numbers to give.
    pub fn start(&mut self) -> Result<(), getrandom::Error> {
        self.shut_down_by_guest = false;
        self.measuring.iter_mut().for_each(Measuring::forget);
        let requested = self.presence.begin();
        self.steps = match (self.policy, self.version) {
            (StartupPolicy::None | StartupPolicy::Host, _) => VecDeque::new(),
            (StartupPolicy::Clear, TpmVersion::V1_2) => start_of_1_2().into(),
            (StartupPolicy::Clear, TpmVersion::V2_0) => {
                let before = self.measuring.as_ref().and_then(Measuring::before_startup);
                let startup = command(TPM_ST_NO_SESSIONS, TPM_CC_STARTUP, &[&TPM_SU_CLEAR]);
                let startup = Step::command("TPM2_Startup(CLEAR)", startup);
                let after = self.measuring.as_ref().map(|_| Measuring::after_startup());
                let steps = before.into_iter().chain([startup]).chain(requested).chain(after);
                steps.chain([close_hierarchy()?]).collect()
            }
        };
        Ok(())
    }

    /// What is to be done now; nothing more if the TPM is ready for a guest.
    #[must_use]
    pub fn step(&self) -> Option<&Step> {
        self.steps.front()
    }

    /// Takes the response to the step that was under way, which is none if something was hashed.
    ///
    /// # Errors
    /// [`StepError`].
    pub fn answered(&mut self, response: &[u8]) -> Result<(), StepError> {
        let Some(step) = self.steps.pop_front() else { return Ok(()) };
        let name = step.name;
        if let Action::Hash(_) = step.action {
            return Ok(());
        }
        let next = match (Header::of_whole(response), step.then) {
            (None, _) => return Err(StepError::Malformed { name }),
            (Some(_), Then::Request) => self.presence.ran(response).into_iter().collect(),
            (Some(Header { code: 0, .. }), Then::GoOn) => Vec::new(),
            (Some(Header { code: 0, .. }), Then::Measure) => match &mut self.measuring {
                Some(measuring) => measuring.extends(response).map_err(StepError::Stopped)?,
                None => Vec::new(),
            },
            (Some(Header { code, .. }), _) => return Err(StepError::Refused { name, code }),
        };
        next.into_iter().rev().for_each(|step| self.steps.push_front(step));
        Ok(())
    }

    /// Has `request` carried out by the next start, which has to come: see [`wants_start`](Self::wants_start). It fails with
    /// a TPM that is no 2.0 or not [ours](StartupPolicy::Clear) to start up.
    pub fn request(&mut self, request: Request) {
        match (self.policy, self.version) {
            (StartupPolicy::Clear, TpmVersion::V2_0) => self.presence.wait(request),
            _ => self.presence.answer(ppi::FIRMWARE_FAILURE),
        }
    }

    /// Whether the TPM has to be started anew, even one that is just up.
    #[must_use]
    pub fn wants_start(&self) -> bool {
        self.presence.wants_start()
    }

    /// Takes note of the TPM's failure: what was requested is not done.
    pub fn failed(&mut self) {
        self.presence.give_up();
    }

    /// The [response](ppi::Outcome::response) to the last request, once.
    pub fn take_response(&mut self) -> Option<u32> {
        self.presence.take_response()
    }

    /// Takes note of a command that the guest is about to run.
    pub fn guest_runs(&mut self, command: &[u8]) {
        self.shut_down_by_guest = false;
        self.shutdown_runs = match self.policy {
            // TPM2_Shutdown(STATE) is for a TPM2_Startup(STATE), which we never send.
            StartupPolicy::Clear => command == shutdown_clear(),
            StartupPolicy::None => Header::parse(command).is_some_and(|header| header.code == TPM_CC_SHUTDOWN),
            StartupPolicy::Host => false,
        };
    }

    /// Takes note of the response to it.
    pub fn guest_ran(&mut self, response: &[u8]) {
        let succeeded = Header::parse(response).is_some_and(|header| header.code == 0);
        self.shut_down_by_guest = self.version == TpmVersion::V2_0 && self.shutdown_runs && succeeded;
    }

    /// The command to send before the TPM loses power; none if the guest has sent its own as its last.
    ///
    /// Without one, the TPM may take the next start for an attack on a protected secret: it counts it as a failed
    /// authorization, and after some of them locks out (TPM 2.0 Library Part 1, dictionary attack protection).
    #[must_use]
    pub fn shutdown(&self) -> Option<Step> {
        match (self.policy, self.version) {
            // TPM 1.2 keeps nothing that is lost: TPM_SaveState is for a resume only.
            (StartupPolicy::Host, _) | (_, TpmVersion::V1_2) => None,
            (_, TpmVersion::V2_0) if self.shut_down_by_guest => None,
            (_, TpmVersion::V2_0) => Some(Step::command("TPM2_Shutdown(CLEAR)", shutdown_clear())),
        }
    }
}

fn start_of_1_2() -> [Step; 3] {
    let presence = |value| command(TPM_TAG_RQU_COMMAND, TSC_ORD_PHYSICAL_PRESENCE, &[value]);
    [
        Step::command("TPM_Startup(ST_CLEAR)", command(TPM_TAG_RQU_COMMAND, TPM_ORD_STARTUP, &[&TPM_ST_CLEAR])),
        // Without the first, a TPM takes no word about physical presence, the second included.
        Step::command("TSC_PhysicalPresence(CMD_ENABLE)", presence(&TPM_PHYSICAL_PRESENCE_CMD_ENABLE)),
        Step::command("TSC_PhysicalPresence(NOTPRESENT, LOCK)", presence(&TPM_PHYSICAL_PRESENCE_NOTPRESENT_LOCK)),
    ]
}

fn close_hierarchy() -> Result<Step, getrandom::Error> {
    let mut auth = Zeroizing::new([0; PLATFORM_AUTH_SIZE]);
    getrandom::fill(&mut *auth)?;
    let [_, size] = PLATFORM_AUTH_SIZE.to_be_bytes().last_chunk().copied().unwrap_or_default();
    let parameters: [&[u8]; 4] = [&TPM_RH_PLATFORM, &EMPTY_PASSWORD, &[0, size], &*auth];
    let close = command(TPM_ST_SESSIONS, TPM_CC_HIERARCHY_CHANGE_AUTH, &parameters);
    Ok(Step::command("TPM2_HierarchyChangeAuth(platform)", close))
}

fn shutdown_clear() -> Vec<u8> {
    command(TPM_ST_NO_SESSIONS, TPM_CC_SHUTDOWN, &[&TPM_SU_CLEAR])
}

/// A command of these parts.
pub(crate) fn command(tag: u16, code: u32, parts: &[&[u8]]) -> Vec<u8> {
    let body = Zeroizing::new(parts.concat());
    let size = u32::try_from(crate::tpm::HEADER_SIZE.saturating_add(body.len())).unwrap_or(u32::MAX);
    [&Header { tag, size, code }.to_bytes()[..], &body].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    const OK: [u8; 10] = [0x80, 1, 0, 0, 0, 10, 0, 0, 0, 0];

    fn platform() -> Platform {
        Platform::new(TpmVersion::V2_0, StartupPolicy::Clear)
    }

    fn is_whole(step: &Step) -> bool {
        Header::of_whole(step.bytes()).is_some()
    }

    /// What is done at a start if all goes well.
    fn steps(platform: &mut Platform) -> Vec<Step> {
        platform.start().unwrap();
        let next = |platform: &mut Platform| {
            let step = platform.step()?.clone();
            platform.answered(&OK).unwrap();
            Some(step)
        };
        std::iter::from_fn(|| next(platform)).collect()
    }

    #[test]
    fn startup_comes_first_and_then_the_platform_hierarchy_is_closed() {
        let steps = steps(&mut platform());
        assert!(steps.iter().all(is_whole));
        assert_eq!(steps[0].bytes(), [0x80, 1, 0, 0, 0, 12, 0, 0, 1, 0x44, 0, 0]);
        let close = steps[1].bytes();
        assert_eq!(close.len(), 10 + 4 + 13 + 2 + PLATFORM_AUTH_SIZE);
        assert_eq!(close[27..29], [0, 32]);
    }

    #[test]
    fn each_start_closes_the_hierarchy_with_another_value() {
        let mut platform = platform();
        assert_ne!(steps(&mut platform)[1].bytes(), steps(&mut platform)[1].bytes());
    }

    const CLEAR: Request = Request { operation: 5, argument: 0 };

    #[test]
    fn what_was_requested_comes_between_startup_and_the_closing_and_once() {
        let mut platform = platform();
        platform.request(CLEAR);
        assert!(platform.wants_start());
        let names = |steps: Vec<Step>| steps.iter().map(|step| step.name).collect::<Vec<_>>();
        let [first, last] = ["TPM2_Startup(CLEAR)", "TPM2_HierarchyChangeAuth(platform)"];
        assert_eq!(names(steps(&mut platform)), [first, "TPM2_ClearControl(no)", "TPM2_Clear", last]);
        assert!(!platform.wants_start());
        assert_eq!((platform.take_response(), platform.take_response()), (Some(ppi::SUCCESS), None));
        assert_eq!(names(steps(&mut platform)), [first, last]);
    }

    #[test]
    fn what_was_broken_off_has_failed_and_is_not_taken_up_again() {
        let mut platform = platform();
        platform.request(CLEAR);
        platform.start().unwrap();
        assert_eq!(steps(&mut platform).len(), 2);
        assert_eq!(platform.take_response(), Some(ppi::FIRMWARE_FAILURE));
        platform.request(CLEAR);
        platform.failed();
        assert_eq!((platform.take_response(), platform.wants_start()), (Some(ppi::FIRMWARE_FAILURE), false));
        platform.failed();
        assert_eq!(platform.take_response(), None);
    }

    #[test]
    fn a_request_to_a_tpm_that_is_not_ours_to_start_up_fails() {
        for (version, policy) in [
            (TpmVersion::V1_2, StartupPolicy::Clear),
            (TpmVersion::V2_0, StartupPolicy::None),
            (TpmVersion::V2_0, StartupPolicy::Host),
        ] {
            let mut platform = Platform::new(version, policy);
            platform.request(CLEAR);
            assert_eq!((platform.take_response(), platform.wants_start()), (Some(ppi::FIRMWARE_FAILURE), false));
        }
    }

    #[test]
    fn a_firmware_that_knows_the_device_is_left_its_work() {
        assert!(steps(&mut Platform::new(TpmVersion::V2_0, StartupPolicy::None)).is_empty());
    }

    #[test]
    fn the_hosts_tpm_is_neither_started_up_nor_closed_nor_shut_down() {
        for version in [TpmVersion::V1_2, TpmVersion::V2_0] {
            let mut platform = Platform::new(version, StartupPolicy::Host);
            assert!(steps(&mut platform).is_empty());
            platform.guest_runs(&[0x80, 1, 0, 0, 0, 12, 0, 0, 1, 0x7b, 0, 8]);
            platform.guest_ran(&OK);
            assert_eq!(platform.shutdown(), None);
        }
    }

    #[test]
    fn a_guest_that_shut_down_and_sent_nothing_more_is_not_repeated() {
        let mut platform = platform();
        let shutdown = platform.shutdown().unwrap();
        assert!(is_whole(&shutdown));
        platform.guest_runs(shutdown.bytes());
        platform.guest_ran(&OK);
        assert_eq!(platform.shutdown(), None);
    }

    #[test]
    fn a_guest_that_went_on_after_its_shutdown_is_shut_down_again() {
        let mut platform = platform();
        let shutdown = platform.shutdown().unwrap();
        platform.guest_runs(shutdown.bytes());
        platform.guest_ran(&OK);
        platform.guest_runs(&[0x80, 1, 0, 0, 0, 12, 0, 0, 1, 0x7b, 0, 8]);
        platform.guest_ran(&OK);
        assert!(platform.shutdown().is_some());
    }

    #[test]
    fn a_shutdown_for_a_resume_counts_only_where_firmware_may_resume() {
        const STATE: [u8; 12] = [0x80, 1, 0, 0, 0, 12, 0, 0, 1, 0x45, 0, 1];
        for (policy, counts) in [(StartupPolicy::Clear, false), (StartupPolicy::None, true)] {
            let mut platform = Platform::new(TpmVersion::V2_0, policy);
            platform.guest_runs(&STATE);
            platform.guest_ran(&OK);
            assert_eq!(platform.shutdown().is_none(), counts);
        }
    }

    #[test]
    fn a_launch_is_measured_between_startup_and_the_closing_of_the_hierarchy() {
        let sources = ["cmdline=quiet"].map(|source| crate::measure::launch::Source::parse(source.as_ref()).unwrap());
        let launch = Launch::measure(&sources, false).unwrap();
        let mut platform = platform().measuring(launch, 4096);
        for _ in 0..2 {
            platform.start().unwrap();
            assert_eq!((platform.step().unwrap().name, platform.event_log()), ("TPM2_Startup(CLEAR)", None));
            platform.answered(&OK).unwrap();
            let ask = platform.step().unwrap().bytes();
            assert_eq!(ask, [0x80, 1, 0, 0, 0, 22, 0, 0, 1, 0x7a, 0, 0, 0, 5, 0, 0, 0, 0, 0, 0, 0, 1]);
            platform.answered(&measuring::tests::banks(&[])).unwrap();
            let names: Vec<_> = platform.steps.iter().map(|step| step.name).collect();
            assert_eq!(names.len(), 12);
            assert!(names[..11].iter().all(|name| name.starts_with("TPM2_PCR_Extend")));
            assert_eq!(names[11], "TPM2_HierarchyChangeAuth(platform)");
            assert!(platform.steps.iter().all(is_whole) && platform.event_log().is_some());
        }
        let refusal = [0x80, 1, 0, 0, 0, 10, 0, 0, 1, 0x01];
        let error = platform.answered(&refusal).unwrap_err().to_string();
        assert_eq!(error, "the TPM answered TPM2_PCR_Extend of the launch with 0x101");
    }

    #[test]
    fn a_step_keeps_its_secret_in_logs() {
        let steps = steps(&mut platform());
        assert_eq!(format!("{:?}", steps[1]), "Step { name: \"TPM2_HierarchyChangeAuth(platform)\", .. }");
    }

    #[test]
    fn a_shutdown_that_failed_does_not_count() {
        let mut platform = platform();
        let shutdown = platform.shutdown().unwrap();
        platform.guest_runs(shutdown.bytes());
        platform.guest_ran(&[0x80, 1, 0, 0, 0, 10, 0, 0, 1, 0]);
        assert!(platform.shutdown().is_some());
    }

    #[test]
    fn a_tpm_1_2_gets_its_own_startup_and_its_physical_presence_is_locked() {
        let platform = &mut Platform::new(TpmVersion::V1_2, StartupPolicy::Clear);
        let steps = steps(platform);
        assert_eq!(steps[0].bytes(), [0, 0xc1, 0, 0, 0, 12, 0, 0, 0, 0x99, 0, 1]);
        assert_eq!(steps.last().unwrap().bytes(), [0, 0xc1, 0, 0, 0, 12, 0x40, 0, 0, 0x0a, 0, 0x14]);
        assert!(steps.iter().all(is_whole));
        assert_eq!(platform.shutdown(), None);
    }
}
