//! Writes what a tap sees as activation shards, so that a model for a server can be trained from that server.
//!
//! A shard is gathered in memory of fixed size and written in one piece: whole and on disk, or not at all. Where the
//! disk refuses, its tokens are kept and written later; what comes meanwhile and has no room is left out and counted.

mod folder;
mod shard;
#[cfg(test)]
mod tests;

use super::tag::TokenTag;
use crate::activations::Activations;
use crate::dtype::Dtype;
use crate::error::{Error, Result};
use folder::Folder;
use shard::Shard;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// More tokens in a shard would serve nobody, and their sequences are numbered in 32 bits.
const MOST_TOKENS_PER_SHARD: usize = 1 << 24;
/// After a write that failed, the next one is tried so much later, twice as long each time, up to the second figure.
const RETRY: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(60)];
/// Room for a shard's header, where its size is to be foretold.
const HEADER_BYTES: u64 = 2048;

/// What is recorded, and how much of it.
#[derive(Debug, Clone)]
pub struct RecorderOptions {
    /// Where shards go; made where it does not exist. Shards that are there stay, numbering goes on after them.
    pub folder: PathBuf,
    /// [`Dtype::Bf16`], the default, or [`Dtype::F32`], which keeps what taps hand over exactly.
    pub dtype: Dtype,
    /// Tokens of a shard, at least 1; 4,096 by default. The recorder holds so many in memory.
    pub most_tokens_per_shard: usize,
    /// Recording ends before the folder's shards, those found there included, are larger. 16 GiB by default; `None`: no
    /// limit.
    pub most_bytes_total: Option<u64>,
    /// Recording ends after so many tokens. `None`, the default: no limit.
    pub most_tokens_total: Option<u64>,
    /// A shard is written at the latest so long after its first token, full or not; a minute by default. What a kill
    /// can lose.
    pub most_age: Duration,
    /// Record tokens at position 0, too. Not by default: they are attention sinks of a hundred times the norm, and no
    /// good for training.
    pub keep_position_0: bool,
    /// Record token ids. Not by default: they are the text.
    pub token_ids: bool,
    /// Record the text of tokens, where it is given. Not by default.
    pub text: bool,
    /// The language model, for the shards' metadata.
    pub model: Option<String>,
    /// Which of its tensors.
    pub hook: Option<String>,
    /// Of which layer.
    pub layer: Option<u32>,
}

impl RecorderOptions {
    /// The defaults, into this folder.
    pub fn new(folder: impl Into<PathBuf>) -> Self {
        RecorderOptions {
            folder: folder.into(),
            dtype: Dtype::Bf16,
            most_tokens_per_shard: 4096,
            most_bytes_total: Some(16 << 30),
            most_tokens_total: None,
            most_age: Duration::from_secs(60),
            keep_position_0: false,
            token_ids: false,
            text: false,
            model: None,
            hook: None,
            layer: None,
        }
    }
}

/// What became of a token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PushOutcome {
    /// It is in the shard in the making; it counts as written once that shard is on disk.
    Taken,
    /// It is at position 0.
    LeftOut,
    /// It is not finite, or not in the recorder's dtype.
    NotFinite,
    /// The disk refuses, and there is no room to keep it: one more failure.
    Failed,
    /// A limit was reached; nothing more is recorded.
    Finished,
    /// The recorder was closed.
    Closed,
}

/// What a recorder is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RecorderState {
    /// Recording.
    Recording,
    /// The last write failed ([`Recorder::last_error`]); it is tried again, and recording goes on when it succeeds.
    Failing,
    /// A limit was reached, all shards are written.
    Finished,
    /// Closed.
    Closed,
}

/// Records one site into one folder. Used by one thread at a time; a shard that is full is written by the call that
/// filled it, which waits for the disk.
///
/// Every token pushed is written, in memory, left out ([`PushOutcome::LeftOut`], [`PushOutcome::NotFinite`],
/// [`PushOutcome::Finished`]) or a failure. Files have mode 0600.
#[derive(Debug)]
pub struct Recorder {
    options: RecorderOptions,
    metadata: BTreeMap<String, String>,
    folder: Folder,
    shard: Shard,
    state: RecorderState,
    /// When the shard's first token came.
    opened: Instant,
    retry: Retry,
    error: Option<Error>,
    written: u64,
    shards: u64,
    failures: u64,
}

#[derive(Debug, Clone, Copy)]
struct Retry {
    at: Instant,
    wait: Duration,
}

impl Recorder {
    /// A recorder of rows of `d_model`. Takes all the memory it will ever have.
    ///
    /// # Errors
    /// [`crate::Status::InvalidArgument`] for a dtype, width or limit out of range, for a folder that another recorder
    /// writes into, and for one with shards of another model, hook, layer or width; [`crate::Status::Format`] if one of
    /// them is damaged; [`crate::Status::Io`]; [`crate::Status::OutOfMemory`].
    pub fn new(options: RecorderOptions, d_model: usize) -> Result<Self> {
        if !matches!(options.dtype, Dtype::Bf16 | Dtype::F32) {
            return Err(Error::invalid(format!("recording in {}, expected BF16 or F32", options.dtype)));
        }
        let tokens = options.most_tokens_per_shard;
        if tokens == 0 || tokens > MOST_TOKENS_PER_SHARD || d_model == 0 {
            let expected = format!("expected 1 to {MOST_TOKENS_PER_SHARD} tokens and a width of at least 1");
            return Err(Error::invalid(format!("shards of {tokens} tokens of width {d_model}, {expected}")));
        }
        let mut metadata = BTreeMap::from([
            ("format".to_owned(), "activations/1".to_owned()),
            ("d_model".to_owned(), d_model.to_string()),
            ("dropped_positions".to_owned(), if options.keep_position_0 { "" } else { "0" }.to_owned()),
        ]);
        let layer = options.layer.map(|layer| layer.to_string());
        for (key, value) in [("model", &options.model), ("hook", &options.hook), ("layer", &layer)] {
            metadata.extend(value.iter().map(|value| (key.to_owned(), value.clone())));
        }
        let shard = Shard::new(d_model, options.dtype, tokens, options.token_ids, options.text)?;
        let folder = Folder::take(&options.folder, d_model, &metadata)?;
        let now = Instant::now();
        Ok(Recorder {
            options,
            metadata,
            folder,
            shard,
            state: RecorderState::Recording,
            opened: now,
            retry: Retry { at: now, wait: RETRY[0] },
            error: None,
            written: 0,
            shards: 0,
            failures: 0,
        })
    }

    /// Takes in a token: its activations (one row), whose it is, and its text where that is to be recorded.
    ///
    /// # Panics
    /// If `row` is not one row of the recorder's `d_model`.
    pub fn push(&mut self, row: Activations<'_>, tag: &TokenTag, text: Option<&[u8]>) -> PushOutcome {
        self.push_at(row, tag, text, Instant::now())
    }

    fn push_at(&mut self, row: Activations<'_>, tag: &TokenTag, text: Option<&[u8]>, now: Instant) -> PushOutcome {
        match self.state {
            RecorderState::Closed => return PushOutcome::Closed,
            RecorderState::Finished => return PushOutcome::Finished,
            RecorderState::Recording | RecorderState::Failing => {}
        }
        if tag.position == 0 && !self.options.keep_position_0 {
            return PushOutcome::LeftOut;
        }
        let text = text.filter(|_| self.options.text);
        if !self.shard.has_room(text.map_or(0, <[u8]>::len)) {
            self.write_if_due(now);
            if self.shard.rows() > 0 {
                self.failures += 1;
                return PushOutcome::Failed;
            }
        }
        if self.limit_reached() {
            self.finish(now);
            return PushOutcome::Finished;
        }
        let first = self.shard.rows() == 0;
        if !self.shard.push(row, tag, text) {
            return PushOutcome::NotFinite;
        }
        if first {
            self.opened = now;
        }
        if self.shard.rows() == self.options.most_tokens_per_shard {
            self.write_if_due(now);
        }
        PushOutcome::Taken
    }

    /// Whether one more token would pass a limit.
    fn limit_reached(&self) -> bool {
        let tokens = self.written + self.shard.rows() as u64;
        let metadata: usize = self.metadata.iter().map(|(key, value)| key.len() + 2 * value.len() + 6).sum();
        let header = HEADER_BYTES + metadata as u64;
        let bytes = self.folder.bytes().saturating_add(self.shard.bytes_with_one_more()).saturating_add(header);
        self.options.most_tokens_total.is_some_and(|most| tokens >= most)
            || self.options.most_bytes_total.is_some_and(|most| bytes > most)
    }

    /// Writes the last shard of a recorder that has reached a limit. Where the disk refuses, that is tried again.
    fn finish(&mut self, now: Instant) {
        self.write_if_due(now);
        if self.shard.rows() == 0 {
            self.state = RecorderState::Finished;
            self.folder.release();
        }
    }

    /// Says that a request is over, so that another one of the same number is not taken for it.
    pub fn end(&mut self, request: u64) {
        self.shard.end(request);
    }

    /// Writes a shard that is old enough, or one that could not be written before. To be called now and then, every
    /// second say.
    pub fn tick(&mut self) {
        self.tick_at(Instant::now());
    }

    fn tick_at(&mut self, now: Instant) {
        let old = now.saturating_duration_since(self.opened) >= self.options.most_age;
        if self.shard.rows() > 0 && (old || self.state == RecorderState::Failing || self.limit_reached()) {
            self.write_if_due(now);
        }
        if self.state == RecorderState::Recording && self.limit_reached() {
            self.finish(now);
        }
    }

    fn write_if_due(&mut self, now: Instant) {
        if self.state != RecorderState::Failing || now >= self.retry.at {
            self.write(now);
        }
    }

    /// Writes what there is. After a failure it is still there.
    fn write(&mut self, now: Instant) {
        if self.shard.rows() == 0 {
            return;
        }
        let path = self.folder.next_path();
        match self.shard.write(&path, &self.metadata) {
            Ok(()) => {
                self.folder.written(&path);
                self.written += self.shard.rows() as u64;
                self.shards += 1;
                self.shard.clear();
                self.state = RecorderState::Recording;
                self.retry.wait = RETRY[0];
                self.error = None;
            }
            Err(error) => {
                self.state = RecorderState::Failing;
                self.retry.at = now + self.retry.wait;
                self.retry.wait = (self.retry.wait * 2).min(RETRY[1]);
                self.error = Some(error);
            }
        }
    }

    /// Writes what there is and ends recording; afterwards another recorder may have the folder. Dropping a recorder
    /// closes it, too.
    ///
    /// # Errors
    /// [`crate::Status::Io`] if the last shard cannot be written: its tokens are lost, and counted as failures.
    pub fn close(&mut self) -> Result<()> {
        if self.state == RecorderState::Closed {
            return Ok(());
        }
        self.write(Instant::now());
        self.state = RecorderState::Closed;
        self.folder.release();
        if self.shard.rows() == 0 {
            return Ok(());
        }
        self.failures += self.shard.rows() as u64;
        self.shard.clear();
        self.error.clone().map_or(Ok(()), Err)
    }

    /// What it is doing.
    #[must_use]
    pub fn state(&self) -> RecorderState {
        self.state
    }

    /// Why the last write failed, if it did.
    #[must_use]
    pub fn last_error(&self) -> Option<&Error> {
        self.error.as_ref()
    }

    /// Tokens on disk, of this recorder.
    #[must_use]
    pub fn written(&self) -> u64 {
        self.written
    }

    /// Shards on disk, of this recorder.
    #[must_use]
    pub fn shards(&self) -> u64 {
        self.shards
    }

    /// Tokens in memory.
    #[must_use]
    pub fn held(&self) -> u64 {
        self.shard.rows() as u64
    }

    /// Tokens left out because the disk refused.
    #[must_use]
    pub fn failures(&self) -> u64 {
        self.failures
    }

    /// Bytes of memory, closely.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.shard.bytes()
    }
}

impl Drop for Recorder {
    fn drop(&mut self) {
        // Nobody is left to be told; the count of failures goes with it.
        let _ = self.close();
    }
}
