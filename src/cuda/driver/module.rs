//! The kernels on a device: from what was built in, where nvcc was there when this was built, else compiled here.

use super::Purpose;
use super::cache;
use super::compile::{Architecture, Compiler};
use super::context::{Context, check};
use super::sources::{ENCODE_KERNELS, IMAGE, TRAINING_KERNELS};
use crate::cuda::device::Kernel;
use crate::error::{Error, Result, Status};
use cudarc::driver::sys::{self, CUfunction, CUfunction_attribute, CUmodule};
use std::collections::HashMap;
use std::ffi::CString;
use std::sync::Arc;

/// A module, unloaded on drop.
struct Loaded {
    module: CUmodule,
    context: Arc<Context>,
}

impl Drop for Loaded {
    fn drop(&mut self) {
        if let Ok(_current) = self.context.enter() {
            // SAFETY: loaded once; nobody launches from it any more, since the device that holds it is gone.
            let _ = unsafe { sys::cuModuleUnload(self.module) };
        }
    }
}

/// The kernels of a purpose, found and ready: launching one looks nothing up at the driver, which may not be possible while capturing.
pub(super) struct Kernels {
    functions: HashMap<&'static str, CUfunction>,
    /// Held for its drop.
    _module: Loaded,
}

// SAFETY: handles that the driver lets any thread use, once the context is current there.
unsafe impl Send for Kernels {}
// SAFETY: as above.
unsafe impl Sync for Kernels {}

fn load_image(context: &Arc<Context>, image: &[u8]) -> Result<Loaded> {
    let mut module = std::ptr::null_mut();
    // SAFETY: a cubin or a fatbin, which say their own length, or PTX with its NUL: as this build or NVRTC made it; the
    // context is current.
    check(unsafe { sys::cuModuleLoadData(&raw mut module, image.as_ptr().cast()) }, "load the kernels")?;
    Ok(Loaded { module, context: Arc::clone(context) })
}

/// What NVRTC makes, from the disk if it was made before.
fn load_compiled(context: &Arc<Context>, purpose: Purpose) -> Result<Loaded> {
    let compiler = Compiler::open(Architecture::of(context.capability), purpose)?;
    let parts = compiler.parts();
    let name = cache::name(&parts.iter().map(String::as_str).collect::<Vec<_>>());
    let folder = cache::folder();
    if let Some(image) = folder.as_deref().and_then(|folder| cache::read(folder, &name))
        && let Ok(module) = load_image(context, &image)
    {
        return Ok(module);
    }
    let image = compiler.compile()?;
    let module = load_image(context, &image)?;
    if let Some(folder) = folder {
        // Without, the next process compiles again.
        let _ = cache::write(&folder, &name, &image);
    }
    Ok(module)
}

/// The kernels: those built in, which are all, if the driver takes them; else compiled.
fn load(context: &Arc<Context>, purpose: Purpose) -> Result<Loaded> {
    let built_in = match IMAGE {
        Some(image) => match load_image(context, image) {
            Ok(module) => return Ok(module),
            // A driver older than the toolkit of the build.
            Err(error) if error.status() == Status::Unsupported => {
                format!("the driver does not take those that were built in ({error})")
            }
            Err(error) => return Err(error),
        },
        None => "none were built in (there was no nvcc when this was built)".to_owned(),
    };
    load_compiled(context, purpose).map_err(|error| {
        Error::new(
            error.status(),
            format!(
                "no kernels for {}: {built_in}, and {error}; install libnvrtc (of the CUDA toolkit or of the package \
                 nvidia-cuda-nvrtc) where the loader finds it, or use a build made with nvcc",
                context.name
            ),
        )
    })
}

impl Kernels {
    /// Loads the kernels that `purpose` needs. The context is current.
    pub(super) fn load(context: &Arc<Context>, purpose: Purpose) -> Result<Self> {
        let module = load(context, purpose)?;
        let mut functions = HashMap::new();
        let training = if purpose == Purpose::Train { TRAINING_KERNELS } else { &[] };
        for &name in ENCODE_KERNELS.iter().chain(training) {
            let c_name = CString::new(name).map_err(|_| Error::invalid("a kernel's name has a NUL inside"))?;
            let mut function = std::ptr::null_mut();
            // SAFETY: a live module, a C string; it writes one handle.
            let found = unsafe { sys::cuModuleGetFunction(&raw mut function, module.module, c_name.as_ptr()) };
            check(found, &format!("find the kernel {name}"))?;
            let mut fixed = 0;
            // SAFETY: a live function; it writes one number.
            let asked = unsafe {
                let which = CUfunction_attribute::CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES;
                sys::cuFuncGetAttribute(&raw mut fixed, which, function)
            };
            check(asked, &format!("ask for the shared memory of {name}"))?;
            let most = context.shared_bytes.saturating_sub(fixed.max(0) as u32);
            // SAFETY: a live function. All that a block may have is allowed, so that no launch has to.
            let allowed = unsafe {
                let which = CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
                sys::cuFuncSetAttribute(function, which, most as i32)
            };
            check(allowed, &format!("allow {name} its shared memory"))?;
            functions.insert(name, function);
        }
        Ok(Kernels { functions, _module: module })
    }

    pub(super) fn get(&self, kernel: Kernel) -> Result<CUfunction> {
        self.functions
            .get(kernel.0)
            .copied()
            .ok_or_else(|| Error::new(Status::Unsupported, format!("there is no kernel {}", kernel.0)))
    }
}
