//! Recordings: activations of a site into shards.

use super::callbacks::refuse_inside;
use super::lifecycle::{borrow, check_fork, kronsae_monitor};
use crate::capi::buffers::output;
use crate::capi::error::{boundary, destructor, kronsae_error};
use crate::capi::handle::{self, Handle};
use crate::capi::status::kronsae_status;
use crate::capi::strings::{path_of, text, utf8_or_none};
use crate::capi::structs::{self, Versioned};
use crate::capi::views::{self, kronsae_dtype};
use crate::error::{Error, Result, Status};
use crate::monitor::{Monitor, RecorderOptions, SiteId};
use std::ffi::c_char;
use std::mem::offset_of;
use std::sync::{Arc, Weak};
use std::time::Duration;

/// A recording of one site: what its taps take in is written into activation shards, from which a SAE for this very host
/// can be trained.
///
/// Threads: const, so any number of threads may use one at once, except for `kronsae_recorder_destroy`. In a child
/// process its calls return `KRONSAE_STATUS_FORKED`.
///
/// Lifetime: stopping the monitor closes the shards; destroying it is legal and closes them, too, and later calls return
/// `KRONSAE_STATUS_STOPPED`.
pub struct kronsae_recorder {
    _opaque: [u8; 0],
}

/// Bit of a recording's flags: the token ids of requests are written too. Off by default: they are what users said.
pub const KRONSAE_RECORD_TOKEN_IDS: u32 = 1;
/// Bit of a recording's flags: the tokens' text is written too, where `kronsae_monitor_set_token_text` gives it.
pub const KRONSAE_RECORD_TEXT: u32 = 2;
/// Bit of a recording's flags: tokens at position 0 are recorded, too. Off by default: they are attention sinks, of a
/// hundred times the norm, and no good for training.
pub const KRONSAE_RECORD_POSITION_0: u32 = 4;

/// What is recorded. Start from `KRONSAE_RECORDER_OPTIONS_INIT`; zero means default.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct kronsae_recorder_options {
    /// sizeof(kronsae_recorder_options).
    pub struct_size: u32,
    /// `KRONSAE_RECORD_*` bits.
    pub flags: u32,
    /// `KRONSAE_DTYPE_F32` or `KRONSAE_DTYPE_BF16`. 0: BF16.
    pub dtype: kronsae_dtype,
    /// Seconds after its first token when a shard is written at the latest, full or not. 0: 60.
    pub shard_seconds: u32,
    /// Tokens of a shard, so many of which are held in memory. 0: 4096.
    pub shard_tokens: u64,
    /// Recording ends before the folder's shards, those found there included, are larger. 0: 16 GiB; UINT64_MAX: no limit.
    pub most_bytes: u64,
    /// Recording ends after so many tokens. 0: no limit.
    pub most_tokens: u64,
    /// The folder to write to, made if it is missing; shards that are there stay. On Unix its name in bytes, elsewhere
    /// UTF-8. Files are readable by their owner only. There is no default.
    pub folder: *const c_char,
    /// Written into the shards: which LLM, UTF-8. NULL: not said.
    pub model: *const c_char,
    /// Written into the shards: which activations, UTF-8, "l_out" say. NULL: not said.
    pub hook: *const c_char,
}

// SAFETY: repr(C) without padding (four 4-byte fields, then 8-byte ones), struct_size first; numbers and pointers.
unsafe impl Versioned for kronsae_recorder_options {
    const NAME: &'static str = "kronsae_recorder_options";
    const FIRST_SIZE: usize = offset_of!(Self, hook) + size_of::<*const c_char>();
}

/// What a recording has done. Start from `KRONSAE_RECORDER_STATUS_INIT`; filled by `kronsae_recorder_get_status`.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct kronsae_recorder_status {
    /// sizeof(kronsae_recorder_status). Written by the caller.
    pub struct_size: u32,
    /// 1 while it records. 0 once the shards are closed: the monitor has come to its end, or a limit was reached (which
    /// shows within two seconds).
    pub recording: u32,
    /// Tokens in finished shards.
    pub written: u64,
    /// Tokens it had to leave out: the disk was full, say.
    pub failures: u64,
}

// SAFETY: repr(C) without padding (two 4-byte fields, then 8-byte ones), struct_size first; plain numbers.
unsafe impl Versioned for kronsae_recorder_status {
    const NAME: &'static str = "kronsae_recorder_status";
    const FIRST_SIZE: usize = offset_of!(Self, failures) + size_of::<u64>();
}

pub(in crate::capi) struct RecorderBody {
    /// Weak, so that a recorder does not keep a destroyed monitor's workers alive.
    monitor: Weak<Monitor>,
    site: SiteId,
    /// Tokens written and left out by the site's earlier recordings.
    before: (u64, u64),
}

impl Handle for kronsae_recorder {
    type Body = RecorderBody;
    const NAME: &'static str = "kronsae_recorder";
    const MAGIC: u64 = u64::from_le_bytes(*b"kronsREC");
}

impl RecorderBody {
    fn monitor(&self) -> Result<Arc<Monitor>> {
        let monitor = self
            .monitor
            .upgrade()
            .ok_or_else(|| Error::new(Status::Stopped, "the monitor was destroyed; its shards are closed"))?;
        check_fork(&monitor)?;
        Ok(monitor)
    }

    fn describe(&self) -> Result<kronsae_recorder_status> {
        let status = self.monitor()?.recording(self.site)?;
        Ok(kronsae_recorder_status {
            struct_size: size_of::<kronsae_recorder_status>() as u32,
            recording: u32::from(status.recording),
            written: status.written.saturating_sub(self.before.0),
            failures: status.failures.saturating_sub(self.before.1),
        })
    }
}

impl Drop for RecorderBody {
    fn drop(&mut self) {
        // A monitor that was stopped has closed the shards, one that was destroyed too. What the disk refused is counted.
        if let Ok(monitor) = self.monitor() {
            let _ = monitor.stop_recording(self.site);
        }
    }
}

/// # Safety
/// The struct's pointers are as the header asks, where they are not visibly otherwise.
unsafe fn recorder_options(options: &kronsae_recorder_options) -> Result<RecorderOptions> {
    if options.flags & !(KRONSAE_RECORD_TOKEN_IDS | KRONSAE_RECORD_TEXT | KRONSAE_RECORD_POSITION_0) != 0 {
        return Err(Error::invalid(format!(
            "kronsae_recorder_options: flags is {:#x}, expected KRONSAE_RECORD_* bits",
            options.flags
        )));
    }
    // SAFETY: the caller's promise, here and below.
    let folder = path_of(unsafe { text(options.folder, "folder") }?)?.to_owned();
    // SAFETY: as above.
    let (model, hook) = unsafe { (utf8_or_none(options.model, "model")?, utf8_or_none(options.hook, "hook")?) };
    let mut found = RecorderOptions::new(folder);
    if options.dtype != 0 {
        found.dtype = views::dtype(options.dtype)?;
    }
    if options.shard_tokens != 0 {
        found.most_tokens_per_shard = usize::try_from(options.shard_tokens).unwrap_or(usize::MAX);
    }
    if options.shard_seconds != 0 {
        found.most_age = Duration::from_secs(options.shard_seconds.into());
    }
    if options.most_bytes != 0 {
        found.most_bytes_total = (options.most_bytes != u64::MAX).then_some(options.most_bytes);
    }
    found.most_tokens_total = (options.most_tokens != 0).then_some(options.most_tokens);
    found.keep_position_0 = options.flags & KRONSAE_RECORD_POSITION_0 != 0;
    found.token_ids = options.flags & KRONSAE_RECORD_TOKEN_IDS != 0;
    found.text = options.flags & KRONSAE_RECORD_TEXT != 0;
    found.model = model.map(str::to_owned);
    found.hook = hook.map(str::to_owned);
    Ok(found)
}

/// Starts to record what the taps of a site take in, from the next batch on. One recording a site at a time.
///
/// options: must not be NULL; folder has no default. out: receives the recorder, to be freed with
/// `kronsae_recorder_destroy`; NULL on failure.
///
/// Errors: `KRONSAE_STATUS_IO` if the folder cannot be made or written to; `KRONSAE_STATUS_INVALID_ARGUMENT`, also if
/// there is no such site or it is recorded already; `KRONSAE_STATUS_UNSUPPORTED` if it has device taps, whose activations
/// never reach the host; `KRONSAE_STATUS_OUT_OF_MEMORY`; `KRONSAE_STATUS_STOPPED`; `KRONSAE_STATUS_FORKED`.
///
/// Threads: any number at once; not for serving threads.
///
/// Since 0.1.0.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kronsae_recorder_start(
    monitor: *const kronsae_monitor,
    site: u32,
    options: *const kronsae_recorder_options,
    out: *mut *mut kronsae_recorder,
    error: *mut *mut kronsae_error,
) -> kronsae_status {
    let body = || {
        refuse_inside("kronsae_recorder_start")?;
        let out = output(out, "out")?;
        // SAFETY: checked; the header asks for pointers that are valid where they are not null (so everywhere below).
        unsafe {
            out.write(std::ptr::null_mut());
            let monitor = &borrow(monitor)?.monitor;
            let mut options = recorder_options(&structs::read(options)?)?;
            let site = SiteId(site);
            options.layer = monitor.layer(site)?;
            let earlier = monitor.recording(site)?;
            let before = (earlier.written, earlier.failures);
            monitor.record(site, options)?;
            out.write(handle::create(RecorderBody { monitor: Arc::downgrade(monitor), site, before }));
        }
        Ok(())
    };
    // SAFETY: as above.
    unsafe { boundary("kronsae_recorder_start", error, body) }
}

/// Says how far a recording is.
///
/// status: its struct_size says how much is filled; fields that this library does not know become 0.
///
/// Errors: `KRONSAE_STATUS_STOPPED` if the monitor was destroyed; `KRONSAE_STATUS_INVALID_ARGUMENT`;
/// `KRONSAE_STATUS_FORKED`.
///
/// Threads: any number at once; not for serving threads.
///
/// Since 0.1.0.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kronsae_recorder_get_status(
    recorder: *const kronsae_recorder,
    status: *mut kronsae_recorder_status,
    error: *mut *mut kronsae_error,
) -> kronsae_status {
    let body = || {
        // SAFETY: as in kronsae_recorder_start.
        let body = unsafe { handle::borrow(recorder) }?;
        // SAFETY: as above.
        unsafe { structs::write(&body.describe()?, status) }
    };
    // SAFETY: as above.
    unsafe { boundary("kronsae_recorder_get_status", error, body) }
}

/// Ends a recording: writes the last shard, and forgets it. NULL is allowed. May come before or after
/// `kronsae_monitor_destroy`, which ends it too. From inside a callback of a monitor it does nothing but log.
///
/// Threads: one, when no other uses the recorder any more; not a serving thread.
///
/// Since 0.1.0.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kronsae_recorder_destroy(recorder: *mut kronsae_recorder) {
    destructor("kronsae_recorder_destroy", || {
        if recorder.is_null() {
            return Ok(());
        }
        refuse_inside("kronsae_recorder_destroy")?;
        // SAFETY: as in kronsae_recorder_start, and by the header nobody uses the recorder any more.
        unsafe { handle::destroy(recorder) }
    });
}
