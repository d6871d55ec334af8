//! Reading an exported state.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use anyhow::{Context, bail};

use crate::state::archive::{self, MAX_SIZE};
use crate::state::{StateFile, new_file};

/// The state files in an exported state.
pub(super) fn read(path: &Path) -> anyhow::Result<Vec<StateFile>> {
    new_file::warn_of_unfinished(path);
    let mut bytes = Vec::new();
    let file = File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
    let read = file.take((MAX_SIZE as u64).saturating_add(1)).read_to_end(&mut bytes);
    if read.with_context(|| format!("cannot read {}", path.display()))? > MAX_SIZE {
        bail!("{} is larger than any exported state: {MAX_SIZE} bytes", path.display());
    }
    archive::decode(&bytes).with_context(|| format!("{} is refused", path.display()))
}
