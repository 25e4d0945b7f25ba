//! A library of emulated kernels, opened at run time.

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::sync::{Mutex, OnceLock};

/// Who runs next in a block: warps in turn, one as long as it can, the same from the last to the first, seeds.
pub(crate) const SCHEDULES: [i32; 6] = [0, 1, 2, 3, 4, 5];

type Launch = unsafe extern "C" fn(*const c_char, *const u32, *const u32, u64, *mut *mut c_void) -> c_int;

/// The functions of `cuda/emulate/library.cpp`.
pub(crate) struct Library {
    launch: Launch,
    error: unsafe extern "C" fn() -> *const c_char,
    schedule: unsafe extern "C" fn(c_int),
    plant: unsafe extern "C" fn(c_int),
    /// The schedule is the library's, so that a launch and the choice of its schedule belong together.
    turn: Mutex<()>,
}

/// What a launch is made of.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Launched {
    pub(crate) grid: (u32, u32),
    pub(crate) block: u32,
    pub(crate) shared_bytes: u64,
    pub(crate) schedule: i32,
}

impl Library {
    /// Opens the library at `path`. It is never closed.
    pub(crate) fn open(path: &str) -> Library {
        let name = CString::new(path).expect("a path without NUL");
        // SAFETY: the library's initialisers only construct its own globals.
        let handle = unsafe { libc::dlopen(name.as_ptr(), libc::RTLD_NOW | libc::RTLD_LOCAL) };
        assert!(!handle.is_null(), "{path} cannot be opened; cargo xtask test --only cuda-emulation builds it");
        let symbol = |name: &CStr| {
            // SAFETY: the handle is open.
            let at = unsafe { libc::dlsym(handle, name.as_ptr()) };
            assert!(!at.is_null(), "{path}: no {name:?}");
            at
        };
        // SAFETY: these are the types that cuda/emulate/library.cpp declares.
        unsafe {
            Library {
                launch: std::mem::transmute::<*mut c_void, Launch>(symbol(c"kronsae_emulate_launch")),
                error: std::mem::transmute::<*mut c_void, unsafe extern "C" fn() -> *const c_char>(symbol(
                    c"kronsae_emulate_error",
                )),
                schedule: std::mem::transmute::<*mut c_void, unsafe extern "C" fn(c_int)>(symbol(
                    c"kronsae_emulate_schedule",
                )),
                plant: std::mem::transmute::<*mut c_void, unsafe extern "C" fn(c_int)>(symbol(
                    c"kronsae_emulate_plant",
                )),
                turn: Mutex::new(()),
            }
        }
    }

    /// The library under test.
    pub(crate) fn tested() -> &'static Library {
        static LIBRARY: OnceLock<Library> = OnceLock::new();
        LIBRARY.get_or_init(|| {
            let path = std::env::var("KRONSAE_CUDA_EMULATION");
            Library::open(&path.expect("KRONSAE_CUDA_EMULATION names no library: run cargo xtask test"))
        })
    }

    /// Takes a barrier out of the kernels, by its number, for the rest of this process.
    pub(crate) fn plant(&self, barrier: i32) {
        // SAFETY: the library's own function, which takes any number.
        unsafe { (self.plant)(barrier) }
    }

    /// Runs a kernel to its end.
    ///
    /// # Errors
    /// What the emulation found wrong.
    ///
    /// # Safety
    /// `args` must point to values of the kernel's parameters, in order, whose pointers reach what the kernel touches.
    pub(crate) unsafe fn launch(&self, kernel: &str, how: Launched, args: &mut [*mut c_void]) -> Result<(), String> {
        let name = CString::new(kernel).expect("a name without NUL");
        let (grid, block) = ([how.grid.0, how.grid.1, 1], [how.block, 1, 1]);
        let turn = self.turn.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        // SAFETY: the arguments are the caller's promise; grid and block have three entries; the error is a C string
        // that lives until this thread's next launch.
        unsafe {
            (self.schedule)(how.schedule);
            let failed =
                (self.launch)(name.as_ptr(), grid.as_ptr(), block.as_ptr(), how.shared_bytes, args.as_mut_ptr());
            drop(turn);
            if failed == 0 { Ok(()) } else { Err(CStr::from_ptr((self.error)()).to_string_lossy().into_owned()) }
        }
    }
}

/// The address of an argument's value. (Kernels take arguments by value; the emulation copies them from here.)
pub(crate) fn argument<T>(value: &T) -> *mut c_void {
    std::ptr::from_ref(value).cast_mut().cast()
}

/// How many random cases to try: fewer under sanitizers.
pub(crate) fn cases(usual: u32) -> u32 {
    std::env::var("KRONSAE_CUDA_CASES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(usual)
}
