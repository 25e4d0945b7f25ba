//! What latents mean, by example: the tokens that excite a latent most, and the latents that a token excites most.

use crate::data::{Dataset, TokenText};
use crate::stream::{check_rows, encode_rows};
use kronsae::{Activations, EncodePath, Encoder, EncoderOptions, Error, Latents, Result, Sae};
use serde::Serialize;
use std::collections::HashSet;
use std::ops::Range;
use std::sync::Arc;

/// Which latents to show, and how much of their tokens' surroundings.
#[derive(Debug, Clone)]
pub struct ExampleOptions {
    /// The most latents to return.
    pub latents: usize,
    /// The most tokens of a latent.
    pub examples: usize,
    /// Tokens of text before the marked one.
    pub before: usize,
    /// Tokens of text after it.
    pub after: usize,
    /// Latents that fire on a larger share of tokens say little about any of them, and are left out.
    pub max_rate: f64,
    /// Threads to use, the caller's included.
    pub threads: usize,
}

impl Default for ExampleOptions {
    fn default() -> Self {
        ExampleOptions { latents: 10, examples: 8, before: 12, after: 8, max_rate: 0.1, threads: 1 }
    }
}

/// A latent, and the tokens that excite it most.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct LatentExamples {
    /// The latent's index.
    pub latent: u32,
    /// Share of the tokens looked at on which it fired.
    pub firing_rate: f64,
    /// Its largest value.
    pub max_value: f32,
    /// The tokens, strongest first.
    pub examples: Vec<Example>,
}

/// A token that excites a latent, in its text.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Example {
    /// The token's row in the data set.
    pub row: usize,
    /// The latent's value there.
    pub value: f32,
    /// Text before the token, of the same sequence.
    pub before: String,
    /// The token's text, with the rest of its character where it is a piece of one; `[row N]` where the shards have none.
    pub token: String,
    /// Text after it.
    pub after: String,
}

/// A token, and the latents it excites most.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct TokenLatents {
    /// The token's row in the data set.
    pub row: usize,
    /// Text before the token, of the same sequence.
    pub before: String,
    /// The token's text, with the rest of its character where it is a piece of one; `[row N]` where the shards have none.
    pub token: String,
    /// Text after it.
    pub after: String,
    /// Latents and their values, strongest first.
    pub latents: Vec<(u32, f32)>,
}

/// What is kept of a latent while the tokens stream by.
#[derive(Default, Clone)]
struct Seen {
    fired: u64,
    /// The strongest tokens so far, (value, row), strongest first.
    top: Vec<(f32, usize)>,
}

impl Seen {
    /// Tokens nearer than `apart` rows show the same text: only the stronger of them is kept.
    fn push(&mut self, value: f32, row: usize, most: usize, apart: usize) {
        self.fired += 1;
        if let Some(near) = self.top.iter().position(|(_, r)| row - r < apart) {
            if self.top[near].0 >= value {
                return;
            }
            self.top.remove(near);
        } else if self.top.len() == most {
            if self.top.last().is_none_or(|(least, _)| *least >= value) {
                return;
            }
            self.top.pop();
        }
        let at = self.top.partition_point(|(v, _)| *v >= value);
        self.top.insert(at, (value, row));
    }

    /// How much the latent is worth showing: the median value of its best `most` tokens (missing ones count as 0; neither
    /// a single outlier nor a latent that hardly fires wins), times the information of its firing, -log2 of its rate.
    fn score(&self, most: usize, tokens: u64) -> f64 {
        let strength = self.top.get(most / 2).map_or(0.0, |(v, _)| f64::from(*v));
        strength * (tokens as f64 / self.fired as f64).log2()
    }
}

/// The strongest latents of tokens `rows` and, for each, the tokens that excite it most, from one pass over the data.
///
/// Ranked by the median value on a latent's best tokens times -log2 of its firing rate: strong and specific. Latents that
/// fire on more than `options.max_rate` of the tokens are left out, and so is a latent of whose tokens half or more are
/// already shown for those ranked before it. Memory is F lists of at most `options.examples` tokens.
///
/// # Errors
/// As [`encode_rows`]; [`kronsae::Status::Format`] if the text of a shard is not sound.
pub fn top_activations(
    sae: &Arc<Sae>,
    data: &Dataset,
    rows: Range<usize>,
    options: &ExampleOptions,
) -> Result<Vec<LatentExamples>> {
    check_rows(data, &rows)?;
    let most = options.examples.max(1);
    let apart = options.before.min(options.after).max(1);
    let mut seen = vec![Seen::default(); sae.config().encoder.latents()];
    let mut tokens = 0_u64;
    encode_rows(sae, data, rows, options.threads, &mut |chunk| {
        for r in 0..chunk.rows {
            tokens += u64::from(chunk.latents.flags[r] & kronsae::ROW_NOT_FINITE == 0);
            let (indices, values) = chunk.latents.row(r);
            for (&latent, &value) in indices.iter().zip(values) {
                seen[latent as usize].push(value, chunk.start + r, most, apart);
            }
        }
        Ok(())
    })?;

    let mut ranked: Vec<(f64, usize)> = (0..seen.len())
        .filter(|&f| seen[f].fired > 0 && seen[f].fired as f64 <= options.max_rate * tokens as f64)
        .map(|f| (seen[f].score(most, tokens), f))
        .collect();
    ranked.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
    let mut shown = HashSet::new();
    let mut chosen = Vec::new();
    for (_, f) in ranked {
        let rows = || seen[f].top.iter().map(|(_, row)| *row);
        if chosen.len() < options.latents && 2 * rows().filter(|row| shown.contains(row)).count() < rows().count() {
            shown.extend(rows());
            chosen.push(f);
        }
    }

    let each = |f: usize| {
        let seen = &seen[f];
        let examples = seen.top.iter().map(|&(value, row)| {
            let Context { before, token, after } = context(data, row, options)?;
            Ok(Example { row, value, before, token, after })
        });
        Ok(LatentExamples {
            latent: f as u32,
            firing_rate: seen.fired as f64 / tokens as f64,
            max_value: seen.top[0].0,
            examples: examples.collect::<Result<_>>()?,
        })
    };
    chosen.into_iter().map(each).collect()
}

/// The `latents_each` strongest latents of each of the tokens `rows`, in the order given.
///
/// # Errors
/// [`kronsae::Status::InvalidArgument`] if a row is outside the data set or the widths differ; those of reading shards.
pub fn token_latents(
    sae: &Arc<Sae>,
    data: &Dataset,
    rows: &[usize],
    latents_each: usize,
    options: &ExampleOptions,
) -> Result<Vec<TokenLatents>> {
    let d = data.d_model();
    let mut x = vec![0_f32; rows.len() * d];
    for (&row, x) in rows.iter().zip(x.chunks_exact_mut(d)) {
        if row >= data.rows() {
            return Err(Error::invalid(format!("row {row} was asked for, the data set has {} tokens", data.rows())));
        }
        data.read(row, 1, x)?;
    }
    // One call: an int8 copy of the weights would take longer to make than it saves.
    let options_once = EncoderOptions { threads: options.threads, path: EncodePath::Plain };
    let mut encoder = Encoder::new(Arc::clone(sae), options_once)?;
    let mut latents = Latents::new(rows.len(), sae.config().selection.capacity())?;
    encoder.encode(Activations::from_f32(&x, d)?, &mut latents.as_mut())?;
    let each = |(at, &row): (usize, &usize)| {
        let Context { before, token, after } = context(data, row, options)?;
        let (indices, values) = latents.row(at);
        let latents = indices.iter().copied().zip(values.iter().copied()).take(latents_each).collect();
        Ok(TokenLatents { row, before, token, after, latents })
    };
    rows.iter().enumerate().map(each).collect()
}

struct Context {
    before: String,
    token: String,
    after: String,
}

/// The text around a token, which never leaves its sequence.
fn context(data: &Dataset, row: usize, options: &ExampleOptions) -> Result<Context> {
    let start = row.saturating_sub(options.before);
    let end = row.saturating_add(options.after).saturating_add(1).min(data.rows());
    let sequences = data.sequences(start, end - start)?;
    let at = row - start;
    let same = |s: &&(usize, i32)| **s == sequences[at];
    let first = at - sequences[..at].iter().rev().take_while(same).count();
    let last = at + sequences[at..].iter().take_while(same).count();
    let Some(text) = data.text(start, end - start)? else {
        return Ok(Context { before: String::new(), token: format!("[row {row}]"), after: String::new() });
    };
    let marked = whole_characters(&text, at, first..last);
    // A character cut by the edge of the context is left out.
    let cut = char::REPLACEMENT_CHARACTER;
    Ok(Context {
        before: text.span(first..marked.start).trim_start_matches(cut).to_owned(),
        token: text.span(marked.clone()),
        after: text.span(marked.end..last).trim_end_matches(cut).to_owned(),
    })
}

/// The tokens to mark for token `at`: itself, or where it is a piece of a character, all pieces of that character (at most
/// four bytes, so at most three tokens either way). Itself where the text is no UTF-8 at all.
fn whole_characters(text: &TokenText, at: usize, within: Range<usize>) -> Range<usize> {
    let whole = |range: &Range<usize>| !text.span(range.clone()).contains(char::REPLACEMENT_CHARACTER);
    let fits = |range: &Range<usize>| range.start >= within.start && range.end <= within.end;
    let longer =
        |more: usize| (0..=more).filter(move |left| at >= *left).map(move |left| at - left..at + 1 + more - left);
    (0..=3).flat_map(longer).find(|range| fits(range) && whole(range)).unwrap_or(at..at + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_the_strongest_and_only_one_of_a_neighbourhood() {
        let mut seen = Seen::default();
        for (value, row) in [(1.0, 10), (2.0, 12), (1.5, 13), (5.0, 100), (3.0, 200), (0.5, 300), (4.0, 400)] {
            seen.push(value, row, 3, 5);
        }
        assert_eq!(seen.top, [(5.0, 100), (4.0, 400), (3.0, 200)]);
        assert_eq!(seen.fired, 7);
        // The median is 4, and firing on 7 of 28 tokens is worth two bits.
        assert!((seen.score(3, 28) - 8.0).abs() < 1e-12);
        assert_eq!(seen.score(8, 28), 0.0, "fewer examples than half of those wanted");
    }
}
