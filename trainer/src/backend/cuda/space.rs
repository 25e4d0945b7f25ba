//! The memory a step works in, all of it allocated before the first one.

use super::abi::{Address, Numbers};
use super::sort::SortSpace;
use crate::backend::StepSettings;
use crate::collective::Share;
use kronsae::Result;
use kronsae::cuda::{Device, DeviceMemory, Element};
use kronsae::sae::{Encoder, padded};

/// Bytes of pre-activations that are held at a time, at most (one token's at least): a product this large keeps any device
/// busy, and what it leaves is selected from and decoded while part of it is still in the cache.
const PRE_ACTIVATION_BYTES: usize = 256 << 20;
/// Chunks are whole tiles of the product.
const CHUNK_TOKENS: usize = 128;

/// Sizes that everything follows from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Sizes {
    pub(super) encoder: Encoder,
    pub(super) d: usize,
    pub(super) stride: usize,
    /// Tokens of a batch, at most: of all ranks.
    pub(super) batch: usize,
    /// Ranks that share it.
    pub(super) ranks: u32,
    /// Tokens whose pre-activations are held at a time.
    pub(super) chunk: usize,
    /// Elements from one token's pre-activations to the next.
    pub(super) ldy: usize,
    pub(super) element: Element,
    pub(super) k: usize,
    /// Dead latents that a token may use; 0: no AuxK.
    pub(super) k_aux: usize,
}

impl Sizes {
    pub(super) fn new(
        encoder: Encoder,
        d: usize,
        batch: usize,
        ranks: u32,
        chunk: Option<usize>,
        settings: &StepSettings,
        element: Element,
    ) -> Self {
        let ldy = encoder.rows().next_multiple_of(16);
        let own = Share::each(batch, ranks);
        let chunks = (own * ldy * element.size()).div_ceil(PRE_ACTIVATION_BYTES).max(1);
        let even = own.div_ceil(chunks).next_multiple_of(CHUNK_TOKENS);
        Sizes {
            encoder,
            d,
            stride: padded(d),
            batch,
            ranks,
            chunk: chunk.unwrap_or(even).clamp(1, own.max(1)),
            ldy,
            element,
            k: settings.k,
            k_aux: settings.auxk.map_or(0, |auxk| auxk.k.min(encoder.latents())),
        }
    }

    /// Tokens that there is room for in what ranks gather.
    pub(super) fn room(&self) -> usize {
        Share::room(self.batch, self.ranks)
    }

    /// Words of a bit for each encoder row.
    pub(super) fn row_words(&self) -> usize {
        self.encoder.rows().div_ceil(32)
    }

    /// Encoder rows that a latent is made of.
    pub(super) fn rows_of_latent(&self) -> usize {
        match self.encoder {
            Encoder::Kron { .. } => 2,
            Encoder::Dense { .. } => 1,
        }
    }
}

/// What tokens touched, as selection and decoding write it. Up to `squares` each rank writes the rows of its own tokens and
/// gathers those of the others, so there is room for all ranks' parts, `[room]`: the batch, and padding of the last.
pub(super) struct Lists {
    /// u32 `[room]`, latents of a token.
    pub(super) counts: DeviceMemory,
    /// u32 `[room, k]`.
    pub(super) indices: DeviceMemory,
    /// f32 `[room, k]`.
    pub(super) values: DeviceMemory,
    /// u32 `[room, rows_of_latent * k]`.
    pub(super) row_ids: DeviceMemory,
    /// f32, likewise.
    pub(super) row_coefficients: DeviceMemory,
    /// `[room, stride]`, in the element type: the gradient by x_hat, or AuxK's by e_hat.
    pub(super) residual: DeviceMemory,
    /// f32 `[room]`: |x_hat - x|^2, or |e_hat - e|^2.
    pub(super) squares: DeviceMemory,
    /// u32 `[latents + 1]`: where the pairs of each latent start, sorted.
    pub(super) latent_starts: DeviceMemory,
    /// u32 `[rows + 1]`.
    pub(super) row_starts: DeviceMemory,
    pub(super) sort: SortSpace,
    /// Slots for latents, and for rows.
    pub(super) k: usize,
    pub(super) row_slots: usize,
}

impl Lists {
    fn new(device: &dyn Device, sizes: &Sizes, k: usize, what: &str) -> Result<Self> {
        let (batch, room, row_slots) = (sizes.batch, sizes.room(), sizes.rows_of_latent() * k);
        let words = |count: usize| device.allocate(count * 4, what);
        Ok(Lists {
            counts: words(room)?,
            indices: words(room * k)?,
            values: words(room * k)?,
            row_ids: words(room * row_slots)?,
            row_coefficients: words(room * row_slots)?,
            residual: device.allocate(room * sizes.stride * sizes.element.size(), "residuals")?,
            squares: words(room)?,
            latent_starts: words(sizes.encoder.latents() + 1)?,
            row_starts: words(sizes.encoder.rows() + 1)?,
            sort: SortSpace::new(device, batch * row_slots, sizes.stride)?,
            k,
            row_slots,
        })
    }
}

impl Lists {
    fn bytes(&self) -> usize {
        let Lists { counts, indices, values, row_ids, row_coefficients, residual, squares, .. } = self;
        let memory = [counts, indices, values, row_ids, row_coefficients, residual, squares];
        let starts = [&self.latent_starts, &self.row_starts];
        memory.into_iter().chain(starts).map(DeviceMemory::bytes).sum::<usize>() + self.sort.bytes()
    }
}

/// Where each number of [`Space::found`] lies: what a step leaves for the host, copied back at once.
pub(super) mod found {
    /// f64: sums over tokens of |x_hat - x|^2, of |x|^2, and of |e_hat - e|^2.
    pub(in crate::backend::cuda) const SQUARES: usize = 0;
    pub(in crate::backend::cuda) const NORMS: usize = 8;
    pub(in crate::backend::cuda) const AUX_SQUARES: usize = 16;
    /// u32: tokens that are not finite, and ranks that wish to stop: sums of [`super::Space::flags`]. Latents of all
    /// tokens; the dead; rows revived, and tokens there were for that.
    pub(in crate::backend::cuda) const NOT_FINITE: usize = 24;
    pub(in crate::backend::cuda) const STOPPING: usize = 28;
    pub(in crate::backend::cuda) const LATENTS: usize = 32;
    pub(in crate::backend::cuda) const DEAD_LATENTS: usize = 36;
    pub(in crate::backend::cuda) const DEAD_ROWS: usize = 40;
    pub(in crate::backend::cuda) const REVIVED: usize = 44;
    pub(in crate::backend::cuda) const ELIGIBLE: usize = 48;
    pub(in crate::backend::cuda) const BYTES: usize = 56;
}

/// Everything else.
pub(super) struct Space {
    /// `[batch, stride]`, in the element type.
    pub(super) x: DeviceMemory,
    /// `[chunk, ldy]`, in the element type.
    pub(super) y: DeviceMemory,
    /// f32 `[room]`, gathered as [`Lists`] are.
    pub(super) norms: DeviceMemory,
    pub(super) main: Lists,
    pub(super) aux: Option<Lists>,
    /// A bit for each row and rank, `[ranks, row_words]`: positive on some token of the rank's. Cleared at the step's end.
    pub(super) positive: DeviceMemory,
    /// u32 `[ranks, 2]`: tokens of the rank's that are not finite, and whether it wishes to stop. The host writes its
    /// rank's before each step.
    pub(super) flags: DeviceMemory,
    /// f32 `[ceil(batch / 64), stride]`.
    pub(super) column_sums: DeviceMemory,
    /// f32: squares of gradients by row: encoder, its bias, decoder, its bias; and of W's rows after the update.
    pub(super) squares: [DeviceMemory; 5],
    /// f64, for sums.
    pub(super) partial: DeviceMemory,
    pub(super) tile_counts: DeviceMemory,
    /// u32.
    pub(super) dead_latents: DeviceMemory,
    pub(super) dead_rows: DeviceMemory,
    pub(super) order: DeviceMemory,
    /// [`Numbers`].
    pub(super) numbers: DeviceMemory,
    /// f32 `[4]`.
    pub(super) factors: DeviceMemory,
    /// f64: 2, so that AuxK's gradients come without their factor, which the whole batch decides.
    pub(super) two: DeviceMemory,
    /// See [`found`].
    pub(super) found: DeviceMemory,
}

impl Space {
    pub(super) fn new(device: &dyn Device, sizes: &Sizes) -> Result<Self> {
        let (rows, latents) = (sizes.encoder.rows(), sizes.encoder.latents());
        let (stride, batch, size) = (sizes.stride, sizes.batch, sizes.element.size());
        let words = |count: usize, what: &str| device.allocate(count * 4, what);
        let gradients = "squares of gradients";
        let longest = batch.max(rows).max(latents).max(stride);
        let space = Space {
            x: device.allocate(batch * stride * size, "a batch")?,
            y: device.allocate(sizes.chunk * sizes.ldy * size, "pre-activations")?,
            norms: words(sizes.room(), "norms")?,
            main: Lists::new(device, sizes, sizes.k, "lists of latents")?,
            aux: match sizes.k_aux {
                0 => None,
                k => Some(Lists::new(device, sizes, k, "lists of dead latents")?),
            },
            positive: words(sizes.ranks as usize * sizes.row_words(), "rows that are positive")?,
            flags: words(2 * sizes.ranks as usize, "what ranks tell each other")?,
            column_sums: words(batch.div_ceil(64) * stride, "sums of columns")?,
            squares: [
                words(rows, gradients)?,
                words(rows, gradients)?,
                words(latents, gradients)?,
                words(stride, gradients)?,
                words(rows, gradients)?,
            ],
            partial: device.allocate(8 * super::abi::SUM_LISTS * longest.div_ceil(1024), "partial sums")?,
            tile_counts: words(latents.max(rows).div_ceil(1024), "counts of the dead")?,
            dead_latents: words(latents, "the dead latents")?,
            dead_rows: words(rows, "the dead rows")?,
            order: words(batch, "the order of tokens")?,
            numbers: device.allocate(size_of::<Numbers>(), "a step's numbers")?,
            factors: device.allocate(16, "factors of clipping")?,
            two: device.allocate(8, "a constant")?,
            found: device.allocate(found::BYTES, "a step's findings")?,
        };
        device.upload(&space.two, 0, &2.0_f64.to_ne_bytes())?;
        Ok(space)
    }

    /// Bytes of all of it.
    pub(super) fn bytes(&self) -> usize {
        let Space {
            x,
            y,
            norms,
            main,
            aux,
            positive,
            flags,
            column_sums,
            squares,
            partial,
            tile_counts,
            dead_latents,
            dead_rows,
            order,
            numbers,
            factors,
            two,
            found,
        } = self;
        let single = [x, y, norms, positive, column_sums, partial, tile_counts, dead_latents, dead_rows, order];
        let small = [flags, numbers, factors, two, found];
        let memory = single.into_iter().chain(small).chain(squares);
        let lists = [Some(main), aux.as_ref()].into_iter().flatten().map(Lists::bytes);
        memory.map(DeviceMemory::bytes).sum::<usize>() + lists.sum::<usize>()
    }

    /// The address of a number in `found`.
    pub(super) fn found(&self, at: usize) -> Address {
        self.found.at(at)
    }
}
