//! Activations to sparse latents: pre-activations by `dot/1`, of all rows or of those that screening leaves, then exact
//! selection.

mod candidates;
mod latents;
mod maxima;
mod path;
mod plan;
mod screen;
mod select;
mod watch;

pub use latents::{Latents, LatentsMut, ROW_NOT_FINITE, ROW_TRUNCATED};
pub use path::{AutoRule, EncodePath};
pub use plan::{Instruction, Plan};
pub use select::{RowOutcome, Selector};
pub use watch::{Watch, WatchRule};

use crate::activations::Activations;
use crate::error::{Error, Result};
use crate::float_env::FloatEnv;
use crate::memory::Aligned;
use crate::sae::{MatrixRef, Sae, Selection, padded};
use crate::simd::{self, Isa};
use crate::threads::{Divided, Pool};
use latents::SharedLatents;
use screen::{Parts, Screener};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Tokens whose pre-activations exist at a time.
const TILE_TOKENS: usize = 128;
/// Of these, those that the plain path takes at a time: a multiple of what its kernel has in registers.
const PLAIN_TOKENS: usize = 48;
/// Rows that one thread takes at a time: a few cache lines of output, a first-level cache of weights.
const BLOCK_ROWS: usize = 16;

/// If more than one row in so many was left by screening, it did not pay.
const MOST_RESCORED: usize = 4;
/// Calls that are not screened then.
const PAUSE: u32 = 100;

/// How an [`Encoder`] works.
#[derive(Debug, Clone, Copy)]
pub struct EncoderOptions {
    /// Threads of a call, the caller's included. Never more are used, and few rows may use fewer.
    pub threads: usize,
    /// How results are found. They do not depend on it.
    pub path: EncodePath,
}

impl Default for EncoderOptions {
    /// One thread: the caller's; whichever path is faster.
    fn default() -> Self {
        EncoderOptions { threads: 1, path: EncodePath::Auto }
    }
}

/// What an encode did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct EncodeSummary {
    /// Rows that were not finite and have no latents.
    pub skipped_rows: usize,
    /// Rows that had more active latents than could be kept.
    pub truncated_rows: usize,
}

/// What the screened path of an [`Encoder`] reads and recomputes, for reports.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Screening {
    /// Batches of at most so many rows are screened.
    pub most_rows: usize,
    /// Bytes that a pass over the int8 copy reads, with its scales and bounds: for a single row, and for
    /// [`Screening::tile_rows`].
    pub copy_bytes: [usize; 2],
    /// Bytes of memory that the copy takes, for all encoders of a model together.
    pub held_bytes: usize,
    /// Rows that one pass serves, at most.
    pub tile_rows: usize,
    /// Encoder rows whose bounds were narrowed by the second int8 plane, of all tokens since the encoder was made.
    pub refined_rows: usize,
    /// Encoder rows that screening left to be computed exactly, of all tokens since the encoder was made.
    pub recomputed_rows: usize,
}

/// Turns activations into sparse latents. Holds its workspace and its threads: one per thread of the host.
///
/// Results are a function of token and model alone: batch size, row position, thread count and instruction set never
/// change a bit. After the first call it allocates nothing.
#[derive(Debug)]
pub struct Encoder {
    sae: Arc<Sae>,
    isa: Isa,
    pool: Pool,
    /// One for each thread.
    selectors: Vec<Selector>,
    /// A tile of tokens widened to f32, `[TILE_TOKENS, padded(d_model)]`.
    x: Aligned<f32>,
    /// Their pre-activations, `[TILE_TOKENS, y_stride(rows)]`.
    y: Aligned<f32>,
    tile_tokens: usize,
    screener: Option<Screener>,
    /// Batches of at most so many rows are screened.
    most_screened: usize,
    /// Whether screening was chosen here, and may be given up where it rules out little.
    adapts: bool,
    /// Calls that take the plain path before screening is tried again.
    pause: u32,
}

/// What the threads of a call count together.
#[derive(Debug, Default)]
struct Counts {
    skipped: AtomicUsize,
    truncated: AtomicUsize,
}

impl Counts {
    /// Counts a row by its flags.
    fn add(&self, flags: u8) {
        self.skipped.fetch_add(usize::from(flags & ROW_NOT_FINITE != 0), Ordering::Relaxed);
        self.truncated.fetch_add(usize::from(flags & ROW_TRUNCATED != 0), Ordering::Relaxed);
    }
}

impl Encoder {
    /// An encoder for `sae`.
    ///
    /// # Errors
    /// [`crate::Status::InvalidArgument`] for a thread count of 0 or above 1,024, [`crate::Status::OutOfMemory`],
    /// [`crate::Status::Unsupported`] if `KRONSAE_ISA` forces an instruction set this CPU lacks or `KRONSAE_ENCODE` names
    /// no path.
    pub fn new(sae: Arc<Sae>, options: EncoderOptions) -> Result<Self> {
        Self::with_isa(sae, options, Isa::detect()?)
    }

    /// As [`Encoder::new`], on a given instruction set. Results do not depend on it; this is for tests and measurements.
    ///
    /// # Errors
    /// As [`Encoder::new`].
    pub fn with_isa(sae: Arc<Sae>, options: EncoderOptions, isa: Isa) -> Result<Self> {
        let _env = FloatEnv::enter();
        let path = options.path.resolve()?;
        let mut pool = Pool::new(options.threads, "encode")?;
        let config = sae.config();
        let rows = config.encoder.rows();
        let mut selectors = Vec::new();
        for _ in 0..options.threads {
            let threshold = sae.encoder().threshold.as_deref();
            selectors.push(Selector::new(config.encoder, config.selection, threshold, isa)?);
        }
        // Very wide encoders take fewer tokens at a time, so that the workspace stays within some 32 MB.
        let most_screened = path.most_screened(&sae, isa);
        let most_tokens = if most_screened == 0 { PLAIN_TOKENS } else { TILE_TOKENS };
        let tile_tokens = ((8 << 20) / rows).clamp(6, most_tokens);
        let x = Aligned::zeroed(tile_tokens * padded(config.d_model), "the encoder's tokens")?;
        let y = Aligned::zeroed(tile_tokens * y_stride(rows), "the encoder's pre-activations")?;
        let screener = match most_screened {
            0 => None,
            _ => Screener::new(&sae, isa, &mut pool, tile_tokens, path == EncodePath::Fast)?,
        };
        Ok(Encoder {
            isa,
            pool,
            selectors,
            x,
            y,
            tile_tokens,
            screener,
            most_screened,
            adapts: path == EncodePath::Auto,
            pause: 0,
            sae,
        })
    }

    /// The model.
    #[must_use]
    pub fn sae(&self) -> &Arc<Sae> {
        &self.sae
    }

    /// The instruction set in use.
    #[must_use]
    pub fn isa(&self) -> Isa {
        self.isa
    }

    /// What the screened path reads and recomputes; None where this encoder never takes it.
    #[must_use]
    pub fn screening(&self) -> Option<Screening> {
        self.screener.as_ref().map(|screener| Screening {
            most_rows: self.most_screened,
            copy_bytes: [1, screener.tile_tokens()].map(|tokens| screener.copy_bytes(tokens)),
            held_bytes: screener.held_bytes(),
            tile_rows: screener.tile_tokens(),
            refined_rows: screener.refined(),
            recomputed_rows: screener.rescored(),
        })
    }

    /// Whether this process is a fork of the one that made the encoder; calls return [`crate::Status::Forked`] then.
    #[must_use]
    pub fn is_forked(&self) -> bool {
        self.pool.is_forked()
    }

    /// Encodes a batch, row by row, into `out`.
    ///
    /// # Errors
    /// [`crate::Status::InvalidArgument`] if the width is not the model's, the rows differ, or `out.capacity` is below
    /// K (TopK selection; with a threshold, the first `capacity` are written). [`crate::Status::Forked`] in a child process.
    pub fn encode(&mut self, x: Activations<'_>, out: &mut LatentsMut<'_>) -> Result<EncodeSummary> {
        let config = self.sae.config();
        check_width(x.d_model(), config.d_model)?;
        out.check(x.rows())?;
        if let Selection::TopK(k) = config.selection
            && out.capacity() < k
        {
            return Err(Error::invalid(format!("latents: capacity {} is below K = {k}", out.capacity())));
        }
        let counts = Counts::default();
        let out = out.shared();
        match &mut self.screener {
            Some(screener) if x.rows() <= self.most_screened && self.pause == 0 => {
                let before = screener.rescored();
                let Encoder { sae, isa, pool, selectors, x: tile_x, y: tile_y, .. } = self;
                let parts = Parts { sae, isa: *isa, pool, selectors, x: tile_x, y: tile_y };
                screener.encode(parts, x, &out, &counts)?;
                let computed = screener.rescored() - before;
                if self.adapts && computed > x.rows() * self.sae.config().encoder.rows() / MOST_RESCORED {
                    self.pause = PAUSE;
                }
            }
            _ => {
                self.pause = self.pause.saturating_sub(1);
                self.encode_plain(x, &out, &counts)?;
            }
        }
        Ok(EncodeSummary { skipped_rows: counts.skipped.into_inner(), truncated_rows: counts.truncated.into_inner() })
    }

    /// All rows by `dot/1`.
    fn encode_plain(&mut self, x: Activations<'_>, out: &SharedLatents, counts: &Counts) -> Result<()> {
        let config = self.sae.config();
        let weight = self.sae.encoder().weight.as_ref();
        let bias = &self.sae.encoder().bias;
        let kron = matches!(config.encoder, crate::sae::Encoder::Kron { .. });
        let (isa, x_stride, rows) = (self.isa, padded(weight.cols), weight.rows);
        let tile_tokens = self.tile_tokens.min(PLAIN_TOKENS);
        let tile_x = Divided::of(&mut self.x);
        let (tile_y, y_stride) = (Divided::of(&mut self.y), y_stride(rows));
        let selectors = Divided::of(&mut self.selectors);

        self.pool.run(&|worker| {
            // SAFETY: each thread takes the selector of its own index.
            let selector = unsafe { &mut selectors.slice(worker.index..worker.index + 1)[0] };
            let mut start = 0;
            while start < x.rows() {
                let tokens = tile_tokens.min(x.rows() - start);
                for t in worker.share(tokens, 1) {
                    // SAFETY: shares are disjoint, and the barrier below separates these writes from all reads.
                    x.widen_row(start + t, unsafe { tile_x.slice(t * x_stride..(t + 1) * x_stride) });
                }
                worker.wait();
                let share = worker.share(rows, BLOCK_ROWS);
                let mut block = share.start;
                while block < share.end {
                    let end = (block + BLOCK_ROWS).min(share.end);
                    // SAFETY: nobody writes x between the two barriers; this thread alone writes its rows of y, whose
                    // extent is tile_tokens * y_stride; the selectors read y after the next barrier.
                    unsafe {
                        let x = tile_x.read(0..tokens * x_stride);
                        simd::pre_activations(
                            isa,
                            weight,
                            bias,
                            x,
                            x_stride,
                            tokens,
                            block..end,
                            tile_y.pointer(),
                            y_stride,
                        );
                    }
                    block = end;
                }
                worker.wait();
                for t in worker.share(tokens, 1) {
                    // SAFETY: y is only read between this barrier and the next tile's first; each row of `out` belongs
                    // to the one thread whose share it is in.
                    unsafe {
                        let outcome = selector.select(tile_y.read(t * y_stride..t * y_stride + rows));
                        counts.add(out.write_row(start + t, selector, outcome, kron));
                    }
                }
                // The next tile overwrites y, but only after the barrier behind the widening of x.
                start += tokens;
            }
        })
    }
}

/// Elements from one token's pre-activations to the next: whole cache lines, an odd number of them, for rows are written
/// token by token, and a power of two between tokens would have all of a row's lines compete for one set of the cache.
fn y_stride(rows: usize) -> usize {
    const LINE: usize = 16;
    (rows.div_ceil(LINE) | 1) * LINE
}

pub(crate) fn check_width(found: usize, expected: usize) -> Result<()> {
    if found == expected {
        return Ok(());
    }
    Err(Error::invalid(format!("activations have d_model {found}, the model expects {expected}")))
}

/// Pre-activations of f32 tokens by `dot/1`, on the caller's thread: `out[t * out_stride + r]` for each row r of `rows`.
///
/// This is the linear stage alone, for the trainer and for tests. `x` holds tokens `x_stride` elements apart, a multiple
/// of 16, zero-padded; `tokens` of them.
///
/// # Panics
/// If a slice is too short for its shape.
pub fn pre_activations(
    isa: Isa,
    weight: MatrixRef<'_>,
    bias: &[f32],
    x: &[f32],
    x_stride: usize,
    tokens: usize,
    rows: Range<usize>,
    out: &mut [f32],
    out_stride: usize,
) {
    assert!(tokens == 0 || out.len() >= (tokens - 1) * out_stride + rows.end, "out is too short");
    let _env = FloatEnv::enter();
    // SAFETY: `out` is exclusive and long enough for every token and row.
    unsafe { simd::pre_activations(isa, weight, bias, x, x_stride, tokens, rows, out.as_mut_ptr(), out_stride) }
}
