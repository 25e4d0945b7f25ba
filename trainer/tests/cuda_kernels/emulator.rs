//! The kernels of `cuda/`, emulated on the CPU: a shared library that runs one by name. Device memory is memory of this
//! process, allocated to the byte, so that AddressSanitizer sees what is read or written past its end.

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::any::Any;
use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::marker::PhantomData;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

type LaunchFn = unsafe extern "C" fn(*const c_char, *const u32, *const u32, u64, *mut *mut c_void) -> c_int;
type ErrorFn = unsafe extern "C" fn() -> *const c_char;
type NumberFn = unsafe extern "C" fn(c_int);

struct Library {
    launch: LaunchFn,
    error: ErrorFn,
    schedule: NumberFn,
    plant: NumberFn,
}

/// How kernels run: none of it may show in a result.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Run {
    /// Blocks.
    pub(crate) grid: u32,
    /// Threads of a block.
    pub(crate) block: u32,
    /// 0 lockstep, 1 greedy, 2 reverse, 3 + n random.
    pub(crate) schedule: i32,
}

/// Runs kernels; one test at a time, for the schedule is the library's.
pub(crate) struct Emulator {
    library: &'static Library,
    _turn: MutexGuard<'static, ()>,
}

impl Emulator {
    pub(crate) fn new() -> Self {
        static TURN: Mutex<()> = Mutex::new(());
        static LIBRARY: OnceLock<Library> = OnceLock::new();
        let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        Emulator { library: LIBRARY.get_or_init(|| open(&library_path())), _turn: turn }
    }

    /// Takes a barrier out of the kernels, by its number; 0 puts all back.
    pub(crate) fn plant(&self, barrier: i32) {
        // SAFETY: the library's own function, which takes any number.
        unsafe { (self.library.plant)(barrier) }
    }

    pub(crate) fn launch(&self, kernel: &str, run: Run, shared: usize, mut arguments: Arguments) {
        let name = CString::new(kernel).unwrap();
        let mut pointers: Vec<*mut c_void> =
            arguments.0.iter_mut().map(|value| std::ptr::from_mut(&mut **value).cast::<c_void>()).collect();
        let (grid, block) = ([run.grid, 1, 1], [run.block, 1, 1]);
        // SAFETY: the library's own functions, with a name, extents and pointers that live until they return; the
        // values are what the kernel's parameters are, as far as a test can promise that.
        let failed = unsafe {
            (self.library.schedule)(run.schedule);
            (self.library.launch)(name.as_ptr(), grid.as_ptr(), block.as_ptr(), shared as u64, pointers.as_mut_ptr())
        };
        if failed != 0 {
            // SAFETY: a sentence that stays until the next launch.
            let error = unsafe { CStr::from_ptr((self.library.error)()) };
            panic!("{kernel}, {run:?}: {}", error.to_string_lossy());
        }
    }
}

/// What a kernel is launched with, in its order.
pub(crate) struct Arguments(pub(crate) Vec<Box<dyn Any>>);

/// Arguments of a launch: numbers, `#[repr(C)]` structs, and addresses as u64.
macro_rules! arguments {
    ($($value:expr),* $(,)?) => { $crate::emulator::Arguments(vec![$(Box::new($value) as Box<dyn std::any::Any>),*]) };
}
pub(crate) use arguments;

/// The library that `KRONSAE_CUDA_EMULATION` names.
fn library_path() -> PathBuf {
    std::env::var_os("KRONSAE_CUDA_EMULATION")
        .expect(
            "KRONSAE_CUDA_EMULATION names no library of emulated kernels: run cargo xtask test --only cuda-emulation",
        )
        .into()
}

fn open(path: &Path) -> Library {
    let name = CString::new(path.to_str().expect("a path in UTF-8")).unwrap();
    // SAFETY: dlopen, dlsym and dlerror with strings that live through the calls; the symbols are functions of these
    // types, as cuda/emulate/library.cpp defines them. The library is never closed.
    unsafe {
        let handle = libc::dlopen(name.as_ptr(), libc::RTLD_NOW | libc::RTLD_LOCAL);
        assert!(!handle.is_null(), "{}: {}", path.display(), CStr::from_ptr(libc::dlerror()).to_string_lossy());
        let symbol = |name: &CStr| {
            let found = libc::dlsym(handle, name.as_ptr());
            assert!(!found.is_null(), "{} has no {name:?}", path.display());
            found
        };
        Library {
            launch: std::mem::transmute::<*mut c_void, LaunchFn>(symbol(c"kronsae_emulate_launch")),
            error: std::mem::transmute::<*mut c_void, ErrorFn>(symbol(c"kronsae_emulate_error")),
            schedule: std::mem::transmute::<*mut c_void, NumberFn>(symbol(c"kronsae_emulate_schedule")),
            plant: std::mem::transmute::<*mut c_void, NumberFn>(symbol(c"kronsae_emulate_plant")),
        }
    }
}

/// Memory that kernels read and write, at a multiple of 64 bytes and not a byte longer than it is.
pub(crate) struct Buffer<T> {
    pointer: *mut u8,
    len: usize,
    of: PhantomData<T>,
}

impl<T: Copy + 'static> Buffer<T> {
    /// `len` elements of which every byte is 0.
    pub(crate) fn zeroed(len: usize) -> Self {
        // SAFETY: the size is not 0.
        let pointer = unsafe { alloc_zeroed(Self::layout(len)) };
        assert!(!pointer.is_null());
        Buffer { pointer, len, of: PhantomData }
    }

    /// `len` elements of garbage: NaNs and huge integers.
    pub(crate) fn garbage(len: usize) -> Self {
        let buffer = Self::zeroed(len);
        // SAFETY: the allocation is as long.
        unsafe { buffer.pointer.write_bytes(0xFF, len * size_of::<T>()) };
        buffer
    }

    /// A copy of `from`.
    pub(crate) fn of(from: &[T]) -> Self {
        let buffer = Self::zeroed(from.len());
        // SAFETY: both are `from.len()` elements long, and apart.
        unsafe { buffer.pointer.cast::<T>().copy_from_nonoverlapping(from.as_ptr(), from.len()) };
        buffer
    }

    fn layout(len: usize) -> Layout {
        Layout::from_size_align((len * size_of::<T>()).max(1), 64).unwrap()
    }

    /// What a kernel is given.
    pub(crate) fn address(&self) -> u64 {
        self.pointer as u64
    }

    /// The elements, when no kernel runs.
    pub(crate) fn get(&self) -> &[T] {
        // SAFETY: `len` elements, initialised when they were allocated; kernels run only inside `launch`, which this
        // borrow cannot span, for it copies out or ends before.
        unsafe { std::slice::from_raw_parts(self.pointer.cast::<T>(), self.len) }
    }
}

impl<T> Drop for Buffer<T> {
    fn drop(&mut self) {
        let layout = Layout::from_size_align((self.len * size_of::<T>()).max(1), 64).unwrap();
        // SAFETY: allocated with this layout.
        unsafe { dealloc(self.pointer, layout) }
    }
}

/// An element type of the kernels.
pub(crate) trait Element: Copy + 'static {
    /// In kernels' names.
    const NAME: &'static str;
    /// Rounded to nearest even.
    fn round(value: f32) -> Self;
    /// Exactly.
    fn widen(self) -> f32;
}

impl Element for f32 {
    const NAME: &'static str = "f32";
    fn round(value: f32) -> Self {
        value
    }
    fn widen(self) -> f32 {
        self
    }
}

impl Element for half::bf16 {
    const NAME: &'static str = "bf16";
    fn round(value: f32) -> Self {
        half::bf16::from_f32(value)
    }
    fn widen(self) -> f32 {
        self.to_f32()
    }
}
