//! Text between C and Rust: what a caller passes, and what it is handed into a buffer of its own.

use super::buffers::{output, slice_mut};
use crate::error::{Error, Result};
use std::ffi::{CStr, c_char};
use std::path::Path;

/// The text behind a C string.
///
/// # Safety
/// `pointer` is null, or terminated and unchanged during `'a`.
pub(super) unsafe fn text<'a>(pointer: *const c_char, what: &str) -> Result<&'a CStr> {
    if pointer.is_null() {
        return Err(Error::invalid(format!("{what} is null")));
    }
    // SAFETY: not null; terminated and unchanged by the caller's promise.
    Ok(unsafe { CStr::from_ptr(pointer) })
}

/// As [`text`], as UTF-8.
///
/// # Safety
/// As [`text`].
pub(super) unsafe fn utf8<'a>(pointer: *const c_char, what: &str) -> Result<&'a str> {
    // SAFETY: the caller's promise.
    let text = unsafe { text(pointer, what) }?;
    text.to_str().map_err(|wrong| Error::invalid(format!("{what} is not UTF-8 from byte {}", wrong.valid_up_to())))
}

/// As [`utf8`], where null means that nothing is said.
///
/// # Safety
/// As [`text`].
pub(super) unsafe fn utf8_or_none<'a>(pointer: *const c_char, what: &str) -> Result<Option<&'a str>> {
    if pointer.is_null() {
        return Ok(None);
    }
    // SAFETY: the caller's promise.
    unsafe { utf8(pointer, what) }.map(Some)
}

/// A file's name: its bytes on Unix, UTF-8 elsewhere.
#[cfg(unix)]
pub(super) fn path_of(text: &CStr) -> Result<&Path> {
    use std::os::unix::ffi::OsStrExt;
    Ok(Path::new(std::ffi::OsStr::from_bytes(text.to_bytes())))
}

#[cfg(not(unix))]
pub(super) fn path_of(text: &CStr) -> Result<&Path> {
    text.to_str().map(Path::new).map_err(|_| Error::invalid("path is not UTF-8"))
}

/// Where a text is to go: checked first, so that nothing is computed, or started, for a buffer that cannot take it.
pub(super) struct TextOut<'a> {
    buffer: &'a mut [u8],
    size: *mut usize,
}

impl<'a> TextOut<'a> {
    /// # Safety
    /// `buffer` is null, or `capacity` writable bytes that nobody else touches during `'a`; `size` is null, misaligned,
    /// or writable.
    pub(super) unsafe fn new(buffer: *mut c_char, capacity: usize, size: *mut usize) -> Result<Self> {
        let size = output(size, "size")?;
        // SAFETY: the caller's promise; of a capacity of 0 the pointer is not looked at.
        let buffer = unsafe { slice_mut(buffer.cast::<u8>(), capacity, "buffer") }?;
        Ok(TextOut { buffer, size })
    }

    /// Writes the text and a NUL, or nothing but the NUL where they do not fit: a torn text would pass for a whole one.
    pub(super) fn put(self, text: &str) {
        let fits = text.len() < self.buffer.len();
        let written = if fits { text.as_bytes() } else { &[] };
        if let Some((end, _)) = self.buffer[written.len()..].split_first_mut() {
            *end = 0;
            self.buffer[..written.len()].copy_from_slice(written);
        }
        // SAFETY: checked by `new`, whose caller promised that it may be written.
        unsafe { self.size.write(text.len()) };
    }
}
