//! The device's exported state as it comes back: taken only if a device can be in it, and then it behaves like one.

use vfio_user_tpm::frontend::crb::{Crb, CrbConfig, CrbDoorbell, CrbDoorbellState, CrbState};
use vfio_user_tpm::frontend::tis::{Tis, TisConfig, TisState};
use vfio_user_tpm::frontend::{Effect, LOG_SIZE, LogState, RegisterFile, Registers};
use vfio_user_tpm::pci::{ConfigSpace, ConfigSpaceState, Identity, InterruptPin, MemoryBar};
use vfio_user_tpm::tpm::{BUFFER_SIZE, Header, TpmVersion};

use super::pages::Pages;
use super::tape::Tape;

const COMMAND: [u8; 10] = [0x80, 1, 0, 0, 0, 10, 0, 0, 1, 0x44];

const IDENTITY: Identity = Identity { vendor_id: 0x7666, device_id: 0x5450, revision_id: 1, class_code: 0x10_8000 };

pub fn run(data: &[u8]) {
    let mut tape = Tape::new(data);
    let version = if tape.flag() { TpmVersion::V2_0 } else { TpmVersion::V1_2 };
    let config = TisConfig { version, vendor_id: 0x1014, device_id: 1, revision: 7, guest_locality_4: tape.flag() };
    let json = tape.rest();
    if let Ok(state) = serde_json::from_slice::<TisState>(json) {
        registers(config, &state);
    }
    let TisConfig { guest_locality_4, .. } = config;
    let config = CrbConfig { vendor_id: 0x1014, device_id: 1, revision: 7, guest_locality_4 };
    if let Ok(state) = serde_json::from_slice::<CrbState>(json) {
        crb(config, &state);
    }
    if let Ok(state) = serde_json::from_slice::<CrbDoorbellState>(json) {
        crb_doorbell(&state);
    }
    if let Ok(state) = serde_json::from_slice::<LogState>(json) {
        log(config, &state);
    }
    if let Ok(state) = serde_json::from_slice::<ConfigSpaceState>(json) {
        configuration(&state);
    }
}

fn registers(config: TisConfig, state: &TisState) {
    let mut tis = match Tis::from_state(config, state) {
        Ok(tis) => tis,
        Err(error) => return assert!(!error.to_string().is_empty()),
    };
    assert_eq!(tis.state(), *state);
    assert!(tis.command().is_empty() || tis.is_busy() && Header::of_whole(tis.command()).is_some());
    // Whatever runs can be answered, and what is answered read; and the next command comes through.
    tis.complete(&Header { tag: 0x8001, size: 10, code: 0 }.to_bytes());
    assert!(!tis.is_busy());
    let mut response = [0; 64];
    (0..=BUFFER_SIZE / 64).for_each(|_| tis.read(0x80, &mut response));
    for page in 0..4 {
        for (register, data) in [(0, &[0x08][..]), (0x18, &[0x40]), (0x80, &COMMAND)] {
            assert!(tis.write(page * 0x1000 + register, data).is_none_or(|effect| effect == Effect::Cancel));
        }
    }
    let owner = (0..5).find(|page| {
        let mut access = [0];
        tis.read(page * 0x1000, &mut access);
        access[0] & 0x20 != 0
    });
    let owner = owner.expect("locality 3 has seized the TPM, unless 4 had it");
    if owner == 3 {
        assert!(matches!(tis.write(0x3018, &[0x20]), Some(Effect::Execute(_))));
    }
}

fn crb(config: CrbConfig, state: &CrbState) {
    let mut crb = match Crb::from_state(config, state, Pages::new()) {
        Ok(crb) => crb,
        Err(error) => return assert!(!error.to_string().is_empty()),
    };
    assert_eq!(crb.state(), *state);
    assert!(crb.command().is_empty() || crb.is_busy() && Header::of_whole(crb.command()).is_some());
    // Whatever runs can be answered; and the next command comes through.
    crb.complete(&Header { tag: 0x8001, size: 10, code: 0 }.to_bytes());
    assert!(!crb.is_busy());
    assert_eq!(crb.write(0x9000, &COMMAND), None);
    for page in 0..4 {
        for (register, bit) in [(0x08, 4), (0x40, 1)] {
            assert_eq!(crb.write(page * 0x1000 + register, &[bit]), None);
        }
    }
    let mut granted = [0];
    crb.read(0x300c, &mut granted);
    if granted[0] & 1 != 0 {
        assert!(matches!(crb.write(0x304c, &[1]), Some(Effect::Execute(_))));
    } else {
        crb.read(0x400c, &mut granted);
        assert!(granted[0] & 1 != 0, "locality 3 has seized the TPM, unless 4 had it");
    }
}

fn crb_doorbell(state: &CrbDoorbellState) {
    let mut crb = match CrbDoorbell::from_state(state, Pages::new()) {
        Ok(crb) => crb,
        Err(error) => return assert!(!error.to_string().is_empty()),
    };
    assert_eq!(crb.state(), *state);
    assert_eq!(crb.is_busy(), Header::of_whole(crb.command()).is_some());
    crb.complete(&Header { tag: 0x8001, size: 10, code: 0 }.to_bytes());
    assert!(!crb.is_busy());
    assert_eq!(crb.write(0x9000, &COMMAND), None);
    assert!(matches!(crb.write(0x5000, &[1]), Some(Effect::Execute(_))));
}

fn log(config: CrbConfig, state: &LogState) {
    let mut registers = Registers::new(RegisterFile::Crb(Crb::new(config, Pages::new())));
    if let Err(error) = registers.restore_log(Some(state)) {
        return assert!(!error.to_string().is_empty());
    }
    assert_eq!(registers.log_state().as_ref(), Some(state));
    registers.reset();
    let mut area = vec![0; LOG_SIZE];
    registers.read(0x1_0000, &mut area);
    let (log, rest) = area.split_at(state.server.len());
    assert!(log == state.server && rest.iter().all(|byte| *byte == 0));
}

fn configuration(state: &ConfigSpaceState) {
    let bar = MemoryBar::new(0x2_0000).expect("a power of two");
    match ConfigSpace::from_state(IDENTITY, bar, InterruptPin::IntA, state) {
        Ok(mut config) => {
            assert_eq!(config.state(), *state);
            assert_eq!(config.bar0_address() & 0x1_ffff, 0);
            config.reset();
            assert_eq!(config, ConfigSpace::new(IDENTITY, bar, InterruptPin::IntA));
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}
