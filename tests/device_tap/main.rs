//! Taps of activations in a device's memory, over kernels that are emulated on the CPU and a device that can be late, fail, and
//! seem to capture. Where products are exact, everything a monitor says is what it says of a tap of the host's.
//! `cargo xtask test --only cuda-encode` runs it.

#[path = "../common/mod.rs"]
mod common;

mod accounts;
mod c_interface;
mod faults;
mod lives;
mod same;
mod support;
