//! How far a guest is with a command, in the words of every interface.

/// How far the guest is with its command. The names are PTP's for the states of the FIFO interface and of the CRB.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// It has not begun one.
    Idle,
    /// One may come; how much of it is in a CRB's buffer already, nobody sees.
    Ready,
    /// Its bytes come in.
    Reception,
    /// The TPM runs it.
    Execution,
    /// Its response can be read.
    Completion,
    /// The TPM runs it, and the guest no longer waits for it.
    Stopping,
}

impl Progress {
    /// All of them.
    pub const ALL: [Self; 6] =
        [Self::Idle, Self::Ready, Self::Reception, Self::Execution, Self::Completion, Self::Stopping];

    /// The name in JSON.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Idle => "idle",
            Self::Ready => "ready",
            Self::Reception => "reception",
            Self::Execution => "execution",
            Self::Completion => "completion",
            Self::Stopping => "stopping",
        }
    }
}
