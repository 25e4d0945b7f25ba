//! The kernels as they were built in: `build.rs` writes this list from the folder `cuda/`.
//!
//! - `SOURCE`: `cuda/kronsae.cu`; `HEADERS`: what it includes, by name, and the few declarations of NVIDIA's own headers that
//!   NVRTC has no file for.
//! - `ENCODE_KERNELS`, `TRAINING_KERNELS`: their names.
//! - `IMAGE`: machine code and PTX of all, where nvcc was there when this was built.

include!(concat!(env!("OUT_DIR"), "/cuda_sources.rs"));
