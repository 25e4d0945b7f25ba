//! A monitor's tap of activations on the device: what arrives is what the encoder there gives, and how long a submit keeps a
//! serving thread.

use super::encodes::tokens;
use super::{Check, Measure};
use crate::bench::contender::random_sae;
use kronsae::cuda::{Compute, Device, DeviceActivations, DeviceEncoder, DeviceMemory, DeviceSae, DeviceSaeOptions};
use kronsae::monitor::{DeviceTap, DeviceTapOptions, Monitor, MonitorOptions, SiteId, SiteOptions, TokenTag};
use kronsae::sae::Encoder as Shape;
use kronsae::{Activations, Dtype, Latents, Result, Sae};
use std::sync::Arc;
use std::time::{Duration, Instant};

const D: usize = 64;
const K: usize = 16;
const ROWS: usize = 40;
/// Batches, so that slots go round.
const BATCHES: usize = 20;
const PATIENCE: Duration = Duration::from_secs(60);

/// A monitor with one tap, and rows on the device.
struct Room {
    sae: Arc<Sae>,
    monitor: Monitor,
    site: SiteId,
    tap: DeviceTap,
    x: Vec<f32>,
    memory: DeviceMemory,
}

impl Room {
    fn new(device: &Arc<dyn Device>) -> Result<Self> {
        let sae = Arc::new(random_sae(Shape::Kron { heads: 128, base: 2, extension: 4 }, D, K)?);
        let monitor = Monitor::new(MonitorOptions { recent_tokens: BATCHES * ROWS, ..MonitorOptions::default() })?;
        let site = SiteOptions { name: "a".to_owned(), ..SiteOptions::default() };
        let site = monitor.add_site(site, Arc::clone(&sae))?;
        let compute = DeviceSaeOptions { compute: Compute::F32, ..DeviceSaeOptions::default() };
        let options = DeviceTapOptions { sae: compute, slots: 4, rows: ROWS, ..DeviceTapOptions::default() };
        let tap = monitor.device_tap(site, Arc::clone(device), options)?;
        let x = tokens(ROWS, D);
        let bytes: Vec<u8> = x.iter().flat_map(|v| v.to_le_bytes()).collect();
        let memory = device.allocate(bytes.len(), "a batch")?;
        device.upload(&memory, 0, &bytes)?;
        device.synchronize()?;
        Ok(Room { sae, monitor, site, tap, x, memory })
    }

    /// Submits all rows; how many were taken.
    fn submit(&mut self, device: &dyn Device, first: usize) -> Result<usize> {
        let data = self.memory.address();
        let x = DeviceActivations { data, dtype: Dtype::F32, rows: ROWS, d_model: D, row_stride: 4 * D };
        let tag = |row: usize| TokenTag { request: 1, position: (first + row) as i32, token: -1, flags: 0 };
        // SAFETY: rows in the room's memory, which nobody writes; the device's own stream.
        unsafe { self.tap.submit(&x, device.stream(), tag) }
    }
}

/// Every latent of every token arrives, bit for bit as the encoder on the device gives it for a batch of the same shape.
pub(super) fn check(device: &Arc<dyn Device>) -> Result<Check> {
    let mut room = Room::new(device)?;
    let options = DeviceSaeOptions { compute: Compute::F32, ..DeviceSaeOptions::default() };
    let mut encoder = DeviceEncoder::new(Arc::new(DeviceSae::upload(Arc::clone(device), &room.sae, options)?));
    let mut expected = Latents::new(ROWS, K)?;
    encoder.encode(Activations::from_f32(&room.x, D)?, &mut expected.as_mut())?;
    let mut taken = 0;
    for batch in 0..BATCHES {
        taken += room.submit(&**device, batch * ROWS)?;
        // Without this, batches for which there is no slot would be dropped, as they should.
        room.monitor.flush(PATIENCE)?;
    }
    let found = room.monitor.recent_tokens(room.site, 0, usize::MAX);
    let same = found.iter().enumerate().filter(|(at, token)| {
        token.tag.position as usize == *at && (&*token.indices, &*token.values) == expected.row(at % ROWS)
    });
    let (same, all) = (same.count(), BATCHES * ROWS);
    let counters = room.monitor.status().counters;
    let passed = taken == all && same == all && counters.encoded == all as u64 && counters.submitted == all as u64;
    let found = format!("{same} of {all} tokens the same, {} encoded, {} dropped", counters.encoded, counters.dropped);
    Ok(Check { name: "a monitor's tap brings what the device encoded".to_owned(), passed, found })
}

/// How long a submit takes on the host.
pub(super) fn run(device: &Arc<dyn Device>, calls: usize) -> Result<Measure> {
    let mut room = Room::new(device)?;
    let mut times = Vec::new();
    for call in 0..calls.max(1) {
        let start = Instant::now();
        room.submit(&**device, call * ROWS)?;
        times.push(start.elapsed().as_secs_f64() * 1e3);
        room.monitor.flush(PATIENCE)?;
    }
    times.sort_by(f64::total_cmp);
    let note = format!("host time, {ROWS} rows, d {D}, the worker asleep");
    Ok(Measure::plain("a device tap's submit", times[times.len() / 2], "ms", note))
}
