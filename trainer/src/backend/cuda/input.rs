//! How batches reach the device: through two pinned buffers, copied beside the step before, normalised there where they
//! come as the shards have them.

use super::bytes::as_bytes;
use super::launch::Launcher;
use super::space::Sizes;
use crate::backend::Batch;
use crate::data::Normalisation;
use kronsae::cuda::{Arguments, Arrival, Device, DeviceMemory, Element, Kernel, PinnedMemory};
use kronsae::{Dtype, Error, Result, Status};
use std::sync::Arc;

/// A buffer here and one there.
struct Slot {
    /// None while it is under way.
    pinned: Option<PinnedMemory>,
    arrival: Option<Arrival>,
    incoming: DeviceMemory,
}

/// What has been staged.
struct Staged {
    slot: usize,
    rows: usize,
    dtype: Dtype,
    /// Elements from one token to the next.
    stride: usize,
    raw: bool,
}

/// The way of batches to the device.
pub(super) struct Input {
    device: Arc<dyn Device>,
    slots: Vec<Slot>,
    next: usize,
    staged: Option<Staged>,
    /// Mean, f32 `[d]`, and reciprocal scale: for raw batches.
    normalisation: Option<(DeviceMemory, f32)>,
}

const SLOTS: usize = 2;

impl Input {
    pub(super) fn new(device: &Arc<dyn Device>) -> Self {
        Input { device: Arc::clone(device), slots: Vec::new(), next: 0, staged: None, normalisation: None }
    }

    /// From now on batches may be raw.
    pub(super) fn normalise_by(&mut self, normalisation: &Normalisation) -> Result<()> {
        let mean = self.device.allocate(normalisation.mean.len() * 4, "the mean")?;
        self.device.upload(&mean, 0, as_bytes(&normalisation.mean))?;
        self.normalisation = Some((mean, normalisation.scale.recip()));
        Ok(())
    }

    pub(super) fn takes_raw(&self) -> bool {
        self.normalisation.is_some()
    }

    /// Starts copying a batch to the device.
    ///
    /// # Panics
    /// As [`crate::backend::Backend::stage`].
    pub(super) fn stage(&mut self, sizes: &Sizes, batch: Batch<'_>) -> Result<()> {
        assert!(self.staged.is_none(), "the batch before has not been begun");
        assert!(batch.rows() <= sizes.batch, "{} tokens, room for {}", batch.rows(), sizes.batch);
        let (bytes, stride, dtype, raw) = match batch {
            Batch::Normalised { x, rows, stride } => {
                assert!(stride == sizes.stride && x.len() >= rows * stride, "batch of another width");
                (as_bytes(&x[..rows * stride]), stride, Dtype::F32, false)
            }
            Batch::Raw { bytes, rows, dtype } => {
                assert!(self.takes_raw(), "raw batches without a normalisation");
                assert!(bytes.len() >= rows * sizes.d * dtype.size(), "batch of another width");
                (&bytes[..rows * sizes.d * dtype.size()], sizes.d, dtype, true)
            }
        };
        self.make_slots(sizes.batch * stride * dtype.size())?;
        let slot = &mut self.slots[self.next];
        if bytes.len() > slot.incoming.bytes() {
            return Err(Error::new(Status::Internal, "a batch of another type than the first"));
        }
        let mut pinned = match (slot.pinned.take(), slot.arrival.take()) {
            (Some(pinned), _) => pinned,
            (None, Some(arrival)) => arrival.reclaim()?,
            (None, None) => return Err(Error::new(Status::Internal, "a copy to the device failed before")),
        };
        pinned[..bytes.len()].copy_from_slice(bytes);
        if !bytes.is_empty() {
            // SAFETY: what read this slot was the step before the last one that was begun, if any did: slots take turns. The
            // last one is only begun when that step has been waited for, whether it went well or not.
            slot.arrival = Some(unsafe { self.device.copy_beside(&slot.incoming, 0, pinned, bytes.len())? });
        } else {
            slot.pinned = Some(pinned);
        }
        self.staged = Some(Staged { slot: self.next, rows: batch.rows(), dtype, stride, raw });
        self.next = (self.next + 1) % SLOTS;
        Ok(())
    }

    /// Bytes of the device's memory.
    pub(super) fn bytes(&self) -> usize {
        self.slots.iter().map(|slot| slot.incoming.bytes()).sum()
    }

    fn make_slots(&mut self, bytes: usize) -> Result<()> {
        while self.slots.len() < SLOTS {
            let slot = Slot {
                pinned: Some(self.device.pinned(bytes, "a batch")?),
                arrival: None,
                incoming: self.device.allocate(bytes, "a batch")?,
            };
            self.slots.push(slot);
        }
        Ok(())
    }

    /// Enqueues what turns the staged batch into `x`, `[rows, stride]`; returns its tokens.
    ///
    /// # Panics
    /// If nothing was staged.
    pub(super) fn admit(&mut self, on: &Launcher<'_>, sizes: &Sizes, x: &DeviceMemory) -> Result<usize> {
        let staged = self.staged.take().expect("a batch that was staged");
        let slot = &self.slots[staged.slot];
        let Some(arrival) = &slot.arrival else { return Ok(staged.rows) };
        self.device.admit(arrival)?;
        let kernel = match (staged.dtype, sizes.element) {
            (Dtype::F32, Element::F32) => "kronsae_input_f32_f32",
            (Dtype::F32, Element::Bf16) => "kronsae_input_f32_bf16",
            (Dtype::Bf16, Element::F32) => "kronsae_input_bf16_f32",
            (Dtype::Bf16, Element::Bf16) => "kronsae_input_bf16_bf16",
            (Dtype::F16, Element::F32) => "kronsae_input_f16_f32",
            (Dtype::F16, Element::Bf16) => "kronsae_input_f16_bf16",
        };
        let mut arguments = Arguments::new();
        arguments.memory(&slot.incoming).push(staged.rows as u32).push(sizes.d as u32).push(staged.stride as u32);
        match self.normalisation.as_ref().filter(|_| staged.raw) {
            Some((mean, factor)) => arguments.memory(mean).push(*factor),
            None => arguments.null().push(1.0_f32),
        };
        arguments.memory(x).push(sizes.stride as u32);
        let pieces = staged.rows * sizes.stride * sizes.element.size() / 16;
        on.start(Kernel(kernel), pieces.div_ceil(256) as u32, 256, 0, &mut arguments)?;
        Ok(staged.rows)
    }
}
