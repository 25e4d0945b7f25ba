//! Devices: kernels over the CUDA driver, all libraries opened at run time, so that the same binary runs with and without
//! a GPU. Cargo feature `cuda`; `cuda-emulation` adds a device whose kernels run on the CPU, for tests.

mod device;
#[cfg(feature = "cuda-emulation")]
mod emulated;
mod pinned;

pub use device::{
    Address, Argument, Arguments, Device, DeviceMemory, Element, Graph, Kernel, Product, Release, Stream,
};
#[cfg(feature = "cuda-emulation")]
pub use emulated::{Accumulate, EMULATION, EmulatedDevice};
pub use pinned::{Arrival, Landing, PinnedMemory, Unpin};
