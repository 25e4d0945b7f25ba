//! A picture of a monitor at one moment: plain data, for metrics, the live page and hosts.

use super::event::Severity;
use super::tag::TokenTag;
pub use crate::sae::ModelId;
use serde::Serialize;
use std::sync::Arc;

/// What a monitor is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
#[repr(i32)]
pub enum State {
    /// Workers encode what taps submit.
    Running = 1,
    /// Stopped: taps return STOPPED.
    Stopped = 2,
    /// A worker panicked; what is submitted is counted as dropped.
    Failed = 3,
}

/// Where submitted tokens went: `submitted = encoded + sampled_out + dropped + not_finite + queued`, exactly.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct Counters {
    /// Tokens handed to `submit`.
    pub submitted: u64,
    /// Tokens encoded.
    pub encoded: u64,
    /// Tokens that the tap's sampling left out.
    pub sampled_out: u64,
    /// Tokens for which the queue had no room, those left when a monitor was stopped without draining or failed, and those
    /// whose latents a device did not give, or of a model that is not in force any more.
    pub dropped: u64,
    /// Tokens whose activations, or products, were not finite.
    pub not_finite: u64,
    /// Tokens in the queue now.
    pub queued: u64,
}

/// A histogram of durations.
#[derive(Debug, Clone, PartialEq, Default, Serialize)]
pub struct Histogram {
    /// Upper ends of the buckets in seconds, ascending; a last bucket without end follows.
    pub bounds: Vec<f64>,
    /// Observations in each bucket, one more than there are bounds; not cumulated.
    pub counts: Vec<u64>,
    /// Sum of all observations, in seconds.
    pub sum: f64,
}

/// One tap.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct TapSnapshot {
    /// Its number in the monitor, from 0.
    pub tap: u32,
    /// Its tokens.
    pub counters: Counters,
    /// Tokens the queue has room for.
    pub capacity: u64,
    /// Whether its handle was destroyed.
    pub closed: bool,
    /// Why its device failed, where it did: it drops and counts since.
    pub failure: Option<String>,
}

/// One latent's statistics.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct LatentSnapshot {
    /// Its index, below F.
    pub latent: u32,
    /// Tokens on which it was active.
    pub count: u64,
    /// Mean value where active; NaN (JSON: null) where it never was.
    pub mean: f32,
    /// Share of recent tokens on which it was active, decayed exponentially.
    pub rate: f32,
    /// Share of the calibration's tokens on which it was active; NaN where the model file does not say.
    pub calibrated_rate: f32,
    /// How far `rate` is from `calibrated_rate`, in standard errors of as many recent tokens; NaN where not calibrated.
    pub drift: f32,
}

/// A latent whose value the metrics carry.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct WatchedLatent {
    /// Its statistics.
    pub of: LatentSnapshot,
    /// Its label, where one was given.
    pub label: Option<Arc<str>>,
}

/// Matches of one rule at one site.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct RuleCount {
    /// The rule's name.
    pub rule: Arc<str>,
    /// Its severity.
    pub severity: Severity,
    /// Matches.
    pub matched: u64,
    /// Of those, retracted later.
    pub retracted: u64,
}

/// A token seen lately, with its latents.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct RecentToken {
    /// Counts the site's encoded tokens, from 1: what a reader has seen already.
    pub sequence: u64,
    /// Whose token it is.
    #[serde(flatten)]
    pub tag: TokenTag,
    /// Its text, where the host gives it.
    pub text: Option<Box<str>>,
    /// Its latents' indices, strongest first.
    pub indices: Box<[u32]>,
    /// Their values.
    pub values: Box<[f32]>,
}

/// One site.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct SiteSnapshot {
    /// Its name.
    pub site: Arc<str>,
    /// The layer it is at, where known.
    pub layer: Option<u32>,
    /// The model in force.
    pub model: ModelId,
    /// F.
    pub latents: u32,
    /// "topk", "threshold", or for watched latents alone "watch (exact)", "watch (full topk)", "watch (full
    /// threshold)": exact but for tokens with more active latents than the model keeps.
    pub rule: &'static str,
    /// Tokens of all its taps.
    pub counters: Counters,
    /// Its taps.
    pub taps: Vec<TapSnapshot>,
    /// Tokens the statistics rest on: those encoded since the model in force was set.
    pub tokens: u64,
    /// Mean number of active latents a token.
    pub l0: f64,
    /// Jensen-Shannon divergence, in bits, between the recent and the calibrated distribution of firings over latents:
    /// 0, the same, to 1; NaN where not calibrated.
    pub drift: f64,
    /// Time from submit to the end of its encode, token by token.
    pub latency: Histogram,
    /// Time of encode calls, a token's share.
    pub encode: Histogram,
    /// Requests with state now.
    pub requests: u64,
    /// Requests whose state was given up for want of room.
    pub requests_evicted: u64,
    /// Rules at this site.
    pub rules: Vec<RuleCount>,
    /// Watched latents, bounded by configuration.
    pub watched: Vec<WatchedLatent>,
    /// The latents with the highest recent rates against their calibration (or, not calibrated, the highest), at most 32.
    pub strongest: Vec<LatentSnapshot>,
    /// Tokens the recorder wrote, or 0.
    pub recorded: u64,
    /// Tokens the recorder had to leave out: disk full, say.
    pub record_failures: u64,
}

/// A rule in force for a site that there is not yet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct UnboundRule {
    /// The rule's name.
    pub rule: Arc<str>,
    /// The name of the site it waits for.
    pub site: Box<str>,
}

/// The few numbers that cost next to nothing to ask for: as in [`Snapshot`], all sites together.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct MonitorStatus {
    /// What it is doing.
    pub state: State,
    /// Tokens of all taps.
    pub counters: Counters,
    /// Events made.
    pub events: u64,
    /// Events that consumers were too slow for.
    pub events_lost: u64,
    /// Bytes of queues and state.
    pub memory: u64,
    /// CPU time of its workers, in seconds.
    pub cpu_seconds: f64,
    /// Seconds since it was made.
    pub uptime: f64,
}

/// A site's recordings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RecordingStatus {
    /// Whether one is under way: started, and neither stopped nor at a limit.
    pub recording: bool,
    /// Tokens in finished shards, of all the site's recordings.
    pub written: u64,
    /// Tokens they had to leave out because the disk refused.
    pub failures: u64,
}

/// One monitor.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Snapshot {
    /// When: nanoseconds since 1970, UTC.
    pub unix_nanos: u64,
    /// Library version.
    pub version: &'static str,
    /// What it is doing.
    pub state: State,
    /// Why it failed, where it did.
    pub failure: Option<String>,
    /// Seconds since it was made.
    pub uptime: f64,
    /// Bytes of queues and state.
    pub memory: u64,
    /// Bytes of devices' memory: what device taps need there, copies of models included.
    pub device_memory: u64,
    /// Events made.
    pub events: u64,
    /// Events that consumers were too slow for.
    pub events_lost: u64,
    /// CPU time of its workers, in seconds.
    pub cpu_seconds: f64,
    /// Its sites.
    pub sites: Vec<SiteSnapshot>,
    /// Rules in force that name a site that there is not: they wait for it, or its name is mistaken.
    pub unbound_rules: Vec<UnboundRule>,
}
