//! Programs of the host that are to run in a guest.

use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

use super::kit::kit;

/// Programs of the host with the libraries that they need. The host's system may be another than the guest's: they are in
/// a folder of their own, [`Programs::ROOT`], and run with it as their root (see [`Programs::SETUP`]).
pub(crate) struct Programs {
    dir: TempDir,
}

impl Programs {
    /// Their root in the guest.
    pub(crate) const ROOT: &str = "/host";

    /// A script that gives them the system's folders, once a boot.
    pub(crate) const SETUP: &str = "
        cd /host && mkdir dev proc sys run tmp &&
        for folder in dev proc sys; do mount -o bind /$folder /host/$folder || exit; done";

    /// What starts one in a script.
    pub(crate) const RUN: &str = "env LD_LIBRARY_PATH=/lib chroot /host";

    pub(crate) fn new() -> Self {
        let dir = tempfile::Builder::new().prefix("programs-").tempdir().expect("temporary folder");
        for folder in ["bin", "lib", "lib64"] {
            std::fs::create_dir_all(dir.path().join("host").join(folder)).expect("folder");
        }
        Self { dir }
    }

    /// Adds a program, which gets into `/bin`.
    #[track_caller]
    pub(crate) fn add(&mut self, program: &Path) {
        let host = self.dir.path().join("host");
        copy_stripped(program, &host.join("bin").join(program.file_name().expect("name")));
        for library in libraries(program) {
            // The loader has its path in the programs.
            let folder = if library.starts_with("/lib64") { "lib64" } else { "lib" };
            std::fs::copy(&library, host.join(folder).join(library.file_name().expect("name"))).expect("library");
        }
    }

    /// Adds a module of the guest's kernel, as `/NAME.ko.xz`.
    #[track_caller]
    pub(crate) fn add_module(&mut self, name: &str) {
        let file = format!("{name}.ko.xz");
        let modules = kit().join("root/usr/lib/modules");
        let found = Command::new("find").arg(&modules).args(["-name", &file]).output().expect("find (findutils)");
        let found = String::from_utf8(found.stdout).expect("UTF-8");
        let module = found.lines().next().unwrap_or_else(|| panic!("the guest's kernel has no module {name}"));
        std::fs::copy(module, self.dir.path().join(file)).expect("module");
    }

    /// Makes the archive.
    #[track_caller]
    pub(crate) fn archive(&self) -> PathBuf {
        let archive = self.dir.path().join("archive");
        let cpio = "find . ! -name archive | \"$0\" cpio -o -H newc -R 0:0 2>/dev/null >\"$1\"";
        let status = Command::new("sh")
            .args(["-c", cpio])
            .arg(kit().join("root/usr/bin/busybox"))
            .arg(&archive)
            .current_dir(self.dir.path())
            .status()
            .expect("sh");
        assert!(status.success(), "the archive of programs cannot be made ({status})");
        archive
    }
}

/// The shared libraries of a program, the loader among them.
#[track_caller]
fn libraries(program: &Path) -> Vec<PathBuf> {
    let output = Command::new("ldd").arg(program).output().expect("ldd (libc-bin)");
    assert!(output.status.success(), "ldd {} failed", program.display());
    let text = String::from_utf8(output.stdout).expect("UTF-8");
    text.split_whitespace().filter(|word| word.starts_with('/')).map(PathBuf::from).collect()
}

/// Copies a program without what only a debugger needs: a guest has it all in its memory.
#[track_caller]
fn copy_stripped(from: &Path, to: &Path) {
    let status = Command::new("strip").arg("-o").arg(to).arg(from).status().expect("strip (binutils)");
    assert!(status.success(), "strip {} failed ({status})", from.display());
}
