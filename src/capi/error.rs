//! Errors as owned objects, and the boundary that no panic crosses.

use super::handle::{self, Handle};
use super::log::{KRONSAE_LOG_ERROR, KRONSAE_LOG_WARN, log};
use super::status::{KRONSAE_STATUS_INVALID_ARGUMENT, KRONSAE_STATUS_OK, kronsae_status};
use crate::error::{Error, Result, Status};
use std::any::Any;
use std::ffi::{CStr, CString, c_char};
use std::panic::{AssertUnwindSafe, catch_unwind};

/// Why a call failed: a status and a sentence. Owned by whoever received it; free it with `kronsae_error_destroy`.
///
/// Threads: immutable. Any number of threads may read one at once; one destroys it, when the others are done.
pub struct kronsae_error {
    _opaque: [u8; 0],
}

pub(super) struct ErrorBody {
    status: kronsae_status,
    message: CString,
}

impl Handle for kronsae_error {
    type Body = ErrorBody;
    const NAME: &'static str = "kronsae_error";
    const MAGIC: u64 = u64::from_le_bytes(*b"kronsERR");
}

/// Text as C has it. A NUL inside (a file name cannot hold one, but a config may) becomes U+FFFD.
pub(super) fn c_text(text: &str) -> CString {
    CString::new(text.replace('\0', "\u{FFFD}")).unwrap_or_default()
}

/// A message as C has it: one line, whatever the paths and files it quotes say.
pub(super) fn c_line(text: &str) -> CString {
    c_text(&text.replace(['\n', '\r'], " "))
}

/// Runs the body of an entry point: its error becomes a status and, where asked for, an owned object; its panic becomes
/// [`Status::Internal`]. On success `*error` becomes null.
///
/// # Safety
/// `error` is null, misaligned, or valid for writing a pointer.
pub(super) unsafe fn boundary(
    function: &str,
    error: *mut *mut kronsae_error,
    body: impl FnOnce() -> Result<()>,
) -> kronsae_status {
    if !error.is_aligned() {
        // There is nowhere to put a message, and a caller this confused should not be served.
        return KRONSAE_STATUS_INVALID_ARGUMENT;
    }
    // AssertUnwindSafe: what a panic may leave half-done is an encoder's workspace, and its handle is poisoned then.
    let outcome = catch_unwind(AssertUnwindSafe(body)).unwrap_or_else(|panic| {
        let found = Error::new(Status::Internal, format!("a bug in kronsae was caught: {}", panic_text(panic)));
        // A panic while the caught one is reported is dropped: the status still tells.
        let _ = catch_unwind(|| log(KRONSAE_LOG_ERROR, &format!("{function}: {found}")));
        Err(found)
    });
    let (status, object) = match outcome {
        Ok(()) => (KRONSAE_STATUS_OK, std::ptr::null_mut()),
        Err(failure) => {
            let status = failure.status() as kronsae_status;
            let object = if error.is_null() {
                std::ptr::null_mut()
            } else {
                handle::create(ErrorBody { status, message: c_line(&format!("{function}: {failure}")) })
            };
            (status, object)
        }
    };
    if !error.is_null() {
        // SAFETY: aligned and not null; valid for writing by the caller's promise.
        unsafe { error.write(object) };
    }
    status
}

/// The body of a destroy: no status to return, so a refusal is logged.
pub(super) fn destructor(function: &str, body: impl FnOnce() -> Result<()>) {
    let outcome = catch_unwind(AssertUnwindSafe(body)).unwrap_or_else(|panic| {
        Err(Error::new(Status::Internal, format!("a bug in kronsae was caught: {}", panic_text(panic))))
    });
    if let Err(refusal) = outcome {
        let _ = catch_unwind(|| log(KRONSAE_LOG_WARN, &format!("{function}: {refusal}; nothing was freed")));
    }
}

/// The message of a caught panic.
fn panic_text(panic: Box<dyn Any + Send>) -> String {
    let text = match panic.downcast_ref::<&str>() {
        Some(text) => (*text).to_owned(),
        None => panic.downcast_ref::<String>().cloned().unwrap_or_else(|| "a panic without a message".to_owned()),
    };
    // Dropping a foreign payload could panic again, outside any net. Leaking it is the lesser evil.
    std::mem::forget(panic);
    text
}

/// The status of an error, the same as the failed call returned. `KRONSAE_STATUS_OK` for NULL.
///
/// Threads: any number at once.
///
/// Since 0.1.0.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kronsae_error_status(error: *const kronsae_error) -> kronsae_status {
    if error.is_null() {
        return KRONSAE_STATUS_OK;
    }
    // SAFETY: the caller vouches for a pointer that is neither null nor visibly wrong.
    unsafe { handle::borrow(error) }.map_or(KRONSAE_STATUS_INVALID_ARGUMENT, |body| body.status)
}

/// The message of an error: which function failed, what was found, what was expected. UTF-8, without a newline; valid
/// until the error is destroyed. An empty string for NULL.
///
/// Threads: any number at once.
///
/// Since 0.1.0.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kronsae_error_message(error: *const kronsae_error) -> *const c_char {
    const NONE: &CStr = c"";
    if error.is_null() {
        return NONE.as_ptr();
    }
    // SAFETY: as above.
    unsafe { handle::borrow(error) }.map_or(c"not a live kronsae_error".as_ptr(), |body| body.message.as_ptr())
}

/// Frees an error and its message. NULL is allowed.
///
/// Threads: one, when no other uses the error any more.
///
/// Since 0.1.0.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kronsae_error_destroy(error: *mut kronsae_error) {
    // SAFETY: as above, and by the header nobody uses the error any more.
    destructor("kronsae_error_destroy", || unsafe { handle::destroy(error) });
}
