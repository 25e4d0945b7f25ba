//! How fast batches come from shards: whether disk, page cache and copying keep up with a step.

use super::table::aligned;
use crate::data::{Batches, Dataset, Normalisation};
use kronsae::sae::padded;
use kronsae::{Aligned, Error, Result};
use serde::Serialize;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// One way of making batches.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Way {
    /// What it is.
    pub name: &'static str,
    /// Batches that were made.
    pub batches: u64,
    /// Bytes a second, of rows as they lie in the shards.
    pub bytes_per_second: f64,
    /// Tokens a second.
    pub tokens_per_second: f64,
    /// Milliseconds of a batch, median.
    pub median_ms: f64,
    /// And of the slowest of a hundred: one that waits for its window.
    pub p99_ms: f64,
}

/// What was measured.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct InputReport {
    /// Tokens of the data set, and bytes of one.
    pub tokens: usize,
    /// Bytes of a token.
    pub row_bytes: usize,
    /// Element type in the shards.
    pub dtype: String,
    /// Tokens of a batch.
    pub batch: usize,
    /// Tokens held in memory to shuffle from.
    pub window: usize,
    /// Reading the shards in order; batches as a GPU takes them; batches as the CPU backend takes them.
    pub ways: Vec<Way>,
}

/// Makes batches of `batch` tokens for about `seconds` each way.
///
/// # Errors
/// [`kronsae::Status::InvalidArgument`] for no data; those of reading the shards.
pub fn measure(data: &Arc<Dataset>, batch: usize, window: usize, seconds: f64) -> Result<InputReport> {
    let (tokens, d) = (data.rows(), data.d_model());
    if tokens == 0 || batch == 0 {
        return Err(Error::invalid("no tokens to make batches of"));
    }
    let row_bytes = d * data.dtype().size();
    let whole = Normalisation { mean: vec![0.25; d], scale: 1.5 };
    let batches = || Batches::new(Arc::clone(data), 0..tokens, batch, window, 0, Arc::new(whole.clone()));
    let mut bytes = vec![0_u8; batch * row_bytes];
    let limit = Duration::from_secs_f64(seconds);
    let way = |name, make: &mut dyn FnMut(u64) -> Result<usize>| -> Result<Way> {
        let (mut times, mut made) = (Vec::new(), 0);
        let begun = Instant::now();
        while begun.elapsed() < limit || times.is_empty() {
            let start = Instant::now();
            made += make(times.len() as u64)?;
            times.push(1e3 * start.elapsed().as_secs_f64());
        }
        let all = begun.elapsed().as_secs_f64();
        times.sort_by(f64::total_cmp);
        Ok(Way {
            name,
            batches: times.len() as u64,
            bytes_per_second: (made * row_bytes) as f64 / all,
            tokens_per_second: made as f64 / all,
            median_ms: times[times.len() / 2],
            p99_ms: times[times.len() * 99 / 100],
        })
    };
    let in_order = way("shards read in order", &mut |t| {
        let count = batch.min(tokens);
        let start = (t as usize * count) % (tokens - count + 1);
        data.read_bytes(start, count, &mut bytes[..count * row_bytes])?;
        Ok(count)
    })?;
    let mut source = batches()?;
    let as_read = way("shuffled, as they are, for a GPU", &mut |t| {
        source.gather(t, &mut bytes).map(|filled| filled.rows + filled.skipped)
    })?;
    let stride = padded(d);
    let mut x = Aligned::zeroed(batch * stride, "a batch")?;
    let mut source = batches()?;
    let normalised = way("shuffled, normalised in f32, for the CPU", &mut |t| {
        source.fill(t, &mut x, stride).map(|filled| filled.rows + filled.skipped)
    })?;
    Ok(InputReport {
        tokens,
        row_bytes,
        dtype: data.dtype().to_string(),
        batch,
        window,
        ways: vec![in_order, as_read, normalised],
    })
}

/// As a table.
#[must_use]
pub fn markdown(report: &InputReport) -> String {
    let mut table = vec![["batches", "GB/s", "tokens/s", "ms a batch", "ms, 99 of 100"].map(str::to_owned)];
    for way in &report.ways {
        table.push([
            way.name.to_owned(),
            format!("{:.2}", way.bytes_per_second / 1e9),
            crate::terminal::grouped(way.tokens_per_second as u64),
            format!("{:.2}", way.median_ms),
            format!("{:.2}", way.p99_ms),
        ]);
    }
    format!(
        "{} tokens of {} bytes ({}), batches of {}, {} tokens to shuffle from; what the page cache holds is not read from disk.\n\n{}",
        crate::terminal::grouped(report.tokens as u64),
        crate::terminal::grouped(report.row_bytes as u64),
        report.dtype,
        crate::terminal::grouped(report.batch as u64),
        crate::terminal::grouped(report.window as u64),
        aligned(&table)
    )
}
