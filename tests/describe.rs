//! `describe`, as the built program, and `tpm.json` against its schema, `docs/tpm.schema.json`.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use jsonschema::Validator;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tempfile::TempDir;

fn describe(folder: &Path, more: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_vfio-user-tpm"))
        .args(["describe", "--socket-path=/run/tpm.sock", "--description"])
        .arg(folder)
        .args(more)
        .output()
        .unwrap()
}

/// What `describe` prints for these flags, which it must take.
#[track_caller]
fn printed(folder: &Path, more: &[&str]) -> String {
    let output = describe(folder, more);
    assert!(output.status.success(), "{more:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn folder() -> TempDir {
    tempfile::tempdir().unwrap()
}

fn repository(path: &str) -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

fn read_json(path: &Path) -> Value {
    serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap()
}

fn schema() -> Value {
    read_json(&repository("docs/tpm.schema.json"))
}

/// The schema leaves room for members of later versions. Those of this one it has to name.
fn without_room(mut schema: Value) -> Value {
    match &mut schema {
        Value::Object(object) => {
            if object.contains_key("properties") {
                object.insert("additionalProperties".to_owned(), json!(false));
            }
            object.values_mut().for_each(|value| *value = without_room(value.take()));
        }
        Value::Array(items) => items.iter_mut().for_each(|item| *item = without_room(item.take())),
        _ => {}
    }
    schema
}

#[track_caller]
fn assert_valid(validator: &Validator, instance: &Value, what: &str) {
    let errors: Vec<String> =
        validator.iter_errors(instance).map(|error| format!("{}: {error}", error.instance_path())).collect();
    assert!(errors.is_empty(), "{what}: {errors:#?}");
}

const VARIANTS: [&[&str]; 10] = [
    &[],
    &["--state-dir=/var/lib/tpm"],
    &["--machine=pc"],
    &["--tpm-version=1.2"],
    &["--interface=crb"],
    &["--interface=crb-doorbell"],
    &["--pci-address=1e.0", "--pci-id=1b36:00ff"],
    &["--pci-address=06.1/00.0", "--force-behind-bridge=rp0"],
    &["--machine=virt"],
    &["--machine=cloud-hypervisor"],
];

#[test]
fn the_schema_is_one() {
    assert!(jsonschema::meta::is_valid(&schema()));
}

#[test]
fn what_is_printed_is_what_is_written_and_follows_the_schema() {
    let validator = jsonschema::validator_for(&without_room(schema())).unwrap();
    for variant in VARIANTS {
        let folder = folder();
        let printed = printed(folder.path(), &[variant, &["--format=json"]].concat());
        assert_eq!(printed, fs::read_to_string(folder.path().join("tpm.json")).unwrap());
        assert_valid(&validator, &serde_json::from_str(&printed).unwrap(), &format!("{variant:?}"));
    }
}

#[test]
fn golden_files_follow_the_schema() {
    let validator = jsonschema::validator_for(&without_room(schema())).unwrap();
    let variants: Vec<_> =
        fs::read_dir(repository("tests/golden")).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert!(!variants.is_empty());
    for variant in variants {
        assert_valid(&validator, &read_json(&variant.join("tpm.json")), &variant.display().to_string());
    }
}

#[test]
fn the_schema_refuses_what_a_reader_would_stumble_over() {
    let validator = jsonschema::validator_for(&schema()).unwrap();
    let folder = folder();
    let good: Value = serde_json::from_str(&printed(folder.path(), &["--format=json"])).unwrap();
    for (pointer, bad) in [
        ("/format", json!(2)),
        ("/socket", json!("tpm.sock")),
        ("/state/movable", json!("yes")),
        ("/machine", json!("microvm")),
        ("/pci/address", json!("5.0")),
        ("/pci/address", json!("05.1")),
        ("/pci/bridge", json!("rp0")),
        ("/pci/vendor", json!(0x7666)),
        ("/acpi/parent", json!("\\_SB.PCI0.S28")),
        ("/acpi/tables/0/sha256", json!("")),
        ("/acpi/tables/0/file", json!("../ssdt.aml")),
        ("/qemu/0", json!(null)),
    ] {
        let mut instance = good.clone();
        *instance.pointer_mut(pointer).unwrap_or_else(|| panic!("{pointer}")) = bad;
        assert!(!validator.is_valid(&instance), "{pointer}");
    }
    for member in good.as_object().unwrap().keys() {
        let mut instance = good.clone();
        instance.as_object_mut().unwrap().remove(member);
        assert!(!validator.is_valid(&instance), "without {member}");
    }
}

#[test]
fn the_schema_leaves_room_for_new_members() {
    let validator = jsonschema::validator_for(&schema()).unwrap();
    let folder = folder();
    let mut instance: Value = serde_json::from_str(&printed(folder.path(), &["--format=json"])).unwrap();
    instance["new"] = json!(1);
    instance["pci"]["new"] = json!(1);
    assert_valid(&validator, &instance, "with new members");
}

#[test]
fn the_hashes_are_those_of_the_files() {
    for interface in ["--interface=crb", "--interface=tis"] {
        let folder = folder();
        let description: Value = serde_json::from_str(&printed(folder.path(), &[interface, "--format=json"])).unwrap();
        let acpi = &description["acpi"];
        let archive = acpi["initrd"].is_object().then_some(&acpi["initrd"]);
        for file in acpi["tables"].as_array().unwrap().iter().chain(archive) {
            let bytes = fs::read(folder.path().join(file["file"].as_str().unwrap())).unwrap();
            let hex: Vec<_> = Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect();
            assert_eq!(file["sha256"], hex.concat());
        }
    }
}

#[test]
fn the_archive_for_an_initramfs_is_printed_as_it_is_written() {
    let folder = folder();
    let output = describe(folder.path(), &["--interface=tis", "--format=acpi-initrd"]);
    assert!(output.status.success(), "{output:?}");
    assert!(output.stdout.starts_with(b"070701"));
    assert_eq!(output.stdout, fs::read(folder.path().join("acpi-initrd.cpio")).unwrap());
}

#[test]
fn there_is_no_archive_for_a_crb() {
    let parent = folder();
    let folder = parent.path().join("new");
    let output = describe(&folder, &["--interface=crb", "--format=acpi-initrd"]);
    let message = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success());
    assert!(message.contains("TPM2 table") && message.contains("--interface=tis"), "{message}");
    assert!(!folder.exists());
}

#[test]
fn where_the_vmm_adds_no_tables_tis_is_the_default_and_a_crb_refused() {
    for machine in ["--machine=virt", "--machine=cloud-hypervisor"] {
        let folder = folder();
        let description: Value = serde_json::from_str(&printed(folder.path(), &[machine, "--format=json"])).unwrap();
        assert_eq!(description["tpm"]["interface"], "tis");
        let output = describe(folder.path(), &[machine, "--interface=crb"]);
        assert!(String::from_utf8_lossy(&output.stderr).contains("--interface=tis"), "{output:?}");
    }
}

/// The terminal is one that nobody reads.
#[test]
fn the_archive_is_not_written_to_a_terminal() {
    let pty = nix::pty::openpty(None, None).unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_vfio-user-tpm"))
        .args(["describe", "--socket-path=/s", "--interface=tis", "--format=acpi-initrd", "--description"])
        .arg(folder().path())
        .stdout(pty.slave)
        .output()
        .unwrap();
    assert!(!output.status.success());
    assert!(String::from_utf8_lossy(&output.stderr).contains("> acpi-initrd.cpio"), "{output:?}");
}

#[test]
fn state_can_move_if_it_has_a_folder() {
    let folder = folder();
    for (flags, movable) in [(&["--format=json"][..], false), (&["--format=json", "--state-dir=/t"], true)] {
        let description: Value = serde_json::from_str(&printed(folder.path(), flags)).unwrap();
        assert_eq!(description["state"]["movable"], movable, "{flags:?}");
    }
}

#[test]
fn without_a_format_nothing_is_printed() {
    let folder = folder();
    assert_eq!(printed(folder.path(), &[]), "");
    assert!(folder.path().join("tpm.json").exists());
}

#[test]
fn qemus_arguments_are_those_in_tpm_json_once_a_shell_has_read_them() {
    let parent = folder();
    let folder = parent.path().join("it's a, folder");
    let line = printed(&folder, &["--format=qemu-args"]);
    let description = read_json(&folder.join("tpm.json"));
    let output = Command::new("/bin/sh").args(["-c", &format!(r"printf '%s\n' {line}")]).output().unwrap();
    let words: Vec<_> = std::str::from_utf8(&output.stdout).unwrap().lines().collect();
    assert_eq!(json!(words), description["qemu"]);
}

#[test]
fn a_description_that_cannot_be_printed_leaves_no_files() {
    let parent = folder();
    let folder = parent.path().join("bell\u{7}");
    let output = describe(&folder, &["--format=libvirt"]);
    assert!(!output.status.success());
    assert!(String::from_utf8_lossy(&output.stderr).contains("XML"), "{output:?}");
    assert!(!folder.exists());
}

#[test]
fn a_bridge_is_refused_with_the_reason_and_leaves_no_files() {
    let parent = folder();
    let folder = parent.path().join("new");
    let output = describe(&folder, &["--pci-address=06.0/00.0"]);
    let message = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success());
    assert!(message.contains("replay measurements") && message.contains("--force-behind-bridge"), "{message}");
    assert!(!folder.exists());
}

#[test]
fn a_crb_of_a_1_2_is_refused_and_leaves_no_files() {
    let parent = folder();
    let folder = parent.path().join("new");
    let output = describe(&folder, &["--interface=crb", "--tpm-version=1.2"]);
    let message = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success());
    assert!(message.contains("came with TPM 2.0") && message.contains("--interface=tis"), "{message}");
    assert!(!folder.exists());
}
