use std::fs;
use std::path::PathBuf;

use super::*;
use crate::state::Blob;
use crate::tpm::TpmVersion;

const V2: TpmVersion = TpmVersion::V2_0;

fn contents(payload: &[u8]) -> Contents {
    let mut contents = Contents::default();
    contents.insert(V2, Blob::Permanent, payload.to_vec());
    contents.insert(TpmVersion::V1_2, Blob::Permanent, [payload, b" 1.2"].concat());
    contents
}

fn key(byte: u8) -> Key {
    Key::from_master(&[byte; 32])
}

struct Place(tempfile::TempDir);

impl Place {
    /// A folder with the state "old", which has a volatile blob too.
    fn with_old_state() -> Self {
        let place = Self(tempfile::tempdir().unwrap());
        let mut old = contents(b"old");
        old.insert(V2, Blob::Volatile, b"volatile".to_vec());
        place.open().replace_contents(&old, false).unwrap();
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn open(&self) -> StateFolder {
        StateFolder::open(self.0.path()).unwrap()
    }

    fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(self.0.path()).unwrap();
        let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }
}

#[test]
fn a_whole_state_goes_in_and_out() {
    let place = Place::with_old_state();
    let folder = place.open();
    folder.replace_contents(&contents(b"new"), true).unwrap();
    assert_eq!(folder.contents().unwrap().get(V2, Blob::Permanent), Some(&b"new"[..]));
    assert_eq!(folder.contents().unwrap().iter().count(), 2);
    assert_eq!(place.names(), ["lock", "tpm1.2-permanent.state", "tpm2.0-permanent.state"]);
}

#[test]
fn a_state_that_is_there_is_not_replaced_unless_forced_however_broken_it_is() {
    let place = Place::with_old_state();
    fs::write(place.path("tpm2.0-permanent.state"), b"broken").unwrap();
    let folder = place.open();
    let error = folder.replace_contents(&contents(b"new"), false).unwrap_err();
    assert!(matches!(error, StateError::Occupied { .. }), "{error}");
    assert_eq!(fs::read(place.path("tpm2.0-permanent.state")).unwrap(), b"broken");
    folder.replace_contents(&contents(b"new"), true).unwrap();
    assert_eq!(folder.load(V2, Blob::Permanent).unwrap().as_deref(), Some(&b"new"[..]));
}

#[test]
fn files_of_two_states_or_none_are_refused() {
    let (one, other, target) = (Place::with_old_state(), Place::with_old_state(), Place(tempfile::tempdir().unwrap()));
    let files = [one.open().files().unwrap().swap_remove(0), other.open().files().unwrap().swap_remove(1)];
    assert!(matches!(target.open().replace_all(&files, true), Err(StateError::Mixed { .. })));
    assert!(matches!(target.open().replace_all(&[], true), Err(StateError::Empty)));
    assert_eq!(target.names(), ["lock"]);
}

/// All that a crash can leave behind, by the order of the steps.
#[test]
fn after_a_crash_at_any_step_the_state_is_all_old_or_all_new() {
    let new = Place(tempfile::tempdir().unwrap());
    new.open().replace_contents(&contents(b"new"), false).unwrap();
    let new_file = |name: &str| fs::read(new.path(name)).unwrap();
    let names = ["tpm2.0-permanent.state", "tpm1.2-permanent.state"];
    let list = format!("{}\n{}\n{LAST_LINE}", names[0], names[1]);

    for step in 0..8 {
        let place = Place::with_old_state();
        let half = |name: &str| fs::write(place.path(&incoming(name)), &new_file(name)[..20]).unwrap();
        let whole = |name: &str| fs::write(place.path(&incoming(name)), new_file(name)).unwrap();
        let renamed = |name: &str| fs::rename(place.path(&incoming(name)), place.path(name)).unwrap();
        let replacing = || fs::write(place.path(REPLACING), &list).unwrap();
        let deleted = || fs::remove_file(place.path("tpm2.0-volatile.state")).unwrap();
        let steps: [&dyn Fn(); 7] = [
            &|| half(names[0]),
            &|| whole(names[0]),
            &|| whole(names[1]),
            &replacing,
            &|| renamed(names[0]),
            &deleted,
            &|| renamed(names[1]),
        ];
        steps.into_iter().take(step).for_each(|step| step());

        let folder = place.open();
        assert!(!place.names().iter().any(|name| name.ends_with(".incoming")), "secrets are left in step {step}");
        let (expected, count) = if step < 4 { (&b"old"[..], 3) } else { (&b"new"[..], 2) };
        let found = folder.contents().unwrap();
        assert_eq!(found.get(V2, Blob::Permanent), Some(expected), "step {step}");
        assert_eq!(found.get(TpmVersion::V1_2, Blob::Permanent), Some(&[expected, b" 1.2"].concat()[..]));
        assert_eq!(found.iter().count(), count);
        // And what is left of it is in nobody's way.
        folder.replace_contents(&contents(b"next"), true).unwrap();
        assert_eq!(place.names(), ["lock", "tpm1.2-permanent.state", "tpm2.0-permanent.state"]);
    }
}

#[test]
fn a_damaged_list_deletes_nothing() {
    for list in ["", LAST_LINE, "tpm2.0-permanent.state\n", "tpm2.0-permanent.statf\nthat is all", "../x\nthat is all"]
    {
        let place = Place::with_old_state();
        let before = place.names();
        fs::write(place.path(REPLACING), list).unwrap();
        assert!(matches!(StateFolder::open(place.0.path()), Err(StateError::Read { .. })), "{list:?}");
        fs::remove_file(place.path(REPLACING)).unwrap();
        assert_eq!(place.names(), before);
    }
}

#[test]
fn a_state_moves_from_plain_to_sealed_to_another_key_and_back() {
    let place = Place::with_old_state();
    let expected = place.open().contents().unwrap();
    for (old, new) in [(None, Some(key(1))), (Some(key(1)), Some(key(2))), (Some(key(2)), None)] {
        let folder = place.open().with_key(old.clone());
        let generation = |folder: &StateFolder| folder.files().unwrap()[0].inspect().unwrap().label.generation;
        let before = generation(&folder);
        folder.rekey(new.as_ref()).unwrap();
        assert_eq!(generation(&folder), before + 1);
        assert!(matches!(folder.load(V2, Blob::Permanent), Err(StateError::Key { .. })));
        // Done is done.
        folder.rekey(new.as_ref()).unwrap();
        assert_eq!(generation(&folder), before + 1);
        drop(folder);
        assert_eq!(place.open().with_key(new).contents().unwrap(), expected);
    }
}

#[test]
fn a_wrong_old_key_changes_nothing() {
    let place = Place::with_old_state();
    place.open().rekey(Some(&key(1))).unwrap();
    let before = fs::read(place.path("tpm2.0-permanent.state")).unwrap();
    assert!(matches!(place.open().with_key(Some(key(3))).rekey(Some(&key(2))), Err(StateError::Key { .. })));
    assert!(matches!(place.open().rekey(Some(&key(2))), Err(StateError::Key { .. })));
    assert_eq!(fs::read(place.path("tpm2.0-permanent.state")).unwrap(), before);
    assert_eq!(place.names().len(), 4);
}

#[test]
fn the_anchor_moves_to_the_new_key_even_over_a_crash_before_that() {
    use crate::state::Anchor;
    for crash in [false, true] {
        let place = Place::with_old_state();
        let anchor_path = place.path("anchor");
        let with_anchor = |folder: StateFolder| {
            let anchor = Anchor::open_unchecked(&anchor_path, folder.key()).unwrap();
            folder.with_anchor(Some(anchor))
        };
        let folder = with_anchor(place.open());
        folder.contents().unwrap();
        assert!(folder.load(V2, Blob::Permanent).unwrap().is_some());
        let under_old_key = fs::read(&anchor_path).unwrap();
        folder.rekey(Some(&key(1))).unwrap();
        drop(folder);
        if crash {
            fs::write(&anchor_path, under_old_key).unwrap();
            let sealed = with_anchor(place.open().with_key(Some(key(1))));
            assert!(matches!(sealed.load(V2, Blob::Permanent), Err(StateError::Anchor(_))));
            drop(sealed);
            with_anchor(place.open()).rekey(Some(&key(1))).unwrap();
        }
        let sealed = with_anchor(place.open().with_key(Some(key(1))));
        assert_eq!(sealed.load(V2, Blob::Permanent).unwrap().as_deref(), Some(&b"old"[..]));
    }
}
