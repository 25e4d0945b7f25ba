//! NCCL: every rank has a GPU, and what is gathered never touches the host.

use super::{Collective, Gathered, Launch};
use kronsae::cuda::{Communicator, CommunicatorId, Device, DeviceMemory};
use kronsae::{Error, Result};
use std::sync::Arc;
use std::time::Duration;

/// How long other ranks may take for their part of a step, and rank 0 for an evaluation or a checkpoint before it.
const LIMIT: Duration = Duration::from_secs(1800);
/// Another limit, in seconds.
const LIMIT_VARIABLE: &str = "KRONSAE_RANKS_TIMEOUT";

/// Ranks over NCCL.
pub struct Nccl {
    communicator: Box<dyn Communicator>,
    /// A byte a rank, for barriers.
    bytes: DeviceMemory,
    rank: u32,
    ranks: u32,
    limit: Duration,
    /// What started the ranks, where it can end them.
    starter: Option<Box<dyn Collective>>,
}

impl Nccl {
    /// Joins the ranks with this mark; waits until all have. From then on, ranks wait for each other for `limit` at most.
    ///
    /// # Errors
    /// [`kronsae::Status::Unsupported`] naming what is missing; [`kronsae::Status::Internal`] if the ranks do not come
    /// together.
    pub fn join(
        device: &Arc<dyn Device>,
        id: &CommunicatorId,
        launch: &Launch,
        limit: Duration,
        starter: Option<Box<dyn Collective>>,
    ) -> Result<Self> {
        let Launch { rank, ranks, .. } = *launch;
        let bytes = device.allocate(ranks as usize, "barriers")?;
        let communicator = device.communicator(id, rank, ranks);
        let communicator =
            communicator.map_err(|e| starter.as_ref().map_or(e.clone(), |starter| starter.give_up(e)))?;
        Ok(Nccl { communicator, bytes, rank, ranks, limit, starter })
    }
}

/// How long ranks wait for each other.
///
/// # Errors
/// [`kronsae::Status::InvalidArgument`] if what the environment says is no number of seconds above 0.
pub(super) fn limit() -> Result<Duration> {
    let Ok(text) = std::env::var(LIMIT_VARIABLE) else { return Ok(LIMIT) };
    match text.trim().parse::<u32>() {
        Ok(seconds) if seconds > 0 => Ok(Duration::from_secs(u64::from(seconds))),
        _ => Err(Error::invalid(format!("{LIMIT_VARIABLE} is `{text}`: expected seconds, at least 1"))),
    }
}

impl Collective for Nccl {
    fn rank(&self) -> u32 {
        self.rank
    }

    fn ranks(&self) -> u32 {
        self.ranks
    }

    fn name(&self) -> &'static str {
        "NCCL"
    }

    fn can_be_captured(&self) -> bool {
        true
    }

    unsafe fn all_gather(&self, _device: &dyn Device, parts: &[Gathered<'_>]) -> Result<()> {
        // SAFETY: the caller's promise.
        unsafe { self.communicator.all_gather(parts) }
    }

    unsafe fn broadcast(&self, _device: &dyn Device, values: &DeviceMemory, bytes: usize, root: u32) -> Result<()> {
        // SAFETY: the caller's promise.
        unsafe { self.communicator.broadcast(values, bytes, root) }
    }

    fn barrier(&self, device: &dyn Device) -> Result<()> {
        // SAFETY: memory of its own, which lives as long as the group; the stream is waited for.
        unsafe { self.all_gather(device, &[Gathered { all: &self.bytes, bytes_each: 1 }]) }?;
        self.wait(device)
    }

    fn wait(&self, _device: &dyn Device) -> Result<()> {
        self.communicator.wait(self.limit)
    }

    fn give_up(&self, error: Error) -> Error {
        // Whoever waits here for another rank waits no more. The others end by their launcher or their limit.
        self.communicator.abort();
        match &self.starter {
            Some(starter) => starter.give_up(error),
            None => error,
        }
    }
}
