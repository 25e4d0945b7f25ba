//! The trainer of kronsae: recorded activations in, one model file out. The `kronsae` command is a thin shell over this.

pub mod backend;
pub mod commands;
pub mod data;
pub mod eval;
pub mod random;
pub mod stream;
