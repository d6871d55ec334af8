//! Finds the C libraries in `vendor/` with pkg-config and generates their bindings.

use std::env;
use std::path::PathBuf;

fn main() {
    libtpms();
}

/// Binds libtpms 0.9 or later. What only later versions have is behind a cfg: `libtpms_profiles` (0.10).
fn libtpms() {
    println!("cargo::rerun-if-changed=vendor/libtpms/wrapper.h");
    println!("cargo::rustc-check-cfg=cfg(libtpms_profiles)");

    let library = match pkg_config::Config::new().atleast_version("0.9").probe("libtpms") {
        Ok(library) => library,
        Err(error) => panic!(
            "libtpms 0.9 or later was not found by pkg-config; on Debian: apt-get install libtpms-dev pkg-config\n{error}"
        ),
    };
    let mut version = library.version.split('.').map(|part| part.parse::<u32>().unwrap_or(0));
    if (version.next(), version.next()) >= (Some(0), Some(10)) {
        println!("cargo::rustc-cfg=libtpms_profiles");
    }
    let bindings = bindgen::Builder::default()
        .header("vendor/libtpms/wrapper.h")
        .clang_args(library.include_paths.iter().map(|path| format!("-I{}", path.display())))
        .allowlist_function("TPMLIB_.*|TPM_IO_.*")
        .allowlist_type("libtpms_callbacks|TPMLIB_.*")
        .allowlist_var("TPM_SUCCESS|TPM_FAIL|TPM_RETRY|TPM_SIZE|TPM_.*_NAME")
        .default_enum_style(bindgen::EnumVariation::Consts)
        .prepend_enum_name(false)
        .generate_comments(false)
        .parse_callbacks(Box::new(bindgen::CargoCallbacks::new()))
        .generate()
        .expect("bindgen reads vendor/libtpms/wrapper.h (it needs libclang; on Debian: apt-get install libclang-dev)");
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR")).join("libtpms.rs");
    bindings.write_to_file(out).expect("OUT_DIR is writable");
}
