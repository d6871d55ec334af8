//! The guest kits, each built once by the script of the same name.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// The kit's folder, for guests on the machine's own architecture. Builds the kit first if there is none yet or the script
/// has changed; that needs the network.
pub(crate) fn kit() -> &'static Path {
    static KIT: OnceLock<PathBuf> = OnceLock::new();
    KIT.get_or_init(|| build("tests/guest/kit", "guest-kit", "GUEST_KIT"))
}

/// As [`kit`], for guests on 64-bit ARM.
#[allow(dead_code)] // one test's
pub(crate) fn kit_arm64() -> &'static Path {
    static KIT: OnceLock<PathBuf> = OnceLock::new();
    KIT.get_or_init(|| build("tests/guest/kit-arm64", "guest-kit-arm64", "GUEST_KIT_ARM64"))
}

/// Runs the script, whose kit is in the folder that `variable` says, or in the one of this name.
fn build(script: &str, name: &str, variable: &str) -> PathBuf {
    let kit = std::env::var_os(variable)
        .map_or_else(|| Path::new(env!("CARGO_TARGET_TMPDIR")).parent().expect("target").join(name), PathBuf::from);
    // Also for those who go to another folder.
    let kit = std::path::absolute(kit).expect("the current folder");
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(script);
    let status = Command::new(path).env(variable, &kit).status().unwrap_or_else(|e| panic!("{script} cannot run: {e}"));
    assert!(status.success(), "{script} failed ({status}): its message is above");
    kit
}
