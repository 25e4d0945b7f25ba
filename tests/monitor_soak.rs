//! Many short requests at once, for long: memory stays flat and every token is accounted for. Ten seconds by default;
//! `KRONSAE_SOAK_SECONDS=600` is the long form. Alone in its program: the memory is the process's.

#![cfg(target_os = "linux")]

mod common;

use common::{Rng, random_sae};
use kronsae::monitor::{Monitor, MonitorOptions, Rules, Sampling, SiteId, SiteOptions, TapOptions, TokenTag};
use kronsae::sae::{Encoder, Selection};
use kronsae::{Activations, Dtype, Status};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

const D: usize = 64;
const PRODUCERS: usize = 4;
/// Requests alive at a time, of all producers.
const REQUESTS: usize = 200;

/// Resident bytes.
fn resident() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    let pages: u64 = statm.split_whitespace().nth(1).unwrap().parse().unwrap();
    pages * 4096
}

#[derive(Default)]
struct Told {
    submitted: AtomicU64,
    accepted: AtomicU64,
    requests: AtomicU64,
}

/// Requests in turn, each of a prompt and some tokens, ended and replaced by new ones; now and then a new tap.
fn serve(monitor: &Monitor, site: SiteId, producer: u64, stop: &AtomicBool, told: &Told) {
    let mut rng = Rng(producer);
    let pool = rng.vec(256 * D);
    let pool = Activations::from_f32(&pool, D).unwrap();
    let mut next = producer << 32;
    let mut alive: Vec<(u64, usize, usize)> = Vec::new();
    'taps: loop {
        let sampling = if rng.below(4) == 0 { Sampling::EveryNth(2) } else { Sampling::Every };
        let mut tap = monitor.tap(site, TapOptions { capacity: 512, sampling, ..Default::default() }).unwrap();
        for step in 0..20_000 {
            if stop.load(Ordering::Relaxed) {
                break 'taps;
            }
            while alive.len() < REQUESTS / PRODUCERS {
                next += 1;
                alive.push((next, 0, 8 + rng.below(40)));
            }
            let at = step % alive.len();
            let (request, position, length) = alive[at];
            let rows = if position == 0 { 6 } else { 1 };
            let start = rng.below(250);
            let x = pool.slice(start..start + rows);
            let tags = |row: usize| TokenTag { request, position: (position + row) as i32, token: -1, flags: 0 };
            told.accepted.fetch_add(tap.submit(x, tags).unwrap() as u64, Ordering::Relaxed);
            told.submitted.fetch_add(rows as u64, Ordering::Relaxed);
            alive[at].1 += rows;
            if position > 10 && rng.below(50) == 0 {
                let _ = tap.rewind(request, position as i32 - 2);
                alive[at].1 = position - 2;
            }
            if position >= length {
                match tap.end_request(request) {
                    Ok(()) => {}
                    Err(error) => assert_eq!(error.status(), Status::Full),
                }
                told.requests.fetch_add(1, Ordering::Relaxed);
                alive.swap_remove(at);
            }
            if step % 64 == 0 {
                std::thread::sleep(Duration::from_micros(500));
            }
        }
    }
}

#[test]
fn many_short_requests() {
    let seconds = std::env::var("KRONSAE_SOAK_SECONDS").ok().and_then(|s| s.parse().ok()).unwrap_or(10_u64);
    let shape = Encoder::Kron { heads: 32, base: 4, extension: 4 };
    let sae = random_sae(shape, D, Selection::TopK(16), Dtype::F32, &mut Rng(1));
    let monitor = Monitor::new(MonitorOptions { events: 256, requests: 1024, ..Default::default() }).unwrap();
    let site = monitor.add_site(SiteOptions { name: "soak".into(), ..Default::default() }, Arc::new(sae)).unwrap();
    let rules = "[[rule]]\nname = 'w'\nwhen = { latent = 5, above = 0.5 }\nwindow = { at_least = 2, of_last = 6 }\n\
                 [[rule]]\nname = 's'\nwhen = { latent = 77, above = 1 }";
    monitor.set_rules(&Rules::parse(rules).unwrap()).unwrap();
    let (stop, told) = (AtomicBool::new(false), Told::default());
    let mut resident_at = Vec::new();
    std::thread::scope(|scope| {
        for producer in 1..=PRODUCERS as u64 {
            scope.spawn({
                let (monitor, stop, told) = (&monitor, &stop, &told);
                move || serve(monitor, site, producer, stop, told)
            });
        }
        let start = Instant::now();
        while start.elapsed() < Duration::from_secs(seconds) {
            std::thread::sleep(Duration::from_millis(50));
            monitor.poll_events(1000, Duration::ZERO).unwrap();
            let snapshot = monitor.snapshot();
            assert!(snapshot.failure.is_none(), "{:?}", snapshot.failure);
            // After a third, everything that fills up has.
            if start.elapsed() > Duration::from_secs(seconds) / 3 {
                resident_at.push(resident());
            }
        }
        stop.store(true, Ordering::Relaxed);
    });
    monitor.stop(Duration::from_secs(60)).unwrap();
    let snapshot = monitor.snapshot();
    let counters = snapshot.sites[0].counters;
    let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    let requests = get(&told.requests);
    println!("{requests} requests, {counters:?}, {} events", snapshot.events);
    assert_eq!(counters.submitted, get(&told.submitted));
    assert_eq!(counters.encoded + counters.not_finite, get(&told.accepted));
    assert_eq!(
        counters.submitted,
        counters.encoded + counters.sampled_out + counters.dropped + counters.not_finite + counters.queued
    );
    assert!(requests > 100 && snapshot.events > 100);
    // Medians, as a single reading may find taps being changed.
    let median = |part: &[u64]| {
        let mut part = part.to_vec();
        part.sort_unstable();
        part[part.len() / 2]
    };
    let (early, late) =
        (median(&resident_at[..resident_at.len() / 4]), median(&resident_at[resident_at.len() * 3 / 4..]));
    println!("resident: {early} bytes early, {late} late");
    assert!(late as f64 <= early as f64 * 1.02, "resident memory grew from {early} to {late} bytes");
}
