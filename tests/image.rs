//! `dist/image` and `dist/Containerfile`: a container image without a registry, and its TPM in a guest outside. The program in
//! it is the one that was built for the tests; buildah runs it, by chroot, which needs root.

mod common;
mod guest;

use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::Duration;

use common::process::{Process, until};
use common::server::children;
use guest::{Guest, GuestConfig, Tpm};
use nix::sys::signal::{self, Signal};
use nix::unistd::{Gid, Pid, Uid, geteuid, setfsgid, setfsuid};
use serde_json::Value;
use tempfile::TempDir;

const PATIENCE: Duration = Duration::from_secs(60);

/// The image's user, and the group of those who may connect. Nobody needs to have either.
const USER: u32 = 65_532;
const GROUP: u32 = 54_321;

/// Where the image has its socket and its state.
const SOCKETS: &str = "/run/vfio-user-tpm";
const STATES: &str = "/var/lib/vfio-user-tpm";

fn repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// What a command prints that succeeds.
#[track_caller]
fn printed(command: &mut Command) -> String {
    let output = command.output().unwrap();
    let (out, error) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{command:?}: {out}{error}");
    out.trim().to_owned()
}

/// buildah with an image in a folder of its own.
struct Buildah {
    folder: TempDir,
}

impl Buildah {
    fn with_image() -> Self {
        assert!(geteuid().is_root(), "a container is run by chroot here, which needs root: run the tests as root");
        let buildah = Self { folder: tempfile::Builder::new().prefix("image-").tempdir().unwrap() };
        fs::create_dir(buildah.path("tmp")).unwrap();
        printed(
            Command::new(repository("dist/image"))
                .arg("tested")
                .env("BINARY", env!("CARGO_BIN_EXE_vfio-user-tpm"))
                .env("BUILDAH", buildah.command().join(" "))
                .env("TMPDIR", buildah.path("tmp")),
        );
        buildah
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn command(&self) -> Vec<String> {
        let folder = |option, name| format!("--{option}={}", self.path(name).display());
        let options = [folder("root", "storage"), folder("runroot", "run"), "--storage-driver=vfs".to_owned()];
        [vec!["buildah".to_owned()], options.into()].concat()
    }

    #[track_caller]
    fn run(&self, arguments: &[&str]) -> String {
        let command = self.command();
        printed(Command::new(&command[0]).args(&command[1..]).args(arguments).env("TMPDIR", self.path("tmp")))
    }

    /// What the image says of itself.
    fn inspect(&self) -> Value {
        serde_json::from_str(&self.run(&["inspect", "--type=image", "tested"])).unwrap()
    }

    /// The command with which a container of this image starts.
    fn start_command(&self) -> Vec<String> {
        let config = &self.inspect()["Docker"]["config"];
        let words = |key: &str| serde_json::from_value::<Vec<String>>(config[key].clone()).unwrap();
        [words("Entrypoint"), words("Cmd")].concat()
    }

    /// Runs the image's health check beside a container, as in it; returns its exit status.
    fn check_health(&self, sockets: &Path) -> Option<i32> {
        let config = &self.inspect()["Docker"]["config"];
        let check = serde_json::from_value::<Vec<String>>(config["Healthcheck"]["Test"].clone()).unwrap();
        assert_eq!(check[0], "CMD", "there is no shell in the image");
        let (name, _) = self.container();
        let command = self.command();
        let mut buildah = Command::new(&command[0]);
        buildah.args(&command[1..]).args(["run", "--isolation=chroot", "--cap-drop=all"]);
        buildah.arg(format!("--volume={}:{SOCKETS}", sockets.display())).args([&name, "--"]).args(&check[1..]);
        buildah.env("TMPDIR", self.path("tmp")).output().unwrap().status.code()
    }

    /// A new container, and the folder with its files. What buildah itself mounts has to have a place there.
    fn container(&self) -> (String, PathBuf) {
        let name = self.run(&["from", "--pull-never", "tested"]);
        let root = PathBuf::from(self.run(&["mount", &name]));
        (name, root)
    }
}

/// A container that runs the image's program as the image says, on a root that is read-only. Buildah needs none of the
/// capabilities that it might give to it.
struct Container {
    process: Process,
    server: Pid,
}

impl Container {
    fn start(buildah: &Buildah, sockets: &Path, states: &Path) -> Self {
        let (name, root) = buildah.container();
        for place in ["etc/hosts", "etc/hostname", "etc/resolv.conf", "run/.containerenv"] {
            fs::write(root.join(place), "").unwrap();
        }
        let mount = |from: &Path, to| format!("--volume={}:{to}", from.display());
        let script = r#"mount --bind "$0" "$0" && mount -o remount,bind,ro "$0" && exec "$@""#;
        let mut command = vec!["--mount".to_owned(), "sh".to_owned(), "-c".to_owned(), script.to_owned()];
        command.extend([root.display().to_string(), "env".to_owned()]);
        command.push(format!("TMPDIR={}", buildah.path("tmp").display()));
        command.extend(buildah.command());
        command.extend(["run", "--isolation=chroot", "--cap-drop=all"].map(str::to_owned));
        command.extend([mount(sockets, SOCKETS), mount(states, STATES), name, "--".to_owned()]);
        command.extend(buildah.start_command());
        let mut process = Process::start(Path::new("unshare"), command, buildah.path("log"));
        let server = until(PATIENCE, || {
            assert!(process.exit_status().is_none(), "the container ended: {}", process.output());
            let server = descendant(process.pid(), "vfio-user-tpm")?;
            process.output().contains("listening on").then_some(server)
        });
        let server = server.unwrap_or_else(|| panic!("the container does not listen: {}", process.output()));
        Self { process, server }
    }

    /// A line of what the kernel knows of the server.
    fn status(&self, name: &str) -> String {
        let status = fs::read_to_string(format!("/proc/{}/status", self.server)).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        line.unwrap_or_else(|| panic!("no {name}: {status}")).split_whitespace().collect::<Vec<_>>().join(" ")
    }

    /// Ends the server as a runtime does; buildah ends after it.
    fn stop(mut self) {
        signal::kill(self.server, Signal::SIGTERM).unwrap();
        self.process.wait(PATIENCE).expect("the container ends");
        let log = self.process.output();
        assert!(log.contains("vfio-user-tpm") && log.contains("] ended"), "{log}");
        // A kernel without Landlock is warned of.
        let complaint = |line: &&str| (line.contains(" WARN") || line.contains(" ERROR")) && !line.contains("Landlock");
        assert_eq!(log.lines().find(complaint), None, "{log}");
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        // Buildah would leave it behind.
        let _ = signal::kill(self.server, Signal::SIGKILL);
    }
}

/// The first process with this name among those that a process has started.
fn descendant(of: Pid, name: &str) -> Option<Pid> {
    let found = |pid: &Pid| fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|comm| comm.trim() == name);
    let children = children(of);
    children.iter().copied().find(found).or_else(|| children.iter().find_map(|&child| descendant(child, name)))
}

/// A folder of the container's user.
fn folder_for(buildah: &Buildah, name: &str, group: u32, mode: u32) -> PathBuf {
    let folder = buildah.path(name);
    fs::create_dir(&folder).unwrap();
    chown(&folder, Some(USER), Some(group)).unwrap();
    fs::set_permissions(&folder, fs::Permissions::from_mode(mode)).unwrap();
    folder
}

/// Connects as another user, in a thread: in Linux each has its own user for looking at files.
fn connect_as(user: u32, group: u32, socket: &Path) -> std::io::Result<UnixStream> {
    thread::scope(|scope| {
        let other = scope.spawn(|| {
            setfsgid(Gid::from_raw(group));
            setfsuid(Uid::from_raw(user));
            UnixStream::connect(socket)
        });
        other.join().unwrap()
    })
}

/// QEMU's arguments, with the folder as it is called outside.
fn qemu_args(sockets: &Path) -> Vec<OsString> {
    let description: Value = serde_json::from_slice(&fs::read(sockets.join("description/tpm.json")).unwrap()).unwrap();
    let arguments = description["qemu"].as_array().unwrap().iter().map(|argument| argument.as_str().unwrap());
    arguments.map(|argument| argument.replace(SOCKETS, sockets.to_str().unwrap()).into()).collect()
}

#[test]
fn an_image_is_small_and_has_no_more_than_the_program_needs() {
    let buildah = Buildah::with_image();
    let image = buildah.inspect();
    assert_eq!(image["Docker"]["config"]["User"], format!("{USER}:{USER}"));
    let manifest: Value = serde_json::from_str(image["Manifest"].as_str().unwrap()).unwrap();
    let size: u64 = manifest["layers"].as_array().unwrap().iter().map(|layer| layer["size"].as_u64().unwrap()).sum();
    println!("the image has {size} bytes");
    assert!(size < 30_000_000, "{size} bytes");

    let (_, root) = buildah.container();
    let mut folders = vec![root.clone()];
    let mut writable = Vec::new();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            let (metadata, name) = (fs::symlink_metadata(&path).unwrap(), path.strip_prefix(&root).unwrap().to_owned());
            assert_eq!(metadata.mode() & 0o6000, 0, "{} changes its user", path.display());
            if metadata.uid() != 0 || metadata.gid() != 0 || metadata.mode() & 0o002 != 0 {
                writable.push(format!("/{}", name.display()));
            }
            if metadata.is_dir() {
                folders.push(path);
            } else {
                let is_needed = name == Path::new("usr/bin/vfio-user-tpm")
                    || name.starts_with("usr/share/doc")
                    || name.components().any(|part| part.as_os_str().to_string_lossy().contains(".so."));
                assert!(is_needed, "{}", name.display());
            }
        }
    }
    writable.sort();
    assert_eq!(writable, [SOCKETS, STATES]);
}

#[test]
fn a_guest_outside_uses_the_tpm_of_a_container_and_finds_it_again_in_the_next() {
    let buildah = Buildah::with_image();
    // What is made in a folder like that has its group.
    let sockets = folder_for(&buildah, "sockets", GROUP, 0o2750);
    let states = folder_for(&buildah, "states", USER, 0o700);

    let container = Container::start(&buildah, &sockets, &states);
    assert_eq!(container.status("Uid"), [USER; 4].map(|user| user.to_string()).join(" "));
    assert_eq!((container.status("CapEff"), container.status("NoNewPrivs")), ("0".repeat(16), "1".to_owned()));
    let mounts = fs::read_to_string(format!("/proc/{}/mountinfo", container.server)).unwrap();
    let root = mounts.lines().find(|line| line.split(' ').nth(4) == Some("/")).unwrap();
    assert!(root.split(' ').nth(5).unwrap().starts_with("ro"), "{root}");

    let socket = sockets.join("socket");
    drop(connect_as(USER + 1, GROUP, &socket).expect("the group may connect"));
    assert!(connect_as(USER + 1, GROUP + 1, &socket).is_err(), "nobody else may");

    let boot = || Guest::boot(&GuestConfig { qemu_args: qemu_args(&sockets), ..GuestConfig::default() });
    let mut guest = boot();
    Tpm::V2_0.write_nv(&mut guest, "kept outside");
    assert_eq!(buildah.check_health(&sockets), Some(0), "healthy");
    guest.quit();
    container.stop();
    assert_ne!(buildah.check_health(&sockets), Some(0), "nobody answers");
    assert!(!socket.exists(), "the server removes its socket");

    let container = Container::start(&buildah, &sockets, &states);
    let mut guest = boot();
    Tpm::V2_0.assert_nv(&mut guest, "kept outside");
    guest.quit();
    container.stop();
    let state = fs::metadata(states.join("state/tpm2.0-permanent.state")).unwrap();
    assert_eq!((state.uid(), state.mode() & 0o777), (USER, 0o600));
}
