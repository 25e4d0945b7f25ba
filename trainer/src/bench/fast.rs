//! How often [`EncodePath::Fast`], whose bounds are likely and not proven, misses a latent on real activations.

use super::table::{aligned, duration};
use crate::data::Dataset;
use crate::stream::{check_rows, check_width};
use crate::terminal::grouped;
use kronsae::{Activations, Aligned, EncodePath, Encoder, EncoderOptions, Latents, Result, Sae};
use serde::Serialize;
use std::sync::Arc;
use std::time::Instant;

/// The fast path beside the exact one, on the same tokens in calls of one size.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct FastRun {
    /// Tokens of a call.
    pub batch: usize,
    /// Threads.
    pub threads: usize,
    /// Tokens encoded.
    pub tokens: usize,
    /// Latents that the exact path found.
    pub latents: u64,
    /// Of these, those that the fast path did not report.
    pub missing: u64,
    /// `missing` over `latents`.
    pub miss_rate: f64,
    /// Latents that the fast path reported in place of others.
    pub in_place: u64,
    /// Latents that both report, with values that differ: none, for values are canonical.
    pub values_differing: u64,
    /// Tokens with a missing latent.
    pub tokens_with_missing: u64,
    /// Share of all tokens.
    pub token_share: f64,
    /// The largest value missing, over the smallest that its token has, the K-th: 1 where a miss is of the smallest. None
    /// where nothing is missing.
    pub largest_missing: Option<f64>,
    /// Tokens that either path left out, not being finite.
    pub non_finite_tokens: u64,
    /// Share of the encoder's rows that were computed exactly, for each token.
    pub rows_computed: OfBoth,
    /// Nanoseconds a token, over all calls.
    pub token_ns: OfBoth,
    /// How many times faster the fast path is.
    pub speedup: f64,
}

/// A figure of either path.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct OfBoth {
    /// The exact one, as it chooses by itself.
    pub exact: f64,
    /// The fast one.
    pub fast: f64,
}

/// What [`compare`] found, and of what.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct FastReport {
    /// Whether the model can be screened: the fast path of others is the exact one.
    pub can_be_screened: bool,
    /// Rows of the encoder.
    pub rows: usize,
    /// Its latents.
    pub latents: usize,
    /// One for each size of calls.
    pub runs: Vec<FastRun>,
}

/// One of the two encoders, with what it counts.
struct Side {
    encoder: Encoder,
    latents: Latents,
    ns: f64,
    computed: u64,
}

impl Side {
    fn new(sae: &Arc<Sae>, options: EncoderOptions, batch: usize) -> Result<Self> {
        let capacity = sae.config().selection.capacity();
        let encoder = Encoder::new(Arc::clone(sae), options)?;
        Ok(Side { encoder, latents: Latents::new(batch, capacity)?, ns: 0.0, computed: 0 })
    }

    fn encode(&mut self, x: Activations<'_>) -> Result<()> {
        let computed = |encoder: &Encoder| encoder.screening().map_or(0, |screening| screening.recomputed_rows);
        let before = computed(&self.encoder);
        let mut out = self.latents.as_mut();
        let start = Instant::now();
        self.encoder.encode(x, &mut out)?;
        self.ns += start.elapsed().as_nanos() as f64;
        // A call that was screened computes some rows at least; one that was not, all.
        self.computed += match computed(&self.encoder) - before {
            0 => x.rows() as u64 * self.encoder.sae().encoder().weight.rows() as u64,
            some => some as u64,
        };
        Ok(())
    }
}

impl FastRun {
    /// Counts one token: indices and values as either path reports them.
    fn add(&mut self, exact: (&[u32], &[f32]), fast: (&[u32], &[f32])) {
        let mut found: Vec<(u32, f32)> = fast.0.iter().copied().zip(fast.1.iter().copied()).collect();
        found.sort_unstable_by_key(|latent| latent.0);
        let smallest = exact.1.iter().copied().fold(f32::INFINITY, f32::min);
        let mut missing = 0_u64;
        for (index, value) in exact.0.iter().zip(exact.1) {
            match found.binary_search_by_key(index, |latent| latent.0) {
                Ok(at) => self.values_differing += u64::from(found[at].1.to_bits() != value.to_bits()),
                Err(_) => {
                    missing += 1;
                    let relative = f64::from(*value) / f64::from(smallest);
                    self.largest_missing = Some(self.largest_missing.map_or(relative, |most| most.max(relative)));
                }
            }
        }
        self.latents += exact.0.len() as u64;
        self.missing += missing;
        self.in_place += fast.0.len() as u64 - (exact.0.len() as u64 - missing);
        self.tokens_with_missing += u64::from(missing > 0);
    }
}

/// Encodes the first `tokens` tokens of `data` by both paths, in turns, in calls of each of `batches`. `progress` is told
/// how many tokens are done, of all sizes of calls together.
///
/// # Errors
/// [`kronsae::Status::InvalidArgument`] if the widths differ, there are fewer tokens, a batch is 0 or the threads are; those
/// of reading the data.
pub fn compare(
    sae: &Arc<Sae>,
    data: &Dataset,
    tokens: usize,
    batches: &[usize],
    threads: usize,
    progress: &mut dyn FnMut(usize),
) -> Result<FastReport> {
    check_rows(data, &(0..tokens))?;
    check_width(sae, data)?;
    if batches.contains(&0) {
        return Err(kronsae::Error::invalid("a batch of 0 tokens, expected at least 1"));
    }
    let (d, encoder) = (sae.config().d_model, sae.config().encoder);
    let mut report =
        FastReport { can_be_screened: false, rows: encoder.rows(), latents: encoder.latents(), runs: Vec::new() };
    let mut done = 0;
    for &batch in batches {
        let batch = batch.min(tokens);
        let mut exact = Side::new(sae, EncoderOptions { threads, path: EncodePath::Auto }, batch)?;
        let mut fast = Side::new(sae, EncoderOptions { threads, path: EncodePath::Fast }, batch)?;
        report.can_be_screened = fast.encoder.screening().is_some();
        let mut run = FastRun { batch, threads, tokens, ..FastRun::default() };
        // Many calls' worth is read at a time: reading a few tokens of a file takes longer than encoding them.
        let read_at_once = (4096 / batch).max(1) * batch;
        let mut x = Aligned::zeroed(read_at_once.min(tokens) * d, "tokens")?;
        for start in (0..tokens).step_by(read_at_once) {
            let count = read_at_once.min(tokens - start);
            let x = &mut x[..count * d];
            data.read(start, count, x)?;
            for (call, x) in x.chunks(batch * d).enumerate() {
                let x = Activations::from_f32(x, d)?;
                // Whoever comes second finds the tokens in the cache; they take turns.
                if call % 2 == 0 {
                    exact.encode(x)?;
                    fast.encode(x)?;
                } else {
                    fast.encode(x)?;
                    exact.encode(x)?;
                }
                for t in 0..x.rows() {
                    run.add(exact.latents.row(t), fast.latents.row(t));
                    run.non_finite_tokens +=
                        u64::from((exact.latents.flags[t] | fast.latents.flags[t]) & kronsae::ROW_NOT_FINITE != 0);
                }
            }
            done += count;
            progress(done);
        }
        let share = |part: u64, whole: u64| if whole == 0 { 0.0 } else { part as f64 / whole as f64 };
        run.miss_rate = share(run.missing, run.latents);
        run.token_share = share(run.tokens_with_missing, tokens as u64);
        let all = tokens as u64 * encoder.rows() as u64;
        run.rows_computed = OfBoth { exact: share(exact.computed, all), fast: share(fast.computed, all) };
        run.token_ns = OfBoth { exact: exact.ns / tokens as f64, fast: fast.ns / tokens as f64 };
        run.speedup = exact.ns / fast.ns;
        report.runs.push(run);
    }
    Ok(report)
}

/// The report as a table, a column for each size of calls.
#[must_use]
pub fn markdown(report: &FastReport) -> String {
    let mut rows: Vec<Vec<String>> = Vec::new();
    let mut row = |name: &str, of: &dyn Fn(&FastRun) -> String| {
        rows.push(std::iter::once(name.to_owned()).chain(report.runs.iter().map(of)).collect());
    };
    let part = |count: u64, share: f64| format!("{} ({:.2e})", grouped(count), share);
    let percent = |share: f64| format!("{:.2} %", 100.0 * share);
    row("tokens of a call", &|run| grouped(run.batch as u64));
    row("threads", &|run| run.threads.to_string());
    row("tokens", &|run| grouped(run.tokens as u64));
    row("latents", &|run| grouped(run.latents));
    row("missing", &|run| part(run.missing, run.miss_rate));
    row("others in their place", &|run| grouped(run.in_place));
    row("tokens with any missing", &|run| part(run.tokens_with_missing, run.token_share));
    row("largest missing / K-th value", &|run| run.largest_missing.map_or("-".to_owned(), |most| format!("{most:.4}")));
    row("values that differ", &|run| grouped(run.values_differing));
    row("tokens that are not finite", &|run| grouped(run.non_finite_tokens));
    row("rows computed exactly: exact path", &|run| percent(run.rows_computed.exact));
    row("rows computed exactly: fast path", &|run| percent(run.rows_computed.fast));
    row("time a token: exact path", &|run| duration(run.token_ns.exact));
    row("time a token: fast path", &|run| duration(run.token_ns.fast));
    row("fast path, times faster", &|run| format!("{:.2}", run.speedup));
    let mut out = aligned(&rows);
    if !report.can_be_screened {
        out += "\nThis model is too small to be screened: its fast path is the exact one, of all rows.\n";
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_counted() {
        let mut run = FastRun::default();
        let exact = (&[7_u32, 2, 9][..], &[4.0_f32, 3.0, 2.0][..]);
        run.add(exact, exact);
        assert_eq!((run.latents, run.missing, run.in_place, run.largest_missing), (3, 0, 0, None));
        // The second one missing, another in its place at the end.
        run.add(exact, (&[7, 9, 5], &[4.0, 2.0, 1.0]));
        assert_eq!((run.latents, run.missing, run.in_place, run.tokens_with_missing), (6, 1, 1, 1));
        assert_eq!((run.largest_missing, run.values_differing), (Some(1.5), 0));
        // One missing and nothing in its place; one of another value, which would be an error.
        run.add(exact, (&[2, 7], &[3.0, 4.5]));
        assert_eq!((run.missing, run.in_place, run.tokens_with_missing), (2, 1, 2));
        assert_eq!((run.largest_missing, run.values_differing), (Some(1.5), 1));
    }
}
