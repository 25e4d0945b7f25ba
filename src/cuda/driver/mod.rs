//! A GPU, over NVIDIA's driver: libcuda, libcublasLt, libnvrtc and libnccl are opened at run time, and what is missing is
//! named.
//!
//! The library is a guest: it takes the device's primary context, which the host's own CUDA code uses as well, makes it
//! current for the time of a call and puts back what was there. It makes two streams and waits for nothing but its own work.

mod cache;
mod compile;
mod context;
mod event;
mod graph;
mod libraries;
mod module;
mod nccl;
mod product;
mod sources;

use super::communicator::{Communicator, CommunicatorId};
use super::device::{Address, Arguments, Device, DeviceMemory, Graph, Kernel, Product, Release, Stream};
use super::event::DeviceEvent;
use super::pinned::{Arrival, Landing, PinnedMemory, Unpin};
use crate::error::{Error, Result, Status};
use context::{Context, Event, check};
use cudarc::driver::sys;
use graph::Captured;
use module::Kernels;
use product::Products;
use std::ffi::c_void;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

/// What a device is opened for, and so which kernels it needs: where they must be compiled, those of encoding alone take
/// two thirds of the time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Purpose {
    Encode,
    Train,
}

/// A GPU.
pub struct CudaDevice {
    // Dropped in this order: what lies in the context before the context.
    products: Products,
    /// For products on the device's own stream; allocated by the first.
    workspace: Mutex<Option<DeviceMemory>>,
    kernels: Kernels,
    /// Whether the device's own stream is capturing: nothing may be waited for then.
    capturing: AtomicBool,
    context: Arc<Context>,
}

impl Release for Context {
    unsafe fn release(&self, address: Address, _bytes: usize) {
        if address != 0
            && let Ok(_current) = self.enter()
        {
            // SAFETY: allocated by `allocate`, freed once. The driver finishes the work that uses it first.
            let _ = unsafe { sys::cuMemFree_v2(address) };
        }
    }
}

impl Unpin for Context {
    unsafe fn unpin(&self, start: *mut u8, _bytes: usize) {
        if let Ok(_current) = self.enter() {
            // SAFETY: allocated by `pinned`, freed once; a copy from it was waited for by its `Arrival`.
            let _ = unsafe { sys::cuMemFreeHost(start.cast()) };
        }
    }
}

/// The end of a copy.
struct CopyEnd {
    event: Option<Event>,
    context: Arc<Context>,
}

impl Landing for CopyEnd {
    fn wait(&self) -> Result<()> {
        let Some(event) = &self.event else { return Ok(()) };
        let _current = self.context.enter()?;
        // SAFETY: a live event.
        check(unsafe { sys::cuEventSynchronize(event.0) }, "wait for a copy to the device")
    }

    fn as_any(&self) -> &dyn std::any::Any {
        self
    }
}

impl Drop for CopyEnd {
    fn drop(&mut self) {
        // The event's handle is of the context.
        let current = self.context.enter();
        drop(self.event.take());
        drop(current);
    }
}

fn host_pointer(from: *const u8) -> *const c_void {
    from.cast()
}

impl CudaDevice {
    /// Opens device `ordinal` of those that the driver shows to this process, and loads the kernels: those built in, or
    /// compiled now, which takes some seconds the first time on a machine and is kept in `$XDG_CACHE_HOME/kronsae`.
    ///
    /// # Errors
    /// [`Status::Unsupported`] if something is missing, and the message says what: the driver, a driver that is new enough, a
    /// device, a device that is new enough, cuBLASLt, or kernels (nvcc at build time, or libnvrtc).
    /// [`Status::OutOfMemory`]; [`Status::Device`] if the device fails.
    pub fn open(ordinal: u32) -> Result<Self> {
        Self::open_for(ordinal, Purpose::Train)
    }

    fn open_for(ordinal: u32, purpose: Purpose) -> Result<Self> {
        libraries::driver()?;
        let context = Arc::new(Context::open(ordinal)?);
        libraries::cublaslt().map_err(|error| error.within(&format!("device {ordinal}, {}", context.name)))?;
        let current = context.enter()?;
        let kernels = Kernels::load(&context, purpose)?;
        let products = Products::new(&context)?;
        drop(current);
        Ok(CudaDevice { products, workspace: Mutex::default(), kernels, capturing: AtomicBool::new(false), context })
    }

    /// The device that others in this process opened by this function, or else a new one, with the kernels of encoding
    /// alone: they are loaded once.
    ///
    /// # Errors
    /// As [`CudaDevice::open`].
    pub fn shared(ordinal: u32) -> Result<Arc<Self>> {
        static OPEN: Mutex<Vec<Weak<CudaDevice>>> = Mutex::new(Vec::new());
        let mut open = OPEN.lock().unwrap_or_else(PoisonError::into_inner);
        open.retain(|device| device.strong_count() > 0);
        let process = std::process::id();
        let found = open.iter().filter_map(Weak::upgrade).find(|device| device.context.is(ordinal, process));
        if let Some(device) = found {
            return Ok(device);
        }
        let device = Arc::new(Self::open_for(ordinal, Purpose::Encode)?);
        open.push(Arc::downgrade(&device));
        Ok(device)
    }

    /// Makes the context current.
    fn enter(&self) -> Result<context::Current<'_>> {
        self.context.enter()
    }

    /// As `enter`, for what cannot be captured.
    fn enter_idle(&self, doing: &str) -> Result<context::Current<'_>> {
        if self.capturing.load(Ordering::Acquire) {
            return Err(Error::invalid(format!("cannot {doing} while the device's stream is being captured")));
        }
        self.enter()
    }

    /// Waits for the device's own stream. The context is current.
    fn wait(&self) -> Result<()> {
        // SAFETY: the context's own stream.
        check(unsafe { sys::cuStreamSynchronize(self.context.stream) }, "finish the device's work")
    }

    /// Where products on the device's own stream work.
    fn own_workspace(&self) -> Result<Address> {
        let mut slot = self.workspace.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(memory) = &*slot {
            return Ok(memory.address());
        }
        Ok(slot.insert(self.allocate(product::WORKSPACE, "products")?).address())
    }

    /// Starts a copy on the stream for copies: `behind` what the device's stream was given so far, or beside it.
    fn copy_from_pinned(
        &self,
        to: &DeviceMemory,
        offset: usize,
        from: PinnedMemory,
        bytes: usize,
        behind: bool,
    ) -> Result<Arrival> {
        to.check(offset, bytes)?;
        if bytes > from.len() {
            return Err(Error::invalid(format!("{bytes} bytes of pinned memory of {}", from.len())));
        }
        let _current = self.enter_idle("copy to the device")?;
        if behind {
            Event::record(self.context.stream)?.hold(self.context.copies)?;
        }
        if bytes > 0 {
            let source = host_pointer(from.as_ptr());
            // SAFETY: inside both allocations; `from` stays until the copy is over: the arrival, or the wait below, sees to
            // that.
            let copied = unsafe { sys::cuMemcpyHtoDAsync_v2(to.at(offset), source, bytes, self.context.copies) };
            check(copied, "copy to the device")?;
        }
        match Event::record(self.context.copies) {
            Ok(event) => {
                let landing = CopyEnd { event: Some(event), context: Arc::clone(&self.context) };
                Ok(Arrival::new(from, Box::new(landing)))
            }
            Err(error) => {
                // SAFETY: the context's own stream.
                let _ = unsafe { sys::cuStreamSynchronize(self.context.copies) };
                Err(error)
            }
        }
    }
}

/// Sets a flag for as long as it lives.
struct Raised<'a>(&'a AtomicBool);

impl<'a> Raised<'a> {
    /// None if it is set already.
    fn new(flag: &'a AtomicBool) -> Option<Self> {
        (!flag.swap(true, Ordering::AcqRel)).then_some(Raised(flag))
    }
}

impl Drop for Raised<'_> {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Release);
    }
}

impl Device for CudaDevice {
    fn name(&self) -> String {
        self.context.name.clone()
    }

    fn stream(&self) -> Stream {
        Stream(self.context.stream.cast())
    }

    fn check_stream(&self, stream: Stream) -> Result<()> {
        let _current = self.enter()?;
        self.context.check_stream(stream.0.cast())
    }

    fn shared_bytes(&self) -> u32 {
        self.context.shared_bytes
    }

    fn resident_blocks(&self, kernel: Kernel, block: u32, shared_bytes: u32) -> Result<u32> {
        let function = self.kernels.get(kernel)?;
        let _current = self.enter()?;
        let mut blocks = 0;
        // SAFETY: a live function; it writes one number.
        let asked = unsafe {
            let shared = shared_bytes as usize;
            sys::cuOccupancyMaxActiveBlocksPerMultiprocessor(&raw mut blocks, function, block as i32, shared)
        };
        check(asked, &format!("ask how many blocks of {} fit", kernel.0))?;
        if blocks < 1 {
            return Err(Error::new(
                Status::Unsupported,
                format!(
                    "{} cannot run on {}: a block of {block} threads with {shared_bytes} bytes of shared memory does not fit",
                    kernel.0, self.context.name
                ),
            ));
        }
        Ok(blocks as u32 * self.context.multiprocessors)
    }

    fn memory_in_use(&self) -> Result<Option<u64>> {
        let _current = self.context.enter()?;
        let (mut free, mut total) = (0, 0);
        // SAFETY: it writes two numbers.
        let result = unsafe { sys::cuMemGetInfo_v2(&raw mut free, &raw mut total) };
        check(result, "ask how much memory is free")?;
        Ok(Some((total - free) as u64))
    }

    fn allocate(&self, bytes: usize, what: &str) -> Result<DeviceMemory> {
        let _current = self.enter_idle("allocate memory")?;
        let mut address = 0;
        // The driver has no allocations of nothing; callers have.
        // SAFETY: it writes one address.
        let result = unsafe { sys::cuMemAlloc_v2(&raw mut address, bytes.max(1)) };
        check(result, &format!("allocate {bytes} bytes for {what}")).map_err(|error| match error.status() {
            Status::OutOfMemory => {
                let (mut free, mut total) = (0, 0);
                // SAFETY: it writes two numbers, or nothing.
                let _ = unsafe { sys::cuMemGetInfo_v2(&raw mut free, &raw mut total) };
                Error::new(
                    Status::OutOfMemory,
                    format!(
                        "cannot allocate {bytes} bytes for {what} on {}: {free} of {total} are free",
                        self.context.name
                    ),
                )
            }
            _ => error,
        })?;
        let owner: Arc<dyn Release> = Arc::<Context>::clone(&self.context);
        // SAFETY: a new allocation of this context's.
        let memory = unsafe { DeviceMemory::from_raw(address, bytes, owner) };
        // SAFETY: inside the allocation. Waited for, so that other streams find zeroes, too.
        check(unsafe { sys::cuMemsetD8Async(address, 0, bytes.max(1), self.context.stream) }, "clear memory")?;
        self.wait()?;
        Ok(memory)
    }

    fn upload(&self, to: &DeviceMemory, offset: usize, from: &[u8]) -> Result<()> {
        to.check(offset, from.len())?;
        if from.is_empty() {
            return Ok(());
        }
        let _current = self.enter_idle("copy to the device")?;
        let source = host_pointer(from.as_ptr());
        // SAFETY: inside the allocation and the slice.
        let copied = unsafe { sys::cuMemcpyHtoDAsync_v2(to.at(offset), source, from.len(), self.context.stream) };
        check(copied, "copy to the device")?;
        let mut kind = 0_u32;
        // SAFETY: it writes one number, or says that it knows nothing of the address: ordinary memory.
        let known = unsafe {
            let which = sys::CUpointer_attribute::CU_POINTER_ATTRIBUTE_MEMORY_TYPE;
            sys::cuPointerGetAttribute((&raw mut kind).cast(), which, source.addr() as u64)
        };
        // Ordinary memory was copied to the driver's own before the call returned. Any other may still be read.
        if known == sys::CUresult::CUDA_SUCCESS { self.wait() } else { Ok(()) }
    }

    fn download(&self, from: &DeviceMemory, offset: usize, to: &mut [u8]) -> Result<()> {
        from.check(offset, to.len())?;
        if to.is_empty() {
            return Ok(());
        }
        let _current = self.enter_idle("copy from the device")?;
        // SAFETY: inside the allocation and the slice, which is borrowed until the copy is over.
        let copied = unsafe {
            sys::cuMemcpyDtoHAsync_v2(to.as_mut_ptr().cast(), from.at(offset), to.len(), self.context.stream)
        };
        let waited = self.wait();
        check(copied, "copy from the device")?;
        waited
    }

    fn fill(&self, to: &DeviceMemory, byte: u8) -> Result<()> {
        if to.bytes() == 0 {
            return Ok(());
        }
        let _current = self.enter()?;
        // SAFETY: the whole allocation.
        check(unsafe { sys::cuMemsetD8Async(to.address(), byte, to.bytes(), self.context.stream) }, "fill memory")
    }

    fn pinned(&self, bytes: usize, what: &str) -> Result<PinnedMemory> {
        let _current = self.enter_idle("allocate pinned memory")?;
        let mut start: *mut c_void = std::ptr::null_mut();
        // No flags: above all not write-combined, which is slow to read.
        // SAFETY: it writes one pointer.
        check(unsafe { sys::cuMemHostAlloc(&raw mut start, bytes.max(1), 0) }, "allocate pinned memory").map_err(
            |error| match error.status() {
                Status::OutOfMemory => Error::out_of_memory(&format!("{what} (pinned)"), bytes),
                _ => error,
            },
        )?;
        let start = NonNull::new(start.cast::<u8>()).ok_or_else(|| Error::out_of_memory(what, bytes))?;
        let owner: Arc<dyn Unpin> = Arc::<Context>::clone(&self.context);
        // SAFETY: a new allocation of this context's, `bytes` long, zeroed here.
        unsafe {
            start.as_ptr().write_bytes(0, bytes);
            Ok(PinnedMemory::from_raw(start, bytes, owner))
        }
    }

    fn copy_ahead(&self, to: &DeviceMemory, offset: usize, from: PinnedMemory, bytes: usize) -> Result<Arrival> {
        // What the device was given so far may still read what is overwritten.
        self.copy_from_pinned(to, offset, from, bytes, true)
    }

    unsafe fn copy_beside(
        &self,
        to: &DeviceMemory,
        offset: usize,
        from: PinnedMemory,
        bytes: usize,
    ) -> Result<Arrival> {
        self.copy_from_pinned(to, offset, from, bytes, false)
    }

    fn admit(&self, arrival: &Arrival) -> Result<()> {
        let Some(end) = arrival.landing().as_any().downcast_ref::<CopyEnd>() else {
            return Err(Error::invalid("this copy is of another device"));
        };
        let _current = self.enter_idle("wait for a copy")?;
        match &end.event {
            Some(event) => event.hold(self.context.stream),
            None => Ok(()),
        }
    }

    unsafe fn launch_on(
        &self,
        stream: Stream,
        kernel: Kernel,
        grid: [u32; 2],
        block: u32,
        shared_bytes: u32,
        arguments: &mut Arguments,
    ) -> Result<()> {
        let function = self.kernels.get(kernel)?;
        let _current = self.enter()?;
        let pointers = arguments.pointers().as_mut_ptr();
        // SAFETY: the caller's promise. The values are copied before the call returns.
        let started = unsafe {
            let none = std::ptr::null_mut();
            let [columns, rows] = grid;
            sys::cuLaunchKernel(function, columns, rows, 1, block, 1, 1, shared_bytes, stream.0.cast(), pointers, none)
        };
        match check(started, "start a kernel") {
            Ok(()) => Ok(()),
            Err(error) => Err(Error::new(
                error.status(),
                format!(
                    "{}: {grid:?} blocks of {block} threads, {shared_bytes} bytes of shared memory: {error}",
                    kernel.0
                ),
            )),
        }
    }

    fn product_workspace(&self) -> usize {
        product::WORKSPACE
    }

    fn prepare_product(&self, product: &Product) -> Result<()> {
        // Any addresses that pass; the real ones are checked when they come.
        Product { x: 256, w: 256, y: 256, workspace: 0, ..*product }.check()?;
        let _current = self.enter()?;
        self.products.prepare(product)
    }

    unsafe fn product_on(&self, stream: Stream, product: &Product) -> Result<()> {
        product.check()?;
        let workspace = match product.workspace {
            0 if stream == self.stream() => self.own_workspace()?,
            0 => return Err(Error::invalid("a product on a stream of the caller's needs a workspace of the caller's")),
            own => own,
        };
        let _current = self.enter()?;
        // SAFETY: the caller's promise.
        unsafe { self.products.run(stream.0.cast(), product, workspace) }
    }

    fn capture(&self, step: &mut dyn FnMut() -> Result<()>) -> Result<Option<Graph>> {
        // Its allocation cannot be captured.
        self.own_workspace()?;
        let _current = self.enter()?;
        let Some(_capturing) = Raised::new(&self.capturing) else {
            return Err(Error::invalid("the device's stream is being captured already"));
        };
        Captured::of(&self.context, step).map(|captured| Some(Graph::new(captured)))
    }

    unsafe fn replay(&self, graph: &Graph) -> Result<()> {
        let captured = graph.get::<Captured>().filter(|captured| captured.is_of(&self.context));
        let captured = captured.ok_or_else(|| Error::invalid("this graph was captured by another device"))?;
        let _current = self.enter_idle("replay a graph")?;
        // SAFETY: the caller's promise.
        unsafe { captured.launch(self.context.stream) }
    }

    fn synchronize(&self) -> Result<()> {
        let _current = self.enter_idle("wait")?;
        self.wait()
    }

    fn check_communicators(&self) -> Result<()> {
        libraries::nccl().map(drop)
    }

    fn communicator_id(&self) -> Result<CommunicatorId> {
        nccl::new_id()
    }

    fn communicator(&self, id: &CommunicatorId, rank: u32, ranks: u32) -> Result<Box<dyn Communicator>> {
        Ok(Box::new(nccl::Group::join(&self.context, id, rank, ranks)?))
    }

    fn event(&self) -> Result<Box<dyn DeviceEvent>> {
        let _current = self.enter()?;
        Ok(Box::new(event::Point::new(&self.context)?))
    }

    unsafe fn copy_back_on(
        &self,
        stream: Stream,
        from: &DeviceMemory,
        offset: usize,
        to: &PinnedMemory,
        bytes: usize,
    ) -> Result<()> {
        from.check(offset, bytes)?;
        to.check(bytes)?;
        if bytes == 0 {
            return Ok(());
        }
        let _current = self.enter()?;
        let target = to.start().cast::<c_void>();
        // SAFETY: inside both allocations, which stay by the caller's promise, as the stream does.
        let copied = unsafe { sys::cuMemcpyDtoHAsync_v2(target, from.at(offset), bytes, stream.0.cast()) };
        check(copied, "copy from the device")
    }

    fn is_capturing(&self, stream: Stream) -> Result<bool> {
        let _current = self.enter()?;
        let mut status = sys::CUstreamCaptureStatus::CU_STREAM_CAPTURE_STATUS_NONE;
        // SAFETY: a live stream, by the promise of those who pass one; it writes one number.
        match unsafe { sys::cuStreamIsCapturing(stream.0.cast(), &raw mut status) } {
            // The default stream, which would join a capture of another stream and spoil it.
            sys::CUresult::CUDA_ERROR_STREAM_CAPTURE_IMPLICIT => Ok(true),
            result => check(result, "ask whether a stream is being captured")
                .map(|()| status != sys::CUstreamCaptureStatus::CU_STREAM_CAPTURE_STATUS_NONE),
        }
    }
}

impl std::fmt::Debug for CudaDevice {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "CudaDevice[{}, {}]", self.context.ordinal, self.context.name)
    }
}
