//! What a handle points to: a box that begins with a word which says what it is and that it is alive.
//!
//! The word makes the common mistakes (a handle of another type, a second destroy, a pointer into zeroed memory) an
//! error instead of a crash. It is a best effort: reading it after the box was freed is reading freed memory, which may
//! by then hold anything. Callers are told so.

use crate::error::{Error, Result};
use std::sync::atomic::{AtomicU64, Ordering};

/// An opaque C type and what is behind a pointer to it.
pub(super) trait Handle {
    /// What the box holds.
    type Body;
    /// The C type's name, for messages.
    const NAME: &'static str;
    /// The live word; another for each type.
    const MAGIC: u64;
}

/// The box. `repr(C)` puts the word first, whatever the body is.
#[repr(C)]
struct Live<T> {
    magic: AtomicU64,
    body: T,
}

/// A new handle; [`destroy`] takes it back.
pub(super) fn create<H: Handle>(body: H::Body) -> *mut H {
    Box::into_raw(Box::new(Live { magic: AtomicU64::new(H::MAGIC), body })).cast()
}

/// The word of a handle that could be one, by its address.
///
/// # Safety
/// `handle` is null, misaligned, or eight readable bytes.
unsafe fn magic<'a, H: Handle>(handle: *const H) -> Result<&'a AtomicU64> {
    if handle.is_null() {
        return Err(Error::invalid(format!("{} is null", H::NAME)));
    }
    if !handle.cast::<Live<H::Body>>().is_aligned() {
        return Err(Error::invalid(format!(
            "{} at {handle:p} is misaligned; it is not a handle of this library",
            H::NAME
        )));
    }
    // SAFETY: aligned and not null, as just checked; readable by the caller's promise, and only ever accessed atomically.
    Ok(unsafe { AtomicU64::from_ptr(handle.cast_mut().cast()) })
}

fn not_live<H: Handle>(handle: *const H) -> Error {
    Error::invalid(format!("{} at {handle:p} is not a live handle of that type (was it destroyed already?)", H::NAME))
}

/// What is behind a handle.
///
/// # Errors
/// [`crate::Status::InvalidArgument`] if it is null, misaligned or visibly not a live handle of this type.
///
/// # Safety
/// `handle` is null, misaligned, readable memory that is no handle, or a handle that nobody destroys during `'a`.
pub(super) unsafe fn borrow<'a, H: Handle>(handle: *const H) -> Result<&'a H::Body> {
    // SAFETY: the caller's promise.
    if unsafe { magic(handle) }?.load(Ordering::Acquire) != H::MAGIC {
        return Err(not_live(handle));
    }
    // SAFETY: the word says that `create` made this box; it stays alive during 'a by the caller's promise.
    Ok(unsafe { &(*handle.cast::<Live<H::Body>>()).body })
}

/// Takes a handle back, clears its word and drops its body. Null is nothing.
///
/// # Errors
/// As [`borrow`], except for null; nothing is freed then.
///
/// # Safety
/// As [`borrow`], and nobody else uses the handle now or later.
pub(super) unsafe fn destroy<H: Handle>(handle: *mut H) -> Result<()> {
    if handle.is_null() {
        return Ok(());
    }
    // SAFETY: the caller's promise.
    let magic = unsafe { magic(handle.cast_const()) }?;
    // One of two threads that destroy the same handle wins; the other is told, if the memory still stands.
    if magic.compare_exchange(H::MAGIC, 0, Ordering::AcqRel, Ordering::Acquire).is_err() {
        return Err(not_live(handle.cast_const()));
    }
    // SAFETY: the word said that `create` made this box, and clearing it made this call the only one to free it.
    drop(unsafe { Box::from_raw(handle.cast::<Live<H::Body>>()) });
    Ok(())
}
