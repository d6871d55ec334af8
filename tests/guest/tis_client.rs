//! Drives a TPM over its vfio-user socket, register by register, from a shell:
//! `tis_client SOCKET ACTION…` with the actions
//!
//! - `HEX`: runs a command and prints its response, in hex, on a line
//! - `begin=HEX`: begins a command
//! - `cancel`: cancels the command that runs, by commandReady, and does not wait
//! - `locality=N`: gives up the locality, and takes this one; at first it has locality 0
//! - `reset`: DEVICE_RESET

#[allow(dead_code, unreachable_pub, missing_docs)]
#[path = "../common/raw_client.rs"]
mod raw_client;
#[allow(dead_code, unreachable_pub, missing_docs)]
#[path = "../common/tis.rs"]
mod tis;

use std::path::Path;

use raw_client::RawClient;
use tis::{COMMAND_READY, STS, Tis};

fn main() {
    let mut args = std::env::args().skip(1);
    let socket = args.next().expect("the first argument is the socket");
    let mut tpm = Tis::new(RawClient::connect(Path::new(&socket)));
    for action in args {
        match action.split_once('=') {
            Some(("begin", command)) => tpm.begin(&bytes(command)),
            Some(("locality", number)) => tpm.take_locality(number.parse().expect("a locality")),
            _ if action == "cancel" => tpm.write32(STS, COMMAND_READY),
            _ if action == "reset" => tpm.reset(),
            _ => println!("{}", hex(&tpm.run(&bytes(&action)))),
        }
    }
}

fn bytes(hex: &str) -> Vec<u8> {
    (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).expect("hexadecimal")).collect()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |hex, byte| hex + &format!("{byte:02x}"))
}
