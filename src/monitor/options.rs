//! What a host chooses when it makes a monitor, a site or a tap.

use super::labels::Labels;
use super::scheduling::Scheduling;
use super::tag::Sampling;
use crate::dtype::Dtype;
use crate::error::{Error, Result};

/// How a [`Monitor`](super::Monitor) works.
#[derive(Debug, Clone)]
pub struct MonitorOptions {
    /// Threads that encode; each site belongs to one of them. At most 64.
    pub workers: usize,
    /// Threads of each worker's encoders, the worker included.
    pub encoder_threads: usize,
    /// Requests of a site that have state at a time; of more, the oldest are given up and counted.
    pub requests: usize,
    /// Events that wait to be polled; of more, the oldest are lost and counted. As many are kept for readers besides.
    pub events: usize,
    /// Tokens of each site that are kept with their latents for readers.
    pub recent_tokens: usize,
    /// The most bytes of the host's memory for queues and state, pinned memory included; None: no limit of the monitor's own.
    /// Models are not counted.
    pub memory_limit: Option<usize>,
    /// The most latents of a site whose values the metrics carry.
    pub watched: usize,
    /// Tokens after which an observation counts half in rates and drift.
    pub half_life_tokens: f64,
    /// Upper ends of the latency histograms' buckets, in seconds, ascending.
    pub latency_bounds: Vec<f64>,
    /// How much of the machine the workers may take.
    pub scheduling: Scheduling,
}

impl Default for MonitorOptions {
    fn default() -> Self {
        MonitorOptions {
            workers: 1,
            encoder_threads: 1,
            requests: 4096,
            events: 4096,
            recent_tokens: 512,
            memory_limit: None,
            watched: 64,
            half_life_tokens: 10_000.0,
            latency_bounds: vec![
                5e-6, 1e-5, 2.5e-5, 5e-5, 1e-4, 2.5e-4, 5e-4, 1e-3, 2.5e-3, 5e-3, 1e-2, 2.5e-2, 5e-2, 0.1, 0.25, 0.5,
                1.0, 2.5, 10.0,
            ],
            scheduling: Scheduling::default(),
        }
    }
}

impl MonitorOptions {
    pub(crate) fn validate(&self) -> Result<()> {
        if !(1..=64).contains(&self.workers) {
            return Err(Error::invalid(format!("workers = {}, expected 1 to 64", self.workers)));
        }
        if !(1..=1024).contains(&self.encoder_threads) {
            return Err(Error::invalid(format!("encoder_threads = {}, expected 1 to 1024", self.encoder_threads)));
        }
        const MOST: usize = 1 << 24;
        for (what, found, least) in
            [("requests", self.requests, 1), ("events", self.events, 1), ("recent_tokens", self.recent_tokens, 0)]
        {
            if !(least..=MOST).contains(&found) {
                return Err(Error::invalid(format!("{what} = {found}, expected {least} to {MOST}")));
            }
        }
        if !(self.half_life_tokens >= 1.0 && self.half_life_tokens <= 1e15) {
            return Err(Error::invalid(format!(
                "half_life_tokens = {}, expected at least 1 and at most 1e15",
                self.half_life_tokens
            )));
        }
        super::histogram::check_bounds(&self.latency_bounds)?;
        self.scheduling.validate()
    }
}

/// A place in the host's model whose activations are encoded.
#[derive(Debug, Clone, Default)]
pub struct SiteOptions {
    /// Its name in events and metrics: 1 to 128 characters, none of them a control character.
    pub name: String,
    /// The layer whose activations are submitted, if the host knows: must be the model file's `source.layer`.
    pub layer: Option<u32>,
    /// Take another layer than the file's all the same.
    pub any_layer: bool,
    /// Latents that matter. Where the model selects by threshold, these alone are computed, exactly, and rules may look at
    /// no other; where it selects by TopK, all are computed and these are carried in the metrics. Empty: all latents.
    pub watch: Vec<u32>,
    /// Names of latents.
    pub labels: Option<Labels>,
    /// Width of activations at a site without a model, which can only record. With a model: 0, or the model's.
    pub d_model: usize,
}

/// A queue into a site, for one producing thread.
#[derive(Debug, Clone, Copy)]
pub struct TapOptions {
    /// Tokens the queue has room for, 1 to 2^24.
    pub capacity: usize,
    /// Control records (ends of requests, rewinds) the queue has room for besides, 1 to 2^24; tokens cannot take
    /// these slots.
    pub controls: usize,
    /// Which of the tokens submitted are encoded.
    pub sampling: Sampling,
    /// The widest elements that will be submitted, which the queue's memory is laid out for: F32 takes every dtype.
    pub dtype: Dtype,
}

impl TapOptions {
    /// # Errors
    /// [`crate::Status::InvalidArgument`] for a queue or sampling that makes no sense.
    pub(crate) fn validate(&self) -> Result<()> {
        const MOST: usize = 1 << 24;
        for (what, found) in [("capacity", self.capacity), ("controls", self.controls)] {
            if !(1..=MOST).contains(&found) {
                return Err(Error::invalid(format!("a tap's {what} = {found}, expected 1 to {MOST}")));
            }
        }
        if self.sampling == Sampling::EveryNth(0) {
            return Err(Error::invalid("sampling every 0th token; expected every n-th with n of at least 1"));
        }
        Ok(())
    }
}

impl Default for TapOptions {
    fn default() -> Self {
        TapOptions { capacity: 1024, controls: 1024, sampling: Sampling::Every, dtype: Dtype::F32 }
    }
}
