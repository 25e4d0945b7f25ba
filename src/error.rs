//! The one error type of the runtime: a stable [`Status`] and a sentence that says what was found, what was expected
//! and, where it helps, what to do.

use std::fmt;

/// Stable error numbers, shared with the C ABI (`kronsae_status`). Numbers are never reused or renumbered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(i32)]
#[non_exhaustive]
pub enum Status {
    /// Success. Never carried by an [`Error`].
    Ok = 0,
    /// An argument is wrong: null, misaligned, too short, out of range.
    InvalidArgument = 1,
    /// The operating system refused to open, read, write or rename a file.
    Io = 2,
    /// A file is not what it claims to be: truncated, malformed, inconsistent or of an unknown format.
    Format = 3,
    /// The request is valid but this build, CPU or model cannot serve it.
    Unsupported = 4,
    /// Memory for a size taken from a file or a caller could not be allocated.
    OutOfMemory = 5,
    /// The object this one depends on was stopped or destroyed.
    Stopped = 6,
    /// An earlier panic was caught inside this object; it can only be destroyed.
    Poisoned = 7,
    /// The process was forked after this object was made; its threads do not exist in the child.
    Forked = 8,
    /// A bug inside the library was caught (a panic).
    Internal = 9,
    /// What was waited for did not happen in the given time; nothing is lost, and it may be waited for again.
    Timeout = 10,
    /// A bounded queue has no room at the moment; nothing was done, and it may be tried again.
    Full = 11,
    /// A GPU or its driver failed: it was lost, ran into an error of memory, or an earlier kernel did, whosever it was. What
    /// lies on the device is in doubt; the host's own data is not.
    Device = 12,
}

impl Status {
    /// The stable lower-case name of this status, e.g. `"invalid argument"`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Status::Ok => "ok",
            Status::InvalidArgument => "invalid argument",
            Status::Io => "input/output error",
            Status::Format => "bad file format",
            Status::Unsupported => "unsupported",
            Status::OutOfMemory => "out of memory",
            Status::Stopped => "stopped",
            Status::Poisoned => "poisoned by an earlier panic",
            Status::Forked => "used after fork",
            Status::Internal => "internal error",
            Status::Timeout => "timed out",
            Status::Full => "queue full",
            Status::Device => "device error",
        }
    }
}

/// An error of the runtime: a [`Status`] to branch on, a message to read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Error {
    status: Status,
    message: String,
}

/// `Result` with this crate's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// An error of the given status. `message` is a full clause without a trailing full stop.
    pub fn new(status: Status, message: impl Into<String>) -> Self {
        Error { status, message: message.into() }
    }

    /// [`Status::InvalidArgument`].
    pub fn invalid(message: impl Into<String>) -> Self {
        Self::new(Status::InvalidArgument, message)
    }

    /// [`Status::Format`].
    pub fn format(message: impl Into<String>) -> Self {
        Self::new(Status::Format, message)
    }

    /// [`Status::Io`], naming the file and what was being done to it.
    pub fn io(doing: &str, path: &str, error: &std::io::Error) -> Self {
        Self::new(Status::Io, format!("{path}: cannot {doing}: {error}"))
    }

    /// [`Status::OutOfMemory`], naming what was to be held and its size.
    pub fn out_of_memory(what: &str, bytes: usize) -> Self {
        Self::new(Status::OutOfMemory, format!("cannot allocate {bytes} bytes for {what}"))
    }

    /// The same error with `context` (a file name, say) put before its message.
    #[must_use]
    pub fn within(mut self, context: &str) -> Self {
        self.message = format!("{context}: {}", self.message);
        self
    }

    /// The number to branch on.
    #[must_use]
    pub fn status(&self) -> Status {
        self.status
    }

    /// The sentence to read.
    #[must_use]
    pub fn message(&self) -> &str {
        &self.message
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Error {}
