//! Numbers as the bytes they are in memory.

/// Types of which every byte is initialised and every pattern of bits is a value.
///
/// # Safety
/// No padding, no invalid values, no pointers.
pub(super) unsafe trait Plain: Copy {}
// SAFETY: a number (so below).
unsafe impl Plain for u16 {}
// SAFETY: as above.
unsafe impl Plain for u32 {}
// SAFETY: as above.
unsafe impl Plain for u64 {}
// SAFETY: as above.
unsafe impl Plain for f32 {}
// SAFETY: as above.
unsafe impl Plain for f64 {}

pub(super) fn as_bytes<T: Plain>(values: &[T]) -> &[u8] {
    // SAFETY: the slice's memory, all of it initialised, for as long as it is borrowed; u8 has no alignment.
    unsafe { std::slice::from_raw_parts(values.as_ptr().cast(), size_of_val(values)) }
}

pub(super) fn as_bytes_mut<T: Plain>(values: &mut [T]) -> &mut [u8] {
    // SAFETY: as above, exclusively; whatever is written is a value of T.
    unsafe { std::slice::from_raw_parts_mut(values.as_mut_ptr().cast(), size_of_val(values)) }
}
