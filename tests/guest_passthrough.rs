//! The host's TPM for real: a guest plays the host. In it our server has the kernel's TPM device, and a client drives the
//! server's registers over its socket.

mod common;
mod guest;

use std::path::{Path, PathBuf};
use std::time::Duration;

use common::process::{Process, until};
use common::tpm_commands::*;
use guest::{Guest, GuestConfig, Programs};
use nix::sys::signal::Signal;
use tempfile::TempDir;

const SERVER: &str = env!("CARGO_BIN_EXE_vfio-user-tpm");
const DEADLINE: Duration = Duration::from_secs(60);

/// As the server in the guest has ended.
const STATUS: &str = "/host/run/status";

/// A command for which the kernel waits minutes, unlike most.
fn long_command() -> Vec<u8> {
    create_primary_rsa(2048, 1)
}

/// `TPM_SelfTestFull`: the same for a TPM 1.2.
const LONG_COMMAND_1_2: [u8; 10] = [0, 0xc1, 0, 0, 0, 10, 0, 0, 0, 0x50];

/// The client for the guest. A whole `cargo test` builds it; one of these tests alone needs it built before.
fn tis_client() -> PathBuf {
    let test = std::env::current_exe().expect("the test's own path");
    let client = test.ancestors().nth(2).expect("target folder").join("examples/tis_client");
    assert!(client.exists(), "{} is missing: cargo build --example tis_client", client.display());
    client
}

fn swtpm() -> PathBuf {
    let swtpm = Path::new("/usr/bin/swtpm");
    assert!(swtpm.exists(), "swtpm is missing: apt-get install swtpm");
    swtpm.to_owned()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |hex, byte| hex + &format!("{byte:02x}"))
}

fn bytes(hex: &str) -> Vec<u8> {
    (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).expect("hexadecimal")).collect()
}

/// A guest in the host's role.
struct Host {
    guest: Guest,
    _programs: Programs,
}

impl Host {
    #[track_caller]
    fn boot(qemu_args: &[String], more: &[&Path], modules: &[&str]) -> Self {
        let mut programs = Programs::new();
        for program in [Path::new(SERVER), &tis_client()].iter().chain(more) {
            programs.add(program);
        }
        for module in modules {
            programs.add_module(module);
        }
        let qemu_args = qemu_args.iter().map(Into::into).collect();
        let config = GuestConfig { qemu_args, archives: vec![programs.archive()], ..GuestConfig::default() };
        let mut guest = Guest::boot(&config);
        guest.check(Programs::SETUP);
        Self { guest, _programs: programs }
    }

    /// Begins to run a server, and waits until it listens or has ended.
    #[track_caller]
    fn spawn_server(&mut self, args: &str) {
        let run = Programs::RUN;
        self.guest.check(&format!(
            "rm -f {STATUS} /host/run/socket
             (sh -c 'echo $$ >/host/run/pid && exec {run} /bin/vfio-user-tpm --backend=passthrough --interface=tis --log-level=debug \
                     --socket-path=/run/socket {args}' >/host/run/log 2>&1
              echo $? >{STATUS}) &
             until [ -e {STATUS} ] || grep -q ' 00010000 .* /run/socket$' /proc/net/unix; do usleep 50000; done"
        ));
    }

    #[track_caller]
    fn serve(&mut self, args: &str) {
        self.spawn_server(args);
        let log = self.log();
        assert!(self.status().is_none(), "the server has ended at start: {log}");
    }

    /// Starts a server that is to fail, and returns what it says.
    #[track_caller]
    fn serve_in_vain(&mut self, args: &str) -> String {
        let run = Programs::RUN;
        let args = format!("--backend=passthrough --socket-path=/run/other {args}");
        let output = self.guest.run(&format!("{run} /bin/vfio-user-tpm {args}"));
        assert_eq!(output.status, 1, "{}", output.stderr);
        output.stderr
    }

    fn log(&mut self) -> String {
        self.guest.check("cat /host/run/log")
    }

    fn status(&mut self) -> Option<String> {
        let status = self.guest.run(&format!("cat {STATUS}"));
        (status.status == 0).then(|| status.stdout.trim().to_owned())
    }

    #[track_caller]
    fn signal_server(&mut self, signal: &str) {
        self.guest.check(&format!("kill -{signal} $(cat /host/run/pid)"));
    }

    /// Waits for the server's end and returns its exit status.
    #[track_caller]
    fn wait_for_end(&mut self) -> String {
        self.guest.check(&format!("until [ -s {STATUS} ]; do usleep 50000; done"));
        self.status().expect("exit status")
    }

    #[track_caller]
    fn terminate_server(&mut self) {
        self.signal_server("TERM");
        let status = self.wait_for_end();
        assert_eq!(status, "0", "{}", self.log());
    }

    /// Has the client carry out what its arguments say; returns the responses.
    #[track_caller]
    fn client(&mut self, actions: &[String]) -> Vec<Vec<u8>> {
        let run = Programs::RUN;
        let printed = self.guest.check(&format!("{run} /bin/tis_client /run/socket {}", actions.join(" ")));
        printed.lines().map(bytes).collect()
    }

    #[track_caller]
    fn run(&mut self, command: &[u8]) -> Vec<u8> {
        let mut responses = self.client(&[hex(command)]);
        assert_eq!(responses.len(), 1);
        responses.remove(0)
    }

    #[track_caller]
    fn ok(&mut self, command: &[u8]) -> Vec<u8> {
        let response = self.run(command);
        assert_eq!(code_of(&response), RC_SUCCESS, "{command:02x?}");
        response
    }
}

/// swtpm on the machine that runs the test, for QEMU's own TPM.
struct Swtpm {
    process: Process,
    dir: TempDir,
}

impl Swtpm {
    fn start() -> Self {
        let dir = tempfile::Builder::new().prefix("swtpm-").tempdir().expect("temporary folder");
        let state = format!("dir={}", dir.path().display());
        let control = format!("type=unixio,path={}", dir.path().join("control").display());
        let args = ["socket", "--tpm2", "--tpmstate", &state, "--ctrl", &control];
        let process = Process::start(&swtpm(), args, dir.path().join("output"));
        let swtpm = Self { process, dir };
        let ready = until(DEADLINE, || swtpm.control().exists().then_some(()));
        assert!(ready.is_some(), "swtpm does not start: {}", swtpm.process.output());
        swtpm
    }

    fn control(&self) -> PathBuf {
        self.dir.path().join("control")
    }

    fn qemu_args(&self) -> Vec<String> {
        let chardev = format!("socket,id=swtpm,path={}", self.control().display());
        ["-chardev", &chardev, "-tpmdev", "emulator,id=tpm,chardev=swtpm", "-device", "tpm-tis,tpmdev=tpm"]
            .map(str::to_owned)
            .into()
    }
}

#[test]
fn a_tpm_2_0_of_the_host() {
    let mut swtpm = Swtpm::start();
    let mut host = Host::boot(&swtpm.qemu_args(), &[], &[]);

    host.serve("--tpm-path=/dev/tpm0");
    let log = host.log();
    assert!(log.contains("TPM 2.0 that takes commands of 4096 bytes"), "{log}");
    assert!(log.contains("not reset with the VM") && log.contains("no cancel file"), "{log}");
    commands_reach_it(&mut host);
    a_reset_keeps_its_pcrs(&mut host);
    it_has_one_user_only(&mut host);
    a_cancelled_command_ends(&mut host);
    the_server_ends_while_a_command_runs(&mut host, &mut swtpm);
    the_resource_manager_can_be_shared(&mut host);
    host.guest.quit();
}

fn commands_reach_it(host: &mut Host) {
    let size = host.ok(&get_property(0x11e));
    assert_eq!(property_value(&size), 4096);
    let random = host.ok(&get_random(16));
    assert_eq!(random.len(), 28);
    // TPM_RC_INITIALIZE: the host has started it up.
    assert_eq!(code_of(&host.run(&startup_clear())), 0x100);

    let get_random = hex(&get_random(8));
    let responses = host.client(&["locality=1".into(), get_random.clone(), "locality=0".into(), get_random]);
    assert_eq!(responses.iter().map(|response| code_of(response)).collect::<Vec<_>>(), [RC_LOCALITY, RC_SUCCESS]);
}

fn a_reset_keeps_its_pcrs(host: &mut Host) {
    host.ok(&pcr_extend(16, [7; 32]));
    let before = digest_of(&host.ok(&pcr_read(16)));
    assert_ne!(before, [0; 32]);
    let responses = host.client(&["reset".into(), hex(&pcr_read(16))]);
    assert_eq!(digest_of(&responses[0]), before);
}

fn it_has_one_user_only(host: &mut Host) {
    let error = host.serve_in_vain("--tpm-path=/dev/tpm0");
    assert!(error.contains("/dev/tpm0 is in use") && error.contains("/dev/tpmrm0"), "{error}");
}

/// The kernel has no cancel file for a TPM 2.0: the command runs to its end, and the next one is answered.
fn a_cancelled_command_ends(host: &mut Host) {
    let actions = [format!("begin={}", hex(&long_command())), "cancel".into(), hex(&get_random(8))];
    let responses = host.client(&actions);
    assert_eq!(code_of(&responses[0]), RC_SUCCESS);
}

/// The kernel waits for the chip and lets go of no process that waits there. The server does not wait.
fn the_server_ends_while_a_command_runs(host: &mut Host, swtpm: &mut Swtpm) {
    swtpm.process.signal(Signal::SIGSTOP);
    host.client(&[format!("begin={}", hex(&long_command()))]);
    host.signal_server("TERM");
    assert_eq!(host.wait_for_end(), "1");
    let log = host.log();
    assert!(log.contains("did not answer in time"), "{log}");
    // The worker still waits in the kernel, and has the device.
    let error = host.serve_in_vain("--tpm-path=/dev/tpm0");
    assert!(error.contains("/dev/tpm0 is in use"), "{error}");

    swtpm.process.signal(Signal::SIGCONT);
    let free = until(DEADLINE, || {
        host.spawn_server("--tpm-path=/dev/tpm0");
        host.status().is_none().then_some(())
    });
    assert!(free.is_some(), "the device does not get free: {}", host.log());
    host.ok(&get_random(8));
    host.terminate_server();
}

fn the_resource_manager_can_be_shared(host: &mut Host) {
    host.serve("--tpm-path=/dev/tpmrm0");
    let log = host.log();
    assert!(log.contains("shares the TPM with other programs"), "{log}");
    host.guest.check("tpm2_getrandom -Q 8");
    // With the reset goes what the guest has loaded; else the resource manager would soon have no room for it.
    for _ in 0..5 {
        let response = host.ok(&create_primary_rsa(2048, 2));
        let handle = u32_at(&response, 10);
        host.client(&["reset".into(), hex(&get_random(8))]);
        assert_ne!(code_of(&host.run(&flush(handle))), RC_SUCCESS);
    }
    host.terminate_server();
}

/// A TPM of the kernel's proxy, with swtpm behind it in the guest.
fn host_with_proxy(swtpm_args: &str) -> Host {
    let mut host = Host::boot(&[], &[&swtpm()], &["tpm_vtpm_proxy"]);
    let run = Programs::RUN;
    host.guest.check(&format!(
        "xzcat /tpm_vtpm_proxy.ko.xz >/tmp/proxy.ko && insmod /tmp/proxy.ko && mkdir /host/tmp/state || exit
         {run} /bin/swtpm chardev --vtpm-proxy --tpmstate dir=/tmp/state {swtpm_args} --locality allow-set-locality \
             >/host/run/swtpm-log 2>&1 &
         echo $! >/host/run/swtpm-pid
         until [ -e /dev/tpm0 ] && [ -e /sys/class/tpm/tpm0 ]; do
             kill -0 $! || {{ cat /host/run/swtpm-log >&2; exit 1; }}
             usleep 50000
         done"
    ));
    host
}

#[test]
fn a_tpm_1_2_of_the_host_and_its_cancel_file() {
    let mut host = host_with_proxy("");
    // The device is there before the kernel has started the TPM up.
    host.guest.check("until cat /sys/class/tpm/tpm0/pcrs >/dev/null; do usleep 50000; done");

    let error = host.serve_in_vain("--tpm-path=/dev/tpm0 --tpm-version=2.0");
    assert!(error.contains("--tpm-version=1.2"), "{error}");
    host.serve("--tpm-path=/dev/tpm0");
    let log = host.log();
    assert!(log.contains("TPM 1.2 that takes commands of"), "{log}");
    assert!(log.contains("cancelled by /sys/class/tpm/tpm0"), "{log}");

    let extended = host.ok(&tpm_1_2::extend(16, [7; 20]));
    let responses = host.client(&["reset".into(), hex(&tpm_1_2::pcr_read(16))]);
    assert_eq!(responses, [extended]);
    let responses = host.client(&["locality=1".into(), hex(&tpm_1_2::pcr_read(16)), "locality=0".into()]);
    // TPM_BAD_LOCALITY
    assert_eq!(code_of(&responses[0]), 0x3d);

    // The command cannot end before the file is being written, and then ends by itself: the proxy ignores the file.
    host.guest.check("kill -STOP $(cat /host/run/swtpm-pid)");
    host.client(&[format!("begin={}", hex(&LONG_COMMAND_1_2)), "cancel".into()]);
    host.guest.check(
        "until grep -q 'writing to the cancel file' /host/run/log; do usleep 50000; done
         kill -CONT $(cat /host/run/swtpm-pid)
         until grep -q 'the cancel file was written' /host/run/log; do usleep 50000; done",
    );
    host.ok(&tpm_1_2::pcr_read(16));
    host.terminate_server();
    host.guest.quit();
}

#[test]
fn a_tpm_2_0_of_the_hosts_proxy() {
    let mut host = host_with_proxy("--tpm2");
    for device in ["/dev/tpm0", "/dev/tpmrm0"] {
        host.serve(&format!("--tpm-path={device}"));
        let log = host.log();
        assert!(log.contains("TPM 2.0 that takes commands of 4096 bytes"), "{log}");
        host.ok(&get_random(8));
        assert_eq!(code_of(&host.run(&startup_clear())), 0x100);
        host.terminate_server();
    }
    host.guest.quit();
}
