//! A device whose kernels run on the CPU, for tests: the same kernel sources, compiled by `cuda/emulate/build.sh`, with
//! device addresses that are addresses of this process. It is slow, and it finds faults that a GPU answers with garbage.

use super::device::{Address, Arguments, Device, DeviceMemory, Element, Graph, Kernel, Product, Release, Stream};
use super::event::DeviceEvent;
use super::host_memory::{HostMemory, OWN_STREAM, Recorded, pointer};
use super::pinned::{Arrival, Landing, PinnedMemory, Unpin};
use crate::error::{Error, Result, Status};
use libloading::Library;
use std::ffi::{CStr, CString, OsStr, c_char, c_int, c_void};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Names the library of emulated kernels for [`EmulatedDevice::from_environment`].
pub const EMULATION: &str = "KRONSAE_CUDA_EMULATION";

/// What a product claims as workspace, so that callers are held to providing it.
const WORKSPACE: usize = 512;
/// The most dynamic shared memory of a block, as of an H200.
const SHARED_BYTES: u32 = 227 << 10;
/// Blocks "resident" at once: few, so that each takes several pieces of work, and enough that what needs many is tried.
const RESIDENT: u32 = 8;

type Launch = unsafe extern "C" fn(*const c_char, *const u32, *const u32, u64, *mut *mut c_void) -> c_int;
type Schedule = unsafe extern "C" fn(c_int);
type LastError = unsafe extern "C" fn() -> *const c_char;

/// How products add up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Accumulate {
    /// In f32, as a GPU does, in an order of this device's own.
    #[default]
    F32,
    /// In f64, rounded once.
    F64,
}

/// A device of emulated kernels. Its streams are all the same: everything is done when the call returns, but for copies back
/// to the host and events, which [`EmulatedDevice::hold`] may hold up.
pub struct EmulatedDevice {
    launch: Launch,
    schedule: Schedule,
    last_error: LastError,
    accumulate: Accumulate,
    memory: Arc<HostMemory>,
    fails: AtomicBool,
    captures: AtomicBool,
}

/// A copy that was over when it began.
struct Landed;

impl Landing for Landed {
    fn wait(&self) -> Result<()> {
        Ok(())
    }

    fn as_any(&self) -> &dyn std::any::Any {
        self
    }
}

impl EmulatedDevice {
    /// Loads the library of emulated kernels at `path`. It is never unloaded.
    ///
    /// # Errors
    /// [`Status::Unsupported`] if it cannot be loaded, or is not such a library.
    ///
    /// # Safety
    /// Loading a library runs its code: `path` is what `cuda/emulate/build.sh` made.
    pub unsafe fn open(path: impl AsRef<OsStr>, accumulate: Accumulate) -> Result<Self> {
        let path = path.as_ref();
        let failed = |error: libloading::Error| {
            Error::new(
                Status::Unsupported,
                format!("{}: not a library of emulated kernels: {error}", path.to_string_lossy()),
            )
        };
        // SAFETY: the caller's promise.
        let library = unsafe { Library::new(path) }.map_err(failed)?;
        // SAFETY: the library's functions have these types; it stays loaded, being leaked below.
        unsafe {
            let launch = *library.get::<Launch>(b"kronsae_emulate_launch\0").map_err(failed)?;
            let schedule = *library.get::<Schedule>(b"kronsae_emulate_schedule\0").map_err(failed)?;
            let last_error = *library.get::<LastError>(b"kronsae_emulate_error\0").map_err(failed)?;
            std::mem::forget(library);
            Ok(EmulatedDevice {
                launch,
                schedule,
                last_error,
                accumulate,
                memory: Arc::default(),
                fails: AtomicBool::new(false),
                captures: AtomicBool::new(false),
            })
        }
    }

    /// The library that the environment variable `KRONSAE_CUDA_EMULATION` names; None where it is not set.
    ///
    /// # Errors
    /// As [`EmulatedDevice::open`].
    ///
    /// # Safety
    /// As [`EmulatedDevice::open`].
    pub unsafe fn from_environment(accumulate: Accumulate) -> Result<Option<Self>> {
        match std::env::var_os(EMULATION) {
            // SAFETY: the caller's promise.
            Some(path) => unsafe { Self::open(path, accumulate) }.map(Some),
            None => Ok(None),
        }
    }

    /// Which lanes and warps run first, of every device of this library: 0 in lockstep, 1 as far as each can, 2 the same
    /// from the last to the first, 3 + n at random from seed n. Right kernels give the same under each.
    pub fn set_schedule(&self, schedule: i32) {
        // SAFETY: it takes any number.
        unsafe { (self.schedule)(schedule) }
    }

    /// From now on, copies back to the host and events wait, on all streams but the device's own, until this is called with
    /// false: as on a device that is behind.
    pub fn hold(&self, holds: bool) {
        self.memory.hold(holds);
    }

    /// Lets the kernels that are launched from now on fail, or not.
    pub fn set_failing(&self, fails: bool) {
        self.fails.store(fails, Ordering::Release);
    }

    /// Lets all streams seem to be captured, or not.
    pub fn set_capturing(&self, captures: bool) {
        self.captures.store(captures, Ordering::Release);
    }

    /// Allocations that were freed while a copy that [`EmulatedDevice::hold`] holds up still used them: 0, or a bug.
    #[must_use]
    pub fn freed_in_use(&self) -> usize {
        self.memory.freed_in_use()
    }

    /// Bytes of device and pinned memory in use.
    #[must_use]
    pub fn allocated(&self) -> usize {
        self.memory.in_use()
    }

    fn dot(&self, x: &[f32], w: &[f32]) -> f32 {
        match self.accumulate {
            Accumulate::F32 => {
                let mut sums = [0.0_f32; 16];
                for (x, w) in x.chunks(16).zip(w.chunks(16)) {
                    for ((sum, x), w) in sums.iter_mut().zip(x).zip(w) {
                        *sum += x * w;
                    }
                }
                sums.iter().sum()
            }
            #[expect(clippy::cast_possible_truncation, reason = "rounded once: that is what it is for")]
            Accumulate::F64 => x.iter().zip(w).map(|(x, w)| f64::from(*x) * f64::from(*w)).sum::<f64>() as f32,
        }
    }
}

/// Reads a row, widened.
///
/// # Safety
/// `len` elements at `address` are readable.
unsafe fn read_row(element: Element, address: Address, out: &mut [f32]) {
    let bytes = out.len() * element.size();
    // SAFETY: the caller's promise.
    let row = unsafe { std::slice::from_raw_parts(pointer(address), bytes) };
    let dtype = match element {
        Element::F32 => crate::Dtype::F32,
        Element::Bf16 => crate::Dtype::Bf16,
    };
    crate::dtype::widen(dtype, row, out);
}

impl Device for EmulatedDevice {
    fn name(&self) -> String {
        "kernels emulated on the CPU".to_owned()
    }

    fn stream(&self) -> Stream {
        Stream(std::ptr::without_provenance_mut(OWN_STREAM))
    }

    fn check_stream(&self, _stream: Stream) -> Result<()> {
        Ok(())
    }

    fn shared_bytes(&self) -> u32 {
        SHARED_BYTES
    }

    fn resident_blocks(&self, _kernel: Kernel, _block: u32, _shared_bytes: u32) -> Result<u32> {
        Ok(RESIDENT)
    }

    fn allocate(&self, bytes: usize, what: &str) -> Result<DeviceMemory> {
        let start = self.memory.allocate(bytes, what)?;
        let owner: Arc<dyn Release> = Arc::<HostMemory>::clone(&self.memory);
        // SAFETY: a new allocation of the owner's.
        Ok(unsafe { DeviceMemory::from_raw(start.as_ptr().expose_provenance() as Address, bytes, owner) })
    }

    fn upload(&self, to: &DeviceMemory, offset: usize, from: &[u8]) -> Result<()> {
        to.check(offset, from.len())?;
        // SAFETY: inside the allocation; `from` is a borrow of other memory.
        unsafe { std::ptr::copy_nonoverlapping(from.as_ptr(), pointer(to.at(offset)), from.len()) };
        Ok(())
    }

    fn download(&self, from: &DeviceMemory, offset: usize, to: &mut [u8]) -> Result<()> {
        from.check(offset, to.len())?;
        // SAFETY: inside the allocation; `to` is a borrow of other memory.
        unsafe { std::ptr::copy_nonoverlapping(pointer(from.at(offset)), to.as_mut_ptr(), to.len()) };
        Ok(())
    }

    fn fill(&self, to: &DeviceMemory, byte: u8) -> Result<()> {
        // SAFETY: the whole allocation.
        unsafe { pointer(to.address()).write_bytes(byte, to.bytes()) };
        Ok(())
    }

    fn pinned(&self, bytes: usize, what: &str) -> Result<PinnedMemory> {
        let start = self.memory.allocate(bytes, what)?;
        let owner: Arc<dyn Unpin> = Arc::<HostMemory>::clone(&self.memory);
        // SAFETY: a new allocation of the owner's, zeroed.
        Ok(unsafe { PinnedMemory::from_raw(start, bytes, owner) })
    }

    fn copy_ahead(&self, to: &DeviceMemory, offset: usize, from: PinnedMemory, bytes: usize) -> Result<Arrival> {
        let Some(part) = from.get(..bytes) else {
            return Err(Error::invalid(format!("{bytes} bytes of pinned memory of {}", from.len())));
        };
        self.upload(to, offset, part)?;
        Ok(Arrival::new(from, Box::new(Landed)))
    }

    unsafe fn copy_beside(
        &self,
        to: &DeviceMemory,
        offset: usize,
        from: PinnedMemory,
        bytes: usize,
    ) -> Result<Arrival> {
        self.copy_ahead(to, offset, from, bytes)
    }

    fn admit(&self, _arrival: &Arrival) -> Result<()> {
        Ok(())
    }

    unsafe fn launch_on(
        &self,
        _stream: Stream,
        kernel: Kernel,
        [columns, rows]: [u32; 2],
        block: u32,
        shared_bytes: u32,
        arguments: &mut Arguments,
    ) -> Result<()> {
        if self.fails.load(Ordering::Acquire) {
            return Err(Error::new(Status::Internal, format!("{} fails, as a test asked for", kernel.0)));
        }
        let name = CString::new(kernel.0).map_err(|_| Error::invalid("a kernel's name has a NUL inside"))?;
        let (grid, block) = ([columns, rows, 1], [block, 1, 1]);
        let pointers = arguments.pointers().as_mut_ptr();
        // SAFETY: the caller's promise about the kernel and its arguments; the arrays have three numbers each.
        let failed =
            unsafe { (self.launch)(name.as_ptr(), grid.as_ptr(), block.as_ptr(), u64::from(shared_bytes), pointers) };
        if failed == 0 {
            return Ok(());
        }
        // SAFETY: it returns a C string that lives until this thread's next launch.
        let text = unsafe { CStr::from_ptr((self.last_error)()) }.to_string_lossy().into_owned();
        Err(Error::new(Status::Device, format!("emulated kernel: {text}")))
    }

    fn product_workspace(&self) -> usize {
        WORKSPACE
    }

    fn prepare_product(&self, _product: &Product) -> Result<()> {
        Ok(())
    }

    unsafe fn product_on(&self, _stream: Stream, product: &Product) -> Result<()> {
        product.check()?;
        let Product { tokens, rows, inner, input, output, .. } = *product;
        let at = |start: Address, row: u32, stride: u32, element: Element| {
            start + u64::from(row) * u64::from(stride) * element.size() as u64
        };
        let mut weights = crate::memory::try_vec(rows as usize * inner as usize, 0.0_f32, "an emulated product")?;
        let mut x = vec![0.0_f32; inner as usize];
        let mut bias = vec![0.0_f32; rows as usize];
        // SAFETY: the caller's promise: all rows of x, w and the bias are readable, those of y writable and nobody else's;
        // addresses are of this process.
        unsafe {
            if product.workspace != 0 {
                // What it was promised, it uses: whoever gave too little is found out.
                pointer(product.workspace).write_bytes(0xA5, WORKSPACE);
            }
            for (row, to) in weights.chunks_exact_mut(inner as usize).enumerate() {
                read_row(input, at(product.w, row as u32, product.w_stride, input), to);
            }
            if product.bias != 0 {
                read_row(output, product.bias, &mut bias);
            }
            for token in 0..tokens {
                read_row(input, at(product.x, token, product.x_stride, input), &mut x);
                let y = pointer(at(product.y, token, product.y_stride, output));
                for (row, (w, bias)) in weights.chunks_exact(inner as usize).zip(&bias).enumerate() {
                    let sum = self.dot(&x, w) + bias;
                    match output {
                        Element::F32 => y.cast::<f32>().add(row).write(sum),
                        Element::Bf16 => y.cast::<u16>().add(row).write(half::bf16::from_f32(sum).to_bits()),
                    }
                }
            }
        }
        Ok(())
    }

    fn capture(&self, _step: &mut dyn FnMut() -> Result<()>) -> Result<Option<Graph>> {
        Ok(None)
    }

    unsafe fn replay(&self, _graph: &Graph) -> Result<()> {
        Err(Error::invalid("this graph was captured by another device; emulated devices capture none"))
    }

    fn synchronize(&self) -> Result<()> {
        Ok(())
    }

    fn event(&self) -> Result<Box<dyn DeviceEvent>> {
        Ok(Box::new(Recorded::new(&self.memory)))
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
        // SAFETY: inside both allocations, and nobody else's meanwhile, by the caller's promise.
        unsafe { self.memory.copy_back(stream, from.at(offset), to.start(), bytes) };
        Ok(())
    }

    fn is_capturing(&self, _stream: Stream) -> Result<bool> {
        Ok(self.captures.load(Ordering::Acquire))
    }
}
