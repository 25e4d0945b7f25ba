//! The training kernels of `cuda/`, emulated on the CPU, against the CPU backend, against f64, and against themselves run in
//! other ways. The library is built with g++ (`cuda/emulate/build.sh`), or is the one that `KRONSAE_CUDA_EMULATION` names.

mod cases;
mod emulator;
mod reference;
mod sorting;
mod step;
mod steps;
mod structs;
