//! The device taps of a site, and what another model means for them.

use super::lane::{Lane, OnDevice};
use super::options::DeviceTapOptions;
use super::queue::Queue;
use crate::cuda::{Device, DeviceSaeOptions};
use crate::error::Result;
use crate::monitor::shared::Core;
use crate::monitor::site::lock;
use crate::sae::Sae;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, Weak};

/// Device taps of one site. What they share is the model's copy on a device.
#[derive(Default)]
pub(crate) struct Devices {
    queues: Mutex<Vec<Weak<Queue>>>,
    lanes: AtomicU64,
}

impl std::fmt::Debug for Devices {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Devices({} taps)", self.live().len())
    }
}

/// Lanes of a new model, each beside the tap it is for.
pub(crate) struct Lanes(Vec<(Arc<Queue>, Arc<Lane>)>);

fn same_device(a: &Arc<dyn Device>, b: &Arc<dyn Device>) -> bool {
    std::ptr::addr_eq(Arc::as_ptr(a), Arc::as_ptr(b))
}

impl Devices {
    fn live(&self) -> Vec<Arc<Queue>> {
        let mut queues = lock(&self.queues);
        queues.retain(|queue| queue.strong_count() > 0);
        queues.iter().filter_map(Weak::upgrade).collect()
    }

    /// Whether there are any.
    pub(crate) fn any(&self) -> bool {
        lock(&self.queues).iter().any(|queue| queue.strong_count() > 0)
    }

    pub(super) fn add(&self, queue: &Arc<Queue>) {
        lock(&self.queues).push(Arc::downgrade(queue));
    }

    /// The model on a device: the copy that a lane has already, or a new one.
    fn copy<'a>(
        core: &Core,
        lanes: impl Iterator<Item = &'a Arc<Lane>>,
        device: &Arc<dyn Device>,
        sae: &Arc<Sae>,
        options: DeviceSaeOptions,
    ) -> Result<Arc<OnDevice>> {
        for lane in lanes {
            let same = Arc::ptr_eq(&lane.of, sae) && lane.on.options == options;
            if same && same_device(lane.on.sae.device(), device) {
                return Ok(Arc::clone(&lane.on));
            }
        }
        OnDevice::new(core, device, sae, options).map(Arc::new)
    }

    /// A lane for a new tap.
    pub(super) fn lane(
        &self,
        core: &Core,
        device: &Arc<dyn Device>,
        sae: &Arc<Sae>,
        options: &DeviceTapOptions,
    ) -> Result<Lane> {
        let others: Vec<Arc<Lane>> = self.live().iter().map(|queue| queue.lane()).collect();
        let on = Self::copy(core, others.iter(), device, sae, options.sae)?;
        Lane::new(core, sae, &on, self.number(), options)
    }

    fn number(&self) -> u64 {
        self.lanes.fetch_add(1, Ordering::Relaxed)
    }

    /// Lanes of another model for all taps, for [`Devices::install`] to put in force.
    ///
    /// # Errors
    /// As [`Lane::new`] and [`crate::cuda::DeviceSae::upload`], naming the site: nothing was changed.
    pub(crate) fn lanes(&self, core: &Core, site: &str, sae: Option<&Arc<Sae>>) -> Result<Lanes> {
        let mut lanes: Vec<(Arc<Queue>, Arc<Lane>)> = Vec::new();
        let Some(sae) = sae else { return Ok(Lanes(lanes)) };
        for queue in self.live() {
            let lane = Self::copy(core, lanes.iter().map(|(_, lane)| lane), &queue.device, sae, queue.options.sae)
                .and_then(|on| Lane::new(core, sae, &on, self.number(), &queue.options));
            let lane = lane.map_err(|error| error.within(&format!("site {site}, a device tap")))?;
            lanes.push((queue, Arc::new(lane)));
        }
        Ok(Lanes(lanes))
    }

    /// Puts lanes in force, and the former ones in their place, for whoever made them to drop.
    pub(crate) fn install(lanes: &mut Lanes) {
        for (queue, lane) in &mut lanes.0 {
            queue.exchange(lane);
        }
    }
}
