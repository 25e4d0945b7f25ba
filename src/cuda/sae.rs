//! A model on a device: its encoder uploaded once, and encoding as a few kernels on the caller's stream.
//!
//! A batch goes through in tiles of tokens: converted, if the product cannot take it as it is; the product, which gives the
//! tile's pre-activations in f32, bias included; the selection. There is no buffer of tokens x latents, and that of tokens x
//! rows has the tile's size, however large the batch is.

use super::device::{Address, Argument, Arguments, Device, DeviceMemory, Element, Kernel, Product, Stream};
use super::selection::{Launch, Selecter};
use crate::dtype::Dtype;
use crate::error::{Error, Result, Status};
use crate::memory::try_vec;
use crate::sae::{ElementsRef, Encoder, MatrixRef, Sae, Selection, padded};
use std::sync::Arc;

/// The most latents of a token that the kernels select.
pub const MOST_LATENTS: usize = 512;

/// Bytes of a tile's pre-activations, unless [`LEAST_TILE`] asks for more: enough tokens for the product to run at full
/// speed, and a workspace that leaves the device to the model it is a guest of.
const TILE_BYTES: usize = 256 << 20;
/// Tokens of a tile, at least, and what their number is a multiple of.
const LEAST_TILE: usize = 128;
/// What parts of a workspace start at a multiple of.
const ALIGNMENT: usize = 256;
/// Threads of a block that converts.
const CONVERT_BLOCK: u32 = 256;

/// The shape of an encoder, as kernels take it: `Shape` of `cuda/common.cuh`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub struct Shape {
    /// 0: KronSAE, 1: dense.
    pub kind: u32,
    /// h; 0 for a dense one.
    pub heads: u32,
    /// m; 0 for a dense one.
    pub base: u32,
    /// n; 0 for a dense one.
    pub extension: u32,
    /// Rows of the encoder's matrix.
    pub rows: u32,
    /// F.
    pub latents: u32,
}

// SAFETY: repr(C), six numbers without padding, as the kernels have it.
unsafe impl Argument for Shape {}

impl Shape {
    /// The shape of this encoder. Its numbers fit: F is at most 2^30, and rows are at most 2 F.
    #[must_use]
    pub fn of(encoder: Encoder) -> Self {
        let (rows, latents) = (encoder.rows() as u32, encoder.latents() as u32);
        match encoder {
            Encoder::Kron { heads, base, extension } => {
                let (heads, base, extension) = (heads as u32, base as u32, extension as u32);
                Shape { kind: 0, heads, base, extension, rows, latents }
            }
            Encoder::Dense { .. } => Shape { kind: 1, heads: 0, base: 0, extension: 0, rows, latents },
        }
    }
}

/// A batch of activations on a device, `[rows, d_model]`.
#[derive(Debug, Clone, Copy)]
pub struct DeviceActivations {
    /// The first row, of any alignment; best a multiple of 16.
    pub data: Address,
    /// Type of the elements.
    pub dtype: Dtype,
    /// Number of rows (tokens).
    pub rows: usize,
    /// Elements of a row.
    pub d_model: usize,
    /// Bytes from one row to the next; best a multiple of 16. Rows may overlap.
    pub row_stride: usize,
}

/// Buffers on a device for the latents of a batch, laid out as [`crate::LatentsMut`] is: row `r` at `r * capacity`, its first
/// `counts[r]` entries in the order of the format, the others left as they are.
#[derive(Debug, Clone, Copy)]
pub struct DeviceLatents {
    /// u32, `[rows]`.
    pub counts: Address,
    /// u32, `[rows, capacity]`.
    pub indices: Address,
    /// f32, `[rows, capacity]`.
    pub values: Address,
    /// Entries a row.
    pub capacity: usize,
    /// u32, `[rows]`: how many were active before any cut; 0 for none.
    pub active: Address,
    /// u8, `[rows]`: [`crate::ROW_NOT_FINITE`], [`crate::ROW_TRUNCATED`]; 0 for none.
    pub flags: Address,
    /// u32, one number, to which the rows that are not finite are added; 0 for none.
    pub skipped: Address,
}

/// In which arithmetic pre-activations are computed. They are accumulated and selected from in f32 either way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Compute {
    /// As the model file has the encoder: BF16 weights in bf16, others in f32.
    #[default]
    Auto,
    /// True f32, without TF32.
    F32,
    /// Weights and activations are rounded to bfloat16, products are exact.
    Bf16,
}

/// How a model is put on a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct DeviceSaeOptions {
    /// The arithmetic of the products.
    pub compute: Compute,
    /// Tokens whose pre-activations exist at a time: they bound the workspace. 0: as many as take 256 MB, at least 128.
    pub tile: usize,
}

/// A model's encoder on a device: uploaded once, immutable, shared by any number of threads and streams.
pub struct DeviceSae {
    device: Arc<dyn Device>,
    encoder: Encoder,
    selection: Selection,
    d_model: usize,
    compute: Element,
    /// W, `[rows, padded(d_model)]`.
    weight: DeviceMemory,
    /// b, f32, `[rows]`.
    bias: DeviceMemory,
    /// f32, `[F]`: thresholds latent by latent.
    thresholds: Option<DeviceMemory>,
    convert: Launch,
    select: Selecter,
    /// Tokens whose pre-activations exist at a time.
    tile: usize,
}

/// Where the parts of a workspace start.
#[derive(Debug, Clone, Copy)]
struct Workspace {
    y: usize,
    x: usize,
    select: usize,
    bytes: usize,
}

/// Elements from one token's pre-activations to the next.
fn y_stride(rows: usize) -> usize {
    rows.next_multiple_of(8)
}

fn bytes_of<T: crate::memory::Plain>(values: &[T]) -> &[u8] {
    // SAFETY: plain numbers may be read as bytes; the borrow is the same.
    unsafe { std::slice::from_raw_parts(values.as_ptr().cast(), size_of_val(values)) }
}

/// Uploads a matrix, some rows at a time, as `element`: f32 is rounded to bf16, bf16 is widened.
fn upload_matrix(device: &dyn Device, matrix: MatrixRef<'_>, element: Element) -> Result<DeviceMemory> {
    let stride = padded(matrix.cols);
    let row_bytes = stride * element.size();
    let what = "the encoder's weights";
    let memory = device.allocate(matrix.rows.saturating_mul(row_bytes), what)?;
    let part_rows = ((4 << 20) / row_bytes).clamp(1, matrix.rows.max(1));
    let mut wide = try_vec(if element == Element::F32 { part_rows * stride } else { 0 }, 0.0_f32, what)?;
    let mut narrow = try_vec(if element == Element::Bf16 { part_rows * stride } else { 0 }, 0_u16, what)?;
    for first in (0..matrix.rows).step_by(part_rows) {
        let rows = part_rows.min(matrix.rows - first);
        for row in 0..rows {
            let (from, to) = ((first + row) * matrix.stride, row * stride);
            let (from, to) = (from..from + matrix.cols, to..to + matrix.cols);
            match (element, matrix.data) {
                (Element::F32, ElementsRef::F32(data)) => wide[to].copy_from_slice(&data[from]),
                (Element::F32, ElementsRef::Bf16(data)) => {
                    wide[to].iter_mut().zip(&data[from]).for_each(|(to, v)| *to = f32::from_bits(u32::from(*v) << 16));
                }
                (Element::Bf16, ElementsRef::F32(data)) => {
                    let round = |v: f32| half::bf16::from_f32(v).to_bits();
                    narrow[to].iter_mut().zip(&data[from]).for_each(|(to, v)| *to = round(*v));
                }
                (Element::Bf16, ElementsRef::Bf16(data)) => narrow[to].copy_from_slice(&data[from]),
            }
        }
        let part = match element {
            Element::F32 => bytes_of(&wide[..rows * stride]),
            Element::Bf16 => bytes_of(&narrow[..rows * stride]),
        };
        device.upload(&memory, first * row_bytes, part)?;
    }
    Ok(memory)
}

fn upload_vector(device: &dyn Device, values: &[f32], what: &str) -> Result<DeviceMemory> {
    let memory = device.allocate(size_of_val(values), what)?;
    device.upload(&memory, 0, bytes_of(values))?;
    Ok(memory)
}

impl DeviceSae {
    /// Uploads a model's encoder.
    ///
    /// # Errors
    /// [`Status::Unsupported`] if the model selects more than [`MOST_LATENTS`] latents a token or has a shape that the
    /// device's kernels cannot run; [`Status::OutOfMemory`]; [`Status::Device`] if the device fails.
    pub fn upload(device: Arc<dyn Device>, sae: &Sae, options: DeviceSaeOptions) -> Result<Self> {
        let config = sae.config();
        let capacity = config.selection.capacity();
        if capacity > MOST_LATENTS {
            return Err(Error::new(
                Status::Unsupported,
                format!(
                    "the model selects up to {capacity} latents a token; on a device, at most {MOST_LATENTS} (choose a \
                     smaller k or max_latents)"
                ),
            ));
        }
        let weights = sae.encoder();
        let compute = match (options.compute, weights.weight.dtype()) {
            (Compute::F32, _) | (Compute::Auto, Dtype::F32 | Dtype::F16) => Element::F32,
            (Compute::Bf16, _) | (Compute::Auto, Dtype::Bf16) => Element::Bf16,
        };
        let shape = Shape::of(config.encoder);
        let convert = match compute {
            Element::F32 => Kernel("kronsae_convert_f32"),
            Element::Bf16 => Kernel("kronsae_convert_bf16"),
        };
        let convert = Launch::new(&*device, convert, CONVERT_BLOCK, 0)?;
        let thresholds = match &weights.threshold {
            Some(thresholds) => Some(upload_vector(&*device, thresholds, "thresholds")?),
            None => None,
        };
        let thresholds_at = thresholds.as_ref().map_or(0, DeviceMemory::address);
        let select = Selecter::new(&*device, shape, config.selection, thresholds_at)?;
        let tile = match options.tile {
            0 => {
                let tokens = TILE_BYTES / (y_stride(config.encoder.rows()) * size_of::<f32>());
                (tokens / LEAST_TILE * LEAST_TILE).max(LEAST_TILE)
            }
            tokens => tokens,
        };
        Ok(DeviceSae {
            encoder: config.encoder,
            selection: config.selection,
            d_model: config.d_model,
            compute,
            weight: upload_matrix(&*device, weights.weight.as_ref(), compute)?,
            bias: upload_vector(&*device, &weights.bias, "the encoder's bias")?,
            thresholds,
            convert,
            select,
            tile,
            device,
        })
    }

    /// The device it is on.
    #[must_use]
    pub fn device(&self) -> &Arc<dyn Device> {
        &self.device
    }

    /// Width of an activation vector.
    #[must_use]
    pub fn d_model(&self) -> usize {
        self.d_model
    }

    /// Which latents are reported.
    #[must_use]
    pub fn selection(&self) -> Selection {
        self.selection
    }

    /// The arithmetic of its products.
    #[must_use]
    pub fn compute(&self) -> Element {
        self.compute
    }

    /// Bytes of device memory it holds.
    #[must_use]
    pub fn held_bytes(&self) -> usize {
        self.weight.bytes() + self.bias.bytes() + self.thresholds.as_ref().map_or(0, DeviceMemory::bytes)
    }

    fn layout(&self, rows: usize) -> Workspace {
        let tile = rows.min(self.tile);
        let y = self.device.product_workspace().next_multiple_of(ALIGNMENT);
        let x = y + (tile * y_stride(self.encoder.rows()) * size_of::<f32>()).next_multiple_of(ALIGNMENT);
        let select = x + (tile * padded(self.d_model) * self.compute.size()).next_multiple_of(ALIGNMENT);
        let bytes = select + self.select.workspace(tile).next_multiple_of(ALIGNMENT);
        Workspace { y, x, select, bytes }
    }

    /// Bytes of workspace that batches of up to `rows` rows need, and decides how their products are computed, so that none
    /// of it has to be done by [`DeviceSae::encode`], or while it is captured.
    ///
    /// # Errors
    /// [`Status::Unsupported`] if the device has no way to compute the product.
    pub fn workspace_bytes(&self, rows: usize) -> Result<usize> {
        if rows > 0 {
            let mut tokens = vec![rows.min(self.tile)];
            if rows > self.tile && !rows.is_multiple_of(self.tile) {
                tokens.push(rows % self.tile);
            }
            let (inner, stride) = (self.d_model as u32, padded(self.d_model) as u32);
            for tokens in tokens {
                // As it is converted, and as most hosts have it: contiguous.
                self.device.prepare_product(&self.product(tokens as u32, stride, stride))?;
                if (self.d_model * self.compute.size()).is_multiple_of(16) && inner != stride {
                    self.device.prepare_product(&self.product(tokens as u32, inner, inner))?;
                }
            }
        }
        Ok(self.layout(rows).bytes)
    }

    /// The product of a tile, without the addresses that differ.
    fn product(&self, tokens: u32, inner: u32, x_stride: u32) -> Product {
        let rows = self.encoder.rows();
        Product {
            tokens,
            rows: rows as u32,
            inner,
            input: self.compute,
            output: Element::F32,
            x: 0,
            x_stride,
            w: self.weight.address(),
            w_stride: padded(self.d_model) as u32,
            bias: self.bias.address(),
            y: 0,
            y_stride: y_stride(rows) as u32,
            workspace: 0,
        }
    }

    /// Whether the product can read the rows where they are; elements from one to the next then.
    fn in_place(&self, x: &DeviceActivations) -> Option<u32> {
        let size = self.compute.size();
        let same = match self.compute {
            Element::F32 => x.dtype == Dtype::F32,
            Element::Bf16 => x.dtype == Dtype::Bf16,
        };
        // A batch of one row has whatever stride suits.
        let stride = if x.rows == 1 { self.d_model * size } else { x.row_stride };
        let aligned =
            x.data.is_multiple_of(16) && stride.is_multiple_of(16) && (self.d_model * size).is_multiple_of(16);
        (same && aligned && stride >= self.d_model * size).then(|| u32::try_from(stride / size).ok()).flatten()
    }

    fn check(&self, x: &DeviceActivations, out: &DeviceLatents, bytes: usize, workspace: Address) -> Result<()> {
        crate::encode::check_width(x.d_model, self.d_model)?;
        if u32::try_from(x.rows).is_err() {
            return Err(Error::invalid(format!("activations: {} rows, expected at most {}", x.rows, u32::MAX)));
        }
        if x.rows == 0 {
            return Ok(());
        }
        if let Selection::TopK(k) = self.selection
            && out.capacity < k
        {
            return Err(Error::invalid(format!("latents: capacity {} is below K = {k}", out.capacity)));
        }
        if out.capacity == 0 || u32::try_from(out.capacity).is_err() {
            return Err(Error::invalid(format!("latents: capacity {}, expected 1 to {}", out.capacity, u32::MAX)));
        }
        for (what, address) in [
            ("activations", x.data),
            ("counts", out.counts),
            ("indices", out.indices),
            ("values", out.values),
            ("workspace", workspace),
        ] {
            if address == 0 {
                return Err(Error::invalid(format!("{what} is null, expected an address on the device")));
            }
        }
        for (what, address) in [
            ("counts", out.counts),
            ("indices", out.indices),
            ("values", out.values),
            ("active", out.active),
            ("skipped", out.skipped),
        ] {
            if address % 4 != 0 {
                return Err(Error::invalid(format!("{what} at {address:#x} is misaligned, expected a multiple of 4")));
            }
        }
        let needed = self.layout(x.rows).bytes;
        if !workspace.is_multiple_of(ALIGNMENT as u64) || bytes < needed {
            return Err(Error::invalid(format!(
                "workspace: {bytes} bytes at {workspace:#x}, expected {needed} bytes for {} rows, at a multiple of \
                 {ALIGNMENT}",
                x.rows
            )));
        }
        Ok(())
    }

    /// Enqueues the encoding of a batch on the caller's stream: kernels only. It allocates nothing, waits for nothing, and
    /// may be captured in a graph, once batches of this number of rows were asked for by [`DeviceSae::workspace_bytes`] and
    /// one was encoded outside a capture.
    ///
    /// # Errors
    /// [`Status::InvalidArgument`] if the width is not the model's, the capacity is below K, a buffer is null or misaligned,
    /// the workspace is smaller than [`DeviceSae::workspace_bytes`] says, or the stream is of another device. Nothing was
    /// enqueued then. [`Status::Device`] if the device fails.
    ///
    /// # Safety
    /// The addresses are of this device, and buffers are as large as documented; nobody else writes what is read, or touches
    /// what is written or the workspace, until the work is done. `stream` is a live stream.
    pub unsafe fn encode(
        &self,
        x: &DeviceActivations,
        out: &DeviceLatents,
        workspace: Address,
        workspace_bytes: usize,
        stream: Stream,
    ) -> Result<()> {
        self.check(x, out, workspace_bytes, workspace)?;
        self.device.check_stream(stream)?;
        // SAFETY: the caller's promise; checked.
        unsafe { self.enqueue(x, out, workspace, stream, self.in_place(x)) }
    }

    /// As [`DeviceSae::encode`], but reads in place only rows that are contiguous, for whose products
    /// [`DeviceSae::workspace_bytes`] has decided, so that nothing is left to decide here; and does not look at the stream.
    ///
    /// # Errors
    /// As [`DeviceSae::encode`], the stream aside.
    ///
    /// # Safety
    /// As [`DeviceSae::encode`], and `stream` is of this device.
    pub(crate) unsafe fn encode_decided(
        &self,
        x: &DeviceActivations,
        out: &DeviceLatents,
        workspace: Address,
        workspace_bytes: usize,
        stream: Stream,
    ) -> Result<()> {
        self.check(x, out, workspace_bytes, workspace)?;
        let contiguous = self.in_place(x).filter(|stride| *stride as usize == self.d_model);
        // SAFETY: the caller's promise; checked.
        unsafe { self.enqueue(x, out, workspace, stream, contiguous) }
    }

    /// Encodes a batch that was checked; `in_place`: elements from one row to the next, if the product can read them so.
    ///
    /// # Safety
    /// As [`DeviceSae::encode`].
    unsafe fn enqueue(
        &self,
        x: &DeviceActivations,
        out: &DeviceLatents,
        workspace: Address,
        stream: Stream,
        in_place: Option<u32>,
    ) -> Result<()> {
        let layout = self.layout(x.rows);
        let stride = padded(self.d_model) as u32;
        let (x_at, y_at) = (workspace + layout.x as u64, workspace + layout.y as u64);
        let mut first = 0;
        while first < x.rows {
            let tokens = self.tile.min(x.rows - first);
            let from = x.data + (first * x.row_stride) as u64;
            let mut product = match in_place {
                Some(x_stride) => Product { x: from, ..self.product(tokens as u32, self.d_model as u32, x_stride) },
                None => Product { x: x_at, ..self.product(tokens as u32, stride, stride) },
            };
            product.y = y_at;
            product.workspace = workspace;
            // SAFETY: the caller's promise of the batch, the buffers and the stream; the workspace was found large enough for
            // a tile of each part. Work of one stream does not overlap, so the next tile may use the same.
            unsafe {
                if in_place.is_none() {
                    self.convert(stream, x, from, tokens as u32, x_at)?;
                }
                self.device.product_on(stream, &product)?;
                let (stride, at) = (y_stride(self.encoder.rows()) as u32, workspace + layout.select as u64);
                self.select.select(&*self.device, stream, y_at, stride, first, tokens as u32, out, at)?;
            }
            first += tokens;
        }
        Ok(())
    }

    /// # Safety
    /// As [`DeviceSae::encode`]; there is room for `tokens` rows at `to`.
    unsafe fn convert(
        &self,
        stream: Stream,
        x: &DeviceActivations,
        from: Address,
        tokens: u32,
        to: Address,
    ) -> Result<()> {
        let mut arguments = Arguments::new();
        arguments.push(from).push(x.dtype as i32 as u32).push(x.row_stride as u64).push(tokens);
        arguments.push(self.d_model as u32).push(to).push(padded(self.d_model) as u32);
        // SAFETY: the arguments of kronsae_convert, in its order; addresses as the caller promises.
        unsafe { self.convert.on(&*self.device, stream, [tokens.min(self.convert.resident), 1], &mut arguments) }
    }
}

impl std::fmt::Debug for DeviceSae {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "DeviceSae[{:?} on {}]", self.encoder, self.device.name())
    }
}
