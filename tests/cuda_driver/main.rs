//! The CUDA driver's device without a GPU: against stand-ins for NVIDIA's libraries (`fake/`), which do what the real ones
//! promise, as late as they may. Each case is a process of its own, since a process opens a library once.
//!
//! `cargo xtask test --only cuda-driver` runs this; `FAKE_CUDA_KERNELS` names the library of emulated kernels then.

#[path = "../common/mod.rs"]
mod common;

mod groups;
mod libraries;
mod missing;
mod scenarios;
mod tap;
