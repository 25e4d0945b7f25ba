//! Batches of normalised activations, in the order of [`Order`], with the next window read while this one is used.

use super::order::{BLOCK, Order, Window};
use super::shards::Dataset;
use super::spread;
use kronsae::dtype::widen;
use kronsae::{Aligned, Dtype, Error, Result, Status};
use std::ops::Range;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

/// How raw activations become the unit-scale, zero-mean ones that training sees: `(x - mean) / scale`.
#[derive(Debug, Clone, PartialEq)]
pub struct Normalisation {
    /// mu, `[d_model]`.
    pub mean: Vec<f32>,
    /// c, with E|x - mu|^2 = c^2 d.
    pub scale: f32,
}

/// A source of batches.
pub struct Batches {
    order: Order,
    batch: usize,
    dtype: Dtype,
    d_model: usize,
    normalisation: Arc<Normalisation>,
    loaded: Option<Loaded>,
    /// A window to read, and memory to read it into.
    ask: SyncSender<(Window, Vec<u8>)>,
    answer: Receiver<Result<Loaded>>,
    /// The window the reader has been asked for.
    asked: Option<Window>,
    reader: Option<std::thread::JoinHandle<()>>,
    raw: Vec<f32>,
    /// Of the window before: fresh memory would be zeroed, page by page, before it is read into.
    spare: Vec<u8>,
}

/// One window in memory, its rows as they are in the shards.
struct Loaded {
    window: Window,
    bytes: Vec<u8>,
}

/// What a batch holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Filled {
    /// Rows written.
    pub rows: usize,
    /// Tokens left out because an element was not finite.
    pub skipped: usize,
}

impl Batches {
    /// Batches of `batch` tokens of `rows` of the data set. `window_tokens` are held in memory, half of them read ahead.
    ///
    /// # Errors
    /// [`Status::OutOfMemory`] if the reading thread cannot be started.
    pub fn new(
        data: Arc<Dataset>,
        rows: Range<usize>,
        batch: usize,
        window_tokens: usize,
        seed: u64,
        normalisation: Arc<Normalisation>,
    ) -> Result<Self> {
        let window_blocks = (window_tokens / 2 / BLOCK).max(1);
        let order = Order { rows: rows.len(), window_blocks, seed };
        let (dtype, d_model) = (data.dtype(), data.d_model());
        let (ask, asked) = sync_channel::<(Window, Vec<u8>)>(1);
        let (reply, answer) = sync_channel(1);
        let reader = std::thread::Builder::new()
            .name("kronsae-read".into())
            .spawn(move || {
                for (window, room) in asked {
                    if reply.send(read_window(&data, rows.start, &order, window, room)).is_err() {
                        return;
                    }
                }
            })
            .map_err(|e| Error::new(Status::OutOfMemory, format!("cannot start the reading thread: {e}")))?;
        Ok(Batches {
            order,
            batch,
            dtype,
            d_model,
            normalisation,
            loaded: None,
            ask,
            answer,
            asked: None,
            reader: Some(reader),
            raw: vec![0.0; d_model],
            spare: Vec::new(),
        })
    }

    /// Fills `out`, rows `stride` apart, with batch `t`.
    ///
    /// # Errors
    /// Those of reading the shards.
    ///
    /// # Panics
    /// If `out` has no room for a batch.
    pub fn fill(&mut self, t: u64, out: &mut Aligned<f32>, stride: usize) -> Result<Filled> {
        let row_bytes = self.d_model * self.dtype.size();
        let mut filled = Filled { rows: 0, skipped: 0 };
        let mut at = t * self.batch as u64;
        let end = at + self.batch as u64;
        while at < end {
            let place = self.order.place(at);
            self.load(place.window)?;
            let Some(loaded) = &self.loaded else { unreachable!("load returned without a window") };
            let shuffle = self.order.within(place.window, place.len);
            let count = ((end - at) as usize).min(place.len - place.offset);
            for offset in place.offset..place.offset + count {
                let from = shuffle.apply(offset) * row_bytes;
                widen(self.dtype, &loaded.bytes[from..from + row_bytes], &mut self.raw);
                let to = &mut out[filled.rows * stride..][..self.d_model];
                let scale = self.normalisation.scale.recip();
                let mut finite = true;
                for ((t, &x), &mean) in to.iter_mut().zip(&self.raw).zip(&self.normalisation.mean) {
                    *t = (x - mean) * scale;
                    finite &= t.is_finite();
                }
                filled.rows += usize::from(finite);
                filled.skipped += usize::from(!finite);
            }
            at += count as u64;
        }
        Ok(filled)
    }

    /// Fills `out` with batch `t` as the shards have it, rows one behind the other.
    ///
    /// # Errors
    /// Those of reading the shards.
    ///
    /// # Panics
    /// If `out` has no room for a batch.
    pub fn gather(&mut self, t: u64, out: &mut [u8]) -> Result<Filled> {
        let (dtype, row_bytes) = (self.dtype, self.d_model * self.dtype.size());
        let mut filled = Filled { rows: 0, skipped: 0 };
        let mut at = t * self.batch as u64;
        let end = at + self.batch as u64;
        while at < end {
            let place = self.order.place(at);
            self.load(place.window)?;
            let Some(loaded) = &self.loaded else { unreachable!("load returned without a window") };
            let shuffle = self.order.within(place.window, place.len);
            let count = ((end - at) as usize).min(place.len - place.offset);
            let from = |offset: usize| &loaded.bytes[shuffle.apply(offset) * row_bytes..][..row_bytes];
            // Each row to its place as if all were good, which they nearly always are.
            let room = &mut out[filled.rows * row_bytes..][..count * row_bytes];
            let rows = room.chunks_exact_mut(row_bytes).enumerate().map(|(i, to)| (place.offset + i, to, true));
            let mut rows: Vec<_> = rows.collect();
            spread(&mut rows, count * row_bytes, |(offset, to, finite)| {
                to.copy_from_slice(from(*offset));
                *finite = is_finite(dtype, to);
                Ok(())
            })?;
            let good: Vec<bool> = rows.into_iter().map(|(_, _, finite)| finite).collect();
            let skipped = good.iter().filter(|good| !**good).count();
            if skipped > 0 {
                // The good close up.
                let good = good.iter().enumerate().filter(|(_, good)| **good);
                for (to, (from, _)) in (filled.rows..).zip(good) {
                    let start = (filled.rows + from) * row_bytes;
                    out.copy_within(start..start + row_bytes, to * row_bytes);
                }
            }
            filled.rows += count - skipped;
            filled.skipped += skipped;
            at += count as u64;
        }
        Ok(filled)
    }

    fn load(&mut self, window: Window) -> Result<()> {
        if self.loaded.as_ref().is_some_and(|l| l.window == window) {
            return Ok(());
        }
        let gone = || Error::new(Status::Internal, "the reading thread ended");
        // This window's memory is for the one behind the next: never more than two are held.
        if let Some(loaded) = self.loaded.take() {
            self.spare = loaded.bytes;
        }
        loop {
            if self.asked.is_none() {
                self.ask.send((window, std::mem::take(&mut self.spare))).map_err(|_| gone())?;
                self.asked = Some(window);
            }
            let loaded = self.answer.recv().map_err(|_| gone())?;
            // Answered, with an error perhaps: the next call asks again.
            self.asked = None;
            let loaded = loaded?;
            if loaded.window == window {
                self.loaded = Some(loaded);
                break;
            }
            // Read ahead for nothing: the caller went elsewhere.
            self.spare = loaded.bytes;
        }
        let next = self.order.next(window);
        if next != window && self.ask.try_send((next, std::mem::take(&mut self.spare))).is_ok() {
            self.asked = Some(next);
        }
        Ok(())
    }
}

impl Drop for Batches {
    fn drop(&mut self) {
        // Closing both channels ends the reader, whether it waits for a question or for its answer to be taken.
        let (ask, answer) = (sync_channel(1).0, sync_channel(1).1);
        drop((std::mem::replace(&mut self.ask, ask), std::mem::replace(&mut self.answer, answer)));
        if let Some(reader) = self.reader.take() {
            let _ = reader.join();
        }
    }
}

/// Whether every element is: whether none has all bits of its exponent set.
fn is_finite(dtype: Dtype, row: &[u8]) -> bool {
    let of_16 = |exponent: u16| {
        let bits = row.as_chunks::<2>().0.iter().map(|b| u16::from_le_bytes(*b));
        // Without a branch for each element.
        bits.fold(true, |all, b| all & (b & exponent != exponent))
    };
    match dtype {
        Dtype::F16 => of_16(0x7C00),
        Dtype::Bf16 => of_16(0x7F80),
        Dtype::F32 => {
            let bits = row.as_chunks::<4>().0.iter().map(|b| u32::from_le_bytes(*b));
            bits.fold(true, |all, b| all & (b & 0x7F80_0000 != 0x7F80_0000))
        }
    }
}

/// Reads a window into `bytes`, whatever they were used for before.
fn read_window(data: &Dataset, first: usize, order: &Order, window: Window, mut bytes: Vec<u8>) -> Result<Loaded> {
    let row_bytes = data.d_model() * data.dtype().size();
    let len: usize = order.block_rows(window).map(|rows| rows.len()).sum();
    bytes.truncate(len * row_bytes);
    bytes.try_reserve_exact(len * row_bytes - bytes.len()).map_err(|_| {
        Error::new(Status::OutOfMemory, format!("cannot allocate a shuffle window of {} bytes", len * row_bytes))
    })?;
    bytes.resize(len * row_bytes, 0);
    let mut parts = Vec::new();
    let mut rest = &mut bytes[..];
    for rows in order.block_rows(window) {
        let (part, behind) = rest.split_at_mut(rows.len() * row_bytes);
        parts.push((rows, part));
        rest = behind;
    }
    spread(&mut parts, len * row_bytes, |(rows, part)| data.read_bytes(first + rows.start, rows.len(), part))?;
    Ok(Loaded { window, bytes })
}

impl Normalisation {
    /// Measures mean and scale of the rows of a data set: of all of them up to `most`, else of blocks spread evenly.
    /// Tokens that are not finite are left out.
    ///
    /// # Errors
    /// Those of reading; [`Status::OutOfMemory`]; [`Status::Format`] if there is no finite token or all are equal.
    pub fn measure(data: &Dataset, rows: Range<usize>, most: usize, progress: &mut dyn FnMut(usize)) -> Result<Self> {
        let d = data.d_model();
        let blocks = rows.len().div_ceil(BLOCK);
        let used = blocks.min(most.div_ceil(BLOCK)).max(1);
        // First, being the largest by far: how wide a row is, a file has said.
        let mut buffer = Aligned::zeroed(BLOCK * d, "a block of rows")?;
        let (mut count, mut sum, mut square) = (0_u64, vec![0.0_f64; d], vec![0.0_f64; d]);
        // Sums are taken about the first token seen: means are large beside deviations.
        let mut origin: Option<Vec<f64>> = None;
        for i in 0..used {
            let block = i * blocks / used;
            let start = rows.start + block * BLOCK;
            let len = BLOCK.min(rows.end - start);
            data.read(start, len, &mut buffer[..len * d])?;
            for row in buffer[..len * d].chunks_exact(d).filter(|row| row.iter().all(|v| v.is_finite())) {
                let origin = origin.get_or_insert_with(|| row.iter().map(|&v| f64::from(v)).collect());
                count += 1;
                for c in 0..d {
                    let x = f64::from(row[c]) - origin[c];
                    sum[c] += x;
                    square[c] += x * x;
                }
            }
            progress(i * rows.len() / used);
        }
        let Some(origin) = origin else { return Err(Error::format("every token of the data is NaN or infinite")) };
        let n = count as f64;
        let mean = (0..d).map(|c| (origin[c] + sum[c] / n) as f32).collect();
        let variance: f64 = (0..d).map(|c| (square[c] - sum[c] * sum[c] / n).max(0.0)).sum::<f64>() / (n * d as f64);
        let scale = variance.sqrt() as f32;
        if !(scale.is_finite() && scale > 0.0) {
            return Err(Error::format(format!(
                "the {count} finite tokens of the data have no variance (scale {scale})"
            )));
        }
        Ok(Normalisation { mean, scale })
    }
}
