//! MPI: what is gathered goes through the host's memory. It needs no GPU, so that ranks can be shown on any machine.

use super::{Collective, Gathered, Launch};
use crate::progress::tell;
use kronsae::cuda::{Device, DeviceMemory};
use kronsae::{Error, Result, Status};
use mpi::environment::Universe;
use mpi::topology::SimpleCommunicator;
use mpi::traits::{Communicator, CommunicatorCollectives, Root};
use mpi::{Threading, initialize_with_threading};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Bytes of a rank's part that are gathered at a time: MPI counts in 32 bits, and the host holds so many of each rank.
const PIECE: usize = 32 << 20;
/// How long a rank that gives up waits for the others to do so as well, as they do where all find the same.
const GRACE: Duration = Duration::from_secs(5);

/// Ranks over MPI.
pub struct Mpi {
    inner: Mutex<Inner>,
    rank: u32,
    ranks: u32,
    piece: usize,
}

struct Inner {
    // Dropped in this order: MPI itself ends last.
    /// For those that give up; others may be inside a call on `world` then.
    failures: SimpleCommunicator,
    world: SimpleCommunicator,
    _universe: Universe,
}

// SAFETY: MPI was initialised so that any thread may call it, one at a time (`Threading::Serialized`), and the lock around
// `Inner` sees to that. Handles of communicators may be used by any thread then.
unsafe impl Send for Inner {}

impl Mpi {
    /// Begins MPI, which a process can do once.
    ///
    /// # Errors
    /// [`Status::InvalidArgument`] if MPI knows other ranks than the launcher's environment; [`Status::Unsupported`] if it
    /// lets only one thread call it; [`Status::Internal`] if it was begun before.
    pub fn begin(launch: &Launch) -> Result<Self> {
        let Some((universe, threading)) = initialize_with_threading(Threading::Serialized) else {
            return Err(Error::new(Status::Internal, "MPI was initialised before in this process"));
        };
        if threading < Threading::Serialized {
            return Err(Error::new(
                Status::Unsupported,
                format!("this MPI lets only some threads call it ({threading:?}); expected MPI_THREAD_SERIALIZED"),
            ));
        }
        let world = universe.world();
        let (rank, ranks) = (world.rank() as u32, world.size() as u32);
        if (rank, ranks) != (launch.rank, launch.ranks) {
            return Err(Error::invalid(format!(
                "MPI says that this is rank {rank} of {ranks}, {}'s environment {} of {}: start the ranks by the mpirun of the \
                 MPI that this program was built with",
                launch.launcher, launch.rank, launch.ranks
            )));
        }
        let failures = world.duplicate();
        let inner = Inner { failures, world, _universe: universe };
        Ok(Mpi { inner: Mutex::new(inner), rank, ranks, piece: PIECE })
    }

    /// Gathers at most so many bytes of a rank at a time: for tests.
    ///
    /// # Panics
    /// If it is none, or more than MPI can count.
    #[must_use]
    pub fn with_piece(mut self, bytes: usize) -> Self {
        assert!(bytes > 0 && i32::try_from(bytes).is_ok(), "{bytes} bytes at a time");
        self.piece = bytes;
        self
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Rank 0's bytes to all.
    pub(super) fn send_from_first(&self, bytes: &mut [u8]) {
        let inner = self.lock();
        for piece in bytes.chunks_mut(self.piece) {
            inner.world.process_at_rank(0).broadcast_into(piece);
        }
    }

    fn gather(&self, device: &dyn Device, part: &Gathered<'_>) -> Result<()> {
        let each = part.bytes_each;
        part.all.check(0, each.saturating_mul(self.ranks as usize))?;
        let longest = self.piece.min(each);
        let mut own = buffer(longest)?;
        let mut all = buffer(longest * self.ranks as usize)?;
        for start in (0..each).step_by(self.piece) {
            let len = self.piece.min(each - start);
            device.download(part.all, self.rank as usize * each + start, &mut own[..len])?;
            self.lock().world.all_gather_into(&own[..len], &mut all[..len * self.ranks as usize]);
            for (rank, theirs) in all.chunks_exact(len).take(self.ranks as usize).enumerate() {
                if rank != self.rank as usize {
                    device.upload(part.all, rank * each + start, theirs)?;
                }
            }
        }
        Ok(())
    }
}

fn buffer(bytes: usize) -> Result<Vec<u8>> {
    let mut buffer = Vec::new();
    buffer.try_reserve_exact(bytes).map_err(|_| Error::out_of_memory("what ranks exchange", bytes))?;
    buffer.resize(bytes, 0);
    Ok(buffer)
}

impl Collective for Mpi {
    fn rank(&self) -> u32 {
        self.rank
    }

    fn ranks(&self) -> u32 {
        self.ranks
    }

    fn name(&self) -> &'static str {
        "MPI"
    }

    fn can_be_captured(&self) -> bool {
        false
    }

    unsafe fn all_gather(&self, device: &dyn Device, parts: &[Gathered<'_>]) -> Result<()> {
        parts.iter().try_for_each(|part| self.gather(device, part))
    }

    unsafe fn broadcast(&self, device: &dyn Device, values: &DeviceMemory, bytes: usize, root: u32) -> Result<()> {
        values.check(0, bytes)?;
        if root >= self.ranks {
            return Err(Error::invalid(format!("rank {root}: there are {}", self.ranks)));
        }
        let mut piece = buffer(self.piece.min(bytes))?;
        for start in (0..bytes).step_by(self.piece) {
            let piece = &mut piece[..self.piece.min(bytes - start)];
            device.download(values, start, piece)?;
            self.lock().world.process_at_rank(root as i32).broadcast_into(piece);
            if root != self.rank {
                device.upload(values, start, piece)?;
            }
        }
        Ok(())
    }

    fn barrier(&self, device: &dyn Device) -> Result<()> {
        device.synchronize()?;
        self.lock().world.barrier();
        Ok(())
    }

    fn wait(&self, device: &dyn Device) -> Result<()> {
        device.synchronize()
    }

    fn give_up(&self, error: Error) -> Error {
        let inner = self.lock();
        let start = Instant::now();
        let mut all_here = inner.failures.immediate_barrier();
        loop {
            match all_here.test() {
                Ok(_) => return error,
                Err(not_yet) => all_here = not_yet,
            }
            if start.elapsed() > GRACE {
                tell(&format!("error: rank {} of {}: {error}; ending the other ranks", self.rank, self.ranks));
                inner.world.abort(1);
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Mpi {
    fn drop(&mut self) {
        if std::thread::panicking() {
            // The others would wait for ever; so would the end of MPI here.
            self.lock().world.abort(101);
        }
    }
}
