//! `dist/package`: what it makes is always the same, works where it is unpacked, and is installed, upgraded and removed in a
//! root that has nothing but what the package asks for. The program in it is the one that was built for the tests.

mod common;

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;
use std::time::Duration;

use common::process::{Process, until};
use common::raw_client::RawClient;
use common::server::children;
use common::tis::Tis;
use common::tpm_commands::*;
use nix::sys::signal::{self, Signal};
use nix::unistd::Pid;
use tempfile::TempDir;

const PATIENCE: Duration = Duration::from_secs(60);

fn repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

fn folder() -> TempDir {
    tempfile::Builder::new().prefix("package-").tempdir().unwrap()
}

/// What a command prints that succeeds.
#[track_caller]
fn printed(command: &mut Command) -> String {
    let output = command.output().unwrap();
    let (out, error) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{command:?}: {out}{error}");
    out.into_owned()
}

/// Makes a package of each kind in a folder.
fn package_into(folder: &Path, umask: &str) {
    printed(
        Command::new("sh")
            .args(["-c", r#"umask "$1" && exec "$0""#])
            .arg(repository("dist/package"))
            .arg(umask)
            .env("BINARY", env!("CARGO_BIN_EXE_vfio-user-tpm"))
            .env("OUT", folder)
            // What is meant for people to download is packed as tight as it can be; that takes long.
            .env("PRESET", "0"),
    );
}

/// Packages that all tests look at.
struct Packages {
    _folder: TempDir,
    deb: PathBuf,
    tar: PathBuf,
}

impl Packages {
    fn get() -> &'static Self {
        static PACKAGES: OnceLock<Packages> = OnceLock::new();
        PACKAGES.get_or_init(|| {
            let folder = folder();
            package_into(folder.path(), "022");
            let [deb, tar] = ["deb", "xz"].map(|kind| file_with_extension(folder.path(), kind));
            Self { _folder: folder, deb, tar }
        })
    }
}

fn file_with_extension(folder: &Path, extension: &str) -> PathBuf {
    let files = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let found: Vec<_> = files.filter(|path| path.extension() == Some(OsStr::new(extension))).collect();
    let [file] = &found[..] else { panic!("one .{extension} was expected, there are {found:?}") };
    file.clone()
}

#[test]
fn a_package_made_twice_is_the_same() {
    let packages = Packages::get();
    let again = folder();
    package_into(again.path(), "077");
    for file in [&packages.deb, &packages.tar] {
        let other = again.path().join(file.file_name().unwrap());
        assert!(fs::read(file).unwrap() == fs::read(other).unwrap(), "{} differs", file.display());
    }
}

#[test]
fn a_debian_package_asks_for_what_the_program_is_linked_to() {
    let deb = &Packages::get().deb;
    let field = |name| printed(Command::new("dpkg-deb").arg("--field").arg(deb).arg(name)).trim().to_owned();
    assert_eq!(field("Package"), "vfio-user-tpm");
    assert_eq!(field("Version"), concat!(env!("CARGO_PKG_VERSION"), "-1"));
    let depends = field("Depends");
    for library in ["libc6 (>= ", "libssl3", "libtpms0 (>= "] {
        assert!(depends.contains(library), "{depends}");
    }
    assert!(!depends.contains("${"), "{depends}");
}

#[test]
fn a_debian_package_has_only_files_of_root_that_nobody_else_can_change() {
    let contents = printed(Command::new("dpkg-deb").arg("--contents").arg(&Packages::get().deb));
    for line in contents.lines() {
        let fields: Vec<&str> = line.split_whitespace().collect();
        assert_eq!(fields[1], "root/root", "{line}");
        assert!(["drwxr-xr-x", "-rwxr-xr-x", "-rw-r--r--"].contains(&fields[0]), "{line}");
    }
    // As root, `state init` makes only the last folder of its path.
    for path in [
        "var/lib/vfio-user-tpm/",
        "etc/needrestart/conf.d/vfio-user-tpm.conf",
        "usr/bin/vfio-user-tpm",
        "usr/lib/systemd/system/vfio-user-tpm@.service",
        "usr/lib/systemd/system/vfio-user-tpm@.socket",
        "usr/lib/systemd/system/vfio-user-tpm-control@.socket",
        "usr/share/bash-completion/completions/vfio-user-tpm",
        "usr/share/doc/vfio-user-tpm/copyright",
        "usr/share/doc/vfio-user-tpm/NOTICES",
        "usr/share/fish/vendor_completions.d/vfio-user-tpm.fish",
        "usr/share/man/man1/vfio-user-tpm.1.gz",
        "usr/share/vfio-user/50-vfio-user-tpm.json",
        "usr/share/zsh/vendor-completions/_vfio-user-tpm",
    ] {
        assert!(contents.lines().any(|line| line.ends_with(&format!(" ./{path}"))), "{path} is missing: {contents}");
    }
}

/// Whoever passes the program on passes on what it is made of.
#[test]
fn notices_of_all_that_is_linked_in_go_along() {
    let notices = printed(
        Command::new("tar")
            .args(["--extract", "--to-stdout", "--wildcards", "--file"])
            .arg(&Packages::get().tar)
            .arg("*/NOTICES"),
    );
    // One under each kind of licence that asks for its notice.
    for words in ["== clap 4", "== nix 0", "== vm-memory 0", "Permission is hereby granted", "Redistribution and use"] {
        assert!(notices.contains(words), "{words} is missing");
    }
    assert!(!notices.contains("== proptest"), "what only tests need is not in the program");
}

#[test]
fn a_tarball_works_wherever_it_is_unpacked() {
    let folder = folder();
    printed(
        Command::new("tar")
            .args(["--extract", "--strip-components=1", "--file"])
            .arg(&Packages::get().tar)
            .arg("--directory")
            .arg(folder.path()),
    );
    let version = printed(Command::new(folder.path().join("bin/vfio-user-tpm")).arg("--version"));
    assert_eq!(version.trim(), concat!("vfio-user-tpm ", env!("CARGO_PKG_VERSION")));
    for file in ["LICENSE-APACHE", "LICENSE-MIT", "share/doc/vfio-user-tpm/README.md", "share/man/man1/vfio-user-tpm.1"]
    {
        assert!(folder.path().join(file).is_file(), "{file}");
    }
    for file in ["lib/systemd/system/vfio-user-tpm@.service", "share/vfio-user/50-vfio-user-tpm.json"] {
        let text = fs::read_to_string(folder.path().join(file)).unwrap();
        assert!(text.contains("/usr/local/bin/vfio-user-tpm") && !text.contains("/usr/bin/"), "{file}: {text}");
    }
}

/// A root with dpkg and what the package depends on. The folder above it is thrown away with it.
struct Root {
    folder: TempDir,
}

impl Root {
    fn new(package: &Path) -> Self {
        let root = Self { folder: folder() };
        printed(Command::new(repository("tests/package/root")).arg(package).arg(root.path("")).env(
            "PACKAGE_KIT",
            // The downloads are kept for the next run.
            Path::new(env!("CARGO_TARGET_TMPDIR")).parent().unwrap().join("package-kit"),
        ));
        fs::copy(package, root.path("package.deb")).unwrap();
        root
    }

    /// Where a file of this root is.
    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join("root").join(name)
    }

    fn command(&self, command: &[&str]) -> Command {
        let mut in_root = Command::new(repository("tests/package/in-root"));
        in_root.arg(self.path("")).args(command);
        in_root
    }

    #[track_caller]
    fn run(&self, command: &[&str]) -> String {
        printed(&mut self.command(command))
    }

    /// Files with mode and size, but for dpkg's own records.
    fn files(&self) -> BTreeMap<PathBuf, (u32, u64)> {
        let mut files = BTreeMap::new();
        let mut folders = vec![self.path("")];
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(&folder).unwrap() {
                let path = entry.unwrap().path();
                let metadata = fs::symlink_metadata(&path).unwrap();
                if metadata.is_dir() {
                    folders.push(path.clone());
                }
                let size = if metadata.is_dir() { 0 } else { metadata.len() };
                files.insert(path, (metadata.mode(), size));
            }
        }
        let records = ["var/lib/dpkg", "var/log"].map(|folder| self.path(folder));
        files.retain(|path, _| !records.iter().any(|folder| path.starts_with(folder)));
        files
    }

    /// Starts a server there and waits until it takes clients.
    fn serve(&self) -> Process {
        let in_root = repository("tests/package/in-root");
        let serve =
            ["vfio-user-tpm", "--interface=tis", "--socket-path=/run/tpm", "--state-dir=/var/lib/vfio-user-tpm/vm"];
        let root = self.path("");
        let args = [&[root.as_os_str()][..], &serve.map(OsStr::new)].concat();
        let mut server = Process::start(&in_root, args, self.folder.path().join("log"));
        let listening = until(PATIENCE, || {
            assert!(server.exit_status().is_none(), "the server ended: {}", server.output());
            server.output().contains("listening on").then_some(())
        });
        assert!(listening.is_some(), "{}", server.output());
        server
    }
}

#[track_caller]
fn ok(tis: &mut Tis, command: &[u8]) {
    assert_eq!(code_of(&tis.run(command)), RC_SUCCESS, "{command:02x?}");
}

/// The worker of a server, as soon as there is one that is not `former`.
fn worker(server: &Process, former: Option<Pid>) -> Pid {
    let worker = || {
        let spawner = children(server.pid()).into_iter().next()?;
        children(spawner).into_iter().next().filter(|&worker| Some(worker) != former)
    };
    until(PATIENCE, worker).expect("the server has a worker")
}

#[test]
fn a_debian_package_is_installed_upgraded_and_removed_under_a_running_tpm() {
    let root = Root::new(&Packages::get().deb);
    let before = root.files();
    root.run(&["dpkg", "--install", "/package.deb"]);
    assert_eq!(root.run(&["dpkg", "--verify", "vfio-user-tpm"]), "", "all files are there as they were packed");
    assert!(root.run(&["vfio-user-tpm", "--version"]).contains(env!("CARGO_PKG_VERSION")));

    let mut server = root.serve();
    let mut tis = Tis::new(RawClient::connect(&root.path("run/tpm")));
    ok(&mut tis, &nv_define(0x0150_0001, 4));

    // An upgrade: the old program goes on serving, and can still replace its worker.
    let program = fs::metadata(root.path("usr/bin/vfio-user-tpm")).unwrap().ino();
    let upgrade = root.run(&["dpkg", "--install", "/package.deb"]);
    assert!(upgrade.contains("over (0.1.0-1)"), "{upgrade}");
    assert_ne!(fs::metadata(root.path("usr/bin/vfio-user-tpm")).unwrap().ino(), program);
    ok(&mut tis, &get_random(8));
    let first = worker(&server, None);
    signal::kill(first, Signal::SIGKILL).unwrap();
    // It may answer until its death is noticed.
    let failed = until(PATIENCE, || (code_of(&tis.run(&get_random(8))) == RC_FAILURE).then_some(()));
    assert!(failed.is_some(), "a TPM without a worker fails");
    tis.reset();
    ok(&mut tis, &nv_write(0x0150_0001, b"kept"));
    worker(&server, Some(first));

    // A removal: the same.
    root.run(&["dpkg", "--remove", "vfio-user-tpm"]);
    assert!(!root.path("usr/bin/vfio-user-tpm").exists());
    ok(&mut tis, &get_random(8));
    server.signal(Signal::SIGTERM);
    assert!(server.wait(PATIENCE).expect("the server ends").success());

    let Output { status, stderr, .. } = root.command(&["dpkg", "--purge", "vfio-user-tpm"]).output().unwrap();
    let said = String::from_utf8_lossy(&stderr);
    assert!(status.success() && said.contains("kept in /var/lib/vfio-user-tpm"), "{said}");
    assert!(root.path("var/lib/vfio-user-tpm/vm/tpm2.0-permanent.state").is_file(), "state is never removed");
    let known = root.command(&["dpkg-query", "--show", "vfio-user-tpm"]).output().unwrap();
    assert!(!known.status.success(), "dpkg still knows {}", String::from_utf8_lossy(&known.stdout));

    fs::remove_dir_all(root.path("var/lib/vfio-user-tpm")).unwrap();
    assert_eq!(root.files(), before);
}
