//! Status numbers as C sees them.

use crate::error::Status;
use std::ffi::{CStr, c_char};

/// What a call did: `KRONSAE_STATUS_OK` or one of the other `KRONSAE_STATUS_*`. Numbers are never reused or renumbered;
/// later versions may return new ones, to be treated as failures.
pub type kronsae_status = i32;

/// Success.
pub const KRONSAE_STATUS_OK: kronsae_status = 0;
/// An argument is wrong: null, misaligned, too short, out of range.
pub const KRONSAE_STATUS_INVALID_ARGUMENT: kronsae_status = 1;
/// The operating system refused to open or read a file.
pub const KRONSAE_STATUS_IO: kronsae_status = 2;
/// A file is not what it claims to be: truncated, malformed, inconsistent or of an unknown format.
pub const KRONSAE_STATUS_FORMAT: kronsae_status = 3;
/// The request is valid but this build, CPU or model cannot serve it.
pub const KRONSAE_STATUS_UNSUPPORTED: kronsae_status = 4;
/// Memory for a size taken from a file or a caller could not be allocated.
pub const KRONSAE_STATUS_OUT_OF_MEMORY: kronsae_status = 5;
/// The object this one depends on was destroyed.
pub const KRONSAE_STATUS_STOPPED: kronsae_status = 6;
/// An earlier internal error was caught inside this object; it can only be destroyed.
pub const KRONSAE_STATUS_POISONED: kronsae_status = 7;
/// The process was forked after this object was made; its threads do not exist in the child.
pub const KRONSAE_STATUS_FORKED: kronsae_status = 8;
/// A bug inside the library was caught. Please report it with its message.
pub const KRONSAE_STATUS_INTERNAL: kronsae_status = 9;
/// What was waited for did not happen in the given time; nothing is lost, and it may be waited for again.
pub const KRONSAE_STATUS_TIMEOUT: kronsae_status = 10;
/// A bounded queue has no room at the moment; nothing was done, and it may be tried again.
pub const KRONSAE_STATUS_FULL: kronsae_status = 11;
/// A GPU or its driver failed: it was lost, ran into an error of memory, or an earlier kernel did, whosever it was. What lies
/// on the device is in doubt; the host's own data is not.
pub const KRONSAE_STATUS_DEVICE: kronsae_status = 12;

/// Every status, the number it has in C, its name.
pub(super) const TABLE: [(Status, kronsae_status, &CStr); 13] = [
    (Status::Ok, KRONSAE_STATUS_OK, c"ok"),
    (Status::InvalidArgument, KRONSAE_STATUS_INVALID_ARGUMENT, c"invalid argument"),
    (Status::Io, KRONSAE_STATUS_IO, c"input/output error"),
    (Status::Format, KRONSAE_STATUS_FORMAT, c"bad file format"),
    (Status::Unsupported, KRONSAE_STATUS_UNSUPPORTED, c"unsupported"),
    (Status::OutOfMemory, KRONSAE_STATUS_OUT_OF_MEMORY, c"out of memory"),
    (Status::Stopped, KRONSAE_STATUS_STOPPED, c"stopped"),
    (Status::Poisoned, KRONSAE_STATUS_POISONED, c"poisoned by an earlier panic"),
    (Status::Forked, KRONSAE_STATUS_FORKED, c"used after fork"),
    (Status::Internal, KRONSAE_STATUS_INTERNAL, c"internal error"),
    (Status::Timeout, KRONSAE_STATUS_TIMEOUT, c"timed out"),
    (Status::Full, KRONSAE_STATUS_FULL, c"queue full"),
    (Status::Device, KRONSAE_STATUS_DEVICE, c"device error"),
];

/// A short name of a status, for logs: "invalid argument". "unknown status" for a number this library does not know.
/// A constant of the library; not to be freed.
///
/// Threads: any, at any time.
///
/// Since 0.1.0.
#[unsafe(no_mangle)]
pub extern "C" fn kronsae_status_name(status: kronsae_status) -> *const c_char {
    TABLE.iter().find(|(_, number, _)| *number == status).map_or(c"unknown status", |(_, _, name)| name).as_ptr()
}
