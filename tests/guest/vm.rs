//! A guest in QEMU.

use std::ffi::OsString;
use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout};
use nix::unistd::Pid;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::channel::Channel;
pub(crate) use super::channel::Output;
use super::kernel_log::KernelMessage;
use super::kit::{kit, kit_arm64};
use super::qmp::Qmp;
use crate::common::process::{Process, tail, until};

const BOOT_DEADLINE: Duration = Duration::from_secs(180);
const COMMAND_DEADLINE: Duration = Duration::from_secs(120);

/// The firmware that starts the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Firmware {
    /// QEMU's default.
    SeaBios,
    /// UEFI, with variables that are forgotten with the guest.
    Ovmf,
    /// UEFI for 64-bit ARM, which has nothing else.
    Aavmf,
}

/// What differs between the architectures of guests.
struct Platform {
    kit: &'static Path,
    qemu: &'static str,
    cpu: &'static str,
    console: &'static str,
}

impl Firmware {
    fn platform(self) -> Platform {
        match self {
            Self::SeaBios | Self::Ovmf => {
                Platform { kit: kit(), qemu: "qemu-system-x86_64", cpu: "max", console: "ttyS0" }
            }
            // Under TCG the newer ones are slower.
            Self::Aavmf => {
                Platform { kit: kit_arm64(), qemu: "qemu-system-aarch64", cpu: "cortex-a72", console: "ttyAMA0" }
            }
        }
    }
}

/// What a guest is made of.
#[derive(Clone, Debug)]
pub(crate) struct GuestConfig {
    /// QEMU's `-machine`.
    pub(crate) machine: &'static str,
    pub(crate) firmware: Firmware,
    /// QEMU's `-accel`. Tests do without KVM, since a machine's /dev/kvm may open and yet run no guest.
    pub(crate) accel: &'static str,
    /// Memory in MiB.
    pub(crate) memory: u32,
    /// Number of processors.
    pub(crate) cpus: u32,
    /// What starts QEMU, if it is not the test: a program and its arguments.
    pub(crate) launcher: Vec<OsString>,
    /// More arguments for QEMU: the TPM, above all.
    pub(crate) qemu_args: Vec<OsString>,
    /// More words for the kernel's command line.
    pub(crate) append: String,
    /// An archive in front of the guest's own.
    pub(crate) first_archive: Option<PathBuf>,
    /// Archives whose files the guest has besides its own (`Programs`).
    pub(crate) archives: Vec<PathBuf>,
}

impl Default for GuestConfig {
    fn default() -> Self {
        Self {
            machine: "q35",
            firmware: Firmware::SeaBios,
            accel: "tcg",
            memory: 512,
            cpus: 1,
            launcher: Vec::new(),
            qemu_args: Vec::new(),
            append: String::new(),
            first_archive: None,
            archives: Vec::new(),
        }
    }
}

impl GuestConfig {
    fn arguments(&self, platform: &Platform, dir: &Path) -> Vec<OsString> {
        let kit = platform.kit;
        let socket = |name: &str| format!("socket,id={name},path={}", dir.join(name).display());
        let mut args: Vec<OsString> = [
            "-accel",
            self.accel,
            "-cpu",
            platform.cpu,
            "-nodefaults",
            "-no-user-config",
            "-display",
            "none",
            "-machine",
            self.machine,
            "-m",
            &self.memory.to_string(),
            "-smp",
            &self.cpus.to_string(),
            "-serial",
            &format!("file:{}", dir.join("console").display()),
            "-chardev",
            &socket("channel"),
            "-serial",
            "chardev:channel",
            "-qmp",
            &format!("unix:{}", dir.join("qmp").display()),
            // iomem=relaxed: tests reach for the device's registers through /dev/mem.
            "-append",
            &format!("console={} panic=-1 iomem=relaxed {}", platform.console, self.append),
        ]
        .map(OsString::from)
        .into();
        args.extend(["-kernel".into(), kit.join("vmlinuz").into()]);
        args.extend(["-initrd".into(), self.initramfs(kit, dir).into()]);
        match self.firmware {
            Firmware::SeaBios => {}
            Firmware::Ovmf => {
                for (file, mode) in [("OVMF_CODE.fd", "on"), ("OVMF_VARS.fd", "off")] {
                    let copy = dir.join(file);
                    std::fs::copy(kit.join(file), &copy).expect("copy of the firmware");
                    let drive = format!("if=pflash,format=raw,readonly={mode},file={}", copy.display());
                    args.extend(["-drive".into(), drive.into()]);
                }
            }
            Firmware::Aavmf => args.extend(["-bios".into(), kit.join("QEMU_EFI.fd").into()]),
        }
        args.extend(self.qemu_args.iter().cloned());
        args
    }

    /// The kit's initramfs, with the archives around it: the kernel unpacks one after the other.
    fn initramfs(&self, kit: &Path, dir: &Path) -> PathBuf {
        let own = kit.join("initramfs.cpio");
        if self.first_archive.is_none() && self.archives.is_empty() {
            return own;
        }
        let all = dir.join("initramfs.cpio");
        let parts = self.first_archive.iter().chain([&own]).chain(&self.archives);
        let parts = parts.map(|part| std::fs::read(part).expect("archive"));
        std::fs::write(&all, parts.collect::<Vec<_>>().concat()).expect("initramfs in the temporary folder");
        all
    }
}

/// A running guest. QEMU is killed when this is dropped; if a test panics, the ends of the guest's console and of QEMU's
/// own output are printed.
pub(crate) struct Guest {
    qemu: Process,
    cpus: u32,
    channel: Channel,
    qmp: Qmp,
    dir: TempDir,
    _slot: Slot,
}

impl Guest {
    /// Boots a guest and waits until it takes commands.
    #[track_caller]
    pub(crate) fn boot(config: &GuestConfig) -> Self {
        let platform = config.firmware.platform();
        let slot = Slot::take();
        let dir = tempfile::Builder::new().prefix("guest-").tempdir().expect("temporary folder");
        // QEMU connects to us, so there is nothing to wait for.
        let listen = |name| UnixListener::bind(dir.path().join(name)).expect("socket in the temporary folder");
        let (channel, qmp) = (listen("channel"), listen("qmp"));
        let mut command = config.launcher.clone();
        command.push(platform.kit.join(platform.qemu).into());
        command.extend(config.arguments(&platform, dir.path()));
        let mut qemu = Process::start(Path::new(&command[0]), &command[1..], dir.path().join("qemu-output"));
        let channel = Channel::new(accept(&channel, &mut qemu));
        let qmp = Qmp::new(accept(&qmp, &mut qemu)).unwrap_or_else(|e| panic!("{e}; QEMU said: {}", qemu.output()));
        let mut guest = Self { qemu, cpus: config.cpus, channel, qmp, dir, _slot: slot };
        guest.wait_for_boot();
        guest
    }

    /// Runs a shell script in the guest (root, busybox, tpm2-tools).
    #[track_caller]
    pub(crate) fn run(&mut self, script: &str) -> Output {
        match self.channel.run(script, COMMAND_DEADLINE) {
            Ok(output) => output,
            Err(error) => panic!("in the guest, {script:?}: {error}"),
        }
    }

    /// Runs a shell script that must succeed, and returns what it wrote to standard output.
    #[track_caller]
    pub(crate) fn check(&mut self, script: &str) -> String {
        let Output { status, stdout, stderr } = self.run(script);
        assert_eq!(status, 0, "in the guest, {script:?} failed\nstdout: {stdout}\nstderr: {stderr}");
        stdout
    }

    /// Starts a script that speaks on the channel itself, by [`tell`](Self::tell) and [`hear`](Self::hear); nothing else can
    /// run in the guest from then on.
    #[track_caller]
    pub(crate) fn start_talk(&mut self, script: &str) {
        self.channel.send(script).expect("channel");
    }

    /// Says a line to the script that speaks on the channel.
    #[track_caller]
    pub(crate) fn tell(&mut self, line: &str) {
        self.channel.write(&format!("{line}\n")).unwrap_or_else(|e| panic!("{e}"));
    }

    /// The next line of the script that speaks on the channel.
    #[track_caller]
    pub(crate) fn hear(&mut self) -> String {
        self.channel.line(Instant::now() + COMMAND_DEADLINE).unwrap_or_else(|e| panic!("in the guest: {e}"))
    }

    /// Reboots from inside, as a user would, and waits until the guest takes commands again.
    #[track_caller]
    pub(crate) fn reboot(&mut self) {
        self.channel.send("reboot -f").expect("channel");
        self.wait_for_boot();
    }

    /// Pushes the machine's reset button and waits until the guest takes commands again.
    #[track_caller]
    pub(crate) fn system_reset(&mut self) {
        self.press_reset();
        self.wait_for_boot();
    }

    /// Pushes the machine's reset button, and does not wait for the boot that follows.
    #[track_caller]
    pub(crate) fn press_reset(&mut self) {
        self.monitor("system_reset", &json!({}));
        // Other resets may be reported, as of a guest that reboots by itself.
        self.wait_for_event("RESET", &json!({ "reason": "host-qmp-system-reset" }));
    }

    /// Waits until a boot that was begun takes commands.
    ///
    /// Under TCG a kernel with several CPUs now and then hangs in its first two seconds, before it looks at any device. It
    /// gets a second try.
    #[track_caller]
    pub(crate) fn wait_for_boot(&mut self) {
        if self.cpus > 1 {
            match self.channel.wait_for_hello(BOOT_DEADLINE / 2) {
                Ok(()) => return,
                Err(error) => println!("the guest has not come up and is reset: {error}; {}", self.console_end()),
            }
            self.press_reset();
        }
        if let Err(error) = self.channel.wait_for_hello(BOOT_DEADLINE) {
            panic!("the guest does not come up: {error}");
        }
    }

    /// The last line on its console.
    fn console_end(&self) -> String {
        let console = std::fs::read(self.dir.path().join("console")).unwrap_or_default();
        String::from_utf8_lossy(&console).lines().last().unwrap_or_default().to_owned()
    }

    /// Plugs a device in, described as for QEMU's `-device`.
    #[track_caller]
    pub(crate) fn plug(&mut self, device: &Value) {
        self.monitor("device_add", device);
    }

    /// Asks the guest to let go of the device with this id, and waits until it is unplugged.
    #[track_caller]
    pub(crate) fn unplug(&mut self, id: &str) {
        self.monitor("device_del", &json!({ "id": id }));
        self.wait_for_event("DEVICE_DELETED", &json!({ "device": id }));
    }

    /// Sends the guest to sleep in S3 and wakes it as soon as it sleeps.
    #[track_caller]
    pub(crate) fn suspend_to_ram(&mut self) -> Output {
        let script = self.channel.send("echo mem >/sys/power/state").expect("channel");
        self.wait_for_event("SUSPEND", &json!({}));
        self.monitor("system_wakeup", &json!({}));
        self.channel.answer(script, COMMAND_DEADLINE).unwrap_or_else(|e| panic!("the guest does not wake up: {e}"))
    }

    /// Asks the guest to sleep, where S3 is switched off: the kernel then only stops its processes and devices (s2idle). The
    /// serial port wakes it. The guest tries until it has slept, since input may come while it is still falling asleep.
    #[track_caller]
    pub(crate) fn suspend_to_idle(&mut self) -> Output {
        let sleep = "echo enabled >/sys/class/tty/ttyS1/power/wakeup && until echo mem >/sys/power/state; do :; done";
        let script = self.channel.send(sleep).expect("channel");
        self.channel
            .answer_after_waking(script, COMMAND_DEADLINE)
            .unwrap_or_else(|e| panic!("the guest does not wake up: {e}"))
    }

    /// Runs a command of QEMU's monitor.
    #[track_caller]
    pub(crate) fn monitor(&mut self, command: &str, arguments: &Value) -> Value {
        self.qmp.execute(command, arguments).unwrap_or_else(|e| panic!("{e}"))
    }

    /// QEMU's process id.
    pub(crate) fn qemu(&self) -> Pid {
        self.qemu.pid()
    }

    #[track_caller]
    fn wait_for_event(&mut self, name: &str, data: &Value) {
        self.qmp.wait_for(name, data).unwrap_or_else(|e| panic!("{e}"));
    }

    /// The kernel's log of this boot.
    #[track_caller]
    pub(crate) fn kernel_log(&mut self) -> Vec<KernelMessage> {
        KernelMessage::parse_all(&self.check("dmesg -r"))
    }

    /// All that the guest's kernel and firmware have written to the first serial port, over all boots.
    pub(crate) fn console(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(self.dir.path().join("console")).unwrap_or_default()).into_owned()
    }

    /// Ends the guest as `quit` in QEMU's monitor does. QEMU must not have printed anything: no warning about the device.
    #[track_caller]
    pub(crate) fn quit(mut self) {
        self.monitor("quit", &json!({}));
        let status = self.qemu.wait(COMMAND_DEADLINE).expect("QEMU ends after quit");
        assert!(status.success(), "QEMU ended with {status}");
        assert_eq!(self.qemu.output(), "", "QEMU has something to say");
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- the guest's console, last lines:\n{}", tail(&self.console(), 60));
            eprintln!("--- QEMU's output:\n{}\n---", self.qemu.output());
        }
    }
}

/// QEMU's connection to `listener`.
#[track_caller]
fn accept(listener: &UnixListener, qemu: &mut Process) -> UnixStream {
    let ready = until(BOOT_DEADLINE, || {
        if let Some(status) = qemu.exit_status() {
            panic!("QEMU ended at start ({status}): {}", qemu.output());
        }
        let mut fds = [PollFd::new(listener.as_fd(), PollFlags::POLLIN)];
        (nix::poll::poll(&mut fds, PollTimeout::from(100_u8)) == Ok(1)).then_some(())
    });
    assert!(ready.is_some(), "QEMU does not connect: {}", qemu.output());
    listener.accept().expect("accept").0
}

/// The right to run a guest: a guest keeps a processor busy, and more than two at once only make all of them slow.
struct Slot;

static FREE_SLOTS: Mutex<u32> = Mutex::new(2);
static SLOT_FREED: Condvar = Condvar::new();

impl Slot {
    fn take() -> Self {
        let free: MutexGuard<'_, u32> = FREE_SLOTS.lock().unwrap_or_else(PoisonError::into_inner);
        let mut free = SLOT_FREED.wait_while(free, |free| *free == 0).unwrap_or_else(PoisonError::into_inner);
        *free -= 1;
        Self
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        *FREE_SLOTS.lock().unwrap_or_else(PoisonError::into_inner) += 1;
        SLOT_FREED.notify_one();
    }
}
