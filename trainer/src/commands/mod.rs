//! The commands of `kronsae`, one module each: its arguments, whose comments are its `--help`, and its `run`.
pub mod train;
