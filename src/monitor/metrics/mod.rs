//! A [`Snapshot`] as metrics: Prometheus' text format 0.0.4, or OpenMetrics 1.0.
//!
//! A host that has a metrics endpoint of its own appends this text to it; [`serve`](super::serve) has one as well.
//!
//! How many series there are is bounded by configuration and never by what is served: per monitor 10; per site 22,
//! one for each bound of each of its two histograms, two for each rule, and at most five for each watched latent. No request, position, token
//! or text ever becomes a label. Label values longer than [`MOST_LABEL_BYTES`] are cut.
//!
//! Values that do not exist (a mean of nothing, a drift without calibration) have no sample, rather than NaN.

mod negotiate;
mod text;

use super::snapshot::{Counters, Histogram, SiteSnapshot, Snapshot, State, WatchedLatent};
use std::fmt::Write;
use text::{Kind, Labels, Writer};

/// Longest value of a label, in bytes. Longer ones end in an ellipsis.
pub const MOST_LABEL_BYTES: usize = 128;

/// In which form metrics are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[repr(i32)]
pub enum MetricsForm {
    /// Prometheus' text format, version 0.0.4.
    #[default]
    Prometheus = 1,
    /// OpenMetrics, version 1.0.0.
    OpenMetrics = 2,
}

impl MetricsForm {
    /// The value of an HTTP answer's `Content-Type`.
    #[must_use]
    pub fn content_type(self) -> &'static str {
        match self {
            MetricsForm::Prometheus => "text/plain; version=0.0.4; charset=utf-8",
            MetricsForm::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        }
    }

    /// The form that an HTTP request's `Accept` prefers. OpenMetrics must be asked for by name and be preferred to plain
    /// text; whatever else is said, or nothing, means version 0.0.4.
    #[must_use]
    pub fn preferred(accept: &str) -> Self {
        negotiate::preferred(accept)
    }
}

/// Appends all metrics of `snapshot` to `out`. With [`MetricsForm::OpenMetrics`] the text ends in `# EOF`, after which
/// nothing may follow.
pub fn write(snapshot: &Snapshot, form: MetricsForm, out: &mut String) {
    let mut writer = Writer::new(form, out);
    monitor(snapshot, &mut writer);
    tokens(snapshot, &mut writer);
    model(snapshot, &mut writer);
    times(snapshot, &mut writer);
    requests(snapshot, &mut writer);
    watched(snapshot, &mut writer);
    writer.end();
}

fn monitor(snapshot: &Snapshot, w: &mut Writer<'_>) {
    w.family("kronsae_build", Kind::Info, "Version of the library.");
    w.info(Labels::of(&[("version", snapshot.version)]));
    w.family("kronsae_monitor_state", Kind::Gauge, "1 for what the monitor is doing, 0 for the rest.");
    for (state, name) in [(State::Running, "running"), (State::Stopped, "stopped"), (State::Failed, "failed")] {
        w.integer("", Labels::of(&[("state", name)]), u64::from(snapshot.state == state));
    }
    w.family("kronsae_monitor_uptime_seconds", Kind::Gauge, "Time since the monitor was made.");
    w.number("", Labels::none(), snapshot.uptime);
    w.family("kronsae_monitor_memory_bytes", Kind::Gauge, "Memory of queues and state.");
    w.integer("", Labels::none(), snapshot.memory);
    w.family("kronsae_monitor_device_memory_bytes", Kind::Gauge, "Memory of devices that taps take activations on.");
    w.integer("", Labels::none(), snapshot.device_memory);
    w.family("kronsae_monitor_cpu_seconds", Kind::Counter, "CPU time of the monitor's workers.");
    w.number("_total", Labels::none(), snapshot.cpu_seconds);
    w.family("kronsae_events", Kind::Counter, "Events made, retractions included.");
    w.integer("_total", Labels::none(), snapshot.events);
    w.family("kronsae_events_lost", Kind::Counter, "Events that consumers were too slow for.");
    w.integer("_total", Labels::none(), snapshot.events_lost);
}

fn tokens(snapshot: &Snapshot, w: &mut Writer<'_>) {
    let each = |w: &mut Writer<'_>, value: fn(&SiteSnapshot) -> u64, suffix| {
        for site in &snapshot.sites {
            w.integer(suffix, of_site(site), value(site));
        }
    };
    w.family("kronsae_tokens_submitted", Kind::Counter, "Tokens handed to submit.");
    each(w, |site| site.counters.submitted, "_total");
    w.family("kronsae_tokens", Kind::Counter, "Submitted tokens that left the queue, by what became of them.");
    for site in &snapshot.sites {
        let Counters { encoded, sampled_out, dropped, not_finite, submitted: _, queued: _ } = site.counters;
        let outcomes =
            [("encoded", encoded), ("sampled_out", sampled_out), ("dropped", dropped), ("not_finite", not_finite)];
        for (outcome, count) in outcomes {
            w.integer("_total", of_site(site).and("outcome", outcome), count);
        }
    }
    w.family("kronsae_queue_tokens", Kind::Gauge, "Tokens in the queues of the site's taps.");
    each(w, |site| site.counters.queued, "");
    w.family(
        "kronsae_queue_capacity_tokens",
        Kind::Gauge,
        "Tokens that the queues of the site's open taps have room for.",
    );
    each(w, |site| site.taps.iter().filter(|tap| !tap.closed).map(|tap| tap.capacity).sum(), "");
    w.family("kronsae_failed_taps", Kind::Gauge, "Open taps whose device failed: what they are given is dropped.");
    each(w, |site| site.taps.iter().filter(|tap| !tap.closed && tap.failure.is_some()).count() as u64, "");
}

fn model(snapshot: &Snapshot, w: &mut Writer<'_>) {
    w.family("kronsae_site", Kind::Info, "What a site is: its layer, number of latents, and rule of selection.");
    for site in &snapshot.sites {
        let layer = site.layer.map_or(String::new(), |layer| layer.to_string());
        let latents = site.latents.to_string();
        w.info(of_site(site).and("layer", &layer).and("latents", &latents).and("rule", site.rule));
    }
    w.family("kronsae_model_tokens", Kind::Counter, "Tokens encoded since the model in force was set.");
    for site in &snapshot.sites {
        w.integer("_total", of_site(site), site.tokens);
    }
    w.family("kronsae_l0", Kind::Gauge, "Mean number of active latents of a token.");
    for site in &snapshot.sites {
        w.number("", of_site(site), site.l0);
    }
    w.family(
        "kronsae_drift",
        Kind::Gauge,
        "Jensen-Shannon divergence, in bits, of recent firings from the calibrated ones: 0, the same, to 1.",
    );
    for site in &snapshot.sites {
        w.number("", of_site(site), site.drift);
    }
}

fn times(snapshot: &Snapshot, w: &mut Writer<'_>) {
    let mut each = |name, help, of: fn(&SiteSnapshot) -> &Histogram| {
        w.family(name, Kind::Histogram, help);
        for site in &snapshot.sites {
            w.histogram(of_site(site), of(site));
        }
    };
    each("kronsae_latency_seconds", "Time from submit to the end of a token's encode.", |site| &site.latency);
    each("kronsae_encode_seconds", "A token's share of the time of its encode call.", |site| &site.encode);
}

fn requests(snapshot: &Snapshot, w: &mut Writer<'_>) {
    w.family("kronsae_requests", Kind::Gauge, "Requests with state.");
    for site in &snapshot.sites {
        w.integer("", of_site(site), site.requests);
    }
    w.family("kronsae_requests_evicted", Kind::Counter, "Requests whose state was given up for want of room.");
    for site in &snapshot.sites {
        w.integer("_total", of_site(site), site.requests_evicted);
    }
    w.family("kronsae_rule_matches", Kind::Counter, "Matches of a rule.");
    each_rule(snapshot, w, |rule| rule.matched);
    w.family("kronsae_rule_retractions", Kind::Counter, "Matches of a rule that a rewind took back.");
    each_rule(snapshot, w, |rule| rule.retracted);
    w.family("kronsae_recorded_tokens", Kind::Counter, "Tokens written to activation shards.");
    for site in &snapshot.sites {
        w.integer("_total", of_site(site), site.recorded);
    }
    w.family("kronsae_record_failures", Kind::Counter, "Tokens that the recorder had to leave out.");
    for site in &snapshot.sites {
        w.integer("_total", of_site(site), site.record_failures);
    }
}

fn each_rule(snapshot: &Snapshot, w: &mut Writer<'_>, value: fn(&super::RuleCount) -> u64) {
    for site in &snapshot.sites {
        for rule in &site.rules {
            let labels = of_site(site).and("rule", &rule.rule).and("severity", rule.severity.name());
            w.integer("_total", labels, value(rule));
        }
    }
}

fn watched(snapshot: &Snapshot, w: &mut Writer<'_>) {
    let mut each = |name, kind, help, suffix, value: fn(&WatchedLatent) -> f64| {
        w.family(name, kind, help);
        for site in &snapshot.sites {
            for latent in &site.watched {
                let index = latent.of.latent.to_string();
                let labels = of_site(site).and("latent", &index).and("label", latent.label.as_deref().unwrap_or(""));
                w.number(suffix, labels, value(latent));
            }
        }
    };
    let tokens = "Tokens on which a watched latent was active.";
    // Exact: counts stay below 2^53.
    each("kronsae_latent_firings", Kind::Counter, tokens, "_total", |latent| latent.of.count as f64);
    let rate = "Share of recent tokens on which a watched latent was active.";
    each("kronsae_latent_firing_ratio", Kind::Gauge, rate, "", |latent| latent.of.rate.into());
    let calibrated = "Share of the calibration's tokens on which a watched latent was active.";
    each("kronsae_latent_calibrated_ratio", Kind::Gauge, calibrated, "", |latent| latent.of.calibrated_rate.into());
    let mean = "Mean value of a watched latent where it was active.";
    each("kronsae_latent_mean", Kind::Gauge, mean, "", |latent| latent.of.mean.into());
    let drift = "Distance of a watched latent's recent rate from its calibrated one, in standard errors.";
    each("kronsae_latent_drift", Kind::Gauge, drift, "", |latent| latent.of.drift.into());
}

fn of_site(site: &SiteSnapshot) -> Labels {
    let mut model = String::new();
    let _ = write!(model, "{}", site.model);
    Labels::of(&[("site", &site.site), ("model", &model)])
}
