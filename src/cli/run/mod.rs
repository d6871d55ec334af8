//! `run`: a server and a QEMU with its TPM, started and ended together.
//!
//! One process looks after both as its children. QEMU has the standard streams, the terminal and its signals as if it
//! had been started alone; the server is in a process group of its own, so that what a terminal sends to QEMU does not
//! take the TPM away before QEMU has ended.

mod folder;
mod initramfs;
mod launch;
mod launched;
mod processes;
mod qemu;
mod sealed;

use std::ffi::OsString;
use std::os::fd::AsFd;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, ExitStatus, Stdio};

use anyhow::{Context, bail};
use clap::Args;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::Signal;

use super::config_file::ConfigArgs;
use super::device_args::description_of;
use super::ready::{self, ReadySocket};
use super::serve::TpmArgs;
use crate::description::Description;
use folder::PrivateFolder;
pub(super) use launch::{LaunchArgs, launch};
use processes::{Event, Process, Reach, Signals};

/// Start QEMU with the TPM attached, and end the TPM with it
///
/// Starts a server, waits until its TPM is up, and starts the command after `--`, with all arguments added
/// that attach the TPM: the device, its ACPI tables, S3 switched off, and -machine where the command names none. QEMU's virt
/// takes no tables; there the file of -initrd is passed on with acpi-initrd.cpio in front (see `describe`).
///
/// With --measure auto, kernel, command line, initrd and firmware that QEMU's arguments name are measured into the TPM, and
/// QEMU gets copies of them that nobody can change. Arguments by which it would start with more are refused.
///
/// Started by a service manager that wants to know, it says that it is ready when QEMU has been started.
///
/// Signals are passed on to QEMU, and its exit status is this program's: 128 and the signal's number if it died of a
/// signal, 127 if there is no such program, 126 if it cannot be started. The status is 1 if the server failed, unless
/// QEMU's own tells of a failure. If the server ends while QEMU runs, the virtual machine goes on without its TPM.
///
/// Server and QEMU are of the user who starts them, root's too: start this as a user who may use what the virtual machine
/// needs.
#[derive(Debug, Args)]
pub(super) struct RunArgs {
    #[command(flatten)]
    config: ConfigArgs,

    /// UNIX socket to listen on; without it, one in a temporary folder that is removed at the end
    #[arg(long, value_name = "PATH")]
    socket_path: Option<PathBuf>,

    /// Folder to write what QEMU needs to, and to leave it there; without it, a temporary one (see `describe`)
    #[arg(long, value_name = "DIR")]
    description: Option<PathBuf>,

    #[command(flatten)]
    tpm: TpmArgs,

    /// Refused, with what to do instead
    #[arg(long, hide = true)]
    user: Option<OsString>,

    /// Program to start, and its arguments
    #[arg(last = true, required = true, value_name = "QEMU")]
    command: Vec<OsString>,
}

pub(super) fn run(args: &RunArgs) -> anyhow::Result<ExitCode> {
    args.tpm.log.start()?;
    if args.user.is_some() {
        bail!(
            "--user is not for run: QEMU would stay another user's, and server and QEMU share a folder. Start all of it as \
             that user (runuser -u USER -- vfio-user-tpm run …); or start the server by itself, with --user, --description \
             and a socket to which QEMU may connect (--socket-group, --socket-mode), and QEMU with what that has written"
        );
    }
    // Before there is anything that a signal could leave behind.
    let signals = Signals::block().context("cannot receive signals")?;
    let folder = PrivateFolder::create().context("cannot create a temporary folder: set TMPDIR to one that exists")?;

    let socket = args.socket_path.clone().unwrap_or_else(|| folder.path().join("socket"));
    let tables = args.description.clone().unwrap_or_else(|| folder.path().to_owned());
    let (backend, device) = args.tpm.backend_and_device()?;
    let machine = device.placement().machine();
    let description = Description::new(description_of(device, socket.clone(), backend.source()))?;
    let attach = description.qemu_arguments(&tables)?;
    let [program, user @ ..] = &*args.command else { bail!("give QEMU's command after --") };
    let mut user = user.to_vec();
    if !machine.adds_tables() {
        let initramfs = initramfs::arguments(&user, description.acpi_initrd()?, &folder.path().join("initramfs"))?;
        if initramfs.is_empty() {
            log::warn!(
                "QEMU's arguments have no -initrd: the guest finds its TPM only if its boot loader puts acpi-initrd.cpio in \
                 front of the initramfs (see describe)"
            );
        }
        user.extend(initramfs);
    }
    let measured = match args.tpm.measure.besides_auto() {
        Some(others) => {
            let firmware = || launched::default_of(program, &user, machine);
            let mut launched = launched::pin(&user, &folder.path().join("measured"), firmware)?;
            launched.flags.extend(others);
            Some(launched)
        }
        None => None,
    };
    let user = measured.as_ref().map_or(&user, |launched| &launched.arguments);
    let arguments = qemu::arguments(user, machine, &socket, attach)?;
    let mut qemu = this_program();
    qemu.args([launch::SUBCOMMAND, "--"]).arg(program).args(arguments);
    // To say when all is up is for us.
    qemu.env_remove(ready::VARIABLE);
    let starter = ready::Starter::find();

    let notify = folder.path().join("ready");
    let ready =
        ReadySocket::bind(&notify).context("cannot create a socket: set TMPDIR to a folder with a shorter path")?;
    let mut command = server_command(&notify, measured.as_ref().map(|launched| &*launched.flags));
    if args.socket_path.is_none() {
        command.arg("--socket-path").arg(socket);
    }
    if args.description.is_none() {
        command.arg("--description").arg(tables);
    }
    let key = args.tpm.backend.keys().take_descriptor()?;
    let mut server = Process::start(&mut command).context("cannot start the server")?;
    // The server has it; QEMU must not.
    drop(key);

    let code = serve(&signals, &ready, starter, &mut server, &mut qemu);
    let status = end(&signals, &mut server)?;
    let code = code?;
    if !status.success() {
        log::error!("the server did not end well ({status})");
    }
    Ok(ExitCode::from(if code == 0 && !status.success() { 1 } else { code }))
}

fn this_program() -> Command {
    let mut command = Command::new("/proc/self/exe");
    command.arg0(env!("CARGO_PKG_NAME"));
    command
}

/// This program as the server, with the flags of `run`; `measured` are those in the place of its own --measure.
fn server_command(notify: &Path, measured: Option<&[OsString]>) -> Command {
    let mut command = this_program();
    let flags = own_flags(std::env::args_os());
    match measured {
        Some(measured) => command.args(without_measure(flags)).args(measured),
        None => command.args(flags),
    };
    command
        // A signal to all processes of a service reaches it too, and is for us to act upon.
        .arg("--obey-parent-only")
        .env(ready::VARIABLE, notify)
        // What is typed is for QEMU, and so is what a terminal sends to a whole group of processes.
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .process_group(0);
    command
}

/// The server's flags: those that were given to `run`, as they were given.
fn own_flags(args: impl IntoIterator<Item = OsString>) -> impl Iterator<Item = OsString> {
    // The program's name and `run` come first; clap takes no flag before a subcommand.
    args.into_iter().skip(2).take_while(|arg| arg != "--")
}

/// These flags without each `--measure` and its value.
fn without_measure(flags: impl Iterator<Item = OsString>) -> impl Iterator<Item = OsString> {
    let mut is_value = false;
    flags.filter(move |flag| {
        let is_flag = !is_value && flag == "--measure";
        let is_part = is_flag || is_value || flag.as_encoded_bytes().starts_with(b"--measure=");
        is_value = is_flag;
        !is_part
    })
}

/// Runs QEMU while there is a TPM for it, and gives the exit status for the whole.
fn serve(
    signals: &Signals,
    ready: &ReadySocket,
    starter: Option<ready::Starter>,
    server: &mut Process,
    qemu: &mut Command,
) -> anyhow::Result<u8> {
    if let Some(signal) = wait_until_ready(signals, ready, server)? {
        log::info!("{signal} before QEMU was started");
        return Ok(died_of(signal as i32));
    }
    let mut qemu = Process::start(qemu).context("cannot start a process for QEMU")?;
    if let Some(starter) = starter {
        starter.tell();
    }
    let mut tpm_lost = false;
    loop {
        match signals.next()? {
            Event::Signal(signal, Reach::Us) => qemu.signal(signal)?,
            Event::Signal(_, Reach::Terminal) => {}
            Event::Children => {
                if let Some(status) = qemu.status()? {
                    let code = exit_code(status);
                    return Ok(if code == 0 && tpm_lost { 1 } else { code });
                }
                if let Some(status) = server.status()?.filter(|_| !tpm_lost) {
                    tpm_lost = true;
                    log::error!(
                        "THE TPM IS LOST: its server has ended ({status}). The virtual machine goes on without it. Shut \
                         it down from inside: at its next reset QEMU may abort"
                    );
                }
            }
        }
    }
}

/// Waits until the server's TPM is up, or gives the signal that came first.
fn wait_until_ready(signals: &Signals, ready: &ReadySocket, server: &mut Process) -> anyhow::Result<Option<Signal>> {
    loop {
        let mut sources = [signals.as_fd(), ready.as_fd()].map(|descriptor| PollFd::new(descriptor, PollFlags::POLLIN));
        match poll(&mut sources, PollTimeout::NONE) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno).context("cannot wait for the server"),
        }
        let [signalled, told] = sources.map(|source| source.any() == Some(true));
        if signalled {
            match signals.next()? {
                Event::Signal(signal, _) => return Ok(Some(signal)),
                Event::Children => {
                    if let Some(status) = server.status()? {
                        bail!("the server has ended before its TPM was up ({status}): its message is above");
                    }
                }
            }
        } else if told && ready.is_told().context("cannot hear of the server")? {
            return Ok(None);
        }
    }
}

/// Ends the server in order: it shuts its TPM down. A second signal to end that comes meanwhile hurries it: the first may
/// have been sent when QEMU was still there.
fn end(signals: &Signals, server: &mut Process) -> anyhow::Result<ExitStatus> {
    server.signal(Signal::SIGTERM)?;
    let mut asked_before = false;
    loop {
        if let Some(status) = server.status()? {
            return Ok(status);
        }
        if let Event::Signal(Signal::SIGTERM | Signal::SIGINT | Signal::SIGQUIT, _) = signals.next()? {
            if std::mem::replace(&mut asked_before, true) {
                server.signal(Signal::SIGTERM)?;
            }
        }
    }
}

fn exit_code(status: ExitStatus) -> u8 {
    match (status.code(), status.signal()) {
        (Some(code), _) => u8::try_from(code).unwrap_or(1),
        (None, Some(number)) => died_of(number),
        (None, None) => 1,
    }
}

fn died_of(signal: i32) -> u8 {
    u8::try_from(signal).unwrap_or(0).saturating_add(128)
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::super::{Cli, Command as Subcommand};
    use super::*;

    #[test]
    fn the_server_gets_the_flags_as_they_were_given() {
        let args = ["vfio-user-tpm", "run", "--state-dir", "a b", "--log-level=warn", "--", "qemu", "--", "-m", "1G"];
        let flags: Vec<_> = own_flags(args.map(OsString::from)).collect();
        assert_eq!(flags, ["--state-dir", "a b", "--log-level=warn"]);
    }

    #[test]
    fn what_is_measured_can_be_said_anew() {
        let flags = ["--measure", "auto", "--measure-hcrtm", "--measure=cmdline=--measure", "--log-level", "warn"];
        let left: Vec<_> = without_measure(flags.into_iter().map(OsString::from)).collect();
        assert_eq!(left, ["--measure-hcrtm", "--log-level", "warn"]);
    }

    #[test]
    fn the_command_begins_after_two_dashes_and_is_needed() {
        let parsed = Cli::try_parse_from(["vfio-user-tpm", "run", "--machine=q35", "--", "qemu", "-m", "1G", "--fd=3"]);
        let Some(Subcommand::Run(args)) = parsed.unwrap().command else { panic!("run") };
        assert_eq!(args.command, ["qemu", "-m", "1G", "--fd=3"]);
        assert!(Cli::try_parse_from(["vfio-user-tpm", "run"]).is_err());
        assert!(Cli::try_parse_from(["vfio-user-tpm", "run", "--"]).is_err());
        assert!(Cli::try_parse_from(["vfio-user-tpm", "run", "qemu"]).is_err());
    }

    #[test]
    fn run_makes_its_own_connection() {
        assert!(Cli::try_parse_from(["vfio-user-tpm", "run", "--fd=3", "--", "qemu"]).is_err());
    }
}
