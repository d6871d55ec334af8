//! What a TPM command takes in a guest: with QEMU's own devices and swtpm, and with ours, in turns within one run. Writes
//! docs/benchmark.md and its plots.
//!
//! `./bench`, which builds the client for the guest as well; `--quick` tries it out, `--only ID,…` takes some of the TPMs.

#[path = "../../tests/common/mod.rs"]
pub(crate) mod common;
#[path = "../../tests/guest/mod.rs"]
pub(crate) mod guest;

pub(crate) mod bystanders;
#[allow(dead_code, reason = "both sides say some of it")]
pub(crate) mod dialogue;
pub(crate) mod latency;
mod machine;
mod plot;
mod processes;
pub(crate) mod report;
pub(crate) mod setups;
mod statistics;
pub(crate) mod subject;
mod table;

use std::path::{Path, PathBuf};

use report::{Accelerator, Report};
use setups::Setup;

/// What is asked for.
struct Options {
    quick: bool,
    /// Which TPMs, by [`Setup::id`]; empty for all.
    only: Vec<String>,
}

impl Options {
    fn parse(mut args: impl Iterator<Item = String>) -> Result<Self, String> {
        let mut options = Self { quick: false, only: Vec::new() };
        while let Some(arg) = args.next() {
            match arg.as_str() {
                // By cargo.
                "--bench" => {}
                "--quick" => options.quick = true,
                "--only" => {
                    let ids = args.next().ok_or("--only wants names, as in --only qemu-crb,tis-embedded")?;
                    options.only = ids.split(',').map(str::to_owned).collect();
                }
                _ => return Err(format!("unknown argument {arg}; known are --quick and --only ID,…")),
            }
        }
        Ok(options)
    }

    /// Those of the setups that are wanted.
    fn choose(&self, setups: Vec<Setup>) -> Vec<Setup> {
        setups.into_iter().filter(|setup| self.only.is_empty() || self.only.contains(&setup.id())).collect()
    }

    /// Where the document goes. Some of the figures do not replace all of them.
    fn folder(&self) -> PathBuf {
        if self.quick || !self.only.is_empty() {
            Path::new(env!("CARGO_TARGET_TMPDIR")).with_file_name("bench")
        } else {
            Path::new(env!("CARGO_MANIFEST_DIR")).join("docs")
        }
    }

    fn latency(&self) -> latency::Plan {
        if self.quick {
            latency::Plan { boots: 1, commands: 20, counted: 5 }
        } else {
            latency::Plan { boots: 4, commands: 100, counted: 50 }
        }
    }

    fn bystanders(&self) -> bystanders::Plan {
        if self.quick {
            bystanders::Plan { boots: 1, idle: 500, busy: 1000 }
        } else {
            bystanders::Plan { boots: 3, idle: 2000, busy: 5000 }
        }
    }
}

fn main() {
    let options = Options::parse(std::env::args().skip(1)).unwrap_or_else(|error| {
        eprintln!("bench: error: {error}");
        std::process::exit(2);
    });
    let interfaces = setups::interfaces();
    let mut known = Setup::all(&interfaces);
    if !options.only.is_empty() {
        known.extend(Setup::on_demand());
    }
    let ids: Vec<String> = known.iter().map(Setup::id).collect();
    if let Some(unknown) = options.only.iter().find(|id| !ids.contains(id)) {
        eprintln!("bench: error: --only: {unknown} is not there; there are {}", ids.join(", "));
        std::process::exit(2);
    }

    let facts = machine::facts();
    let has_kvm = machine::has_kvm();
    println!("bench: KVM {}", if has_kvm { "boots a guest and is measured too" } else { "boots no guest here" });
    let programs = subject::programs();
    let archive = programs.archive();
    let latency_setups = options.choose(known);
    let bystander_setups = options.choose(Setup::for_bystanders(&interfaces));
    let accelerators = ["tcg"].into_iter().chain(has_kvm.then_some("kvm")).map(|name| Accelerator {
        name,
        latency: latency::measure(&latency_setups, name, options.latency(), &archive),
        bystanders: bystanders::observe(&bystander_setups, name, options.bystanders(), &archive),
    });
    let report = Report { facts, has_kvm, accelerators: accelerators.collect() };

    let folder = options.folder();
    std::fs::create_dir_all(&folder).expect("the folder of the document");
    let write = |name: &str, content: &str| {
        let path = folder.join(name);
        std::fs::write(&path, content).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        println!("bench: written: {}", path.display());
    };
    let text = report.to_string();
    println!("\n{text}");
    write("benchmark.md", &text);
    for accelerator in &report.accelerators {
        write(&accelerator.plot_file(), &accelerator.plot().svg());
    }
}
