//! The monitor in C: what a server hands over, and what it can ask for.

pub mod callbacks;
pub mod device_taps;
pub mod events;
pub mod lifecycle;
pub mod output;
pub mod recorder;
pub mod sites;
pub mod taps;
