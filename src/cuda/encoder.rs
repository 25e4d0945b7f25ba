//! Encoding on a device for hosts whose activations are not there: uploaded, encoded, downloaded.

use super::device::DeviceMemory;
use super::sae::{DeviceActivations, DeviceLatents, DeviceSae};
use crate::activations::Activations;
use crate::encode::{EncodeSummary, LatentsMut, ROW_NOT_FINITE, ROW_TRUNCATED, check_width};
use crate::error::{Error, Result};
use crate::memory::try_vec;
use crate::sae::Selection;
use std::sync::Arc;

/// Rows that go through at a time.
const MOST_ROWS: usize = 8192;

/// Turns activations in the host's memory into sparse latents on a device. Holds its buffers: one per thread of the host.
///
/// Results are the same for the same shape, device and library versions; they are not, bit for bit, those of
/// [`crate::Encoder`], whose pre-activations are computed in another order. Selection is exact on the pre-activations that the
/// device computed.
#[derive(Debug)]
pub struct DeviceEncoder {
    sae: Arc<DeviceSae>,
    room: Option<Room>,
}

/// Buffers for a number of rows.
#[derive(Debug)]
struct Room {
    rows: usize,
    capacity: usize,
    row_bytes: usize,
    x: DeviceMemory,
    counts: DeviceMemory,
    indices: DeviceMemory,
    values: DeviceMemory,
    active: DeviceMemory,
    flags: DeviceMemory,
    workspace: DeviceMemory,
    /// The host's side: counts, active, flags, indices, values, contiguous activations.
    host: Host,
}

#[derive(Debug)]
struct Host {
    x: Vec<u8>,
    counts: Vec<u32>,
    active: Vec<u32>,
    flags: Vec<u8>,
    indices: Vec<u32>,
    values: Vec<f32>,
}

impl Room {
    fn new(sae: &DeviceSae, rows: usize, capacity: usize, row_bytes: usize) -> Result<Self> {
        let device = &**sae.device();
        let allocate = |bytes: usize| device.allocate(bytes, "a batch on the device");
        let entries = rows.saturating_mul(capacity);
        let what = "a batch from the device";
        Ok(Room {
            rows,
            capacity,
            row_bytes,
            x: allocate(rows.saturating_mul(row_bytes))?,
            counts: allocate(rows * 4)?,
            indices: allocate(entries.saturating_mul(4))?,
            values: allocate(entries.saturating_mul(4))?,
            active: allocate(rows * 4)?,
            flags: allocate(rows)?,
            workspace: allocate(sae.workspace_bytes(rows)?)?,
            host: Host {
                x: try_vec(rows.saturating_mul(row_bytes), 0, what)?,
                counts: try_vec(rows, 0, what)?,
                active: try_vec(rows, 0, what)?,
                flags: try_vec(rows, 0, what)?,
                indices: try_vec(entries, 0, what)?,
                values: try_vec(entries, 0.0, what)?,
            },
        })
    }

    fn fits(&self, rows: usize, capacity: usize, row_bytes: usize) -> bool {
        self.rows >= rows && self.capacity == capacity && self.row_bytes == row_bytes
    }
}

fn bytes_mut<T: crate::memory::Plain>(values: &mut [T]) -> &mut [u8] {
    // SAFETY: plain numbers, for which any bytes are a value; the borrow is the same.
    unsafe { std::slice::from_raw_parts_mut(values.as_mut_ptr().cast(), size_of_val(values)) }
}

impl DeviceEncoder {
    /// An encoder for `sae`. It allocates at its first call.
    #[must_use]
    pub fn new(sae: Arc<DeviceSae>) -> Self {
        DeviceEncoder { sae, room: None }
    }

    /// The model on its device.
    #[must_use]
    pub fn sae(&self) -> &Arc<DeviceSae> {
        &self.sae
    }

    /// Encodes a batch, row by row, into `out`, and waits for it.
    ///
    /// # Errors
    /// [`crate::Status::InvalidArgument`] if the width is not the model's, the rows differ, or `out.capacity` is below K;
    /// [`crate::Status::OutOfMemory`]; [`crate::Status::Device`] if the device fails.
    pub fn encode(&mut self, x: Activations<'_>, out: &mut LatentsMut<'_>) -> Result<EncodeSummary> {
        check_width(x.d_model(), self.sae.d_model())?;
        out.check(x.rows())?;
        if let Selection::TopK(k) = self.sae.selection()
            && out.capacity() < k
        {
            return Err(Error::invalid(format!("latents: capacity {} is below K = {k}", out.capacity())));
        }
        let mut summary = EncodeSummary::default();
        // More than the model keeps is never written.
        let capacity = out.capacity().min(self.sae.selection().capacity());
        for first in (0..x.rows()).step_by(MOST_ROWS) {
            let part = x.slice(first..x.rows().min(first + MOST_ROWS));
            self.encode_part(part, first, capacity, out, &mut summary)?;
        }
        Ok(summary)
    }

    fn encode_part(
        &mut self,
        x: Activations<'_>,
        first: usize,
        capacity: usize,
        out: &mut LatentsMut<'_>,
        summary: &mut EncodeSummary,
    ) -> Result<()> {
        let (rows, row_bytes) = (x.rows(), x.d_model() * x.dtype().size());
        let room = match &mut self.room {
            Some(room) if room.fits(rows, capacity, row_bytes) => room,
            room => {
                // The old one first: both may be too much.
                *room = None;
                room.insert(Room::new(&self.sae, rows, capacity, row_bytes)?)
            }
        };
        for (row, to) in room.host.x.chunks_exact_mut(row_bytes).take(rows).enumerate() {
            x.copy_row(row, to);
        }
        let device = &**self.sae.device();
        device.upload(&room.x, 0, &room.host.x[..rows * row_bytes])?;
        let from = DeviceActivations {
            data: room.x.address(),
            dtype: x.dtype(),
            rows,
            d_model: x.d_model(),
            row_stride: row_bytes,
        };
        let to = DeviceLatents {
            counts: room.counts.address(),
            indices: room.indices.address(),
            values: room.values.address(),
            capacity,
            active: room.active.address(),
            flags: room.flags.address(),
            skipped: 0,
        };
        // SAFETY: this encoder's own buffers, of the sizes asked for, on the device's own stream.
        unsafe { self.sae.encode(&from, &to, room.workspace.address(), room.workspace.bytes(), device.stream()) }?;
        let host = &mut room.host;
        device.download(&room.counts, 0, bytes_mut(&mut host.counts[..rows]))?;
        device.download(&room.active, 0, bytes_mut(&mut host.active[..rows]))?;
        device.download(&room.flags, 0, &mut host.flags[..rows])?;
        device.download(&room.indices, 0, bytes_mut(&mut host.indices[..rows * capacity]))?;
        device.download(&room.values, 0, bytes_mut(&mut host.values[..rows * capacity]))?;
        for row in 0..rows {
            let entries = row * capacity..row * capacity + host.counts[row] as usize;
            let flags = host.flags[row];
            let (indices, values) = (&host.indices[entries.clone()], &host.values[entries]);
            out.write_row(first + row, indices, values, host.active[row], flags);
            summary.skipped_rows += usize::from(flags & ROW_NOT_FINITE != 0);
            summary.truncated_rows += usize::from(flags & ROW_TRUNCATED != 0);
        }
        Ok(())
    }
}
