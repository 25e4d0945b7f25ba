//! Devices: kernels over the CUDA driver, all libraries opened at run time, so that the same binary runs with and without
//! a GPU. Cargo feature `cuda`; `cuda-emulation` adds a device whose kernels run on the CPU, for tests.

mod communicator;
mod device;
#[cfg(feature = "cuda")]
mod driver;
#[cfg(feature = "cuda-emulation")]
mod emulated;
mod encoder;
mod event;
#[cfg(feature = "cuda-emulation")]
mod host_memory;
mod pinned;
mod sae;
mod selection;

pub use communicator::{Communicator, CommunicatorId, Gathered};
pub use device::{
    Address, Argument, Arguments, Device, DeviceMemory, Element, Graph, Kernel, Product, Release, Stream,
};
#[cfg(feature = "cuda")]
pub use driver::CudaDevice;
#[cfg(feature = "cuda-emulation")]
pub use emulated::{Accumulate, EMULATION, EmulatedDevice};
pub use encoder::DeviceEncoder;
pub use event::DeviceEvent;
pub use pinned::{Arrival, Landing, PinnedMemory, Unpin};
pub use sae::{Compute, DeviceActivations, DeviceLatents, DeviceSae, DeviceSaeOptions, MOST_LATENTS, Shape};
pub use selection::{Selecting, selection_shared_bytes};

use crate::error::Result;
use std::sync::Arc;

/// Opens CUDA device `ordinal` of those that the driver shows to this process, or shares it with those that have it open.
/// With the feature `cuda-emulation`, and where `KRONSAE_CUDA_EMULATION` names a library, that one instead.
///
/// # Errors
/// [`crate::Status::Unsupported`] if something is missing, and the message names it: see [`CudaDevice::open`].
pub fn open(ordinal: u32) -> Result<Arc<dyn Device>> {
    #[cfg(feature = "cuda-emulation")]
    // SAFETY: whoever builds with this feature and sets the variable is a tester, who names what `build.sh` made.
    if let Some(device) = unsafe { EmulatedDevice::from_environment(Accumulate::F32) }? {
        return Ok(Arc::new(device));
    }
    open_driver(ordinal)
}

#[cfg(feature = "cuda")]
fn open_driver(ordinal: u32) -> Result<Arc<dyn Device>> {
    Ok(CudaDevice::shared(ordinal)?)
}

#[cfg(not(feature = "cuda"))]
fn open_driver(_ordinal: u32) -> Result<Arc<dyn Device>> {
    let message = format!("this build has no CUDA, and {EMULATION} does not name a library of emulated kernels");
    Err(crate::Error::new(crate::Status::Unsupported, message))
}
