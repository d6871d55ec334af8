//! The machine on which is measured.

use std::ffi::OsString;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use super::common::process::{Process, until};
use super::guest::kit;
use super::setups::swtpm_program;

/// What a reader has to know to compare figures with those of another machine; each fact with its name.
pub(crate) fn facts() -> Vec<(&'static str, String)> {
    let cpus = std::thread::available_parallelism().map_or(0, usize::from);
    let about = std::fs::read_to_string(kit().join("about")).unwrap_or_default();
    // Without what a distributor adds.
    let release = read("/proc/sys/kernel/osrelease");
    let release = release.trim().split('-').next().unwrap_or_default();
    // QEMU and kernel.
    let guest: Vec<&str> = about.lines().take(2).collect();
    vec![
        ("CPU", format!("{}, {cpus} of it", cpu_model(&read("/proc/cpuinfo")).unwrap_or("unknown"))),
        ("Host", format!("Linux {release}")),
        ("Load average before", read("/proc/loadavg").split(' ').next().unwrap_or("unknown").to_owned()),
        ("Guest", guest.join(", ")),
        ("swtpm", first_line(swtpm_program(), &["--version"])),
        ("libtpms", first_line(Path::new("pkg-config"), &["--modversion", "libtpms"])),
        ("vfio-user-tpm", env!("CARGO_PKG_VERSION").to_owned()),
    ]
}

fn read(path: &str) -> String {
    std::fs::read_to_string(path).unwrap_or_default()
}

fn cpu_model(cpuinfo: &str) -> Option<&str> {
    let line = cpuinfo.lines().find(|line| line.starts_with("model name"))?;
    Some(line.split_once(':')?.1.trim())
}

fn first_line(program: &Path, args: &[&str]) -> String {
    let output = Command::new(program).args(args).output().map(|output| output.stdout).unwrap_or_default();
    String::from_utf8_lossy(&output).lines().next().unwrap_or("unknown").to_owned()
}

/// How long a guest may take that does nothing but boot and end.
const KVM_LIMIT: Duration = Duration::from_secs(20);

/// Whether a guest truly runs under KVM: a /dev/kvm that opens proves nothing.
#[track_caller]
pub(crate) fn has_kvm() -> bool {
    if std::fs::File::options().read(true).write(true).open("/dev/kvm").is_err() {
        return false;
    }
    let kit = kit();
    let folder = tempfile::tempdir().expect("temporary folder");
    let mut args: Vec<OsString> =
        "-accel kvm -cpu max -machine q35 -m 512 -nodefaults -no-user-config -display none -serial stdio -no-reboot"
            .split(' ')
            .map(OsString::from)
            .collect();
    // An empty script, after which /init switches the machine off.
    args.extend(["-append", "console=ttyS0 panic=-1 guest.run=dev/null"].map(OsString::from));
    args.extend(["-kernel".into(), kit.join("vmlinuz").into(), "-initrd".into(), kit.join("initramfs.cpio").into()]);
    let mut qemu = Process::start(&kit.join("qemu-system-x86_64"), args, folder.path().join("output"));
    let ended = until(KVM_LIMIT, || {
        let gave_up = qemu.output().contains("KVM internal error");
        qemu.exit_status().map(|status| status.success()).or(gave_up.then_some(false))
    });
    ended == Some(true) && qemu.output().contains("reboot: Power down")
}

#[cfg(test)]
#[allow(unused, reason = "tests/benchmark.rs runs these; a bench without a harness leaves them out")]
mod tests {
    use super::*;

    #[test]
    fn the_model_of_the_first_cpu_is_found() {
        let cpuinfo = "processor\t: 0\nmodel\t\t: 17\nmodel name\t: AMD EPYC\nmodel name\t: another\n";
        assert_eq!(cpu_model(cpuinfo), Some("AMD EPYC"));
        assert_eq!(cpu_model("processor: 0\n"), None);
    }
}
