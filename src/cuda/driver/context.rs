//! A device of the driver: its primary context, which it shares with the host's own CUDA code, and two streams.

use crate::error::{Error, Result, Status};
use cudarc::driver::sys::{
    self, CUcontext, CUdevice, CUdevice_attribute, CUevent, CUresult, CUstream, CUstream_flags, CUstreamCaptureMode,
};
use std::ffi::{CStr, c_char};
use std::marker::PhantomData;

/// The oldest hardware: the first with bfloat16 products and asynchronous copies to shared memory.
const OLDEST_CAPABILITY: (i32, i32) = (8, 0);

/// What the driver says of a result, as `CUDA_ERROR_NAME (its sentence)`.
fn text(result: CUresult) -> String {
    let part = |ask: unsafe fn(CUresult, *mut *const c_char) -> CUresult| {
        let mut text = std::ptr::null();
        // SAFETY: it writes a pointer to a constant C string, or null where it does not know the number.
        unsafe {
            let _ = ask(result, &raw mut text);
            (!text.is_null()).then(|| CStr::from_ptr(text).to_string_lossy().into_owned())
        }
    };
    let name = part(sys::cuGetErrorName).unwrap_or_else(|| format!("CUDA error {}", result as u32));
    match part(sys::cuGetErrorString) {
        Some(sentence) => format!("{name} ({sentence})"),
        None => name,
    }
}

/// Makes a result of the driver an error: it failed to do what `doing` says.
pub(super) fn check(result: CUresult, doing: &str) -> Result<()> {
    let status = match result {
        CUresult::CUDA_SUCCESS => return Ok(()),
        CUresult::CUDA_ERROR_OUT_OF_MEMORY => Status::OutOfMemory,
        CUresult::CUDA_ERROR_NO_DEVICE
        | CUresult::CUDA_ERROR_INVALID_DEVICE
        | CUresult::CUDA_ERROR_STUB_LIBRARY
        | CUresult::CUDA_ERROR_SYSTEM_DRIVER_MISMATCH
        | CUresult::CUDA_ERROR_COMPAT_NOT_SUPPORTED_ON_DEVICE
        | CUresult::CUDA_ERROR_NO_BINARY_FOR_GPU
        | CUresult::CUDA_ERROR_INVALID_IMAGE
        | CUresult::CUDA_ERROR_INVALID_SOURCE
        | CUresult::CUDA_ERROR_INVALID_PTX
        | CUresult::CUDA_ERROR_UNSUPPORTED_PTX_VERSION
        | CUresult::CUDA_ERROR_JIT_COMPILER_NOT_FOUND
        | CUresult::CUDA_ERROR_NOT_FOUND => Status::Unsupported,
        _ => Status::Device,
    };
    Err(Error::new(status, format!("cannot {doing}: {}", text(result))))
}

/// A device's primary context, retained, with streams of its own.
#[derive(Debug)]
pub(super) struct Context {
    device: CUdevice,
    context: CUcontext,
    /// Where the device's own work is.
    pub(super) stream: CUstream,
    /// Where copies from pinned memory are.
    pub(super) copies: CUstream,
    pub(super) ordinal: u32,
    pub(super) name: String,
    /// Major and minor number of its architecture: (9, 0) is Hopper.
    pub(super) capability: (i32, i32),
    pub(super) multiprocessors: u32,
    /// Most shared memory of a block, static and dynamic.
    pub(super) shared_bytes: u32,
    /// The process that opened it.
    process: u32,
}

// SAFETY: handles that the driver lets any thread use, once the context is current there; see `Context::enter`.
unsafe impl Send for Context {}
// SAFETY: as above.
unsafe impl Sync for Context {}

/// The context is current on this thread, above what the host had there, until this is dropped.
///
/// Meanwhile this thread captures in the relaxed mode. A host that captures a graph in the global mode forbids all threads of
/// the process to allocate, to free and to ask for events, and its capture is lost when one does; a guest does all of
/// that on threads of its own.
pub(super) struct Current<'a> {
    context: PhantomData<&'a Context>,
    /// What to put back.
    mode: CUstreamCaptureMode,
    /// Current on one thread: not to be sent to another.
    thread: PhantomData<*mut ()>,
}

impl Drop for Current<'_> {
    fn drop(&mut self) {
        let mut popped = std::ptr::null_mut();
        // SAFETY: it reads and writes one number: what `enter` found.
        let _ = unsafe { sys::cuThreadExchangeStreamCaptureMode(&raw mut self.mode) };
        // SAFETY: `enter` pushed one onto this thread's stack, and everything pushed since was popped. It can only fail if
        // the driver is being torn down, and there is nothing to restore then.
        let _ = unsafe { sys::cuCtxPopCurrent_v2(&raw mut popped) };
    }
}

fn attribute(device: CUdevice, which: CUdevice_attribute) -> Result<i32> {
    let mut value = 0;
    // SAFETY: it writes one number.
    check(unsafe { sys::cuDeviceGetAttribute(&raw mut value, which, device) }, "ask a device for an attribute")?;
    Ok(value)
}

/// Initialises the driver and counts its devices.
fn count_devices() -> Result<u32> {
    let mut count = 0;
    // SAFETY: the driver was found to have these functions; they write one number.
    unsafe {
        check(sys::cuInit(0), "initialise the NVIDIA driver")?;
        check(sys::cuDeviceGetCount(&raw mut count), "count the devices")?;
    }
    Ok(u32::try_from(count).unwrap_or(0))
}

/// The context that a live stream is of.
fn context_of(stream: CUstream) -> Result<CUcontext> {
    let mut context = std::ptr::null_mut();
    // SAFETY: a live stream, by the promise of those who pass one; it writes one handle.
    check(unsafe { sys::cuStreamGetCtx(stream, &raw mut context) }, "ask a stream for its context")?;
    Ok(context)
}

impl Context {
    /// Device `ordinal` of those the driver shows to this process.
    pub(super) fn open(ordinal: u32) -> Result<Self> {
        let none = |found: &str| {
            let message = format!("{found}; look at nvidia-smi and at CUDA_VISIBLE_DEVICES, or use the CPU");
            Error::new(Status::Unsupported, message)
        };
        let count = count_devices().map_err(|error| match error.status() {
            Status::Unsupported => none(&format!("the NVIDIA driver finds no device that it can use: {error}")),
            _ => error,
        })?;
        if count == 0 {
            return Err(none("the NVIDIA driver finds no device"));
        }
        if ordinal >= count {
            return Err(none(&format!("there is no CUDA device {ordinal}: the driver shows {count}, counted from 0")));
        }
        let mut device = 0;
        let mut name = [0_u8; 256];
        // SAFETY: they write one number, and at most 255 bytes and a NUL.
        unsafe {
            check(sys::cuDeviceGet(&raw mut device, ordinal as i32), "open the device")?;
            let room = name.len() as i32;
            check(sys::cuDeviceGetName(name.as_mut_ptr().cast(), room, device), "ask for the device's name")?;
        }
        let name = CStr::from_bytes_until_nul(&name).unwrap_or_default().to_string_lossy().into_owned();
        use CUdevice_attribute as A;
        let capability = (
            attribute(device, A::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
            attribute(device, A::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
        );
        if capability < OLDEST_CAPABILITY {
            return Err(Error::new(
                Status::Unsupported,
                format!(
                    "device {ordinal}, {name}, is of compute capability {}.{}; the kernels need {}.{} (Ampere) or newer",
                    capability.0, capability.1, OLDEST_CAPABILITY.0, OLDEST_CAPABILITY.1
                ),
            ));
        }
        let multiprocessors = attribute(device, A::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?.max(1) as u32;
        let shared_bytes = attribute(device, A::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)?.max(0) as u32;
        let mut context = std::ptr::null_mut();
        // SAFETY: it writes one handle. The primary context is shared with the host's CUDA code and counted: it is released
        // on drop, never destroyed.
        check(unsafe { sys::cuDevicePrimaryCtxRetain(&raw mut context, device) }, "open the device's context")?;
        let mut opened = Context {
            device,
            context,
            stream: std::ptr::null_mut(),
            copies: std::ptr::null_mut(),
            ordinal,
            name,
            capability,
            multiprocessors,
            shared_bytes,
            process: std::process::id(),
        };
        let (mut stream, mut copies) = (std::ptr::null_mut(), std::ptr::null_mut());
        let current = opened.enter()?;
        // Streams that do not wait for the host's default stream, nor it for them.
        let flags = CUstream_flags::CU_STREAM_NON_BLOCKING as u32;
        // SAFETY: the context is current; they write one handle each.
        let made = unsafe {
            check(sys::cuStreamCreate(&raw mut stream, flags), "make a stream")
                .and_then(|()| check(sys::cuStreamCreate(&raw mut copies, flags), "make a stream"))
        };
        drop(current);
        opened.stream = stream;
        opened.copies = copies;
        made?;
        // The bindings look a function up, and allocate, when it is called first: not in a host's first submit.
        context_of(opened.stream)?;
        Ok(opened)
    }

    /// Whether it is this device, opened by this process.
    pub(super) fn is(&self, ordinal: u32, process: u32) -> bool {
        self.ordinal == ordinal && self.process == process
    }

    /// Makes the context current on this thread, and leaves the host's where it was.
    ///
    /// # Errors
    /// [`Status::Forked`] in a child process, where CUDA does not work.
    pub(super) fn enter(&self) -> Result<Current<'_>> {
        if std::process::id() != self.process {
            return Err(Error::new(
                Status::Forked,
                "this device was opened before fork(), and CUDA does not survive that; open it in the child process",
            ));
        }
        // SAFETY: the context is retained.
        check(unsafe { sys::cuCtxPushCurrent_v2(self.context) }, "use the device's context")?;
        let mut mode = CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_RELAXED;
        // SAFETY: it reads and writes one number; it can only fail where the driver is being torn down, which all calls
        // that follow then say.
        let _ = unsafe { sys::cuThreadExchangeStreamCaptureMode(&raw mut mode) };
        Ok(Current { context: PhantomData, mode, thread: PhantomData })
    }

    /// Refuses a stream of another device or context, whose work the kernels could not join.
    pub(super) fn check_stream(&self, stream: CUstream) -> Result<()> {
        // The default streams (null, 1, 2) are of whichever context is current; ours need no question.
        if stream.addr() <= 2 || stream == self.stream || stream == self.copies || context_of(stream)? == self.context {
            return Ok(());
        }
        Err(Error::invalid(format!(
            "the stream is of another device than {}, {}, or not of its primary context (the one that cudaSetDevice uses)",
            self.ordinal, self.name
        )))
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        // In a child process, what the parent has is the parent's.
        if self.process != std::process::id() {
            return;
        }
        if let Ok(_current) = self.enter() {
            for stream in [self.stream, self.copies] {
                if !stream.is_null() {
                    // SAFETY: made in `open`, used by nobody else now. What it still has to do is done; the handle goes.
                    let _ = unsafe { sys::cuStreamDestroy_v2(stream) };
                }
            }
        }
        // SAFETY: retained once, in `open`.
        let _ = unsafe { sys::cuDevicePrimaryCtxRelease_v2(self.device) };
    }
}

/// A point in a stream's work.
#[derive(Debug)]
pub(super) struct Event(pub(super) CUevent);

// SAFETY: a handle that the driver lets any thread use.
unsafe impl Send for Event {}
// SAFETY: as above.
unsafe impl Sync for Event {}

impl Event {
    /// One that was not recorded yet. The context is current.
    pub(super) fn new() -> Result<Self> {
        let flags =
            sys::CUevent_flags::CU_EVENT_DISABLE_TIMING as u32 | sys::CUevent_flags::CU_EVENT_BLOCKING_SYNC as u32;
        let mut event = std::ptr::null_mut();
        // SAFETY: it writes one handle.
        check(unsafe { sys::cuEventCreate(&raw mut event, flags) }, "make an event")?;
        Ok(Event(event))
    }

    /// The end of what `stream` was given so far. The context is current.
    pub(super) fn record(stream: CUstream) -> Result<Self> {
        let event = Event::new()?;
        // SAFETY: both are live.
        check(unsafe { sys::cuEventRecord(event.0, stream) }, "record an event")?;
        Ok(event)
    }

    /// Lets what `stream` is given from now on wait for it. The context is current.
    pub(super) fn hold(&self, stream: CUstream) -> Result<()> {
        // SAFETY: both are live.
        check(unsafe { sys::cuStreamWaitEvent(stream, self.0, 0) }, "wait for an event")
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        // SAFETY: made in `new`. An event that was not reached yet is freed by the driver when it is.
        let _ = unsafe { sys::cuEventDestroy_v2(self.0) };
    }
}
