//! Sparse latents as the caller holds them: counts, indices, values, a fixed capacity a row.

use super::select::{RowOutcome, Selector};
use crate::error::{Error, Result};
use crate::memory::try_vec;

/// Bit of a row's flags: a pre-activation or product was not finite; the row has no latents.
pub const ROW_NOT_FINITE: u8 = 1;
/// Bit of a row's flags: more latents were active than `max_latents` or the capacity; the strongest were kept.
pub const ROW_TRUNCATED: u8 = 2;

/// The caller's buffers for the latents of a batch.
///
/// Row `r` is at `r * capacity` of `indices` and `values`, in the order of the format; its first `counts[r]` entries
/// are written and the others left untouched.
#[derive(Debug)]
pub struct LatentsMut<'a> {
    counts: &'a mut [u32],
    indices: &'a mut [u32],
    values: &'a mut [f32],
    capacity: usize,
    active: Option<&'a mut [u32]>,
    flags: Option<&'a mut [u8]>,
}

impl<'a> LatentsMut<'a> {
    /// Buffers of `capacity` entries a row.
    #[must_use]
    pub fn new(counts: &'a mut [u32], indices: &'a mut [u32], values: &'a mut [f32], capacity: usize) -> Self {
        LatentsMut { counts, indices, values, capacity, active: None, flags: None }
    }

    /// Also reports, for each row, how many latents were active before any cut.
    #[must_use]
    pub fn with_active(mut self, active: &'a mut [u32]) -> Self {
        self.active = Some(active);
        self
    }

    /// Also reports each row's flags: [`ROW_NOT_FINITE`], [`ROW_TRUNCATED`].
    #[must_use]
    pub fn with_flags(mut self, flags: &'a mut [u8]) -> Self {
        self.flags = Some(flags);
        self
    }

    /// Entries a row.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Writes one row as a device gave it: its first `indices.len()` latents, how many were active, its flags.
    ///
    /// # Panics
    /// If there is no such row, or the latents are more than the capacity or not as many as the values.
    #[cfg(any(feature = "cuda", feature = "cuda-emulation"))]
    pub(crate) fn write_row(&mut self, row: usize, indices: &[u32], values: &[f32], active: u32, flags: u8) {
        let start = row * self.capacity;
        assert!(indices.len() <= self.capacity, "{} latents, capacity {}", indices.len(), self.capacity);
        self.counts[row] = indices.len() as u32;
        self.indices[start..start + indices.len()].copy_from_slice(indices);
        self.values[start..start + indices.len()].copy_from_slice(values);
        if let Some(to) = &mut self.active {
            to[row] = active;
        }
        if let Some(to) = &mut self.flags {
            to[row] = flags;
        }
    }

    pub(crate) fn check(&self, rows: usize) -> Result<()> {
        let entries = rows.saturating_mul(self.capacity);
        let optional = |len: Option<usize>| len.unwrap_or(rows);
        for (what, found, expected) in [
            ("counts", self.counts.len(), rows),
            ("indices", self.indices.len(), entries),
            ("values", self.values.len(), entries),
            ("active", optional(self.active.as_ref().map(|a| a.len())), rows),
            ("row flags", optional(self.flags.as_ref().map(|f| f.len())), rows),
        ] {
            if found < expected {
                return Err(Error::invalid(format!(
                    "latents: {what} has room for {found} entries, {rows} rows need {expected}"
                )));
            }
        }
        if self.capacity == 0 && rows > 0 {
            return Err(Error::invalid("latents: capacity is 0"));
        }
        Ok(())
    }

    pub(super) fn shared(&mut self) -> SharedLatents {
        SharedLatents {
            counts: self.counts.as_mut_ptr(),
            indices: self.indices.as_mut_ptr(),
            values: self.values.as_mut_ptr(),
            capacity: self.capacity,
            active: self.active.as_mut().map(|a| a.as_mut_ptr()),
            flags: self.flags.as_mut().map(|f| f.as_mut_ptr()),
        }
    }
}

/// The buffers as the threads of a call share them, each writing its own rows.
pub(super) struct SharedLatents {
    counts: *mut u32,
    indices: *mut u32,
    values: *mut f32,
    capacity: usize,
    active: Option<*mut u32>,
    flags: Option<*mut u8>,
}

// SAFETY: every row is written by one thread alone, the promise of `write_row`.
unsafe impl Sync for SharedLatents {}

impl SharedLatents {
    /// Writes one row from what was selected; returns its flags.
    ///
    /// # Safety
    /// The buffers this was made of were checked for `row`, are still borrowed, and no other thread writes this row.
    pub(super) unsafe fn write_row(&self, row: usize, selector: &Selector, outcome: RowOutcome, kron: bool) -> u8 {
        let (active, mut flags) = match outcome {
            RowOutcome::Selected { active } => (active, 0),
            RowOutcome::NotFinite => (0, ROW_NOT_FINITE),
        };
        let written = match outcome {
            RowOutcome::Selected { .. } => selector.count().min(self.capacity),
            RowOutcome::NotFinite => 0,
        };
        if active > written {
            flags |= ROW_TRUNCATED;
        }
        // SAFETY: row is inside the checked buffers, written <= capacity.
        unsafe {
            let (indices, values) = (self.indices.add(row * self.capacity), self.values.add(row * self.capacity));
            for (at, (index, value)) in selector.selected().take(written).enumerate() {
                *indices.add(at) = index as u32;
                *values.add(at) = if kron { value.sqrt() } else { value };
            }
            *self.counts.add(row) = written as u32;
            if let Some(to) = self.active {
                *to.add(row) = active as u32;
            }
            if let Some(to) = self.flags {
                *to.add(row) = flags;
            }
        }
        flags
    }
}

/// The latents of a batch, owned.
#[derive(Debug, Clone, Default)]
pub struct Latents {
    /// Entries used of each row.
    pub counts: Vec<u32>,
    /// Latent indices, `[rows, capacity]`.
    pub indices: Vec<u32>,
    /// Latent values, `[rows, capacity]`.
    pub values: Vec<f32>,
    /// Flags of each row: [`ROW_NOT_FINITE`], [`ROW_TRUNCATED`].
    pub flags: Vec<u8>,
    /// Latents of each row that were active before any cut.
    pub active: Vec<u32>,
    /// Entries a row.
    pub capacity: usize,
}

impl Latents {
    /// Room for `rows` rows of `capacity` entries.
    ///
    /// # Errors
    /// [`crate::Status::OutOfMemory`].
    pub fn new(rows: usize, capacity: usize) -> Result<Self> {
        let entries = rows.saturating_mul(capacity);
        Ok(Latents {
            counts: try_vec(rows, 0, "latent counts")?,
            indices: try_vec(entries, 0, "latent indices")?,
            values: try_vec(entries, 0.0, "latent values")?,
            flags: try_vec(rows, 0, "row flags")?,
            active: try_vec(rows, 0, "active counts")?,
            capacity,
        })
    }

    /// The buffers to encode into.
    pub fn as_mut(&mut self) -> LatentsMut<'_> {
        LatentsMut::new(&mut self.counts, &mut self.indices, &mut self.values, self.capacity)
            .with_flags(&mut self.flags)
            .with_active(&mut self.active)
    }

    /// Number of rows.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.counts.len()
    }

    /// The latents of row `row`, in order: indices and values.
    ///
    /// # Panics
    /// If there is no such row.
    #[must_use]
    pub fn row(&self, row: usize) -> (&[u32], &[f32]) {
        let range = row * self.capacity..row * self.capacity + self.counts[row] as usize;
        (&self.indices[range.clone()], &self.values[range])
    }
}
