//! What host threads, readers and the worker share of a site, its models and its taps.

use super::Severity;
use super::histogram::Durations;
use super::labels::Labels;
use super::memory::Reserved;
use super::options::SiteOptions;
use super::recent::Recent;
use super::ring::Ring;
use super::rules::SiteRules;
use super::snapshot::{Counters, ModelId};
use super::statistics::Statistics;
use super::tag::Sampling;
use crate::error::{Error, Result};
use crate::sae::{Sae, Selection};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

/// Locks a mutex under which no user code runs, so that a poisoned one is whole.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What a site makes of a token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    /// All latents, selected as the model says.
    Full,
    /// Watched latents alone, exactly.
    Watch,
    /// Nothing: there is no model.
    Record,
}

/// A model in force at a site, with what was counted since.
#[derive(Debug)]
pub(crate) struct Model {
    pub(crate) sae: Option<Arc<Sae>>,
    pub(crate) id: ModelId,
    pub(crate) way: Way,
    /// As snapshots say it.
    pub(crate) rule: &'static str,
    pub(crate) statistics: Option<Statistics>,
    /// Most latents of a token.
    pub(crate) capacity: usize,
    pub(crate) _memory: Reserved,
}

impl Model {
    /// How a site with this watch list takes tokens.
    pub(crate) fn way(sae: Option<&Sae>, watch: &[u32]) -> (Way, &'static str) {
        match sae.map(|sae| sae.config().selection) {
            None => (Way::Record, "record"),
            Some(Selection::TopK(_)) if watch.is_empty() => (Way::Full, "topk"),
            Some(Selection::TopK(_)) => (Way::Full, "watch (full topk)"),
            Some(Selection::Threshold { .. }) if watch.is_empty() => (Way::Full, "threshold"),
            Some(Selection::Threshold { .. }) => (Way::Watch, "watch (exact)"),
        }
    }

    /// # Errors
    /// [`crate::Status::InvalidArgument`] if a watched latent does not exist.
    pub(crate) fn check_watch(sae: &Sae, watch: &[u32]) -> Result<()> {
        let latents = sae.config().encoder.latents();
        match watch.iter().find(|latent| **latent as usize >= latents) {
            Some(latent) => Err(Error::invalid(format!("watch: latent {latent} is not below F = {latents}"))),
            None => Ok(()),
        }
    }
}

/// Matches of the rules in force.
#[derive(Debug, Default)]
pub(crate) struct RuleTable {
    pub(crate) rules: Vec<(Arc<str>, Severity)>,
    pub(crate) matched: Vec<AtomicU64>,
    pub(crate) retracted: Vec<AtomicU64>,
}

impl RuleTable {
    /// The counts of `rules`; those of rules with a name that `before` knows go on.
    pub(crate) fn new(rules: &SiteRules, before: &RuleTable) -> Self {
        let rules: Vec<_> = rules.names().map(|(name, severity)| (Arc::clone(name), severity)).collect();
        let former = |counts: &[AtomicU64], name: &Arc<str>| {
            let at = before.rules.iter().position(|(other, _)| other == name);
            AtomicU64::new(at.map_or(0, |at| counts[at].load(Ordering::Relaxed)))
        };
        let matched = rules.iter().map(|(name, _)| former(&before.matched, name)).collect();
        let retracted = rules.iter().map(|(name, _)| former(&before.retracted, name)).collect();
        RuleTable { rules, matched, retracted }
    }
}

/// Counters that a tap's producing thread writes.
#[derive(Debug, Default)]
#[repr(align(128))]
pub(crate) struct Produced {
    pub(crate) sampled_out: AtomicU64,
    pub(crate) dropped: AtomicU64,
}

/// Counters that the worker writes.
#[derive(Debug, Default)]
#[repr(align(128))]
pub(crate) struct Consumed {
    pub(crate) encoded: AtomicU64,
    pub(crate) not_finite: AtomicU64,
    /// Queued, but their latents never came.
    pub(crate) lost: AtomicU64,
}

/// Adds to a counter that this thread alone writes.
#[inline]
pub(crate) fn count(counter: &AtomicU64, by: usize) {
    counter.store(counter.load(Ordering::Relaxed) + by as u64, Ordering::Release);
}

/// A tap as readers see it.
#[derive(Debug)]
pub(crate) struct TapShared {
    pub(crate) number: u32,
    pub(crate) ring: Arc<Ring>,
    /// Tokens it takes before it drops.
    pub(crate) capacity: usize,
    pub(crate) sampling: Sampling,
    pub(crate) produced: Produced,
    pub(crate) consumed: Consumed,
    /// Its handle is gone; nothing more will be queued.
    pub(crate) closed: AtomicBool,
    /// Why its device failed, where it did; nothing more will be queued.
    pub(crate) failure: OnceLock<String>,
    _memory: Reserved,
}

impl TapShared {
    pub(crate) fn new(number: u32, ring: Arc<Ring>, capacity: usize, sampling: Sampling, memory: Reserved) -> Self {
        TapShared {
            number,
            ring,
            capacity,
            sampling,
            produced: Produced::default(),
            consumed: Consumed::default(),
            closed: AtomicBool::new(false),
            failure: OnceLock::new(),
            _memory: memory,
        }
    }

    /// Its counters now. `over`: nobody will take what is still queued, which therefore was dropped.
    pub(crate) fn counters(&self, over: bool) -> Counters {
        let get = |counter: &AtomicU64| counter.load(Ordering::Acquire);
        // Six numbers are read, the others follow from them, so that the sum is exact at every moment. The consumer's
        // side first: what it has taken was published before.
        let consumed = || (get(&self.consumed.encoded), get(&self.consumed.not_finite), get(&self.consumed.lost));
        let mut taken = consumed();
        let mut published = self.ring.published();
        for _ in 0..16 {
            let now = consumed();
            if now == taken {
                break;
            }
            // More than there is room for may have gone through between the readings: read again.
            taken = now;
            published = self.ring.published();
        }
        let (encoded, not_finite, lost) = taken;
        let (sampled_out, dropped) = (get(&self.produced.sampled_out), get(&self.produced.dropped));
        let queued = published - (encoded + not_finite + lost);
        let (left, queued) = if over { (queued, 0) } else { (0, queued) };
        let submitted = published + sampled_out + dropped;
        Counters { submitted, encoded, sampled_out, dropped: dropped + lost + left, not_finite, queued }
    }
}

/// The taps of a site.
#[derive(Debug, Default)]
pub(crate) struct Taps {
    pub(crate) live: Vec<Arc<TapShared>>,
    /// Of those whose handles are gone and whose queues were emptied.
    pub(crate) gone: Counters,
}

/// The sum of two sets of counters.
pub(crate) fn sum(a: Counters, b: Counters) -> Counters {
    Counters {
        submitted: a.submitted + b.submitted,
        encoded: a.encoded + b.encoded,
        sampled_out: a.sampled_out + b.sampled_out,
        dropped: a.dropped + b.dropped,
        not_finite: a.not_finite + b.not_finite,
        queued: a.queued + b.queued,
    }
}

/// Counts that the worker copies out for readers.
#[derive(Debug, Default)]
pub(crate) struct Gauges {
    pub(crate) requests: AtomicU64,
    pub(crate) evicted: AtomicU64,
    pub(crate) recorded: AtomicU64,
    pub(crate) record_failures: AtomicU64,
    pub(crate) recording: AtomicBool,
}

/// A site as host threads and readers see it.
#[derive(Debug)]
pub(crate) struct SiteShared {
    pub(crate) number: u32,
    pub(crate) name: Arc<str>,
    pub(crate) layer: Option<u32>,
    pub(crate) any_layer: bool,
    pub(crate) d_model: usize,
    /// The worker it belongs to.
    pub(crate) worker: usize,
    pub(crate) watch: Box<[u32]>,
    pub(crate) model: Mutex<Arc<Model>>,
    pub(crate) rules: Mutex<Arc<RuleTable>>,
    /// Latents that rules look at.
    pub(crate) rule_latents: Mutex<Arc<[u32]>>,
    pub(crate) labels: Mutex<Option<Arc<Labels>>>,
    pub(crate) taps: Mutex<Taps>,
    pub(crate) latency: Durations,
    pub(crate) encode: Durations,
    pub(crate) recent: Recent,
    pub(crate) gauges: Gauges,
    /// Taps that take activations where a device has them.
    #[cfg(any(feature = "cuda", feature = "cuda-emulation"))]
    pub(crate) devices: super::device::Devices,
    pub(crate) _memory: Reserved,
}

impl SiteShared {
    pub(crate) fn model(&self) -> Arc<Model> {
        Arc::clone(&lock(&self.model))
    }

    /// Which latents of `model` it is for, in words. A device selects by threshold as far as the model keeps latents, and
    /// watched ones are taken from those.
    pub(crate) fn rule(&self, model: &Model) -> &'static str {
        #[cfg(any(feature = "cuda", feature = "cuda-emulation"))]
        if model.way == Way::Watch && self.devices.any() {
            return "watch (full threshold)";
        }
        model.rule
    }
}

/// # Errors
/// [`crate::Status::InvalidArgument`].
pub(crate) fn check_name(name: &str) -> Result<()> {
    let length = name.chars().count();
    if !(1..=128).contains(&length) || name.chars().any(char::is_control) {
        return Err(Error::invalid(format!(
            "site name {name:?}: expected 1 to 128 characters, none of them a control character"
        )));
    }
    Ok(())
}

/// Checks that a model belongs where a host says it is tapped.
///
/// # Errors
/// [`crate::Status::InvalidArgument`].
pub(crate) fn check_layer(site: &str, layer: Option<u32>, any_layer: bool, sae: &Sae) -> Result<()> {
    let source = sae.config().json.get("source").and_then(|source| source.get("layer"));
    let source = source.and_then(serde_json::Value::as_u64);
    match (layer, source) {
        (Some(layer), Some(source)) if u64::from(layer) != source && !any_layer => Err(Error::invalid(format!(
            "site {site}: the model was trained on layer {source}, the site is at layer {layer}; tap layer {source}, or \
             say that any layer is meant"
        ))),
        _ => Ok(()),
    }
}

/// Checks that rules look at nothing that a watch list leaves out.
///
/// # Errors
/// [`crate::Status::InvalidArgument`].
pub(crate) fn check_rules_are_watched(site: &str, way: Way, watch: &[u32], rules: &SiteRules) -> Result<()> {
    match rules.latents().iter().find(|latent| way == Way::Watch && !watch.contains(latent)) {
        Some(latent) => Err(Error::invalid(format!(
            "site {site}: a rule looks at latent {latent}, which the site's watch list leaves out; add it there"
        ))),
        None => Ok(()),
    }
}

/// The layer a site is at: as its host says, or else as the model file does.
pub(crate) fn layer_of(options: &SiteOptions, sae: Option<&Sae>) -> Option<u32> {
    let source = || sae?.config().json.get("source")?.get("layer")?.as_u64()?.try_into().ok();
    options.layer.or_else(source)
}
