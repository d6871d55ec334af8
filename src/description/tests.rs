use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{PermissionsExt, symlink};

use serde_json::Value;

use super::*;
use crate::acpi::{Interface, Machine, Placement};
use crate::pci::Identity;
use crate::tpm::TpmVersion;

fn device_in(machine: Machine) -> TpmDevice {
    let placement = Placement::new(machine, "05.0".parse().unwrap(), None).unwrap();
    let identity = Identity { vendor_id: 0x7666, device_id: 0x5450, revision_id: 1, class_code: 0x10_8000 };
    TpmDevice::new(placement, identity, Interface::Tis, TpmVersion::V2_0).unwrap()
}

fn description(socket_path: impl Into<PathBuf>) -> Result<Description, DescriptionError> {
    description_in(Machine::Q35, socket_path)
}

fn description_in(machine: Machine, socket_path: impl Into<PathBuf>) -> Result<Description, DescriptionError> {
    Description::new(Config {
        program_version: "0.0.0".to_owned(),
        device: device_in(machine),
        socket_path: socket_path.into(),
        source: Source::Ephemeral,
    })
}

fn json_of(files: &[File], name: &str) -> Value {
    let file = files.iter().find(|file| file.name == name).unwrap();
    serde_json::from_slice(&file.contents).unwrap()
}

fn qemu_arguments(folder: &str) -> Vec<Value> {
    let description = description("/run/tpm.sock").unwrap().tpm_json(Path::new(folder)).unwrap();
    serde_json::from_str::<Value>(&description).unwrap()["qemu"].as_array().unwrap().clone()
}

#[test]
fn a_relative_socket_path_is_made_absolute() {
    let files = description("tpm.sock").unwrap().files(Path::new("/vm")).unwrap();
    let expected = std::env::current_dir().unwrap().join("tpm.sock");
    assert_eq!(json_of(&files, "qemu-device.json")["socket"]["path"], expected.to_str().unwrap());
}

#[test]
fn a_socket_path_keeps_quotes_commas_and_other_scripts_through_json() {
    let path = "/run/a \"b\",c\\d/é\u{7}.sock";
    let files = description(path).unwrap().files(Path::new("/vm")).unwrap();
    assert_eq!(json_of(&files, "qemu-device.json")["socket"]["path"], path);
    assert_eq!(json_of(&files, "tpm.json")["socket"], path);
}

#[test]
fn an_empty_socket_path_is_refused() {
    let error = description("").unwrap_err();
    assert!(matches!(error, DescriptionError::Path { .. }), "{error}");
}

#[test]
fn paths_that_are_not_utf_8_are_refused() {
    let path = Path::new(OsStr::from_bytes(b"/run/\xff"));
    let message = description(path).unwrap_err().to_string();
    assert_eq!(
        message,
        "the path of the socket, \"/run/\\xFF\", is not UTF-8, and JSON holds nothing else: choose another path"
    );
    let error = description("/run/tpm.sock").unwrap().files(path).unwrap_err();
    assert!(matches!(error, DescriptionError::NotUtf8 { .. }), "{error}");
}

#[test]
fn commas_in_the_folders_path_are_doubled_for_qemus_options() {
    assert_eq!(qemu_arguments("/vm/a,b")[3], "file=/vm/a,,b/ssdt.aml");
}

#[test]
fn a_colon_in_the_folders_path_is_refused_before_anything_is_written() {
    let parent = tempfile::tempdir().unwrap();
    let folder = parent.path().join("a:b");
    let error = description("/run/tpm.sock").unwrap().write_to(&folder).unwrap_err();
    assert!(matches!(error, DescriptionError::Colon(_)), "{error}");
    assert!(!folder.exists());
}

#[test]
fn the_device_argument_in_tpm_json_is_the_one_in_its_own_file() {
    let files = description("/run/tpm.sock").unwrap().files(Path::new("/vm")).unwrap();
    let argument = qemu_arguments("/vm")[1].as_str().unwrap().to_owned();
    assert_eq!(
        files.iter().find(|file| file.name == "qemu-device.json").unwrap().contents,
        line(argument).into_bytes()
    );
}

#[test]
fn s3_is_switched_off() {
    let arguments = qemu_arguments("/vm");
    assert_eq!(arguments[arguments.len() - 2..], ["-global", "ICH9-LPC.disable_s3=1"]);
}

#[test]
fn where_qemu_takes_no_tables_it_gets_none_and_the_folder_may_have_any_path() {
    let description = description_in(Machine::Virt, "/run/tpm.sock").unwrap();
    let arguments = description.qemu_arguments(Path::new("/a:b")).unwrap();
    assert_eq!(arguments.len(), 2, "{arguments:?}");
    let files = description.files(Path::new("/a:b")).unwrap();
    let names: Vec<_> = files.iter().map(|file| file.name).collect();
    assert_eq!(names, ["ssdt.aml", "acpi-initrd.cpio", "qemu-device.json", "tpm.json"]);
}

#[test]
fn each_vmm_has_its_own_arguments_and_not_the_others() {
    let qemu = description("/run/tpm.sock").unwrap();
    let cloud_hypervisor = description_in(Machine::CloudHypervisor, "/run/tpm.sock").unwrap();
    let folder = Path::new("/vm");
    assert!(qemu.cloud_hypervisor_arguments().unwrap_err().to_string().contains("q35"));
    for error in [cloud_hypervisor.qemu_arguments(folder).err(), cloud_hypervisor.libvirt_xml(folder).err()] {
        assert!(error.unwrap().to_string().contains("QEMU has no machine cloud-hypervisor"));
    }
    assert!(cloud_hypervisor.files(folder).unwrap().iter().all(|file| !file.name.starts_with("qemu")));
}

#[test]
fn a_path_that_cloud_hypervisor_would_take_apart_is_refused() {
    for path in ["/run/a,b", "/run/[a", "/run/a]", "/run/a\"b"] {
        let description = description_in(Machine::CloudHypervisor, path).unwrap();
        let error = description.files(Path::new("/vm")).unwrap_err();
        assert!(matches!(error, DescriptionError::CloudHypervisorPath(_)), "{error}");
    }
}

#[test]
fn a_control_character_is_no_obstacle_in_the_sockets_path_but_in_the_folders_for_libvirt() {
    let description = description("/run/\u{7}.sock").unwrap();
    assert!(description.qemu_command_line(Path::new("/vm")).unwrap().contains(r"/run/\u0007.sock"));
    assert!(description.libvirt_xml(Path::new("/vm")).unwrap().contains(r"/run/\u0007.sock"));
    let error = description.libvirt_xml(Path::new("/\u{7}")).unwrap_err();
    assert!(matches!(error, DescriptionError::NotXml(_)), "{error}");
}

#[test]
fn the_folder_is_created_and_holds_the_files_and_nothing_else() {
    let parent = tempfile::tempdir().unwrap();
    let folder = parent.path().join("vm/tpm");
    let description = description("/run/tpm.sock").unwrap();
    description.write_to(&folder).unwrap();
    description.write_to(&folder).unwrap(); // and again, over the first

    let files = description.files(&folder).unwrap();
    assert_eq!(fs::read_dir(&folder).unwrap().count(), files.len());
    for file in files {
        let path = folder.join(file.name);
        assert_eq!(fs::read(&path).unwrap(), file.contents);
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o7777, 0o644);
    }
}

#[test]
fn tpm_json_is_the_last_file() {
    let files = description("/run/tpm.sock").unwrap().files(Path::new("/vm")).unwrap();
    assert_eq!(files.last().unwrap().name, "tpm.json");
}

#[test]
fn a_symbolic_link_is_replaced_and_its_target_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    let target = folder.path().join("target");
    fs::write(&target, "precious").unwrap();
    for name in ["ssdt.aml", ".tpm2.aml.new"] {
        symlink(&target, folder.path().join(name)).unwrap();
    }
    description("/run/tpm.sock").unwrap().write_to(folder.path()).unwrap();
    assert_eq!(fs::read_to_string(&target).unwrap(), "precious");
    assert!(folder.path().join("ssdt.aml").symlink_metadata().unwrap().is_file());
}

#[test]
fn what_a_killed_writer_left_behind_is_no_obstacle() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join(".tpm.json.new"), "half").unwrap();
    description("/run/tpm.sock").unwrap().write_to(folder.path()).unwrap();
    assert!(!folder.path().join(".tpm.json.new").exists());
}

#[test]
fn a_file_that_cannot_be_written_is_named_and_nothing_is_left_behind() {
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir(folder.path().join("tpm2.aml")).unwrap();
    let error = description("/run/tpm.sock").unwrap().write_to(folder.path()).unwrap_err();
    assert!(error.to_string().contains("/tpm2.aml\""), "{error}");
    assert!(!folder.path().join(".tpm2.aml.new").exists());
}

#[test]
fn a_folder_that_cannot_be_created_is_named() {
    let parent = tempfile::tempdir().unwrap();
    let folder = parent.path().join("file");
    fs::write(&folder, "").unwrap();
    let error = description("/run/tpm.sock").unwrap().write_to(&folder).unwrap_err();
    assert!(matches!(error, DescriptionError::CreateFolder { .. }), "{error}");
}
