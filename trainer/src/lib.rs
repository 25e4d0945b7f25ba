//! The trainer of kronsae: recorded activations in, one model file out. The `kronsae` command is a thin shell over this.

pub mod backend;
pub mod checkpoint;
pub mod commands;
pub mod data;
pub mod eval;
pub mod fold;
pub mod metrics;
pub mod progress;
pub mod random;
pub mod run;
pub mod schedule;
pub mod settings;
pub mod stream;
