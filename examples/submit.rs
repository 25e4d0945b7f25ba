//! What a submit costs the host: `cargo run --release --example submit [calls]`.
//!
//! Four figures, each of a tap in front of a tiny model (d_model 4,096, four encoder rows): one F32 token accepted; one
//! dropped by a full queue; one at 100 a second, with the worker asleep each time; and 512 rows in one call against a
//! plain copy of as many bytes into as much memory. Times are of single calls, the clock's own cost (also printed)
//! included. On a machine that does other work besides, the upper percentiles are that work's.

use kronsae::monitor::{Monitor, MonitorOptions, SiteId, SiteOptions, TapOptions, TokenTag};
use kronsae::sae::{Config, Encoder, EncoderWeights, Matrix, Selection};
use kronsae::{Activations, Aligned, Dtype, Result, Sae};
use std::hint::black_box;
use std::sync::Arc;
use std::time::{Duration, Instant};

const D: usize = 4096;

fn tiny() -> Result<Arc<Sae>> {
    let encoder = Encoder::Kron { heads: 1, base: 2, extension: 2 };
    let config = Config::new(encoder, D, Selection::TopK(2), 1.0)?;
    let weights: Vec<f32> = (0..encoder.rows() * D).map(|i| ((i * 7919 % 1000) as f32 - 500.0) * 1e-4).collect();
    let weight = Matrix::from_rows(&weights, [encoder.rows(), D], D, Dtype::F32, "weights")?;
    let bias = Aligned::zeroed(encoder.rows(), "bias")?;
    Sae::from_parts(config, EncoderWeights { weight, bias, threshold: None }, None).map(Arc::new)
}

fn tag(position: usize) -> TokenTag {
    TokenTag { request: 1, position: position as i32, token: -1, flags: 0 }
}

/// Percentiles of single calls, in nanoseconds.
fn report(what: &str, mut nanos: Vec<u32>, target: &str) {
    nanos.sort_unstable();
    let at = |share: f64| nanos[((nanos.len() - 1) as f64 * share) as usize];
    println!(
        "{what}: {} calls, median {} ns, p90 {}, p99 {}, p99.9 {}, most {} (target {target})",
        nanos.len(),
        at(0.5),
        at(0.9),
        at(0.99),
        at(0.999),
        at(1.0)
    );
}

fn timed<T>(call: impl FnOnce() -> T) -> (T, u32) {
    let start = Instant::now();
    let out = call();
    (out, start.elapsed().as_nanos().min(u128::from(u32::MAX)) as u32)
}

fn accepted(monitor: &Monitor, site: SiteId, calls: usize) -> Result<()> {
    let mut tap = monitor.tap(site, TapOptions { capacity: 1024, ..Default::default() })?;
    // Several tokens, so that the source is not always in the nearest cache.
    let rows: Vec<f32> = (0..64 * D).map(|i| (i % 977) as f32 * 1e-3).collect();
    let all = Activations::from_f32(&rows, D)?;
    let mut nanos = Vec::with_capacity(calls);
    let mut taken = 0;
    for call in 0..calls {
        // A host has other things to do between submits; this one only sees to it that the queue does not fill up.
        while tap.queued() > 768 {
            std::thread::sleep(Duration::from_micros(200));
        }
        let x = all.slice(call % 64..call % 64 + 1);
        let (count, time) = timed(|| tap.submit(x, |_| tag(call)));
        if count? == 1 {
            taken += 1;
            nanos.push(time);
        }
    }
    println!("accepted {taken} of {calls} ({:.3} %)", 100.0 * taken as f64 / calls as f64);
    report("submit, one token of d 4096 F32, accepted", nanos, "median < 2000, p99 < 10000");
    Ok(())
}

fn dropped(site: SiteId, monitor: &Monitor) -> Result<()> {
    let mut tap = monitor.tap(site, TapOptions { capacity: 1, ..Default::default() })?;
    let row = vec![0.5_f32; D];
    let x = Activations::from_f32(&row, D)?;
    let mut nanos = Vec::new();
    // The worker empties the one slot again and again; calls that found it full are those meant.
    while nanos.len() < 200_000 {
        let (count, time) = timed(|| tap.submit(x, |_| tag(0)));
        if count? == 0 {
            nanos.push(time);
        }
    }
    report("submit, dropped", nanos, "< 200");
    Ok(())
}

fn asleep(monitor: &Monitor, site: SiteId, seconds: usize) -> Result<()> {
    let mut tap = monitor.tap(site, TapOptions::default())?;
    let row = vec![0.5_f32; D];
    let x = Activations::from_f32(&row, D)?;
    let mut nanos = Vec::new();
    for call in 0..100 * seconds {
        std::thread::sleep(Duration::from_millis(10));
        let (count, time) = timed(|| tap.submit(x, |_| tag(call)));
        assert_eq!(count?, 1, "nothing else is in the queue");
        nanos.push(time);
    }
    report("submit at 100 a second, worker asleep", nanos, "p99 < 30000");
    Ok(())
}

/// Medians of both, call by call in turn.
fn bulk(monitor: &Monitor, site: SiteId) -> Result<()> {
    const ROWS: usize = 512;
    let capacity = 4 * ROWS;
    let mut tap = monitor.tap(site, TapOptions { capacity, ..Default::default() })?;
    let rows = vec![0.5_f32; ROWS * D];
    let x = Activations::from_f32(&rows, D)?;
    let mut plain = vec![0.25_f32; capacity * D];
    let (mut submits, mut copies) = (Vec::new(), Vec::new());
    for round in 0..60 {
        let (count, time) = timed(|| tap.submit(x, tag));
        assert_eq!(count?, ROWS, "the queue was empty");
        submits.push(time);
        monitor.flush(Duration::from_secs(60))?;
        let start = round % 4 * ROWS * D;
        let to = &mut plain[start..start + ROWS * D];
        let ((), time) = timed(|| black_box(to).copy_from_slice(black_box(&rows)));
        copies.push(time);
    }
    let median = |times: &mut Vec<u32>| {
        times.sort_unstable();
        f64::from(times[times.len() / 2])
    };
    let (submit, copy) = (median(&mut submits), median(&mut copies));
    println!(
        "submit of 512 rows: median {:.0} us, memcpy {:.0} us ({:.1} GB/s), ratio {:.2} (target <= 1.5)",
        submit / 1e3,
        copy / 1e3,
        (ROWS * D * 4) as f64 / copy,
        submit / copy
    );
    Ok(())
}

fn main() -> Result<()> {
    let calls = std::env::args().nth(1).and_then(|calls| calls.parse().ok()).unwrap_or(1_000_000);
    let clock: Vec<u32> = (0..100_000).map(|_| timed(|| ()).1).collect();
    report("the clock itself", clock, "none");
    let sae = tiny()?;
    let monitor = Monitor::new(MonitorOptions::default())?;
    let site = monitor.add_site(SiteOptions { name: "bench".into(), ..Default::default() }, sae)?;
    accepted(&monitor, site, calls)?;
    dropped(site, &monitor)?;
    asleep(&monitor, site, if calls < 1_000_000 { 2 } else { 20 })?;
    bulk(&monitor, site)?;
    monitor.stop(Duration::from_secs(10))?;
    let snapshot = monitor.snapshot();
    let counters = snapshot.sites[0].counters;
    println!("{counters:?}");
    let accounted = counters.encoded + counters.sampled_out + counters.dropped + counters.not_finite + counters.queued;
    assert_eq!(counters.submitted, accounted);
    Ok(())
}
