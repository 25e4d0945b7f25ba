//! The trainer of kronsae: recorded activations in, one model file out. The `kronsae` command is a thin shell over this.

pub mod calibrate;
pub mod commands;
pub mod data;
pub mod encode_file;
pub mod eval;
pub mod examples;
pub mod report;
pub mod rewrite;
pub mod stream;
pub mod tensorboard;
pub mod terminal;
