//! The benchmark's part in the guest: runs TPM commands on `/dev/tpm0` and times them, and puts a load on the disk, as the
//! host says (`dialogue.rs`).

#[allow(dead_code, reason = "both sides say some of it")]
#[path = "../dialogue.rs"]
mod dialogue;
mod load;
mod tpm;
#[allow(missing_docs)]
#[path = "../../../tests/common/tpm_commands.rs"]
mod tpm_commands;

use std::fs::File;
use std::io::{BufRead, BufReader, Write};

use dialogue::{END, READY, Request, Timed};
use tpm::Tpm;

/// The channel of the harness, on which `/init` does not speak while this program runs.
const CHANNEL: &str = "/dev/ttyS1";

fn main() {
    // A panic is a line, which the host finds where it expects another.
    std::panic::set_hook(Box::new(|panic| {
        let text = panic.to_string().replace('\n', " ");
        let _ = File::options().write(true).open(CHANNEL).and_then(|mut channel| writeln!(channel, "{text}"));
    }));
    let mut channel = File::options().read(true).write(true).open(CHANNEL).expect("the channel");
    let requests = BufReader::new(channel.try_clone().expect("the channel, once more")).lines();
    let mut say = move |line: &str| channel.write_all(format!("{line}\n").as_bytes()).expect("the host listens");

    let mut tpm = Tpm::open();
    let mut timed = Timed::default();
    say(READY);
    for request in requests {
        let request = request.expect("the host speaks");
        match request.parse().unwrap_or_else(|malformed| panic!("a request {malformed}")) {
            Request::Time { work, rounds } => {
                timed = tpm.time(work, rounds);
                say(END);
            }
            Request::Results => say(&timed.to_string()),
            Request::Load { milliseconds, with_tpm } => {
                say(&load::run(milliseconds, with_tpm.then_some(&mut tpm)).to_string());
            }
        }
    }
}
