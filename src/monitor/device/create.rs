//! Making a device tap.

use super::options::DeviceTapOptions;
use super::queue::ends;
use super::tap::DeviceTap;
use crate::cuda::Device;
use crate::dtype::Dtype;
use crate::error::{Error, Result, Status};
use crate::monitor::intake::Intake;
use crate::monitor::monitor::{Monitor, SiteId};
use crate::monitor::ring::Ring;
use crate::monitor::shared::refuse_on_worker;
use crate::monitor::site::{TapShared, lock};
use std::sync::Arc;
use std::sync::atomic::Ordering;

impl Monitor {
    /// A tap into a site that takes activations in the memory of `device` and encodes them there. The model's encoder is
    /// copied to the device, unless another tap of the site has it there already; memory for the batches in flight is
    /// taken on the device and, pinned, on the host. The latter counts in `memory_limit`, the former in
    /// [`Monitor::device_memory`].
    ///
    /// It takes seconds for large models, and waits for the device; not while a stream is being captured in a graph.
    ///
    /// # Errors
    /// [`Status::InvalidArgument`] for an option out of range; [`Status::Unsupported`] if the site has no model, records, or
    /// the model selects more latents than [`crate::cuda::MOST_LATENTS`]; [`Status::OutOfMemory`], also the device's, and
    /// the limit of memory included; [`Status::Timeout`]; [`Status::Device`] if the device fails; [`Status::Stopped`],
    /// [`Status::Poisoned`], [`Status::Forked`].
    pub fn device_tap(&self, site: SiteId, device: Arc<dyn Device>, options: DeviceTapOptions) -> Result<DeviceTap> {
        let core = self.core();
        core.check()?;
        refuse_on_worker()?;
        options.validate()?;
        let site = core.site(site.0)?;
        // No model is replaced meanwhile.
        let configuration = lock(&core.configuration);
        let model = site.model();
        let Some(sae) = &model.sae else {
            let message = format!("site {} has no model to encode with; it takes activations from the host", site.name);
            return Err(Error::new(Status::Unsupported, message));
        };
        let capacity = options.slots * options.rows;
        // Room for one batch more: the worker gives up a batch before it gives up its tokens.
        let slots = capacity + options.rows;
        let bytes = Ring::bytes(slots, options.controls, 0, Dtype::F32);
        let memory = core.budget.reserve(bytes.unwrap_or(usize::MAX), "a device tap's queue")?;
        let (producer, consumer, ring) = Ring::without_rows(slots, options.controls)?;
        let lane = site.devices.lane(core, &device, sae, &options)?;
        let number = core.taps.fetch_add(1, Ordering::Relaxed);
        let shared = Arc::new(TapShared::new(number, ring, capacity, options.sampling, memory));
        let (filling, taking) = ends(device, options, lane, &shared);
        lock(&site.taps).live.push(Arc::clone(&shared));
        site.devices.add(&filling.queue);
        let (for_worker, at) = (Arc::clone(&shared), site.number);
        let added = core.run_on(site.worker, move |worker| {
            let site = worker.site(at)?;
            if site.recorder.is_some() {
                return Err(Error::new(
                    Status::Unsupported,
                    format!(
                        "site {} records, which needs activations on the host; tap the device at a site of its own",
                        site.shared.name
                    ),
                ));
            }
            site.taps.push(Intake::new(consumer, for_worker, Some(Box::new(taking))));
            Ok(())
        });
        drop(configuration);
        if let Err(error) = added {
            lock(&site.taps).live.retain(|tap| tap.number != number);
            return Err(error);
        }
        Ok(DeviceTap::new(Arc::clone(core), site, shared, producer, filling))
    }
}
