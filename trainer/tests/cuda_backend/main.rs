//! The CUDA backend over emulated kernels against the CPU backend, and against itself run in other ways. The library of
//! kernels is built with g++ (`cuda/emulate/build.sh`), or is the one that `KRONSAE_CUDA_EMULATION` names.

mod commands;
mod common;
mod gradients;
mod steps;
