//! What always holds, under arbitrary access sequences.

use proptest::collection::vec;
use proptest::prelude::*;

use super::steps::{Checked, any_config, begun, steps};
use super::*;
use crate::tpm::{BUFFER_SIZE, Fault, fault_response};

/// An access inside one of the FIFO's two doors: its register and its width.
fn fifo_access() -> impl Strategy<Value = (u64, usize)> {
    let within = |register: u64, size: usize| {
        (0..size).prop_flat_map(move |lane| {
            let at = register + u64::try_from(lane).expect("small");
            (1..=size - lane).prop_map(move |width| (at, width))
        })
    };
    prop_oneof![within(DATA_FIFO, 4), within(XDATA_FIFO, 8), within(XDATA_FIFO, 64)]
}

/// Sizes that fit the buffer, that don't, and that are no command's.
fn command_size() -> impl Strategy<Value = u32> {
    let buffer = u32::try_from(BUFFER_SIZE).expect("4096");
    prop_oneof![1 => 0..10u32, 4 => 10..600u32, 2 => 10..=buffer, 1 => buffer - 2..buffer + 3, 1 => buffer..9000]
}

proptest! {
    #[test]
    fn the_invariants_hold_under_any_accesses(config in any_config(), steps in steps(120)) {
        let mut checked = Checked::new(Tis::new(config));
        checked.run_all(steps);
    }

    /// Invariant 4, and that all bytes arrive in order.
    #[test]
    fn a_command_and_its_response_arrive_whole_by_any_mix_of_widths(
        size in command_size(),
        answered in 10..=u32::try_from(BUFFER_SIZE).expect("4096"),
        accesses in vec(fifo_access(), 1..40),
    ) {
        let length = usize::try_from(size).expect("small").max(10);
        let command = if (10..).contains(&size) { message(size) } else { begun(size, length) };
        let mut guest = Guest::owning(2);
        guest.write8(2, STS, COMMAND_READY);
        let mut accesses = accesses.into_iter().cycle();

        let mut rest = &command[..];
        while !rest.is_empty() {
            let expected = if rest == command { COMMAND_READY } else { VALID | EXPECT };
            prop_assert_eq!(guest.read8(2, STS), expected);
            prop_assert_eq!(guest.write8(2, STS, GO), None, "not yet");
            let (register, width) = accesses.next().expect("endless");
            let (now, after) = rest.split_at(width.min(rest.len()));
            prop_assert_eq!(guest.write(2, register, now), None);
            rest = after;
        }
        prop_assert_eq!(guest.read8(2, STS), VALID, "Expect clears with the last byte");

        let response = message(answered);
        let response = if (10..=BUFFER_SIZE).contains(&command.len()) && size >= 10 {
            prop_assert_eq!(guest.write8(2, STS, GO), Some(Effect::Execute(locality(2))));
            prop_assert_eq!(guest.tis.command(), &command[..]);
            guest.tis.complete(&response);
            response
        } else {
            prop_assert_eq!(guest.write8(2, STS, GO), None, "the registers answer");
            fault_response(TpmVersion::V2_0, Fault::CommandSize).to_vec()
        };

        let mut read = Vec::new();
        while read.len() < response.len() {
            prop_assert_eq!(guest.read8(2, STS), VALID | DATA_AVAIL);
            let (register, width) = accesses.next().expect("endless");
            let mut data = vec![0; width.min(response.len() - read.len())];
            guest.tis.read(0x2000 + register, &mut data);
            read.extend(data);
        }
        prop_assert_eq!(read, response);
        prop_assert_eq!(guest.read8(2, STS), VALID, "dataAvail clears with the last byte");
    }
}
