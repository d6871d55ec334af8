//! The guest kit, built once by the script of the same name.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// The kit's folder. Builds the kit first if there is none yet or the script has changed; that needs the network.
pub(crate) fn kit() -> &'static Path {
    static KIT: OnceLock<PathBuf> = OnceLock::new();
    KIT.get_or_init(|| {
        let kit = std::env::var_os("GUEST_KIT").map_or_else(
            || Path::new(env!("CARGO_TARGET_TMPDIR")).parent().expect("target").join("guest-kit"),
            PathBuf::from,
        );
        // Also for those who go to another folder.
        let kit = std::path::absolute(kit).expect("the current folder");
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/guest/kit");
        let status = Command::new(&script).env("GUEST_KIT", &kit).status().expect("tests/guest/kit can be run");
        assert!(status.success(), "{} failed ({status}): its message is above", script.display());
        kit
    })
}
