//! A state that comes from swtpm's folder or goes into one, for `state import` and `state export`.

use std::path::Path;

use anyhow::Context;

use crate::state::swtpm::{KeySource, SwtpmFolder};
use crate::state::{Contents, StateFolder};

/// Reads the state of the swtpm folder `from` and hands it to `put`; the folder stays locked until that is done.
pub(super) fn import(
    from: &Path,
    key: Option<&KeySource>,
    put: impl FnOnce(&Contents) -> anyhow::Result<StateFolder>,
) -> anyhow::Result<()> {
    let key = key.map(KeySource::read).transpose()?;
    let swtpm = SwtpmFolder::open(from)?;
    let state = swtpm.read(key.as_ref())?;
    let folder = put(&state.contents)?;
    let from = from.display();
    if state.was_running {
        log::warn!(
            "the VM of {from} was suspended or saved, not shut down: what its TPM had in memory is not moved, and the VM \
             will find a TPM that was reset; to keep it, let the VM go on with swtpm, shut it down, and import again with \
             --force"
        );
    }
    if key.is_some() && folder.key().is_none() {
        log::warn!("swtpm had its state encrypted, and here it is not sealed: see --key-file and `state rekey`");
    }
    log::info!("the TPM is moved in; {from} still has a copy: never run both, and delete that one when all is well");
    Ok(())
}

/// Writes the state of `folder` into the swtpm folder `to`.
pub(super) fn export(folder: &StateFolder, to: &Path, key: Option<&KeySource>, force: bool) -> anyhow::Result<()> {
    let key = key.map(KeySource::read).transpose()?;
    let contents = folder.contents()?;
    SwtpmFolder::create(to)?.write(&contents, key.as_ref(), force).context("the TPM is not moved out")?;
    let to = to.display();
    if key.is_none() {
        log::warn!("the state is not encrypted: {to} holds the TPM's secrets for whoever can read it; see --swtpm-key");
    }
    log::info!("the TPM is in {to}, and still here: never run both, and delete this one when all is well");
    Ok(())
}
