//! The TPM as a PCI device: configuration space, register file and engine put together behind [`Device`].

use std::time::{Duration, Instant};

use crate::bar_map::{self, Window};
use crate::completion_hold::CompletionHold;
use crate::counters::CommandCounters;
use crate::engine::Engine;
use crate::frontend::{Effect, LogTooLarge, Progress, Registers};
use crate::pci::{CONFIG_SIZE, ConfigSpace, Identity, InterruptPin, MemoryBar};
use crate::ppi::{self, Answer as PresenceAnswer, Consent, Outcome, Submission};
use crate::shared_pages::SharedPages;
use crate::tpm::Locality;
use crate::vfio_user::{
    Answer, Device, DeviceFailure, DeviceInfo, Interrupts, Irq, MappableArea, Mapping, Region, RegionFlags, Ticket,
};
use vfio_bindings::bindings::vfio as ffi;

/// The default PCI vendor id: no allocation of the PCI-SIG has it, and no driver binds to it.
pub const VENDOR_ID: u16 = 0x7666;
/// The default PCI device id.
pub const DEVICE_ID: u16 = 0x5450;
/// PCI revision id, and `TPM_RID`.
const REVISION_ID: u8 = 1;
/// Encryption controller, other.
const CLASS_CODE: u32 = 0x10_8000;

const BAR0: MemoryBar = match MemoryBar::new(bar_map::SIZE) {
    Some(bar) => bar,
    None => panic!("the BAR's size is a power of two"),
};

/// The identity of a TPM with these ids.
#[must_use]
pub const fn identity(vendor_id: u16, device_id: u16) -> Identity {
    Identity { vendor_id, device_id, revision_id: REVISION_ID, class_code: CLASS_CODE }
}

/// What becomes of the device around a command and a connection.
#[derive(Clone, Copy, Debug, Default)]
pub struct DeviceOptions {
    /// Each client finds a TPM as after power-on, whether or not it sends `DEVICE_RESET`.
    pub reset_on_connect: bool,
    /// How long the answer "still busy" is held back in all for each command.
    pub completion_hold: Duration,
    /// What a guest may have done by physical presence; nothing is there for it without.
    pub presence: Option<Consent>,
    /// Whether there is a pin, and the registers' interrupts go out by it.
    pub interrupt_pin: InterruptPin,
}

/// What has happened at the device so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Activity {
    /// Reads of BAR0.
    pub reads: u64,
    /// Writes to BAR0.
    pub writes: u64,
    /// Accesses to configuration space.
    pub config_accesses: u64,
    /// Answers to these that were held back.
    pub held_answers: u64,
    /// Resets, by `DEVICE_RESET` or a connection.
    pub resets: u64,
    /// Commands that the guest has cancelled.
    pub cancels: u64,
}

/// The TPM device.
pub struct TpmDevice {
    config: ConfigSpace,
    registers: Registers<SharedPages>,
    presence: Option<ppi::Window>,
    /// What the guest may map of BAR0.
    mappable: Vec<MappableArea>,
    engine: Engine,
    hold: CompletionHold,
    interrupt_pin: InterruptPin,
    reset_on_connect: bool,
    /// The log of the TPM's last start is to be shown yet.
    log_is_due: bool,
    activity: Activity,
    commands: CommandCounters,
}

impl TpmDevice {
    /// A device that begins to start its TPM.
    #[must_use]
    pub fn new(identity: Identity, registers: Registers<SharedPages>, engine: Engine, options: DeviceOptions) -> Self {
        let DeviceOptions { reset_on_connect, completion_hold, interrupt_pin, presence } = options;
        let mut device = Self {
            config: ConfigSpace::new(identity, BAR0, interrupt_pin),
            mappable: areas(registers.shared_windows()),
            registers,
            presence: presence.map(ppi::Window::new),
            commands: CommandCounters::new(engine.version()),
            engine,
            hold: CompletionHold::new(completion_hold),
            interrupt_pin,
            reset_on_connect,
            log_is_due: true,
            activity: Activity::default(),
        };
        device.power_on();
        device
    }

    /// Why the TPM could not be stopped in order, if so.
    #[must_use]
    pub fn stop_failure(&self) -> Option<&str> {
        self.engine.stop_failure()
    }

    /// The TPM behind the registers.
    #[must_use]
    pub fn engine(&self) -> &Engine {
        &self.engine
    }

    /// What has happened at the device so far.
    #[must_use]
    pub fn activity(&self) -> &Activity {
        &self.activity
    }

    /// The guest's commands so far.
    #[must_use]
    pub fn commands(&self) -> &CommandCounters {
        &self.commands
    }

    /// How far the guest is with its command.
    #[must_use]
    pub fn progress(&self) -> Progress {
        self.registers.progress()
    }

    /// The locality that has the TPM.
    #[must_use]
    pub fn active_locality(&self) -> Option<Locality> {
        self.registers.active_locality()
    }

    /// Where the guest has put BAR0; 0 for nowhere.
    #[must_use]
    pub fn bar0_address(&self) -> u32 {
        self.config.bar0_address()
    }

    /// Shows the guest this measurement log, at most [`LOG_SIZE`](crate::frontend::LOG_SIZE) bytes, in place of the one before: now and after each
    /// reset, until there is another. The rest of the area is zeros. Nothing happens if the device has no area.
    ///
    /// # Errors
    /// [`LogTooLarge`]; nothing has changed.
    pub fn set_log(&mut self, log: &[u8]) -> Result<(), LogTooLarge> {
        self.registers.set_log(log)
    }

    /// The window for physical presence, if there is one.
    #[must_use]
    pub fn presence(&self) -> Option<&ppi::Window> {
        self.presence.as_ref()
    }

    fn carry_out(&mut self, effect: Effect) {
        let now = Instant::now();
        match effect {
            Effect::Execute(locality) => {
                self.hold.begin(now);
                self.commands.begin(self.registers.command(), now);
                self.engine.execute(locality, self.registers.command(), now);
            }
            Effect::Cancel => {
                self.activity.cancels += 1;
                self.engine.cancel(now);
            }
            Effect::ResetEstablishment(locality) => self.engine.reset_establishment(locality, now),
        }
        self.take_over(now);
    }

    /// Shows the guest what the engine has finished.
    fn take_over(&mut self, now: Instant) {
        if self.log_is_due {
            self.show_log();
        }
        self.registers.set_establishment(self.engine.established());
        let taken = self.engine.take_response(|response| {
            self.registers.complete(response);
            self.commands.end(response, now);
        });
        if taken.is_some() {
            self.hold.end();
        }
        if let Some(response) = self.engine.platform_mut().take_response() {
            if let Some(outcome) = self.presence.as_mut().and_then(|presence| presence.finish(response)) {
                tell_outcome(outcome);
            }
        }
    }

    fn read_bar0(&mut self, offset: u64, data: &mut [u8]) {
        self.registers.read(offset, data);
        if let Some(presence) = &self.presence {
            presence.read(offset, data);
        }
    }

    /// Shows the guest what the platform has measured, once the TPM is up: it is there before the guest's first command is
    /// answered.
    fn show_log(&mut self) {
        let Some(log) = self.engine.event_log() else { return };
        if let Err(error) = self.registers.set_log(log) {
            log::error!("{error}");
        }
        self.log_is_due = false;
    }

    /// Tells the registers where the guest has put them.
    fn place(&mut self) {
        self.registers.place(self.config.bar0_address());
    }

    /// Carries out what a write at `offset` has led to, and answers it.
    fn follow(&mut self, effect: Option<Effect>, offset: u64) -> Answer {
        let Some(effect) = effect else { return Answer::Now };
        self.carry_out(effect);
        let starts = matches!(effect, Effect::Execute(_)) && self.registers.start_is_awaited();
        if starts && self.may_wait(Access::Start) { self.hold_back(offset) } else { Answer::Now }
    }

    fn hold_back(&mut self, offset: u64) -> Answer {
        self.activity.held_answers += 1;
        Answer::Later(Ticket(offset))
    }

    fn power_on(&mut self) {
        let now = Instant::now();
        self.config.reset();
        self.registers.reset();
        self.place();
        self.hold.end();
        self.commands.abandon();
        self.log_is_due = true;
        if let Some(request) = self.presence.as_mut().and_then(ppi::Window::reset) {
            self.engine.platform_mut().request(request);
        }
        self.engine.reset(now);
        self.take_over(now);
    }

    /// Whether the guest would only learn from this access that its command still runs, and may wait for more.
    fn may_wait(&mut self, access: Access) -> bool {
        let waits = match access {
            Access::Read { offset, length } => self.registers.asks_for_completion(offset, length),
            Access::Start => self.registers.is_busy(),
        };
        waits && self.hold.holds(Instant::now())
    }
}

fn tell_submission(Submission { request, answer }: Submission) {
    let operation = request.operation;
    match answer {
        PresenceAnswer::Success if operation == 0 => log::info!("the guest asks for nothing by physical presence"),
        PresenceAnswer::Success => {
            log::info!("the guest asks for physical presence operation {operation}, which the next reset carries out");
        }
        PresenceAnswer::Blocked => log::warn!(
            "the guest asks for physical presence operation {operation}, to which the host has not agreed (--ppi-allow)"
        ),
        PresenceAnswer::NotImplemented => {
            log::warn!("the guest asks for physical presence operation {operation}, which there is not");
        }
        PresenceAnswer::GeneralFailure => log::warn!(
            "the guest asks for physical presence operation {operation} with an argument that it cannot have: {:#x}",
            request.argument
        ),
    }
}

fn tell_outcome(Outcome { operation, response }: Outcome) {
    match response {
        ppi::SUCCESS => log::info!("physical presence operation {operation} was carried out"),
        response => log::warn!("physical presence operation {operation} failed with {response:#x}"),
    }
}

/// The windows as a client maps them: those without a gap between them in one.
fn areas(windows: &[Window]) -> Vec<MappableArea> {
    let mut areas: Vec<MappableArea> = Vec::new();
    for window in windows {
        let (offset, size) = (u64::from(window.offset), u64::from(window.length));
        match areas.last_mut().filter(|last| last.offset + last.size == offset) {
            Some(last) => last.size += size,
            None => areas.push(MappableArea { offset, size }),
        }
    }
    areas
}

/// An access that may be answered later.
#[derive(Clone, Copy, Debug)]
enum Access {
    /// Of BAR0.
    Read { offset: u64, length: usize },
    /// The write that has started the command.
    Start,
}

/// Register accesses are the way of every command, byte by byte: no look at the clock, no allocation, no system call,
/// but for the write that starts or cancels a command, and for the question whether it has ended.
impl Device for TpmDevice {
    fn info(&self) -> DeviceInfo {
        DeviceInfo { regions: ffi::VFIO_PCI_NUM_REGIONS, irqs: ffi::VFIO_PCI_NUM_IRQS }
    }

    fn region(&self, index: u32) -> Region {
        let size = match index {
            ffi::VFIO_PCI_BAR0_REGION_INDEX => u64::from(bar_map::SIZE),
            ffi::VFIO_PCI_CONFIG_REGION_INDEX => CONFIG_SIZE as u64,
            _ => return Region::NONE,
        };
        Region { size, flags: RegionFlags::READ | RegionFlags::WRITE }
    }

    fn irq(&self, index: u32) -> Irq {
        match (index, self.interrupt_pin) {
            (ffi::VFIO_PCI_INTX_IRQ_INDEX, InterruptPin::IntA) => Irq { count: 1, maskable: true, automasked: true },
            // QEMU warns if it cannot register for errors and for the request to give the device back.
            (ffi::VFIO_PCI_ERR_IRQ_INDEX | ffi::VFIO_PCI_REQ_IRQ_INDEX, _) => {
                Irq { count: 1, maskable: false, automasked: false }
            }
            _ => Irq { count: 0, maskable: false, automasked: false },
        }
    }

    fn mapping(&self, index: u32) -> Option<Mapping<'_>> {
        let file = self.registers.memory().file()?;
        let mapped = index == ffi::VFIO_PCI_BAR0_REGION_INDEX && !self.mappable.is_empty();
        mapped.then_some(Mapping { file, offset: 0, areas: &self.mappable })
    }

    fn read(&mut self, index: u32, offset: u64, data: &mut [u8]) -> Answer {
        match index {
            ffi::VFIO_PCI_CONFIG_REGION_INDEX => {
                self.activity.config_accesses += 1;
                self.config.set_interrupt_pending(self.registers.interrupt_level());
                self.config.read(offset, data);
            }
            ffi::VFIO_PCI_BAR0_REGION_INDEX => {
                self.activity.reads += 1;
                if self.may_wait(Access::Read { offset, length: data.len() }) {
                    return self.hold_back(offset);
                }
                self.read_bar0(offset, data);
            }
            _ => data.fill(0xff),
        }
        Answer::Now
    }

    fn write(&mut self, index: u32, offset: u64, data: &[u8]) -> Answer {
        match index {
            ffi::VFIO_PCI_CONFIG_REGION_INDEX => {
                self.activity.config_accesses += 1;
                let before = self.config.bar0_address();
                self.config.write(offset, data);
                if self.config.bar0_address() != before {
                    self.place();
                }
                if offset == u64::from(bar_map::CONFIG_DOORBELL) {
                    let effect = self.registers.ring(data);
                    return self.follow(effect, offset);
                }
            }
            ffi::VFIO_PCI_BAR0_REGION_INDEX => {
                self.activity.writes += 1;
                let effect = self.registers.write(offset, data);
                if let Some(submission) = self.presence.as_mut().and_then(|presence| presence.write(offset, data)) {
                    tell_submission(submission);
                }
                return self.follow(effect, offset);
            }
            _ => {}
        }
        Answer::Now
    }

    fn resume(&mut self, Ticket(offset): Ticket, data: &mut [u8], must_answer: bool) -> Answer {
        // A read has at least one byte.
        let access = if data.is_empty() { Access::Start } else { Access::Read { offset, length: data.len() } };
        if !must_answer && self.may_wait(access) {
            return Answer::Later(Ticket(offset));
        }
        self.read_bar0(offset, data);
        Answer::Now
    }

    fn interrupts(&mut self, interrupts: &mut dyn Interrupts) {
        self.config.set_interrupt_pending(self.registers.interrupt_level());
        if self.config.asserts_interrupt() {
            interrupts.line(ffi::VFIO_PCI_INTX_IRQ_INDEX);
        }
    }

    fn reset(&mut self) {
        self.activity.resets += 1;
        self.power_on();
    }

    fn connected(&mut self) {
        if self.reset_on_connect {
            self.reset();
        }
    }

    /// Whoever was connected may have kept the pages: the next one gets others, with the same in them.
    fn disconnected(&mut self) {
        let windows = self.registers.shared_windows();
        self.registers.memory_mut().renew(windows);
        self.place();
    }

    fn wake(&mut self) {
        let now = Instant::now();
        self.engine.poll(now);
        self.take_over(now);
        self.hold.expire(now);
    }

    fn deadline(&self) -> Option<Instant> {
        [self.engine.deadline(), self.hold.deadline()].into_iter().flatten().min()
    }

    fn stop(&mut self) {
        self.engine.stop(Instant::now());
    }

    fn stopped(&self) -> bool {
        self.engine.is_off()
    }

    fn take_failure(&mut self) -> Option<DeviceFailure> {
        self.engine.start_failure().map(|reason| format!("the TPM cannot start: {reason}").into())
    }
}

#[cfg(test)]
mod tests;
