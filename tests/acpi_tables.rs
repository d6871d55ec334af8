//! The description's files against the golden ones, and the ACPI tables against ACPICA, the interpreter that Linux and
//! others use: its compiler and disassembler `iasl`, and `acpiexec`, which runs AML.
//!
//! After a change that is meant, refresh the golden files with
//!
//! ```sh
//! UPDATE_GOLDEN=1 cargo test --test acpi_tables
//! ```
//!
//! and review the difference; each `ssdt.asl` is written by hand and has to follow.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use tempfile::TempDir;
use vfio_user_tpm::acpi::{self, BehindBridge, Interface, Machine, PciAddress, Placement, TpmDevice};
use vfio_user_tpm::description::{Config, Description, Source};
use vfio_user_tpm::device;
use vfio_user_tpm::tpm::TpmVersion;

/// Bytes in front of a table's body.
const HEADER: usize = 36;
/// The header's first part, up to the length.
const SIGNATURE: std::ops::Range<usize> = 0..4;
/// Revision of the table's format. The checksum behind it differs with the creator.
const REVISION: usize = 8;
/// The OEM's names and revision. The creator's, behind them, differ.
const OEM: std::ops::Range<usize> = 10..28;

const VENDOR: u16 = device::VENDOR_ID;
const DEVICE: u16 = device::DEVICE_ID;
const OUR_ID: u32 = 0x5450_7666;

/// A description whose files are golden, in the folder of its name.
struct Variant {
    name: &'static str,
    machine: Machine,
    path: &'static str,
    bridge_id: Option<&'static str>,
    version: TpmVersion,
    source: Source,
}

const VARIANTS: [Variant; 3] = [
    Variant {
        name: "q35-tpm-2.0",
        machine: Machine::Q35,
        path: "05.0",
        bridge_id: None,
        version: TpmVersion::V2_0,
        source: Source::Embedded,
    },
    Variant {
        name: "pc-tpm-1.2",
        machine: Machine::Pc,
        path: "05.0",
        bridge_id: None,
        version: TpmVersion::V1_2,
        source: Source::Ephemeral,
    },
    Variant {
        name: "behind-root-port",
        machine: Machine::Q35,
        path: "06.1/00.0",
        bridge_id: Some("rp0"),
        version: TpmVersion::V2_0,
        source: Source::Ephemeral,
    },
];

impl Variant {
    fn device(&self) -> TpmDevice {
        let consent = self.bridge_id.map(|id| BehindBridge { bridge_id: id.to_owned() });
        TpmDevice {
            placement: Placement::new(self.machine, self.path.parse().unwrap(), consent).unwrap(),
            identity: device::identity(VENDOR, DEVICE),
            interface: Interface::Tis,
            version: self.version,
        }
    }

    fn description(&self) -> Description {
        Description::new(Config {
            program_version: "0.0.0".to_owned(),
            device: self.device(),
            socket_path: "/run/vm/tpm.sock".into(),
            source: self.source,
        })
        .unwrap()
    }

    fn golden(&self, file_name: &str) -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(self.name).join(file_name)
    }
}

/// A 2.0 TPM in a q35.
fn device(path: &'static str) -> TpmDevice {
    Variant { path, bridge_id: path.contains('/').then_some("rp0"), ..VARIANTS[0] }.device()
}

fn ssdt(device: &TpmDevice) -> Vec<u8> {
    acpi::tables(device).into_iter().find(|table| table.file_name == "ssdt.aml").unwrap().bytes
}

/// Runs one of ACPICA's tools in `folder`; what it said, on both streams, and whether it succeeded.
fn acpica(tool: &str, folder: &Path, arguments: &[&str]) -> (String, bool) {
    let output = Command::new(tool)
        .args(arguments)
        .current_dir(folder)
        .stdin(Stdio::null())
        .output()
        .unwrap_or_else(|error| panic!("cannot run {tool} ({error}): install the Debian package acpica-tools"));
    let said = [output.stdout, output.stderr].map(|stream| String::from_utf8_lossy(&stream).into_owned()).concat();
    (said, output.status.success())
}

/// Compiles `source` in `folder`, without an error or a warning, to the table it returns.
fn compile(folder: &Path, source: &str) -> Vec<u8> {
    let (said, success) = acpica("iasl", folder, &["-p", "compiled", source]);
    assert!(success && said.contains("0 Errors, 0 Warnings"), "iasl {source}:\n{said}");
    fs::read(folder.join("compiled.aml")).unwrap()
}

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
        let formats = [
            ("qemu-args.txt", description.qemu_command_line(folder).unwrap().into_bytes()),
            ("libvirt.xml", description.libvirt_xml(folder).unwrap().into_bytes()),
        ];
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
        assert_eq!(significant(&ssdt(&variant.device())), significant(&compiled), "{}", variant.name);
    }
}

#[test]
fn tables_survive_disassembly_and_recompilation() {
    for table in VARIANTS.iter().flat_map(|variant| acpi::tables(&variant.device())) {
        let folder = tempfile::tempdir().unwrap();
        let file_name = table.file_name;
        fs::write(folder.path().join(file_name), &table.bytes).unwrap();
        let (said, success) = acpica("iasl", folder.path(), &["-d", file_name]);
        assert!(success && !said.contains("rror"), "iasl -d {file_name}:\n{said}");
        let recompiled = compile(folder.path(), &file_name.replace(".aml", ".dsl"));
        assert_eq!(significant(&recompiled), significant(&table.bytes), "{file_name}");
    }
}

/// A PCI device's configuration space, as far as the tables look at it.
#[derive(Clone, Copy)]
struct ConfigSpace {
    /// Vendor and device ID.
    id: u32,
    /// Command register, and status register above it.
    command: u32,
    bar0: u32,
}

const WORKING: ConfigSpace = ConfigSpace { id: OUR_ID, command: 0, bar0: 0xfeb4_0000 };

/// What an operating system sees when it looks for the TPM.
#[derive(Debug, PartialEq, Eq)]
struct Seen {
    sta: u64,
    /// The window in `_CRS`.
    base: u64,
    length: u64,
    /// [`ConfigSpace::command`] after that.
    command: u64,
}

/// Runs the SSDT in acpiexec, in a machine whose own table has the PCI device where `device` says.
fn evaluate(device: &TpmDevice, config: ConfigSpace) -> Seen {
    let folder: TempDir = tempfile::tempdir().unwrap();
    let placement = &device.placement;
    let node = placement.acpi_node();
    let name = node.rsplit('.').next().unwrap();
    let adr = |address: PciAddress| u32::from(address.devfn() >> 3) << 16 | u32::from(address.devfn() & 7);
    let (bridge, bridge_end) = placement.bridge().map_or_else(<(String, &str)>::default, |bridge| {
        (format!("Device (S{:02X}_) {{ Name (_ADR, {})", bridge.devfn(), adr(bridge)), "}")
    });
    let adr = adr(placement.address());
    let dsdt = format!(
        r#"
        DefinitionBlock ("", "DSDT", 2, "VFUTPM", "TEST", 1)
        {{
            External ({node}.TPM._CRS, MethodObj)
            Device (\_SB.PCI0)
            {{
                Name (_HID, EisaId ("PNP0A08"))
                Name (_BBN, Zero)
                {bridge}
                Device ({name})
                {{
                    Name (_ADR, {adr})
                    OperationRegion (TEST, PCI_Config, Zero, 0x40)
                    Field (TEST, DWordAcc, NoLock, Preserve) {{ TVID, 32, TCMD, 32, Offset (0x10), TBAR, 32 }}
                    Method (TSET, 3) {{ TVID = Arg0  TCMD = Arg1  TBAR = Arg2 }}
                    Method (TGET) {{ Return (TCMD) }}
                    Method (TCRS, 1, Serialized)
                    {{
                        Local0 = {node}.TPM._CRS ()
                        CreateDWordField (Local0, Arg0, PART)
                        Return (PART)
                    }}
                }}
                {bridge_end}
            }}
        }}"#
    );
    fs::write(folder.path().join("dsdt.asl"), dsdt).unwrap();
    compile(folder.path(), "dsdt.asl");
    fs::write(folder.path().join("ssdt.aml"), ssdt(device)).unwrap();

    let ConfigSpace { id, command, bar0 } = config;
    let commands = [
        format!("{node}.TSET {id:#x} {command:#x} {bar0:#x}"),
        format!("{node}.TPM_._STA"),
        format!("{node}.TCRS 4"),
        format!("{node}.TCRS 8"),
        format!("{node}.TGET"),
    ]
    .map(|command| format!("execute {command}"))
    .join(";");
    let (said, success) = acpica("acpiexec", folder.path(), &["-b", &commands, "compiled.aml", "ssdt.aml"]);
    assert!(success && !said.contains("Error") && !said.contains("Exception"), "{said}");
    let integers: Vec<u64> = said
        .lines()
        .filter_map(|line| line.trim().strip_prefix("[Integer] = "))
        .map(|digits| u64::from_str_radix(digits, 16).unwrap())
        .collect();
    let [sta, base, length, command] = integers[..] else { panic!("four values expected:\n{said}") };
    Seen { sta, base, length, command }
}

#[test]
fn crs_is_the_bars_window_and_memory_decoding_is_switched_on() {
    let seen = evaluate(&device("05.0"), WORKING);
    assert_eq!(seen, Seen { sta: 0x0f, base: 0xfeb4_0000, length: 0x5000, command: 0x2 });
}

#[test]
fn the_bits_that_say_the_bars_kind_are_no_part_of_the_address() {
    assert_eq!(evaluate(&device("05.0"), ConfigSpace { bar0: 0xfeb4_0008, ..WORKING }).base, 0xfeb4_0000);
}

#[test]
fn other_command_bits_and_the_status_register_stay_as_they_are() {
    assert_eq!(evaluate(&device("05.0"), ConfigSpace { command: 0xf010_0405, ..WORKING }).command, 0xf010_0407);
}

#[test]
fn without_an_address_there_is_no_tpm_and_decoding_stays_off() {
    let seen = evaluate(&device("05.0"), ConfigSpace { bar0: 0x8, ..WORKING });
    assert_eq!((seen.sta, seen.base, seen.command), (0, 0, 0));
}

#[test]
fn an_empty_slot_has_no_tpm() {
    let empty = ConfigSpace { id: u32::MAX, command: u32::MAX, bar0: u32::MAX };
    assert_eq!(evaluate(&device("05.0"), empty).sta, 0);
}

#[test]
fn another_device_in_the_slot_is_not_taken_for_the_tpm() {
    assert_eq!(evaluate(&device("05.0"), ConfigSpace { id: 0x10d3_8086, ..WORKING }).sta, 0);
}

#[test]
fn the_ssdt_follows_the_device_to_another_slot() {
    assert_eq!(evaluate(&device("1e.0"), WORKING).sta, 0x0f);
}

#[test]
fn each_variant_works_where_it_is() {
    for variant in VARIANTS {
        let seen = evaluate(&variant.device(), WORKING);
        assert_eq!((seen.sta, seen.base), (0x0f, 0xfeb4_0000), "{}", variant.name);
    }
}
