//! How the selection is launched: how much shared memory its blocks can use, and when a token is read by several blocks.

use super::device::{Address, Arguments, Device, Kernel, Stream};
use super::sae::{DeviceLatents, Shape};
use crate::error::Result;
use crate::sae::Selection;

/// `KRONSAE_LIST`, `KRONSAE_STAGES` and `KRONSAE_TILE_BYTES` of the kernels.
const LIST: usize = 1024;
const STAGES: usize = 3;
const TILE_BYTES: usize = 16384;

/// Threads of a block that selects.
const BLOCK: u32 = 512;
/// Threads of a block that looks for head maxima: few, so that there are many blocks for the few tokens.
const MAXIMA_BLOCK: u32 = 128;
/// Up to one token for so many blocks that run at once, tokens are read by several blocks each. One block a token would
/// leave most of the device idle then.
const BLOCKS_A_TOKEN: u32 = 4;

/// Which of the selection's kernels is meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Selecting {
    /// `kronsae_select`: reads the pre-activations itself.
    Rows {
        /// Whether it notes which rows were positive.
        positive: bool,
    },
    /// `kronsae_select_maxima` and `kronsae_select_dead`, which read only what they must.
    Lists,
}

/// Bytes of dynamic shared memory for a selection of up to `most` latents a token: what it needs, and what helps where
/// `device_bytes`, the most of a block on the device, leave room. Zero if what it needs does not fit.
#[must_use]
pub fn selection_shared_bytes(shape: &Shape, most: usize, selecting: Selecting, device_bytes: u32) -> u32 {
    let kept = most.next_power_of_two();
    let list = LIST.max(2 * kept);
    let room = |words: u32| (4 * words as usize).next_multiple_of(16);
    let (stages, positive) = match selecting {
        Selecting::Rows { positive } => (STAGES * TILE_BYTES, positive),
        Selecting::Lists => (0, false),
    };
    let needed = 8 * kept + 8 * list + stages;
    let mut helpful = needed;
    if shape.kind == 0 {
        helpful += room(shape.heads);
    }
    if positive {
        helpful += room(shape.rows.div_ceil(32));
    }
    // The kernel has some bytes of static shared memory besides.
    let most = (device_bytes as usize).saturating_sub(4096);
    if needed > most { 0 } else { helpful.min(most) as u32 }
}

/// A kernel and how it is launched.
#[derive(Debug, Clone, Copy)]
pub(super) struct Launch {
    pub(super) kernel: Kernel,
    pub(super) block: u32,
    pub(super) shared_bytes: u32,
    /// Blocks that run at once.
    pub(super) resident: u32,
}

impl Launch {
    pub(super) fn new(device: &dyn Device, kernel: Kernel, block: u32, shared_bytes: u32) -> Result<Self> {
        let resident = device.resident_blocks(kernel, block, shared_bytes)?;
        Ok(Launch { kernel, block, shared_bytes, resident })
    }

    /// # Safety
    /// As [`Device::launch_on`].
    pub(super) unsafe fn on(
        &self,
        device: &dyn Device,
        stream: Stream,
        grid: [u32; 2],
        arguments: &mut Arguments,
    ) -> Result<()> {
        // SAFETY: the caller's promise.
        unsafe { device.launch_on(stream, self.kernel, grid, self.block, self.shared_bytes, arguments) }
    }
}

/// The selection from f32 pre-activations, of one model on one device.
#[derive(Debug)]
pub(super) struct Selecter {
    shape: Shape,
    selection: Selection,
    /// f32, `[F]`, or 0: thresholds latent by latent.
    thresholds: Address,
    rows: Launch,
    /// For few tokens: the head maxima, and the selection from them. KronSAE only.
    split: Option<(Launch, Launch)>,
}

impl Selecter {
    pub(super) fn new(device: &dyn Device, shape: Shape, selection: Selection, thresholds: Address) -> Result<Self> {
        let shared = |selecting| selection_shared_bytes(&shape, selection.capacity(), selecting, device.shared_bytes());
        let bytes = shared(Selecting::Rows { positive: false });
        let rows = Launch::new(device, Kernel("kronsae_select_f32"), BLOCK, bytes)?;
        let split = if shape.kind == 0 {
            let maxima = Launch::new(device, Kernel("kronsae_head_maxima_f32"), MAXIMA_BLOCK, 0)?;
            let kernel = Kernel("kronsae_select_maxima_f32");
            Some((maxima, Launch::new(device, kernel, BLOCK, shared(Selecting::Lists))?))
        } else {
            None
        };
        Ok(Selecter { shape, selection, thresholds, rows, split })
    }

    /// The most tokens that are read by several blocks each.
    fn most_split(&self) -> u32 {
        self.split.map_or(0, |_| self.rows.resident / BLOCKS_A_TOKEN)
    }

    /// Bytes of memory to work in, for up to `tokens` tokens.
    pub(super) fn workspace(&self, tokens: usize) -> usize {
        tokens.min(self.most_split() as usize) * self.shape.heads as usize * size_of::<f32>()
    }

    /// Selects from `tokens` tokens' pre-activations at `y`, `stride` elements apart: those of the batch from `first` on.
    ///
    /// # Safety
    /// The addresses are of the device, as large as documented, and nobody else's until the work is done; there are
    /// [`Selecter::workspace`] bytes at `workspace`.
    pub(super) unsafe fn select(
        &self,
        device: &dyn Device,
        stream: Stream,
        y: Address,
        stride: u32,
        first: usize,
        tokens: u32,
        out: &DeviceLatents,
        workspace: Address,
    ) -> Result<()> {
        let (mode, theta) = match self.selection {
            Selection::TopK(_) => (0_u32, 0.0),
            Selection::Threshold { theta, .. } => (1, theta),
        };
        // Row `first` of each buffer, where there is one.
        let at = |address: Address, bytes: usize| if address == 0 { 0 } else { address + (first * bytes) as u64 };
        let mut arguments = Arguments::new();
        arguments.push(self.shape).push(y).push(stride).push(tokens);
        arguments.push(self.selection.capacity() as u32).push(mode).push(theta).push(self.thresholds);
        arguments
            .push(at(out.counts, 4))
            .push(at(out.indices, 4 * out.capacity))
            .push(at(out.values, 4 * out.capacity));
        arguments.push(out.capacity as u32).push(at(out.active, 4)).push(at(out.flags, 1));
        match &self.split {
            Some((maxima, from_maxima)) if tokens <= self.most_split() => {
                let mut of_heads = Arguments::new();
                of_heads.push(self.shape).push(y).push(stride).push(tokens).push(workspace).null();
                let blocks = (maxima.resident / tokens).clamp(1, self.shape.heads.div_ceil(maxima.block));
                arguments.push(out.skipped).push(workspace);
                // SAFETY: the arguments of kronsae_head_maxima and of kronsae_select_maxima, in their order; addresses as the
                // caller promises.
                unsafe {
                    maxima.on(device, stream, [blocks, tokens], &mut of_heads)?;
                    from_maxima.on(device, stream, [tokens.min(from_maxima.resident), 1], &mut arguments)
                }
            }
            _ => {
                arguments.null().push(out.skipped);
                // SAFETY: the arguments of kronsae_select, in its order; addresses as the caller promises.
                unsafe { self.rows.on(device, stream, [tokens.min(self.rows.resident), 1], &mut arguments) }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The numbers that are here and in the kernels are the same.
    #[test]
    fn constants_are_those_of_the_kernels() {
        let sources = [include_str!("../../cuda/candidates.cuh"), include_str!("../../cuda/stream.cuh")].concat();
        for (name, value) in [("KRONSAE_LIST", LIST), ("KRONSAE_STAGES", STAGES), ("KRONSAE_TILE_BYTES", TILE_BYTES)] {
            let line = format!("#define {name} {value}\n");
            assert!(sources.contains(&line), "cuda/ has not `{}`", line.trim());
        }
    }

    #[test]
    fn shared_memory_is_what_is_needed_and_what_fits() {
        let shape = Shape { kind: 0, heads: 8192, base: 2, extension: 4, rows: 49152, latents: 65536 };
        let rows = |positive| Selecting::Rows { positive };
        let of = |k, selecting, device| selection_shared_bytes(&shape, k, selecting, device);
        assert_eq!(of(50, rows(false), 227 << 10), 57_856 + 4 * 8192);
        assert_eq!(of(50, rows(true), 227 << 10), 57_856 + 4 * 8192 + 49152 / 8);
        assert_eq!(of(50, Selecting::Lists, 227 << 10), 512 + 8192 + 4 * 8192);
        // Where there is less, what helps is cut, and what is needed is not.
        assert_eq!(of(50, rows(true), 64 << 10), (64 << 10) - 4096);
        assert_eq!(of(50, rows(true), 48 << 10), 0);
    }
}
