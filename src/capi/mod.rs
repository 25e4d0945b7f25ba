//! The C ABI, and nothing else: no other module knows C types, and this one computes nothing.
//!
//! Every function here is declared in `include/kronsae.h`, which `cargo xtask header` makes from these files; the doc
//! comments are written for readers of that header. What holds for all of them:
//!
//! - Nothing a caller passes is trusted further than it can be checked: null and misaligned pointers, sizes that
//!   overflow, enum numbers out of range, structs of another version and buffers that overlap are
//!   `KRONSAE_STATUS_INVALID_ARGUMENT`, before anything is written.
//! - No panic leaves: `error::boundary` turns it into `KRONSAE_STATUS_INTERNAL`.
//! - The entry points are `unsafe` for one reason throughout: pointers that pass those checks must point to what the
//!   header says they point to.

#![expect(non_camel_case_types, reason = "types carry the names they have in C")]

mod buffers;
pub mod cuda;
pub mod decode;
pub mod encode;
pub mod error;
mod exclusive;
mod handle;
pub mod log;
pub mod monitor;
pub mod sae;
pub mod status;
mod strings;
mod structs;
pub mod version;
pub mod views;

#[cfg(test)]
mod tests;
