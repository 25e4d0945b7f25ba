//! Taps of serving threads whose activations are in an NVIDIA GPU's memory, and stay there.

use super::callbacks::refuse_inside;
use super::lifecycle::{borrow, kronsae_monitor};
use super::taps::{kronsae_sampling, kronsae_token_tag, sampling};
use crate::capi::buffers::output;
use crate::capi::cuda::{available, kronsae_compute};
use crate::capi::error::{boundary, destructor, kronsae_error};
use crate::capi::handle::{self, Handle};
use crate::capi::status::kronsae_status;
use crate::capi::structs::{self, Versioned};
use crate::capi::views::kronsae_activations;
use crate::error::Result;
use std::ffi::c_void;
use std::mem::offset_of;

/// How a device tap works. Start from `KRONSAE_DEVICE_TAP_OPTIONS_INIT`; zero means default.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct kronsae_device_tap_options {
    /// sizeof(kronsae_device_tap_options).
    pub struct_size: u32,
    /// Which of the devices that the driver shows to this process, counted from 0, as cudaSetDevice counts.
    pub device: u32,
    /// `KRONSAE_COMPUTE_*`.
    pub compute: kronsae_compute,
    /// Rows whose pre-activations exist at a time; they bound the workspace. 0: as many as take 256 MB, at least 128.
    pub tile_rows: u32,
    /// `KRONSAE_SAMPLING_*`. 0: every token.
    pub sampling: kronsae_sampling,
    /// With KRONSAE_SAMPLING_EVERY_NTH: n, at least 1. Otherwise 0.
    pub nth: u32,
    /// Batches in flight, from a submit until a worker has taken them, at most 1,024. 0: 8.
    pub slots: u32,
    /// Most rows of a batch, at most 4,096; a submit of more takes several slots. Memory is taken for as many. 0: 512.
    pub rows: u32,
    /// Ends of requests and rewinds the queue has room for besides, in slots that tokens cannot take, at most 2^24.
    /// 0: 1024.
    pub controls: usize,
}

// SAFETY: repr(C) without padding (eight 4-byte fields, then an 8-byte one), struct_size first; plain numbers.
unsafe impl Versioned for kronsae_device_tap_options {
    const NAME: &'static str = "kronsae_device_tap_options";
    const FIRST_SIZE: usize = offset_of!(Self, controls) + size_of::<usize>();
}

/// Where a serving thread hands activations in a device's memory to a monitor: they are encoded there, on the caller's
/// stream, and of a token 8 K + 5 bytes are copied to the host.
///
/// Threads: one at a time; make one for each thread that submits. A call that overlaps another on the same tap is refused
/// with `KRONSAE_STATUS_INVALID_ARGUMENT`. In a child process its calls return `KRONSAE_STATUS_FORKED`.
///
/// Lifetime: destroying the monitor under a tap is legal, also during a call; later ones return
/// `KRONSAE_STATUS_STOPPED`.
pub struct kronsae_device_tap {
    _opaque: [u8; 0],
}

/// Builds with the device encoder.
#[cfg(any(feature = "cuda", feature = "cuda-emulation"))]
mod device {
    use super::super::taps::Tags;
    use super::*;
    use crate::capi::cuda::compute;
    use crate::capi::exclusive::Exclusive;
    use crate::cuda::{DeviceActivations, DeviceSaeOptions, Stream};
    use crate::monitor::{DeviceTap, DeviceTapOptions, Monitor, SiteId};

    pub(in crate::capi) struct DeviceTapBody {
        tap: Exclusive<DeviceTap>,
    }

    impl DeviceTapBody {
        pub(super) fn create(monitor: &Monitor, site: u32, options: &kronsae_device_tap_options) -> Result<Self> {
            let name = kronsae_device_tap_options::NAME;
            let default = DeviceTapOptions::default();
            let or = |given: usize, default: usize| if given == 0 { default } else { given };
            let chosen = DeviceTapOptions {
                sae: DeviceSaeOptions { compute: compute(options.compute, name)?, tile: options.tile_rows as usize },
                slots: or(options.slots as usize, default.slots),
                rows: or(options.rows as usize, default.rows),
                controls: or(options.controls, default.controls),
                sampling: sampling(options.sampling, options.nth, name)?,
            };
            let device = crate::cuda::open(options.device)?;
            let tap = monitor.device_tap(SiteId(site), device, chosen)?;
            Ok(DeviceTapBody { tap: Exclusive::new("device tap", tap) })
        }

        /// # Safety
        /// As the header asks of the activations, the tags and the stream.
        pub(super) unsafe fn submit(
            &self,
            activations: *const kronsae_activations,
            tags: *const kronsae_token_tag,
            tag_size: usize,
            accepted: *mut usize,
            stream: *mut c_void,
        ) -> Result<()> {
            self.tap.run(|tap| {
                if !accepted.is_null() {
                    output(accepted, "accepted")?;
                }
                // SAFETY: the caller's promise.
                let (x, batch, tags) = unsafe {
                    let x = structs::read(activations)?;
                    let batch = x.batch()?;
                    (x, batch, Tags::new(tags, batch.rows, tag_size)?)
                };
                let rows = DeviceActivations {
                    data: x.data.addr() as u64,
                    dtype: batch.dtype,
                    rows: batch.rows,
                    d_model: batch.d_model,
                    row_stride: batch.row_stride,
                };
                // SAFETY: as above.
                let taken = unsafe { tap.submit(&rows, Stream(stream), |row| tags.get(row)) }?;
                if !accepted.is_null() {
                    // SAFETY: aligned; the header asks for a pointer that is valid where it is not null.
                    unsafe { accepted.write(taken) };
                }
                Ok(())
            })
        }

        pub(super) fn end_request(&self, request: u64) -> Result<()> {
            self.tap.run(|tap| tap.end_request(request))
        }

        pub(super) fn rewind(&self, request: u64, position: i32) -> Result<()> {
            self.tap.run(|tap| tap.rewind(request, position))
        }
    }
}

/// Builds without: there are no handles, and every call says so.
#[cfg(not(any(feature = "cuda", feature = "cuda-emulation")))]
mod device {
    use super::*;
    use crate::monitor::Monitor;

    pub(in crate::capi) enum DeviceTapBody {}

    impl DeviceTapBody {
        pub(super) fn create(_monitor: &Monitor, _site: u32, options: &kronsae_device_tap_options) -> Result<Self> {
            sampling(options.sampling, options.nth, kronsae_device_tap_options::NAME)?;
            Err(crate::capi::cuda::left_out())
        }

        /// # Safety
        /// None: there is no value of this type.
        pub(super) unsafe fn submit(
            &self,
            _activations: *const kronsae_activations,
            _tags: *const kronsae_token_tag,
            _tag_size: usize,
            _accepted: *mut usize,
            _stream: *mut c_void,
        ) -> Result<()> {
            match *self {}
        }

        pub(super) fn end_request(&self, _request: u64) -> Result<()> {
            match *self {}
        }

        pub(super) fn rewind(&self, _request: u64, _position: i32) -> Result<()> {
            match *self {}
        }
    }
}

use device::DeviceTapBody;

impl Handle for kronsae_device_tap {
    type Body = DeviceTapBody;
    const NAME: &'static str = "kronsae_device_tap";
    const MAGIC: u64 = u64::from_le_bytes(*b"kronsDTP");
}

/// Makes a device tap at a site: copies the site's model to the device, unless another tap of the site with the same
/// options has it there, and allocates memory for the batches in flight, there and, pinned, on the host. The latter counts
/// in memory_limit; the snapshot has the former as device_memory.
///
/// options: NULL for defaults. out: receives the tap, to be freed with `kronsae_device_tap_destroy`; NULL on failure.
///
/// The site's model may be replaced at any time. Batches that the former one has encoded and no worker has taken are
/// counted as dropped then. A site with a device tap cannot record, as its activations never reach the host.
///
/// Errors: `KRONSAE_STATUS_UNSUPPORTED`, as `kronsae_device_sae_create`, and if the site has no model or records;
/// `KRONSAE_STATUS_INVALID_ARGUMENT`, also if there is no such site; `KRONSAE_STATUS_OUT_OF_MEMORY`, also the device's, and
/// where memory_limit is reached; `KRONSAE_STATUS_TIMEOUT` if the worker is busy for a minute; `KRONSAE_STATUS_STOPPED`;
/// `KRONSAE_STATUS_POISONED` if a worker failed; `KRONSAE_STATUS_FORKED`; `KRONSAE_STATUS_DEVICE` if the device fails.
///
/// Threads: any number at once; not for serving threads. Waits for the device; not while a stream is being captured in a
/// graph, and not in a callback of a monitor.
///
/// Unstable: it was tested over emulated kernels and never on a device.
/// Since 0.1.0.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kronsae_device_tap_create(
    monitor: *const kronsae_monitor,
    site: u32,
    options: *const kronsae_device_tap_options,
    out: *mut *mut kronsae_device_tap,
    error: *mut *mut kronsae_error,
) -> kronsae_status {
    let body = || {
        refuse_inside("kronsae_device_tap_create")?;
        let out = output(out, "out")?;
        // SAFETY: checked; the header asks for pointers that are valid where they are not null (so everywhere below).
        unsafe {
            out.write(std::ptr::null_mut());
            available()?;
            let body = borrow(monitor)?;
            let options = structs::read_options(options)?;
            out.write(handle::create(DeviceTapBody::create(&body.monitor, site, &options)?));
        }
        Ok(())
    };
    // SAFETY: as above.
    unsafe { boundary("kronsae_device_tap_create", error, body) }
}

/// Hands over a batch: enqueues on the caller's stream its encoding, the copy of the latents to the host and an event that a
/// worker looks for, and returns. Made for serving threads: it waits for nothing, neither the device nor a lock, allocates
/// nothing and logs nothing.
///
/// activations: data is an address on the device; the rows are read when the stream gets there, and may be overwritten by
/// what is enqueued on it afterwards. tags: in the host's memory, one for each row, of tag_size (sizeof(kronsae_token_tag))
/// bytes each; tokens of a request in ascending order of position; copied before the call returns. accepted: NULL, or
/// receives how many rows were taken. The others are counted: those that sampling leaves out, and those that are dropped
/// because no slot is free, whole batches at the end. That is no error; nor is a device that failed, after which everything
/// is dropped, the log says so once, and the snapshot why. stream: a cudaStream_t (or CUstream) of that device's primary
/// context; NULL is the default stream. It may be another one at each call.
///
/// Sampled rows that lie equally far apart are encoded alone, others with the rows between them; where sampling takes no
/// row, nothing is enqueued.
///
/// Errors: `KRONSAE_STATUS_INVALID_ARGUMENT`, also if d_model is not the site's, the stream is of another device, or it is
/// being captured in a graph (the capture goes on); `KRONSAE_STATUS_UNSUPPORTED` if the library was built without CUDA;
/// `KRONSAE_STATUS_STOPPED` if the monitor was stopped or destroyed; `KRONSAE_STATUS_FORKED`; `KRONSAE_STATUS_POISONED`. No
/// row is enqueued or counted then.
///
/// Graphs: refused while capturing. A host that launches a graph submits behind each launch, on the same stream.
///
/// Threads: one at a time on one tap.
///
/// Unstable: it was tested over emulated kernels and never on a device.
/// Since 0.1.0.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kronsae_device_tap_submit(
    tap: *mut kronsae_device_tap,
    activations: *const kronsae_activations,
    tags: *const kronsae_token_tag,
    tag_size: usize,
    accepted: *mut usize,
    stream: *mut c_void,
    error: *mut *mut kronsae_error,
) -> kronsae_status {
    let body = || {
        available()?;
        // SAFETY: as in kronsae_device_tap_create; what the structs point to is as the header asks.
        unsafe { handle::borrow(tap.cast_const())?.submit(activations, tags, tag_size, accepted, stream) }
    };
    // SAFETY: as above.
    unsafe { boundary("kronsae_device_tap_submit", error, body) }
}

/// Says that a request is over, in order with its tokens, as `kronsae_tap_end_request` does.
///
/// Errors: as `kronsae_tap_end_request`; `KRONSAE_STATUS_UNSUPPORTED` if the library was built without CUDA.
///
/// Threads: one at a time on one tap. Made for serving threads. Does not touch the device.
///
/// Unstable: it was tested over emulated kernels and never on a device.
/// Since 0.1.0.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kronsae_device_tap_end_request(
    tap: *mut kronsae_device_tap,
    request: u64,
    error: *mut *mut kronsae_error,
) -> kronsae_status {
    let body = || {
        available()?;
        // SAFETY: as in kronsae_device_tap_create.
        unsafe { handle::borrow(tap.cast_const()) }?.end_request(request)
    };
    // SAFETY: as above.
    unsafe { boundary("kronsae_device_tap_end_request", error, body) }
}

/// Takes back the tokens of a request from a position on, in order with its tokens, as `kronsae_tap_rewind` does.
///
/// Errors: as `kronsae_device_tap_end_request`.
///
/// Threads: one at a time on one tap. Made for serving threads. Does not touch the device.
///
/// Unstable: it was tested over emulated kernels and never on a device.
/// Since 0.1.0.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kronsae_device_tap_rewind(
    tap: *mut kronsae_device_tap,
    request: u64,
    position: i32,
    error: *mut *mut kronsae_error,
) -> kronsae_status {
    let body = || {
        available()?;
        // SAFETY: as in kronsae_device_tap_create.
        unsafe { handle::borrow(tap.cast_const()) }?.rewind(request, position)
    };
    // SAFETY: as above.
    unsafe { boundary("kronsae_device_tap_rewind", error, body) }
}

/// Destroys a device tap. What it took in is still encoded, and its counters stay in the monitor's sums; where the monitor is
/// gone, the call waits for what the device still does for it. NULL is allowed. May come before or after
/// `kronsae_monitor_destroy`.
///
/// Threads: one, when no other uses the tap any more.
///
/// Unstable: it was tested over emulated kernels and never on a device.
/// Since 0.1.0.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kronsae_device_tap_destroy(tap: *mut kronsae_device_tap) {
    // SAFETY: as in kronsae_device_tap_create, and by the header nobody uses the tap any more.
    destructor("kronsae_device_tap_destroy", || unsafe { handle::destroy(tap) });
}
