//! What always holds, under arbitrary access sequences.

use proptest::prelude::*;

use super::steps::{Checked, any_config, begun, steps};
use super::*;
use crate::tpm::{BUFFER_SIZE, Fault, TpmVersion, fault_response};

/// Sizes that fit the buffer, that don't, and that are no command's.
fn command_size() -> impl Strategy<Value = u32> {
    prop_oneof![2 => 0..10u32, 4 => 10..600u32, 2 => 10..=4096u32, 1 => 4090..4100u32, 1 => any::<u32>()]
}

proptest! {
    #[test]
    fn the_invariants_hold_under_any_accesses(config in any_config(), steps in steps(80)) {
        let mut checked = Checked::new(Crb::new(config, Pages::new()));
        checked.run_all(steps);
    }

    /// The guest writes its command by accesses and by its mapping, and reads the response by both.
    #[test]
    fn a_command_and_its_response_arrive_whole_by_any_mix_of_widths(
        size in command_size(),
        answered in 10..=4096u32,
        widths in proptest::collection::vec((1..100usize, any::<bool>()), 1..40),
    ) {
        let command = begun(size);
        let mut guest = Guest::ready(2);
        let mut widths = widths.into_iter().cycle();
        let mut done = 0;
        while done < command.len() {
            let (width, mapped) = widths.next().expect("endless");
            let part = &command[done..command.len().min(done + width)];
            let at = COMMAND_BUFFER.offset + u32::try_from(done).expect("small");
            if mapped {
                guest.crb.memory_mut().put(at, part);
            } else {
                prop_assert_eq!(guest.crb.write(at.into(), part), None);
            }
            done += part.len();
        }
        let started = guest.write32(2, CTRL_START, 1);
        let response = if (10..=4096).contains(&size) {
            prop_assert_eq!(started, Some(Effect::Execute(locality(2))));
            prop_assert_eq!(guest.crb.command(), &command[..]);
            guest.put(&[0xee; BUFFER_SIZE]);
            prop_assert_eq!(guest.crb.command(), &command[..]);
            guest.crb.complete(&message(answered));
            message(answered)
        } else {
            prop_assert_eq!(started, None, "the registers answer");
            fault_response(TpmVersion::V2_0, Fault::CommandSize).to_vec()
        };
        prop_assert_eq!(guest.read32(2, CTRL_START), 0);
        prop_assert_eq!(guest.buffer(response.len()), &response[..]);
        let mut read = Vec::new();
        while read.len() < response.len() {
            let (width, _) = widths.next().expect("endless");
            let mut data = vec![0; width.min(response.len() - read.len())];
            guest.crb.read(u64::from(COMMAND_BUFFER.offset) + u64::try_from(read.len()).expect("small"), &mut data);
            read.extend(data);
        }
        prop_assert_eq!(read, response);
    }
}
