//! The trainer of kronsae: recorded activations in, one model file out. The `kronsae` command is a thin shell over this.

pub mod backend;
pub mod bench;
pub mod calibrate;
pub mod checkpoint;
pub mod claim;
pub mod collective;
pub mod commands;
pub mod data;
pub mod encode_file;
pub mod eval;
pub mod examples;
pub mod fold;
pub mod metrics;
pub mod onnx;
pub mod progress;
pub mod random;
pub mod report;
pub mod rewrite;
pub mod run;
pub mod schedule;
pub mod settings;
pub mod stream;
pub mod tensorboard;
pub mod terminal;
