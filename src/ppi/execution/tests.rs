//! The commands of each operation, with a TPM that answers by hand.

use super::*;

const OK: [u8; 10] = [0x80, 1, 0, 0, 0, 10, 0, 0, 0, 0];

fn begin(operation: u32, argument: u32) -> (Execution, Step) {
    Execution::begin(Request { operation, argument }).unwrap()
}

fn code(step: &Step) -> u32 {
    let header = Header::of_whole(step.bytes()).expect("a whole command");
    header.code
}

#[track_caller]
fn run(execution: &mut Execution, response: &[u8]) -> Step {
    match execution.advance(response) {
        Next::Run(step) => step,
        Next::Done { .. } => panic!("done"),
    }
}

fn failed(code: u32) -> Next {
    Next::Done { response: code, restart: false }
}

fn with_code(code: u32) -> Vec<u8> {
    [&OK[..6], &code.to_be_bytes()].concat()
}

/// The answer to the question about banks.
fn capability(banks: &[(u16, u8)]) -> Vec<u8> {
    let mut parameters = vec![0, 0, 0, 0, 5, 0, 0, 0, u8::try_from(banks.len()).unwrap()];
    for (algorithm, bits) in banks {
        parameters.extend(algorithm.to_be_bytes());
        parameters.extend([3, *bits, *bits, *bits]);
    }
    [&OK[..], &parameters].concat()
}

#[test]
fn to_clear_the_tpm_it_is_first_allowed_to_be_cleared() {
    for operation in [5, 14, 21, 22] {
        let (mut execution, step) = begin(operation, 0);
        assert_eq!(code(&step), TPM_CC_CLEAR_CONTROL);
        assert_eq!(step.bytes().last(), Some(&NO));
        let step = run(&mut execution, &OK);
        assert_eq!((code(&step), step.bytes().len()), (TPM_CC_CLEAR, 10 + 4 + 13));
        assert_eq!(execution.advance(&OK), failed(SUCCESS));
    }
}

#[test]
fn what_the_tpm_says_is_told_and_ends_it() {
    for (said, told) in [(0x101, 0x101), (0x9a2, 0x9a2), (0x1000, FIRMWARE_FAILURE), (u32::MAX, FIRMWARE_FAILURE)] {
        let (mut execution, _) = begin(5, 0);
        assert_eq!(execution.advance(&with_code(said)), failed(told));
        let (mut execution, step) = begin(24, 0);
        assert_eq!(code(&step), TPM_CC_CHANGE_EPS);
        assert_eq!(execution.advance(&with_code(said)), failed(told));
    }
}

#[test]
fn banks_are_allocated_all_at_once_and_the_tpm_starts_anew() {
    let (mut execution, step) = begin(23, 2);
    assert_eq!(code(&step), TPM_CC_GET_CAPABILITY);
    let step = run(&mut execution, &capability(&[(4, 0xff), (0x0b, 0), (0x0c, 0xff)]));
    assert_eq!(code(&step), TPM_CC_PCR_ALLOCATE);
    let list = [&[0, 0, 0, 3][..], &[0, 4, 3, 0, 0, 0], &[0, 11, 3, 255, 255, 255], &[0, 12, 3, 0, 0, 0]].concat();
    assert_eq!(step.bytes()[27..], list);
    let answer = |success| [&OK[..], &[0, 0, 0, 13, success], &[0; 12]].concat();
    assert_eq!(execution.advance(&answer(1)), Next::Done { response: SUCCESS, restart: true });
    assert_eq!(execution.advance(&answer(0)), failed(FIRMWARE_FAILURE));
}

#[test]
fn banks_that_are_as_asked_for_need_nothing() {
    let banks = capability(&[(4, 0), (0x0b, 0xff)]);
    assert_eq!(begin(23, 2).0.advance(&banks), failed(SUCCESS));
    let step = run(&mut begin(33, 0).0, &banks);
    assert_eq!(step.bytes()[step.bytes().len() - 12..], [0, 4, 3, 255, 255, 255, 0, 11, 3, 255, 255, 255]);
    assert_eq!(begin(33, 0).0.advance(&capability(&[(4, 1)])), failed(SUCCESS));
}

#[test]
fn a_bank_that_the_tpm_lacks_fails() {
    assert_eq!(begin(23, 0x12).0.advance(&capability(&[(4, 1), (0x0b, 1)])), failed(FIRMWARE_FAILURE));
}

#[test]
fn nonsense_about_banks_is_not_believed() {
    let good = capability(&[(4, 1), (0x0b, 1)]);
    for cut in 10..good.len() {
        assert_eq!(begin(23, 2).0.advance(&good[..cut]), failed(FIRMWARE_FAILURE), "{cut}");
    }
    for (at, byte) in [(14, 6), (15, 1), (18, 200), (21, 255)] {
        let mut bad = good.clone();
        bad[at] = byte;
        assert_eq!(begin(23, 2).0.advance(&bad), failed(FIRMWARE_FAILURE), "{at}");
    }
}

#[test]
fn for_no_operation_there_is_no_command() {
    for operation in [0, 1, 17, 96, u32::MAX] {
        assert!(Execution::begin(Request { operation, argument: 0 }).is_none());
    }
}
