//! A tap of the host's and one of the device's, given the same: the same events, statistics, counters and recent tokens.

use crate::common::Rng;
use crate::support::{Batch, D, LONG, as_dyn, device, named, options, sae, small, submit};
use kronsae::monitor::{
    Event, Monitor, MonitorOptions, Rules, Sampling, SiteId, SiteOptions, SiteSnapshot, TapOptions, TokenTag, flags,
};
use kronsae::sae::{Encoder, Selection};
use kronsae::{Dtype, Sae};
use std::sync::Arc;
use std::time::Duration;

/// Rules with windows, so that order, gaps and retractions show.
fn rules(latents: usize) -> Rules {
    let some: Vec<usize> = (0..latents).step_by(latents.div_ceil(12)).collect();
    let mut text: String =
        some.iter().map(|f| format!("[[rule]]\nname = 'l{f}'\nwhen = {{ latent = {f}, above = 2 }}\n")).collect();
    text += &format!(
        "[[rule]]\nname = 'window'\nwhen = {{ any = [{}] }}\nwindow = {{ at_least = 2, of_last = 5 }}\ncooldown = {{ tokens = 3 }}\n",
        some.iter().map(|f| format!("{{ latent = {f}, above = 1 }}")).collect::<Vec<_>>().join(", ")
    );
    Rules::parse(&text).unwrap()
}

fn monitor(sae: &Arc<Sae>, watch: &[u32], rules: &Rules) -> (Monitor, SiteId) {
    let monitor = Monitor::new(MonitorOptions { events: 100_000, recent_tokens: 64, ..Default::default() }).unwrap();
    let site = SiteOptions { watch: watch.to_vec(), ..named("resid") };
    let site = monitor.add_site(site, Arc::clone(sae)).unwrap();
    monitor.set_rules(rules).unwrap();
    (monitor, site)
}

/// What is the same of an event, whoever made it when.
fn facts(event: &Event) -> impl PartialEq + std::fmt::Debug + use<> {
    let latents: Vec<_> = event.latents.iter().map(|l| (l.latent, l.value.to_bits())).collect();
    let of = (event.request, event.position, event.token);
    (event.id, event.kind, of, event.rule.to_string(), event.gap, event.retracts, latents)
}

fn numbers(site: &SiteSnapshot) -> impl PartialEq + std::fmt::Debug + use<> {
    let latent = |l: &kronsae::monitor::LatentSnapshot| (l.latent, l.count, l.mean.to_bits(), l.rate.to_bits());
    let strongest: Vec<_> = site.strongest.iter().map(latent).collect();
    let watched: Vec<_> = site.watched.iter().map(|w| latent(&w.of)).collect();
    let rules: Vec<_> = site.rules.iter().map(|r| (r.rule.to_string(), r.matched, r.retracted)).collect();
    let latency = site.latency.counts.iter().sum::<u64>();
    (site.counters, site.tokens, site.l0.to_bits(), strongest, watched, rules, (site.requests, latency))
}

#[test]
#[ignore = "needs the library of emulated kernels: cargo xtask test --only cuda-encode"]
fn a_device_tap_says_what_a_host_tap_says() {
    let device = device();
    let mut random = Rng(0x7A95);
    let (mut events_seen, mut retracted, mut gaps, mut bad_rows, mut watched) = (0, 0, 0, 0, 0);
    for case in 0..40 {
        let encoder = match random.below(3) {
            0 => Encoder::Dense { latents: 1 + random.below(200) },
            _ => {
                Encoder::Kron { heads: 1 + random.below(30), base: 1 + random.below(3), extension: 1 + random.below(5) }
            }
        };
        let (f, d) = (encoder.latents(), 1 + random.below(40));
        let threshold = random.below(3) == 0;
        let selection = if threshold {
            // Room for all: a watch list on a device is exact then.
            Selection::Threshold { theta: 1.0 + random.below(4) as f32, max_latents: f }
        } else {
            Selection::TopK(1 + random.below(f.min(40)))
        };
        let sae = sae(random.next(), encoder, d, selection);
        let rules = rules(f);
        let mut watch = Vec::new();
        if random.below(2) == 0 {
            watch = (0..f as u32).rev().collect();
            watched += 1;
        }
        let sampling =
            [Sampling::Every, Sampling::EveryNth(1 + random.below(4) as u32), Sampling::LastPrompt][random.below(3)];
        let (on_host, host_site) = monitor(&sae, &watch, &rules);
        let (on_device, device_site) = monitor(&sae, &watch, &rules);
        let mut host = on_host.tap(host_site, TapOptions { capacity: 4096, sampling, ..Default::default() }).unwrap();
        let shape = options(64, 1 + random.below(20), sampling);
        let mut tap = on_device.device_tap(device_site, as_dyn(&device), shape).unwrap();
        let mut positions = [0_usize; 3];
        for call in 0..12 {
            let dtype = [Dtype::F32, Dtype::F16, Dtype::Bf16][random.below(3)];
            let rows = random.below(30);
            let mut values: Vec<f32> = (0..rows * d).map(|_| small(&mut random)).collect();
            for row in 0..rows {
                if random.below(12) == 0 {
                    values[row * d + random.below(d)] = [f32::NAN, f32::INFINITY][random.below(2)];
                    bad_rows += 1;
                }
            }
            let row_bytes = d * dtype.size();
            let stride = [row_bytes, row_bytes.next_multiple_of(16) + 16, row_bytes + 1][random.below(3)];
            let batch = Batch::new(&device, &values, dtype, d, stride);
            // Rows of several requests, in runs or mixed.
            let mixed = random.below(2) == 0;
            let tags: Vec<TokenTag> = (0..rows)
                .map(|row| {
                    let request = if mixed { random.below(3) } else { row * 3 / rows.max(1) };
                    positions[request] += 1;
                    let flags = if random.below(4) == 0 { flags::LAST_PROMPT } else { 0 };
                    let position = positions[request] as i32 - 1;
                    TokenTag { request: request as u64, position, token: row as i32, flags }
                })
                .collect();
            let taken = host.submit(batch.on_host(), |row| tags[row]).unwrap();
            assert_eq!(submit(&mut tap, &batch, |row| tags[row]), taken, "case {case}, call {call}");
            match random.below(5) {
                0 => {
                    let (request, back) = (random.below(3), random.below(6));
                    positions[request] = positions[request].saturating_sub(back);
                    host.rewind(request as u64, positions[request] as i32).unwrap();
                    tap.rewind(request as u64, positions[request] as i32).unwrap();
                }
                1 => {
                    let request = random.below(3);
                    positions[request] = 0;
                    host.end_request(request as u64).unwrap();
                    tap.end_request(request as u64).unwrap();
                }
                // A part of what is sampled as it comes: positions with gaps.
                2 => positions[random.below(3)] += 2,
                _ => {}
            }
            on_host.flush(LONG).unwrap();
            on_device.flush(LONG).unwrap();
        }
        let poll = |monitor: &Monitor| monitor.poll_events(usize::MAX, Duration::ZERO).unwrap();
        let (expected, found) = (poll(&on_host), poll(&on_device));
        let facts_of = |events: &[Event]| events.iter().map(facts).collect::<Vec<_>>();
        assert!(facts_of(&expected) == facts_of(&found), "case {case}: {expected:#?}\n{found:#?}");
        events_seen += found.len();
        retracted += found.iter().filter(|event| event.retracts != 0).count();
        gaps += found.iter().filter(|event| event.gap).count();
        let (expected, found) = (on_host.snapshot().sites.remove(0), on_device.snapshot().sites.remove(0));
        assert_eq!(numbers(&expected), numbers(&found), "case {case}");
        assert_eq!(found.rule, if expected.rule == "watch (exact)" { "watch (full threshold)" } else { expected.rule });
        assert_eq!(on_host.recent_tokens(host_site, 0, 64), on_device.recent_tokens(device_site, 0, 64), "case {case}");
        assert_eq!(found.encode.counts.iter().sum::<u64>(), 0, "no encode here was timed");
    }
    assert!(events_seen > 1000 && retracted > 10 && gaps > 10 && bad_rows > 100 && watched > 5, "too little was tried");
    assert_eq!(device.freed_in_use(), 0);
}

/// A threshold model with more active latents than it keeps: the watch list is what the full selection has of it.
#[test]
#[ignore = "needs the library of emulated kernels: cargo xtask test --only cuda-encode"]
fn a_watch_list_sees_what_the_model_keeps() {
    let device = device();
    let sae = sae(3, Encoder::Dense { latents: 100 }, D, Selection::Threshold { theta: 0.5, max_latents: 4 });
    let (monitor, site) = monitor(&sae, &[5, 80, 17], &Rules::parse("").unwrap());
    let mut tap = monitor.device_tap(site, as_dyn(&device), options(8, 32, Sampling::Every)).unwrap();
    let batch = Batch::small(&device, 200, &mut Rng(4));
    assert_eq!(submit(&mut tap, &batch, |row| crate::support::tag(1, row)), 200);
    monitor.flush(LONG).unwrap();
    let mut encoder = kronsae::Encoder::new(Arc::clone(&sae), kronsae::EncoderOptions::default()).unwrap();
    let mut latents = kronsae::Latents::new(200, 4).unwrap();
    encoder.encode(batch.on_host(), &mut latents.as_mut()).unwrap();
    let found = monitor.snapshot().sites.remove(0);
    assert_eq!(found.rule, "watch (full threshold)");
    for watched in &found.watched {
        let count = (0..200).filter(|row| latents.row(*row).0.contains(&watched.of.latent)).count();
        assert_eq!(watched.of.count, count as u64, "latent {}", watched.of.latent);
    }
    assert_eq!(found.watched.iter().map(|w| w.of.latent).collect::<Vec<_>>(), [5, 80, 17]);
    drop(tap);
    monitor.flush(LONG).unwrap();
}
