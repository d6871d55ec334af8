//! `./bench`, so that it does not rot: the tests beside its parts, and one guest.

#[allow(dead_code, reason = "its main function, above all")]
#[path = "../benches/guest_commands/main.rs"]
mod guest_commands;

use guest_commands::bystanders::{self, Observed};
use guest_commands::common;
use guest_commands::dialogue::Work;
use guest_commands::latency::Measured;
use guest_commands::report::{Accelerator, Report};
use guest_commands::setups::{self, Setup};
use guest_commands::subject::{self, Board, Subject};

#[test]
fn a_guest_is_measured_and_the_report_has_its_figures() {
    let setups = Setup::all(&setups::interfaces());
    let setup = setups.iter().find(|setup| setup.id() == "tis-embedded").expect("TIS with the embedded TPM");
    let tpm = setup.start();
    let programs = subject::programs();
    let mut subject = Subject::boot(&tpm, Board { accel: "tcg", cpus: 1, append: "" }, &programs.archive());

    let mut measured = Measured::new(setup);
    measured.time(&mut subject, 2);
    measured.count_traps(&mut subject, 2);
    let mut observed = Observed::new(setup);
    observed.observe(&mut subject, bystanders::Plan { boots: 1, idle: 50, busy: 50 });
    subject.quit();

    for (work, figures) in &measured.works {
        assert_eq!(figures.times.len(), 2, "{work:?}");
        let (qemu, tpm) = figures.cpu();
        assert!(qemu > 0.0 && tpm > 0.0, "{work:?}");
        // The guest's driver reads a byte at a time.
        assert!(figures.traps().is_some_and(|traps| traps > f64::from(figures.response)), "{work:?}");
    }
    assert!(observed.idle.disk_rate() > 0.0 && observed.busy.disk_rate() > 0.0 && observed.busy.tpm_rate() > 0.0);

    let accelerator = Accelerator { name: "tcg", latency: vec![measured], bystanders: vec![observed] };
    let plot = accelerator.plot().svg();
    let report = Report { facts: Vec::new(), has_kvm: false, accelerators: vec![accelerator] }.to_string();
    for work in Work::ALL {
        assert!(report.contains(&format!("\n{}: response of ", work.title())), "{report}");
    }
    assert_eq!(report.matches("| ours, tis + embedded |").count(), Work::ALL.len() + 2, "{report}");
    assert!(!report.contains("NaN") && !report.contains("inf") && plot.starts_with("<svg"), "{report}");
}
