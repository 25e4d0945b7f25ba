//! A model on a device with the buffers of one tap's batches there.

use super::options::DeviceTapOptions;
use crate::cuda::{
    Device, DeviceActivations, DeviceEvent, DeviceLatents, DeviceMemory, DeviceSae, DeviceSaeOptions, PinnedMemory,
    Stream,
};
use crate::dtype::Dtype;
use crate::encode::ROW_NOT_FINITE;
use crate::error::{Error, Result, Status};
use crate::monitor::memory::Reserved;
use crate::monitor::shared::Core;
use crate::sae::Sae;
use std::mem::ManuallyDrop;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// A model's copy on a device, which the taps of a site share.
pub(super) struct OnDevice {
    pub(super) sae: DeviceSae,
    pub(super) options: DeviceSaeOptions,
    _memory: Reserved,
}

impl OnDevice {
    pub(super) fn new(core: &Core, device: &Arc<dyn Device>, sae: &Sae, options: DeviceSaeOptions) -> Result<Self> {
        let sae = DeviceSae::upload(Arc::clone(device), sae, options)?;
        let memory = core.device_budget.reserve(sae.held_bytes(), "a model on a device")?;
        Ok(OnDevice { sae, options, _memory: memory })
    }
}

/// Latents of up to `rows` rows in one run of bytes, so that one copy brings them: counts, indices, values, flags.
#[derive(Debug, Clone, Copy)]
struct Layout {
    indices: usize,
    values: usize,
    flags: usize,
    bytes: usize,
}

impl Layout {
    fn new(rows: usize, capacity: usize) -> Self {
        let (indices, entries) = (4 * rows, 4 * rows * capacity);
        let (values, flags) = (indices + entries, indices + 2 * entries);
        Layout { indices, values, flags, bytes: flags + rows }
    }
}

/// Where the latents of one batch are.
struct Slot {
    device: DeviceMemory,
    /// Written by the device from a submit until the event is reached, and read by the worker after.
    host: ManuallyDrop<PinnedMemory>,
    event: Box<dyn DeviceEvent>,
}

/// A model on a device, and as many slots as a tap has batches in flight.
pub(super) struct Lane {
    /// The model it is a copy of.
    pub(super) of: Arc<Sae>,
    pub(super) on: Arc<OnDevice>,
    /// Tells it from the tap's other lanes.
    pub(super) number: u64,
    rows: usize,
    capacity: usize,
    latents: usize,
    slots: Box<[Slot]>,
    workspace: DeviceMemory,
    /// The device may still write pinned memory, and no event will say when it is over: it is never freed.
    lost_track: AtomicBool,
    _host: Reserved,
    _device: Reserved,
}

impl Lane {
    /// # Errors
    /// [`Status::OutOfMemory`], the monitor's limit included; those of [`DeviceSae::workspace_bytes`].
    pub(super) fn new(
        core: &Core,
        of: &Arc<Sae>,
        on: &Arc<OnDevice>,
        number: u64,
        options: &DeviceTapOptions,
    ) -> Result<Self> {
        let (device, what) = (&**on.sae.device(), "a device tap");
        let capacity = on.sae.selection().capacity();
        let bytes = Layout::new(options.rows, capacity).bytes;
        let host_memory = core.budget.reserve(bytes.saturating_mul(options.slots), what)?;
        // How products of every number of rows are computed is decided here, so that no submit has to.
        let mut workspace = 0;
        for rows in 1..=options.rows {
            workspace = workspace.max(on.sae.workspace_bytes(rows)?);
        }
        let device_bytes = bytes.saturating_mul(options.slots).saturating_add(workspace);
        let device_memory = core.device_budget.reserve(device_bytes, what)?;
        let mut slots = Vec::with_capacity(options.slots);
        for _ in 0..options.slots {
            let slot = Slot {
                device: device.allocate(bytes, what)?,
                host: ManuallyDrop::new(device.pinned(bytes, what)?),
                event: device.event()?,
            };
            assert!(slot.host.start().cast::<u32>().is_aligned(), "pinned memory starts at a multiple of 4");
            slots.push(slot);
        }
        let lane = Lane {
            of: Arc::clone(of),
            number,
            rows: options.rows,
            capacity,
            latents: of.config().encoder.latents(),
            slots: slots.into_boxed_slice(),
            workspace: device.allocate(workspace, what)?,
            lost_track: AtomicBool::new(false),
            on: Arc::clone(on),
            _host: host_memory,
            _device: device_memory,
        };
        lane.rehearse()?;
        Ok(lane)
    }

    /// Does once, on the device's own stream, what a submit does: what the driver and its libraries load or look up at first
    /// use is there then, and what does not work fails here.
    fn rehearse(&self) -> Result<()> {
        let sae = &self.on.sae;
        let device = sae.device();
        for rows in [1, self.rows] {
            let row_stride = sae.d_model() * Dtype::F32.size();
            let zeroes = device.allocate(rows.saturating_mul(row_stride), "a device tap's rehearsal")?;
            let (data, dtype) = (zeroes.address(), Dtype::F32);
            let x = DeviceActivations { data, dtype, rows, d_model: sae.d_model(), row_stride };
            device.check_stream(device.stream())?;
            device.is_capturing(device.stream())?;
            // SAFETY: memory of that size, which stays until the device is done, below; nobody else uses this lane yet, and
            // all is on one stream.
            let enqueued = unsafe {
                self.enqueue(0, &x, device.stream()).and_then(|()| self.slots[0].event.hold(device.stream()))
            };
            let done = device.synchronize();
            enqueued?;
            done?;
            self.reached(0)?;
        }
        Ok(())
    }

    /// Lets what `stream` is given from now on wait for the batch of `slot`.
    ///
    /// # Errors
    /// [`Status::Device`] if the device fails.
    ///
    /// # Safety
    /// `stream` is a live stream of the device.
    pub(super) unsafe fn hold(&self, slot: usize, stream: Stream) -> Result<()> {
        // SAFETY: the caller's promise.
        unsafe { self.slots[slot].event.hold(stream) }
    }

    /// Enqueues a batch on the caller's stream: its encoding into a slot, the copy of the slot to the host, the event. It
    /// allocates nothing and waits for nothing.
    ///
    /// # Errors
    /// [`Status::Device`] if the device fails: part of it may have been enqueued.
    ///
    /// # Safety
    /// As [`DeviceSae::encode`] of `x` and `stream`; the slot's last batch is over, and the worker is done with it; work
    /// of this lane on another stream is over, or `stream` waits for it. Until the event is reached, the lane is not dropped.
    pub(super) unsafe fn enqueue(&self, slot: usize, x: &DeviceActivations, stream: Stream) -> Result<()> {
        let Slot { device, host, event } = &self.slots[slot];
        let layout = Layout::new(x.rows, self.capacity);
        let to = DeviceLatents {
            counts: device.address(),
            indices: device.at(layout.indices),
            values: device.at(layout.values),
            capacity: self.capacity,
            active: 0,
            flags: device.at(layout.flags),
            skipped: 0,
        };
        let (sae, workspace) = (&self.on.sae, &self.workspace);
        // SAFETY: the caller's promise; the slot holds the latents of as many rows as the tap's batches have.
        unsafe {
            sae.encode_decided(x, &to, workspace.address(), workspace.bytes(), stream)?;
            sae.device().copy_back_on(stream, device, 0, host, layout.bytes)?;
            // From here on the device writes what only the event can say is over.
            event.record(stream).inspect_err(|_| self.lose_track())
        }
    }

    fn lose_track(&self) {
        self.lost_track.store(true, Ordering::Release);
    }

    /// Whether the batch of `slot` is over.
    ///
    /// # Errors
    /// [`Status::Device`] if the device failed: what the slot has is nothing.
    pub(super) fn reached(&self, slot: usize) -> Result<bool> {
        self.slots[slot].event.reached().inspect_err(|_| self.lose_track())
    }

    /// Waits until the batch of `slot` is over, or the device has failed.
    pub(super) fn wait(&self, slot: usize) {
        if self.slots[slot].event.wait().is_err() {
            self.lose_track();
        }
    }

    /// The latents of a batch of `rows` rows.
    ///
    /// # Safety
    /// The event of the slot's last batch was reached, and no other is enqueued while the result lives.
    pub(super) unsafe fn latents(&self, slot: usize, rows: usize) -> Found<'_> {
        assert!(rows <= self.rows, "{rows} rows of {}", self.rows);
        let layout = Layout::new(rows, self.capacity);
        let start = self.slots[slot].host.start();
        // SAFETY: inside the slot, which is as long as the layout of more rows and starts at a multiple of 4, as do the
        // first three parts; any bytes are such numbers; nobody writes them, as the caller promises.
        unsafe {
            Found {
                counts: std::slice::from_raw_parts(start.cast(), rows),
                indices: std::slice::from_raw_parts(start.add(layout.indices).cast(), rows * self.capacity),
                values: std::slice::from_raw_parts(start.add(layout.values).cast(), rows * self.capacity),
                flags: std::slice::from_raw_parts(start.add(layout.flags), rows),
                capacity: self.capacity,
                latents: self.latents,
            }
        }
    }
}

impl Drop for Lane {
    fn drop(&mut self) {
        if *self.lost_track.get_mut() {
            // Leaked: better than memory that a device writes after it has another owner.
            return;
        }
        for slot in &mut self.slots {
            // SAFETY: dropped once, here; batches in flight were waited for by whoever dropped the lane (see `queue`).
            unsafe { ManuallyDrop::drop(&mut slot.host) }
        }
    }
}

/// Latents as a device left them.
pub(super) struct Found<'a> {
    counts: &'a [u32],
    indices: &'a [u32],
    values: &'a [f32],
    flags: &'a [u8],
    capacity: usize,
    latents: usize,
}

impl<'a> Found<'a> {
    /// Refuses what no encoder writes: statistics and rules trust indices.
    ///
    /// # Errors
    /// [`Status::Device`].
    pub(super) fn check(&self) -> Result<()> {
        for (row, &count) in self.counts.iter().enumerate() {
            let sane = count as usize <= self.capacity
                && self.indices[row * self.capacity..][..count as usize].iter().all(|i| (*i as usize) < self.latents);
            if !sane {
                return Err(Error::new(Status::Device, format!("row {row} came back with latents that there are not")));
            }
        }
        Ok(())
    }

    /// Row `row`: indices and values, strongest first; None where it is not finite.
    pub(super) fn row(&self, row: usize) -> Option<(&'a [u32], &'a [f32])> {
        if self.flags[row] & ROW_NOT_FINITE != 0 {
            return None;
        }
        let range = row * self.capacity..row * self.capacity + self.counts[row] as usize;
        Some((&self.indices[range.clone()], &self.values[range]))
    }
}
