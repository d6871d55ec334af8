//! What goes through the command buffer in the shared memory: a command is copied out of it once, a response into it.

mod state;

use zeroize::{Zeroize, Zeroizing};

use crate::bar_map::{COMMAND_BUFFER, CONTROL_AREA, Window};
use crate::frontend::Memory;
use crate::tpm::{BUFFER_SIZE, Fault, HEADER_SIZE, Header, TpmVersion, fault_response};
pub use state::BufferStateError;
pub(super) use state::{export, import};

const _: () = assert!(BUFFER_SIZE == COMMAND_BUFFER.length as usize, "the buffer takes what a TPM takes");
const _: () = assert!(CONTROL_AREA.length == COMMAND_BUFFER.length, "both are one page");

/// Our own copy of a command, or nothing. The guest may go on to write to its buffer.
#[derive(Clone, Debug)]
pub(super) struct Command(Zeroizing<Vec<u8>>);

impl Command {
    /// Nothing, with room for any command.
    pub(super) fn none() -> Self {
        Self(Zeroizing::new(Vec::with_capacity(BUFFER_SIZE)))
    }

    /// Copies the command in the buffer, all in one. Its size is what the size field of the copy says; `false`, and
    /// nothing, if no command has that size.
    pub(super) fn copy(&mut self, memory: &impl Memory) -> bool {
        self.0.resize(BUFFER_SIZE, 0);
        memory.read(COMMAND_BUFFER.offset, &mut self.0);
        let size = Header::parse(&self.0).and_then(|header| usize::try_from(header.size).ok());
        match size.filter(|size| (HEADER_SIZE..=BUFFER_SIZE).contains(size)) {
            Some(size) => self.0.truncate(size),
            None => self.wipe(),
        }
        !self.0.is_empty()
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.0
    }

    /// Nothing is left of it.
    pub(super) fn wipe(&mut self) {
        self.0.zeroize();
    }
}

/// Puts the response into the buffer, or a failure for one that is not whole.
pub(super) fn respond(memory: &mut impl Memory, response: &[u8]) {
    if response.len() <= BUFFER_SIZE && Header::of_whole(response).is_some() {
        memory.write(COMMAND_BUFFER.offset, response);
    } else {
        respond_fault(memory, Fault::Failure);
    }
}

/// Puts the response that reports `fault` into the buffer.
pub(super) fn respond_fault(memory: &mut impl Memory, fault: Fault) {
    memory.write(COMMAND_BUFFER.offset, &fault_response(TpmVersion::V2_0, fault));
}

/// Fills the window, one of the two pages, with zeros.
pub(super) fn clear(memory: &mut impl Memory, page: Window) {
    memory.write(page.offset, &[0; BUFFER_SIZE]);
}

/// The address of the buffer when BAR0 is at `bar0_address`; 0 when that is nowhere.
pub(super) fn address(bar0_address: u32) -> u64 {
    match bar0_address {
        0 => 0,
        address => u64::from(address).saturating_add(COMMAND_BUFFER.offset.into()),
    }
}
