//! One log callback for the library; silent until it is set.

use super::error::{boundary, c_line, kronsae_error};
use super::status::kronsae_status;
use crate::error::Error;
use std::cell::Cell;
use std::ffi::{c_char, c_void};
use std::sync::{PoisonError, RwLock};

/// How grave a log message is: one of `KRONSAE_LOG_*`. Later versions may add levels.
pub type kronsae_log_level = i32;

/// A bug inside the library was caught.
pub const KRONSAE_LOG_ERROR: kronsae_log_level = 1;
/// Something was ignored that the caller should know of: a destroy of what is no live handle, say.
pub const KRONSAE_LOG_WARN: kronsae_log_level = 2;
/// Rare events of normal work: a model was opened.
pub const KRONSAE_LOG_INFO: kronsae_log_level = 3;

/// Receives log messages. `message` is UTF-8 without a newline, valid during the call only; `user_data` is what was
/// given to `kronsae_set_log_callback`.
///
/// It runs on the thread that called the library, or on a worker of a monitor; several threads may be in it at once, and it
/// must return: no exception, longjmp or thread exit may leave it (the process is aborted if one does). What it logs by
/// calling this library again is dropped.
pub type kronsae_log_callback =
    Option<unsafe extern "C" fn(user_data: *mut c_void, level: kronsae_log_level, message: *const c_char)>;

/// The callback and its argument.
struct Sink {
    callback: unsafe extern "C" fn(*mut c_void, kronsae_log_level, *const c_char),
    user_data: *mut c_void,
}

// SAFETY: the pointer is only handed back to the callback, which by the header may be called on any thread.
unsafe impl Send for Sink {}
// SAFETY: as above, from several threads at once.
unsafe impl Sync for Sink {}

/// Read-locked while the callback runs, so that replacing it waits until the old one has returned.
static SINK: RwLock<Option<Sink>> = RwLock::new(None);

thread_local! {
    /// Whether this thread is inside the callback.
    static INSIDE: Cell<bool> = const { Cell::new(false) };
}

/// Hands a message to the callback, if there is one.
pub(super) fn log(level: kronsae_log_level, message: &str) {
    // From inside the callback the lock is already held, and a second read could wait for a writer that waits for us.
    if INSIDE.get() {
        return;
    }
    let sink = SINK.read().unwrap_or_else(PoisonError::into_inner);
    if let Some(sink) = &*sink {
        let text = c_line(message);
        INSIDE.set(true);
        // SAFETY: set by kronsae_set_log_callback, whose caller vouched for it until it is replaced, which waits for
        // the lock held here. It must not unwind; if it does, the process aborts at this very call.
        unsafe { (sink.callback)(sink.user_data, level, text.as_ptr()) };
        INSIDE.set(false);
    }
}

/// Sets the one log callback of the library, or removes it (NULL, the initial state: the library is silent).
///
/// When this returns, the previous callback has returned on every thread and will not be called again, so that what its
/// `user_data` points to may be freed. Set it before the first fork(), and not between fork() and exec().
///
/// Errors: `KRONSAE_STATUS_INVALID_ARGUMENT` if called from inside the callback.
///
/// Threads: any, at any time.
///
/// Since 0.1.0.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kronsae_set_log_callback(
    callback: kronsae_log_callback,
    user_data: *mut c_void,
    error: *mut *mut kronsae_error,
) -> kronsae_status {
    let body = || {
        if INSIDE.get() {
            return Err(Error::invalid("called from inside the log callback, which it would have to wait for"));
        }
        *SINK.write().unwrap_or_else(PoisonError::into_inner) = callback.map(|callback| Sink { callback, user_data });
        Ok(())
    };
    // SAFETY: the caller vouches for `error` where it is neither null nor misaligned.
    unsafe { boundary("kronsae_set_log_callback", error, body) }
}
