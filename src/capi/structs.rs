//! Structs that grow: the caller's `struct_size` says which version of one it was compiled with.

use crate::error::{Error, Result};
use std::mem::MaybeUninit;

/// No struct of any version is larger; more is an uninitialised `struct_size`, and its bytes must not be looked at.
pub(super) const LARGEST: usize = 4096;

/// A struct of the C ABI.
///
/// # Safety
/// `repr(C)`, begins with `struct_size: u32`, and all bytes zero is a value of it, as is any bit pattern.
pub(super) unsafe trait Versioned: Copy {
    /// The C type's name, for messages.
    const NAME: &'static str;
    /// Its size in the first version that had it: up to the last field of that version, named, so that a field appended
    /// later does not shut out callers that were compiled before.
    const FIRST_SIZE: usize;
}

/// The `struct_size` a caller wrote, checked.
unsafe fn size_of_callers<T: Versioned>(from: *const T) -> Result<usize> {
    if from.is_null() {
        return Err(Error::invalid(format!("{} is null", T::NAME)));
    }
    if !from.is_aligned() {
        return Err(Error::invalid(format!("{} at {from:p} is misaligned", T::NAME)));
    }
    // SAFETY: not null and aligned; by the caller's promise at least a u32 can be read there.
    let size = unsafe { from.cast::<u32>().read() } as usize;
    if size < T::FIRST_SIZE || size > LARGEST {
        return Err(Error::invalid(format!(
            "{}: struct_size is {size}, expected {} (sizeof the struct; start from its _INIT macro)",
            T::NAME,
            size_of::<T>()
        )));
    }
    Ok(size)
}

/// Reads a caller's struct: what an older caller lacks is zero, and what a newer one has besides must be zero, since
/// this version would not do what it asks.
///
/// # Safety
/// `from` is null, misaligned, or readable for the `struct_size` bytes that it says it has.
pub(super) unsafe fn read<T: Versioned>(from: *const T) -> Result<T> {
    // SAFETY: the caller's promise.
    let size = unsafe { size_of_callers(from) }?;
    let known = size.min(size_of::<T>());
    let mut value = MaybeUninit::<T>::zeroed();
    // SAFETY: `known` bytes are readable by the caller's promise and fit into `value`; all bytes are then initialised,
    // and any are a value of T.
    let value = unsafe {
        std::ptr::copy_nonoverlapping(from.cast::<u8>(), value.as_mut_ptr().cast::<u8>(), known);
        value.assume_init()
    };
    // SAFETY: bytes known..size lie within the struct_size bytes that the caller promised.
    let tail = unsafe { std::slice::from_raw_parts(from.cast::<u8>().add(known), size - known) };
    if let Some(at) = tail.iter().position(|byte| *byte != 0) {
        return Err(Error::invalid(format!(
            "{}: byte {} is set, in a field that version {} does not know; it knows the first {known} of {size} bytes",
            T::NAME,
            known + at,
            env!("CARGO_PKG_VERSION")
        )));
    }
    Ok(value)
}

/// As [`read`], where null means all defaults.
///
/// # Safety
/// As [`read`].
pub(super) unsafe fn read_options<T: Versioned>(from: *const T) -> Result<T> {
    if from.is_null() {
        // SAFETY: all bytes zero is a value of T.
        return Ok(unsafe { std::mem::zeroed() });
    }
    // SAFETY: the caller's promise.
    unsafe { read(from) }
}

/// Fills a caller's output struct, `struct_size` excepted: an older caller gets the fields it knows, a newer one zeroes
/// in the fields that this version does not.
///
/// # Safety
/// `to` is null, misaligned, or readable and writable for the `struct_size` bytes that it says it has.
pub(super) unsafe fn write<T: Versioned>(value: &T, to: *mut T) -> Result<()> {
    // SAFETY: the caller's promise.
    let size = unsafe { size_of_callers(to.cast_const()) }?;
    let known = size.min(size_of::<T>());
    let skip = size_of::<u32>();
    // SAFETY: `known` and `size` are within what the caller promised, `known` also within `value`. Copying bytes of a
    // struct without padding (each is laid out so) reads only initialised ones.
    unsafe {
        let to = to.cast::<u8>();
        std::ptr::copy_nonoverlapping(std::ptr::from_ref(value).cast::<u8>().add(skip), to.add(skip), known - skip);
        to.add(known).write_bytes(0, size - known);
    }
    Ok(())
}
