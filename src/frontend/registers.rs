//! The registers behind BAR0, whichever interface the device has.

use super::crb::{Crb, CrbDoorbell};
use super::log_area::LogArea;
use super::memory::{self, Memory};
use super::tis::Tis;
use super::{Effect, LogState, LogStateError, LogTooLarge, Progress};
use crate::bar_map::{COMMAND_BUFFER, CONTROL_AREA, DOORBELL, LOG, Window};
use crate::tpm::Locality;

/// The registers behind BAR0, of whichever interface. Offsets are BAR0's ([`bar_map`](crate::bar_map)).
#[derive(Clone, Debug)]
pub struct Registers<M> {
    file: RegisterFile<M>,
    /// Unless the device has none.
    log: Option<LogArea>,
}

/// The register file of an interface, and the memory for those windows of BAR0 that have any.
#[derive(Clone, Debug)]
pub enum RegisterFile<M> {
    /// The FIFO interface. It has no use for memory itself.
    Tis(Tis, M),
    /// The command response buffer.
    Crb(Crb<M>),
    /// The command response buffer whose commands ACPI starts.
    CrbDoorbell(CrbDoorbell<M>),
}

impl<M: Memory> Registers<M> {
    /// The registers of this interface, and an area for the measurement log, which is empty.
    #[must_use]
    pub fn new(file: RegisterFile<M>) -> Self {
        let log = LogArea::default();
        let mut registers = Self { file, log: Some(log) };
        registers.show_log();
        registers
    }

    /// The registers of this interface alone.
    #[must_use]
    pub fn without_log(file: RegisterFile<M>) -> Self {
        Self { file, log: None }
    }

    /// The interface's own.
    #[must_use]
    pub fn file(&self) -> &RegisterFile<M> {
        &self.file
    }

    /// Reads any number of bytes. Where the interface has nothing, that gives 0xff.
    pub fn read(&mut self, offset: u64, data: &mut [u8]) {
        match &mut self.file {
            RegisterFile::Tis(tis, _) => tis.read(offset, data),
            RegisterFile::Crb(crb) => crb.read(offset, data),
            RegisterFile::CrbDoorbell(crb) => crb.read(offset, data),
        }
        for window in self.plain_windows() {
            memory::read_window(self.memory(), *window, offset, data);
        }
    }

    /// Writes any number of bytes; where the interface has nothing to be written they are dropped. What comes after a
    /// word that has an effect is dropped, too.
    #[must_use]
    pub fn write(&mut self, offset: u64, data: &[u8]) -> Option<Effect> {
        let effect = match &mut self.file {
            RegisterFile::Tis(tis, _) => tis.write(offset, data),
            RegisterFile::Crb(crb) => crb.write(offset, data),
            RegisterFile::CrbDoorbell(crb) => crb.write(offset, data),
        };
        if effect.is_none() {
            for window in self.plain_windows() {
                memory::write_window(self.memory_mut(), *window, offset, data);
            }
        }
        effect
    }

    /// The whole command that [`Effect::Execute`] asked to run, until it completes or is aborted; else empty.
    #[must_use]
    pub fn command(&self) -> &[u8] {
        match &self.file {
            RegisterFile::Tis(tis, _) => tis.command(),
            RegisterFile::Crb(crb) => crb.command(),
            RegisterFile::CrbDoorbell(crb) => crb.command(),
        }
    }

    /// Whether an [`Effect::Execute`] has not been completed yet.
    #[must_use]
    pub fn is_busy(&self) -> bool {
        match &self.file {
            RegisterFile::Tis(tis, _) => tis.is_busy(),
            RegisterFile::Crb(crb) => crb.is_busy(),
            RegisterFile::CrbDoorbell(crb) => crb.is_busy(),
        }
    }

    /// Completes the command of the last [`Effect::Execute`]. A response that isn't whole, by its own size field, or
    /// over [`BUFFER_SIZE`](crate::tpm::BUFFER_SIZE) is replaced by a failure; that of an aborted command is thrown
    /// away. Ignored when no command runs.
    pub fn complete(&mut self, response: &[u8]) {
        match &mut self.file {
            RegisterFile::Tis(tis, _) => tis.complete(response),
            RegisterFile::Crb(crb) => crb.complete(response),
            RegisterFile::CrbDoorbell(crb) => crb.complete(response),
        }
    }

    /// Shows `tpmEstablished` as the TPM reports it, where the interface shows it.
    pub fn set_establishment(&mut self, established: bool) {
        match &mut self.file {
            RegisterFile::Tis(tis, _) => tis.set_establishment(established),
            RegisterFile::Crb(crb) => crb.set_establishment(established),
            RegisterFile::CrbDoorbell(_) => {}
        }
    }

    /// Power-on. A command that still runs in the backend is forgotten: its result must not be passed to
    /// [`complete`](Self::complete). Where BAR0 is stays until the next [`place`](Self::place). The measurement log is
    /// the server's again.
    pub fn reset(&mut self) {
        match &mut self.file {
            RegisterFile::Tis(tis, _) => tis.reset(),
            RegisterFile::Crb(crb) => crb.reset(),
            RegisterFile::CrbDoorbell(crb) => crb.reset(),
        }
        self.show_log();
    }

    /// Takes over where the guest has put BAR0, 0 for nowhere: a CRB says where its buffer is.
    pub fn place(&mut self, bar0_address: u32) {
        match &mut self.file {
            RegisterFile::Tis(..) => {}
            RegisterFile::Crb(crb) => crb.place(bar0_address),
            RegisterFile::CrbDoorbell(crb) => crb.place(bar0_address),
        }
    }

    /// Whether a *read* of `len` bytes there would tell the guest nothing but that its command still runs. The device
    /// may hold such a read back for a moment.
    #[must_use]
    pub fn asks_for_completion(&self, offset: u64, len: usize) -> bool {
        let byte = match &self.file {
            RegisterFile::Tis(tis, _) => tis.completion_byte(),
            RegisterFile::Crb(crb) => crb.completion_byte(),
            RegisterFile::CrbDoorbell(crb) => crb.completion_byte(),
        };
        byte.and_then(|byte| byte.checked_sub(offset))
            .is_some_and(|distance| usize::try_from(distance).is_ok_and(|distance| distance < len))
    }

    /// The level of the interrupt line, high for an interrupt. A CRB that ACPI starts has no registers for interrupts.
    #[must_use]
    pub fn interrupt_level(&self) -> bool {
        match &self.file {
            RegisterFile::Tis(tis, _) => tis.interrupt_level(),
            RegisterFile::Crb(crb) => crb.interrupt_level(),
            RegisterFile::CrbDoorbell(_) => false,
        }
    }

    /// Rings the doorbell, as a write to its window does, by another way; nothing where there is none.
    #[must_use]
    pub fn ring(&mut self, data: &[u8]) -> Option<Effect> {
        match &mut self.file {
            RegisterFile::Tis(..) | RegisterFile::Crb(_) => None,
            RegisterFile::CrbDoorbell(crb) => crb.write(DOORBELL.offset.into(), data),
        }
    }

    /// Whether the guest looks for the end of its command in memory of its own, so that only the write that starts the
    /// command can be held back.
    #[must_use]
    pub fn start_is_awaited(&self) -> bool {
        match &self.file {
            RegisterFile::Tis(..) | RegisterFile::Crb(_) => false,
            RegisterFile::CrbDoorbell(_) => true,
        }
    }

    /// How far the guest is with its command.
    #[must_use]
    pub fn progress(&self) -> Progress {
        match &self.file {
            RegisterFile::Tis(tis, _) => tis.progress(),
            RegisterFile::Crb(crb) => crb.progress(),
            RegisterFile::CrbDoorbell(crb) if crb.is_busy() => Progress::Execution,
            RegisterFile::CrbDoorbell(_) => Progress::Ready,
        }
    }

    /// The locality that has the TPM. Without registers for localities it is always the same.
    #[must_use]
    pub fn active_locality(&self) -> Option<Locality> {
        match &self.file {
            RegisterFile::Tis(tis, _) => tis.active_locality(),
            RegisterFile::Crb(crb) => crb.active_locality(),
            RegisterFile::CrbDoorbell(_) => Some(Locality::ZERO),
        }
    }

    /// Shows the guest this measurement log of the server's, now and after each reset, until there is another. At most
    /// [`LOG_SIZE`](super::LOG_SIZE) bytes; the rest of the area is zeros. What is in the area now is lost. Nothing
    /// happens where the device has no area.
    ///
    /// # Errors
    /// [`LogTooLarge`]; the log before stays.
    pub fn set_log(&mut self, log: &[u8]) -> Result<(), LogTooLarge> {
        if let Some(area) = &mut self.log {
            area.set(log)?;
            self.show_log();
        }
        Ok(())
    }

    fn show_log(&mut self) {
        if let Some(log) = &self.log {
            log.show(self.file.memory_mut());
        }
    }

    /// The measurement log and its area as plain data; `None` if the device has none.
    #[must_use]
    pub fn log_state(&self) -> Option<LogState> {
        Some(self.log.as_ref()?.state(self.memory()))
    }

    /// Makes the measurement log what [`log_state`](Self::log_state) gave.
    ///
    /// # Errors
    /// [`LogStateError`] for what is none, and for a state of a device that has an area if this one has none, or the
    /// other way round. Nothing has changed then.
    pub fn restore_log(&mut self, state: Option<&LogState>) -> Result<(), LogStateError> {
        self.log = match (&self.log, state) {
            (Some(_), Some(state)) => Some(LogArea::from_state(state, self.file.memory_mut())?),
            (None, None) => None,
            _ => return Err(LogStateError::OtherDevice),
        };
        Ok(())
    }

    /// The windows of BAR0 that are memory and nothing else: what is written there has no effect but to be there.
    fn plain_windows(&self) -> &'static [Window] {
        if self.log.is_some() { &[LOG] } else { &[] }
    }

    /// The windows of BAR0 that are memory to be mapped into the guest, in ascending order. A part of the region that is
    /// mapped makes QEMU post no more writes to the rest (11.1), and those are what TIS lives on.
    #[must_use]
    pub fn shared_windows(&self) -> &'static [Window] {
        match (&self.file, &self.log) {
            (RegisterFile::Tis(..), _) => &[],
            (RegisterFile::Crb(_), None) => &[COMMAND_BUFFER],
            (RegisterFile::Crb(_), Some(_)) => &[COMMAND_BUFFER, LOG],
            (RegisterFile::CrbDoorbell(_), None) => &[CONTROL_AREA, COMMAND_BUFFER],
            (RegisterFile::CrbDoorbell(_), Some(_)) => &[CONTROL_AREA, COMMAND_BUFFER, LOG],
        }
    }

    /// The memory.
    #[must_use]
    pub fn memory(&self) -> &M {
        self.file.memory()
    }

    /// The memory. After it was exchanged for another, call [`place`](Self::place): the interface may have something to
    /// say in it.
    #[must_use]
    pub fn memory_mut(&mut self) -> &mut M {
        self.file.memory_mut()
    }
}

impl<M: Memory> RegisterFile<M> {
    fn memory(&self) -> &M {
        match self {
            Self::Tis(_, memory) => memory,
            Self::Crb(crb) => crb.memory(),
            Self::CrbDoorbell(crb) => crb.memory(),
        }
    }

    fn memory_mut(&mut self) -> &mut M {
        match self {
            Self::Tis(_, memory) => memory,
            Self::Crb(crb) => crb.memory_mut(),
            Self::CrbDoorbell(crb) => crb.memory_mut(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frontend::LOG_SIZE;
    use crate::frontend::crb::CrbConfig;
    use crate::frontend::memory::pages::Pages;
    use crate::frontend::tis::TisConfig;
    use crate::tpm::{Header, TpmVersion};

    const CRB: CrbConfig = CrbConfig { vendor_id: 0x1014, device_id: 1, revision: 7, guest_locality_4: false };

    fn command() -> [u8; 10] {
        Header { tag: 0x8001, size: 10, code: 0x17b }.to_bytes()
    }

    fn tis() -> Registers<Pages> {
        let version = TpmVersion::V2_0;
        let config = TisConfig { version, vendor_id: 0x1014, device_id: 1, revision: 7, guest_locality_4: false };
        Registers::new(RegisterFile::Tis(Tis::new(config), Pages::new()))
    }

    fn crb() -> Registers<Pages> {
        Registers::new(RegisterFile::Crb(Crb::new(CRB, Pages::new())))
    }

    fn crb_doorbell() -> Registers<Pages> {
        Registers::new(RegisterFile::CrbDoorbell(CrbDoorbell::new(CRB, Pages::new())))
    }

    /// An interface in front of a guest.
    struct Interface {
        registers: Registers<Pages>,
        /// What brings a command in, and then what starts it, as offsets and bytes.
        before: Vec<(u64, Vec<u8>)>,
        start: (u64, u8),
        /// The locality that starts it.
        locality: u8,
        /// Where it shows that the command runs.
        shows: u64,
    }

    impl Interface {
        fn all() -> [Self; 3] {
            let command = || command().to_vec();
            [
                Self {
                    registers: tis(),
                    before: vec![(0x2000, vec![0x02]), (0x2018, vec![0x40]), (0x2080, command())],
                    start: (0x2018, 0x20),
                    locality: 2,
                    shows: 0x2018,
                },
                Self {
                    registers: crb(),
                    before: vec![(0x2008, vec![1]), (0x2040, vec![1]), (0x9000, command())],
                    start: (0x204c, 1),
                    locality: 2,
                    shows: 0x204c,
                },
                Self {
                    registers: crb_doorbell(),
                    before: vec![(0x9000, command())],
                    start: (0x5000, 1),
                    locality: 0,
                    shows: 0x804c,
                },
            ]
        }

        fn start(&mut self) {
            for (offset, data) in &self.before {
                assert_eq!(self.registers.write(*offset, data), None);
                assert!(!self.registers.asks_for_completion(self.shows, 1));
            }
            let execute = Effect::Execute(Locality::new(self.locality).expect("0 to 4"));
            assert_eq!(self.registers.write(self.start.0, &[self.start.1]), Some(execute));
        }
    }

    #[test]
    fn each_interface_runs_a_command() {
        for mut interface in Interface::all() {
            interface.registers.place(0xfe80_0000);
            interface.start();
            let mut registers = interface.registers;
            assert!(registers.is_busy());
            assert_eq!(registers.command(), command());
            registers.complete(&command());
            assert!(!registers.is_busy());
            assert!(registers.command().is_empty());
        }
    }

    #[test]
    fn a_read_asks_for_completion_while_a_command_runs_and_where_that_is_all_it_tells() {
        for mut interface in Interface::all() {
            interface.start();
            let Interface { mut registers, shows: at, .. } = interface;
            for (offset, len) in [(at, 1), (at, 4), (at - 1, 2), (at - 3, 8), (0, 0x2_0000)] {
                assert!(registers.asks_for_completion(offset, len), "{len} bytes at {offset:x}");
            }
            for (offset, len) in [(at, 0), (at + 1, 3), (at - 4, 4), (at ^ 0x1000, 4), (u64::MAX, 8), (0, 0)] {
                assert!(!registers.asks_for_completion(offset, len), "{len} bytes at {offset:x}");
            }
            registers.complete(&command());
            assert!(!registers.asks_for_completion(at, 4));
        }
    }

    #[test]
    fn how_far_a_command_is_and_whose_it_is_can_be_asked() {
        let (idle, ready, completion) = (Progress::Idle, Progress::Ready, Progress::Completion);
        let around = [(idle, completion), (idle, completion), (ready, ready)];
        for (mut interface, (before, completed)) in Interface::all().into_iter().zip(around) {
            assert_eq!(interface.registers.progress(), before);
            interface.start();
            let Interface { mut registers, locality, .. } = interface;
            assert_eq!(registers.progress(), Progress::Execution);
            assert_eq!(registers.active_locality(), Locality::new(locality));
            registers.complete(&command());
            assert_eq!(registers.progress(), completed);
        }
    }

    #[test]
    fn a_read_after_a_loss_of_the_locality_asks_for_nothing() {
        let [tis, crb, _] = Interface::all();
        for (mut interface, seize) in [(tis, (0x3000, 8)), (crb, (0x3008, 4))] {
            interface.start();
            let Interface { mut registers, shows: at, .. } = interface;
            assert_eq!(registers.write(seize.0, &[seize.1]), Some(Effect::Cancel));
            assert!(registers.is_busy());
            assert!(!registers.asks_for_completion(at, 4));
            assert!(!registers.asks_for_completion(at + 0x1000, 4), "another's command");
        }
    }

    #[test]
    fn establishment_shows_where_there_is_a_register_for_it() {
        for (mut registers, expected) in [(tis(), 0x80), (crb(), 0x80), (crb_doorbell(), 0xff)] {
            registers.set_establishment(true);
            registers.reset();
            let mut byte = [0x5a];
            registers.read(0, &mut byte);
            assert_eq!(byte, [expected]);
        }
    }

    const LOG_START: u64 = LOG.offset as u64;

    fn read(registers: &mut Registers<Pages>, offset: u64, len: usize) -> Vec<u8> {
        let mut data = vec![0x5a; len];
        registers.read(offset, &mut data);
        data
    }

    fn log_area(registers: &mut Registers<Pages>) -> Vec<u8> {
        read(registers, LOG_START, LOG_SIZE)
    }

    fn shown(log: &[u8]) -> Vec<u8> {
        let mut area = log.to_vec();
        area.resize(LOG_SIZE, 0);
        area
    }

    #[test]
    fn the_log_is_memory_that_begins_with_zeros_whatever_the_interface() {
        for mut registers in [tis(), crb(), crb_doorbell()] {
            assert_eq!(log_area(&mut registers), shown(&[]));
            assert_eq!(registers.write(LOG_START - 2, &[1, 2, 3, 4]), None);
            assert_eq!(registers.write(LOG_START + 0xfffe, &[5, 6, 7, 8]), None);
            assert_eq!(read(&mut registers, LOG_START - 2, 5), [0xff, 0xff, 3, 4, 0]);
            assert_eq!(read(&mut registers, LOG_START + 0xfffd, 5), [0, 5, 6, 0xff, 0xff]);
        }
    }

    #[test]
    fn without_a_log_its_window_reads_ones_and_takes_nothing() {
        for with in [tis(), crb(), crb_doorbell()] {
            let mut registers = Registers::without_log(with.file);
            assert_eq!(registers.set_log(&vec![0; LOG_SIZE + 1]), Ok(()));
            assert_eq!(registers.write(LOG_START, &[1; 8]), None);
            registers.reset();
            assert_eq!(log_area(&mut registers), vec![0xff; LOG_SIZE]);
            assert!(!registers.shared_windows().contains(&LOG));
            assert_eq!(registers.log_state(), None);
        }
    }

    #[test]
    fn what_follows_an_effect_does_not_reach_the_log() {
        for mut interface in Interface::all() {
            for (offset, data) in &interface.before {
                assert_eq!(interface.registers.write(*offset, data), None);
            }
            let (offset, byte) = interface.start;
            let mut wide = vec![0; LOG_SIZE];
            wide[0] = byte;
            wide[usize::try_from(LOG_START - offset).expect("small")] = 0x5a;
            assert!(interface.registers.write(offset, &wide).is_some());
            assert_eq!(log_area(&mut interface.registers), shown(&[]));
        }
    }

    #[test]
    fn a_reset_brings_the_servers_log_back() {
        for mut registers in [tis(), crb(), crb_doorbell()] {
            registers.set_log(b"the server's log").unwrap();
            assert_eq!(registers.write(LOG_START, b"another"), None);
            assert_eq!(registers.write(LOG_START + 0x8000, b"and more"), None);
            assert_ne!(log_area(&mut registers), shown(b"the server's log"));
            registers.reset();
            assert_eq!(log_area(&mut registers), shown(b"the server's log"));
        }
    }

    #[test]
    fn a_new_log_takes_the_place_of_all_that_is_there() {
        for mut registers in [tis(), crb(), crb_doorbell()] {
            assert_eq!(registers.write(LOG_START + 0xfff0, b"the guest's"), None);
            for log in [&vec![7; LOG_SIZE][..], b"short", b""] {
                registers.set_log(log).unwrap();
                assert_eq!(log_area(&mut registers), shown(log));
            }
        }
    }

    #[test]
    fn a_log_that_is_larger_than_its_area_is_refused() {
        let mut registers = crb();
        registers.set_log(b"before").unwrap();
        let refusal = registers.set_log(&vec![7; LOG_SIZE + 1]).unwrap_err().to_string();
        assert_eq!(refusal, "the measurement log has 65537 bytes: expected at most 65536");
        registers.reset();
        assert_eq!(log_area(&mut registers), shown(b"before"));
    }

    #[test]
    fn the_log_and_what_the_guest_made_of_it_can_be_exported_and_imported() {
        for (mut registers, mut copy) in [(tis(), tis()), (crb(), crb()), (crb_doorbell(), crb_doorbell())] {
            registers.set_log(b"the server's log").unwrap();
            assert_eq!(registers.write(LOG_START + 4, b"guest's "), None);
            let state = registers.log_state().unwrap();
            copy.restore_log(Some(&state)).unwrap();
            assert_eq!(copy.log_state().as_ref(), Some(&state));
            assert_eq!(log_area(&mut copy), shown(b"the guest's  log"));
            copy.reset();
            assert_eq!(log_area(&mut copy), shown(b"the server's log"));
        }
    }

    #[test]
    fn only_with_a_doorbell_the_start_is_awaited() {
        for (registers, awaited) in [(tis(), false), (crb(), false), (crb_doorbell(), true)] {
            assert_eq!(registers.start_is_awaited(), awaited);
        }
    }
}
