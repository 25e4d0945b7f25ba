//! Callbacks into the host: for events, and for the text of tokens.

use super::events::{EventRecord, kronsae_event};
use super::lifecycle::{borrow, kronsae_monitor};
use crate::capi::error::{boundary, kronsae_error};
use crate::capi::status::kronsae_status;
use crate::error::{Error, Result};
use crate::monitor::{Event, EventCallback, TokenText};
use std::cell::Cell;
use std::ffi::{c_char, c_void};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

/// Receives an event. `event` and all it points to are valid during the call only; `user_data` is what was given to
/// `kronsae_monitor_set_event_callback`.
///
/// It runs on a worker of the monitor, whose tokens wait meanwhile; of several workers, several may be in it at once. It
/// must return: no exception, longjmp or thread exit may leave it (the process is aborted if one does). It may submit to
/// taps of its own and ask for status, metrics and snapshots; calls that would wait for a worker are refused.
pub type kronsae_event_callback = Option<unsafe extern "C" fn(user_data: *mut c_void, event: *const kronsae_event)>;

/// Gives the text of a token: writes its bytes, at most `capacity`, to `buffer`, and returns how many it has, 0 if the
/// token has no text. If that is more than `capacity` it is called a second time with enough room, up to
/// `KRONSAE_TOKEN_TEXT_MOST`. The bytes need not be UTF-8 by themselves. `user_data` is what was given to
/// `kronsae_monitor_set_token_text`.
///
/// It runs on the thread of the live page, and on workers that record text, under the rules of
/// `kronsae_event_callback`; several threads may be in it at once. Never on a serving thread.
pub type kronsae_token_text_callback =
    Option<unsafe extern "C" fn(user_data: *mut c_void, token: i32, buffer: *mut c_char, capacity: usize) -> usize>;

/// The most bytes of text that a token can have; longer text is cut.
pub const KRONSAE_TOKEN_TEXT_MOST: usize = 4096;

type EventFunction = unsafe extern "C" fn(*mut c_void, *const kronsae_event);
type TextFunction = unsafe extern "C" fn(*mut c_void, i32, *mut c_char, usize) -> usize;

/// A function of the host's and its argument.
struct Sink<F> {
    function: F,
    user_data: *mut c_void,
}

// SAFETY: the pointer is only handed back to the function, which by the header may be called on any thread.
unsafe impl<F: Send> Send for Sink<F> {}
// SAFETY: as above, from several threads at once.
unsafe impl<F: Sync> Sync for Sink<F> {}

/// Read-locked while its function runs, so that replacing it waits until the old one has returned.
struct Slot<F>(RwLock<Option<Sink<F>>>);

impl<F> Default for Slot<F> {
    fn default() -> Self {
        Slot(RwLock::new(None))
    }
}

impl<F: Copy> Slot<F> {
    fn set(&self, function: Option<F>, user_data: *mut c_void) {
        let sink = function.map(|function| Sink { function, user_data });
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = sink;
    }

    /// Runs `call` with the function and its argument, if there is one.
    fn with(&self, call: impl FnOnce(F, *mut c_void)) {
        let sink = self.0.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(sink) = &*sink {
            let was = INSIDE.replace(true);
            call(sink.function, sink.user_data);
            INSIDE.set(was);
        }
    }
}

/// The callbacks of one monitor. Its workers hold them too, but none is called after the handle was destroyed.
#[derive(Default)]
pub(super) struct Callbacks {
    event: Slot<EventFunction>,
    text: Slot<TextFunction>,
    /// Held while one is set: the slot and the monitor must agree.
    setting: Mutex<()>,
}

impl Callbacks {
    /// Forgets both, once those in progress have returned.
    pub(super) fn clear(&self) {
        self.event.set(None, std::ptr::null_mut());
        self.text.set(None, std::ptr::null_mut());
    }

    fn event(&self, event: &Event) {
        self.event.with(|function, user_data| {
            let record = EventRecord::new(event);
            let view = record.view();
            // SAFETY: set by kronsae_monitor_set_event_callback, whose caller vouched for it until it is replaced, which
            // waits for the lock held here. It must not unwind; if it does, the process aborts at this very call.
            unsafe { function(user_data, &raw const view) };
        });
    }

    fn text(&self, token: i32, bytes: &mut Vec<u8>) {
        self.text.with(|function, user_data| {
            let start = bytes.len();
            let mut room = 64;
            loop {
                bytes.resize(start + room, 0);
                // SAFETY: as above; the buffer has `room` bytes.
                let needed = unsafe { function(user_data, token, bytes[start..].as_mut_ptr().cast(), room) };
                let most = needed.min(KRONSAE_TOKEN_TEXT_MOST);
                if most <= room {
                    bytes.truncate(start + most);
                    return;
                }
                if room > 64 {
                    // It asked for more than it had asked for before; what is there is what there is.
                    return;
                }
                room = most;
            }
        });
    }
}

thread_local! {
    /// Whether this thread is inside a callback of a monitor.
    static INSIDE: Cell<bool> = const { Cell::new(false) };
}

/// Refuses a call that would wait for the worker it is called on.
pub(super) fn refuse_inside(function: &str) -> Result<()> {
    if INSIDE.get() {
        return Err(Error::invalid(format!(
            "{function} was called from inside a callback of a monitor, which it would have to wait for"
        )));
    }
    Ok(())
}

/// Sets the one event callback of a monitor, or removes it (NULL, the initial state). While there is one it receives the
/// events as they are made, and polling receives none.
///
/// When this returns, the previous callback has returned on every worker and will not be called again, so that what its
/// `user_data` points to may be freed. It waits for that as long as it takes.
///
/// Errors: `KRONSAE_STATUS_INVALID_ARGUMENT`, also if called from inside a callback of a monitor; `KRONSAE_STATUS_FORKED`.
///
/// Threads: any number at once; not for serving threads.
///
/// Since 0.1.0.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kronsae_monitor_set_event_callback(
    monitor: *const kronsae_monitor,
    callback: kronsae_event_callback,
    user_data: *mut c_void,
    error: *mut *mut kronsae_error,
) -> kronsae_status {
    let body = || {
        refuse_inside("kronsae_monitor_set_event_callback")?;
        // SAFETY: the header asks for pointers that are valid where they are not null (so everywhere below).
        let body = unsafe { borrow(monitor) }?;
        let _setting = body.callbacks.setting.lock().unwrap_or_else(PoisonError::into_inner);
        body.callbacks.event.set(callback, user_data);
        let callbacks = Arc::clone(&body.callbacks);
        body.monitor
            .set_event_callback(callback.map(|_| -> EventCallback { Box::new(move |event| callbacks.event(event)) }))
    };
    // SAFETY: as above.
    unsafe { boundary("kronsae_monitor_set_event_callback", error, body) }
}

/// Sets how the text of tokens is found, or removes it (NULL, the initial state: no text appears anywhere, token ids do).
///
/// With it, the live page shows the text of recent tokens to whoever may see the page, and a recording that asks for
/// text has it. The rest as in `kronsae_monitor_set_event_callback`.
///
/// Errors: as `kronsae_monitor_set_event_callback`.
///
/// Threads: any number at once; not for serving threads.
///
/// Since 0.1.0.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kronsae_monitor_set_token_text(
    monitor: *const kronsae_monitor,
    callback: kronsae_token_text_callback,
    user_data: *mut c_void,
    error: *mut *mut kronsae_error,
) -> kronsae_status {
    let body = || {
        refuse_inside("kronsae_monitor_set_token_text")?;
        // SAFETY: as in kronsae_monitor_set_event_callback.
        let body = unsafe { borrow(monitor) }?;
        let _setting = body.callbacks.setting.lock().unwrap_or_else(PoisonError::into_inner);
        body.callbacks.text.set(callback, user_data);
        let callbacks = Arc::clone(&body.callbacks);
        body.monitor.set_token_text(
            callback.map(|_| -> TokenText { Box::new(move |token, bytes| callbacks.text(token, bytes)) }),
        )
    };
    // SAFETY: as above.
    unsafe { boundary("kronsae_monitor_set_token_text", error, body) }
}
