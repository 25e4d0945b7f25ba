//! Taps that take activations where they are, in a device's memory: the host's stream encodes them there, and of a token
//! 8 K + 5 bytes come back in place of d floats.
//!
//! ```text
//!           host's stream:  encode --> slot on the device --copy--> the same slot, pinned --> event
//! submit --/                                                                                  :
//!        \--> tags --> ring --> worker: asks the event, reads the pinned slot --> statistics, rules --> events
//! ```
//!
//! Tags and control records go through the ring of every tap, so that order, counters and `flush` are those of every tap. Beside
//! it goes a queue of batches (`queue`), each of which owns a slot of a `lane`: a model on the device and the buffers that
//! go with it. Another model is another lane; what the old one still computes stays in its own.

mod create;
mod cut;
mod lane;
mod options;
mod queue;
mod sites;
mod tap;

pub use options::DeviceTapOptions;
pub(crate) use sites::Devices;
pub use tap::DeviceTap;
