//! What stands on a list of system calls.

/// A system call that a process may make, and what for.
#[derive(Clone, Copy, Debug)]
pub struct Call {
    constant: &'static str,
    /// Its number on this architecture.
    pub(super) number: i64,
    /// With which arguments.
    pub(super) only: Only,
    /// What needs it.
    pub why: &'static str,
    /// Why no test has to show that it is made; `None` if one has to.
    pub unseen: Option<&'static str>,
    /// It fails with `EACCES` instead: the C library asks for something that it can do without.
    pub(super) refused: bool,
}

/// The arguments that a call may have. All are compared as 32 bits, as the kernel takes them.
#[derive(Clone, Copy, Debug)]
pub(super) enum Only {
    /// Any.
    Anything,
    /// This argument is one of these.
    OneOf(u8, &'static [u32]),
    /// This argument has none of these bits.
    Without(u8, u32),
    /// This argument is this process's number.
    Ourselves(u8),
}

/// Never executable memory: what has been written cannot be run.
pub(super) const NOT_EXECUTABLE: Only = Only::Without(2, nix::libc::PROT_EXEC.unsigned_abs());

impl Call {
    /// Its name, as in the manual and as strace(1) prints it.
    #[must_use]
    pub fn name(&self) -> &'static str {
        self.constant.trim_start_matches("SYS_")
    }

    pub(super) const fn new(constant: &'static str, number: i64, why: &'static str) -> Self {
        Self { constant, number, only: Only::Anything, why, unseen: None, refused: false }
    }

    /// With these arguments only.
    pub(super) const fn only(self, only: Only) -> Self {
        Self { only, ..self }
    }

    /// No test has to show it, for a reason.
    pub(super) const fn unseen(self, reason: &'static str) -> Self {
        Self { unseen: Some(reason), ..self }
    }

    /// It fails, and does no more harm than that.
    pub(super) const fn refused(self) -> Self {
        Self { refused: true, ..self }
    }
}

/// A [`Call`] by the constant of its number, which has its name.
macro_rules! call {
    ($constant:ident, $why:expr) => {
        $crate::sandbox::calls::Call::new(stringify!($constant), nix::libc::$constant, $why)
    };
}
pub(super) use call;
