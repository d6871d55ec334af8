//! A played machine in which acpiexec runs the tables' methods: it keeps what they write to the PCI device's configuration
//! space, and has the TPM2 or TCPA table loaded as an operating system has.

use std::fs;

use vfio_user_tpm::acpi::{self, Interface, Machine, PciAddress, Table, TpmDevice};
use vfio_user_tpm::tpm::TpmVersion;

use super::{acpica, compile};

/// A PCI device's configuration space, as far as the tables look at it.
#[derive(Clone, Copy)]
pub struct ConfigSpace {
    /// Vendor and device ID.
    pub id: u32,
    /// Command register, and status register above it.
    pub command: u32,
    pub bar0: u32,
}

/// Ours, as the firmware leaves it.
pub const WORKING: ConfigSpace = ConfigSpace { id: 0x5450_7666, command: 0, bar0: 0xfeb4_0000 };

/// An empty slot's.
pub const EMPTY: ConfigSpace = ConfigSpace { id: u32::MAX, command: u32::MAX, bar0: u32::MAX };

/// What a method returned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    Integer(u64),
    Buffer(Vec<u8>),
    String(String),
}

impl Value {
    #[track_caller]
    pub fn integer(self) -> u64 {
        let Self::Integer(integer) = self else { panic!("an integer expected: {self:?}") };
        integer
    }

    #[track_caller]
    pub fn buffer(self) -> Vec<u8> {
        let Self::Buffer(bytes) = self else { panic!("a buffer expected: {self:?}") };
        bytes
    }
}

/// What is done in the machine, one thing after the other.
pub struct Script {
    node: String,
    tables: Vec<Table>,
    calls: Vec<String>,
}

impl Script {
    /// For a machine with this device.
    pub fn new(device: &TpmDevice) -> Self {
        Self { node: nodes(device).join("."), tables: acpi::tables(device), calls: Vec::new() }
    }

    /// With what Linux installs from the initramfs, in place of the VMM's tables.
    pub fn initramfs(self, device: &TpmDevice) -> Self {
        Self { tables: vec![acpi::initramfs_ssdt(device).unwrap()], ..self }
    }

    fn call(mut self, method: &str, arguments: &[u32]) -> Self {
        let words = [format!("execute {}.{method}", self.node)].into_iter();
        let words = words.chain(arguments.iter().map(|argument| format!("{argument:#x}")));
        self.calls.push(words.collect::<Vec<_>>().join(" "));
        self
    }

    /// Makes the initramfs's table forget that anybody has asked for `_STA`: acpiexec does, when it starts. There is no value.
    pub fn forget_sta(self) -> Self {
        self.call("TFRG", &[])
    }

    /// Fills the configuration space. There is no value.
    pub fn config(self, ConfigSpace { id, command, bar0 }: ConfigSpace) -> Self {
        self.call("TSET", &[id, command, bar0])
    }

    /// Command and status register of the configuration space.
    pub fn command(self) -> Self {
        self.call("TGET", &[])
    }

    /// `_STA` of the TPM.
    pub fn sta(self) -> Self {
        self.call("TPM_._STA", &[])
    }

    /// `_INI` of the TPM. There is no value.
    pub fn ini(self) -> Self {
        self.call("TPM_._INI", &[])
    }

    /// The window's address in `_CRS`.
    pub fn crs_base(self) -> Self {
        self.call("TCRS", &[4])
    }

    /// The window's length in `_CRS`.
    pub fn crs_length(self) -> Self {
        self.call("TCRS", &[8])
    }

    /// Says by `_PIC` whether the operating system uses the APIC. There is no value.
    pub fn apic(mut self, used: bool) -> Self {
        self.calls.push(format!("execute \\_PIC {}", u8::from(used)));
        self
    }

    /// All that `_CRS` has.
    pub fn crs(self) -> Self {
        self.call("TPM_._CRS", &[])
    }

    /// The TPM2 or TCPA table as it lies in memory.
    pub fn table(self) -> Self {
        self.call("TTCG", &[])
    }

    /// This function of the start method's `_DSM`.
    pub fn start_method(self, function: u32) -> Self {
        self.call("TDSM", &[function])
    }

    /// This function of a `_DSM` that is not known.
    pub fn unknown_dsm(self, function: u32) -> Self {
        self.call("TUNK", &[function])
    }

    /// This function of physical presence, with these integers in the package of arguments. A package that it returns is its
    /// integers in a buffer, 32 bits each.
    pub fn presence(self, revision: u32, function: u32, arguments: &[u32]) -> Self {
        match arguments {
            [] => self.call("TPP0", &[revision, function]),
            &[first] => self.call("TPP1", &[revision, function, first]),
            &[first, second] => self.call("TPP2", &[revision, function, first, second]),
            _ => panic!("functions have two arguments at most"),
        }
    }

    /// Fills a register of the window for physical presence, in the BAR at the address of [`WORKING`]. There is no value.
    pub fn fill_presence(self, register: u32, value: u32) -> Self {
        self.call("TPPW", &[register * 4, value])
    }

    /// A register of that window.
    pub fn presence_register(self, register: u32) -> Self {
        self.call("TPPR", &[register * 4])
    }

    /// What was written to the doorbell since this was last asked; 0 for nothing.
    pub fn doorbell(self) -> Self {
        self.call("TBEL", &[])
    }

    /// The values, in order; they must be the same with integers of 32 bits, as QEMU's machines have, and of 64.
    #[track_caller]
    pub fn run(self, device: &TpmDevice) -> Vec<Value> {
        let [values, with_64_bits] = [1, 2].map(|revision| self.run_with(device, revision));
        assert_eq!(values, with_64_bits);
        values
    }

    /// In a machine whose DSDT has this revision, which decides about integers.
    #[track_caller]
    fn run_with(&self, device: &TpmDevice, revision: u8) -> Vec<Value> {
        let folder = tempfile::tempdir().unwrap();
        let installed = self.tables.len() == 1;
        fs::write(folder.path().join("dsdt.asl"), dsdt(device, installed, revision)).unwrap();
        compile(folder.path(), "dsdt.asl");
        for table in &self.tables {
            fs::write(folder.path().join(table.file_name), &table.bytes).unwrap();
        }
        let calls = self.calls.join(";");
        let files = self.tables.iter().map(|table| table.file_name);
        let arguments: Vec<_> = ["-b", &calls, "compiled.aml"].into_iter().chain(files).collect();
        let (said, success) = acpica("acpiexec", folder.path(), &arguments);
        assert!(success && !said.contains("Error") && !said.contains("Exception"), "{said}");
        values(&said)
    }
}

/// The names from the root to the PCI device, as the VMM gives them: QEMU 11.1 (seen), Cloud Hypervisor (`PciDevSlot` in its
/// source).
fn nodes(device: &TpmDevice) -> Vec<String> {
    let placement = device.placement();
    let name = |address: PciAddress| match placement.machine() {
        Machine::Q35 | Machine::Pc | Machine::Virt => format!("S{:02X}_", address.devfn()),
        Machine::CloudHypervisor => format!("S{:03}", address.devfn() >> 3),
    };
    let devices = placement.bridge().into_iter().chain([placement.address()]).map(name);
    ["\\_SB_".to_owned(), "PCI0".to_owned()].into_iter().chain(devices).collect()
}

/// The machine's own table, with the PCI device where `device` says; for tables of the VMM, or the one that is installed by
/// the operating system.
fn dsdt(device: &TpmDevice, installed: bool, revision: u8) -> String {
    let placement = device.placement();
    let nodes = nodes(device);
    let node = nodes.join(".");
    let name = nodes.last().unwrap();
    let adr = |address: PciAddress| u32::from(address.devfn() >> 3) << 16 | u32::from(address.devfn() & 7);
    let (bridge, bridge_end) = placement.bridge().map_or_else(<(String, &str)>::default, |bridge| {
        (format!("Device (S{:02X}_) {{ Name (_ADR, {})", bridge.devfn(), adr(bridge)), "}")
    });
    let adr = adr(placement.address());
    let (more, more_externals) = if installed {
        (format!("Method (TFRG) {{ {node}.TPM.ASKD = Zero }}"), format!("External ({node}.TPM.ASKD, IntObj)"))
    } else if device.interface() == Interface::CrbDoorbell {
        (table_method(device.version()) + &doorbell_methods(&node), String::new())
    } else {
        (table_method(device.version()), String::new())
    };
    let presence = presence_methods(&node);
    format!(
        r#"
        DefinitionBlock ("", "DSDT", {revision}, "VFUTPM", "TEST", 1)
        {{
            External ({node}.TPM._CRS, MethodObj)
            External ({node}.TPM._DSM, MethodObj)
            {more_externals}
            Name (PICF, Zero)
            Method (_PIC, 1) {{ PICF = Arg0 }}
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
                    {more}
                    {presence}
                }}
                {bridge_end}
            }}
        }}"#
    )
}

/// The method that returns the TCG's table.
fn table_method(version: TpmVersion) -> String {
    let (signature, bits) = match version {
        TpmVersion::V1_2 => ("TCPA", 50 * 8),
        TpmVersion::V2_0 => ("TPM2", 76 * 8),
    };
    format!(
        r#"
        DataTableRegion (TTAB, "{signature}", "", "")
        Field (TTAB, AnyAcc, NoLock, Preserve) {{ TALL, {bits} }}
        Method (TTCG) {{ Return (TALL) }}"#
    )
}

/// Methods for what only a CRB with ACPI start has: a `_DSM`, and a doorbell.
fn doorbell_methods(node: &str) -> String {
    let dsm = |name, uuid| {
        format!(
            r#"Method ({name}, 1)
               {{
                   Return ({node}.TPM._DSM (ToUUID ("{uuid}"), One, Arg0, Package () {{}}))
               }}"#
        )
    };
    let start_method = dsm("TDSM", "6bbf6cab-5463-4714-b7cd-f0203c0368d4");
    let unknown = dsm("TUNK", "6bbf6cab-5463-4714-b7cd-f0203c0368d5");
    format!(
        r"
        OperationRegion (TDBL, PCI_Config, 0x40, 4)
        Field (TDBL, DWordAcc, NoLock, Preserve) {{ TRNG, 32 }}
        Method (TBEL) {{ Local0 = TRNG  TRNG = Zero  Return (Local0) }}
        {start_method}
        {unknown}"
    )
}

/// Methods for physical presence, and the window's registers: memory that keeps what is written.
fn presence_methods(node: &str) -> String {
    let window = WORKING.bar0 + 0x6000;
    let dsm = |name, count, arguments| {
        format!(
            r#"Method ({name}, {count})
               {{
                   {arguments}
                   Local0 = {node}.TPM._DSM (ToUUID ("3dddfaa6-361b-4eb4-a424-8d10089d1653"), Arg0, Arg1, Local3)
                   If (ObjectType (Local0) != 4) {{ Return (Local0) }}
                   Local2 = Buffer (SizeOf (Local0) * 4) {{}}
                   Local1 = Zero
                   While (Local1 < SizeOf (Local0))
                   {{
                       Local2 [Local1 * 4] = DerefOf (Local0 [Local1]) & 0xFF
                       Local2 [Local1 * 4 + 1] = (DerefOf (Local0 [Local1]) >> 8) & 0xFF
                       Local2 [Local1 * 4 + 2] = (DerefOf (Local0 [Local1]) >> 16) & 0xFF
                       Local2 [Local1 * 4 + 3] = (DerefOf (Local0 [Local1]) >> 24) & 0xFF
                       Local1++
                   }}
                   Return (Local2)
               }}"#
        )
    };
    let without = dsm("TPP0", 2, "Local3 = Package () {}");
    let with_one = dsm("TPP1", 3, "Local3 = Package () { Zero }  Local3 [0] = Arg2");
    let with_two = dsm("TPP2", 4, "Local3 = Package () { Zero, Zero }  Local3 [0] = Arg2  Local3 [1] = Arg3");
    format!(
        r"
        OperationRegion (TPPM, SystemMemory, {window:#x}, 0x24)
        Field (TPPM, DWordAcc, NoLock, Preserve) {{ TPPA, 288 }}
        Method (TPPW, 2, Serialized)
        {{
            Local0 = TPPA
            CreateDWordField (Local0, Arg0, PART)
            PART = Arg1
            TPPA = Local0
        }}
        Method (TPPR, 1, Serialized)
        {{
            Local0 = TPPA
            CreateDWordField (Local0, Arg0, PART)
            Return (PART)
        }}
        {without}
        {with_one}
        {with_two}"
    )
}

/// What methods returned, as acpiexec prints it: `[Integer] = `, `[String] Length `, that, ` = ` and the text in quotes, or `[Buffer] Length ` and that, ` = `, and then, if it is a
/// short one on the same line, up to 16 bytes a line between an offset with a colon and two slashes.
fn values(said: &str) -> Vec<Value> {
    let mut values = Vec::new();
    for line in said.lines().map(str::trim) {
        if let Some(digits) = line.strip_prefix("[Integer] = ") {
            values.push(Value::Integer(u64::from_str_radix(digits, 16).unwrap()));
            continue;
        }
        if let Some(string) = line.strip_prefix("[String] Length ") {
            let text = string.split_once("= ").unwrap().1.trim_matches('"');
            values.push(Value::String(text.to_owned()));
            continue;
        }
        let dump = match line.strip_prefix("[Buffer] Length ") {
            Some(buffer) => {
                values.push(Value::Buffer(Vec::new()));
                buffer.split_once('=').unwrap().1
            }
            None => line,
        };
        let dump = dump.split_once("//").and_then(|(bytes, _text)| bytes.split_once(": "));
        if let (Some(Value::Buffer(buffer)), Some((offset, bytes))) = (values.last_mut(), dump) {
            assert_eq!(usize::from_str_radix(offset.trim(), 16), Ok(buffer.len()), "{line}");
            buffer.extend(bytes.split_whitespace().map(|byte| u8::from_str_radix(byte, 16).unwrap()));
        }
    }
    values
}
