//! The monitor from tap to snapshot: every token accounted for, events those of an offline encode, models and rules changed
//! while it runs.

mod common;

use common::{Rng, random_sae};
use kronsae::monitor::{
    Counters, Event, EventKind, Monitor, MonitorOptions, RecorderOptions, Rules, Sampling, SiteId, SiteOptions, State,
    TapOptions, TokenTag, flags,
};
use kronsae::sae::{Encoder as Shape, Selection};
use kronsae::tensor_file::TensorFile;
use kronsae::{Activations, Dtype, Encoder, EncoderOptions, Latents, Sae, Status};
use std::sync::Arc;
use std::time::Duration;

const D: usize = 48;
const LONG: Duration = Duration::from_secs(60);

fn sae(seed: u64, selection: Selection) -> Arc<Sae> {
    let shape = Shape::Kron { heads: 16, base: 2, extension: 4 };
    Arc::new(random_sae(shape, D, selection, Dtype::F32, &mut Rng(seed)))
}

fn named(name: &str) -> SiteOptions {
    SiteOptions { name: name.into(), ..Default::default() }
}

fn tag(request: u64, position: usize) -> TokenTag {
    TokenTag { request, position: position as i32, token: 7, flags: 0 }
}

fn accounted(counters: Counters) -> bool {
    let Counters { submitted, encoded, sampled_out, dropped, not_finite, queued } = counters;
    submitted == encoded + sampled_out + dropped + not_finite + queued
}

/// What one producing thread knows that it did.
#[derive(Default, Clone, Copy, Debug, PartialEq)]
struct Told {
    submitted: u64,
    accepted: u64,
    sampled_out: u64,
    not_finite: u64,
}

fn produce(monitor: &Monitor, site: SiteId, seed: u64) -> Told {
    let mut rng = Rng(seed);
    let mut told = Told::default();
    for life in 0..6 {
        let sampling = [Sampling::Every, Sampling::EveryNth(3), Sampling::LastPrompt][(seed as usize + life) % 3];
        let options = TapOptions { capacity: 1 + rng.below(200), controls: 4, sampling, dtype: Dtype::F32 };
        let mut tap = monitor.tap(site, options).unwrap();
        for call in 0..300 {
            let rows = rng.below(40);
            let mut x = rng.vec(rows * D);
            let mut bad = vec![false; rows];
            for row in 0..rows {
                if rng.below(20) == 0 {
                    x[row * D + rng.below(D)] = [f32::NAN, f32::INFINITY][rng.below(2)];
                    bad[row] = true;
                }
            }
            let tags = |row: usize| TokenTag {
                flags: if row % 5 == 0 { flags::LAST_PROMPT } else { 0 },
                ..tag(seed * 100 + call % 7, row + call as usize)
            };
            let accepted = tap.submit(Activations::from_f32(&x, D).unwrap(), tags).unwrap();
            let taken: Vec<usize> = (0..rows).filter(|&row| sampling.takes(&tags(row))).collect();
            told.submitted += rows as u64;
            told.sampled_out += (rows - taken.len()) as u64;
            told.accepted += accepted as u64;
            told.not_finite += taken[..accepted].iter().filter(|&&row| bad[row]).count() as u64;
            // Full is an answer, too: nothing else may be.
            for done in [tap.end_request(seed * 100 + call % 7), tap.rewind(seed * 100, 3)] {
                assert!(done.is_ok() || done.as_ref().unwrap_err().status() == Status::Full, "{done:?}");
            }
            if rng.below(10) == 0 {
                std::thread::sleep(Duration::from_micros(rng.below(2000) as u64));
            }
        }
    }
    told
}

#[test]
fn every_token_is_accounted_for_under_stress() {
    let monitor = Monitor::new(MonitorOptions { workers: 2, ..Default::default() }).unwrap();
    let rules = Rules::parse(
        "[[rule]]\nname = 'r'\nwhen = { latent = 3, above = 0.5 }\nwindow = { at_least = 2, of_last = 4 }",
    );
    let sites: Vec<SiteId> =
        (0..3).map(|i| monitor.add_site(named(&format!("site {i}")), sae(i, Selection::TopK(8))).unwrap()).collect();
    monitor.set_rules(&rules.unwrap()).unwrap();
    let told: Vec<(usize, Told)> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..6_usize)
            .map(|t| {
                (
                    t % 3,
                    scope.spawn({
                        let (monitor, sites) = (&monitor, &sites);
                        move || produce(monitor, sites[t % 3], t as u64)
                    }),
                )
            })
            .collect();
        threads.into_iter().map(|(site, thread)| (site, thread.join().unwrap())).collect()
    });
    monitor.stop(LONG).unwrap();
    let snapshot = monitor.snapshot();
    assert_eq!(snapshot.state, State::Stopped);
    let mut dropped = 0;
    for (at, site) in snapshot.sites.iter().enumerate() {
        let sum =
            |of: fn(&Told) -> u64| told.iter().filter(|(site, _)| *site == at).map(|(_, told)| of(told)).sum::<u64>();
        let counters = site.counters;
        assert!(accounted(counters), "{counters:?}");
        assert_eq!(counters.submitted, sum(|told| told.submitted));
        assert_eq!(counters.sampled_out, sum(|told| told.sampled_out));
        assert_eq!(counters.not_finite, sum(|told| told.not_finite));
        assert_eq!(counters.encoded + counters.not_finite, sum(|told| told.accepted));
        assert_eq!(counters.queued, 0);
        assert_eq!(site.tokens, counters.encoded);
        assert_eq!(site.latency.counts.iter().sum::<u64>(), counters.encoded);
        dropped += counters.dropped;
    }
    assert!(dropped > 0, "the queues were never full: the test shows less than it should");
    assert!(snapshot.cpu_seconds > 0.0 && snapshot.memory > 0);
}

#[test]
fn events_equal_an_offline_encode() {
    let sae = sae(5, Selection::TopK(8));
    let monitor = Monitor::new(MonitorOptions { events: 100_000, ..Default::default() }).unwrap();
    let site = monitor.add_site(named("resid"), Arc::clone(&sae)).unwrap();
    let text: String = (0..128)
        .step_by(3)
        .map(|f| format!("[[rule]]\nname = 'l{f}'\nwhen = {{ latent = {f}, above = 1.25 }}\n"))
        .collect();
    monitor.set_rules(&Rules::parse(&text).unwrap()).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let options =
        RecorderOptions { dtype: Dtype::F32, keep_position_0: true, ..RecorderOptions::new(folder.path().join("r")) };
    monitor.record(site, options).unwrap();
    let mut tap = monitor.tap(site, TapOptions { capacity: 4096, ..Default::default() }).unwrap();
    let x = Rng(77).vec(3000 * D);
    for (request, rows) in x.chunks(1000 * D).enumerate() {
        for (call, part) in rows.chunks(17 * D).enumerate() {
            let part = Activations::from_f32(part, D).unwrap();
            assert_eq!(tap.submit(part, |row| tag(request as u64, call * 17 + row)), Ok(part.rows()));
        }
        tap.end_request(request as u64).unwrap();
    }
    monitor.flush(LONG).unwrap();
    monitor.stop_recording(site).unwrap();

    // What was recorded is what was submitted.
    let mut recorded = Vec::new();
    for entry in std::fs::read_dir(folder.path().join("r")).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|e| e == "safetensors") {
            let file = TensorFile::open(&path).unwrap();
            let mut bytes = vec![0; file.require("activations").unwrap().bytes];
            file.read("activations", 0, &mut bytes).unwrap();
            recorded.extend(bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)));
        }
    }
    assert_eq!(recorded, x);

    let mut encoder = Encoder::new(Arc::clone(&sae), EncoderOptions::default()).unwrap();
    let mut latents = Latents::new(3000, 8).unwrap();
    encoder.encode(Activations::from_f32(&recorded, D).unwrap(), &mut latents.as_mut()).unwrap();
    let mut expected = Vec::new();
    for row in 0..3000 {
        let (indices, values) = latents.row(row);
        let mut fires: Vec<_> = indices.iter().zip(values).filter(|(f, v)| *f % 3 == 0 && **v > 1.25).collect();
        fires.sort_by_key(|(f, _)| **f);
        expected.extend(fires.iter().map(|(f, v)| ((row / 1000) as u64, (row % 1000) as i32, **f, v.to_bits())));
    }
    let events = monitor.poll_events(usize::MAX, Duration::ZERO).unwrap();
    let found: Vec<_> =
        events.iter().map(|e| (e.request, e.position, e.latents[0].latent, e.latents[0].value.to_bits())).collect();
    assert!(found.len() > 100, "{} events show little", found.len());
    assert_eq!(found, expected);
    assert!(
        events.iter().enumerate().all(|(at, e)| e.id == at as u64 + 1 && !e.gap && e.model == sae.model_id().unwrap())
    );
    let snapshot = monitor.snapshot();
    let by_rule: u64 = snapshot.sites[0].rules.iter().map(|rule| rule.matched).sum();
    assert_eq!((snapshot.events, snapshot.events_lost, by_rule), (found.len() as u64, 0, found.len() as u64));
    assert_eq!((snapshot.sites[0].recorded, snapshot.sites[0].record_failures), (3000, 0));
    let kept = monitor.recent_tokens(site, 2990, 100);
    assert_eq!(kept.len(), 10);
    assert_eq!((&*kept[9].indices, &*kept[9].values), latents.row(2999));
    assert_eq!(monitor.recent_events(found.len() as u64 - 1, 5), &events[events.len() - 1..]);
}

fn always(latent: u32) -> Rules {
    Rules::parse(&format!("[[rule]]\nname = 'x'\nwhen = {{ latent = {latent}, above = 0 }}")).unwrap()
}

#[test]
fn a_rewind_retracts_by_id() {
    let sae = sae(6, Selection::TopK(128));
    let monitor = Monitor::new(MonitorOptions::default()).unwrap();
    let site = monitor.add_site(named("resid"), Arc::clone(&sae)).unwrap();
    monitor.set_rules(&always(1)).unwrap();
    let mut tap = monitor.tap(site, TapOptions::default()).unwrap();
    let x = Rng(3).vec(40 * D);
    tap.submit(Activations::from_f32(&x, D).unwrap(), |row| tag(4, row)).unwrap();
    tap.rewind(4, 30).unwrap();
    monitor.flush(LONG).unwrap();
    let events = monitor.poll_events(1000, Duration::ZERO).unwrap();
    let of = |kind: EventKind| -> Vec<&Event> { events.iter().filter(|e| e.kind == kind).collect() };
    let late: Vec<_> =
        of(EventKind::Matched).into_iter().filter(|e| e.position >= 30).rev().map(|e| (e.position, e.id)).collect();
    let back: Vec<_> = of(EventKind::Retracted).into_iter().map(|e| (e.position, e.retracts)).collect();
    assert!(!back.is_empty() && back == late, "{back:?} for {late:?}");
    let rule = &monitor.snapshot().sites[0].rules[0];
    assert_eq!((rule.matched as usize, rule.retracted as usize), (of(EventKind::Matched).len(), back.len()));
}

#[test]
fn a_model_is_replaced_between_batches_or_not_at_all() {
    let (first, second) = (sae(1, Selection::TopK(8)), sae(2, Selection::TopK(4)));
    let narrow = Arc::new(random_sae(Shape::Dense { latents: 8 }, 16, Selection::TopK(2), Dtype::F32, &mut Rng(1)));
    let small = Arc::new(random_sae(Shape::Dense { latents: 8 }, D, Selection::TopK(2), Dtype::F32, &mut Rng(1)));
    let monitor = Monitor::new(MonitorOptions::default()).unwrap();
    let site = monitor.add_site(named("resid"), Arc::clone(&first)).unwrap();
    monitor.set_rules(&always(100)).unwrap();
    let mut tap = monitor.tap(site, TapOptions::default()).unwrap();
    let x = Rng(3).vec(40 * D);
    let x = Activations::from_f32(&x, D).unwrap();
    let mut out = Latents::new(40, 8).unwrap();
    tap.encode(x, |row| tag(1, row), &mut out.as_mut()).unwrap();
    monitor.flush(LONG).unwrap();
    assert_eq!(monitor.snapshot().sites[0].tokens, 40, "the synchronous call feeds statistics");

    assert_eq!(monitor.replace_sae(site, narrow).unwrap_err().status(), Status::InvalidArgument);
    let refused = monitor.replace_sae(site, small).unwrap_err();
    assert!(refused.message().contains("100"), "{refused}");
    let snapshot = monitor.snapshot();
    assert_eq!((snapshot.sites[0].model, snapshot.sites[0].tokens), (first.model_id().unwrap(), 40));

    // While tokens come in.
    let stop = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for round in 0.. {
                tap.submit(x, |row| tag(1, 40 * round + row)).unwrap();
                if stop.load(std::sync::atomic::Ordering::Relaxed) {
                    break;
                }
            }
        });
        for sae in [&second, &first, &second] {
            monitor.replace_sae(site, Arc::clone(sae)).unwrap();
            monitor.set_rules(&always(1)).unwrap();
            let _ = monitor.snapshot();
        }
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
    });
    monitor.flush(LONG).unwrap();
    let at = monitor.snapshot().sites[0].clone();
    assert_eq!(at.model, second.model_id().unwrap());
    assert!(at.tokens < at.counters.encoded && accounted(at.counters), "statistics start anew, counters do not");
    // The synchronous call follows.
    let mut expected = Latents::new(40, 4).unwrap();
    Encoder::new(second, EncoderOptions::default()).unwrap().encode(x, &mut expected.as_mut()).unwrap();
    let mut found = Latents::new(40, 4).unwrap();
    tap.encode(x, |row| tag(2, row), &mut found.as_mut()).unwrap();
    assert_eq!((found.indices, found.values), (expected.indices, expected.values));
}

#[test]
fn watch_lists_say_which_rule_made_them() {
    let monitor = Monitor::new(MonitorOptions::default()).unwrap();
    let threshold = Selection::Threshold { theta: 0.3, max_latents: 128 };
    let watch = vec![90, 3, 17];
    let site = |name: &str, selection| {
        let options = SiteOptions { watch: watch.clone(), ..named(name) };
        let site = monitor.add_site(options, sae(9, selection)).unwrap();
        let mut tap = monitor.tap(site, TapOptions::default()).unwrap();
        let x = Rng(8).vec(500 * D);
        assert_eq!(tap.submit(Activations::from_f32(&x, D).unwrap(), |row| tag(1, row)), Ok(500));
        monitor.flush(LONG).unwrap();
        monitor.snapshot().sites.last().unwrap().clone()
    };
    let exact = site("exact", threshold);
    let topk = site("topk", Selection::TopK(8));
    let full = SiteOptions { name: "full".into(), ..Default::default() };
    let full = monitor.add_site(full, sae(9, threshold)).unwrap();
    let mut tap = monitor.tap(full, TapOptions::default()).unwrap();
    let x = Rng(8).vec(500 * D);
    tap.submit(Activations::from_f32(&x, D).unwrap(), |row| tag(1, row)).unwrap();
    monitor.flush(LONG).unwrap();
    let full = monitor.snapshot().sites[2].clone();
    assert_eq!((exact.rule, topk.rule, full.rule), ("watch (exact)", "watch (full topk)", "threshold"));
    let watched: Vec<u32> = exact.watched.iter().map(|w| w.of.latent).collect();
    assert_eq!(watched, watch);
    for of in &exact.watched {
        let same = full.strongest.iter().find(|other| other.latent == of.of.latent);
        if let Some(same) = same {
            assert_eq!((of.of.count, of.of.mean), (same.count, same.mean));
        }
        assert!(of.of.count > 0);
    }
    // Rules may not look elsewhere where nothing else is computed.
    assert!(monitor.set_rules(&always(4)).unwrap_err().message().contains("watch list"));
    monitor.set_rules(&always(17)).unwrap();
}

#[test]
fn what_does_not_fit_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m.safetensors");
    common::write_random_model(&path, Shape::Dense { latents: 8 }, D, Selection::TopK(2), Dtype::F32, &mut Rng(1));
    let bytes = std::fs::read(&path).unwrap();
    let text = String::from_utf8_lossy(&bytes).into_owned();
    assert!(text.contains("\\\"d_model\\\""), "the config is in the header");
    let sae = Arc::new(Sae::open(&path).unwrap());
    let monitor = Monitor::new(MonitorOptions { memory_limit: Some(8 << 20), ..Default::default() }).unwrap();
    let site = monitor.add_site(named("a"), Arc::clone(&sae)).unwrap();
    for (options, words) in [
        (named("a"), "already"),
        (named(""), "name"),
        (named("a\nb"), "control"),
        (SiteOptions { watch: vec![8], ..named("b") }, "not below"),
        (SiteOptions { d_model: 7, ..named("b") }, "d_model"),
    ] {
        let error = monitor.add_site(options, Arc::clone(&sae)).unwrap_err();
        assert!(error.status() == Status::InvalidArgument && error.message().contains(words), "{error}");
    }
    assert!(monitor.add_site(named("b"), None).unwrap_err().message().contains("d_model"));
    let before = monitor.memory();
    let error = monitor.tap(site, TapOptions { capacity: 1 << 20, ..Default::default() }).unwrap_err();
    assert!(error.status() == Status::OutOfMemory && error.message().contains("memory_limit"), "{error}");
    assert_eq!(monitor.memory(), before);
    let mut tap = monitor.tap(site, TapOptions { dtype: Dtype::Bf16, ..Default::default() }).unwrap();
    assert!(monitor.memory() > before);
    let wide = [0.0; 2 * D];
    for (x, words) in [(Activations::from_f32(&wide, 2 * D), "d_model"), (Activations::from_f32(&wide, D), "dtype")] {
        let error = tap.submit(x.unwrap(), |row| tag(1, row)).unwrap_err();
        assert!(error.status() == Status::InvalidArgument && error.message().contains(words), "{error}");
    }
    drop(tap);
    // The worker forgets a closed tap by itself.
    let end = std::time::Instant::now() + LONG;
    while monitor.memory() > before {
        assert!(std::time::Instant::now() < end, "{} bytes, before the tap {before}", monitor.memory());
        std::thread::sleep(Duration::from_millis(1));
    }
    // A file that was replaced behind an opened model has no name any more.
    let other = Arc::new(Sae::open(&path).unwrap());
    common::write_random_model(&path, Shape::Dense { latents: 8 }, D, Selection::TopK(2), Dtype::F32, &mut Rng(2));
    assert_eq!(monitor.add_site(named("c"), other).unwrap_err().status(), Status::Io);
    for bad in [
        MonitorOptions { workers: 0, ..Default::default() },
        MonitorOptions { half_life_tokens: 0.0, ..Default::default() },
    ] {
        assert_eq!(Monitor::new(bad).unwrap_err().status(), Status::InvalidArgument);
    }
}

#[test]
fn a_layer_other_than_the_files_is_meant_or_refused() {
    let mut config = kronsae::sae::Config::new(Shape::Dense { latents: 2 }, 1, Selection::TopK(1), 1.0).unwrap();
    config.json.insert("source".into(), serde_json::json!({ "layer": 15 }));
    let weight = kronsae::sae::Matrix::from_rows(&[1.0, 2.0], [2, 1], 1, Dtype::F32, "w").unwrap();
    let bias = kronsae::Aligned::zeroed(2, "b").unwrap();
    let sae = Sae::from_parts(config, kronsae::sae::EncoderWeights { weight, bias, threshold: None }, None).unwrap();
    let sae = Arc::new(sae);
    let monitor = Monitor::new(MonitorOptions::default()).unwrap();
    let at = |name: &str, layer, any_layer| SiteOptions { layer, any_layer, ..named(name) };
    let error = monitor.add_site(at("a", Some(14), false), Arc::clone(&sae)).unwrap_err();
    assert!(error.message().contains("15") && error.message().contains("14"), "{error}");
    monitor.add_site(at("b", Some(14), true), Arc::clone(&sae)).unwrap();
    monitor.add_site(at("c", None, false), Arc::clone(&sae)).unwrap();
    monitor.add_site(at("d", Some(15), false), sae).unwrap();
    let layers: Vec<_> = monitor.snapshot().sites.iter().map(|site| site.layer).collect();
    assert_eq!(layers, [Some(14), Some(15), Some(15)]);
}

#[test]
fn a_site_without_a_model_records() {
    let folder = tempfile::tempdir().unwrap();
    let monitor = Monitor::new(MonitorOptions::default()).unwrap();
    let site = monitor.add_site(SiteOptions { d_model: D, ..named("raw") }, None).unwrap();
    monitor
        .record(site, RecorderOptions { keep_position_0: true, ..RecorderOptions::new(folder.path().join("r")) })
        .unwrap();
    let again = monitor.record(site, RecorderOptions::new(folder.path().join("other"))).unwrap_err();
    assert_eq!(again.status(), Status::InvalidArgument);
    let mut tap = monitor.tap(site, TapOptions::default()).unwrap();
    let x = Rng(1).vec(100 * D);
    tap.submit(Activations::from_f32(&x, D).unwrap(), |row| tag(1, row)).unwrap();
    monitor.stop(LONG).unwrap();
    let snapshot = monitor.snapshot();
    assert_eq!((snapshot.sites[0].recorded, snapshot.sites[0].rule), (100, "record"));
    assert!(accounted(snapshot.sites[0].counters));
}
