//! What a host chooses when it makes a device tap.

use crate::cuda::DeviceSaeOptions;
use crate::error::{Error, Result};
use crate::monitor::tag::Sampling;

/// A queue into a site, for one producing thread whose activations are in a device's memory.
#[derive(Debug, Clone, Copy)]
pub struct DeviceTapOptions {
    /// How the model is put on the device. Taps of one site with the same device and options share it.
    pub sae: DeviceSaeOptions,
    /// Batches in flight, from a submit until the worker has taken them, 1 to 1,024.
    pub slots: usize,
    /// Most rows of a batch, 1 to 4,096; a submit of more takes several slots. Memory is taken for as many.
    pub rows: usize,
    /// Control records (ends of requests, rewinds) the queue has room for besides, 1 to 2^24; tokens cannot take these
    /// slots.
    pub controls: usize,
    /// Which of the tokens submitted are encoded.
    pub sampling: Sampling,
}

impl DeviceTapOptions {
    /// # Errors
    /// [`crate::Status::InvalidArgument`] for an extent or sampling that makes no sense.
    pub(super) fn validate(&self) -> Result<()> {
        for (what, found, most) in
            [("slots", self.slots, 1024), ("rows", self.rows, 4096), ("controls", self.controls, 1 << 24)]
        {
            if !(1..=most).contains(&found) {
                return Err(Error::invalid(format!("a device tap's {what} = {found}, expected 1 to {most}")));
            }
        }
        if self.sampling == Sampling::EveryNth(0) {
            return Err(Error::invalid("sampling every 0th token; expected every n-th with n of at least 1"));
        }
        Ok(())
    }
}

impl Default for DeviceTapOptions {
    fn default() -> Self {
        DeviceTapOptions {
            sae: DeviceSaeOptions::default(),
            slots: 8,
            rows: 512,
            controls: 1024,
            sampling: Sampling::Every,
        }
    }
}
