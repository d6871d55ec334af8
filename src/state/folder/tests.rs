use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::PathBuf;

use super::*;

const V2: TpmVersion = TpmVersion::V2_0;
const NAME: &str = "tpm2.0-permanent.state";

fn folder() -> (tempfile::TempDir, StateFolder) {
    let temp = tempfile::tempdir().unwrap();
    let folder = StateFolder::open(&temp.path().join("state")).unwrap();
    (temp, folder)
}

fn state_path(temp: &tempfile::TempDir) -> PathBuf {
    temp.path().join("state").join(NAME)
}

#[test]
fn a_new_folder_is_private_and_empty() {
    let (temp, folder) = folder();
    let mode = fs::metadata(temp.path().join("state")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o700);
    assert!(folder.load(V2, Blob::Permanent).unwrap().is_none());
}

#[test]
fn what_was_stored_is_loaded_by_the_next_process() {
    let (temp, folder) = folder();
    folder.store(V2, Blob::Permanent, b"one").unwrap();
    folder.store(V2, Blob::Permanent, b"two").unwrap();
    drop(folder);
    let again = StateFolder::open(&temp.path().join("state")).unwrap();
    assert_eq!(again.load(V2, Blob::Permanent).unwrap().as_deref(), Some(&b"two"[..]));
    let mode = fs::metadata(state_path(&temp)).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
}

#[test]
fn a_second_user_is_told_who_holds_the_lock() {
    let (temp, _folder) = folder();
    let error = StateFolder::open(&temp.path().join("state")).unwrap_err().to_string();
    assert!(error.contains(&format!("process {}", std::process::id())), "{error}");
}

#[test]
fn the_lock_holds_as_long_as_a_copy_is_open() {
    let (temp, folder) = folder();
    let path = temp.path().join("state");
    let mut copies = folder.descriptors().into_iter().map(|fd| fd.try_clone_to_owned().unwrap());
    let (dir, lock) = (copies.next().unwrap(), copies.next().unwrap());
    let copy = StateFolder::shared(dir, lock);
    drop(copies);
    drop(folder);
    assert!(matches!(StateFolder::open(&path), Err(StateError::Locked { .. })));
    assert!(copy.store(V2, Blob::Permanent, b"x").is_ok());
}

#[test]
fn a_damaged_file_is_refused_and_left_alone() {
    let (temp, folder) = folder();
    fs::write(state_path(&temp), b"not ours").unwrap();
    assert!(matches!(folder.load(V2, Blob::Permanent), Err(StateError::Format { .. })));
    assert_eq!(fs::read(state_path(&temp)).unwrap(), b"not ours");
}

#[test]
fn a_symbolic_link_in_the_place_of_the_state_is_not_followed() {
    let (temp, folder) = folder();
    symlink("/etc/hostname", state_path(&temp)).unwrap();
    assert!(matches!(folder.load(V2, Blob::Permanent), Err(StateError::Read { .. })));
}

#[test]
fn a_pipe_in_the_place_of_the_state_does_not_block() {
    let (temp, folder) = folder();
    nix::unistd::mkfifo(&state_path(&temp), Mode::from_bits_truncate(0o600)).unwrap();
    assert!(matches!(folder.load(V2, Blob::Permanent), Err(StateError::Read { .. })));
}

#[test]
fn the_rest_of_an_interrupted_write_does_not_stop_the_next() {
    let (temp, folder) = folder();
    fs::write(state_path(&temp).with_extension("state.new"), b"half").unwrap();
    folder.store(V2, Blob::Permanent, b"whole").unwrap();
    assert_eq!(folder.load(V2, Blob::Permanent).unwrap().as_deref(), Some(&b"whole"[..]));
}

#[test]
fn an_endless_file_is_refused_without_being_read_whole() {
    let (temp, folder) = folder();
    File::create(state_path(&temp)).unwrap().set_len(1 << 40).unwrap();
    assert!(matches!(folder.load(V2, Blob::Permanent), Err(StateError::Read { .. })));
}

#[test]
fn deleting_what_is_not_there_is_no_error() {
    let (_temp, folder) = folder();
    folder.store(V2, Blob::SaveState, b"x").unwrap();
    folder.delete(V2, Blob::SaveState).unwrap();
    folder.delete(V2, Blob::SaveState).unwrap();
    assert!(folder.load(V2, Blob::SaveState).unwrap().is_none());
}
