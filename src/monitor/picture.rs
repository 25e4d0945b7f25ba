//! Snapshots: read from what workers keep in atomics, without stopping them.

use super::encode::unix_nanos;
use super::shared::{Core, FAILED, RUNNING};
use super::site::{SiteShared, lock, sum};
use super::snapshot::{Counters, MonitorStatus, RuleCount, SiteSnapshot, Snapshot, State, TapSnapshot, WatchedLatent};
use super::statistics::Statistics;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// Strongest latents of a site that a snapshot names.
const STRONGEST: usize = 32;

/// A monitor now.
pub(crate) fn of(core: &Core) -> Snapshot {
    let mut snapshot = Snapshot {
        unix_nanos: unix_nanos(),
        version: env!("CARGO_PKG_VERSION"),
        state: State::Stopped,
        failure: None,
        uptime: core.start.elapsed().as_secs_f64(),
        memory: core.budget.used() as u64,
        device_memory: core.device_budget.used() as u64,
        events: 0,
        events_lost: 0,
        cpu_seconds: 0.0,
        sites: Vec::new(),
        unbound_rules: Vec::new(),
    };
    if core.fork.is_forked() {
        // Nothing is locked here: its holder may not exist in this process.
        snapshot.failure = Some("the monitor was made before fork(), in the parent process".to_owned());
        return snapshot;
    }
    snapshot.state = state(core);
    snapshot.failure = core.failure();
    (snapshot.events, snapshot.events_lost) = core.events.counts();
    snapshot.cpu_seconds = cpu_seconds(core);
    snapshot.unbound_rules.clone_from(&lock(&core.unbound));
    let sites = lock(&core.sites).clone();
    snapshot.sites = sites.iter().map(|site| of_site(core, site)).collect();
    snapshot
}

pub(crate) fn state(core: &Core) -> State {
    if core.fork.is_forked() {
        return State::Stopped;
    }
    match core.state() {
        RUNNING => State::Running,
        FAILED => State::Failed,
        _ => State::Stopped,
    }
}

fn cpu_seconds(core: &Core) -> f64 {
    let cpu = core.workers.iter().map(|worker| worker.cpu_nanos.load(Ordering::Relaxed));
    cpu.sum::<u64>() as f64 / 1e9
}

/// What of a monitor is known without looking at its statistics.
pub(crate) fn status(core: &Core) -> MonitorStatus {
    let mut status = MonitorStatus {
        state: state(core),
        counters: Counters::default(),
        events: 0,
        events_lost: 0,
        memory: core.budget.used() as u64,
        cpu_seconds: 0.0,
        uptime: core.start.elapsed().as_secs_f64(),
    };
    if core.fork.is_forked() {
        return status;
    }
    (status.events, status.events_lost) = core.events.counts();
    status.cpu_seconds = cpu_seconds(core);
    for site in &*lock(&core.sites) {
        let over = core.workers[site.worker].ended.load(Ordering::Acquire);
        let taps = lock(&site.taps);
        status.counters =
            taps.live.iter().fold(sum(status.counters, taps.gone), |all, tap| sum(all, tap.counters(over)));
    }
    status
}

fn of_site(core: &Core, site: &SiteShared) -> SiteSnapshot {
    let model = site.model();
    let over = core.workers[site.worker].ended.load(Ordering::Acquire);
    let (taps, counters) = taps(site, over);
    let statistics = model.statistics.as_ref();
    let rules = Arc::clone(&lock(&site.rules));
    let get = |counter: &std::sync::atomic::AtomicU64| counter.load(Ordering::Relaxed);
    SiteSnapshot {
        site: Arc::clone(&site.name),
        layer: site.layer,
        model: model.id,
        latents: model.sae.as_ref().map_or(0, |sae| sae.config().encoder.latents() as u32),
        rule: site.rule(&model),
        counters,
        taps,
        tokens: statistics.map_or(0, Statistics::tokens),
        l0: statistics.map_or(0.0, Statistics::l0),
        drift: statistics.map_or(f64::NAN, Statistics::drift),
        latency: site.latency.read(),
        encode: site.encode.read(),
        requests: get(&site.gauges.requests),
        requests_evicted: get(&site.gauges.evicted),
        rules: (0..rules.rules.len())
            .map(|at| RuleCount {
                rule: Arc::clone(&rules.rules[at].0),
                severity: rules.rules[at].1,
                matched: get(&rules.matched[at]),
                retracted: get(&rules.retracted[at]),
            })
            .collect(),
        watched: statistics.map_or_else(Vec::new, |statistics| watched(core, site, statistics)),
        strongest: statistics.map_or_else(Vec::new, |statistics| statistics.strongest(STRONGEST)),
        recorded: get(&site.gauges.recorded),
        record_failures: get(&site.gauges.record_failures),
    }
}

fn taps(site: &SiteShared, over: bool) -> (Vec<TapSnapshot>, Counters) {
    // One lock for both: a tap moves from the one to the other under it.
    let taps = lock(&site.taps);
    let mut all = taps.gone;
    let mut each = Vec::new();
    for tap in &taps.live {
        let counters = tap.counters(over);
        all = sum(all, counters);
        each.push(TapSnapshot {
            tap: tap.number,
            counters,
            capacity: tap.capacity as u64,
            closed: tap.closed.load(Ordering::Acquire),
            failure: tap.failure.get().cloned(),
        });
    }
    (each, all)
}

/// The watch list first, then what rules look at, up to the configured number.
fn watched(core: &Core, site: &SiteShared, statistics: &Statistics) -> Vec<WatchedLatent> {
    let rules = Arc::clone(&lock(&site.rule_latents));
    let labels = lock(&site.labels).clone();
    let more = rules.iter().filter(|latent| !site.watch.contains(latent));
    let all = site.watch.iter().chain(more).take(core.options.watched);
    all.filter_map(|&latent| {
        let label = labels.as_ref().and_then(|labels| labels.get(latent)).cloned();
        statistics.latent(latent).map(|of| WatchedLatent { of, label })
    })
    .collect()
}
