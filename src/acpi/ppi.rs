//! What physical presence adds to the SSDT: the functions of its `_DSM`, which write requests to the window in BAR0 and read
//! there what became of them (TCG Physical Presence Interface 1.30, section "ACPI Functions").

use acpi_tables::aml::{
    And, Arg, BufferData, DeRefOf, Equal, Field, FieldAccessType, FieldLockRule, FieldUpdateRule, GreaterThan, If,
    Index, Method, MethodCall, Name, ONE, OpRegion, OpRegionSpace, Or, Package, Return, SizeOf, Store, Uuid, ZERO,
};
use acpi_tables::{Aml, AmlSink};

use super::TpmDevice;
use super::ssdt::{BAR_ADDRESS, BAR0, NO_TARGET, named, path};
use crate::bar_map;
use crate::ppi::{REGISTERS_SIZE, SIGNATURE};
use crate::tpm::TpmVersion;

/// The `_DSM` functions of physical presence.
const PHYSICAL_PRESENCE: &str = "3dddfaa6-361b-4eb4-a424-8d10089d1653";
/// Function 0: functions 0 to 8, a bit for each.
const FUNCTIONS: [u8; 2] = [0xff, 0x01];
/// Function 1: the version of the specification.
const VERSION: &str = "1.3";
/// Function 4: what is to happen for a request to be carried out is a reboot.
const REBOOT: u8 = 2;
/// Function 6: there is no language to prefer, since nobody is asked anything.
const LANGUAGE_NOT_IMPLEMENTED: u8 = 3;

/// What a `_DSM` returns for a function that there is not.
pub(super) fn no_such_function() -> BufferData {
    BufferData::new(vec![0])
}

/// The objects of the device `TPM`, where the interface has no `_DSM` of its own. A TPM 1.2 has none; whether a server serves
/// them, function 0 finds out.
pub(super) fn objects(device: &TpmDevice) -> Vec<&'static dyn Aml> {
    match device.version() {
        TpmVersion::V1_2 => Vec::new(),
        TpmVersion::V2_0 => vec![&Functions, &Dsm],
    }
}

/// The objects that [`Clause`] needs, and which are the same for each interface.
pub(super) struct Functions;

/// `_DSM` with nothing but these functions.
struct Dsm;

/// The part of a `_DSM` that has these functions.
pub(super) struct Clause;

impl Aml for Dsm {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        Method::new(path("_DSM"), 4, false, vec![&Clause, &Return::new(&no_such_function())]).to_aml_bytes(sink);
    }
}

impl Aml for Clause {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        let (uuid, revision, function, arguments) = (Arg(0), Arg(1), Arg(2), Arg(3));
        If::new(
            &Equal::new(&uuid, &Uuid::new(PHYSICAL_PRESENCE)),
            vec![&Return::new(&MethodCall::new(path("PPIF"), vec![&revision, &function, &arguments]))],
        )
        .to_aml_bytes(sink);
    }
}

impl Aml for Functions {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        // Returned by name: Windows has trouble with packages that a method has made (QEMU's hw/acpi/tpm.c).
        Name::new(path("PPI2"), &Package::new(vec![&ZERO, &ZERO])).to_aml_bytes(sink);
        Name::new(path("PPI3"), &Package::new(vec![&ZERO, &ZERO, &ZERO])).to_aml_bytes(sink);
        Method::new(
            path("PPIF"),
            3,
            true, // it creates named objects, and writes registers one after the other
            vec![
                // Where our device is not, memory of others may be.
                &If::new(
                    &MethodCall::new(path("_STA"), Vec::new()),
                    vec![
                        &Registers,
                        // A server without the window, or a device that decodes nothing, reads ones.
                        &If::new(&Equal::new(&path("SIGN"), &SIGNATURE), vec![&Answers]),
                    ],
                ),
                &Return::new(&no_such_function()),
            ],
        )
        .to_aml_bytes(sink);
    }
}

/// The registers, where the BAR is at this moment. Nothing here is quick, and nothing has to be.
struct Registers;

impl Aml for Registers {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        let bar = path(BAR0);
        let bar = And::new(&NO_TARGET, &bar, &BAR_ADDRESS);
        let window = Or::new(&NO_TARGET, &bar, &bar_map::PPI.offset);
        OpRegion::new(path("PPIR"), OpRegionSpace::SystemMemory, &window, &REGISTERS_SIZE).to_aml_bytes(sink);
        let names = [b"SIGN", b"OPER", b"ARGU", b"SUBM", b"STND", b"PEND", b"PARG", b"LAST", b"RESP"]
            .map(|name| named(*name, 32));
        Field::new(
            path("PPIR"),
            FieldAccessType::DWord,
            FieldLockRule::NoLock,
            FieldUpdateRule::Preserve,
            names.into(),
        )
        .to_aml_bytes(sink);
    }
}

/// The functions, by the method's arguments: revision, function, and a package of arguments.
struct Answers;

impl Aml for Answers {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        let [two, three] = [path("PPI2"), path("PPI3")];
        let [pending, argument, last, response] = ["PEND", "PARG", "LAST", "RESP"].map(path);
        let second_of_two = Index::new(&NO_TARGET, &two, &ONE);
        let (second, third) = (Index::new(&NO_TARGET, &three, &ONE), Index::new(&NO_TARGET, &three, &2_u8));

        Function(&ZERO, &[&Return::new(&BufferData::new(FUNCTIONS.into()))]).to_aml_bytes(sink);
        Function(&ONE, &[&Return::new(&VERSION)]).to_aml_bytes(sink);
        // Submit a request. That of function 2 has no argument.
        Function(&2_u8, &[&Submit]).to_aml_bytes(sink);
        // The request that is pending; since revision 2 with its argument.
        let without_argument: &[&dyn Aml] = &[&Store::new(&second_of_two, &pending), &Return::new(&two)];
        Function(
            &3_u8,
            &[
                &If::new(&Equal::new(&Arg(0), &ONE), without_argument.to_vec()),
                &Store::new(&second, &pending),
                &Store::new(&third, &argument),
                &Return::new(&three),
            ],
        )
        .to_aml_bytes(sink);
        Function(&4_u8, &[&Return::new(&REBOOT)]).to_aml_bytes(sink);
        // The last one that was carried out, and the response to it.
        Function(&5_u8, &[&Store::new(&second, &last), &Store::new(&third, &response), &Return::new(&three)])
            .to_aml_bytes(sink);
        Function(&6_u8, &[&Return::new(&LANGUAGE_NOT_IMPLEMENTED)]).to_aml_bytes(sink);
        Function(&7_u8, &[&Submit]).to_aml_bytes(sink);
        // Whether an operation may be asked for.
        Function(&8_u8, &[&StoreOperation, &Return::new(&path("STND"))]).to_aml_bytes(sink);
    }
}

/// What is done for the function of this number.
struct Function<'a>(&'a dyn Aml, &'a [&'a dyn Aml]);

impl Aml for Function<'_> {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        let Self(number, terms) = self;
        If::new(&Equal::new(&Arg(1), *number), terms.to_vec()).to_aml_bytes(sink);
    }
}

/// Writes the operation, which is the first of the arguments.
struct StoreOperation;

impl Aml for StoreOperation {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        Store::new(&path("OPER"), &DeRefOf::new(&Index::new(&NO_TARGET, &Arg(2), &ZERO))).to_aml_bytes(sink);
    }
}

/// Writes operation and argument, if there is one, asks for them, and returns the answer.
struct Submit;

impl Aml for Submit {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        let (arguments, argument, submit) = (Arg(2), path("ARGU"), path("SUBM"));
        StoreOperation.to_aml_bytes(sink);
        Store::new(&argument, &ZERO).to_aml_bytes(sink);
        If::new(
            &GreaterThan::new(&SizeOf::new(&arguments), &ONE),
            vec![&Store::new(&argument, &DeRefOf::new(&Index::new(&NO_TARGET, &arguments, &ONE)))],
        )
        .to_aml_bytes(sink);
        Store::new(&submit, &ONE).to_aml_bytes(sink);
        Return::new(&submit).to_aml_bytes(sink);
    }
}
