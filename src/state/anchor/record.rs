//! What a rollback anchor remembers, and its form in one slot of the file. Pure.
//!
//! | offset | size | content                                                                              |
//! |--------|------|--------------------------------------------------------------------------------------|
//! | 0      | 8    | magic `VFUTPMRA`                                                                     |
//! | 8      | 4    | format version: 1                                                                    |
//! | 12     | 1    | 0: written without a key; 1: with one                                                |
//! | 13     | 3    | zeros                                                                                |
//! | 16     | 8    | sequence: grows by one with each write; the slot's number is its lowest bit          |
//! | 24     | 16   | identity of the state; zeros: of none yet                                            |
//! | 40     | 96   | for each blob - TPM 1.2 permanent, savestate, volatile, TPM 2.0 the same - 16 bytes: generation (8), presence (1: 0 never seen, 1 there, 2 being deleted, 3 deleted), zeros (7) |
//! | 136    | 32   | with a key: HMAC-SHA256 over the bytes 0 to 135; without: zeros                      |
//! | 168    | 32   | SHA-256 over the bytes 0 to 167                                                      |
//!
//! Numbers are little-endian.

use sha2::{Digest, Sha256};
use thiserror::Error;
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::state::file::{Identity, Label};
use crate::state::{Blob, Key};
use crate::tpm::TpmVersion;

/// Bytes in a slot.
pub(super) const SLOT_SIZE: usize = size_of::<Slot>();

const MAGIC: [u8; 8] = *b"VFUTPMRA";
const FORMAT: u32 = 1;

#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Fields {
    magic: [u8; 8],
    format: U32,
    keyed: u8,
    zero: [u8; 3],
    sequence: U64,
    identity: [u8; 16],
    blobs: [[RawEntry; 3]; 2],
}

#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawEntry {
    generation: U64,
    presence: u8,
    zero: [u8; 7],
}

#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Slot {
    fields: Fields,
    code: [u8; 32],
    checksum: [u8; 32],
}

/// Why the anchor does not let a state be used.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum Rollback {
    /// The state is older.
    #[error(
        "it is of generation {found}, and the rollback anchor has seen generation {known}: an older state was put in its \
         place"
    )]
    Older {
        /// Generation of the blob that is there.
        found: u64,
        /// Generation that the anchor knows.
        known: u64,
    },
    /// It was deleted by the TPM, and is there again.
    #[error("the rollback anchor knows that the TPM has deleted it: an older state was put in its place")]
    Deleted,
    /// It is not there.
    #[error("it is missing, and the rollback anchor has seen its generation {known}")]
    Missing {
        /// Generation that the anchor knows.
        known: u64,
    },
    /// It is another state.
    #[error("it belongs to another state than the rollback anchor, which is for the state {known}")]
    OtherState {
        /// The state that the anchor is for.
        known: Identity,
    },
}

/// Why a slot's record is not to be believed.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum RecordError {
    /// Neither slot holds a whole record.
    #[error("it is damaged, or no rollback anchor of vfio-user-tpm")]
    Damaged,
    /// Written by a later version of this program.
    #[error("its format is version {0}, and this program knows version 1: use a newer vfio-user-tpm")]
    Format(u32),
    /// Made with a key.
    #[error("it was written with a key, and none was given: give --key-file or --key-fd")]
    NoKey,
    /// Made without a key.
    #[error("it was written without a key, and one was given: let `vfio-user-tpm state anchor --force` write it anew")]
    NotKeyed,
    /// Made with another key.
    #[error(
        "it was written with another key than the one given (or somebody has changed it on purpose): if the state was \
         moved to a new key, `vfio-user-tpm state rekey` with --rollback-anchor, run again, finishes the move"
    )]
    OtherKey,
}

/// Whether a blob is there, as far as the anchor knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Presence {
    NeverSeen = 0,
    There = 1,
    BeingDeleted = 2,
    Deleted = 3,
}

impl Presence {
    const ALL: [Self; 4] = [Self::NeverSeen, Self::There, Self::BeingDeleted, Self::Deleted];
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Entry {
    generation: u64,
    presence: Presence,
}

/// What the anchor remembers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Record {
    pub(super) sequence: u64,
    pub(super) identity: Option<Identity>,
    entries: [[Entry; 3]; 2],
}

impl Record {
    /// One that has seen nothing.
    pub(super) fn new() -> Self {
        let nothing = Entry { generation: 0, presence: Presence::NeverSeen };
        Self { sequence: 0, identity: None, entries: [[nothing; 3]; 2] }
    }

    /// Compares with what was read of a blob (`None`: it is not there), and takes up what is newer.
    pub(super) fn observe(&mut self, version: TpmVersion, blob: Blob, label: Option<&Label>) -> Result<(), Rollback> {
        let Entry { generation: known, presence } = *self.entry(version, blob);
        let Some(label) = label else {
            match presence {
                Presence::There => return Err(Rollback::Missing { known }),
                Presence::BeingDeleted => self.entry(version, blob).presence = Presence::Deleted,
                Presence::NeverSeen | Presence::Deleted => {}
            }
            return Ok(());
        };
        match self.identity {
            Some(known) if label.identity != Some(known) => return Err(Rollback::OtherState { known }),
            // A file of the old format says of itself too little to be remembered. The next write changes that.
            _ if label.identity.is_none() => return Ok(()),
            _ => {}
        }
        let found = label.generation;
        match presence {
            Presence::Deleted if found <= known => return Err(Rollback::Deleted),
            Presence::There | Presence::BeingDeleted if found < known => {
                return Err(Rollback::Older { found, known });
            }
            _ => {}
        }
        if presence != Presence::NeverSeen && found > known.saturating_add(1) {
            log::warn!(
                "the {blob} state of TPM {version} is of generation {found}, and the rollback anchor has seen {known}: \
                 it was written without the anchor meanwhile"
            );
        }
        self.written(label);
        Ok(())
    }

    /// Notes a blob that was written.
    pub(super) fn written(&mut self, label: &Label) {
        self.identity = label.identity;
        *self.entry(label.version, label.blob) = Entry { generation: label.generation, presence: Presence::There };
    }

    /// Notes that a blob is about to be deleted: until [`observe`](Self::observe) says more, it may be there or not.
    pub(super) fn deleting(&mut self, version: TpmVersion, blob: Blob) {
        let entry = self.entry(version, blob);
        if entry.presence == Presence::There {
            entry.presence = Presence::BeingDeleted;
        }
    }

    /// The last generation of a blob that was seen; 0 if none was.
    pub(super) fn generation(&mut self, version: TpmVersion, blob: Blob) -> u64 {
        self.entry(version, blob).generation
    }

    fn entry(&mut self, version: TpmVersion, blob: Blob) -> &mut Entry {
        let [v1_2, v2_0] = &mut self.entries;
        let [permanent, save_state, volatile] = match version {
            TpmVersion::V1_2 => v1_2,
            TpmVersion::V2_0 => v2_0,
        };
        match blob {
            Blob::Permanent => permanent,
            Blob::SaveState => save_state,
            Blob::Volatile => volatile,
        }
    }

    /// The bytes of the slot with this record.
    pub(super) fn encode(&self, key: Option<&Key>) -> [u8; SLOT_SIZE] {
        let raw = |entry: Entry| RawEntry {
            generation: entry.generation.into(),
            presence: entry.presence as u8,
            zero: [0; 7],
        };
        let fields = Fields {
            magic: MAGIC,
            format: U32::new(FORMAT),
            keyed: key.is_some().into(),
            zero: [0; 3],
            sequence: self.sequence.into(),
            identity: self.identity.map_or([0; 16], Identity::bytes),
            blobs: self.entries.map(|entries| entries.map(raw)),
        };
        let code = key.map_or([0; 32], |key| key.authenticate(fields.as_bytes()));
        let slot = Slot { fields, code, checksum: checksum(&fields, &code) };
        zerocopy::transmute!(slot)
    }

    /// The sequence of the newest whole record, whoever wrote it; 0 if there is none.
    pub(super) fn newest_sequence(slots: &[[u8; SLOT_SIZE]; 2]) -> u64 {
        newest_slot(slots).map_or(0, |slot| slot.fields.sequence.get())
    }

    /// The newest whole record of the two slots.
    pub(super) fn newest(slots: &[[u8; SLOT_SIZE]; 2], key: Option<&Key>) -> Result<Self, RecordError> {
        // The newest is found before its code is looked at: after a change of keys the other may be from before.
        let slot = newest_slot(slots).ok_or(RecordError::Damaged)?;
        let fields = &slot.fields;
        if fields.format.get() != FORMAT {
            return Err(RecordError::Format(fields.format.get()));
        }
        match (fields.keyed, key) {
            (0, None) => {}
            (1, Some(key)) if key.is_authentic(fields.as_bytes(), &slot.code) => {}
            (1, Some(_)) => return Err(RecordError::OtherKey),
            (1, None) => return Err(RecordError::NoKey),
            (0, Some(_)) => return Err(RecordError::NotKeyed),
            _ => return Err(RecordError::Damaged),
        }
        let mut record = Self::new();
        record.sequence = fields.sequence.get();
        record.identity = Identity::new(fields.identity);
        let raw = fields.blobs.iter().flatten();
        for (entry, raw) in record.entries.iter_mut().flatten().zip(raw) {
            let presence = Presence::ALL.into_iter().find(|&presence| presence as u8 == raw.presence);
            *entry = Entry { generation: raw.generation.get(), presence: presence.ok_or(RecordError::Damaged)? };
        }
        Ok(record)
    }
}

/// One slot may be half-written, or never have been.
fn newest_slot(slots: &[[u8; SLOT_SIZE]; 2]) -> Option<Slot> {
    let slots = slots.map(|bytes| -> Slot { zerocopy::transmute!(bytes) });
    let whole = slots.into_iter().zip(0..).filter(|(slot, number)| {
        slot.fields.magic == MAGIC
            && checksum(&slot.fields, &slot.code) == slot.checksum
            && slot.fields.sequence.get() % 2 == *number
    });
    whole.map(|(slot, _)| slot).max_by_key(|slot| slot.fields.sequence.get())
}

fn checksum(fields: &Fields, code: &[u8; 32]) -> [u8; 32] {
    Sha256::new().chain_update(fields.as_bytes()).chain_update(code).finalize().into()
}

#[cfg(test)]
mod tests;
