//! Which of NVIDIA's libraries are there. The bindings open a library at its first call and panic where there is none or it
//! lacks a function, so all that will be called is asked for here, before anything is.

use crate::error::{Error, Result, Status};
use cudarc::{cublaslt, driver, nvrtc};
use std::panic::catch_unwind;

/// The oldest driver that serves, by the CUDA version it supports: the first whose graphs are made the way they are here.
const OLDEST_DRIVER: i32 = 11_040;

/// What this crate calls of libcuda.
const DRIVER_FUNCTIONS: [&str; 46] = [
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
