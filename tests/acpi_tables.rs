//! The description's files against the golden ones, and the ACPI tables against `iasl`, the compiler and disassembler of
//! ACPICA, whose interpreter Linux and others use.
//!
//! After a change that is meant, refresh the golden files with
//!
//! ```sh
//! UPDATE_GOLDEN=1 cargo test --test acpi_tables
//! ```
//!
//! and review the difference; each `ssdt.asl` is written by hand and has to follow.

mod acpi;

use std::env;
use std::fs;
use std::path::Path;

use acpi::{VARIANTS, acpica, compile, table};
use vfio_user_tpm::acpi::{Vmm, tables};

/// Bytes in front of a table's body.
const HEADER: usize = 36;
/// The header's first part, up to the length.
const SIGNATURE: std::ops::Range<usize> = 0..4;
/// Revision of the table's format. The checksum behind it differs with the creator.
const REVISION: usize = 8;
/// The OEM's names and revision. The creator's, behind them, differ.
const OEM: std::ops::Range<usize> = 10..28;

/// The table's parts that don't say which program made it.
fn significant(table: &[u8]) -> (&[u8], u8, &[u8], &[u8]) {
    let body = &table[HEADER..];
    (&table[SIGNATURE], table[REVISION], &table[OEM], without_externals(body))
}

/// Compilers record `External ()` declarations in front of the terms, in `If (Zero) {}`: for disassemblers only.
fn without_externals(body: &[u8]) -> &[u8] {
    const IF_ZERO_EXTERNAL: (u8, [u8; 2]) = (0xa0, [0x00, 0x15]);
    match body {
        // One byte of package length, which counts itself.
        [if_op, length @ 0..0x40, predicate, external_op, ..]
            if (*if_op, [*predicate, *external_op]) == IF_ZERO_EXTERNAL =>
        {
            &body[1 + usize::from(*length)..]
        }
        _ => body,
    }
}

#[test]
fn the_files_and_formats_are_the_golden_ones() {
    for variant in VARIANTS {
        let (description, folder) = (variant.description(), Path::new("/run/vm/tpm"));
        let files = description.files(folder).unwrap().into_iter().map(|file| (file.name, file.contents));
        let formats = match variant.machine.vmm() {
            Vmm::Qemu => vec![
                ("qemu-args.txt", description.qemu_command_line(folder).unwrap()),
                ("libvirt.xml", description.libvirt_xml(folder).unwrap()),
            ],
            Vmm::CloudHypervisor => {
                vec![("cloud-hypervisor-args.txt", description.cloud_hypervisor_command_line().unwrap())]
            }
        };
        let formats = formats.into_iter().map(|(name, text)| (name, text.into_bytes()));
        for (name, contents) in files.chain(formats) {
            let path = variant.golden(name);
            if env::var_os("UPDATE_GOLDEN").is_some() {
                fs::write(&path, &contents).unwrap();
            }
            let expected = fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
            assert!(
                contents == expected,
                "{} is no longer the golden one. If that is meant: UPDATE_GOLDEN=1 cargo test --test acpi_tables\n{}",
                path.display(),
                String::from_utf8_lossy(&contents)
            );
        }
    }
}

#[test]
fn the_ssdt_is_what_its_source_form_compiles_to() {
    for variant in VARIANTS {
        let folder = tempfile::tempdir().unwrap();
        fs::copy(variant.golden("ssdt.asl"), folder.path().join("ssdt.asl")).unwrap();
        let compiled = compile(folder.path(), "ssdt.asl");
        assert_eq!(significant(&table(&variant.device(), "ssdt.aml")), significant(&compiled), "{}", variant.name);
    }
}

#[test]
fn tables_survive_disassembly_and_recompilation() {
    for table in VARIANTS.iter().flat_map(|variant| tables(&variant.device())) {
        let folder = tempfile::tempdir().unwrap();
        let file_name = table.file_name;
        fs::write(folder.path().join(file_name), &table.bytes).unwrap();
        let (said, success) = acpica("iasl", folder.path(), &["-d", file_name]);
        assert!(success && !said.contains("rror"), "iasl -d {file_name}:\n{said}");
        let recompiled = compile(folder.path(), &file_name.replace(".aml", ".dsl"));
        assert_eq!(significant(&recompiled), significant(&table.bytes), "{file_name}");
    }
}
