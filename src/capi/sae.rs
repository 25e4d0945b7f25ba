//! Models: open, describe, destroy.

use super::buffers::{output, slice};
use super::error::{boundary, c_text, destructor, kronsae_error};
use super::handle::{self, Handle};
use super::log::{KRONSAE_LOG_INFO, log};
use super::status::kronsae_status;
use super::strings::{path_of, text};
use super::structs::{self, Versioned};
use super::views::kronsae_dtype;
use crate::error::{Error, Result, Status};
use crate::sae::{Encoder, LoadOptions, Sae, Selection};
use std::ffi::{CString, c_char, c_void};
use std::mem::offset_of;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// How an encoder turns pre-activations into latents: one of `KRONSAE_ENCODER_*`.
pub type kronsae_encoder_kind = i32;
/// KronSAE: heads of base and extension rows.
pub const KRONSAE_ENCODER_KRON: kronsae_encoder_kind = 1;
/// An ordinary SAE: one row a latent.
pub const KRONSAE_ENCODER_DENSE: kronsae_encoder_kind = 2;

/// Which latents of a token are reported: one of `KRONSAE_SELECTION_*`.
pub type kronsae_selection_kind = i32;
/// The k strongest positive latents.
pub const KRONSAE_SELECTION_TOPK: kronsae_selection_kind = 1;
/// Every latent above a threshold; of more than max_latents, the strongest.
pub const KRONSAE_SELECTION_THRESHOLD: kronsae_selection_kind = 2;

/// A trained sparse autoencoder, opened from a model file.
///
/// Threads: immutable. Any number of threads may use one at once, except for `kronsae_sae_destroy`. It has no threads of
/// its own, and a child process may go on using the one it inherited over fork().
///
/// Lifetime: encoders keep what they need of it alive. Destroying it under them is legal, and stops them.
pub struct kronsae_sae {
    _opaque: [u8; 0],
}

/// What the handle and its encoders share.
pub(super) struct Model {
    pub(super) sae: Arc<Sae>,
    /// Set when the handle is destroyed; its encoders refuse from then on.
    stopped: AtomicBool,
    config_json: CString,
    /// The `source` object of the config, as text.
    source: Vec<(String, CString)>,
}

impl Model {
    fn new(sae: Sae) -> Self {
        let config = sae.config();
        let keys = config.json.get("source").and_then(|source| source.as_object());
        let source = keys
            .into_iter()
            .flat_map(|object| object.keys())
            .filter_map(|key| Some((key.clone(), c_text(&config.source(key)?))))
            .collect();
        let config_json = c_text(&config.to_json());
        Model { sae: Arc::new(sae), stopped: AtomicBool::new(false), config_json, source }
    }

    pub(super) fn check_running(&self) -> Result<()> {
        if self.stopped.load(Ordering::Acquire) {
            return Err(Error::new(
                Status::Stopped,
                "the model was destroyed; keep it as long as its encoders are used",
            ));
        }
        Ok(())
    }
}

/// What a `kronsae_sae` holds.
pub(super) struct SaeBody {
    pub(super) model: Arc<Model>,
}

impl Drop for SaeBody {
    fn drop(&mut self) {
        self.model.stopped.store(true, Ordering::Release);
    }
}

impl Handle for kronsae_sae {
    type Body = SaeBody;
    const NAME: &'static str = "kronsae_sae";
    const MAGIC: u64 = u64::from_le_bytes(*b"kronsSAE");
}

/// How a model is opened. Start from `KRONSAE_SAE_OPTIONS_INIT`; zero means default.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct kronsae_sae_options {
    /// sizeof(kronsae_sae_options).
    pub struct_size: u32,
    /// 1: leave the decoder in the file. Saves its memory (F * d_model elements) in a host that neither decodes nor
    /// steers. 0: load it.
    pub encoder_only: u32,
}

/// What a model is. Start from `KRONSAE_SAE_INFO_INIT`; filled by `kronsae_sae_get_info`.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct kronsae_sae_info {
    /// sizeof(kronsae_sae_info). Written by the caller.
    pub struct_size: u32,
    /// `KRONSAE_ENCODER_*`.
    pub encoder_kind: kronsae_encoder_kind,
    /// `KRONSAE_SELECTION_*`.
    pub selection_kind: kronsae_selection_kind,
    /// `KRONSAE_DTYPE_*` of the encoder's weights in memory: F32 or BF16 (F16 is widened).
    pub weights_dtype: kronsae_dtype,
    /// 1 if the decoder is loaded: the model can decode and steer. Otherwise 0.
    pub has_decoder: u32,
    /// 1 if the file knows how often and how strongly its latents fire. Otherwise 0.
    pub has_calibration: u32,
    /// 1 if each latent has a threshold of its own, in place of theta. Otherwise 0.
    pub has_latent_thresholds: u32,
    /// Quantiles of each latent's value in the calibration, or 0.
    pub calibration_levels: u32,
    /// Threshold selection: latents of a larger value are active. TopK: 0.
    pub theta: f32,
    /// s: a latent of value v adds `s * v * decoder row` to the reconstruction, in raw activation units.
    pub output_scale: f32,
    /// Elements of an activation vector.
    pub d_model: usize,
    /// F, the number of latents.
    pub latents: usize,
    /// Rows of the encoder matrix: heads * (base + extension), or F.
    pub encoder_rows: usize,
    /// Kron: number of heads. Dense: 0.
    pub heads: usize,
    /// Kron: base rows of a head. Dense: 0.
    pub base: usize,
    /// Kron: extension rows of a head. Dense: 0. Latent `k*base*extension + i*extension + j` is the soft AND of base row
    /// i and extension row j of head k.
    pub extension: usize,
    /// TopK: the most latents a token has. Threshold: 0.
    pub k: usize,
    /// Threshold: the most latents a token keeps. TopK: 0.
    pub max_latents: usize,
    /// The capacity of kronsae_latents that never cuts anything: k, or max_latents.
    pub capacity: usize,
}

// SAFETY: repr(C) without padding (ten 4-byte fields, then pointer-sized ones), struct_size first; plain numbers.
unsafe impl Versioned for kronsae_sae_info {
    const NAME: &'static str = "kronsae_sae_info";
    const FIRST_SIZE: usize = offset_of!(Self, capacity) + size_of::<usize>();
}
// SAFETY: as above, two 4-byte fields.
unsafe impl Versioned for kronsae_sae_options {
    const NAME: &'static str = "kronsae_sae_options";
    const FIRST_SIZE: usize = offset_of!(Self, encoder_only) + size_of::<u32>();
}

unsafe fn load_options(options: *const kronsae_sae_options) -> Result<LoadOptions> {
    // SAFETY: the caller's promise.
    let options = unsafe { structs::read_options(options) }?;
    match options.encoder_only {
        0 | 1 => Ok(LoadOptions { encoder_only: options.encoder_only == 1 }),
        other => Err(Error::invalid(format!("kronsae_sae_options: encoder_only is {other}, expected 0 or 1"))),
    }
}

fn opened(sae: Sae, from: &str) -> *mut kronsae_sae {
    let config = sae.config();
    let decoder = if sae.decoder().is_some() { "with" } else { "without" };
    let message = format!(
        "opened {from}: {} latents over d_model {}, {decoder} decoder",
        config.encoder.latents(),
        config.d_model
    );
    log(KRONSAE_LOG_INFO, &message);
    handle::create(SaeBody { model: Arc::new(Model::new(sae)) })
}

/// Opens a model file: reads all of it into memory and validates it.
///
/// path: on Unix the file's name in bytes, elsewhere UTF-8. options: NULL for defaults. out: receives the model, to be
/// freed with `kronsae_sae_destroy`; NULL on failure.
///
/// Errors: `KRONSAE_STATUS_IO` if it cannot be read; `KRONSAE_STATUS_FORMAT` if it is not a valid model file, with a
/// message that says what is wrong where; `KRONSAE_STATUS_OUT_OF_MEMORY`; `KRONSAE_STATUS_INVALID_ARGUMENT`.
///
/// Threads: any number at once.
///
/// Since 0.1.0.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kronsae_sae_open(
    path: *const c_char,
    options: *const kronsae_sae_options,
    out: *mut *mut kronsae_sae,
    error: *mut *mut kronsae_error,
) -> kronsae_status {
    let body = || {
        let out = output(out, "out")?;
        // SAFETY: checked; the header asks for pointers that are valid where they are not null (so everywhere below).
        unsafe {
            out.write(std::ptr::null_mut());
            let path = path_of(text(path, "path")?)?;
            let sae = Sae::open_with(path, load_options(options)?)?;
            out.write(opened(sae, &path.display().to_string()));
        }
        Ok(())
    };
    // SAFETY: as above.
    unsafe { boundary("kronsae_sae_open", error, body) }
}

/// Opens a model file held in memory. The bytes are copied, and may go when this returns.
///
/// data: size bytes, of any alignment. The rest as in `kronsae_sae_open`.
///
/// Errors: as `kronsae_sae_open`, without `KRONSAE_STATUS_IO`.
///
/// Threads: any number at once.
///
/// Since 0.1.0.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kronsae_sae_open_bytes(
    data: *const c_void,
    size: usize,
    options: *const kronsae_sae_options,
    out: *mut *mut kronsae_sae,
    error: *mut *mut kronsae_error,
) -> kronsae_status {
    let body = || {
        let out = output(out, "out")?;
        // SAFETY: as in kronsae_sae_open.
        unsafe {
            out.write(std::ptr::null_mut());
            let bytes = slice(data.cast::<u8>(), size, "data")?;
            let sae = Sae::from_bytes(bytes, load_options(options)?)?;
            out.write(opened(sae, "a model from memory"));
        }
        Ok(())
    };
    // SAFETY: as above.
    unsafe { boundary("kronsae_sae_open_bytes", error, body) }
}

/// Describes a model.
///
/// info: its struct_size says how much is filled; fields that this library does not know become 0.
///
/// Errors: `KRONSAE_STATUS_INVALID_ARGUMENT`.
///
/// Threads: any number at once.
///
/// Since 0.1.0.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kronsae_sae_get_info(
    sae: *const kronsae_sae,
    info: *mut kronsae_sae_info,
    error: *mut *mut kronsae_error,
) -> kronsae_status {
    let body = || {
        // SAFETY: as in kronsae_sae_open.
        let body = unsafe { handle::borrow(sae) }?;
        // SAFETY: as above.
        unsafe { structs::write(&describe(&body.model.sae), info) }
    };
    // SAFETY: as above.
    unsafe { boundary("kronsae_sae_get_info", error, body) }
}

fn describe(sae: &Sae) -> kronsae_sae_info {
    let config = sae.config();
    let (encoder_kind, heads, base, extension) = match config.encoder {
        Encoder::Kron { heads, base, extension } => (KRONSAE_ENCODER_KRON, heads, base, extension),
        Encoder::Dense { .. } => (KRONSAE_ENCODER_DENSE, 0, 0, 0),
    };
    let (selection_kind, k, theta, max_latents) = match config.selection {
        Selection::TopK(k) => (KRONSAE_SELECTION_TOPK, k, 0.0, 0),
        Selection::Threshold { theta, max_latents } => (KRONSAE_SELECTION_THRESHOLD, 0, theta, max_latents),
    };
    let calibration = sae.calibration();
    kronsae_sae_info {
        struct_size: size_of::<kronsae_sae_info>() as u32,
        encoder_kind,
        selection_kind,
        weights_dtype: sae.encoder().weight.dtype() as i32,
        has_decoder: u32::from(sae.decoder().is_some()),
        has_calibration: u32::from(calibration.is_some()),
        has_latent_thresholds: u32::from(sae.encoder().threshold.is_some()),
        calibration_levels: calibration.map_or(0, |c| u32::try_from(c.levels).unwrap_or(u32::MAX)),
        theta,
        output_scale: config.output_scale,
        d_model: config.d_model,
        latents: config.encoder.latents(),
        encoder_rows: config.encoder.rows(),
        heads,
        base,
        extension,
        k,
        max_latents,
        capacity: config.selection.capacity(),
    }
}

/// The model's config, a JSON object as UTF-8 text, unknown keys included.
///
/// out: receives the text, which belongs to the model and is valid until `kronsae_sae_destroy`.
///
/// Errors: `KRONSAE_STATUS_INVALID_ARGUMENT`.
///
/// Threads: any number at once.
///
/// Since 0.1.0.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kronsae_sae_config_json(
    sae: *const kronsae_sae,
    out: *mut *const c_char,
    error: *mut *mut kronsae_error,
) -> kronsae_status {
    let body = || {
        // SAFETY: as in kronsae_sae_open.
        unsafe {
            let out = output(out, "out")?;
            out.write(std::ptr::null());
            out.write(handle::borrow(sae)?.model.config_json.as_ptr());
        }
        Ok(())
    };
    // SAFETY: as above.
    unsafe { boundary("kronsae_sae_config_json", error, body) }
}

/// Where the activations that the model was trained on came from.
///
/// key: a key of the config's `source` object: "model", "hook", "layer". out: receives its value as UTF-8 text ("15" for
/// a number), which belongs to the model and is valid until `kronsae_sae_destroy`; NULL, with `KRONSAE_STATUS_OK`, if the
/// file does not say.
///
/// Errors: `KRONSAE_STATUS_INVALID_ARGUMENT`.
///
/// Threads: any number at once.
///
/// Since 0.1.0.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kronsae_sae_source(
    sae: *const kronsae_sae,
    key: *const c_char,
    out: *mut *const c_char,
    error: *mut *mut kronsae_error,
) -> kronsae_status {
    let body = || {
        // SAFETY: as in kronsae_sae_open.
        unsafe {
            let out = output(out, "out")?;
            out.write(std::ptr::null());
            let model = &handle::borrow(sae)?.model;
            let key = text(key, "key")?.to_bytes();
            let found = model.source.iter().find(|(name, _)| name.as_bytes() == key);
            out.write(found.map_or(std::ptr::null(), |(_, value)| value.as_ptr()));
        }
        Ok(())
    };
    // SAFETY: as above.
    unsafe { boundary("kronsae_sae_source", error, body) }
}

/// Destroys a model. NULL is allowed.
///
/// Legal while encoders made from it exist: a call in progress ends normally, later ones return
/// `KRONSAE_STATUS_STOPPED`. The weights are freed with the last of them.
///
/// Threads: one, when no other uses the handle itself any more.
///
/// Since 0.1.0.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kronsae_sae_destroy(sae: *mut kronsae_sae) {
    // SAFETY: as in kronsae_sae_open, and by the header nobody uses the handle any more.
    destructor("kronsae_sae_destroy", || unsafe { handle::destroy(sae) });
}
