//! A TPM of the host: `/dev/tpm0`, or `/dev/tpmrm0` behind the kernel's resource manager.
//!
//! The device is held by a worker process, since whoever polls, reads or closes it may wait in the kernel for as long as
//! the chip works on a command. The server keeps what must not get lost when a worker is ended:
//!
//! - of a device that opens only once, the open file. So nobody else can take the TPM while a worker is replaced. To close
//!   it never waits: Linux waits for commands that were queued by a non-blocking write, and the worker's writes block;
//!   while one of them runs, the worker itself has the file open, and closes it last.
//! - of a resource manager, only a path. Its sessions are flushed when the file is closed, which waits for the chip; so
//!   each worker opens a file of its own, and closes it.

mod cancel_file;
mod open;
mod probe;

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

pub use cancel_file::CancelFileError;
pub use open::{OpenError, version_by_sysfs};
pub use probe::{PROBE_LIMIT, ProbeError, properties};

use super::worker::{Task, WorkerBackend};
use crate::tpm::TpmVersion;
use crate::worker::frame::{DeviceProperties, Request};
use crate::worker::{FileNumbers, Holding};
use open::{Device, Kind};

/// A TPM of the host as a backend.
pub type Passthrough = WorkerBackend<PassthroughTpm>;

/// A TPM of the host that is open, and of which nothing else is known yet.
#[derive(Debug)]
pub struct HostTpm {
    name: String,
    kind: Kind,
    device: OwnedFd,
    cancel: Option<OwnedFd>,
}

/// A TPM of the host that has answered.
#[derive(Debug)]
pub struct PassthroughTpm {
    host: HostTpm,
    properties: DeviceProperties,
}

/// Why a TPM of the host cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum HostTpmError {
    /// Its device.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The cancel file that was named.
    #[error(transparent)]
    CancelFile(#[from] CancelFileError),
}

impl HostTpm {
    /// Opens a TPM device and the file that cancels its commands: the one given, or the kernel's if there is one.
    ///
    /// # Errors
    /// [`HostTpmError`]. That the kernel has no cancel file is none: it has none for most chips.
    pub fn open(path: &Path, cancel_path: Option<&Path>) -> Result<Self, HostTpmError> {
        let Device { name, kind, descriptor } = open::open(path)?;
        let cancel = match cancel_path {
            Some(path) => Some(cancel_file::open(path)?),
            None => cancel_file::find(Path::new("/sys"), &name),
        };
        Ok(Self { name: path.display().to_string(), kind, device: descriptor, cancel })
    }

    /// A TPM by an open descriptor of its device, and one of its cancel file. The device must not be non-blocking.
    #[must_use]
    pub fn from_descriptors(device: OwnedFd, cancel: Option<OwnedFd>) -> Self {
        Self { name: "the given device".to_owned(), kind: Kind::Exclusive, device, cancel }
    }

    /// What its workers hold.
    ///
    /// # Errors
    /// If the device cannot be looked at.
    pub fn holding(&self) -> nix::Result<Holding> {
        FileNumbers::of(&self.device).map(Holding::Device)
    }

    fn start(&self, properties: Option<DeviceProperties>) -> (Request<'_>, Vec<BorrowedFd<'_>>) {
        let descriptors = [Some(&self.device), self.cancel.as_ref()].into_iter().flatten().map(AsFd::as_fd).collect();
        (Request::StartDevice(properties), descriptors)
    }
}

impl PassthroughTpm {
    /// The TPM's version.
    #[must_use]
    pub fn version(&self) -> TpmVersion {
        self.properties.version
    }

    /// Bytes in the largest command that the TPM takes.
    #[must_use]
    pub fn command_size(&self) -> usize {
        self.properties.command_size.into()
    }

    /// Says in the log what is different from a TPM of the VM's own.
    pub fn warn(&self) {
        let HostTpm { name, kind, cancel, .. } = &self.host;
        log::info!("{name}: TPM {} that takes commands of {} bytes", self.version(), self.command_size());
        log::warn!(
            "{name} is the host's TPM: it is not reset with the VM, its PCRs are shared with the host, and what the guest \
             does to it stays"
        );
        match kind {
            Kind::Exclusive => {}
            Kind::Shared => log::warn!(
                "{name} shares the TPM with other programs: the guest sees virtual handles, its sessions and transient \
                 objects end with each reset, and NV memory, hierarchies and dictionary attack lockout are everybody's"
            ),
        }
        if cancel.is_none() {
            log::info!("{name} has no cancel file: a command of the guest runs to its end");
        }
    }
}

impl Task for PassthroughTpm {
    fn start(&self) -> (Request<'_>, Vec<BorrowedFd<'_>>) {
        self.host.start(Some(self.properties))
    }

    fn about(&self) -> Option<String> {
        let through = match self.host.kind {
            Kind::Exclusive => "",
            Kind::Shared => ", shared with other programs",
        };
        Some(format!("{}, commands of at most {} bytes{through}", self.host.name, self.command_size()))
    }

    /// Most chips have no cancel file, and not every driver acts on it.
    fn obeys_cancel(&self) -> bool {
        false
    }
}

/// The device of the resource manager beside an exclusive one, if it is there.
fn shared_sibling(path: &Path) -> Option<PathBuf> {
    let number = path.file_name()?.to_str()?.strip_prefix("tpm")?;
    let shared = path.with_file_name(format!("tpmrm{number}"));
    (number.bytes().all(|byte| byte.is_ascii_digit()) && shared.exists()).then_some(shared)
}
