//! Devices of several processes that gather from each other: what NCCL does.

use super::device::DeviceMemory;
use crate::error::Result;
use std::time::Duration;

/// What the first rank makes and all ranks are given: they belong to one group. As NCCL's `ncclUniqueId`.
pub type CommunicatorId = [u8; 128];

/// A part of device memory of each rank, one behind the other: rank r's starts at `r * bytes_each`.
#[derive(Debug, Clone, Copy)]
pub struct Gathered<'a> {
    /// All parts; at least `ranks * bytes_each` bytes.
    pub all: &'a DeviceMemory,
    /// Bytes of one rank's part.
    pub bytes_each: usize,
}

/// A group of devices, one a rank. Made by [`crate::cuda::Device::communicator`].
///
/// All ranks make the same calls in the same order. Dropped, it leaves the group; what was enqueued should be done by then.
///
/// Threads: one call at a time takes effect, as on a stream.
pub trait Communicator: Send + Sync {
    /// Enqueues on the device's own stream: every rank's part of every memory comes to its place on all ranks, in place.
    /// May be captured in a graph, once it has run uncaptured.
    ///
    /// # Errors
    /// [`crate::Status::InvalidArgument`] if a memory is too short; [`crate::Status::Internal`] if the group failed.
    ///
    /// # Safety
    /// The memory stays allocated until it is done (for as long as it may be replayed, if it is captured), and only work
    /// of the device's own stream uses it meanwhile.
    unsafe fn all_gather(&self, parts: &[Gathered<'_>]) -> Result<()>;

    /// Enqueues on the device's own stream: the first `bytes` bytes of rank `root`'s memory come to all.
    ///
    /// # Errors
    /// As [`Communicator::all_gather`], also if there is no rank `root`.
    ///
    /// # Safety
    /// As [`Communicator::all_gather`].
    unsafe fn broadcast(&self, values: &DeviceMemory, bytes: usize, root: u32) -> Result<()>;

    /// Waits until all that the device's own stream was given is done. Where another rank has gone, or `limit` is over,
    /// the group is given up, and every later call is an error.
    ///
    /// # Errors
    /// [`crate::Status::Internal`], saying which of the two it was.
    fn wait(&self, limit: Duration) -> Result<()>;

    /// Gives the group up: what waits for other ranks on the device ends, whatever it has done.
    fn abort(&self);
}
