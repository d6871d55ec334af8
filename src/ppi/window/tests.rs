//! The window as a guest reads and writes it, and as resets find it.

use proptest::prelude::*;

use super::*;

const BASE: u64 = 0x6000;

fn window() -> Window {
    Window::new(Consent::CLEAR | Consent::PCR_BANKS)
}

fn read(window: &Window, register: u32) -> u32 {
    let mut bytes = [0x5a; 4];
    window.read(BASE + u64::from(register) * 4, &mut bytes);
    u32::from_le_bytes(bytes)
}

fn write(window: &mut Window, register: u32, value: u32) -> Option<Submission> {
    window.write(BASE + u64::from(register) * 4, &value.to_le_bytes())
}

fn submit(window: &mut Window, operation: u32, argument: u32) -> u32 {
    assert_eq!(write(window, register::OPERATION, operation), None);
    assert_eq!(write(window, register::ARGUMENT, argument), None);
    assert!(write(window, register::SUBMIT, 1).is_some());
    read(window, register::SUBMIT)
}

#[test]
fn the_layout_is_the_one_that_tables_in_guests_know() {
    let mut window = window();
    assert_eq!(submit(&mut window, 23, 2), 0);
    let mut bytes = [0x5a; 40];
    window.read(BASE, &mut bytes);
    let words = bytes.chunks(4).map(|word| u32::from_le_bytes(*word.first_chunk().unwrap())).collect::<Vec<_>>();
    assert_eq!(words, [0x3149_5050, 23, 2, 0, 4, 23, 2, 0, 0, u32::MAX]);
    assert_eq!(&bytes[..4], b"PPI1");
}

#[test]
fn a_request_is_carried_out_once_and_its_outcome_stays() {
    let mut window = window();
    assert_eq!(window.reset(), None);
    assert_eq!(submit(&mut window, 5, 0), 0);
    let request = Request { operation: 5, argument: 0 };
    assert_eq!(window.reset(), Some(request));
    assert_eq!((window.reset(), window.pending()), (None, Some(request)), "while it is carried out");
    assert_eq!(window.finish(0x101), Some(Outcome { operation: 5, response: 0x101 }));
    for _ in 0..2 {
        assert_eq!((read(&window, register::PENDING), window.pending()), (0, None));
        assert_eq!((read(&window, register::LAST), read(&window, register::RESPONSE)), (5, 0x101));
        assert_eq!(window.reset(), None);
    }
    assert_eq!(window.finish(0), None);
}

#[test]
fn a_request_while_another_is_carried_out_waits_for_its_own_reset() {
    let mut window = window();
    submit(&mut window, 5, 0);
    assert!(window.reset().is_some());
    submit(&mut window, 14, 0);
    assert_eq!(window.reset(), None);
    window.finish(0);
    assert_eq!(window.reset(), Some(Request { operation: 14, argument: 0 }));
}

#[test]
fn what_is_refused_leaves_the_request_before_as_it_is() {
    for (operation, argument, answer, standing) in [(1, 0, 1, 0), (24, 0, 3, 2), (17, 0, 3, 1), (23, 0, 2, 4)] {
        let mut window = window();
        assert_eq!(submit(&mut window, 22, 0), 0);
        assert_eq!(submit(&mut window, operation, argument), answer, "{operation}");
        assert_eq!(read(&window, register::STANDING), standing);
        assert_eq!(window.reset(), Some(Request { operation: 22, argument: 0 }));
    }
}

#[test]
fn a_newer_request_takes_the_place_of_an_older_one_and_none_withdraws_it() {
    let mut window = window();
    submit(&mut window, 5, 0);
    submit(&mut window, 33, 0);
    assert_eq!(read(&window, register::PENDING), 33);
    assert_eq!(submit(&mut window, 0, 0), 0);
    assert_eq!((read(&window, register::PENDING), window.reset()), (0, None));
}

#[test]
fn a_reset_forgets_what_was_written() {
    let mut window = window();
    submit(&mut window, 24, 7);
    window.reset();
    for register in [register::OPERATION, register::ARGUMENT, register::SUBMIT] {
        assert_eq!(read(&window, register), 0);
    }
}

#[test]
fn registers_take_bytes_and_what_follows_a_request_is_dropped() {
    let mut window = window();
    for (at, byte) in [(4, 0x17), (8, 0x02), (0x0d, 0xff), (0x0c, 0xfe)] {
        assert_eq!(window.write(BASE + at, &[byte]), None);
    }
    let request = Request { operation: 23, argument: 2 };
    assert_eq!(window.write(BASE + 0x0c, &[1]), Some(Submission { request, answer: Answer::Success }));
    // Operation, argument, the request, and more.
    let whole = [[5, 0, 0, 0], [0; 4], [1, 0, 0, 0], [0xff; 4]].concat();
    assert_eq!(window.write(BASE + 4, &whole).map(|submission| submission.request.operation), Some(5));
    // From the doorbell's last bytes into the window, and beyond the window.
    assert_eq!(window.write(BASE - 4, &[[0xff; 4]; 2].concat()), None);
    assert_eq!(window.write(BASE + 0xffc, &[0xff; 8]), None);
    assert_eq!(read(&window, register::PENDING), 5);
}

#[test]
fn reads_leave_bytes_outside_of_the_window_alone() {
    let mut bytes = [0x5a; 0x1008];
    window().read(BASE - 4, &mut bytes);
    assert_eq!((&bytes[..8], &bytes[0x1004..]), (&b"ZZZZPPI1"[..], &b"ZZZZ"[..]));
    assert!(bytes[4 + 0x24..0x1004].iter().all(|byte| *byte == 0xff));
}

#[test]
fn a_state_with_a_request_that_nobody_can_have_made_is_refused() {
    for (operation, argument) in [(0, 0), (1, 0), (17, 0), (23, 0x40), (u32::MAX, 0)] {
        let request = Some(Request { operation, argument });
        for state in [
            WindowState { pending: request, ..WindowState::default() },
            WindowState { under_way: request, ..WindowState::default() },
        ] {
            let error = Window::from_state(Consent::all(), state).map(|_| ()).unwrap_err();
            assert_eq!(error, WindowStateError { operation, argument });
        }
    }
}

#[derive(Clone, Debug)]
enum Step {
    Write(u64, Vec<u8>),
    Read(u64, usize),
    Reset,
    Finish(u32),
    Move,
}

fn step() -> impl Strategy<Value = Step> {
    let offset = || prop_oneof![8 => BASE..BASE + 0x28, 1 => BASE - 8..BASE, 1 => BASE + 0xff0..BASE + 0x1010, 1 => any::<u64>()];
    let operation = prop_oneof![Just(0_u32), Just(5), Just(23), Just(24), Just(33), 0_u32..40, any::<u32>()];
    prop_oneof![
        3 => (offset(), prop::collection::vec(any::<u8>(), 0..12)).prop_map(|(at, data)| Step::Write(at, data)),
        4 => (operation, 0_u32..0x30).prop_map(|(operation, argument)| {
            let words = [operation, argument, 1].map(u32::to_le_bytes);
            Step::Write(BASE + 4, words.concat())
        }),
        1 => (offset(), 0..64_usize).prop_map(|(at, count)| Step::Read(at, count)),
        2 => Just(Step::Reset),
        2 => any::<u32>().prop_map(Step::Finish),
        1 => Just(Step::Move),
    ]
}

proptest! {
    #[test]
    fn only_what_the_host_agrees_to_is_ever_carried_out(bits in 0..8_u8, steps in prop::collection::vec(step(), 0..60)) {
        let consent = Consent::from_bits_truncate(bits);
        let mut window = Window::new(consent);
        let mut taken = None;
        let mut accepted = None;
        for step in steps {
            match step {
                Step::Write(at, data) => {
                    if let Some(Submission { request, answer: Answer::Success }) = window.write(at, &data) {
                        accepted = Some(request).filter(|request| request.operation != 0);
                    }
                }
                Step::Read(at, count) => window.read(at, &mut vec![0; count]),
                Step::Reset => {
                    if let Some(request) = window.reset() {
                        prop_assert_eq!(taken, None, "two at a time");
                        prop_assert_eq!(Some(request), accepted.take(), "once, and the newest");
                        prop_assert!(request.is_sound());
                        prop_assert_eq!(Standing::of(request.operation, consent), Standing::Allowed);
                        taken = Some(request);
                    } else {
                        prop_assert!(taken.is_some() || accepted.is_none(), "not skipped");
                    }
                }
                Step::Finish(response) => {
                    let operation = taken.take().map(|request| request.operation);
                    prop_assert_eq!(window.finish(response), operation.map(|operation| Outcome { operation, response }));
                }
                Step::Move => {
                    let json = serde_json::to_string(&window.state()).unwrap();
                    let state = serde_json::from_str(&json).unwrap();
                    window = Window::from_state(consent, state).unwrap();
                }
            }
        }
    }
}
