//! The flags that protect stored state: its key, and what keeps older state out.

use std::fs::File;
use std::os::fd::{OwnedFd, RawFd};
use std::path::{Path, PathBuf};

use anyhow::bail;
use clap::Args;

use super::inherited;
use crate::state::{Anchor, Key, StateFolder};

/// How the state in a folder is protected.
#[derive(Clone, Debug, Default, PartialEq, Eq, Args)]
pub(super) struct KeyArgs {
    /// File with the key that seals the state: 32 to 4096 random bytes
    #[arg(long, value_name = "PATH", conflicts_with = "key_fd")]
    key_file: Option<PathBuf>,

    /// Inherited descriptor to read that key from, to its end
    #[arg(long, value_name = "FD", value_parser = inherited::number())]
    key_fd: Option<RawFd>,

    /// File that knows how new the state is, and refuses an older one. It belongs to another place than the
    /// state and its backups, and is created if it is missing
    #[arg(long, value_name = "PATH")]
    rollback_anchor: Option<PathBuf>,
}

impl KeyArgs {
    /// The first flag that was given, if any.
    pub(super) fn given(&self) -> Option<&'static str> {
        let Self { key_file, key_fd, rollback_anchor } = self;
        let flags = [
            (key_file.is_some(), "--key-file"),
            (key_fd.is_some(), "--key-fd"),
            (rollback_anchor.is_some(), "--rollback-anchor"),
        ];
        flags.into_iter().find_map(|(given, flag)| given.then_some(flag))
    }

    /// The file with the key, if it is one.
    pub(super) fn file(&self) -> Option<&Path> {
        self.key_file.as_deref()
    }

    /// The rollback anchor.
    pub(super) fn anchor(&self) -> Option<&Path> {
        self.rollback_anchor.as_deref()
    }

    /// Whether there is to be a rollback anchor.
    pub(super) fn has_anchor(&self) -> bool {
        self.rollback_anchor.is_some()
    }

    /// Refuses a rollback anchor that would be made now: for who only looks.
    pub(super) fn needs_existing_anchor(&self) -> anyhow::Result<()> {
        match &self.rollback_anchor {
            Some(path) if !path.exists() => bail!("the rollback anchor {} is not there", path.display()),
            _ => Ok(()),
        }
    }

    /// The number of the descriptor to read the key from.
    pub(super) fn descriptor(&self) -> Option<RawFd> {
        self.key_fd
    }

    /// Takes over that descriptor without reading it.
    pub(super) fn take_descriptor(&self) -> anyhow::Result<Option<OwnedFd>> {
        self.key_fd.map(|fd| inherited::take("--key-fd", fd)).transpose()
    }

    /// Reads the key, if one was given. To be called once.
    pub(super) fn key(&self) -> anyhow::Result<Option<Key>> {
        read(self.key_file.as_deref(), "--key-fd", self.key_fd)
    }

    /// The folder with its key and its rollback anchor, which has to be whole.
    pub(super) fn protect(&self, folder: StateFolder) -> anyhow::Result<StateFolder> {
        let folder = folder.with_key(self.key()?);
        let anchor = self.rollback_anchor.as_deref();
        if anchor.is_some_and(|path| !path.exists()) {
            // One that is made with a wrong key would keep the right one out.
            folder.check_key()?;
        }
        let anchor = anchor.map(|path| Anchor::open(path, folder.key())).transpose()?;
        Ok(folder.with_anchor(anchor))
    }

    /// As [`protect`](Self::protect), whatever the rollback anchor holds: for who will make it anew.
    pub(super) fn protect_with_any_anchor(&self, folder: StateFolder) -> anyhow::Result<StateFolder> {
        let folder = folder.with_key(self.key()?);
        let anchor = self.rollback_anchor.as_deref();
        let anchor = anchor.map(|path| Anchor::open_unchecked(path, folder.key())).transpose()?;
        Ok(folder.with_anchor(anchor))
    }
}

/// A key to change to.
#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
pub(super) struct NewKeyArgs {
    /// File with the key to seal the state with from now on: 32 to 4096 random bytes
    #[arg(long, value_name = "PATH")]
    new_key_file: Option<PathBuf>,

    /// Inherited descriptor to read that key from, to its end
    #[arg(long, value_name = "FD", value_parser = inherited::number())]
    new_key_fd: Option<RawFd>,

    /// Leave the state unsealed from now on
    #[arg(long)]
    plain: bool,
}

impl NewKeyArgs {
    /// Reads the key, unless the state is to be plain. To be called once.
    pub(super) fn key(&self, old: &KeyArgs) -> anyhow::Result<Option<Key>> {
        if self.new_key_fd.is_some() && self.new_key_fd == old.key_fd {
            bail!("--key-fd and --new-key-fd are the same descriptor: each key needs one of its own");
        }
        read(self.new_key_file.as_deref(), "--new-key-fd", self.new_key_fd)
    }
}

fn read(file: Option<&Path>, flag: &str, fd: Option<RawFd>) -> anyhow::Result<Option<Key>> {
    Ok(match (file, fd) {
        (Some(path), _) => Some(Key::read(path)?),
        (None, Some(fd)) => Some(Key::read_from(File::from(inherited::take(flag, fd)?), format!("{flag}={fd}"))?),
        (None, None) => None,
    })
}
