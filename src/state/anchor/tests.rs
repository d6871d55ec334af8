use std::fs;

use super::*;
use crate::state::StateFolder;

const V2: TpmVersion = TpmVersion::V2_0;
const PERMANENT: Blob = Blob::Permanent;

/// A state folder and its anchor's path, and what opens both.
struct Place {
    temp: tempfile::TempDir,
    key: Option<Key>,
}

impl Place {
    fn new(key: Option<Key>) -> Self {
        Self { temp: tempfile::tempdir().unwrap(), key }
    }

    fn anchor(&self) -> PathBuf {
        self.temp.path().join("anchor")
    }

    fn state(&self) -> PathBuf {
        self.temp.path().join("state").join(PERMANENT.file_name(V2))
    }

    fn open(&self) -> StateFolder {
        self.open_named("state")
    }

    fn open_named(&self, name: &str) -> StateFolder {
        let anchor = Anchor::open(&self.anchor(), self.key.as_ref()).unwrap();
        StateFolder::open(&self.temp.path().join(name)).unwrap().with_key(self.key.clone()).with_anchor(Some(anchor))
    }

    fn store(&self, payload: &[u8]) {
        self.open().store(V2, PERMANENT, payload).unwrap();
    }

    fn load(&self) -> Result<Option<Vec<u8>>, StateError> {
        self.open().load(V2, PERMANENT)
    }
}

fn places() -> [Place; 2] {
    [Place::new(None), Place::new(Some(Key::from_master(&[1; 32])))]
}

#[track_caller]
fn refusal(result: Result<Option<Vec<u8>>, StateError>) -> Rollback {
    match result {
        Err(StateError::Rollback { reason, .. }) => reason,
        other => panic!("{:?}", other.map(|_| ())),
    }
}

#[test]
fn the_anchor_follows_each_write_and_an_older_state_is_refused_and_left_alone() {
    for place in places() {
        place.store(b"one");
        let old = fs::read(place.state()).unwrap();
        place.store(b"two");
        assert_eq!(place.load().unwrap().as_deref(), Some(&b"two"[..]));
        fs::write(place.state(), &old).unwrap();
        assert_eq!(refusal(place.load()), Rollback::Older { found: 1, known: 2 });
        let error = place.open().store(V2, PERMANENT, b"three").unwrap_err();
        assert!(error.to_string().contains("state anchor --force"), "{error}");
        assert_eq!(fs::read(place.state()).unwrap(), old);

        place.open().anchor_anew().unwrap();
        assert_eq!(place.load().unwrap().as_deref(), Some(&b"one"[..]));
        place.store(b"again");
        assert_eq!(place.load().unwrap().as_deref(), Some(&b"again"[..]));
    }
}

#[test]
fn a_crash_between_the_two_writes_is_made_up_for() {
    for place in places() {
        place.store(b"one");
        let (anchor, old) = (fs::read(place.anchor()).unwrap(), fs::read(place.state()).unwrap());
        place.store(b"two");
        fs::write(place.anchor(), anchor).unwrap();
        assert_eq!(place.load().unwrap().as_deref(), Some(&b"two"[..]));
        fs::write(place.state(), old).unwrap();
        assert_eq!(refusal(place.load()), Rollback::Older { found: 1, known: 2 });
    }
}

#[test]
fn a_state_that_is_missing_is_not_begun_anew() {
    let place = Place::new(None);
    place.store(b"one");
    fs::remove_file(place.state()).unwrap();
    assert_eq!(refusal(place.load()), Rollback::Missing { known: 1 });
    assert!(place.open().store(V2, PERMANENT, b"new").is_err());
    assert!(!place.state().exists());
}

#[test]
fn another_tpm_is_refused() {
    let place = Place::new(None);
    place.store(b"one");
    let other = StateFolder::open(&place.temp.path().join("other")).unwrap();
    other.store(V2, PERMANENT, b"other").unwrap();
    drop(other);
    let other = place.open_named("other");
    assert!(matches!(refusal(other.load(V2, PERMANENT)), Rollback::OtherState { .. }));
}

#[test]
fn an_existing_state_gets_an_anchor_at_first_use() {
    let place = Place::new(None);
    let folder = StateFolder::open(&place.temp.path().join("state")).unwrap();
    folder.store(V2, PERMANENT, b"one").unwrap();
    let old = fs::read(place.state()).unwrap();
    folder.store(V2, PERMANENT, b"two").unwrap();
    drop(folder);
    assert!(place.load().is_ok());
    fs::write(place.state(), old).unwrap();
    assert_eq!(refusal(place.load()), Rollback::Older { found: 1, known: 2 });
}

#[test]
fn a_state_of_the_old_format_gets_an_anchor_with_its_next_write() {
    let place = Place::new(None);
    let old = crate::state::file::tests::format_1();
    drop(place.open());
    fs::write(place.state(), &old).unwrap();
    assert!(place.load().is_ok());
    place.store(b"new");
    fs::write(place.state(), &old).unwrap();
    assert!(matches!(refusal(place.load()), Rollback::OtherState { .. }));
}

#[test]
fn a_deleted_blob_does_not_come_back() {
    let place = Place::new(None);
    let folder = place.open();
    let path = place.temp.path().join("state").join(Blob::SaveState.file_name(V2));
    folder.store(V2, Blob::SaveState, b"one").unwrap();
    let old = fs::read(&path).unwrap();
    folder.delete(V2, Blob::SaveState).unwrap();
    folder.delete(V2, Blob::SaveState).unwrap();
    assert_eq!(folder.load(V2, Blob::SaveState).unwrap(), None);
    fs::write(&path, old).unwrap();
    assert_eq!(refusal(folder.load(V2, Blob::SaveState)), Rollback::Deleted);
    fs::remove_file(&path).unwrap();
    folder.store(V2, Blob::SaveState, b"two").unwrap();
    assert_eq!(folder.load(V2, Blob::SaveState).unwrap().as_deref(), Some(&b"two"[..]));
}

#[test]
fn two_tpms_cannot_have_one_anchor_at_a_time() {
    let place = Place::new(None);
    let _first = place.open();
    assert!(matches!(Anchor::open(&place.anchor(), None), Err(AnchorError::Locked { .. })));
}

#[test]
fn a_shared_anchor_is_the_same_and_keeps_the_lock() {
    let place = Place::new(None);
    let folder = place.open();
    let mut copies = folder.descriptors().into_iter().map(|fd| fd.try_clone_to_owned().unwrap());
    let (dir, lock, anchor) = (copies.next().unwrap(), copies.next().unwrap(), copies.next().unwrap());
    drop(copies);
    let worker = StateFolder::shared(dir, lock).with_anchor(Some(Anchor::shared(anchor)));
    drop(folder);
    worker.store(V2, PERMANENT, b"one").unwrap();
    assert!(matches!(Anchor::open(&place.anchor(), None), Err(AnchorError::Locked { .. })));
    drop(worker);
    fs::remove_file(place.state()).unwrap();
    assert_eq!(refusal(place.load()), Rollback::Missing { known: 1 });
}

#[test]
fn an_anchor_that_is_cut_off_or_foreign_is_refused_and_left_alone() {
    let place = Place::new(None);
    place.store(b"one");
    let good = fs::read(place.anchor()).unwrap();
    let foreign = vec![0x55; good.len()];
    let cut = [0, 1, 199, 200, 4095, 4096, 4295, 8191].map(|length| good[..length].to_vec());
    for bad in cut.into_iter().chain([foreign, [&good[..], b"x"].concat()]) {
        fs::write(place.anchor(), &bad).unwrap();
        let Err(error) = Anchor::open(&place.anchor(), None) else { panic!("{} bytes", bad.len()) };
        assert!(matches!(error, AnchorError::Record(RecordError::Damaged)), "{error}");
        assert_eq!(fs::read(place.anchor()).unwrap(), bad);
        let anchor = Anchor::open_unchecked(&place.anchor(), None).unwrap();
        let folder = StateFolder::open(&place.temp.path().join("state")).unwrap().with_anchor(Some(anchor));
        folder.anchor_anew().unwrap();
        drop(folder);
        assert!(place.load().is_ok());
    }
}

#[test]
fn an_anchor_that_cannot_be_written_stops_the_tpm_and_not_the_next_start() {
    let place = Place::new(None);
    place.store(b"one");
    let read_only = File::open(place.anchor()).unwrap();
    let folder = StateFolder::open(&place.temp.path().join("state")).unwrap();
    let folder = folder.with_anchor(Some(Anchor::shared(read_only.into())));
    assert!(matches!(folder.store(V2, PERMANENT, b"two"), Err(StateError::Anchor(AnchorError::Write(_)))));
    drop(folder);
    assert_eq!(place.load().unwrap().as_deref(), Some(&b"two"[..]));
}
