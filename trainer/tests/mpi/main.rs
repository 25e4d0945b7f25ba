//! Training on several ranks, over MPI and emulated kernels, against training on one: `cargo xtask test --only mpi`. Needs
//! Open MPI's mpirun.

#[path = "../cuda_backend/common.rs"]
#[expect(dead_code, reason = "shared with the tests of one rank")]
mod common;

mod command;
mod faults;
mod launch;
mod steps;
