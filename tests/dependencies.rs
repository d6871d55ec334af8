//! What the project is built from: where it comes from, under which licences, and that docs/dependencies.md names it.
//!
//! Cargo.lock has the whole tree, of all platforms; licences are known of what this platform's build has fetched.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

const CRATES_IO: &str = "registry+https://github.com/rust-lang/crates.io-index";

/// Licences as packages write them, looked at one by one: each lets who passes the program on choose terms that ask for
/// no more than a notice.
const LICENCES: &[&str] = &[
    "(MIT OR Apache-2.0) AND Unicode-3.0",
    "Apache-2.0",
    "Apache-2.0 OR BSD-3-Clause",
    "Apache-2.0 OR MIT",
    "Apache-2.0 WITH LLVM-exception OR Apache-2.0 OR MIT",
    "Apache-2.0/MIT",
    "BSD-2-Clause OR Apache-2.0 OR MIT",
    "BSD-3-Clause",
    "ISC",
    "MIT",
    "MIT OR Apache-2.0",
    "MIT-0",
    "MIT/Apache-2.0",
    "Unlicense OR MIT",
    "Zlib",
];

/// Packages that are there in several versions, and why.
const DUPLICATES: &[(&str, &str)] = &[
    ("bitflags", "1 by vmm-sys-util, which only the tests have through the vfio_user client"),
    ("getrandom", "0.4 by tempfile, of the tests; 0.3 is ours"),
    ("r-efi", "one for each getrandom; for UEFI, never built here"),
    ("shlex", "1 by bindgen, 2 by cc; both at build time"),
    ("syn", "2 and 3 by derive macros; at build time"),
];

/// A package as Cargo.lock has it.
struct Locked {
    name: String,
    version: String,
    source: Option<String>,
    checksum: bool,
}

fn project() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: &str) -> String {
    fs::read_to_string(project().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

fn locked(path: &str) -> Vec<Locked> {
    let file = read(path);
    let packages = file.split("[[package]]").skip(1).map(|package| {
        let value = |key: &str| {
            let line = package.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(" = "))?;
            Some(line.trim_matches('"').to_owned())
        };
        Locked {
            name: value("name").unwrap(),
            version: value("version").unwrap(),
            source: value("source"),
            checksum: value("checksum").is_some(),
        }
    });
    packages.collect()
}

/// What cargo knows of the packages of this platform, without asking anybody.
fn metadata() -> Value {
    let platform = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version=1", "--offline", "--locked", "--filter-platform", &platform])
        .current_dir(project())
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

/// The names in the first column of all tables in a document.
fn first_column(document: &str) -> BTreeSet<String> {
    let cells = document.lines().filter_map(|line| line.strip_prefix("| `")?.split('`').next());
    cells.map(ToOwned::to_owned).collect()
}

fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value[key].as_str().unwrap_or_else(|| panic!("no {key}: {value}"))
}

#[test]
fn everything_comes_from_crates_io_with_a_checksum() {
    for (file, own) in
        [("Cargo.lock", &["vfio-user-tpm"][..]), ("fuzz/Cargo.lock", &["vfio-user-tpm", "vfio-user-tpm-fuzz"])]
    {
        let packages = locked(file);
        assert!(packages.len() > 50, "{file} has {} packages", packages.len());
        for package in packages {
            let Locked { name, version, source, checksum } = package;
            if !own.contains(&name.as_str()) {
                assert_eq!(source.as_deref(), Some(CRATES_IO), "{file}: source of {name} {version}");
                assert!(checksum, "{file}: {name} {version} without a checksum");
            }
        }
    }
}

#[test]
fn every_licence_is_one_that_was_looked_at() {
    let metadata = metadata();
    let packages = metadata["packages"].as_array().unwrap();
    let mut unused = LICENCES.iter().copied().collect::<BTreeSet<_>>();
    for package in packages {
        let (name, version) = (text(package, "name"), text(package, "version"));
        let licence = package["license"].as_str().unwrap_or_else(|| panic!("{name} {version} names no licence"));
        unused.remove(licence);
        assert!(LICENCES.contains(&licence), "{name} {version}: {licence:?} is not in this file's list");
    }
    assert!(unused.is_empty(), "no package has these licences any more: {unused:?}");
}

#[test]
fn no_package_is_there_twice_without_a_reason() {
    let mut versions: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for package in locked("Cargo.lock") {
        versions.entry(package.name).or_default().insert(package.version);
    }
    versions.retain(|_, versions| versions.len() > 1);
    let found: Vec<&str> = versions.keys().map(String::as_str).collect();
    let reasons: Vec<&str> = DUPLICATES.iter().map(|(name, _)| *name).collect();
    assert_eq!(found, reasons, "packages with several versions, and those with a reason: {versions:?}");
}

#[test]
fn every_direct_dependency_and_file_with_unsafe_code_is_explained() {
    let explained = first_column(&read("docs/dependencies.md"));
    let metadata = metadata();
    let packages = metadata["packages"].as_array().unwrap();
    let own = packages.iter().find(|package| text(package, "name") == "vfio-user-tpm").unwrap();
    let direct = own["dependencies"].as_array().unwrap().iter().map(|dependency| text(dependency, "name").to_owned());
    let mut expected: BTreeSet<String> = direct.collect();
    // Of the fuzzing that only ./fuzz-all builds.
    expected.insert("libfuzzer-sys".to_owned());
    expected.insert("libtpms".to_owned());
    expected.extend(files_with_unsafe_code());
    assert_eq!(explained, expected, "what docs/dependencies.md explains, and what is there");
}

/// Our source files in which an attribute permits unsafe code; everywhere else src/lib.rs denies it.
fn files_with_unsafe_code() -> Vec<String> {
    assert!(read("src/lib.rs").contains("#![deny(unsafe_code)]") && !read("src/main.rs").contains("unsafe"));
    let mut files = Vec::new();
    let mut folders = vec![PathBuf::from("src")];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(project().join(&folder)).unwrap() {
            let path = folder.join(entry.unwrap().file_name());
            if project().join(&path).is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let name = path.to_str().unwrap();
                let source = read(name);
                if source.contains("expect(unsafe_code") || source.contains("allow(unsafe_code") {
                    files.push(name.to_owned());
                }
            }
        }
    }
    files
}
