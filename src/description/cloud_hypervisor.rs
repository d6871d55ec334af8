//! Cloud Hypervisor's command line for the device.

use super::{Description, DescriptionError};

/// What Cloud Hypervisor's options take for something else than a part of a path.
const SYNTAX: [char; 4] = [',', '"', '[', ']'];

/// The arguments that attach the device. Memory has to be shared and the initramfs to begin with the archive; both are
/// parts of options that say more, so they are left to the user.
pub(super) fn arguments(description: &Description) -> Result<Vec<String>, DescriptionError> {
    let socket = &description.socket_path;
    if socket.contains(SYNTAX) {
        return Err(DescriptionError::CloudHypervisorPath(socket.clone()));
    }
    let slot = description.device.placement().address().slot();
    Ok(vec!["--user-device".to_owned(), format!("socket={socket},pci_device_id={slot}")])
}
