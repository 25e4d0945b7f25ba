//! Training on several ranks: what a step asks of the others. One rank is the case of a collective that does nothing.
//!
//! - [`launch`]: which rank this process is.
//! - `single`, `nccl`, `mpi`: what carries the data. `rendezvous`: how NCCL's ranks find each other.
//! - `agree`: that all ranks are about to do the same.
//! - `share`: which tokens of a batch are whose.

#[cfg(feature = "cuda")]
mod agree;
pub mod launch;
#[cfg(feature = "mpi")]
mod mpi;
#[cfg(feature = "cuda")]
mod nccl;
#[cfg(feature = "cuda")]
mod open;
#[cfg(feature = "cuda")]
mod rendezvous;
#[cfg(feature = "cuda")]
mod share;
#[cfg(feature = "cuda")]
mod single;

pub use launch::{Launch, Launcher};

#[cfg(feature = "cuda")]
pub use agree::agree;
#[cfg(feature = "cuda")]
pub use kronsae::cuda::Gathered;
#[cfg(feature = "mpi")]
pub use mpi::Mpi;
#[cfg(feature = "cuda")]
pub use nccl::Nccl;
#[cfg(feature = "cuda")]
pub use open::{Wanted, open};
#[cfg(feature = "cuda")]
pub use rendezvous::meet;
#[cfg(feature = "cuda")]
pub use share::Share;
#[cfg(feature = "cuda")]
pub use single::Single;

#[cfg(feature = "cuda")]
use kronsae::cuda::{Device, DeviceMemory};
#[cfg(feature = "cuda")]
use kronsae::{Error, Result};

/// The ranks that train together. All make the same calls in the same order.
#[cfg(feature = "cuda")]
pub trait Collective: Send + Sync {
    /// Which of them this is, from 0.
    fn rank(&self) -> u32;

    /// How many there are; at least 1.
    fn ranks(&self) -> u32;

    /// What carries the data, for reports: `NCCL`; empty where nothing does.
    fn name(&self) -> &'static str;

    /// Whether what it enqueues may be captured in a graph of the device.
    fn can_be_captured(&self) -> bool;

    /// Every rank's part of each memory, in the order of ranks, in place: rank r's part lies at `r * bytes_each` and comes
    /// to that place on all. On the device's own stream, or done when the call returns.
    ///
    /// # Errors
    /// [`kronsae::Status::InvalidArgument`] if a memory is too short; [`kronsae::Status::Internal`] if a rank is lost or
    /// the device fails.
    ///
    /// # Safety
    /// As of [`kronsae::cuda::Communicator::all_gather`]: the memory stays allocated until it is done, and only the
    /// device's own stream uses it meanwhile.
    unsafe fn all_gather(&self, device: &dyn Device, parts: &[Gathered<'_>]) -> Result<()>;

    /// The first `bytes` bytes of rank `root`'s memory to all.
    ///
    /// # Errors
    /// As [`Collective::all_gather`].
    ///
    /// # Safety
    /// As [`Collective::all_gather`].
    unsafe fn broadcast(&self, device: &dyn Device, values: &DeviceMemory, bytes: usize, root: u32) -> Result<()>;

    /// Waits until all ranks are here, and for the device's own stream.
    ///
    /// # Errors
    /// [`kronsae::Status::Internal`] if a rank is lost.
    fn barrier(&self, device: &dyn Device) -> Result<()>;

    /// Waits until all that the device's own stream was given is done, for no longer than other ranks may take.
    ///
    /// # Errors
    /// [`kronsae::Status::Internal`] if a rank is lost or the device fails.
    fn wait(&self, device: &dyn Device) -> Result<()>;

    /// This rank gives up for this reason, which is said in any case: by this call, or by who gets it back. Where the
    /// others do not give up as well within seconds, and can be ended, they and this process end here.
    fn give_up(&self, error: Error) -> Error;
}
