//! What a register access allocates, from the socket through session and device and back: nothing. These tests have a
//! process of their own, because they count in its allocator.

mod common;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Instant;

use common::raw_client::{NO_REPLY, REGION_WRITE, RawClient, access};
use common::signal_thread;
use common::tis::{ACCESS, BAR0, COMMAND_READY, CONFIG, DATA_FIFO, DID_VID, STS, Tis};
use common::tpm_commands::{RC_SUCCESS, code_of, get_random};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use vfio_user_tpm::backend::embedded::{Embedded, EmbeddedTpm};
use vfio_user_tpm::backend::worker::worker_program;
use vfio_user_tpm::control::ControlSocket;
use vfio_user_tpm::counters::CommandCounters;
use vfio_user_tpm::device::{DEVICE_ID, DeviceOptions, TpmDevice, VENDOR_ID, identity};
use vfio_user_tpm::engine::{Engine, Wakeup};
use vfio_user_tpm::frontend::tis::{self, TisConfig};
use vfio_user_tpm::frontend::{RegisterFile, Registers};
use vfio_user_tpm::platform::{Platform, StartupPolicy};
use vfio_user_tpm::shared_pages::SharedPages;
use vfio_user_tpm::tpm::{Fault, TpmVersion, fault_response};
use vfio_user_tpm::vfio_user::{Connections, DEVICE_TOKEN, Listener, Server};

/// The system's allocator, which counts what the server's thread asks of it.
struct Counting;

static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);

/// One test counts at a time.
static TURN: Mutex<()> = Mutex::new(());

thread_local! {
    static COUNTED: Cell<bool> = const { Cell::new(false) };
}

fn count() {
    if COUNTED.get() {
        ALLOCATIONS.fetch_add(1, Ordering::SeqCst);
    }
}

// SAFETY: every call is handed on to the system's allocator as it came.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: as for this function.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        // SAFETY: as for this function.
        unsafe { System.dealloc(memory, layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: as for this function.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count();
        // SAFETY: as for this function.
        unsafe { System.realloc(memory, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Serves a TPM, in a thread whose allocations count.
fn serve(listener: Listener, control: Listener) {
    COUNTED.set(true);
    let signals = SignalFd::with_flags(&SigSet::from_iter([Signal::SIGTERM]), SfdFlags::SFD_CLOEXEC).unwrap();
    let server = Server::new(listener).unwrap();
    let wakeup = Wakeup { registry: server.registry().unwrap(), token: DEVICE_TOKEN };
    let tpm = EmbeddedTpm { version: TpmVersion::V2_0, state: None };
    let worker = worker_program(PathBuf::from(env!("CARGO_BIN_EXE_vfio-user-tpm")), log::LevelFilter::Warn);
    let backend = Embedded::new(tpm, worker);
    let platform = Platform::new(TpmVersion::V2_0, StartupPolicy::Clear);
    let engine = Engine::new(Box::new(backend), platform, Some(wakeup));
    let registers = TisConfig {
        version: TpmVersion::V2_0,
        vendor_id: VENDOR_ID,
        device_id: DEVICE_ID,
        revision: 1,
        guest_locality_4: false,
    };
    let mut device = TpmDevice::new(
        identity(VENDOR_ID, DEVICE_ID),
        Registers::new(RegisterFile::Tis(tis::Tis::new(registers), SharedPages::unmappable())),
        engine,
        DeviceOptions::default(),
    );
    let visitors = server.visitors(control).unwrap();
    let answer = Box::new(|_: &str, _: &TpmDevice, _: &Connections| None);
    let mut control = ControlSocket::new(visitors, server.registry().unwrap(), answer).unwrap();
    server.run_attended(&mut device, &mut control, &signals).unwrap();
}

/// What a driver does between commands and within one.
fn accesses(tis: &mut Tis) {
    tis.write32(STS, COMMAND_READY);
    while tis.read32(STS) & COMMAND_READY == 0 {}
    tis.read8(ACCESS);
    tis.read32(DID_VID);
    for byte in [0x80, 0x01, 0, 0, 0, 12, 0, 0] {
        tis.write8(DATA_FIFO, byte);
        tis.read32(STS);
    }
    tis.write32(DATA_FIFO, 0);
    let posted = access(BAR0, DATA_FIFO, 1, &[0]);
    tis.client.send(REGION_WRITE, NO_REPLY, &posted, &[]);
    tis.read32(STS);
    tis.client.region_read(CONFIG, 0, 4);
    tis.client.region_read(CONFIG, 4, 2);
    tis.client.region_write(CONFIG, 4, &[2, 0]);
    tis.client.region_read(BAR0, 8, 8);
}

#[test]
fn register_accesses_allocate_nothing() {
    let _turn = TURN.lock().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("socket");
    let listener = Listener::bind(&path).unwrap();
    let control_path = folder.path().join("control");
    let control = Listener::bind(&control_path).unwrap();
    SigSet::from_iter([Signal::SIGTERM]).thread_block().unwrap();
    let server = thread::spawn(move || serve(listener, control));
    // Somebody who is about to ask something changes nothing.
    let _visitor = UnixStream::connect(control_path).unwrap();

    let mut tis = Tis::new(RawClient::connect(&path));
    // The start of the TPM behind the registers is over when it has answered.
    assert_eq!(code_of(&tis.run(&get_random(16))), RC_SUCCESS);
    for _ in 0..10 {
        accesses(&mut tis);
    }
    let before = ALLOCATIONS.load(Ordering::SeqCst);
    assert!(before > 0, "they are counted");
    for _ in 0..100 {
        accesses(&mut tis);
    }
    assert_eq!(ALLOCATIONS.load(Ordering::SeqCst) - before, 0);

    drop(tis);
    signal_thread(&server, Signal::SIGTERM);
    server.join().unwrap();
}

#[test]
fn counting_a_command_allocates_nothing() {
    let _turn = TURN.lock().unwrap();
    let mut counters = CommandCounters::new(TpmVersion::V2_0);
    let response = fault_response(TpmVersion::V2_0, Fault::Failure);
    let (known, unknown) = (get_random(8), [0xff; 12]);
    COUNTED.set(true);
    let before = ALLOCATIONS.load(Ordering::SeqCst);
    for command in [&known[..], &unknown, &[]] {
        counters.begin(command, Instant::now());
        counters.end(&response, Instant::now());
        counters.begin(command, Instant::now());
        counters.abandon();
    }
    assert_eq!(ALLOCATIONS.load(Ordering::SeqCst) - before, 0);
    COUNTED.set(false);
    assert_eq!((counters.latency().count_of_all(), counters.abandoned()), (3, 3));
}
