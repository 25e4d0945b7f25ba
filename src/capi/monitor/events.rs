//! Events as C sees them.

use super::lifecycle::{borrow, kronsae_monitor};
use crate::capi::buffers::output;
use crate::capi::error::{boundary, c_text, destructor, kronsae_error};
use crate::capi::handle::{self, Handle};
use crate::capi::status::kronsae_status;
use crate::capi::structs::{self, Versioned};
use crate::error::{Error, Status};
use crate::monitor::{Event, EventKind, EventLatent, Severity, State};
use std::ffi::{CString, c_char};
use std::mem::offset_of;
use std::time::Duration;

/// What an event says: one of `KRONSAE_EVENT_*`. Later versions may add kinds.
pub type kronsae_event_kind = i32;
/// A rule matched.
pub const KRONSAE_EVENT_MATCHED: kronsae_event_kind = 1;
/// Tokens that an earlier match rests on were taken back by a rewind.
pub const KRONSAE_EVENT_RETRACTED: kronsae_event_kind = 2;

/// How much a match matters, as the rule's author says: one of `KRONSAE_SEVERITY_*`.
pub type kronsae_severity = i32;
/// Worth knowing.
pub const KRONSAE_SEVERITY_INFO: kronsae_severity = 1;
/// Worth looking at.
pub const KRONSAE_SEVERITY_WARNING: kronsae_severity = 2;
/// Worth being woken for.
pub const KRONSAE_SEVERITY_CRITICAL: kronsae_severity = 3;

const _: () = assert!(KRONSAE_EVENT_MATCHED == EventKind::Matched as i32);
const _: () = assert!(KRONSAE_EVENT_RETRACTED == EventKind::Retracted as i32);
const _: () = assert!(KRONSAE_SEVERITY_INFO == Severity::Info as i32);
const _: () = assert!(KRONSAE_SEVERITY_WARNING == Severity::Warning as i32);
const _: () = assert!(KRONSAE_SEVERITY_CRITICAL == Severity::Critical as i32);

/// A latent of the token that completed a match. This struct never grows.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct kronsae_event_latent {
    /// Its index, below F.
    pub latent: u32,
    /// Its value on the token, in units of normalised activations; 0 if it is not active.
    pub value: f32,
}

/// A match of a rule, or its retraction. Start from `KRONSAE_EVENT_INIT`; filled by `kronsae_event_batch_get`.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct kronsae_event {
    /// sizeof(kronsae_event). Written by the caller; in a callback by the library, which may know more fields.
    pub struct_size: u32,
    /// `KRONSAE_EVENT_*`.
    pub kind: kronsae_event_kind,
    /// `KRONSAE_SEVERITY_*`.
    pub severity: kronsae_severity,
    /// 1 if tokens of the rule's window were missing (dropped, or not finite): the rule saw less than the model did.
    pub gap: u32,
    /// Position of the token that completed the match.
    pub position: i32,
    /// That token's id, or -1.
    pub token: i32,
    /// Ascending in a monitor, from 1, without gaps: a consumer that misses a number has lost an event.
    pub id: u64,
    /// When it was found: nanoseconds since 1970, UTC.
    pub unix_nanos: u64,
    /// The request.
    pub request: u64,
    /// Of a retraction: the id of the event taken back. Otherwise 0.
    pub retracts: u64,
    /// The site's name, UTF-8. This and the texts and latents below belong to the batch, or to the callback's caller.
    pub site: *const c_char,
    /// The model that was in force: the first 16 hexadecimal digits of its file's SHA-256.
    pub model: *const c_char,
    /// The rule's name, UTF-8.
    pub rule: *const c_char,
    /// The rule's latents on that token, in the rule's order.
    pub latents: *const kronsae_event_latent,
    /// Entries in latents.
    pub n_latents: usize,
}

// SAFETY: repr(C) without padding (six 4-byte fields, then 8-byte ones), struct_size first; numbers and raw pointers.
unsafe impl Versioned for kronsae_event {
    const NAME: &'static str = "kronsae_event";
    const FIRST_SIZE: usize = offset_of!(Self, n_latents) + size_of::<usize>();
}

const _: () = assert!(size_of::<kronsae_event_latent>() == 8);

/// Events that were polled together. Owned by whoever polled it; free it with `kronsae_event_batch_destroy`. It does not
/// need its monitor any more.
///
/// Threads: immutable. Any number of threads may read one at once; one destroys it, when the others are done.
pub struct kronsae_event_batch {
    _opaque: [u8; 0],
}

impl Handle for kronsae_event_batch {
    type Body = Vec<EventRecord>;
    const NAME: &'static str = "kronsae_event_batch";
    const MAGIC: u64 = u64::from_le_bytes(*b"kronsEVT");
}

/// An event with the memory that its C view points to.
pub(in crate::capi) struct EventRecord {
    /// Numbers set, pointers null.
    fields: kronsae_event,
    site: CString,
    model: CString,
    rule: CString,
    latents: Box<[kronsae_event_latent]>,
}

impl EventRecord {
    pub(super) fn new(event: &Event) -> Self {
        let latents = event.latents.iter().map(|&EventLatent { latent, value }| kronsae_event_latent { latent, value });
        let fields = kronsae_event {
            struct_size: size_of::<kronsae_event>() as u32,
            kind: event.kind as kronsae_event_kind,
            severity: event.severity as kronsae_severity,
            gap: u32::from(event.gap),
            position: event.position,
            token: event.token,
            id: event.id,
            unix_nanos: event.unix_nanos,
            request: event.request,
            retracts: event.retracts,
            site: std::ptr::null(),
            model: std::ptr::null(),
            rule: std::ptr::null(),
            latents: std::ptr::null(),
            n_latents: event.latents.len(),
        };
        EventRecord {
            fields,
            site: c_text(&event.site),
            model: c_text(&event.model.to_string()),
            rule: c_text(&event.rule),
            latents: latents.collect(),
        }
    }

    /// The event in C, whose pointers are valid as long as the record.
    pub(super) fn view(&self) -> kronsae_event {
        kronsae_event {
            site: self.site.as_ptr(),
            model: self.model.as_ptr(),
            rule: self.rule.as_ptr(),
            latents: self.latents.as_ptr(),
            ..self.fields
        }
    }
}

/// Takes the oldest events, at most `most`, out of a monitor's queue. Waits up to timeout_ms for the first; 0 does not
/// wait.
///
/// out: receives the batch, which may be empty, to be freed with `kronsae_event_batch_destroy`; NULL on failure.
///
/// Errors: `KRONSAE_STATUS_STOPPED` if the monitor was stopped, or a worker failed, and no event is left, so that a loop
/// can end; `KRONSAE_STATUS_FORKED`;
/// `KRONSAE_STATUS_INVALID_ARGUMENT`, also if most is 0.
///
/// Threads: any number at once, each event going to one of them; not for serving threads.
///
/// Since 0.1.0.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kronsae_monitor_poll_events(
    monitor: *const kronsae_monitor,
    most: usize,
    timeout_ms: u32,
    out: *mut *mut kronsae_event_batch,
    error: *mut *mut kronsae_error,
) -> kronsae_status {
    let body = || {
        let out = output(out, "out")?;
        // SAFETY: checked; the header asks for pointers that are valid where they are not null (so everywhere below).
        unsafe { out.write(std::ptr::null_mut()) };
        // SAFETY: as above.
        let body = unsafe { borrow(monitor) }?;
        if most == 0 {
            return Err(Error::invalid("most is 0, expected the most events to take"));
        }
        let events = body.monitor.poll_events(most, Duration::from_millis(timeout_ms.into()))?;
        if events.is_empty() && body.monitor.snapshot().state != State::Running {
            return Err(Error::new(Status::Stopped, "the monitor has ended and no event is left"));
        }
        let batch = handle::create(events.iter().map(EventRecord::new).collect());
        // SAFETY: as above.
        unsafe { out.write(batch) };
        Ok(())
    };
    // SAFETY: as above.
    unsafe { boundary("kronsae_monitor_poll_events", error, body) }
}

/// How many events a batch has. 0 for NULL.
///
/// Threads: any number at once.
///
/// Since 0.1.0.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kronsae_event_batch_count(batch: *const kronsae_event_batch) -> usize {
    if batch.is_null() {
        return 0;
    }
    // SAFETY: the caller vouches for a pointer that is neither null nor visibly wrong.
    unsafe { handle::borrow(batch) }.map_or(0, Vec::len)
}

/// Gives one event of a batch, the oldest first.
///
/// index: below the batch's count. event: its struct_size says how much is filled. What it points to belongs to the batch
/// and is valid until that is destroyed.
///
/// Errors: `KRONSAE_STATUS_INVALID_ARGUMENT`.
///
/// Threads: any number at once.
///
/// Since 0.1.0.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kronsae_event_batch_get(
    batch: *const kronsae_event_batch,
    index: usize,
    event: *mut kronsae_event,
    error: *mut *mut kronsae_error,
) -> kronsae_status {
    let body = || {
        // SAFETY: as in kronsae_monitor_poll_events.
        let events = unsafe { handle::borrow(batch) }?;
        let record = events
            .get(index)
            .ok_or_else(|| Error::invalid(format!("index is {index}, the batch has {} events", events.len())))?;
        // SAFETY: as above.
        unsafe { structs::write(&record.view(), event) }
    };
    // SAFETY: as above.
    unsafe { boundary("kronsae_event_batch_get", error, body) }
}

/// Frees a batch of events and all that its events point to. NULL is allowed.
///
/// Threads: one, when no other uses the batch any more.
///
/// Since 0.1.0.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kronsae_event_batch_destroy(batch: *mut kronsae_event_batch) {
    // SAFETY: as in kronsae_monitor_poll_events, and by the header nobody uses the batch any more.
    destructor("kronsae_event_batch_destroy", || unsafe { handle::destroy(batch) });
}
