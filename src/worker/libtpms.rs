//! libtpms behind a safe face.
//!
//! The library keeps its TPM in global variables without locks: there is one [`Tpm`] a process, on one thread. Only
//! [`cancel_command`] may be called from another.

#![expect(unsafe_code, reason = "libtpms is a C library")]

use std::cell::RefCell;
use std::ffi::{CStr, c_char, c_uchar};
use std::fs::File;
use std::marker::PhantomData;
use std::os::fd::IntoRawFd;
use std::ptr;
use std::sync::atomic::{AtomicBool, Ordering};

use nix::libc;
use zeroize::{Zeroize, Zeroizing};

use super::nvram::Nvram;
use super::process::HeldTpm;
use crate::state::Blob;
use crate::tpm::{BUFFER_SIZE, Locality, TpmVersion};

#[expect(non_camel_case_types, non_snake_case, unreachable_pub, clippy::indexing_slicing, reason = "generated")]
#[allow(dead_code, reason = "generated; which parts are used differs between versions of the library")]
mod ffi {
    include!(concat!(env!("OUT_DIR"), "/libtpms.rs"));
}

/// What the callbacks work on. They are plain functions and are called on the thread that called the library.
struct Host {
    nvram: Nvram,
    locality: Locality,
}

thread_local! {
    static HOST: RefCell<Option<Host>> = const { RefCell::new(None) };
}

static TAKEN: AtomicBool = AtomicBool::new(false);

/// The version of the library that this program runs with: major, minor, micro.
#[must_use]
pub fn library_version() -> (u8, u8, u8) {
    // SAFETY: gives a number, at any time and on any thread.
    let version = unsafe { ffi::TPMLIB_GetVersion() };
    let [_, major, minor, micro] = version.to_be_bytes();
    (major, minor, micro)
}

/// The TPM of this process.
pub(super) struct Tpm {
    powered: bool,
    /// Bound to its thread, as the library's callbacks are.
    thread: PhantomData<*const ()>,
}

impl Tpm {
    /// Chooses the version and registers the callbacks. No TPM runs yet.
    ///
    /// # Errors
    /// If this process already has a TPM, or if libtpms was built without this version.
    pub(super) fn new(version: TpmVersion, nvram: Nvram) -> Result<Self, String> {
        if TAKEN.swap(true, Ordering::AcqRel) {
            return Err("libtpms holds one TPM a process, and this process already has one".to_owned());
        }

        silence()?;
        warm_up_libcrypto();
        HOST.set(Some(Host { nvram, locality: Locality::ZERO }));
        let number = match version {
            TpmVersion::V1_2 => ffi::TPMLIB_TPM_VERSION_1_2,
            TpmVersion::V2_0 => ffi::TPMLIB_TPM_VERSION_2,
        };
        // SAFETY: no TPM runs; any number is accepted or refused.
        let chosen = unsafe { ffi::TPMLIB_ChooseTPMVersion(number) };
        check(chosen).map_err(|code| format!("this libtpms has no TPM {version} (error {code:#x})"))?;
        let mut callbacks = ffi::libtpms_callbacks {
            sizeOfStruct: i32::try_from(size_of::<ffi::libtpms_callbacks>()).unwrap_or(0),
            tpm_nvram_init: Some(nvram_init),
            tpm_nvram_loaddata: Some(nvram_load),
            tpm_nvram_storedata: Some(nvram_store),
            tpm_nvram_deletename: Some(nvram_delete),
            tpm_io_init: Some(io_init),
            tpm_io_getlocality: Some(io_get_locality),
            tpm_io_getphysicalpresence: Some(io_get_physical_presence),
        };
        // SAFETY: the library copies the structure, whose size it is told.
        let registered = unsafe { ffi::TPMLIB_RegisterCallbacks(&raw mut callbacks) };
        check(registered).map_err(|code| format!("libtpms takes no callbacks (error {code:#x})"))?;
        let wanted = u32::try_from(BUFFER_SIZE).unwrap_or(u32::MAX);
        // SAFETY: only asks for and sets a number; null pointers mean that the limits are not wanted.
        let size = unsafe { ffi::TPMLIB_SetBufferSize(wanted, ptr::null_mut(), ptr::null_mut()) };
        if size > wanted {
            return Err(format!("libtpms works with commands of {size} bytes; this program expects {BUFFER_SIZE}"));
        }
        Ok(Self { powered: false, thread: PhantomData })
    }
}

impl HeldTpm for Tpm {
    #[cfg(libtpms_profiles)]
    fn set_profile(&mut self, profile: &str) -> Result<(), String> {
        let profile = std::ffi::CString::new(profile).map_err(|_| "the profile holds a zero byte".to_owned())?;
        self.terminate();
        // SAFETY: the library copies the C string; no TPM runs.
        let result = unsafe { ffi::TPMLIB_SetProfile(profile.as_ptr()) };
        check(result).map_err(|code| {
            format!(
                "libtpms does not accept the profile (error {code:#x}): its name or something in it is not known to it"
            )
        })
    }

    #[cfg(not(libtpms_profiles))]
    fn set_profile(&mut self, _profile: &str) -> Result<(), String> {
        Err(super::profile::ProfileError::Unsupported.to_string())
    }

    /// `_TPM_Init`: ends the TPM, if it runs, and starts it from its stored state, or manufactures a new one if there
    /// is none.
    ///
    /// # Errors
    /// What stopped it, for the log: above all a state that cannot be read.
    fn initialize(&mut self) -> Result<(), String> {
        self.terminate();
        with_host(|host| host.nvram.begin());
        self.powered = true;
        // SAFETY: version and callbacks were set by `new`, and no TPM runs.
        let result = unsafe { ffi::TPMLIB_MainInit() };
        let unreadable = with_host(|host| host.nvram.unreadable().map(ToOwned::to_owned)).flatten();
        let given = with_host(|host| host.nvram.given()).flatten();
        let outcome = match (unreadable, check(result), given) {
            (None, Ok(()), _) => Ok(()),
            (Some(reason), _, _) => Err(reason),
            (None, Err(code), None) => Err(format!("libtpms cannot make a TPM (error {code:#x})")),
            (None, Err(code), Some(file)) => Err(format!(
                "libtpms does not accept the state in {file} (error {code:#x}), and it is left as it is: a newer libtpms \
                 may have written it; use that one, restore a backup, or move the file away to begin with a new TPM"
            )),
        };
        if outcome.is_err() {
            self.terminate();
        }
        outcome
    }

    /// Ends the TPM without a word to it, as when power is cut.
    fn terminate(&mut self) {
        if std::mem::take(&mut self.powered) {
            // SAFETY: a TPM was started.
            unsafe { ffi::TPMLIB_Terminate() }
        }
    }

    /// The hash sequence by which hardware measures, at locality 4.
    ///
    /// # Errors
    /// If no TPM runs, or if the library refuses; a text for the log.
    fn hash(&mut self, data: &[u8]) -> Result<(), String> {
        if !self.powered {
            return Err("no TPM runs".to_owned());
        }
        with_host(|host| host.locality = Locality::FOUR);
        let length = u32::try_from(data.len()).map_err(|_| "too much to hash".to_owned())?;
        let refused = |code| format!("the TPM does not take a hash sequence (error {code:#x})");
        // SAFETY: a TPM runs.
        check(unsafe { ffi::TPM_IO_Hash_Start() }).map_err(refused)?;
        // SAFETY: the data are valid for `length` bytes and only read.
        check(unsafe { ffi::TPM_IO_Hash_Data(data.as_ptr(), length) }).map_err(refused)?;
        // SAFETY: a TPM runs.
        check(unsafe { ffi::TPM_IO_Hash_End() }).map_err(refused)
    }

    /// Runs one command and puts its response into `response`.
    ///
    /// # Errors
    /// If no TPM runs, or if the library gives no response; a text for the log.
    fn process(&mut self, locality: Locality, command: &[u8], response: &mut Vec<u8>) -> Result<(), String> {
        response.clear();
        if !self.powered {
            return Err("no TPM runs".to_owned());
        }
        with_host(|host| host.locality = locality);
        // The library takes its input by a pointer that is not const.
        let mut command = Zeroizing::new(command.to_vec());
        let length = u32::try_from(command.len()).map_err(|_| "the command is too long".to_owned())?;
        let (mut buffer, mut size, mut capacity) = (ptr::null_mut(), 0u32, 0u32);
        // SAFETY: a TPM runs; the command is valid for `length` bytes; the library allocates the response itself, with
        // the C library's allocator.
        let result = unsafe {
            ffi::TPMLIB_Process(&raw mut buffer, &raw mut size, &raw mut capacity, command.as_mut_ptr(), length)
        };
        if !buffer.is_null() {
            let size = size.min(capacity) as usize;
            // SAFETY: the library has written `size` of the `capacity` bytes that it allocated.
            let answer = unsafe { std::slice::from_raw_parts_mut(buffer, size) };
            response.extend_from_slice(answer);
            answer.zeroize();
            // SAFETY: the buffer is from malloc, and nobody else refers to it.
            unsafe { libc::free(buffer.cast()) };
        }
        check(result).map_err(|code| format!("libtpms could not process a command (error {code:#x})"))
    }

    /// The TPM's `tpmEstablished` flag; false when no TPM runs.
    fn established(&self) -> bool {
        let mut established = 0;
        // SAFETY: a TPM runs; the flag is written through a valid pointer.
        self.powered && unsafe { ffi::TPM_IO_TpmEstablished_Get(&raw mut established) } == 0 && established != 0
    }

    /// Clears the `tpmEstablished` flag, if the TPM lets `locality` do so.
    ///
    /// # Errors
    /// The library's refusal, for the log.
    fn reset_established(&mut self, locality: Locality) -> Result<(), String> {
        if !self.powered {
            return Err("no TPM runs".to_owned());
        }
        with_host(|host| host.locality = locality);
        // SAFETY: a TPM runs.
        let result = unsafe { ffi::TPM_IO_TpmEstablished_Reset() };
        check(result).map_err(|code| format!("the TPM does not clear tpmEstablished (error {code:#x})"))
    }
}

/// Sends what the library prints by itself to nowhere. It prints, whatever the log level, the whole command that led to
/// failure mode, and with it a guest's passwords and data.
fn silence() -> Result<(), String> {
    let nowhere =
        File::options().write(true).open("/dev/null").map_err(|error| format!("cannot open /dev/null: {error}"))?;
    // SAFETY: the library keeps the number; the descriptor stays open as long as the process.
    unsafe { ffi::TPMLIB_SetDebugFD(nowhere.into_raw_fd()) };
    Ok(())
}

/// libcrypto reads its configuration, which may load modules, and finds its algorithms and random numbers when it is first
/// asked for any. Later this process cannot reach those files.
fn warm_up_libcrypto() {
    openssl::init();
    // What does not work now, libtpms will find not to work.
    let _ = openssl::rand::rand_bytes(&mut [0; 1]);
    let _ = openssl::hash::hash(openssl::hash::MessageDigest::sha256(), &[]);
}

/// Asks a command that runs on another thread to end early. Without effect if none runs.
pub(super) fn cancel_command() {
    // SAFETY: made to be called from another thread; it sets a flag.
    unsafe { ffi::TPMLIB_CancelCommand() };
}

fn check(result: ffi::TPM_RESULT) -> Result<(), u32> {
    if result == ffi::TPM_SUCCESS { Ok(()) } else { Err(result) }
}

/// Runs `work` on the host of this thread; `None` if it has none, or if the library calls back from inside a callback.
fn with_host<R>(work: impl FnOnce(&mut Host) -> R) -> Option<R> {
    HOST.with(|host| host.try_borrow_mut().ok()?.as_mut().map(work))
}

/// # Safety
/// `name` is null or a C string.
unsafe fn blob_of(name: *const c_char) -> Option<Blob> {
    if name.is_null() {
        return None;
    }
    // SAFETY: by this function's contract.
    match unsafe { CStr::from_ptr(name) }.to_bytes_with_nul() {
        name if name == ffi::TPM_PERMANENT_ALL_NAME => Some(Blob::Permanent),
        name if name == ffi::TPM_SAVESTATE_NAME => Some(Blob::SaveState),
        name if name == ffi::TPM_VOLATILESTATE_NAME => Some(Blob::Volatile),
        _ => None,
    }
}

extern "C" fn nvram_init() -> ffi::TPM_RESULT {
    ffi::TPM_SUCCESS
}

extern "C" fn io_init() -> ffi::TPM_RESULT {
    ffi::TPM_SUCCESS
}

/// `TPM_RETRY` says that there is no such blob, and lets the library manufacture a TPM; `TPM_FAIL` does not.
unsafe extern "C" fn nvram_load(
    data: *mut *mut c_uchar,
    length: *mut u32,
    _tpm_number: u32,
    name: *const c_char,
) -> ffi::TPM_RESULT {
    // SAFETY: the library passes a C string.
    let blob = unsafe { blob_of(name) };
    let loaded = blob.and_then(|blob| with_host(|host| host.nvram.load(blob)));
    let Some(Ok(loaded)) = loaded else { return ffi::TPM_FAIL };
    let Some(payload) = loaded else { return ffi::TPM_RETRY };
    let Ok(size) = u32::try_from(payload.len()) else { return ffi::TPM_FAIL };
    // SAFETY: the library frees what it is given; malloc(0) may be null, so at least a byte is asked for.
    let copy = unsafe { libc::malloc(payload.len().max(1)) }.cast::<c_uchar>();
    if copy.is_null() {
        return ffi::TPM_FAIL;
    }
    // SAFETY: both are valid for the payload's length and do not overlap.
    unsafe { ptr::copy_nonoverlapping(payload.as_ptr(), copy, payload.len()) };
    // SAFETY: the library passes valid pointers.
    unsafe { data.write(copy) };
    // SAFETY: as above.
    unsafe { length.write(size) };
    ffi::TPM_SUCCESS
}

unsafe extern "C" fn nvram_store(
    data: *const c_uchar,
    length: u32,
    _tpm_number: u32,
    name: *const c_char,
) -> ffi::TPM_RESULT {
    // SAFETY: the library passes a C string.
    let blob = unsafe { blob_of(name) };
    let payload = if data.is_null() || length == 0 {
        &[]
    } else {
        // SAFETY: the library passes `length` valid bytes.
        unsafe { std::slice::from_raw_parts(data, length as usize) }
    };
    let stored = blob.and_then(|blob| with_host(|host| host.nvram.store(blob, payload)));
    if stored == Some(true) { ffi::TPM_SUCCESS } else { ffi::TPM_FAIL }
}

unsafe extern "C" fn nvram_delete(_tpm_number: u32, name: *const c_char, must_exist: ffi::TPM_BOOL) -> ffi::TPM_RESULT {
    // SAFETY: the library passes a C string.
    let Some(blob) = (unsafe { blob_of(name) }) else { return ffi::TPM_FAIL };
    let deleted = with_host(|host| {
        let missing = must_exist != 0 && !matches!(host.nvram.load(blob), Ok(Some(_)));
        !missing && host.nvram.delete(blob)
    });
    if deleted == Some(true) { ffi::TPM_SUCCESS } else { ffi::TPM_FAIL }
}

unsafe extern "C" fn io_get_locality(locality: *mut ffi::TPM_MODIFIER_INDICATOR, _tpm_number: u32) -> ffi::TPM_RESULT {
    let number = with_host(|host| host.locality.number()).unwrap_or(0);
    // SAFETY: the library passes a valid pointer.
    unsafe { locality.write(number.into()) };
    ffi::TPM_SUCCESS
}

/// Nobody presses a button on a virtual machine's case.
unsafe extern "C" fn io_get_physical_presence(
    physical_presence: *mut ffi::TPM_BOOL,
    _tpm_number: u32,
) -> ffi::TPM_RESULT {
    // SAFETY: the library passes a valid pointer.
    unsafe { physical_presence.write(0) };
    ffi::TPM_SUCCESS
}
