//! The CUDA kernels of selection, run on the CPU from their own source, against [`kronsae::Selector`]: the same bits from
//! the same pre-activations, whatever the schedule of warps, the block size and the shared memory.
//!
//! `cargo xtask test --only cuda-emulation` builds the kernels' libraries and runs this; `KRONSAE_CUDA_EMULATION` names the
//! library then. `KRONSAE_CUDA_CASES` is the number of random cases.

mod cases;
#[path = "../common/mod.rs"]
mod common;
mod dead;
mod emulation;
mod library;
mod select;
