//! The methods in the ACPI tables, run by ACPICA's `acpiexec`: ACPICA is the interpreter that Linux and others use.

mod acpi;

use acpi::interpreter::{ConfigSpace, EMPTY, Script, Value, WORKING};
use acpi::{Q35, Q35_INTERRUPTS, VARIANTS, VIRT, Variant, table};
use vfio_user_tpm::acpi::{Interface, TpmDevice};
use vfio_user_tpm::tpm::TpmVersion;

/// Another vendor's device.
const FOREIGN: ConfigSpace = ConfigSpace { id: 0x10d3_8086, ..WORKING };
/// Our device, to which no address has been given.
const WITHOUT_ADDRESS: ConfigSpace = ConfigSpace { bar0: 0, ..WORKING };

/// A 2.0 TPM in a q35.
fn device(path: &'static str) -> TpmDevice {
    Variant { path, ..Q35 }.device()
}

fn crb(interface: Interface) -> TpmDevice {
    Variant { interface, ..Q35 }.device()
}

fn doorbell() -> TpmDevice {
    crb(Interface::CrbDoorbell)
}

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

#[track_caller]
fn evaluate(device: &TpmDevice, config: ConfigSpace) -> Seen {
    let values = Script::new(device).config(config).sta().crs_base().crs_length().command().run(device);
    let Ok([sta, base, length, command]) = <[Value; 4]>::try_from(values).map(|values| values.map(Value::integer))
    else {
        panic!("four values expected")
    };
    Seen { sta, base, length, command }
}

#[test]
fn crs_is_the_bars_window_and_memory_decoding_is_switched_on() {
    for (interface, length) in [(Interface::Tis, 0x5000), (Interface::Crb, 0xa000), (Interface::CrbDoorbell, 0xa000)] {
        let seen = evaluate(&crb(interface), WORKING);
        assert_eq!(seen, Seen { sta: 0x0f, base: 0xfeb4_0000, length, command: 0x2 }, "{interface:?}");
    }
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
    assert_eq!(evaluate(&device("05.0"), EMPTY).sta, 0);
}

#[test]
fn another_device_in_the_slot_is_not_taken_for_the_tpm() {
    assert_eq!(evaluate(&device("05.0"), FOREIGN).sta, 0);
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

/// What Linux installs from the initramfs: each of the variants that have it.
#[test]
fn the_initramfs_ssdt_says_the_same_once_sta_was_asked_for() {
    for variant in VARIANTS.iter().filter(|variant| variant.interface == Interface::Tis) {
        let device = variant.device();
        let script = || Script::new(&device).initramfs(&device).config(WORKING);
        let values = script().sta().crs_base().crs_length().command().run(&device);
        assert_eq!(values, [0x0f, 0xfeb4_0000, 0x5000, 0x2].map(Value::Integer), "{}", variant.name);
        let values = script().forget_sta().crs_base().command().sta().crs_base().run(&device);
        assert_eq!(values, [0, 0, 0x0f, 0xfeb4_0000].map(Value::Integer), "{}", variant.name);
    }
}

#[test]
fn the_initramfs_ssdt_has_no_tpm_where_there_is_none() {
    let device = VIRT.device();
    for config in [FOREIGN, WITHOUT_ADDRESS, EMPTY] {
        assert_eq!(evaluate(&device, config).sta, 0, "{:#x}", config.id);
    }
}

/// The devices whose table of the TCG's is filled in, and what of it: the file, the fields with what is there in the BAR.
struct Patched {
    device: TpmDevice,
    file: &'static str,
    /// Where there is an address in the table, and the offset in the BAR of what it is of.
    addresses: Vec<(usize, u32)>,
    /// Where there is a number in the table, and which.
    numbers: Vec<(usize, u32)>,
}

impl Patched {
    fn all() -> [Self; 6] {
        let patched = |device, file, addresses, numbers| Self { device, file, addresses, numbers };
        let log = vec![(64, 0x1_0000)];
        let version = TpmVersion::V1_2;
        [
            patched(crb(Interface::Tis), "tpm2.aml", vec![(68, 0x1_0000)], log.clone()),
            patched(Variant { version, ..Q35 }.device(), "tcpa.aml", vec![(42, 0x1_0000)], vec![(38, 0x1_0000)]),
            patched(crb(Interface::Crb), "tpm2.aml", vec![(40, 0x40), (68, 0x1_0000)], log.clone()),
            patched(doorbell(), "tpm2.aml", vec![(40, 0x8040), (68, 0x1_0000)], log),
            patched(crb(Interface::Crb).without_log(), "tpm2.aml", vec![(40, 0x40)], vec![]),
            patched(doorbell().without_log(), "tpm2.aml", vec![(40, 0x8040)], vec![]),
        ]
    }

    /// The table as it is added.
    fn added(&self) -> Vec<u8> {
        table(&self.device, self.file)
    }

    /// The table for a BAR at this address, with the checksum that it then has to have.
    fn table_at(&self, bar0: u32) -> Vec<u8> {
        let mut table = self.added();
        let addresses = self.addresses.iter().map(|(at, offset)| (*at, bar0 + offset));
        for (at, value) in addresses.chain(self.numbers.iter().copied()) {
            table[at..at + 4].copy_from_slice(&value.to_le_bytes());
        }
        table[9] = 0;
        table[9] = table.iter().fold(0, |sum: u8, byte| sum.wrapping_sub(*byte));
        table
    }
}

#[test]
fn the_table_learns_addresses_from_the_bar_and_keeps_a_right_checksum() {
    for patched in Patched::all() {
        // Each after the others: nothing of the one before may be left.
        let bars = [0xfeb4_0000, 0xfeb4_0000, 0x8000_0000, 0xfffe_0000, 0x0002_0000, 0xc0fe_0008];
        let device = &patched.device;
        let script = bars
            .into_iter()
            .fold(Script::new(device), |script, bar0| script.config(ConfigSpace { bar0, ..WORKING }).ini().table());
        let expected = bars.map(|bar0| Value::Buffer(patched.table_at(bar0 & !0xf)));
        assert_eq!(script.run(device), expected, "{device:?}");
    }
}

#[test]
fn crs_brings_the_table_up_to_date() {
    for patched in Patched::all() {
        let device = &patched.device;
        let moved = ConfigSpace { bar0: 0xc0fe_0000, ..WORKING };
        let values = Script::new(device).config(WORKING).ini().config(moved).crs_base().table().run(device);
        let expected = [Value::Integer(0xc0fe_0000), Value::Buffer(patched.table_at(0xc0fe_0000))];
        assert_eq!(values, expected, "{device:?}");
    }
}

/// A window at the BAR of [`WORKING`], this interrupt (shared, active high, level; a consumer), and the end.
fn crs_with(gsi: Option<u8>) -> Vec<u8> {
    let window = [0x86, 9, 0, 1, 0, 0, 0xb4, 0xfe, 0, 0x50, 0, 0];
    let interrupt = gsi.map(|gsi| [0x89, 6, 0, 0b1001, 1, gsi, 0, 0, 0]);
    [&window[..], interrupt.as_ref().map_or(&[], |descriptor| &descriptor[..]), &[0x79, 0]].concat()
}

/// Checksums of resource templates may be 0, for none, or right.
fn without_checksum(value: Value) -> Vec<u8> {
    let mut bytes = value.buffer();
    *bytes.last_mut().unwrap() = 0;
    bytes
}

#[test]
fn crs_names_the_interrupt_of_the_slot_while_the_apic_is_used() {
    for (path, gsi) in [("05.0", 21), ("08.0", 20), ("1b.0", 16)] {
        let device = Variant { path, ..Q35_INTERRUPTS }.device();
        let script = Script::new(&device).config(WORKING).crs().apic(true).crs().crs().apic(false).crs();
        let seen: Vec<_> = script.run(&device).into_iter().map(without_checksum).collect();
        let with = crs_with(Some(gsi));
        assert_eq!(seen, [crs_with(None), with.clone(), with, crs_with(None)], "{path}");
    }
}

#[test]
fn without_an_address_or_where_none_was_asked_for_there_is_no_interrupt() {
    let device = Q35_INTERRUPTS.device();
    let values = Script::new(&device).config(WITHOUT_ADDRESS).apic(true).crs().run(&device);
    assert_eq!(values.len(), 1);
    assert_eq!(values[0].clone().buffer().len(), crs_with(None).len());
    let device = Q35.device();
    let values = Script::new(&device).config(WORKING).apic(true).crs().run(&device);
    assert_eq!(without_checksum(values[0].clone()), crs_with(None));
}

#[test]
fn behind_a_bridge_it_is_the_same() {
    let device = Variant { path: "06.1/00.0", bridge_id: Some("rp0"), interface: Interface::Crb, ..Q35 }.device();
    let [_, _, crb, ..] = Patched::all();
    let tables = Script::new(&device).config(WORKING).ini().table().run(&device);
    assert_eq!(tables, [Value::Buffer(crb.table_at(0xfeb4_0000))]);
}

#[test]
fn without_the_tpm_the_table_stays_as_it_is() {
    for patched in Patched::all() {
        let device = &patched.device;
        let script = [FOREIGN, WITHOUT_ADDRESS, EMPTY]
            .into_iter()
            .fold(Script::new(device), |script, config| script.config(config).ini().crs_base().table());
        let values = script.run(device);
        for value in values.into_iter().skip(1).step_by(2) {
            assert_eq!(value, Value::Buffer(patched.added()), "{device:?}");
        }
    }
}

#[test]
fn with_neither_log_nor_control_area_the_table_stays_as_it_is_and_nothing_reaches_for_it() {
    for version in [TpmVersion::V2_0, TpmVersion::V1_2] {
        let device = Variant { version, ..Q35 }.device().without_log();
        let ssdt = table(&device, "ssdt.aml");
        assert!(!ssdt.windows(4).any(|name| name == b"PTCH" || name == b"_INI"), "{version}");
        assert_eq!(evaluate(&device, WORKING).base, 0xfeb4_0000);
    }
}

#[test]
fn the_start_method_rings_the_doorbell_once() {
    let device = doorbell();
    let values = Script::new(&device)
        .config(WORKING)
        .start_method(1)
        .doorbell()
        .doorbell()
        .start_method(1)
        .doorbell()
        .run(&device);
    assert_eq!(values, [0, 1, 0, 0, 1].map(Value::Integer));
}

#[test]
fn the_start_method_says_which_functions_there_are() {
    let device = doorbell();
    let values = Script::new(&device).config(WORKING).start_method(0).doorbell().run(&device);
    assert_eq!(values, [Value::Buffer(vec![0b11]), Value::Integer(0)]);
}

#[test]
fn no_other_function_rings_the_doorbell() {
    let device = doorbell();
    let script = Script::new(&device).config(WORKING);
    let script = [2, 3, 0x8000_0001, u32::MAX].into_iter().fold(script, Script::start_method);
    let script = [0, 1].into_iter().fold(script, Script::unknown_dsm);
    let nothing = vec![Value::Buffer(vec![0]); 6];
    assert_eq!(script.doorbell().run(&device), [nothing, vec![Value::Integer(0)]].concat());
}

/// A device of each interface: where it is in the machine, physical presence does not look.
fn with_presence() -> impl Iterator<Item = (Interface, TpmDevice)> {
    Interface::ALL.into_iter().map(|interface| (interface, crb(interface)))
}

/// A machine whose device has the window, with these registers, each its number but for the signature's.
fn presence(device: &TpmDevice) -> Script {
    let script = Script::new(device).config(WORKING).fill_presence(0, u32::from_le_bytes(*b"PPI1"));
    (1..9).fold(script, |script, register| script.fill_presence(register, register * 0x0101_0101))
}

fn integers(values: &[u32]) -> Value {
    Value::Buffer(values.iter().flat_map(|value| value.to_le_bytes()).collect())
}

#[test]
fn physical_presence_says_what_it_has() {
    for (interface, device) in with_presence() {
        let script = presence(&device).presence(1, 0, &[]).presence(2, 0, &[]).presence(1, 1, &[]);
        let values = script.presence(1, 4, &[]).presence(1, 6, &[0]).presence(1, 9, &[]).run(&device);
        let functions = Value::Buffer(vec![0xff, 0x01]);
        let version = Value::String("1.3".to_owned());
        let expected =
            [functions.clone(), functions, version, Value::Integer(2), Value::Integer(3), Value::Buffer(vec![0])];
        assert_eq!(values, expected, "{interface:?}");
    }
}

#[test]
fn a_request_is_written_to_the_window_and_its_answer_read_there() {
    // The register that submits gives back here what was written to it.
    let requests: [(u32, &[u32], [u64; 4]); 3] =
        [(2, &[5], [1, 5, 0, 1]), (7, &[23, 0xffff_fff2], [1, 23, 0xffff_fff2, 1]), (7, &[22], [1, 22, 0, 1])];
    for (interface, device) in with_presence() {
        let script = requests.iter().fold(presence(&device), |script, (function, arguments, _)| {
            let script = script.fill_presence(3, 0).presence(2, *function, arguments);
            script.presence_register(1).presence_register(2).presence_register(3)
        });
        let expected: Vec<_> = requests.iter().flat_map(|(.., values)| values.map(Value::Integer)).collect();
        assert_eq!(script.run(&device), expected, "{interface:?}");
    }
}

#[test]
fn what_is_asked_for_and_what_was_done_are_read_from_the_window() {
    for (interface, device) in with_presence() {
        let script = presence(&device).presence(1, 3, &[]).presence(2, 3, &[]).presence(1, 5, &[]);
        let values = script.presence(1, 8, &[24]).presence_register(1).run(&device);
        let expected = [
            integers(&[0, 0x0505_0505]),
            integers(&[0, 0x0505_0505, 0x0606_0606]),
            integers(&[0, 0x0707_0707, 0x0808_0808]),
            Value::Integer(0x0404_0404),
            Value::Integer(24),
        ];
        assert_eq!(values, expected, "{interface:?}");
    }
}

#[test]
fn without_the_device_or_the_window_there_is_no_function_and_nothing_is_written() {
    let ours = u32::from_le_bytes(*b"PPI1");
    let absent = [(FOREIGN, ours), (WITHOUT_ADDRESS, ours), (EMPTY, ours), (WORKING, u32::MAX)];
    for (interface, device) in with_presence() {
        // acpiexec's command lines are short.
        for absent in absent.chunks(2) {
            let script = absent.iter().fold(presence(&device), |script, &(config, signature)| {
                let script = script.fill_presence(0, signature).config(config);
                let script = script.presence(1, 0, &[]).presence(1, 8, &[5]).presence(1, 7, &[5]);
                script.presence_register(1).presence_register(3)
            });
            let nothing = Value::Buffer(vec![0]);
            let [first, third] = [0x0101_0101, 0x0303_0303].map(Value::Integer);
            let expected = [nothing.clone(), nothing.clone(), nothing, first, third];
            assert_eq!(script.run(&device), [expected.clone(), expected].concat(), "{interface:?}");
        }
    }
}

#[test]
fn from_an_initramfs_physical_presence_is_the_same() {
    let device = VIRT.device();
    let script = Script::new(&device).initramfs(&device).config(WORKING);
    let script = script.fill_presence(0, u32::from_le_bytes(*b"PPI1")).fill_presence(7, 5).presence(1, 5, &[]);
    assert_eq!(script.run(&device), [integers(&[0, 5, 0])]);
}
