//! Golden text of a fixed snapshot in both forms. `KRONSAE_BLESS=1` writes it anew.

use kronsae::monitor::metrics::{MetricsForm, write};
use kronsae::monitor::{
    Counters, Histogram, LatentSnapshot, ModelId, RuleCount, Severity, SiteSnapshot, Snapshot, State, TapSnapshot,
    WatchedLatent,
};

pub(crate) fn snapshot() -> Snapshot {
    let latent = |latent, mean, calibrated_rate| LatentSnapshot {
        latent,
        count: 123,
        mean,
        rate: 0.25,
        calibrated_rate,
        drift: calibrated_rate * 2.0,
    };
    let tap =
        |tap, capacity, closed| TapSnapshot { tap, counters: Counters::default(), capacity, closed, failure: None };
    let site = SiteSnapshot {
        site: "a \"site\" \\ of\nmany".into(),
        layer: Some(15),
        model: ModelId([0, 1, 2, 0xab, 0xcd, 0xef, 0x7f, 0xff]),
        latents: 8192,
        rule: "topk",
        counters: Counters { submitted: 1000, encoded: 900, sampled_out: 50, dropped: 30, not_finite: 5, queued: 15 },
        taps: vec![
            tap(0, 512, false),
            TapSnapshot { failure: Some("lost".into()), ..tap(1, 128, false) },
            tap(2, 9999, true),
        ],
        tokens: 700,
        l0: 31.5,
        drift: 0.125,
        latency: Histogram { bounds: vec![0.00025, 0.001, 1.0], counts: vec![10, 20, 0, 1], sum: 2.5 },
        encode: Histogram { bounds: vec![0.00025, 0.001, 1.0], counts: vec![31, 0, 0, 0], sum: 0.0031 },
        requests: 7,
        requests_evicted: 2,
        rules: vec![
            RuleCount { rule: "refusal".into(), severity: Severity::Critical, matched: 4, retracted: 1 },
            RuleCount { rule: "größe=\"x\"".into(), severity: Severity::Info, matched: 0, retracted: 0 },
        ],
        watched: vec![
            WatchedLatent { of: latent(17, 1.5, 0.125), label: Some("water \"and\" weather".into()) },
            WatchedLatent { of: latent(4000, f32::NAN, f32::NAN), label: None },
        ],
        strongest: vec![latent(1, 1.0, 1.0)],
        recorded: 64,
        record_failures: 3,
    };
    let bare = SiteSnapshot {
        site: "bare".into(),
        layer: None,
        drift: f64::NAN,
        latency: Histogram::default(),
        encode: Histogram::default(),
        rules: Vec::new(),
        watched: Vec::new(),
        taps: Vec::new(),
        ..site.clone()
    };
    Snapshot {
        unix_nanos: 1_700_000_000_000_000_000,
        version: "0.1.0",
        state: State::Failed,
        failure: Some("planted".to_owned()),
        uptime: 12.5,
        memory: 1 << 20,
        device_memory: 3 << 20,
        events: 5,
        events_lost: 1,
        cpu_seconds: 0.75,
        sites: vec![site, bare],
        unbound_rules: Vec::new(),
    }
}

#[test]
fn golden() {
    for (form, name) in [(MetricsForm::Prometheus, "prometheus.txt"), (MetricsForm::OpenMetrics, "openmetrics.txt")] {
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/live").join(name);
        let mut text = String::new();
        write(&snapshot(), form, &mut text);
        if std::env::var_os("KRONSAE_BLESS").is_some() {
            std::fs::write(&path, &text).unwrap();
        }
        let golden = std::fs::read_to_string(&path).unwrap();
        for (line, (found, expected)) in text.lines().zip(golden.lines()).enumerate() {
            assert_eq!(found, expected, "{name}, line {}", line + 1);
        }
        assert_eq!(text.len(), golden.len(), "{name}");
    }
}

/// The bound that the module's documentation states.
#[test]
fn series_are_as_many_as_documented() {
    let snapshot = snapshot();
    let mut text = String::new();
    write(&snapshot, MetricsForm::Prometheus, &mut text);
    let of_monitor = text.lines().filter(|line| !line.starts_with('#') && !line.contains("site=")).count();
    assert_eq!(of_monitor, 10);
    for site in &snapshot.sites {
        let marker = if &*site.site == "bare" { "site=\"bare\"" } else { "site=\"a " };
        let found = text.lines().filter(|line| !line.starts_with('#') && line.contains(marker)).count();
        let bounds = site.latency.bounds.len() + site.encode.bounds.len();
        let most = 22 + bounds + 2 * site.rules.len() + 5 * site.watched.len();
        assert!(found <= most, "{found} of {most}");
    }
}
