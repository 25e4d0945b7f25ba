//! The training kernels of `cuda/`, emulated on the CPU, against the CPU backend, against f64, and against themselves run
//! in other ways. `cargo xtask test --only cuda-emulation` builds the library that `KRONSAE_CUDA_EMULATION` then names,
//! and runs this.

mod cases;
mod dead;
mod device;
mod emulator;
mod races;
mod ranks;
mod reference;
mod selection;
mod sorting;
mod step;
mod steps;
mod structs;
