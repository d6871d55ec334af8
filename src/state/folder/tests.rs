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
fn a_lock_file_that_is_deleted_lets_nobody_in() {
    let temp = tempfile::tempdir().unwrap();
    let first = StateFolder::open(temp.path()).unwrap();
    fs::remove_file(temp.path().join(LOCK)).unwrap();
    assert!(matches!(StateFolder::open(temp.path()), Err(StateError::Locked { .. })));
    drop(first);
    StateFolder::open(temp.path()).unwrap();
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

#[test]
fn generations_grow_and_the_identity_stays() {
    let (_temp, folder) = folder();
    let labels = |folder: &StateFolder| -> Vec<Label> {
        folder.files().unwrap().iter().map(|file| file.inspect().unwrap().label).collect()
    };
    folder.store(V2, Blob::Permanent, b"x").unwrap();
    folder.store(V2, Blob::Permanent, b"x").unwrap();
    folder.store(V2, Blob::Volatile, b"x").unwrap();
    let labels = labels(&folder);
    assert_eq!((labels[0].generation, labels[1].generation), (2, 1));
    assert!(labels[0].identity.is_some() && labels[0].identity == labels[1].identity);
}

#[test]
fn a_state_of_the_old_format_is_read_and_written_in_the_new() {
    let (temp, folder) = folder();
    fs::write(state_path(&temp), file::tests::format_1()).unwrap();
    assert_eq!(folder.load(V2, Blob::Permanent).unwrap().as_deref(), Some(&b"seeds and secrets"[..]));
    folder.store(V2, Blob::Permanent, b"new").unwrap();
    assert_eq!(folder.files().unwrap()[0].inspect().unwrap().label.generation, 1);
}

/// Each damage is refused, and neither a read nor a write touches the file.
#[test]
fn a_file_cut_off_anywhere_or_with_any_byte_flipped_is_refused_and_never_written_over() {
    let key = Key::from_master(&[3; 32]);
    for key in [None, Some(key)] {
        let (temp, folder) = folder();
        let folder = folder.with_key(key);
        folder.store(V2, Blob::Permanent, b"payload").unwrap();
        let good = fs::read(state_path(&temp)).unwrap();
        let cut = (0..good.len()).map(|length| good[..length].to_vec());
        let flipped = (0..good.len()).map(|position| {
            let mut bad = good.clone();
            bad[position] ^= 0xff;
            bad
        });
        for bad in cut.chain(flipped) {
            fs::write(state_path(&temp), &bad).unwrap();
            assert!(matches!(folder.load(V2, Blob::Permanent), Err(StateError::Format { .. })));
            assert!(matches!(folder.store(V2, Blob::Permanent, b"new"), Err(StateError::Format { .. })));
            assert_eq!(fs::read(state_path(&temp)).unwrap(), bad);
        }
        fs::write(state_path(&temp), &good).unwrap();
        assert_eq!(folder.load(V2, Blob::Permanent).unwrap().as_deref(), Some(&b"payload"[..]));
    }
}

#[test]
fn a_key_that_does_not_fit_neither_reads_nor_writes() {
    let (temp, folder) = folder();
    let folder = folder.with_key(Some(Key::from_master(&[1; 32])));
    folder.store(V2, Blob::Permanent, b"payload").unwrap();
    let sealed = fs::read(state_path(&temp)).unwrap();
    let refused = |folder: &StateFolder| {
        assert!(matches!(folder.load(V2, Blob::Permanent), Err(StateError::Key { .. })));
        assert!(matches!(folder.store(V2, Blob::Permanent, b"new"), Err(StateError::Key { .. })));
        // Nor does a new blob begin beside it.
        assert!(matches!(folder.store(V2, Blob::Volatile, b"new"), Err(StateError::Key { .. })));
    };
    let folder = folder.with_key(None);
    refused(&folder);
    let folder = folder.with_key(Some(Key::from_master(&[2; 32])));
    refused(&folder);
    assert_eq!(fs::read(state_path(&temp)).unwrap(), sealed);

    let folder = folder.with_key(None);
    fs::remove_file(state_path(&temp)).unwrap();
    folder.store(V2, Blob::Permanent, b"plain").unwrap();
    let folder = folder.with_key(Some(Key::from_master(&[1; 32])));
    refused(&folder);
}

#[test]
fn a_folder_of_an_swtpm_is_named_as_such_until_there_is_a_state_of_ours() {
    for name in ["tpm2-00.permall", "tpm-00.permall"] {
        let (temp, folder) = folder();
        assert!(folder.refuse_swtpm().is_ok());
        fs::write(temp.path().join("state").join(name), b"swtpm's").unwrap();
        let error = folder.refuse_swtpm().unwrap_err().to_string();
        assert!(error.contains("state import --from-swtpm"), "{error}");
        folder.store(V2, Blob::Permanent, b"moved in").unwrap();
        assert!(folder.refuse_swtpm().is_ok());
    }
}

#[test]
fn a_folder_that_is_gone_is_not_taken_for_an_empty_one() {
    let (temp, folder) = folder();
    folder.store(V2, Blob::Permanent, b"payload").unwrap();
    fs::remove_dir_all(temp.path().join("state")).unwrap();
    let error = folder.load(V2, Blob::Permanent).unwrap_err().to_string();
    assert!(error.contains("removed"), "{error}");
    assert!(folder.store(V2, Blob::Permanent, b"new").is_err());
    assert!(!temp.path().join("state").exists());
}

#[test]
fn looking_at_a_folder_does_not_create_it() {
    let temp = tempfile::tempdir().unwrap();
    let path = temp.path().join("state");
    assert!(matches!(StateFolder::open_existing(&path), Err(StateError::Open { .. })));
    assert!(!path.exists());
}

#[test]
fn a_device_is_told_to_keep_its_state() {
    let error = StateFolder::open_existing(Path::new("/dev/null")).unwrap_err().to_string();
    assert!(error.contains("cannot leave its chip"), "{error}");
}
