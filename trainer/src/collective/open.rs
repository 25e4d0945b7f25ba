//! Which collective a run gets.

use super::{Collective, Launch, Nccl, Single, meet};
use crate::settings::CollectiveKind;
use kronsae::Result;
use kronsae::cuda::Device;
use std::path::Path;
use std::sync::Arc;

/// What carries the data between ranks. `run`: the run's folder, which all ranks see.
#[derive(Debug, Clone, Copy)]
pub struct Wanted<'a> {
    /// As the settings say.
    pub kind: CollectiveKind,
    /// Whether the device is emulated: NCCL knows no such device.
    pub emulated: bool,
    /// The run's folder.
    pub run: &'a Path,
}

/// The collective of these ranks; waits until all are there.
///
/// # Errors
/// [`kronsae::Status::Unsupported`] naming what is missing; those of the collective.
pub fn open(wanted: Wanted<'_>, launch: &Launch, device: &Arc<dyn Device>) -> Result<Arc<dyn Collective>> {
    match wanted.kind {
        CollectiveKind::None => Ok(Arc::new(Single)),
        CollectiveKind::Auto if launch.ranks == 1 => Ok(Arc::new(Single)),
        CollectiveKind::Auto if wanted.emulated => over_mpi(launch),
        CollectiveKind::Mpi => over_mpi(launch).map_err(|e| e.within("--collective mpi")),
        CollectiveKind::Auto | CollectiveKind::Nccl => over_nccl(wanted.run, launch, device),
    }
}

fn over_nccl(run: &Path, launch: &Launch, device: &Arc<dyn Device>) -> Result<Arc<dyn Collective>> {
    // On every rank at once, before any waits for another.
    device.check_communicators()?;
    let limit = super::nccl::limit()?;
    #[cfg(feature = "mpi")]
    if launch.launcher == super::Launcher::OpenMpi {
        let mpi = super::Mpi::begin(launch)?;
        let mut id = [0; 128];
        if launch.rank == 0 {
            id = device.communicator_id().map_err(|e| mpi.give_up(e))?;
        }
        mpi.send_from_first(&mut id);
        return Ok(Arc::new(Nccl::join(device, &id, launch, limit, Some(Box::new(mpi)))?));
    }
    let id = meet(run, launch, limit, &mut || device.communicator_id())?;
    Ok(Arc::new(Nccl::join(device, &id, launch, limit, None)?))
}

#[cfg(feature = "mpi")]
fn over_mpi(launch: &Launch) -> Result<Arc<dyn Collective>> {
    use super::Launcher;
    if launch.launcher == Launcher::Torchrun && launch.ranks > 1 {
        let message = format!("{} ranks were started by torchrun: MPI needs mpirun or srun", launch.ranks);
        return Err(kronsae::Error::new(kronsae::Status::Unsupported, message));
    }
    Ok(Arc::new(super::Mpi::begin(launch)?))
}

#[cfg(not(feature = "mpi"))]
fn over_mpi(launch: &Launch) -> Result<Arc<dyn Collective>> {
    let message =
        format!("{} ranks need MPI on this device, and this build has none (cargo feature `mpi`)", launch.ranks);
    Err(kronsae::Error::new(kronsae::Status::Unsupported, message))
}
