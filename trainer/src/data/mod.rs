//! Recorded activations: shards on disk, and the order in which training sees them.

mod batches;
mod order;
mod shards;
mod spread;

pub use batches::{Batches, Filled, Normalisation};
pub use order::{BLOCK, Order};
pub use shards::{Dataset, FORMAT, TokenText};
pub(crate) use spread::spread;
