//! Which of NVIDIA's libraries are there. The bindings open a library at its first call and panic where there is none or it
//! lacks a function, so all that will be called is asked for here, before anything is.

use crate::cuda::communicator::CommunicatorId;
use crate::error::{Error, Result, Status};
use cudarc::driver::sys::CUstream;
use cudarc::{cublaslt, driver, nvrtc};
use libloading::Library;
use std::ffi::{c_char, c_int, c_void};
use std::panic::catch_unwind;
use std::sync::OnceLock;

/// The oldest driver that serves, by the CUDA version it supports: the first whose graphs are made the way they are here.
const OLDEST_DRIVER: i32 = 11_040;

/// What this crate calls of libcuda.
const DRIVER_FUNCTIONS: [&str; 47] = [
    "cuCtxPopCurrent_v2",
    "cuCtxPushCurrent_v2",
    "cuDeviceGet",
    "cuDeviceGetAttribute",
    "cuDeviceGetCount",
    "cuDeviceGetName",
    "cuDevicePrimaryCtxRelease_v2",
    "cuDevicePrimaryCtxRetain",
    "cuDriverGetVersion",
    "cuEventCreate",
    "cuEventDestroy_v2",
    "cuEventQuery",
    "cuEventRecord",
    "cuEventSynchronize",
    "cuFuncGetAttribute",
    "cuFuncSetAttribute",
    "cuGetErrorName",
    "cuGetErrorString",
    "cuGraphDestroy",
    "cuGraphExecDestroy",
    "cuGraphInstantiateWithFlags",
    "cuGraphLaunch",
    "cuInit",
    "cuLaunchKernel",
    "cuMemAlloc_v2",
    "cuMemFreeHost",
    "cuMemFree_v2",
    "cuMemGetInfo_v2",
    "cuMemHostAlloc",
    "cuMemcpyDtoHAsync_v2",
    "cuMemcpyHtoDAsync_v2",
    "cuMemsetD8Async",
    "cuModuleGetFunction",
    "cuModuleLoadData",
    "cuModuleUnload",
    "cuOccupancyMaxActiveBlocksPerMultiprocessor",
    "cuPointerGetAttribute",
    "cuStreamBeginCapture_v2",
    "cuStreamCreate",
    "cuStreamDestroy_v2",
    "cuStreamEndCapture",
    "cuStreamGetCtx",
    "cuStreamIsCapturing",
    "cuStreamQuery",
    "cuStreamSynchronize",
    "cuStreamWaitEvent",
    "cuThreadExchangeStreamCaptureMode",
];

/// What this crate calls of libcublasLt.
const CUBLASLT_FUNCTIONS: [&str; 12] = [
    "cublasLtCreate",
    "cublasLtDestroy",
    "cublasLtMatmul",
    "cublasLtMatmulAlgoGetHeuristic",
    "cublasLtMatmulDescCreate",
    "cublasLtMatmulDescDestroy",
    "cublasLtMatmulDescSetAttribute",
    "cublasLtMatmulPreferenceCreate",
    "cublasLtMatmulPreferenceDestroy",
    "cublasLtMatmulPreferenceSetAttribute",
    "cublasLtMatrixLayoutCreate",
    "cublasLtMatrixLayoutDestroy",
];

/// What this crate calls of libnvrtc.
const NVRTC_FUNCTIONS: [&str; 13] = [
    "nvrtcCompileProgram",
    "nvrtcCreateProgram",
    "nvrtcDestroyProgram",
    "nvrtcGetCUBIN",
    "nvrtcGetCUBINSize",
    "nvrtcGetErrorString",
    "nvrtcGetNumSupportedArchs",
    "nvrtcGetProgramLog",
    "nvrtcGetProgramLogSize",
    "nvrtcGetSupportedArchs",
    "nvrtcVersion",
    "nvrtcGetPTX",
    "nvrtcGetPTXSize",
];

fn unsupported(message: impl Into<String>) -> Error {
    Error::new(Status::Unsupported, message)
}

/// Whether a library can be opened. The bindings may panic on the way.
fn is_there(present: unsafe fn() -> bool) -> bool {
    // SAFETY: opening NVIDIA's library, and closing it again, is what the function is for.
    catch_unwind(|| unsafe { present() }).unwrap_or(false)
}

/// The first function that a library lacks. The library's look-up is a macro, since its type has no name here.
macro_rules! first_missing {
    ($library:expr, $functions:expr) => {
        // SAFETY: the library was found to open; a symbol is looked up, not called.
        unsafe {
            let library = $library;
            $functions.iter().find(|name| library.get::<unsafe extern "C" fn()>(name.as_bytes()).is_err())
        }
    };
}

/// A version as NVIDIA writes it in one number: 13000 is 13.0.
fn version(number: i32) -> String {
    format!("{}.{}", number / 1000, number % 1000 / 10)
}

/// Asks for a driver that serves.
///
/// # Errors
/// [`Status::Unsupported`], saying what is missing.
pub(super) fn driver() -> Result<()> {
    if !is_there(driver::sys::is_culib_present) {
        return Err(unsupported(
            "there is no NVIDIA driver: libcuda.so.1 cannot be opened; install the driver, or use the CPU",
        ));
    }
    let too_old = |found: &str| {
        unsupported(format!(
            "the NVIDIA driver is too old: {found}; update it to one for CUDA {} or newer",
            version(OLDEST_DRIVER)
        ))
    };
    if let Some(missing) =
        first_missing!(driver::sys::culib(), ["cuDriverGetVersion", "cuGetErrorName", "cuGetErrorString"])
    {
        return Err(too_old(&format!("libcuda has no {missing}")));
    }
    let mut found = 0;
    // SAFETY: the function exists, as just checked, and writes one number; it may be called before cuInit.
    let result = unsafe { driver::sys::cuDriverGetVersion(&raw mut found) };
    super::context::check(result, "ask the driver for its version")?;
    if found < OLDEST_DRIVER {
        return Err(too_old(&format!("it supports CUDA {}", version(found))));
    }
    match first_missing!(driver::sys::culib(), DRIVER_FUNCTIONS) {
        Some(missing) => Err(too_old(&format!("it supports CUDA {}, and libcuda has no {missing}", version(found)))),
        None => Ok(()),
    }
}

/// Asks for cuBLASLt.
///
/// # Errors
/// [`Status::Unsupported`], saying what is missing.
pub(super) fn cublaslt() -> Result<()> {
    let advice = "install cuBLAS (libcublasLt.so.13, .12 or .11, of the CUDA toolkit or of the package nvidia-cublas) \
                  where the loader finds it, by LD_LIBRARY_PATH say";
    if !is_there(cublaslt::sys::is_culib_present) {
        return Err(unsupported(format!("libcublasLt cannot be opened; {advice}")));
    }
    match first_missing!(cublaslt::sys::culib(), CUBLASLT_FUNCTIONS) {
        Some(missing) => Err(unsupported(format!("libcublasLt has no {missing}: it is too old; {advice}"))),
        None => Ok(()),
    }
}

/// Asks for the run-time compiler; its version.
///
/// # Errors
/// [`Status::Unsupported`], saying what is missing.
pub(super) fn nvrtc() -> Result<(i32, i32)> {
    if !is_there(nvrtc::sys::is_culib_present) {
        return Err(unsupported("libnvrtc cannot be opened"));
    }
    if let Some(missing) = first_missing!(nvrtc::sys::culib(), NVRTC_FUNCTIONS) {
        return Err(unsupported(format!("libnvrtc has no {missing}: it is too old")));
    }
    let (mut major, mut minor) = (0, 0);
    // SAFETY: the function exists, as just checked, and writes two numbers.
    let result = unsafe { nvrtc::sys::nvrtcVersion(&raw mut major, &raw mut minor) };
    match result {
        nvrtc::sys::nvrtcResult::NVRTC_SUCCESS => Ok((major, minor)),
        failure => Err(unsupported(format!("libnvrtc does not tell its version: {failure:?}"))),
    }
}

/// `ncclUniqueId`.
#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct UniqueId(pub(super) CommunicatorId);

/// What this crate calls of libnccl, found once. Results are `ncclResult_t`, groups are handles. The bindings do not look
/// for `libnccl.so.2`, which is the only name that NCCL has where it is installed to be used, not to be compiled against.
pub(super) struct Nccl {
    pub(super) get_unique_id: unsafe extern "C" fn(*mut c_void) -> c_int,
    pub(super) comm_init_rank: unsafe extern "C" fn(*mut *mut c_void, c_int, UniqueId, c_int) -> c_int,
    pub(super) comm_destroy: unsafe extern "C" fn(*mut c_void) -> c_int,
    pub(super) comm_abort: unsafe extern "C" fn(*mut c_void) -> c_int,
    pub(super) comm_get_async_error: unsafe extern "C" fn(*mut c_void, *mut c_int) -> c_int,
    pub(super) get_error_string: unsafe extern "C" fn(c_int) -> *const c_char,
    pub(super) get_last_error: unsafe extern "C" fn(*mut c_void) -> *const c_char,
    pub(super) group_start: unsafe extern "C" fn() -> c_int,
    pub(super) group_end: unsafe extern "C" fn() -> c_int,
    pub(super) all_gather:
        unsafe extern "C" fn(*const c_void, *mut c_void, usize, c_int, *mut c_void, CUstream) -> c_int,
    pub(super) broadcast:
        unsafe extern "C" fn(*const c_void, *mut c_void, usize, c_int, c_int, *mut c_void, CUstream) -> c_int,
}

/// Opens NCCL, once, for good.
///
/// # Errors
/// [`Status::Unsupported`], saying what is missing.
pub(super) fn nccl() -> Result<&'static Nccl> {
    static NCCL: OnceLock<std::result::Result<Nccl, String>> = OnceLock::new();
    NCCL.get_or_init(open_nccl).as_ref().map_err(|message| unsupported(message.clone()))
}

fn open_nccl() -> std::result::Result<Nccl, String> {
    let advice = "install NCCL 2.13 or newer (Debian: libnccl2; or the Python package nvidia-nccl-cu13 or -cu12) where the \
                  loader finds it, by LD_LIBRARY_PATH say";
    // SAFETY: opening NVIDIA's library is what the name stands for.
    let opened = ["libnccl.so.2", "libnccl.so"].iter().find_map(|name| unsafe { Library::new(*name) }.ok());
    let library = opened.ok_or_else(|| format!("libnccl.so.2 cannot be opened; {advice}"))?;
    macro_rules! function {
        ($name:literal) => {
            // SAFETY: the function has had this type since it is there; the library stays loaded, being leaked below.
            *unsafe { library.get($name) }.map_err(|_| {
                let name = String::from_utf8_lossy($name);
                format!("libnccl has no {}: it is too old; {advice}", name.trim_end_matches('\0'))
            })?
        };
    }
    let nccl = Nccl {
        get_unique_id: function!(b"ncclGetUniqueId\0"),
        comm_init_rank: function!(b"ncclCommInitRank\0"),
        comm_destroy: function!(b"ncclCommDestroy\0"),
        comm_abort: function!(b"ncclCommAbort\0"),
        comm_get_async_error: function!(b"ncclCommGetAsyncError\0"),
        get_error_string: function!(b"ncclGetErrorString\0"),
        get_last_error: function!(b"ncclGetLastError\0"),
        group_start: function!(b"ncclGroupStart\0"),
        group_end: function!(b"ncclGroupEnd\0"),
        all_gather: function!(b"ncclAllGather\0"),
        broadcast: function!(b"ncclBroadcast\0"),
    };
    std::mem::forget(library);
    Ok(nccl)
}
