//! The guest's TPM, as the kernel's device gives it.

use std::fs::File;
use std::io::{Read, Write};
use std::time::Instant;

use nix::sys::resource::{UsageWho, getrusage};

use crate::dialogue::{Timed, Work};
use crate::tpm_commands::{
    ALG_ECDSA, ALG_RSASSA, RC_SUCCESS, code_of, command_attributes, create_primary_ecc, create_primary_rsa, get_random,
    hash, nv_define, nv_read, nv_write, pcr_read, sign, u32_at,
};

const NV_INDEX: u32 = 0x0150_0017;
/// What one command reads at most.
const NV_SIZE: u16 = 1024;
/// A PCR that IMA does not extend meanwhile.
const PCR: u32 = 16;

/// The TPM, with two keys and an NV index made.
pub(crate) struct Tpm {
    device: File,
    response: [u8; 4096],
    rsa_key: u32,
    ecc_key: u32,
}

impl Tpm {
    pub(crate) fn open() -> Self {
        let device = File::options().read(true).write(true).open("/dev/tpm0").expect("/dev/tpm0");
        let mut tpm = Self { device, response: [0; 4096], rsa_key: 0, ecc_key: 0 };
        tpm.rsa_key = u32_at(tpm.run(&create_primary_rsa(2048, 0)), 10);
        tpm.ecc_key = u32_at(tpm.run(&create_primary_ecc()), 10);
        tpm.run(&nv_define(NV_INDEX, NV_SIZE));
        tpm.run(&nv_write(NV_INDEX, &[0x5a; NV_SIZE as usize]));
        tpm
    }

    /// Runs a command that must succeed.
    fn run(&mut self, command: &[u8]) -> &[u8] {
        self.device.write_all(command).expect("the TPM takes the command");
        let length = self.device.read(&mut self.response).expect("the TPM answers");
        let response = &self.response[..length];
        assert_eq!(code_of(response), RC_SUCCESS, "response to {:02x?}", &command[..10]);
        response
    }

    fn command(&self, work: Work) -> Vec<u8> {
        match work {
            Work::GetRandom => get_random(32),
            Work::PcrRead => pcr_read(PCR),
            Work::GetCapability => command_attributes(93),
            Work::Hash => hash(&[0x5a; 1024]),
            Work::NvRead => nv_read(NV_INDEX, NV_SIZE),
            Work::SignRsa => sign(self.rsa_key, ALG_RSASSA, [0x5a; 32]),
            Work::SignEcc => sign(self.ecc_key, ALG_ECDSA, [0x5a; 32]),
        }
    }

    /// Runs a command this many times.
    pub(crate) fn time(&mut self, work: Work, rounds: u32) -> Timed {
        let command = self.command(work);
        let mut response = 0;
        let mut times = Vec::with_capacity(rounds as usize);
        let sleeps_before = sleeps();
        for _ in 0..rounds {
            let start = Instant::now();
            response = self.run(&command).len();
            times.push(start.elapsed());
        }
        let sleeps = u32::try_from(sleeps() - sleeps_before).expect("not that many sleeps");
        Timed { sleeps, response: u32::try_from(response).expect("4096 at most"), times }
    }

    /// Runs each kind of command once.
    pub(crate) fn run_each(&mut self) -> u32 {
        let mut count = 0;
        for work in Work::ALL {
            let command = self.command(work);
            self.run(&command);
            count += 1;
        }
        count
    }
}

/// How often this thread has given up its CPU.
fn sleeps() -> i64 {
    getrusage(UsageWho::RUSAGE_THREAD).expect("getrusage").voluntary_context_switches()
}
