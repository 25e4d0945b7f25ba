//! Monitors: make, describe, drain, stop, destroy.

use super::callbacks::{Callbacks, refuse_inside};
use super::output::Page;
use crate::capi::buffers::{output, slice};
use crate::capi::error::{boundary, destructor, kronsae_error};
use crate::capi::handle::{self, Handle};
use crate::capi::log::{KRONSAE_LOG_WARN, log};
use crate::capi::status::kronsae_status;
use crate::capi::structs::{self, Versioned};
use crate::error::{Error, Result, Status};
use crate::monitor::{Counters, Monitor, MonitorOptions, Scheduling, State};
use std::mem::offset_of;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// Watches which latents fire while a host serves: sites (a place in the model, and a SAE), taps that are fed there, and
/// workers that encode what the taps take in.
///
/// Threads: const, so any number of threads may use one at once, except for `kronsae_monitor_destroy`. Its workers block
/// all signals but faults and real-time signals, by which managed runtimes stop threads that run their callbacks, and are
/// named `kronsae-*`. In a child process its calls return `KRONSAE_STATUS_FORKED`.
///
/// Serving threads call `kronsae_tap_submit`, `kronsae_tap_end_request` and `kronsae_tap_rewind` and nothing else of a
/// monitor: those never wait. Every other call may lock, allocate, read a file or wait for a worker, and belongs on a
/// thread that may.
///
/// Lifetime: taps, recorders and batches of events keep what they need of it alive. Destroying it under them is legal;
/// taps and recorders return `KRONSAE_STATUS_STOPPED` then.
pub struct kronsae_monitor {
    _opaque: [u8; 0],
}

pub(in crate::capi) struct MonitorBody {
    /// Recorders hold it weakly: the handle alone keeps the monitor alive.
    pub(super) monitor: Arc<Monitor>,
    pub(super) callbacks: Arc<Callbacks>,
    pub(super) page: Mutex<Page>,
}

impl Handle for kronsae_monitor {
    type Body = MonitorBody;
    const NAME: &'static str = "kronsae_monitor";
    const MAGIC: u64 = u64::from_le_bytes(*b"kronsMON");
}

/// Bit of a monitor's flags: workers run under SCHED_IDLE, so that they have only CPU time that nobody else wants.
pub const KRONSAE_MONITOR_SCHED_IDLE: u32 = 1;

/// How a monitor works. Start from `KRONSAE_MONITOR_OPTIONS_INIT`; zero means default.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct kronsae_monitor_options {
    /// sizeof(kronsae_monitor_options).
    pub struct_size: u32,
    /// `KRONSAE_MONITOR_*` bits.
    pub flags: u32,
    /// Workers, among which sites are dealt out. 0: 1.
    pub workers: u32,
    /// Threads of each worker's encoder, the worker itself included. 0: 1.
    pub encoder_threads: u32,
    /// Requests of a site with state at a time; the oldest is given up for a new one, and counted. 0: 4096.
    pub requests: u32,
    /// Events that wait for `kronsae_monitor_poll_events`; of more, the oldest are lost, and counted. 0: 4096.
    pub events: u32,
    /// Tokens of a site that the live page can look back on. 0: 512.
    pub recent_tokens: u32,
    /// The most watched latents of a site, each of which adds series to the metrics. 0: 64.
    pub watched: u32,
    /// The workers' nice value, -20 to 19; below the host's it needs privileges. 0: the host's.
    pub nice: i32,
    /// The share of one CPU's time that a worker may use, above 0 to 1. 0: 1, all of it.
    pub cpu_share: f32,
    /// Tokens a second that each worker encodes whatever cpu_share says, so that a busy host still sees some. 0: none.
    pub least_tokens_per_second: f32,
    /// 0.
    pub reserved: u32,
    /// Tokens after which an observation counts half in rates and drift. 0: 10,000.
    pub half_life_tokens: f64,
    /// CPUs that workers may run on, n_cpus numbers. NULL, with n_cpus 0: those of the thread that makes the monitor.
    pub cpus: *const u32,
    /// Numbers in cpus.
    pub n_cpus: usize,
    /// Bytes of the host's memory that queues and state may take, pinned memory of device taps included; what would need more
    /// is refused. 0: no limit.
    pub memory_limit: usize,
}

// SAFETY: repr(C) without padding (twelve 4-byte fields, then 8-byte ones), struct_size first; numbers and a pointer.
unsafe impl Versioned for kronsae_monitor_options {
    const NAME: &'static str = "kronsae_monitor_options";
    const FIRST_SIZE: usize = offset_of!(Self, memory_limit) + size_of::<usize>();
}

/// What a monitor is doing: one of `KRONSAE_MONITOR_STATE_*`. Later versions may add states.
pub type kronsae_monitor_state = i32;
/// Workers encode what taps take in.
pub const KRONSAE_MONITOR_STATE_RUNNING: kronsae_monitor_state = 1;
/// It was stopped; taps return `KRONSAE_STATUS_STOPPED`.
pub const KRONSAE_MONITOR_STATE_STOPPED: kronsae_monitor_state = 2;
/// A bug was caught in a worker. What taps take in is counted as dropped; the snapshot says why.
pub const KRONSAE_MONITOR_STATE_FAILED: kronsae_monitor_state = 3;

const _: () = assert!(KRONSAE_MONITOR_STATE_RUNNING == State::Running as i32);
const _: () = assert!(KRONSAE_MONITOR_STATE_STOPPED == State::Stopped as i32);
const _: () = assert!(KRONSAE_MONITOR_STATE_FAILED == State::Failed as i32);

/// Where the tokens of all taps went. Start from `KRONSAE_MONITOR_STATUS_INIT`; filled by
/// `kronsae_monitor_get_status`.
///
/// Always, and exactly: submitted = encoded + sampled_out + dropped + not_finite + queued.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct kronsae_monitor_status {
    /// sizeof(kronsae_monitor_status). Written by the caller.
    pub struct_size: u32,
    /// `KRONSAE_MONITOR_STATE_*`.
    pub state: kronsae_monitor_state,
    /// Tokens handed to submit.
    pub submitted: u64,
    /// Tokens encoded.
    pub encoded: u64,
    /// Tokens that a tap's sampling left out.
    pub sampled_out: u64,
    /// Tokens for which a queue had no room, and those left when the monitor ended without draining.
    pub dropped: u64,
    /// Tokens whose activations, or products of them, were not finite.
    pub not_finite: u64,
    /// Tokens in queues now.
    pub queued: u64,
    /// Events made.
    pub events: u64,
    /// Events that were lost because polling was too slow.
    pub events_lost: u64,
    /// Bytes of queues and state.
    pub memory: u64,
    /// CPU time of the workers, in seconds.
    pub cpu_seconds: f64,
    /// Seconds since the monitor was made.
    pub uptime: f64,
}

// SAFETY: repr(C) without padding (two 4-byte fields, then 8-byte ones), struct_size first; plain numbers.
unsafe impl Versioned for kronsae_monitor_status {
    const NAME: &'static str = "kronsae_monitor_status";
    const FIRST_SIZE: usize = offset_of!(Self, uptime) + size_of::<f64>();
}

/// The caller's number, or the default where it is 0.
fn or_default(number: u32, default: usize) -> usize {
    if number == 0 { default } else { number as usize }
}

/// # Safety
/// `options.cpus` is null, misaligned, or `n_cpus` readable numbers.
unsafe fn monitor_options(options: &kronsae_monitor_options) -> Result<MonitorOptions> {
    let default = MonitorOptions::default();
    if options.flags & !KRONSAE_MONITOR_SCHED_IDLE != 0 {
        return Err(Error::invalid(format!(
            "kronsae_monitor_options: flags is {:#x}, expected KRONSAE_MONITOR_SCHED_IDLE (1) or 0",
            options.flags
        )));
    }
    if options.reserved != 0 {
        return Err(Error::invalid(format!("kronsae_monitor_options: reserved is {}, expected 0", options.reserved)));
    }
    // SAFETY: the caller's promise.
    let cpus = unsafe { slice(options.cpus, options.n_cpus, "cpus") }?;
    Ok(MonitorOptions {
        workers: or_default(options.workers, default.workers),
        encoder_threads: or_default(options.encoder_threads, default.encoder_threads),
        requests: or_default(options.requests, default.requests),
        events: or_default(options.events, default.events),
        recent_tokens: or_default(options.recent_tokens, default.recent_tokens),
        watched: or_default(options.watched, default.watched),
        memory_limit: (options.memory_limit != 0).then_some(options.memory_limit),
        half_life_tokens: if options.half_life_tokens == 0.0 {
            default.half_life_tokens
        } else {
            options.half_life_tokens
        },
        scheduling: Scheduling {
            nice: (options.nice != 0).then_some(options.nice),
            idle: options.flags & KRONSAE_MONITOR_SCHED_IDLE != 0,
            cpus: cpus.iter().map(|cpu| *cpu as usize).collect(),
            cpu_share: if options.cpu_share == 0.0 { 1.0 } else { options.cpu_share },
            least_tokens_per_second: options.least_tokens_per_second,
        },
        ..default
    })
}

/// Makes a monitor without sites, and starts its workers, which sleep until a tap is fed.
///
/// options: NULL for defaults. out: receives the monitor, to be freed with `kronsae_monitor_destroy`; NULL on failure.
///
/// Errors: `KRONSAE_STATUS_INVALID_ARGUMENT`, also for a CPU, share or nice value that is none;
/// `KRONSAE_STATUS_OUT_OF_MEMORY`, also if memory_limit is too low or the system gives no thread;
/// `KRONSAE_STATUS_UNSUPPORTED` if the system refuses the scheduling asked for.
///
/// Threads: any number at once.
///
/// Since 0.1.0.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kronsae_monitor_create(
    options: *const kronsae_monitor_options,
    out: *mut *mut kronsae_monitor,
    error: *mut *mut kronsae_error,
) -> kronsae_status {
    let body = || {
        let out = output(out, "out")?;
        // SAFETY: checked; the header asks for pointers that are valid where they are not null (so everywhere below).
        unsafe {
            out.write(std::ptr::null_mut());
            let options = monitor_options(&structs::read_options(options)?)?;
            let monitor = Arc::new(Monitor::new(options)?);
            monitor.set_notice(Some(Box::new(|text| log(KRONSAE_LOG_WARN, text))))?;
            let (callbacks, page) = (Arc::default(), Mutex::default());
            out.write(handle::create(MonitorBody { monitor, callbacks, page }));
        }
        Ok(())
    };
    // SAFETY: as above.
    unsafe { boundary("kronsae_monitor_create", error, body) }
}

/// Says what a monitor is doing and where its tokens went.
///
/// status: its struct_size says how much is filled; fields that this library does not know become 0.
///
/// Errors: `KRONSAE_STATUS_INVALID_ARGUMENT`; `KRONSAE_STATUS_FORKED`.
///
/// Threads: any number at once; not for serving threads.
///
/// Since 0.1.0.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kronsae_monitor_get_status(
    monitor: *const kronsae_monitor,
    status: *mut kronsae_monitor_status,
    error: *mut *mut kronsae_error,
) -> kronsae_status {
    let body = || {
        // SAFETY: as in kronsae_monitor_create.
        let body = unsafe { borrow(monitor) }?;
        // SAFETY: as above.
        unsafe { structs::write(&describe(&body.monitor), status) }
    };
    // SAFETY: as above.
    unsafe { boundary("kronsae_monitor_get_status", error, body) }
}

/// Waits until all that was submitted before is encoded and its events are made and delivered: tokens, ends of requests
/// and rewinds.
///
/// Errors: `KRONSAE_STATUS_TIMEOUT` if it takes longer than timeout_ms, and it may be waited for again;
/// `KRONSAE_STATUS_STOPPED` if the monitor is stopped before that; `KRONSAE_STATUS_POISONED` if a worker failed;
/// `KRONSAE_STATUS_FORKED`; `KRONSAE_STATUS_INVALID_ARGUMENT`, also if called from inside a callback of a monitor, whose
/// worker it would wait for.
///
/// Threads: any number at once; not for serving threads.
///
/// Since 0.1.0.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kronsae_monitor_flush(
    monitor: *const kronsae_monitor,
    timeout_ms: u32,
    error: *mut *mut kronsae_error,
) -> kronsae_status {
    let body = || {
        refuse_inside("kronsae_monitor_flush")?;
        // SAFETY: as in kronsae_monitor_create.
        unsafe { borrow(monitor) }?.monitor.flush(Duration::from_millis(timeout_ms.into()))
    };
    // SAFETY: as above.
    unsafe { boundary("kronsae_monitor_flush", error, body) }
}

/// Ends a monitor's work: taps refuse from now on, what they took in is encoded, recordings are closed, workers end.
/// Counters, events and metrics can still be asked for. Stopping again is no error.
///
/// Errors: `KRONSAE_STATUS_TIMEOUT` if that takes longer than timeout_ms: taps refuse all the same, workers go on, and
/// it may be called again. `KRONSAE_STATUS_FORKED`; `KRONSAE_STATUS_INVALID_ARGUMENT`, also if called from inside a
/// callback of a monitor.
///
/// Threads: any number at once; not for serving threads.
///
/// Since 0.1.0.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kronsae_monitor_stop(
    monitor: *const kronsae_monitor,
    timeout_ms: u32,
    error: *mut *mut kronsae_error,
) -> kronsae_status {
    let body = || {
        refuse_inside("kronsae_monitor_stop")?;
        // SAFETY: as in kronsae_monitor_create.
        unsafe { borrow(monitor) }?.monitor.stop(Duration::from_millis(timeout_ms.into()))
    };
    // SAFETY: as above.
    unsafe { boundary("kronsae_monitor_stop", error, body) }
}

/// Destroys a monitor. If it was not stopped, its workers end at the next batch boundary; what is queued is lost. NULL is
/// allowed.
///
/// Legal while taps and recorders of it exist, and while other threads are in calls on those: later ones return
/// `KRONSAE_STATUS_STOPPED`. Waits for a callback in progress; when it returns, none is called any more. From inside a
/// callback it does nothing but log.
///
/// Threads: one, when no other uses the handle itself any more; not a serving thread.
///
/// Since 0.1.0.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kronsae_monitor_destroy(monitor: *mut kronsae_monitor) {
    destructor("kronsae_monitor_destroy", || {
        if monitor.is_null() {
            return Ok(());
        }
        refuse_inside("kronsae_monitor_destroy")?;
        // SAFETY: as in kronsae_monitor_create, and by the header nobody uses the handle any more.
        unsafe { handle::destroy(monitor) }
    });
}

/// What is behind a monitor's handle.
///
/// # Errors
/// As [`handle::borrow`], and [`crate::Status::Forked`] in a child of the process that made it.
///
/// # Safety
/// As [`handle::borrow`].
pub(super) unsafe fn borrow<'a>(monitor: *const kronsae_monitor) -> Result<&'a MonitorBody> {
    // SAFETY: the caller's promise.
    let body = unsafe { handle::borrow(monitor) }?;
    check_fork(&body.monitor)?;
    Ok(body)
}

/// # Errors
/// [`Status::Forked`] in a child of the process that made the monitor.
pub(super) fn check_fork(monitor: &Monitor) -> Result<()> {
    if monitor.is_forked() {
        return Err(Error::new(
            Status::Forked,
            "this monitor was made before fork(), its workers do not exist here; make a new one in the child process",
        ));
    }
    Ok(())
}

impl Drop for MonitorBody {
    fn drop(&mut self) {
        if self.monitor.is_forked() {
            // Locks may be held by threads that do not exist here. The parts know that of themselves.
            return;
        }
        // The page asks the monitor, so it ends first. It and the workers may be in a callback, which is waited for.
        self.page.get_mut().unwrap_or_else(PoisonError::into_inner).stop();
        self.callbacks.clear();
    }
}

fn describe(monitor: &Monitor) -> kronsae_monitor_status {
    let status = monitor.status();
    let Counters { submitted, encoded, sampled_out, dropped, not_finite, queued } = status.counters;
    kronsae_monitor_status {
        struct_size: size_of::<kronsae_monitor_status>() as u32,
        state: status.state as kronsae_monitor_state,
        submitted,
        encoded,
        sampled_out,
        dropped,
        not_finite,
        queued,
        events: status.events,
        events_lost: status.events_lost,
        memory: status.memory,
        cpu_seconds: status.cpu_seconds,
        uptime: status.uptime,
    }
}
