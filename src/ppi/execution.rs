//! The commands that carry a request out, with the authorization of the platform hierarchy while that is still open.

use super::operation::{Action, Request};
use super::{FIRMWARE_FAILURE, SUCCESS};
use crate::pcr_bank;
use crate::platform::{self, EMPTY_PASSWORD, Step, TPM_RH_PLATFORM, TPM_ST_NO_SESSIONS, TPM_ST_SESSIONS};
use crate::tpm::{HEADER_SIZE, Header};

const TPM_CC_CHANGE_EPS: u32 = 0x124;
const TPM_CC_CLEAR: u32 = 0x126;
const TPM_CC_CLEAR_CONTROL: u32 = 0x127;
const TPM_CC_PCR_ALLOCATE: u32 = 0x12b;
const TPM_CC_GET_CAPABILITY: u32 = 0x17a;
const TPM_CAP_PCRS: u32 = 5;
const YES: u8 = 1;
const NO: u8 = 0;

/// Bytes in the bit map of PCRs 0 to 23.
const SELECT_SIZE: u8 = 3;
/// The highest response code of a TPM that can be told; above it are those that are told for the platform.
const LAST_TPM_CODE: u32 = 0xfff;

/// A request that is being carried out.
#[derive(Debug)]
pub struct Execution {
    request: Request,
    stage: Stage,
}

/// The command that runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    ClearControl,
    GetBanks,
    Allocate,
    /// After it there is nothing more to do.
    Last,
}

/// What comes after a command.
#[derive(Debug, PartialEq, Eq)]
pub enum Next {
    /// Another one.
    Run(Step),
    /// Nothing: it has ended.
    Done {
        /// The response for the guest.
        response: u32,
        /// The TPM does it when it is started next.
        restart: bool,
    },
}

/// A command or more have failed, and this is said of it.
struct Failure(u32);

impl Execution {
    /// Begins with the first command; none for an operation that nothing is done for.
    #[must_use]
    pub fn begin(request: Request) -> Option<(Self, Step)> {
        let (stage, step) = match Action::of(request.operation)? {
            // An owner may have switched TPM2_Clear off, for the platform too.
            Action::Clear => {
                (Stage::ClearControl, of_platform("TPM2_ClearControl(no)", TPM_CC_CLEAR_CONTROL, &[&[NO]]))
            }
            Action::ChangeEps => (Stage::Last, of_platform("TPM2_ChangeEPS", TPM_CC_CHANGE_EPS, &[])),
            Action::SetPcrBanks | Action::LogAllDigests => (Stage::GetBanks, get_banks()),
        };
        Some((Self { request, stage }, step))
    }

    /// What comes after the command that was answered with `response`, which has a whole header.
    pub fn advance(&mut self, response: &[u8]) -> Next {
        self.after(response).unwrap_or_else(|Failure(response)| Next::Done { response, restart: false })
    }

    fn after(&mut self, response: &[u8]) -> Result<Next, Failure> {
        const DONE: Next = Next::Done { response: SUCCESS, restart: false };
        match Header::parse(response).map_or(FIRMWARE_FAILURE, |header| header.code) {
            SUCCESS => {}
            code @ ..=LAST_TPM_CODE => return Err(Failure(code)),
            _ => return Err(Failure(FIRMWARE_FAILURE)),
        }
        let parameters = response.get(HEADER_SIZE..).unwrap_or_default();
        let (stage, step) = match self.stage {
            Stage::Last => return Ok(DONE),
            Stage::ClearControl => (Stage::Last, of_platform("TPM2_Clear", TPM_CC_CLEAR, &[])),
            Stage::GetBanks => match self.allocation(parameters)? {
                Some(step) => (Stage::Allocate, step),
                None => return Ok(DONE),
            },
            // parameterSize, and allocationSuccess.
            Stage::Allocate => match parameters.get(4) {
                Some(&YES) => return Ok(Next::Done { response: SUCCESS, restart: true }),
                _ => return Err(Failure(FIRMWARE_FAILURE)),
            },
        };
        self.stage = stage;
        Ok(Next::Run(step))
    }

    /// The command that gives the TPM the banks that are asked for; none if it has them. A bank that is not named would stay
    /// as it is, so all are named that the TPM knows.
    fn allocation(&self, capability: &[u8]) -> Result<Option<Step>, Failure> {
        let there = pcr_bank::allocation(capability).ok_or(Failure(FIRMWARE_FAILURE))?;
        let wanted: Vec<_> = match Action::of(self.request.operation) {
            Some(Action::LogAllDigests) => there.iter().map(|(bank, _)| *bank).collect(),
            _ => self.request.banks().collect(),
        };
        if wanted.iter().any(|bank| there.iter().all(|(known, _)| known != bank)) {
            return Err(Failure(FIRMWARE_FAILURE));
        }
        if there.iter().all(|(bank, used)| *used == wanted.contains(bank)) {
            return Ok(None);
        }
        let mut list = u32::try_from(there.len()).unwrap_or(u32::MAX).to_be_bytes().to_vec();
        for (bank, _) in there {
            let [high, low] = bank.algorithm().to_be_bytes();
            let all = if wanted.contains(&bank) { 0xff } else { 0 };
            list.extend([high, low, SELECT_SIZE, all, all, all]);
        }
        Ok(Some(of_platform("TPM2_PCR_Allocate", TPM_CC_PCR_ALLOCATE, &[&list])))
    }
}

/// A command with the empty authorization that the platform hierarchy has at the start.
fn of_platform(name: &'static str, code: u32, parameters: &[&[u8]]) -> Step {
    let parts = [&[&TPM_RH_PLATFORM, &EMPTY_PASSWORD[..]], parameters].concat();
    Step::requested(name, platform::command(TPM_ST_SESSIONS, code, &parts))
}

fn get_banks() -> Step {
    let [capability, first, count] = [TPM_CAP_PCRS, 0, 1].map(u32::to_be_bytes);
    let command = platform::command(TPM_ST_NO_SESSIONS, TPM_CC_GET_CAPABILITY, &[&capability, &first, &count]);
    Step::requested("TPM2_GetCapability(PCRS)", command)
}

#[cfg(test)]
mod tests;
