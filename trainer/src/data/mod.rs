//! Recorded activations: shards on disk, and the order in which training sees them.

mod shards;

pub use shards::{Dataset, FORMAT, TokenText};
