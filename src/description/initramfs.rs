//! An archive in front of the initramfs, from which Linux installs ACPI tables that the VMM has not added: cpio in the form
//! "newc", uncompressed (Linux, `Documentation/admin-guide/acpi/initrd_table_override.rst`; the form is in
//! `Documentation/driver-api/early-userspace/buffer-format.rst`).

use crate::acpi::Table;

/// The file with the archive.
pub(super) const FILE: &str = "acpi-initrd.cpio";

/// Where Linux looks for tables.
const FOLDERS: [&str; 3] = ["kernel", "kernel/firmware", "kernel/firmware/acpi"];

const MODE_FOLDER: u32 = 0o040_755;
const MODE_FILE: u32 = 0o100_644;
/// Ends an archive.
const TRAILER: &str = "TRAILER!!!";
/// What follows a header and name, and a file's bytes, begins at a multiple of this. So may another archive.
const ALIGNMENT: usize = 4;

/// The archive with `table`. Linux unpacks it later with the rest of the initramfs, so it has the folders too.
pub(super) fn archive(table: &Table) -> Vec<u8> {
    let [.., folder] = FOLDERS;
    let path = format!("{folder}/{}", table.file_name);
    let folders = FOLDERS.map(|folder| (folder, MODE_FOLDER, &[][..]));
    let file = (path.as_str(), MODE_FILE, table.bytes.as_slice());
    let mut archive = Vec::new();
    for (number, (name, mode, contents)) in (1..).zip(folders.into_iter().chain([file])) {
        push(&mut archive, number, mode, name, contents);
    }
    push(&mut archive, 0, 0, TRAILER, &[]);
    archive
}

/// Adds a file or folder of user 0 and time 0: the archive is the same each time.
fn push(archive: &mut Vec<u8>, inode: u32, mode: u32, name: &str, contents: &[u8]) {
    let [file_size, name_size] = [contents.len(), name.len() + 1].map(|size| u32::try_from(size).unwrap_or(u32::MAX));
    let links = if mode == MODE_FOLDER { 2 } else { 1 };
    let (no_user, no_group, no_time, no_device, no_checksum) = (0, 0, 0, 0, 0);
    archive.extend(b"070701");
    for field in [
        inode,
        mode,
        no_user,
        no_group,
        links,
        no_time,
        file_size,
        no_device,
        no_device,
        no_device,
        no_device,
        name_size,
        no_checksum,
    ] {
        archive.extend(format!("{field:08x}").bytes());
    }
    archive.extend(name.bytes().chain([0]));
    pad(archive);
    archive.extend(contents);
    pad(archive);
}

fn pad(archive: &mut Vec<u8>) {
    archive.resize(archive.len().next_multiple_of(ALIGNMENT), 0);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_file_begins_at_a_multiple_of_4_and_so_does_what_follows_the_archive() {
        for length in 0..8 {
            let table = Table { signature: "SSDT", file_name: "ssdt.aml", bytes: vec![0x5a; length] };
            let archive = archive(&table);
            let headers: Vec<_> = (0..archive.len()).filter(|at| archive[*at..].starts_with(b"070701")).collect();
            assert_eq!(headers.len(), 5);
            assert!(headers.iter().chain([&archive.len()]).all(|at| at % 4 == 0), "{headers:?}");
        }
    }
}
