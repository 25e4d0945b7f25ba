//! Taps: what serving threads call.

use super::lifecycle::{borrow, kronsae_monitor};
use crate::capi::buffers::{output, slice};
use crate::capi::encode::with_buffers;
use crate::capi::error::{boundary, destructor, kronsae_error};
use crate::capi::exclusive::Exclusive;
use crate::capi::handle::{self, Handle};
use crate::capi::status::kronsae_status;
use crate::capi::structs::{self, LARGEST, Versioned};
use crate::capi::views::{self, kronsae_activations, kronsae_dtype, kronsae_latents};
use crate::error::{Error, Result};
use crate::monitor::{Sampling, SiteId, Tap, TapOptions, TokenTag, flags};
use std::marker::PhantomData;
use std::mem::offset_of;

/// Bit of a token's flags: it belongs to a prompt (it was read, not generated).
pub const KRONSAE_TOKEN_PROMPT: u32 = 1;
/// Bit of a token's flags: the last of a prompt, whose activations decide the first generated token.
pub const KRONSAE_TOKEN_LAST_PROMPT: u32 = 2;

const _: () = assert!(KRONSAE_TOKEN_PROMPT == flags::PROMPT);
const _: () = assert!(KRONSAE_TOKEN_LAST_PROMPT == flags::LAST_PROMPT);

/// Whose token a row of activations is. An array of these is passed with the size of one.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct kronsae_token_tag {
    /// The request; the host's numbering, unique among requests alive at a time.
    pub request: u64,
    /// Its position in the request's sequence, from 0.
    pub position: i32,
    /// The token's id in the LLM's vocabulary; -1 if unknown.
    pub token: i32,
    /// `KRONSAE_TOKEN_*` bits.
    pub flags: u32,
    /// 0.
    pub reserved: u32,
}

const _: () = assert!(size_of::<kronsae_token_tag>() == 24);

/// Which tokens of a tap are encoded: one of `KRONSAE_SAMPLING_*`. The others are counted as sampled out.
pub type kronsae_sampling = i32;
/// Every token.
pub const KRONSAE_SAMPLING_EVERY: kronsae_sampling = 1;
/// Tokens whose position is a multiple of n.
pub const KRONSAE_SAMPLING_EVERY_NTH: kronsae_sampling = 2;
/// Tokens with KRONSAE_TOKEN_LAST_PROMPT.
pub const KRONSAE_SAMPLING_LAST_PROMPT: kronsae_sampling = 3;

/// How a tap works. Start from `KRONSAE_TAP_OPTIONS_INIT`; zero means default.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct kronsae_tap_options {
    /// sizeof(kronsae_tap_options).
    pub struct_size: u32,
    /// `KRONSAE_SAMPLING_*`. 0: every token.
    pub sampling: kronsae_sampling,
    /// With KRONSAE_SAMPLING_EVERY_NTH: n, at least 1. Otherwise 0.
    pub nth: u32,
    /// `KRONSAE_DTYPE_*` of the widest elements that will be submitted, for which the queue's memory is laid out. 0: F32,
    /// so any.
    pub dtype: kronsae_dtype,
    /// Tokens the queue has room for, at most 2^24. 0: 1024.
    pub capacity: usize,
    /// Ends of requests and rewinds the queue has room for besides, in slots that tokens cannot take, at most 2^24.
    /// 0: 1024.
    pub controls: usize,
}

// SAFETY: repr(C) without padding (four 4-byte fields, then 8-byte ones), struct_size first; plain numbers.
unsafe impl Versioned for kronsae_tap_options {
    const NAME: &'static str = "kronsae_tap_options";
    const FIRST_SIZE: usize = offset_of!(Self, controls) + size_of::<usize>();
}

/// Where a serving thread hands activations to a monitor: a bounded queue of one site.
///
/// Threads: one at a time; make one for each thread that submits. A call that overlaps another on the same tap is refused
/// with `KRONSAE_STATUS_INVALID_ARGUMENT`. In a child process its calls return `KRONSAE_STATUS_FORKED`.
///
/// Lifetime: destroying the monitor under a tap is legal, also during a call; later ones return
/// `KRONSAE_STATUS_STOPPED`.
pub struct kronsae_tap {
    _opaque: [u8; 0],
}

pub(in crate::capi) struct TapBody {
    tap: Exclusive<Tap>,
}

impl Handle for kronsae_tap {
    type Body = TapBody;
    const NAME: &'static str = "kronsae_tap";
    const MAGIC: u64 = u64::from_le_bytes(*b"kronsTAP");
}

/// The sampling that the struct called `of` asks for.
pub(super) fn sampling(sampling: kronsae_sampling, nth: u32, of: &str) -> Result<Sampling> {
    match (sampling, nth) {
        (0 | KRONSAE_SAMPLING_EVERY, 0) => Ok(Sampling::Every),
        (KRONSAE_SAMPLING_EVERY_NTH, 1..) => Ok(Sampling::EveryNth(nth)),
        (KRONSAE_SAMPLING_LAST_PROMPT, 0) => Ok(Sampling::LastPrompt),
        (KRONSAE_SAMPLING_EVERY_NTH, 0) => {
            Err(Error::invalid(format!("{of}: nth is 0, expected at least 1 for every nth token")))
        }
        (0 | KRONSAE_SAMPLING_EVERY | KRONSAE_SAMPLING_LAST_PROMPT, _) => {
            Err(Error::invalid(format!("{of}: nth is {nth} without KRONSAE_SAMPLING_EVERY_NTH, expected 0")))
        }
        _ => Err(Error::invalid(format!(
            "{of}: sampling is {sampling}, expected KRONSAE_SAMPLING_EVERY (1), KRONSAE_SAMPLING_EVERY_NTH (2) or \
             KRONSAE_SAMPLING_LAST_PROMPT (3)"
        ))),
    }
}

fn tap_options(options: &kronsae_tap_options) -> Result<TapOptions> {
    let default = TapOptions::default();
    Ok(TapOptions {
        sampling: sampling(options.sampling, options.nth, "kronsae_tap_options")?,
        capacity: if options.capacity == 0 { default.capacity } else { options.capacity },
        controls: if options.controls == 0 { default.controls } else { options.controls },
        dtype: if options.dtype == 0 { default.dtype } else { views::dtype(options.dtype)? },
    })
}

/// The caller's tags, checked, where they are.
pub(super) struct Tags<'a> {
    first: *const u8,
    size: usize,
    rows: usize,
    borrow: PhantomData<&'a kronsae_token_tag>,
}

impl<'a> Tags<'a> {
    /// # Safety
    /// `tags` is null, misaligned, or `rows` elements of `size` bytes that are readable and unchanged during `'a`.
    pub(super) unsafe fn new(tags: *const kronsae_token_tag, rows: usize, size: usize) -> Result<Self> {
        let known = size_of::<kronsae_token_tag>();
        if size < known || size > LARGEST || !size.is_multiple_of(align_of::<kronsae_token_tag>()) {
            return Err(Error::invalid(format!("tag_size is {size}, expected sizeof(kronsae_token_tag) = {known}")));
        }
        // SAFETY: the caller's promise; a tag is as aligned as a u64 and a multiple of one long.
        unsafe { slice(tags.cast::<u64>(), rows.saturating_mul(size / 8), "tags") }?;
        let found = Tags { first: tags.cast(), size, rows, borrow: PhantomData };
        (0..rows).try_for_each(|row| found.check(row))?;
        Ok(found)
    }

    fn raw(&self, row: usize) -> &kronsae_token_tag {
        assert!(row < self.rows, "tag {row} of {}", self.rows);
        // SAFETY: inside the array, whose every element begins with a tag; aligned, and any bits are one.
        unsafe { &*self.first.add(row * self.size).cast() }
    }

    fn check(&self, row: usize) -> Result<()> {
        let tag = self.raw(row);
        let known = size_of::<kronsae_token_tag>();
        if tag.flags & !(KRONSAE_TOKEN_PROMPT | KRONSAE_TOKEN_LAST_PROMPT) != 0 || tag.reserved != 0 {
            return Err(Error::invalid(format!(
                "tag {row}: flags is {:#x} and reserved {}, expected KRONSAE_TOKEN_* bits and 0",
                tag.flags, tag.reserved
            )));
        }
        // SAFETY: the rest of the element, in the array.
        let rest = unsafe { std::slice::from_raw_parts(self.first.add(row * self.size + known), self.size - known) };
        if rest.iter().any(|byte| *byte != 0) {
            let version = env!("CARGO_PKG_VERSION");
            return Err(Error::invalid(format!("tag {row} sets a field that version {version} does not know")));
        }
        Ok(())
    }

    pub(super) fn get(&self, row: usize) -> TokenTag {
        let kronsae_token_tag { request, position, token, flags, .. } = *self.raw(row);
        TokenTag { request, position, token, flags }
    }
}

/// Makes a tap at a site: allocates its queue.
///
/// options: NULL for defaults. out: receives the tap, to be freed with `kronsae_tap_destroy`; NULL on failure.
///
/// Errors: `KRONSAE_STATUS_INVALID_ARGUMENT`, also if there is no such site; `KRONSAE_STATUS_OUT_OF_MEMORY`, also where
/// memory_limit is reached; `KRONSAE_STATUS_STOPPED`; `KRONSAE_STATUS_FORKED`.
///
/// Threads: any number at once; not for serving threads.
///
/// Since 0.1.0.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kronsae_tap_create(
    monitor: *const kronsae_monitor,
    site: u32,
    options: *const kronsae_tap_options,
    out: *mut *mut kronsae_tap,
    error: *mut *mut kronsae_error,
) -> kronsae_status {
    let body = || {
        let out = output(out, "out")?;
        // SAFETY: checked; the header asks for pointers that are valid where they are not null (so everywhere below).
        unsafe {
            out.write(std::ptr::null_mut());
            let body = borrow(monitor)?;
            let tap = body.monitor.tap(SiteId(site), tap_options(&structs::read_options(options)?)?)?;
            out.write(handle::create(TapBody { tap: Exclusive::new("tap", tap) }));
        }
        Ok(())
    };
    // SAFETY: as above.
    unsafe { boundary("kronsae_tap_create", error, body) }
}

/// Hands over a batch: copies activations [rows, d_model] and their tags into the tap's queue, and returns. Made for
/// serving threads: on success, and when it drops tokens, it takes no lock, allocates nothing, logs nothing and never
/// waits.
///
/// activations: raw, as the LLM computes them, in any of the three dtypes. tags: one for each row, of tag_size
/// (sizeof(kronsae_token_tag)) bytes each; tokens of a request in ascending order of position. accepted: NULL, or
/// receives how many rows were queued. The others are counted: those that sampling leaves out, and those that are dropped
/// because the queue has no room, the last ones of a batch. That is no error.
///
/// Errors: `KRONSAE_STATUS_INVALID_ARGUMENT`, also if d_model is not the site's or the dtype is wider than the tap's;
/// `KRONSAE_STATUS_STOPPED` if the monitor was stopped or destroyed; `KRONSAE_STATUS_FORKED`; `KRONSAE_STATUS_POISONED`.
/// No row is queued or counted then.
///
/// Threads: one at a time on one tap.
///
/// Since 0.1.0.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kronsae_tap_submit(
    tap: *mut kronsae_tap,
    activations: *const kronsae_activations,
    tags: *const kronsae_token_tag,
    tag_size: usize,
    accepted: *mut usize,
    error: *mut *mut kronsae_error,
) -> kronsae_status {
    let body = || {
        // SAFETY: as in kronsae_tap_create.
        let body = unsafe { handle::borrow(tap.cast_const()) }?;
        body.tap.run(|tap| {
            #[cfg(test)]
            crate::capi::tests::planted_panic();
            if !accepted.is_null() {
                output(accepted, "accepted")?;
            }
            // SAFETY: as above.
            let (x, tags) = unsafe {
                let x = structs::read(activations)?;
                let batch = x.batch()?;
                (x.view(batch)?, Tags::new(tags, batch.rows, tag_size)?)
            };
            let taken = tap.submit(x, |row| tags.get(row))?;
            if !accepted.is_null() {
                // SAFETY: aligned; the header asks for a pointer that is valid where it is not null.
                unsafe { accepted.write(taken) };
            }
            Ok(())
        })
    };
    // SAFETY: as above.
    unsafe { boundary("kronsae_tap_submit", error, body) }
}

/// Encodes a batch on the calling thread, for hosts that act on the result, and hands it to the monitor's statistics and
/// rules as `kronsae_tap_submit` does.
///
/// activations, tags: as in `kronsae_tap_submit`. latents: as in `kronsae_encode`, all rows, whatever the tap samples.
/// accepted: NULL, or receives how many rows were queued for statistics and rules; the others are counted, as in
/// `kronsae_tap_submit`. This takes as long as encoding does. The first call allocates an encoder; later ones of no more rows allocate nothing.
///
/// Errors: as `kronsae_tap_submit` and `kronsae_encode`; `KRONSAE_STATUS_UNSUPPORTED` at a site without a model.
///
/// Threads: one at a time on one tap.
///
/// Since 0.1.0.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kronsae_tap_encode(
    tap: *mut kronsae_tap,
    activations: *const kronsae_activations,
    tags: *const kronsae_token_tag,
    tag_size: usize,
    latents: *mut kronsae_latents,
    accepted: *mut usize,
    error: *mut *mut kronsae_error,
) -> kronsae_status {
    let body = || {
        // SAFETY: as in kronsae_tap_create.
        let body = unsafe { handle::borrow(tap.cast_const()) }?;
        body.tap.run(|tap| {
            if !accepted.is_null() {
                output(accepted, "accepted")?;
            }
            let mut queued = 0;
            let call = |x: crate::Activations<'_>, out: &mut crate::LatentsMut<'_>| {
                // SAFETY: as above.
                let tags = unsafe { Tags::new(tags, x.rows(), tag_size) }?;
                let done = tap.encode(x, |row| tags.get(row), out)?;
                queued = done.accepted;
                Ok(done.encode)
            };
            // SAFETY: as above.
            unsafe { with_buffers(activations, latents, call) }?;
            if !accepted.is_null() {
                // SAFETY: aligned; the header asks for a pointer that is valid where it is not null.
                unsafe { accepted.write(queued) };
            }
            Ok(())
        })
    };
    // SAFETY: as above.
    unsafe { boundary("kronsae_tap_encode", error, body) }
}

/// Says that a request is over: its state is freed once the tokens submitted before are encoded. It travels in the
/// tap's queue, in order, in slots that tokens cannot fill.
///
/// A request that ends without this call is given up when its room is needed.
///
/// Errors: `KRONSAE_STATUS_FULL` if the slots are full of such calls, and nothing was done; `KRONSAE_STATUS_STOPPED`;
/// `KRONSAE_STATUS_FORKED`; `KRONSAE_STATUS_POISONED`; `KRONSAE_STATUS_INVALID_ARGUMENT`.
///
/// Threads: one at a time on one tap. Made for serving threads, as `kronsae_tap_submit`.
///
/// Since 0.1.0.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kronsae_tap_end_request(
    tap: *mut kronsae_tap,
    request: u64,
    error: *mut *mut kronsae_error,
) -> kronsae_status {
    // SAFETY: as in kronsae_tap_create.
    let body = || unsafe { handle::borrow(tap.cast_const()) }?.tap.run(|tap| tap.end_request(request));
    // SAFETY: as above.
    unsafe { boundary("kronsae_tap_end_request", error, body) }
}

/// Takes back the tokens of a request from a position on (speculative decoding, a regenerated answer): they leave the
/// windows of rules, and a match that rests on them is followed by an event of kind `KRONSAE_EVENT_RETRACTED`.
/// Statistics keep them: they were computed. It travels in the tap's queue as `kronsae_tap_end_request` does.
///
/// Errors: as `kronsae_tap_end_request`.
///
/// Threads: one at a time on one tap. Made for serving threads, as `kronsae_tap_submit`.
///
/// Since 0.1.0.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kronsae_tap_rewind(
    tap: *mut kronsae_tap,
    request: u64,
    position: i32,
    error: *mut *mut kronsae_error,
) -> kronsae_status {
    // SAFETY: as in kronsae_tap_create.
    let body = || unsafe { handle::borrow(tap.cast_const()) }?.tap.run(|tap| tap.rewind(request, position));
    // SAFETY: as above.
    unsafe { boundary("kronsae_tap_rewind", error, body) }
}

/// Destroys a tap. What it took in is still encoded, and its counters stay in the monitor's sums. NULL is allowed. May
/// come before or after `kronsae_monitor_destroy`.
///
/// Threads: one, when no other uses the tap any more.
///
/// Since 0.1.0.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kronsae_tap_destroy(tap: *mut kronsae_tap) {
    // SAFETY: as in kronsae_tap_create, and by the header nobody uses the tap any more.
    destructor("kronsae_tap_destroy", || unsafe { handle::destroy(tap) });
}
