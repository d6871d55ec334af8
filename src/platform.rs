//! What a platform's firmware does for its TPM, and no firmware does for this one: Startup, closing the platform
//! hierarchy, and an orderly Shutdown before power is cut.
//!
//! Sources: TCG PC Client Platform Firmware Profile (the platform hierarchy is closed before anything else runs);
//! TPM 2.0 Library Part 3, sections 9.3 (TPM2_Startup), 9.4 (TPM2_Shutdown), 24.8 (TPM2_HierarchyChangeAuth);
//! TPM Main 1.2 Part 3, TPM_Startup and TSC_PhysicalPresence.

use std::fmt;

use zeroize::{Zeroize, Zeroizing};

use crate::tpm::{Header, TpmVersion};

const TPM_TAG_RQU_COMMAND: u16 = 0x00c1;
const TPM_ORD_STARTUP: u32 = 0x99;
const TSC_ORD_PHYSICAL_PRESENCE: u32 = 0x4000_000a;
const TPM_ST_CLEAR: [u8; 2] = [0, 1];
const TPM_PHYSICAL_PRESENCE_CMD_ENABLE: [u8; 2] = [0, 0x20];
const TPM_PHYSICAL_PRESENCE_NOTPRESENT_LOCK: [u8; 2] = [0, 0x10 | 0x04];

const TPM_ST_NO_SESSIONS: u16 = 0x8001;
const TPM_ST_SESSIONS: u16 = 0x8002;
const TPM_CC_HIERARCHY_CHANGE_AUTH: u32 = 0x129;
const TPM_CC_STARTUP: u32 = 0x144;
const TPM_CC_SHUTDOWN: u32 = 0x145;
const TPM_SU_CLEAR: [u8; 2] = [0, 0];
const TPM_RH_PLATFORM: [u8; 4] = [0x40, 0, 0, 0x0c];
/// `TPMS_AUTH_COMMAND` with an empty password: size 9, `TPM_RS_PW`, no nonce, no attributes, no password.
const EMPTY_PASSWORD: [u8; 13] = [0, 0, 0, 9, 0x40, 0, 0, 0x09, 0, 0, 0, 0, 0];

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

/// One command that the platform sends.
#[derive(Clone, PartialEq, Eq)]
pub struct Step {
    /// What it is, for the log.
    pub name: &'static str,
    /// The whole command.
    pub command: Vec<u8>,
}

/// The command may hold a secret, which is gone with it.
impl Drop for Step {
    fn drop(&mut self) {
        self.command.zeroize();
    }
}

/// The command may hold a secret.
impl fmt::Debug for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Step").field("name", &self.name).finish_non_exhaustive()
    }
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
}

impl Platform {
    /// The platform of a TPM of `version`.
    #[must_use]
    pub fn new(version: TpmVersion, policy: StartupPolicy) -> Self {
        Self { version, policy, shutdown_runs: false, shut_down_by_guest: false }
    }

    /// The TPM's version.
    #[must_use]
    pub fn version(&self) -> TpmVersion {
        self.version
    }

    /// The commands to send after `_TPM_Init`, in order. Each must succeed before a guest may use the TPM.
    ///
    /// The platform hierarchy is closed by a random authorization value that nobody keeps, so that a guest's root can
    /// neither clear the TPM nor change what belongs to the platform. The hierarchy stays enabled, as on a PC. TPM 1.2
    /// has no such hierarchy; there, physical presence is locked until the next start, to the same end.
    ///
    /// # Errors
    /// If the system has no random numbers to give.
    pub fn startup(&mut self) -> Result<Vec<Step>, getrandom::Error> {
        self.shut_down_by_guest = false;
        Ok(match (self.policy, self.version) {
            (StartupPolicy::None | StartupPolicy::Host, _) => Vec::new(),
            (StartupPolicy::Clear, TpmVersion::V1_2) => {
                let presence = |value| command(TPM_TAG_RQU_COMMAND, TSC_ORD_PHYSICAL_PRESENCE, &[value]);
                vec![
                    Step {
                        name: "TPM_Startup(ST_CLEAR)",
                        command: command(TPM_TAG_RQU_COMMAND, TPM_ORD_STARTUP, &[&TPM_ST_CLEAR]),
                    },
                    // Without the first, a TPM takes no word about physical presence, the second included.
                    Step {
                        name: "TSC_PhysicalPresence(CMD_ENABLE)",
                        command: presence(&TPM_PHYSICAL_PRESENCE_CMD_ENABLE),
                    },
                    Step {
                        name: "TSC_PhysicalPresence(NOTPRESENT, LOCK)",
                        command: presence(&TPM_PHYSICAL_PRESENCE_NOTPRESENT_LOCK),
                    },
                ]
            }
            (StartupPolicy::Clear, TpmVersion::V2_0) => {
                let startup = command(TPM_ST_NO_SESSIONS, TPM_CC_STARTUP, &[&TPM_SU_CLEAR]);
                let mut auth = Zeroizing::new([0; PLATFORM_AUTH_SIZE]);
                getrandom::fill(&mut *auth)?;
                let [_, size] = PLATFORM_AUTH_SIZE.to_be_bytes().last_chunk().copied().unwrap_or_default();
                let parameters: [&[u8]; 4] = [&TPM_RH_PLATFORM, &EMPTY_PASSWORD, &[0, size], &*auth];
                let close = command(TPM_ST_SESSIONS, TPM_CC_HIERARCHY_CHANGE_AUTH, &parameters);
                vec![
                    Step { name: "TPM2_Startup(CLEAR)", command: startup },
                    Step { name: "TPM2_HierarchyChangeAuth(platform)", command: close },
                ]
            }
        })
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
            (_, TpmVersion::V2_0) => Some(Step { name: "TPM2_Shutdown(CLEAR)", command: shutdown_clear() }),
        }
    }
}

fn shutdown_clear() -> Vec<u8> {
    command(TPM_ST_NO_SESSIONS, TPM_CC_SHUTDOWN, &[&TPM_SU_CLEAR])
}

fn command(tag: u16, code: u32, parts: &[&[u8]]) -> Vec<u8> {
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
        Header::of_whole(&step.command).is_some()
    }

    #[test]
    fn startup_comes_first_and_then_the_platform_hierarchy_is_closed() {
        let steps = platform().startup().unwrap();
        assert!(steps.iter().all(is_whole));
        assert_eq!(steps[0].command, [0x80, 1, 0, 0, 0, 12, 0, 0, 1, 0x44, 0, 0]);
        let close = &steps[1].command;
        assert_eq!(close.len(), 10 + 4 + 13 + 2 + PLATFORM_AUTH_SIZE);
        assert_eq!(close[27..29], [0, 32]);
    }

    #[test]
    fn each_start_closes_the_hierarchy_with_another_value() {
        let mut platform = platform();
        assert_ne!(platform.startup().unwrap()[1], platform.startup().unwrap()[1]);
    }

    #[test]
    fn a_firmware_that_knows_the_device_is_left_its_work() {
        assert!(Platform::new(TpmVersion::V2_0, StartupPolicy::None).startup().unwrap().is_empty());
    }

    #[test]
    fn the_hosts_tpm_is_neither_started_up_nor_closed_nor_shut_down() {
        for version in [TpmVersion::V1_2, TpmVersion::V2_0] {
            let mut platform = Platform::new(version, StartupPolicy::Host);
            assert!(platform.startup().unwrap().is_empty());
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
        platform.guest_runs(&shutdown.command);
        platform.guest_ran(&OK);
        assert_eq!(platform.shutdown(), None);
    }

    #[test]
    fn a_guest_that_went_on_after_its_shutdown_is_shut_down_again() {
        let mut platform = platform();
        let shutdown = platform.shutdown().unwrap();
        platform.guest_runs(&shutdown.command);
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
    fn a_step_keeps_its_secret_in_logs() {
        let steps = platform().startup().unwrap();
        assert_eq!(format!("{:?}", steps[1]), "Step { name: \"TPM2_HierarchyChangeAuth(platform)\", .. }");
    }

    #[test]
    fn a_shutdown_that_failed_does_not_count() {
        let mut platform = platform();
        let shutdown = platform.shutdown().unwrap();
        platform.guest_runs(&shutdown.command);
        platform.guest_ran(&[0x80, 1, 0, 0, 0, 10, 0, 0, 1, 0]);
        assert!(platform.shutdown().is_some());
    }

    #[test]
    fn a_tpm_1_2_gets_its_own_startup_and_its_physical_presence_is_locked() {
        let platform = &mut Platform::new(TpmVersion::V1_2, StartupPolicy::Clear);
        let steps = platform.startup().unwrap();
        assert_eq!(steps[0].command, [0, 0xc1, 0, 0, 0, 12, 0, 0, 0, 0x99, 0, 1]);
        assert_eq!(steps.last().unwrap().command, [0, 0xc1, 0, 0, 0, 12, 0x40, 0, 0, 0x0a, 0, 0x14]);
        assert!(steps.iter().all(is_whole));
        assert_eq!(platform.shutdown(), None);
    }
}
