//! What a monitor says: metrics, its snapshot, the live page.

use super::callbacks::refuse_inside;
use super::lifecycle::{borrow, kronsae_monitor};
use crate::capi::buffers::slice;
use crate::capi::error::{boundary, kronsae_error};
use crate::capi::status::kronsae_status;
use crate::capi::strings::{TextOut, utf8, utf8_or_none};
use crate::capi::structs::{self, Versioned};
use crate::error::{Error, Result, Status};
use crate::monitor::metrics::{self, MetricsForm};
use crate::monitor::serve::{ServeOptions, Server, Source};
use crate::monitor::{Event, Monitor, RecentToken, SiteId, Snapshot};
use std::ffi::c_char;
use std::mem::offset_of;
use std::sync::{Arc, PoisonError};

/// A text form of metrics: one of `KRONSAE_METRICS_*`.
pub type kronsae_metrics_form = i32;
/// Prometheus text format 0.0.4. Its content type is `text/plain; version=0.0.4; charset=utf-8`.
pub const KRONSAE_METRICS_PROMETHEUS: kronsae_metrics_form = 1;
/// OpenMetrics 1.0. Its content type is `application/openmetrics-text; version=1.0.0; charset=utf-8`.
pub const KRONSAE_METRICS_OPENMETRICS: kronsae_metrics_form = 2;

/// Writes the metrics of a monitor as text, for the endpoint that a host serves to Prometheus.
///
/// form: `KRONSAE_METRICS_*`; 0: Prometheus. buffer: capacity bytes; may be NULL if capacity is 0. size: receives the
/// bytes of the text, without the NUL that follows it. The text was written if that is below capacity; otherwise there
/// is nothing but a NUL, and it may be tried again with more room (a little more than size: the text changes meanwhile).
/// That is no error.
///
/// Errors: `KRONSAE_STATUS_INVALID_ARGUMENT`; `KRONSAE_STATUS_FORKED`.
///
/// Threads: any number at once, with buffers of their own; not for serving threads.
///
/// Since 0.1.0.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kronsae_monitor_metrics(
    monitor: *const kronsae_monitor,
    form: kronsae_metrics_form,
    buffer: *mut c_char,
    capacity: usize,
    size: *mut usize,
    error: *mut *mut kronsae_error,
) -> kronsae_status {
    let body = || {
        // SAFETY: the header asks for pointers that are valid where they are not null (so everywhere below).
        let (body, out) = unsafe { (borrow(monitor)?, TextOut::new(buffer, capacity, size)?) };
        let form = match form {
            0 | KRONSAE_METRICS_PROMETHEUS => MetricsForm::Prometheus,
            KRONSAE_METRICS_OPENMETRICS => MetricsForm::OpenMetrics,
            other => {
                return Err(Error::invalid(format!(
                    "form is {other}, expected KRONSAE_METRICS_PROMETHEUS (1) or KRONSAE_METRICS_OPENMETRICS (2)"
                )));
            }
        };
        let mut text = String::new();
        metrics::write(&body.monitor.snapshot(), form, &mut text);
        out.put(&text);
        Ok(())
    };
    // SAFETY: as above.
    unsafe { boundary("kronsae_monitor_metrics", error, body) }
}

/// Writes all that a monitor counts as a JSON object, UTF-8: state, sites, taps, statistics, histograms, rules. Numbers
/// that do not exist (the mean of a latent that never fired) are null.
///
/// buffer, capacity, size: as in `kronsae_monitor_metrics`.
///
/// Errors: as `kronsae_monitor_metrics`.
///
/// Threads: any number at once, with buffers of their own; not for serving threads.
///
/// Since 0.1.0.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kronsae_monitor_snapshot_json(
    monitor: *const kronsae_monitor,
    buffer: *mut c_char,
    capacity: usize,
    size: *mut usize,
    error: *mut *mut kronsae_error,
) -> kronsae_status {
    let body = || {
        // SAFETY: as in kronsae_monitor_metrics.
        let (body, out) = unsafe { (borrow(monitor)?, TextOut::new(buffer, capacity, size)?) };
        let text = serde_json::to_string(&body.monitor.snapshot())
            .map_err(|wrong| Error::new(Status::Internal, format!("the snapshot does not go into JSON: {wrong}")))?;
        out.put(&text);
        Ok(())
    };
    // SAFETY: as above.
    unsafe { boundary("kronsae_monitor_snapshot_json", error, body) }
}

/// Room for any address that `kronsae_monitor_serve` writes, with its NUL.
pub const KRONSAE_ADDRESS_CAPACITY: usize = 64;

/// How the live page is served. Start from `KRONSAE_SERVE_OPTIONS_INIT`; zero means default.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct kronsae_serve_options {
    /// sizeof(kronsae_serve_options).
    pub struct_size: u32,
    /// Clients that may follow the stream of events at a time, at most 1024; further ones are turned away. 0: 16.
    pub clients: u32,
    /// Where to listen: an IP address and a port, "127.0.0.1:9464" or "[::1]:9464". Port 0: any that is free. NULL:
    /// "127.0.0.1:9464". Beyond the loopback interface it needs a token.
    pub address: *const c_char,
    /// What clients must send as `Authorization: Bearer ...`, at least 16 visible ASCII characters. NULL: nothing.
    pub token: *const c_char,
    /// Names, besides IP addresses and "localhost", by which clients may call the server, without port; n_hosts strings.
    /// A request by another name is refused. NULL, with n_hosts 0: none.
    pub hosts: *const *const c_char,
    /// Strings in hosts.
    pub n_hosts: usize,
}

// SAFETY: repr(C) without padding (two 4-byte fields, then 8-byte ones), struct_size first; numbers and pointers.
unsafe impl Versioned for kronsae_serve_options {
    const NAME: &'static str = "kronsae_serve_options";
    const FIRST_SIZE: usize = offset_of!(Self, n_hosts) + size_of::<usize>();
}

/// Serves the live page of a monitor, `/metrics`, a JSON snapshot and a stream of events over HTTP, read-only, on threads
/// of its own, until the monitor is destroyed: after `kronsae_monitor_stop` the last numbers can still be fetched. One
/// page a monitor.
///
/// options: NULL for defaults. bound: NULL with capacity 0, or receives the address it listens at, with the port, as
/// "127.0.0.1:41234" and a NUL; capacity at least `KRONSAE_ADDRESS_CAPACITY`.
///
/// Errors: `KRONSAE_STATUS_IO` if it cannot listen there (the port is in use, say); `KRONSAE_STATUS_INVALID_ARGUMENT`,
/// also for an address beyond loopback without a token, or if the page is served already; `KRONSAE_STATUS_UNSUPPORTED`
/// if the library was built without the feature `live`; `KRONSAE_STATUS_FORKED`.
///
/// Threads: any number at once; not for serving threads.
///
/// Since 0.1.0.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kronsae_monitor_serve(
    monitor: *const kronsae_monitor,
    options: *const kronsae_serve_options,
    bound: *mut c_char,
    capacity: usize,
    error: *mut *mut kronsae_error,
) -> kronsae_status {
    let body = || {
        refuse_inside("kronsae_monitor_serve")?;
        // SAFETY: as in kronsae_monitor_metrics.
        let (body, options) = unsafe { (borrow(monitor)?, structs::read_options(options)?) };
        let mut size = 0;
        if (bound.is_null() && capacity != 0) || (!bound.is_null() && capacity < KRONSAE_ADDRESS_CAPACITY) {
            return Err(Error::invalid(format!(
                "bound has room for {capacity} bytes, expected NULL with 0, or at least KRONSAE_ADDRESS_CAPACITY (64)"
            )));
        }
        // SAFETY: as above.
        let out = unsafe { TextOut::new(bound, capacity, &raw mut size) }?;
        // SAFETY: as above.
        let options = unsafe { serve_options(&options) }?;
        let mut page = body.page.lock().unwrap_or_else(PoisonError::into_inner);
        out.put(&page.start(&body.monitor, options)?);
        Ok(())
    };
    // SAFETY: as above.
    unsafe { boundary("kronsae_monitor_serve", error, body) }
}

/// A monitor as its live page asks it.
struct Shown(Monitor);

impl Source for Shown {
    fn snapshot(&self) -> Snapshot {
        self.0.snapshot()
    }
    fn recent(&self, site: u32, since: u64, most: usize) -> Vec<RecentToken> {
        self.0.recent_tokens(SiteId(site), since, most)
    }
    fn events(&self, since: u64, most: usize) -> Vec<Event> {
        self.0.recent_events(since, most)
    }
}

/// The live page of a monitor, if it is served.
#[derive(Default)]
pub(super) struct Page(Option<Server>);

impl Page {
    /// Starts to serve, and says where.
    fn start(&mut self, monitor: &Arc<Monitor>, options: ServeOptions) -> Result<String> {
        if let Some(server) = &self.0 {
            return Err(Error::invalid(format!("the live page is served already, at {}", server.address())));
        }
        let server = Server::start(options, Arc::new(Shown(Monitor::clone(monitor))))?;
        let address = server.address().to_string();
        self.0 = Some(server);
        Ok(address)
    }

    /// Stops serving.
    pub(super) fn stop(&mut self) {
        if let Some(server) = self.0.take() {
            server.stop();
        }
    }
}

/// # Safety
/// The struct's pointers are as the header asks, where they are not visibly otherwise.
unsafe fn serve_options(options: &kronsae_serve_options) -> Result<ServeOptions> {
    let default = ServeOptions::default();
    // SAFETY: the caller's promise, here and below.
    let (address, token) =
        unsafe { (utf8_or_none(options.address, "address")?, utf8_or_none(options.token, "token")?) };
    // SAFETY: as above.
    let hosts = unsafe { slice(options.hosts, options.n_hosts, "hosts") }?;
    // SAFETY: as above.
    let hosts = hosts.iter().map(|host| unsafe { utf8(*host, "an entry of hosts") }.map(str::to_owned));
    Ok(ServeOptions {
        address: address.map_or(default.address, str::to_owned),
        token: token.map(str::to_owned),
        hosts: hosts.collect::<Result<_>>()?,
        clients: if options.clients == 0 { default.clients } else { options.clients as usize },
    })
}
