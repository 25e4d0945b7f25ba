//! What a backend needs of a device: memory, kernels by name, one matrix product, graphs. Implemented over the CUDA driver
//! and, for tests, by kernels that are emulated on the CPU, so that everything above it is shown without a GPU.
//!
//! A device orders its work on streams. Everything here runs on the device's own stream, one after the other as it was
//! given, unless a function takes a [`Stream`]. Nothing waits for the work to end except where it says so.

use super::communicator::{Communicator, CommunicatorId};
use super::event::DeviceEvent;
use super::pinned::{Arrival, PinnedMemory};
use crate::error::{Error, Result, Status};
use std::any::Any;
use std::ffi::c_void;
use std::fmt;
use std::sync::Arc;

/// A device address: of CUDA's global memory, or of the process's own where the device is emulated.
pub type Address = u64;

/// A stream of the device, as CUDA's handle (`CUstream`, the same as `cudaStream_t`); null is CUDA's default stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stream(pub *mut c_void);

// SAFETY: a handle that is only passed on; the driver's calls on it may come from any thread.
unsafe impl Send for Stream {}
// SAFETY: as above.
unsafe impl Sync for Stream {}

/// A kernel of `cuda/kronsae.cu`, by the name it is exported under.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Kernel(pub &'static str);

/// Type of a matrix's elements on a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Element {
    /// binary32.
    F32,
    /// bfloat16.
    Bf16,
}

impl Element {
    /// Bytes of one.
    #[must_use]
    pub const fn size(self) -> usize {
        match self {
            Element::F32 => 4,
            Element::Bf16 => 2,
        }
    }

    /// Its name in kernels' names: `f32`, `bf16`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Element::F32 => "f32",
            Element::Bf16 => "bf16",
        }
    }
}

/// Frees what a device allocated. Implemented by what keeps the device alive.
pub trait Release: Send + Sync {
    /// Frees device memory. The work that uses it and was given to the device before is finished first.
    ///
    /// # Safety
    /// `address` and `bytes` are of one allocation of this device, which nobody uses any more.
    unsafe fn release(&self, address: Address, bytes: usize);
}

/// Memory of a device, zeroed when it was allocated and freed on drop. It keeps its device alive.
///
/// A graph that was captured with its address must not be replayed after it was dropped.
pub struct DeviceMemory {
    address: Address,
    bytes: usize,
    owner: Arc<dyn Release>,
}

impl DeviceMemory {
    /// Memory that `owner` will free.
    ///
    /// # Safety
    /// `bytes` bytes at `address` are an allocation of the owner's device, handed over to this.
    pub unsafe fn from_raw(address: Address, bytes: usize, owner: Arc<dyn Release>) -> Self {
        DeviceMemory { address, bytes, owner }
    }

    /// Where it starts: at a multiple of 256.
    #[must_use]
    pub fn address(&self) -> Address {
        self.address
    }

    /// How long it is.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// The address `offset` bytes behind its start.
    ///
    /// # Panics
    /// If that is past its end (its end itself is allowed).
    #[must_use]
    pub fn at(&self, offset: usize) -> Address {
        assert!(offset <= self.bytes, "offset {offset} of {} bytes", self.bytes);
        self.address + offset as u64
    }

    /// Refuses a range that is not inside.
    ///
    /// # Errors
    /// [`crate::Status::InvalidArgument`] naming both.
    pub fn check(&self, offset: usize, bytes: usize) -> Result<()> {
        match offset.checked_add(bytes) {
            Some(end) if end <= self.bytes => Ok(()),
            _ => Err(Error::invalid(format!("{bytes} bytes at {offset} of device memory of {} bytes", self.bytes))),
        }
    }
}

impl Drop for DeviceMemory {
    fn drop(&mut self) {
        // SAFETY: the allocation was handed over in `from_raw`, and this is its one owner's end.
        unsafe { self.owner.release(self.address, self.bytes) }
    }
}

impl fmt::Debug for DeviceMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DeviceMemory[{} bytes at {:#x}]", self.bytes, self.address)
    }
}

/// Values a kernel may take: what they are in memory is what the kernel reads.
///
/// # Safety
/// A number, or `#[repr(C)]` of such, laid out as the kernel's parameter is; no padding that the kernel reads.
pub unsafe trait Argument: Copy + 'static {}
// SAFETY: a number (so below).
unsafe impl Argument for u8 {}
// SAFETY: as above.
unsafe impl Argument for u32 {}
// SAFETY: as above.
unsafe impl Argument for i32 {}
// SAFETY: as above.
unsafe impl Argument for u64 {}
// SAFETY: as above.
unsafe impl Argument for f32 {}
// SAFETY: as above.
unsafe impl Argument for f64 {}

/// Most arguments of a launch.
const MOST_ARGUMENTS: usize = 64;
/// Room for their values, in units of 16 bytes.
const MOST_WORDS: usize = 80;

/// The arguments of a launch, by value, in the kernel's order. On the stack: filling one allocates nothing.
///
/// ```
/// # use kronsae::cuda::Arguments;
/// let mut arguments = Arguments::new();
/// arguments.push(0x7000_0000_u64).push(4096_u32).push(0.5_f32);
/// assert_eq!(arguments.len(), 3);
/// ```
pub struct Arguments {
    /// Each value starts at a multiple of 16 bytes, which is enough for any parameter.
    words: [u128; MOST_WORDS],
    used: usize,
    starts: [u8; MOST_ARGUMENTS],
    len: usize,
    pointers: [*mut c_void; MOST_ARGUMENTS],
}

impl Default for Arguments {
    fn default() -> Self {
        Self::new()
    }
}

impl Arguments {
    /// No arguments yet.
    #[must_use]
    pub fn new() -> Self {
        Arguments {
            words: [0; MOST_WORDS],
            used: 0,
            starts: [0; MOST_ARGUMENTS],
            len: 0,
            pointers: [std::ptr::null_mut(); MOST_ARGUMENTS],
        }
    }

    /// Adds a value.
    ///
    /// # Panics
    /// If there are more than 64 arguments, or more than fit 1,280 bytes.
    pub fn push<T: Argument>(&mut self, value: T) -> &mut Self {
        const { assert!(align_of::<T>() <= 16, "no parameter of a kernel is aligned to more") };
        let words = size_of::<T>().div_ceil(16);
        assert!(self.len < MOST_ARGUMENTS && self.used + words <= MOST_WORDS, "too many arguments for a kernel");
        // SAFETY: `words` words from `used` on are inside the array, as just checked, and hold a T; 16-byte aligned.
        unsafe { self.words.as_mut_ptr().add(self.used).cast::<T>().write(value) };
        self.starts[self.len] = self.used as u8;
        self.len += 1;
        self.used += words;
        self
    }

    /// Adds the address of device memory, from its start.
    ///
    /// # Panics
    /// As [`Arguments::push`].
    pub fn memory(&mut self, memory: &DeviceMemory) -> &mut Self {
        self.push(memory.address())
    }

    /// Adds a null pointer.
    ///
    /// # Panics
    /// As [`Arguments::push`].
    pub fn null(&mut self) -> &mut Self {
        self.push(0_u64)
    }

    /// Adds the address of device memory, or null.
    ///
    /// # Panics
    /// As [`Arguments::push`].
    pub fn optional(&mut self, memory: Option<&DeviceMemory>) -> &mut Self {
        self.push(memory.map_or(0, DeviceMemory::address))
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Pointers to the values, one each, as `cuLaunchKernel` takes them. Valid until this is moved or added to.
    pub fn pointers(&mut self) -> &mut [*mut c_void] {
        let base = self.words.as_mut_ptr();
        for at in 0..self.len {
            self.pointers[at] = base.wrapping_add(usize::from(self.starts[at])).cast();
        }
        &mut self.pointers[..self.len]
    }
}

/// A product of matrices: `y[t, r] = sum over i of x[t, i] * w[r, i] + bias[r]`, accumulated in f32.
///
/// F32 inputs are multiplied as true f32, not as TF32. Sizes and strides are in elements.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Product {
    /// t.
    pub tokens: u32,
    /// r.
    pub rows: u32,
    /// i.
    pub inner: u32,
    /// Type of `x` and `w`.
    pub input: Element,
    /// Type of `y` and of `bias`.
    pub output: Element,
    /// `[tokens, inner]`, rows `x_stride` apart; the address and the stride's bytes are multiples of 16.
    pub x: Address,
    /// Elements from one token to the next.
    pub x_stride: u32,
    /// `[rows, inner]`, rows `w_stride` apart; aligned as `x`.
    pub w: Address,
    /// Elements from one row to the next.
    pub w_stride: u32,
    /// `[rows]`, aligned to 16 bytes; null (0) for none.
    pub bias: Address,
    /// `[tokens, rows]`, rows `y_stride` apart; aligned as `x`.
    pub y: Address,
    /// Elements from one token's result to the next.
    pub y_stride: u32,
    /// Memory for the product to work in, at a multiple of 256, [`Device::product_workspace`] bytes. Null
    /// for the device's own, which serves the device's own stream alone.
    pub workspace: Address,
}

impl Product {
    /// Refuses sizes, strides and alignments other than documented.
    ///
    /// # Errors
    /// [`crate::Status::InvalidArgument`].
    pub fn check(&self) -> Result<()> {
        let bad = |what: &str| Err(Error::invalid(format!("product: {what}: {self:?}")));
        if self.tokens == 0 || self.rows == 0 || self.inner == 0 {
            return bad("a size is 0");
        }
        if self.x_stride < self.inner || self.w_stride < self.inner || self.y_stride < self.rows {
            return bad("a stride is shorter than its row");
        }
        let (input, output) = (self.input.size() as u64, self.output.size() as u64);
        let aligned = [
            self.x,
            u64::from(self.x_stride) * input,
            self.w,
            u64::from(self.w_stride) * input,
            self.bias,
            self.y,
            u64::from(self.y_stride) * output,
        ];
        if aligned.iter().any(|n| n % 16 != 0) {
            return bad("an address or a stride is not a multiple of 16 bytes");
        }
        if self.x == 0 || self.w == 0 || self.y == 0 || !self.workspace.is_multiple_of(256) {
            return bad("an address is null, or the workspace misaligned");
        }
        Ok(())
    }
}

/// Work that was captured, to be replayed by one call. Owned by the device that captured it.
pub struct Graph(Box<dyn Any + Send + Sync>);

impl Graph {
    /// Wraps what a device needs to replay it.
    #[must_use]
    pub fn new(captured: impl Any + Send + Sync) -> Self {
        Graph(Box::new(captured))
    }

    /// What was wrapped, if it is of this type.
    #[must_use]
    pub fn get<T: Any>(&self) -> Option<&T> {
        self.0.downcast_ref()
    }
}

impl fmt::Debug for Graph {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Graph")
    }
}

/// A device.
///
/// Threads: any number at once; what they give to the device's own stream runs in the order in which the calls were made.
pub trait Device: Send + Sync {
    /// What it is called: `"NVIDIA H200"`, say.
    fn name(&self) -> String;

    /// The device's own stream, which all functions use that take none.
    fn stream(&self) -> Stream;

    /// Refuses a stream of another device or context, whose work could not be joined.
    ///
    /// # Errors
    /// [`crate::Status::InvalidArgument`].
    fn check_stream(&self, stream: Stream) -> Result<()>;

    /// Most shared memory of one block, in bytes.
    fn shared_bytes(&self) -> u32;

    /// Blocks of a kernel that the device holds at once: the grid of a kernel whose blocks take work until there is none.
    /// At least 1.
    ///
    /// # Errors
    /// As [`Device::launch`].
    fn resident_blocks(&self, kernel: Kernel, block: u32, shared_bytes: u32) -> Result<u32>;

    /// Bytes of the device's memory that are in use, by whomever; None where the device cannot tell.
    ///
    /// # Errors
    /// [`crate::Status::Device`] if the device fails.
    fn memory_in_use(&self) -> Result<Option<u64>> {
        Ok(None)
    }

    /// Allocates `bytes` bytes, zeroed, at a multiple of 256. `what` names it in an error.
    ///
    /// # Errors
    /// [`crate::Status::OutOfMemory`], with what is free.
    fn allocate(&self, bytes: usize, what: &str) -> Result<DeviceMemory>;

    /// Copies `from` to `offset` bytes behind the start of `to`, behind what the device's stream was given before. `from`
    /// may be reused on return. Not while capturing.
    ///
    /// # Errors
    /// [`crate::Status::InvalidArgument`] if it does not fit; [`crate::Status::Device`] if the device fails.
    fn upload(&self, to: &DeviceMemory, offset: usize, from: &[u8]) -> Result<()>;

    /// Copies from `offset` bytes behind the start of `from`, when all that the device's stream was given before is done,
    /// for which it waits. Not while capturing.
    ///
    /// # Errors
    /// As [`Device::upload`].
    fn download(&self, from: &DeviceMemory, offset: usize, to: &mut [u8]) -> Result<()>;

    /// Sets every byte.
    ///
    /// # Errors
    /// [`crate::Status::Device`] if the device fails.
    fn fill(&self, to: &DeviceMemory, byte: u8) -> Result<()>;

    /// Memory of the host that the device copies from and to at full speed, zeroed. `what` names it in an error.
    ///
    /// # Errors
    /// [`crate::Status::OutOfMemory`].
    fn pinned(&self, bytes: usize, what: &str) -> Result<PinnedMemory>;

    /// Starts copying the first `bytes` bytes of `from` to `offset` bytes behind the start of `to`, beside what the device's
    /// stream does: behind what that stream was given before, but not before what it is given later. For that,
    /// [`Device::admit`] what comes back. Not while capturing.
    ///
    /// # Errors
    /// As [`Device::upload`]. `from` is lost then.
    fn copy_ahead(&self, to: &DeviceMemory, offset: usize, from: PinnedMemory, bytes: usize) -> Result<Arrival>;

    /// As [`Device::copy_ahead`], but beside everything that the device's stream was given before, too.
    ///
    /// # Errors
    /// As [`Device::copy_ahead`].
    ///
    /// # Safety
    /// Nothing that the device's stream was given and has not done yet uses what is written.
    unsafe fn copy_beside(&self, to: &DeviceMemory, offset: usize, from: PinnedMemory, bytes: usize)
    -> Result<Arrival>;

    /// Lets what the device's own stream is given from now on wait for a copy. Not while capturing: admit first, replay then.
    ///
    /// # Errors
    /// [`crate::Status::Device`] if the device fails.
    fn admit(&self, arrival: &Arrival) -> Result<()>;

    /// Starts a kernel on `stream`: `grid[0] x grid[1]` blocks of `block` threads, with `shared_bytes` of dynamic shared
    /// memory.
    ///
    /// # Errors
    /// [`crate::Status::Unsupported`] if there is no such kernel or the device cannot run it in that shape;
    /// [`crate::Status::Device`] if the device fails.
    ///
    /// # Safety
    /// The arguments are those of the kernel, in number, order and type; what their addresses lead to is large enough,
    /// stays allocated until the kernel is done, and nothing else writes it, or reads what the kernel writes, meanwhile.
    /// `stream` is a live stream of this device.
    unsafe fn launch_on(
        &self,
        stream: Stream,
        kernel: Kernel,
        grid: [u32; 2],
        block: u32,
        shared_bytes: u32,
        arguments: &mut Arguments,
    ) -> Result<()>;

    /// As [`Device::launch_on`], on the device's own stream: `grid` blocks.
    ///
    /// # Errors
    /// As [`Device::launch_on`].
    ///
    /// # Safety
    /// As [`Device::launch_on`]. Work of the same stream does not overlap.
    unsafe fn launch(
        &self,
        kernel: Kernel,
        grid: u32,
        block: u32,
        shared_bytes: u32,
        arguments: &mut Arguments,
    ) -> Result<()> {
        // SAFETY: the caller's promise; the stream is the device's.
        unsafe { self.launch_on(self.stream(), kernel, [grid, 1], block, shared_bytes, arguments) }
    }

    /// Bytes of workspace that a product may use, a multiple of 256.
    fn product_workspace(&self) -> usize;

    /// Decides how products of this shape are computed (the addresses of `x`, `w` and `y` are not looked at), which takes
    /// milliseconds; a product that was not prepared does it itself.
    ///
    /// # Errors
    /// [`crate::Status::InvalidArgument`] as [`Product::check`], of sizes and strides; [`crate::Status::Unsupported`] if the
    /// device has no way to compute it.
    fn prepare_product(&self, product: &Product) -> Result<()>;

    /// Starts a product on `stream`.
    ///
    /// # Errors
    /// [`crate::Status::InvalidArgument`] as [`Product::check`], or if there is no workspace and the stream is not the
    /// device's own; else as [`Device::prepare_product`]; [`crate::Status::Device`] if the device fails.
    ///
    /// # Safety
    /// As [`Device::launch_on`], of the product's addresses.
    unsafe fn product_on(&self, stream: Stream, product: &Product) -> Result<()>;

    /// As [`Device::product_on`], on the device's own stream.
    ///
    /// # Errors
    /// As [`Device::product_on`].
    ///
    /// # Safety
    /// As [`Device::product_on`].
    unsafe fn product(&self, product: &Product) -> Result<()> {
        // SAFETY: the caller's promise; the stream is the device's.
        unsafe { self.product_on(self.stream(), product) }
    }

    /// Records what `step` gives to the device's own stream, without running it. None where the device has no such thing;
    /// `step` was not called then. Meanwhile no memory may be allocated, copied from or to the host, or waited for, and no
    /// other thread may use the device's own stream. Run `step` once before, so that its kernels are loaded and its products
    /// decided.
    ///
    /// # Errors
    /// Those of `step`; [`crate::Status::Device`] if what it did cannot be captured.
    fn capture(&self, step: &mut dyn FnMut() -> Result<()>) -> Result<Option<Graph>>;

    /// Runs what was captured, on the device's own stream.
    ///
    /// # Errors
    /// [`crate::Status::InvalidArgument`] if another device captured it; [`crate::Status::Device`] if the device fails.
    ///
    /// # Safety
    /// What [`Device::launch_on`] asks for holds for everything that was captured; above all, its memory still exists.
    unsafe fn replay(&self, graph: &Graph) -> Result<()>;

    /// Waits until all that the device's own stream was given is done.
    ///
    /// # Errors
    /// [`crate::Status::Device`] if something of it failed.
    fn synchronize(&self) -> Result<()>;

    /// Whether devices like this one can join a group.
    ///
    /// # Errors
    /// [`crate::Status::Unsupported`] if they cannot; a library that is missing for it is named.
    fn check_communicators(&self) -> Result<()> {
        Err(Error::new(Status::Unsupported, format!("{}: no device that NCCL knows", self.name())))
    }

    /// Begins a group of devices: one rank calls it, all join with what it gave.
    ///
    /// # Errors
    /// As [`Device::check_communicators`]; [`crate::Status::Internal`] if the group cannot be made.
    fn communicator_id(&self) -> Result<CommunicatorId> {
        self.check_communicators().map(|()| [0; 128])
    }

    /// Joins a group of `ranks` devices as number `rank`; waits until all have joined.
    ///
    /// # Errors
    /// As [`Device::communicator_id`]; [`crate::Status::InvalidArgument`] if there is no such rank.
    fn communicator(&self, id: &CommunicatorId, rank: u32, ranks: u32) -> Result<Box<dyn Communicator>> {
        let _ = (id, rank, ranks);
        self.check_communicators()?;
        Err(Error::new(Status::Unsupported, format!("{}: joins no group", self.name())))
    }

    /// A point in a stream's work, for any stream of this device, not recorded yet.
    ///
    /// # Errors
    /// [`crate::Status::OutOfMemory`]; [`crate::Status::Device`] if the device fails.
    fn event(&self) -> Result<Box<dyn DeviceEvent>>;

    /// Enqueues a copy of `bytes` bytes from `offset` bytes behind the start of `from` to the start of `to` on the caller's
    /// stream. Allocates nothing, waits for nothing.
    ///
    /// # Errors
    /// [`crate::Status::InvalidArgument`] if it does not fit, and nothing was enqueued; [`crate::Status::Internal`] if the
    /// device fails.
    ///
    /// # Safety
    /// Until the copy is over, which an event says that is recorded behind it, both stay allocated and nobody reads or
    /// writes that part of `to`. `stream` is a live stream of this device.
    unsafe fn copy_back_on(
        &self,
        stream: Stream,
        from: &DeviceMemory,
        offset: usize,
        to: &PinnedMemory,
        bytes: usize,
    ) -> Result<()>;

    /// Whether what this stream is given now would become part of a graph, or spoil one.
    ///
    /// # Errors
    /// [`crate::Status::Device`] if the device fails.
    fn is_capturing(&self, stream: Stream) -> Result<bool>;
}
