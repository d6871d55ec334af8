//! The system calls of the worker, from its first request on.
//!
//! Not on the list, among others: `socket`, `connect`, `execve`, `clone`, `ptrace`, `kill`, `prctl`.

use nix::libc;

use super::calls::{Call, NOT_EXECUTABLE, Only, call};

const SIBLING: &str = "other versions of the C library make this one for the same";
const NO_VDSO: &str = "only machines whose clock cannot be read in user space";
const FAILURE: &str = "only when something fails that does not in tests";
const PRESSURE: &str = "depends on how much memory was used before, and by which thread";
const END: &str = "a worker that has powered its TPM off may be killed before it ends by itself";
const DEVICE: &str = "only with a TPM of the host";

/// With libtpms and with a device. Which files they are about, Landlock says.
pub const CALLS: &[Call] = &[
    // Requests and replies.
    call!(SYS_recvfrom, "requests, and cancelling them"),
    call!(SYS_sendmsg, "replies"),
    // The state folder, by its descriptor; and the rollback anchor, which is open.
    call!(SYS_openat, "state files, the device of a resource manager"),
    call!(SYS_read, "state files, the device's responses"),
    call!(SYS_write, "state files, the device's commands, the log"),
    call!(SYS_pread64, "the rollback anchor"),
    call!(SYS_pwrite64, "the rollback anchor"),
    call!(SYS_fsync, "state files and their folder"),
    call!(SYS_fdatasync, "the rollback anchor"),
    #[cfg(target_arch = "x86_64")]
    call!(SYS_renameat, "a new state file takes the old one's place"),
    // The libc crate has no name for it there.
    #[cfg(target_arch = "aarch64")]
    Call::new("SYS_renameat", 38, "a new state file takes the old one's place"),
    call!(SYS_renameat2, "a new state file takes the old one's place").unseen(SIBLING),
    call!(SYS_unlinkat, "state files"),
    call!(SYS_lseek, "the size of a state file").unseen(SIBLING),
    call!(SYS_statx, "what is in a state file's place"),
    call!(SYS_fstat, "whether the state folder is still there").unseen(SIBLING),
    call!(SYS_newfstatat, "whether the state folder is still there"),
    call!(SYS_close, "state files"),
    // With other commands it would have the kernel send signals to processes outside (before Linux 6.12).
    call!(SYS_fcntl, "state files").only(Only::OneOf(1, FCNTL)).unseen("only checks of Rust's library in debug builds"),
    #[cfg(target_arch = "x86_64")]
    call!(SYS_poll, "responses of the device that nobody has read").unseen(DEVICE),
    call!(SYS_ppoll, "responses of the device that nobody has read").unseen(DEVICE),
    // libtpms and libcrypto.
    call!(SYS_getrandom, "random numbers, names and nonces of state files"),
    call!(SYS_getpid, "whether the random number generator is this process's own").unseen(SIBLING),
    call!(SYS_clock_gettime, "the TPM's clock").unseen(NO_VDSO),
    call!(SYS_gettimeofday, "the TPM's clock").unseen(NO_VDSO),
    // Memory and threads.
    call!(SYS_futex, "the thread that cancels").unseen("only when both threads want the same at one moment"),
    call!(SYS_clock_nanosleep, "the thread that cancels"),
    call!(SYS_nanosleep, "the thread that cancels").unseen(SIBLING),
    call!(SYS_brk, "memory"),
    call!(SYS_mmap, "memory").only(NOT_EXECUTABLE).unseen(PRESSURE),
    call!(SYS_munmap, "memory").unseen(PRESSURE),
    call!(SYS_mremap, "memory").unseen(PRESSURE),
    call!(SYS_mprotect, "memory of another thread").only(NOT_EXECUTABLE).unseen(PRESSURE),
    call!(SYS_madvise, "memory, and the stack of a thread that ends").unseen(PRESSURE),
    call!(SYS_sched_getaffinity, "memory of another thread").unseen(PRESSURE),
    call!(SYS_rt_sigprocmask, "the end of a thread").unseen("only when it ends before the process does"),
    call!(SYS_rt_sigreturn, "the end of a signal's handler").unseen(FAILURE),
    call!(SYS_sigaltstack, "the end of a thread, and of the program").unseen(END),
    call!(SYS_exit, "the end of a thread").unseen("only when it ends before the process does"),
    call!(SYS_exit_group, "the end").unseen(END),
    call!(SYS_restart_syscall, "waiting on after the process was stopped").unseen("only after SIGSTOP and SIGCONT"),
    // A program that has to abort; and questions without an answer.
    call!(SYS_gettid, "abort()").unseen(FAILURE),
    call!(SYS_tgkill, "abort()").only(Only::Ourselves(0)).unseen(FAILURE),
    call!(SYS_ioctl, "whether what libtpms prints to is a terminal").refused(),
    #[cfg(target_arch = "x86_64")]
    call!(SYS_open, "the C library's looks at /proc and /sys, a backtrace").refused().unseen(SIBLING),
    call!(SYS_getcwd, "a backtrace").refused().unseen(FAILURE),
];

const FCNTL: &[u32] = &[libc::F_GETFD.unsigned_abs()];
