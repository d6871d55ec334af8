//! The system calls of the server, from the moment on at which a client may speak.
//!
//! Not on the list, among others: `execve`, `clone`, `ptrace`, `kill`, `prctl`, `ioctl`, `bind`, `listen`, and `socket` and
//! `connect` for all backends but one. A call for which there is no test says why.

use nix::libc;

use super::calls::{Call, NOT_EXECUTABLE, Only, call};
use crate::backend::SO_PASSRIGHTS;

const SIBLING: &str = "other versions of the C library make this one for the same";
const NO_VDSO: &str = "only machines whose clock cannot be read in user space";
const FAILURE: &str = "only when something fails that does not in tests";
const END: &str = "the end of the program may be quicker than that of its threads";
const PRESSURE: &str = "depends on how much memory was used before, and by which thread";

/// With each backend.
pub const CALLS: &[Call] = &[
    // Clients, and what they send. A register access takes the first three, and the fourth while the loop stays awake for the next one.
    #[cfg(target_arch = "x86_64")]
    call!(SYS_epoll_wait, "the event loop"),
    call!(SYS_recvmsg, "messages of clients with their descriptors, questions"),
    call!(SYS_sendto, "replies, also to questions on the control socket"),
    call!(SYS_sched_yield, "between two looks for the next access"),
    call!(SYS_epoll_pwait, "the event loop").unseen(SIBLING),
    call!(SYS_epoll_ctl, "what the event loop waits for"),
    call!(SYS_accept4, "clients, and those who ask"),
    call!(SYS_getsockopt, "whose process a client is, or who asks"),
    call!(SYS_shutdown, "ends connections, and the processes that the spawner has started"),
    call!(SYS_close, "descriptors of clients"),
    #[cfg(target_arch = "x86_64")]
    call!(SYS_readlink, "whether a client's descriptor is an eventfd"),
    call!(SYS_readlinkat, "whether a client's descriptor is an eventfd").unseen(SIBLING),
    call!(SYS_fcntl, "descriptors that neither block nor are inherited").only(Only::OneOf(1, FCNTL)),
    // Interrupts and their eventfds.
    call!(SYS_epoll_create1, "eventfds by which a client unmasks").unseen("only with --interrupts, for a VMM with KVM"),
    call!(SYS_write, "interrupts, log lines, the trace, and what wakes a thread"),
    call!(SYS_read, "signals; a signal to an eventfd that is taken back unheard"),
    call!(SYS_timer_create, "the end of a write to an eventfd that waits"),
    call!(SYS_timer_settime, "the end of a write to an eventfd that waits"),
    call!(SYS_timer_delete, "the end of a write to an eventfd that waits"),
    call!(SYS_rt_sigaction, "what that timer interrupts"),
    call!(SYS_rt_sigprocmask, "what that timer interrupts"),
    call!(SYS_rt_sigreturn, "the end of that interrupt").unseen("only when a client has an eventfd filled up"),
    call!(SYS_gettid, "whom that timer interrupts"),
    // Memory that the guest maps: a new file for each client.
    call!(SYS_memfd_create, "memory shared with a client"),
    call!(SYS_ftruncate, "its size, and the end of a trace on a full disk"),
    // The TPM's process.
    call!(SYS_sendmsg, "commands to the TPM's process, requests to the spawner"),
    call!(SYS_recvfrom, "responses of the TPM's process"),
    call!(SYS_socketpair, "a new process's sockets").only(Only::OneOf(0, UNIX)),
    call!(SYS_setsockopt, "that it sends no descriptors").only(Only::OneOf(2, &[SO_PASSRIGHTS.unsigned_abs()])),
    call!(SYS_getrandom, "the platform's authorization value"),
    #[cfg(target_arch = "x86_64")]
    call!(
        SYS_poll,
        "the spawner's answer when the socket's file is to be removed; whether a signal to an eventfd was heard"
    ),
    call!(SYS_ppoll, "the spawner's answer when the socket's file is to be removed").unseen(SIBLING),
    // Signals and the end.
    call!(SYS_getppid, "whose signals count").unseen("only for a server of `run`, which strace would not be"),
    call!(SYS_exit_group, "the end"),
    call!(SYS_exit, "the end of a thread").unseen(END),
    call!(SYS_restart_syscall, "waiting on after the process was stopped").unseen("only after SIGSTOP and SIGCONT"),
    // Memory and threads.
    call!(SYS_futex, "the threads that close descriptors and write a trace"),
    call!(SYS_brk, "memory").unseen(PRESSURE),
    call!(SYS_mmap, "memory").only(NOT_EXECUTABLE).unseen(PRESSURE),
    call!(SYS_munmap, "memory").unseen(PRESSURE),
    call!(SYS_mremap, "memory").unseen(PRESSURE),
    call!(SYS_mprotect, "memory of another thread").only(NOT_EXECUTABLE).unseen(PRESSURE),
    call!(SYS_madvise, "memory, and the stack of a thread that ends").unseen(END),
    call!(SYS_sigaltstack, "the end of a thread, and of the program"),
    call!(SYS_sched_getaffinity, "memory of another thread").unseen(PRESSURE),
    call!(SYS_clock_gettime, "the time").unseen(NO_VDSO),
    call!(SYS_clock_nanosleep, "waits of the C library and of Rust's").unseen(SIBLING),
    call!(SYS_gettimeofday, "the time").unseen(NO_VDSO),
    // A program that has to abort.
    call!(SYS_getpid, "abort(), and the log").unseen(FAILURE),
    call!(SYS_tgkill, "abort()").only(Only::Ourselves(0)).unseen(FAILURE),
    // Without a file there is an answer too: of memory that can be given back, of a backtrace. Landlock would refuse them as
    // well, but a kernel may be without.
    call!(SYS_openat, "the C library's looks at /proc and /sys, a backtrace").refused().unseen(FAILURE),
    #[cfg(target_arch = "x86_64")]
    call!(SYS_open, "the C library's looks at /proc and /sys, a backtrace").refused().unseen(SIBLING),
    call!(SYS_getcwd, "a backtrace").refused().unseen(FAILURE),
];

/// With an swtpm that somebody else started.
pub const TO_ATTACH: &[Call] =
    &[call!(SYS_socket, "the control channel").only(Only::OneOf(0, UNIX)), call!(SYS_connect, "the control channel")];

const FCNTL: &[u32] = &[
    libc::F_GETFL.unsigned_abs(),
    libc::F_SETFL.unsigned_abs(),
    libc::F_GETFD.unsigned_abs(),
    libc::F_DUPFD_CLOEXEC.unsigned_abs(),
    libc::F_ADD_SEALS.unsigned_abs(),
];

const UNIX: &[u32] = &[libc::AF_UNIX.unsigned_abs()];
