//! An end to a system call that a client could make wait for ever.
#![allow(unsafe_code)]

use std::time::Duration;

use nix::libc::c_int;
use nix::sys::signal::{SaFlags, SigAction, SigEvent, SigHandler, SigSet, SigevNotify, Signal, sigaction};
use nix::sys::time::TimeSpec;
use nix::sys::timer::{Expiration, Timer, TimerSetTimeFlags};
use nix::time::ClockId;
use nix::unistd::gettid;

/// How long a call may wait. What is called has no reason to wait at all.
const LIMIT: Duration = Duration::from_millis(100);

/// A timer that interrupts what this thread waits for.
#[derive(Debug)]
struct Alarm(Timer);

thread_local! {
    /// A timer belongs to its thread, and none is needed before the first call. Without one, calls are not limited.
    static ALARM: std::cell::RefCell<Option<Alarm>> = std::cell::RefCell::new(
        Alarm::new().inspect_err(|errno| log::warn!("there is no timer for what could wait: {errno}")).ok(),
    );
}

/// Makes a system call that is interrupted (`EINTR`) if it waits.
pub(super) fn limited<T>(call: impl FnOnce() -> nix::Result<T>) -> nix::Result<T> {
    ALARM.with_borrow_mut(|alarm| match alarm {
        None => call(),
        Some(alarm) => {
            alarm.set(LIMIT)?;
            let result = call();
            alarm.set(Duration::ZERO)?;
            result
        }
    })
}

impl Alarm {
    fn new() -> nix::Result<Self> {
        // Without SA_RESTART: the call is to end.
        let action = SigAction::new(SigHandler::Handler(wake), SaFlags::empty(), SigSet::empty());
        // SAFETY: the handler does nothing, so it can do nothing that a handler must not.
        unsafe { sigaction(Signal::SIGALRM, &action) }?;
        SigSet::from_iter([Signal::SIGALRM]).thread_unblock()?;
        let thread_id = gettid().as_raw();
        let notify = SigevNotify::SigevThreadId { signal: Signal::SIGALRM, thread_id, si_value: 0 };
        Timer::new(ClockId::CLOCK_MONOTONIC, SigEvent::new(notify)).map(Self)
    }

    /// Interrupts every `period` from now on, so that a call which has only just not begun yet is interrupted the next
    /// time; zero ends that.
    fn set(&mut self, period: Duration) -> nix::Result<()> {
        let period = TimeSpec::from(period);
        self.0.set(Expiration::IntervalDelayed(period, period), TimerSetTimeFlags::empty())
    }
}

extern "C" fn wake(_signal: c_int) {}

#[cfg(test)]
mod tests {
    use nix::errno::Errno;
    use nix::sys::eventfd::{EfdFlags, EventFd};

    use super::*;

    #[test]
    fn what_waits_is_interrupted_and_what_does_not_is_done() {
        let full = EventFd::from_value_and_flags(0, EfdFlags::EFD_CLOEXEC).unwrap();
        full.write(u64::MAX - 1).unwrap();
        for _ in 0..2 {
            assert_eq!(limited(|| full.write(1)), Err(Errno::EINTR));
        }
        full.read().unwrap();
        assert_eq!(limited(|| full.write(1)), Ok(8));
    }
}
