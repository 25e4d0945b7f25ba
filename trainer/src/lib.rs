//! The trainer of kronsae: recorded activations in, one model file out. The `kronsae` command is a thin shell over this.

pub mod commands;
pub mod data;
pub mod eval;
pub mod examples;
pub mod stream;
pub mod terminal;
