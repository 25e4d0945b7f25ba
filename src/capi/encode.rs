//! Encoders: activations in, sparse latents out.

use super::buffers::{disjoint, output, slice_mut};
use super::error::{boundary, destructor, kronsae_error};
use super::exclusive::Exclusive;
use super::handle::{self, Handle};
use super::sae::{Model, kronsae_sae};
use super::status::kronsae_status;
use super::structs::{self, Versioned};
use super::views::{kronsae_activations, kronsae_latents};
use crate::activations::Activations;
use crate::encode::{EncodePath, EncodeSummary, Encoder, EncoderOptions, LatentsMut};
use crate::error::{Error, Result, Status};
use std::mem::offset_of;
use std::sync::Arc;

/// Turns activations into sparse latents: a model, a workspace, and threads of its own.
///
/// Threads: one at a time; make one for each thread that encodes. A call that overlaps another on the same encoder is
/// refused with `KRONSAE_STATUS_INVALID_ARGUMENT`. Its threads sleep between calls, block all signals but faults and
/// are named `kronsae-*`. In a child process its calls return `KRONSAE_STATUS_FORKED`.
pub struct kronsae_encoder {
    _opaque: [u8; 0],
}

pub(super) struct EncoderBody {
    /// The process that made it.
    process: u32,
    model: Arc<Model>,
    encoder: Exclusive<Encoder>,
}

impl Handle for kronsae_encoder {
    type Body = EncoderBody;
    const NAME: &'static str = "kronsae_encoder";
    const MAGIC: u64 = u64::from_le_bytes(*b"kronsENC");
}

impl EncoderBody {
    /// Runs a call on the encoder, which this thread alone has meanwhile.
    fn exclusively(&self, call: impl FnOnce(&mut Encoder) -> Result<()>) -> Result<()> {
        if std::process::id() != self.process {
            return Err(Error::new(
                Status::Forked,
                "this encoder was made before fork(); make a new one in the child process",
            ));
        }
        self.encoder.run(call)
    }
}

/// How an encoder finds its results: one of `KRONSAE_PATH_*`.
pub type kronsae_path = i32;

/// Whichever is faster, by a measured rule; or what the environment variable KRONSAE_ENCODE names, `plain` or `screened`.
pub const KRONSAE_PATH_AUTO: kronsae_path = 0;
/// All rows of the encoder are computed exactly.
pub const KRONSAE_PATH_PLAIN: kronsae_path = 1;
/// An int8 copy of the encoder tells, with proven bounds, which rows can matter; those are computed exactly. Same results.
pub const KRONSAE_PATH_SCREENED: kronsae_path = 2;
/// As screened, with bounds that hold only very likely. Not exact: now and then a latent may be missing. Values that are
/// reported are still exact.
pub const KRONSAE_PATH_FAST: kronsae_path = 3;

/// How an encoder works. Start from `KRONSAE_ENCODER_OPTIONS_INIT`; zero means default.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct kronsae_encoder_options {
    /// sizeof(kronsae_encoder_options).
    pub struct_size: u32,
    /// Threads of a call, the caller's included, at most 1024; never more are used. 0: one, the caller's. Results do not
    /// depend on it.
    pub threads: u32,
    /// `KRONSAE_PATH_*`.
    pub path: kronsae_path,
    /// 0.
    pub reserved: u32,
}

impl kronsae_encoder_options {
    fn options(self) -> Result<EncoderOptions> {
        let path = match self.path {
            KRONSAE_PATH_AUTO => EncodePath::Auto,
            KRONSAE_PATH_PLAIN => EncodePath::Plain,
            KRONSAE_PATH_SCREENED => EncodePath::Screened,
            KRONSAE_PATH_FAST => EncodePath::Fast,
            other => {
                return Err(Error::invalid(format!(
                    "kronsae_encoder_options: path is {other}, expected KRONSAE_PATH_*"
                )));
            }
        };
        if self.reserved != 0 {
            return Err(Error::invalid(format!("kronsae_encoder_options: reserved is {}, expected 0", self.reserved)));
        }
        Ok(EncoderOptions { threads: self.threads.max(1) as usize, path })
    }
}

// SAFETY: repr(C), four 4-byte fields, struct_size first; plain numbers.
unsafe impl Versioned for kronsae_encoder_options {
    const NAME: &'static str = "kronsae_encoder_options";
    const FIRST_SIZE: usize = offset_of!(Self, threads) + size_of::<u32>();
}

/// Asks the system to let this process use AMX, the matrix tiles of recent Intel CPUs, with which encoders made afterwards
/// encode large batches several times as fast. The library never asks by itself: the permission is the whole process's,
/// for good, and with it alternate signal stacks (sigaltstack) must be some kilobytes larger. Inference engines that use
/// AMX have asked already.
///
/// Errors: `KRONSAE_STATUS_UNSUPPORTED` if the CPU has none or the system refuses. Nothing has changed then, and
/// everything works without.
///
/// Threads: any, at any time.
///
/// Since 0.1.0.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kronsae_request_amx(error: *mut *mut kronsae_error) -> kronsae_status {
    let body = || match crate::Amx::request() {
        true => Ok(()),
        false => {
            Err(Error::new(Status::Unsupported, "this CPU has no AMX, or the system does not let this process use it"))
        }
    };
    // SAFETY: the header asks for pointers that are valid where they are not null.
    unsafe { boundary("kronsae_request_amx", error, body) }
}

/// Makes an encoder: allocates its workspace, starts its threads. The first encoder of a model whose batches are worth it
/// also makes an int8 copy of the weights, about two bytes a weight, which all encoders of that model share.
///
/// options: NULL for defaults. out: receives the encoder, to be freed with `kronsae_encoder_destroy`; NULL on failure.
///
/// Errors: `KRONSAE_STATUS_OUT_OF_MEMORY` if there is no memory or the system gives no thread;
/// `KRONSAE_STATUS_UNSUPPORTED` if the environment variable KRONSAE_ISA names an instruction set this CPU lacks, or
/// KRONSAE_ENCODE something other than plain or screened; `KRONSAE_STATUS_INVALID_ARGUMENT`.
///
/// Threads: any number at once.
///
/// Since 0.1.0.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kronsae_encoder_create(
    sae: *const kronsae_sae,
    options: *const kronsae_encoder_options,
    out: *mut *mut kronsae_encoder,
    error: *mut *mut kronsae_error,
) -> kronsae_status {
    let body = || {
        let out = output(out, "out")?;
        // SAFETY: checked; the header asks for pointers that are valid where they are not null (so everywhere below).
        unsafe {
            out.write(std::ptr::null_mut());
            let model = Arc::clone(&handle::borrow(sae)?.model);
            let options = structs::read_options(options)?.options()?;
            let encoder = Exclusive::new("encoder", Encoder::new(Arc::clone(&model.sae), options)?);
            out.write(handle::create(EncoderBody { process: std::process::id(), model, encoder }));
        }
        Ok(())
    };
    // SAFETY: as above.
    unsafe { boundary("kronsae_encoder_create", error, body) }
}

/// Encodes a batch: activations [rows, d_model] to the latents of each row. Works for any number of rows; the first call
/// done, it allocates nothing.
///
/// Results are a function of each row and the model alone: batch size, the row's place in it, threads and instruction set
/// never change a bit.
///
/// activations: raw, as the LLM computes them, in any of the three dtypes. latents: the caller's buffers; those of the
/// first activations->rows rows are written, as are skipped_rows and truncated_rows. A row that is not finite has
/// count 0 and its flag, and is no error.
///
/// Errors: `KRONSAE_STATUS_INVALID_ARGUMENT`, also if d_model is not the model's or a capacity is below k (TopK);
/// `KRONSAE_STATUS_STOPPED` if the model was destroyed; `KRONSAE_STATUS_FORKED`; `KRONSAE_STATUS_POISONED`. Nothing is
/// written then. `KRONSAE_STATUS_INTERNAL` leaves the buffers' contents unspecified and the encoder poisoned.
///
/// Threads: one at a time on one encoder.
///
/// Since 0.1.0.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kronsae_encode(
    encoder: *mut kronsae_encoder,
    activations: *const kronsae_activations,
    latents: *mut kronsae_latents,
    error: *mut *mut kronsae_error,
) -> kronsae_status {
    let body = || {
        // SAFETY: as in kronsae_encoder_create.
        let body = unsafe { handle::borrow(encoder.cast_const()) }?;
        body.exclusively(|encoder| {
            body.model.check_running()?;
            #[cfg(test)]
            super::tests::planted_panic();
            // SAFETY: as above.
            unsafe { with_buffers(activations, latents, |x, out| encoder.encode(x, out)) }
        })
    };
    // SAFETY: as above.
    unsafe { boundary("kronsae_encode", error, body) }
}

/// Checks a caller's activations and latents, runs `encode` on them and fills in its summary.
///
/// # Safety
/// The structs and what they point to are as the header asks, where they are not visibly otherwise.
pub(super) unsafe fn with_buffers(
    activations: *const kronsae_activations,
    latents: *mut kronsae_latents,
    encode: impl FnOnce(Activations<'_>, &mut LatentsMut<'_>) -> Result<EncodeSummary>,
) -> Result<()> {
    // SAFETY: the caller's promise.
    let (x, to) = unsafe { (structs::read(activations)?, structs::read(latents.cast_const())?) };
    let batch = x.batch()?;
    let rows = batch.rows;
    let entries = to.entries(rows)?;
    disjoint(&to.extents(rows, entries), &[batch.extent(x.data)])?;
    // SAFETY: the caller's promise, and the buffers were found disjoint.
    let summary = unsafe {
        let mut out = LatentsMut::new(
            slice_mut(to.counts, rows, "counts")?,
            slice_mut(to.indices, entries, "indices")?,
            slice_mut(to.values, entries, "values")?,
            to.capacity,
        );
        if !to.active.is_null() {
            out = out.with_active(slice_mut(to.active, rows, "active")?);
        }
        if !to.row_flags.is_null() {
            out = out.with_flags(slice_mut(to.row_flags, rows, "row_flags")?);
        }
        encode(x.view(batch)?, &mut out)?
    };
    // SAFETY: `latents` was read before, so it is valid; its struct_size covers both fields, which are of version 0.1.0.
    unsafe {
        (&raw mut (*latents).skipped_rows).write(summary.skipped_rows);
        (&raw mut (*latents).truncated_rows).write(summary.truncated_rows);
    }
    Ok(())
}

/// Destroys an encoder and ends its threads. NULL is allowed. May come before or after `kronsae_sae_destroy`.
///
/// Threads: one, when no other uses the encoder any more.
///
/// Since 0.1.0.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kronsae_encoder_destroy(encoder: *mut kronsae_encoder) {
    // SAFETY: as in kronsae_encoder_create, and by the header nobody uses the encoder any more.
    destructor("kronsae_encoder_destroy", || unsafe { handle::destroy(encoder) });
}
