//! Where tokens went, exactly: full slots, sampling, other models, several threads.

use crate::common::Rng;
use crate::support::{
    Batch, D, LONG, STREAM, accounted, as_dyn, counters, device, monitor_of, options, plain, small, submit, tag,
};
use kronsae::monitor::{
    Counters, DeviceTapOptions, Monitor, MonitorOptions, Rules, Sampling, SiteId, TapOptions, TokenTag, flags,
};
use kronsae::{Dtype, EncoderOptions, Latents, Status};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

#[test]
#[ignore = "needs the library of emulated kernels: cargo xtask test --only cuda-encode"]
fn full_slots_drop_the_newest() {
    let device = device();
    let (monitor, site) = monitor_of(&plain(1, 8));
    let mut tap = monitor.device_tap(site, as_dyn(&device), options(3, 10, Sampling::Every)).unwrap();
    let mut random = Rng(2);
    let (small_batch, large) = (Batch::small(&device, 4, &mut random), Batch::small(&device, 37, &mut random));
    device.hold(true);
    assert_eq!(submit(&mut tap, &small_batch, |row| tag(1, row)), 4);
    // Two slots of three are left: 20 of 37 rows.
    assert_eq!(submit(&mut tap, &large, |row| tag(2, row)), 20);
    assert_eq!(submit(&mut tap, &small_batch, |row| tag(3, row)), 0);
    assert_eq!(tap.queued(), 24);
    let now = counters(&monitor);
    assert_eq!((now.submitted, now.dropped, now.queued, now.encoded), (45, 21, 24, 0));
    let late = monitor.flush(Duration::from_millis(50)).unwrap_err();
    assert_eq!(late.status(), Status::Timeout, "the device is behind");
    device.hold(false);
    monitor.flush(LONG).unwrap();
    // A flush that returned means that all slots are free.
    assert_eq!(submit(&mut tap, &large, |row| tag(4, row)), 30);
    monitor.flush(LONG).unwrap();
    let now = counters(&monitor);
    assert_eq!((now.submitted, now.dropped, now.queued, now.encoded), (82, 28, 0, 54));
    // The oldest rows of each submit.
    let kept = monitor.recent_tokens(site, 0, 100);
    let of =
        |request: u64| kept.iter().filter(|t| t.tag.request == request).map(|t| t.tag.position).collect::<Vec<_>>();
    assert_eq!((of(1).len(), of(3).len()), (4, 0));
    assert_eq!((of(2), of(4)), ((0..20).collect(), (0..30).collect()));
    assert_eq!(monitor.snapshot().sites[0].taps[0].capacity, 30);
}

#[test]
#[ignore = "needs the library of emulated kernels: cargo xtask test --only cuda-encode"]
fn control_records_keep_their_place() {
    let device = device();
    let (monitor, site) = monitor_of(&plain(6, 128));
    monitor.set_rules(&Rules::parse("[[rule]]\nname = 'x'\nwhen = { latent = 1, above = 0 }").unwrap()).unwrap();
    let mut tap = monitor.device_tap(site, as_dyn(&device), options(8, 16, Sampling::Every)).unwrap();
    let batch = Batch::small(&device, 40, &mut Rng(9));
    device.hold(true);
    submit(&mut tap, &batch, |row| tag(4, row));
    tap.rewind(4, 30).unwrap();
    // A record behind tokens that the device has not done waits for them, and slots of records run out by themselves.
    let mut records = 1;
    let full = loop {
        match tap.end_request(77) {
            Ok(()) => records += 1,
            Err(error) => break error,
        }
    };
    assert_eq!((records, full.status()), (64, Status::Full));
    assert!(monitor.poll_events(10, Duration::from_millis(20)).unwrap().is_empty());
    device.hold(false);
    monitor.flush(LONG).unwrap();
    tap.end_request(4).unwrap();
    let events = monitor.poll_events(1000, Duration::ZERO).unwrap();
    let late: Vec<_> = events.iter().filter(|e| e.retracts == 0 && e.position >= 30).rev().map(|e| e.id).collect();
    let back: Vec<_> = events.iter().filter(|e| e.retracts != 0).map(|e| e.retracts).collect();
    assert!(!back.is_empty() && back == late, "{back:?} for {late:?}");
}

#[test]
#[ignore = "needs the library of emulated kernels: cargo xtask test --only cuda-encode"]
fn a_submit_of_which_nothing_is_sampled_does_not_touch_the_device() {
    let device = device();
    let (monitor, site) = monitor_of(&plain(1, 8));
    let mut tap = monitor.device_tap(site, as_dyn(&device), options(2, 8, Sampling::LastPrompt)).unwrap();
    let batch = Batch::small(&device, 30, &mut Rng(2));
    device.set_failing(true);
    device.set_capturing(true);
    assert_eq!(submit(&mut tap, &batch, |row| tag(1, row)), 0);
    device.set_failing(false);
    device.set_capturing(false);
    // One row of thirty takes one slot of eight rows; so do five that lie equally far apart.
    let last = |row: usize| TokenTag { flags: flags::LAST_PROMPT, ..tag(1, row) };
    assert_eq!(submit(&mut tap, &batch, |row| if row == 29 { last(row) } else { tag(1, row) }), 1);
    device.hold(true);
    assert_eq!(submit(&mut tap, &batch, |row| if row % 6 == 1 { last(row) } else { tag(2, row) }), 5);
    device.hold(false);
    monitor.flush(LONG).unwrap();
    let now = counters(&monitor);
    assert_eq!((now.submitted, now.sampled_out, now.encoded, now.dropped), (90, 84, 6, 0));
    // Row by row what the CPU says of those rows.
    let mut encoder = kronsae::Encoder::new(plain(1, 8), EncoderOptions::default()).unwrap();
    let mut latents = Latents::new(30, 8).unwrap();
    encoder.encode(batch.on_host(), &mut latents.as_mut()).unwrap();
    for token in monitor.recent_tokens(site, 1, 100) {
        let (indices, values) = latents.row(token.tag.position as usize);
        assert_eq!((&*token.indices, &*token.values), (indices, values), "row {}", token.tag.position);
    }
}

/// What one producing thread knows that it did.
#[derive(Default, Clone, Copy, Debug)]
struct Told {
    submitted: u64,
    accepted: u64,
    sampled_out: u64,
    not_finite: u64,
}

fn produce(monitor: &Monitor, site: SiteId, device: &Arc<kronsae::cuda::EmulatedDevice>, seed: u64) -> Told {
    let mut random = Rng(seed);
    let mut told = Told::default();
    for life in 0..5 {
        let sampling = [Sampling::Every, Sampling::EveryNth(3), Sampling::LastPrompt][(seed as usize + life) % 3];
        let shape = options(1 + random.below(4), 1 + random.below(16), sampling);
        let mut tap = monitor.device_tap(site, as_dyn(device), shape).unwrap();
        for call in 0..60 {
            let rows = random.below(30);
            let mut values: Vec<f32> = (0..rows * D).map(|_| small(&mut random)).collect();
            let mut bad = vec![false; rows];
            for row in 0..rows {
                if random.below(20) == 0 {
                    values[row * D + random.below(D)] = f32::NAN;
                    bad[row] = true;
                }
            }
            let batch = Batch::new(device, &values, Dtype::F32, D, D * 4);
            let tags = |row: usize| TokenTag {
                flags: if row.is_multiple_of(5) { flags::LAST_PROMPT } else { 0 },
                ..tag(seed * 100 + call % 7, row + call as usize)
            };
            let accepted = submit(&mut tap, &batch, tags);
            let taken: Vec<usize> = (0..rows).filter(|&row| sampling.takes(&tags(row))).collect();
            told.submitted += rows as u64;
            told.sampled_out += (rows - taken.len()) as u64;
            told.accepted += accepted as u64;
            told.not_finite += taken[..accepted].iter().filter(|&&row| bad[row]).count() as u64;
            for done in [tap.end_request(seed * 100 + call % 7), tap.rewind(seed * 100, 3)] {
                assert!(done.is_ok() || done.as_ref().unwrap_err().status() == Status::Full, "{done:?}");
            }
        }
    }
    told
}

#[test]
#[ignore = "needs the library of emulated kernels: cargo xtask test --only cuda-encode"]
fn every_token_is_accounted_for_under_stress() {
    let device = device();
    let (monitor, site) = monitor_of(&plain(1, 8));
    let over = AtomicBool::new(false);
    let told: Vec<Told> = std::thread::scope(|scope| {
        let producers: Vec<_> = (0..2)
            .map(|seed| {
                scope.spawn({
                    let (monitor, device) = (&monitor, &device);
                    move || produce(monitor, site, device, seed)
                })
            })
            .collect();
        let (device, over, monitor) = (&device, &over, &monitor);
        scope.spawn(move || {
            // The device is behind now and then, and counters add up at every moment.
            let mut before = Counters::default();
            for turn in 0.. {
                device.hold(turn % 2 == 0);
                std::thread::sleep(Duration::from_millis(3));
                let site = &monitor.snapshot().sites[0];
                let now = site.counters;
                assert!(accounted(now) && site.taps.iter().all(|tap| accounted(tap.counters)), "{now:?}");
                assert!(now.submitted >= before.submitted && now.encoded >= before.encoded);
                before = now;
                if over.load(Ordering::Acquire) {
                    break;
                }
            }
            device.hold(false);
        });
        let told = producers.into_iter().map(|producer| producer.join().unwrap()).collect();
        over.store(true, Ordering::Release);
        told
    });
    monitor.stop(LONG).unwrap();
    let sum = |of: fn(&Told) -> u64| told.iter().map(of).sum::<u64>();
    let found = counters(&monitor);
    assert_eq!(found.submitted, sum(|told| told.submitted));
    assert_eq!(found.sampled_out, sum(|told| told.sampled_out));
    assert_eq!(found.not_finite, sum(|told| told.not_finite));
    assert_eq!(found.encoded + found.not_finite, sum(|told| told.accepted));
    assert_eq!(found.queued, 0);
    assert!(found.dropped > 0, "slots never ran out: the test shows less than it should");
    assert_eq!(monitor.snapshot().sites[0].tokens, found.encoded);
    drop(monitor);
    assert_eq!((device.allocated(), device.freed_in_use()), (0, 0));
}

#[test]
#[ignore = "needs the library of emulated kernels: cargo xtask test --only cuda-encode"]
fn a_model_is_replaced_under_batches_in_flight() {
    let device = device();
    // Another K and another shape: other buffers, other workspaces.
    let first = plain(1, 8);
    let second =
        crate::support::sae(2, kronsae::sae::Encoder::Dense { latents: 90 }, D, kronsae::sae::Selection::TopK(3));
    let (monitor, site) = monitor_of(&first);
    let mut tap = monitor.device_tap(site, as_dyn(&device), options(4, 16, Sampling::Every)).unwrap();
    let of_two = monitor.device_tap(site, as_dyn(&device), options(4, 16, Sampling::Every)).unwrap();
    let batch = Batch::small(&device, 16, &mut Rng(5));
    submit(&mut tap, &batch, |row| tag(1, row));
    monitor.flush(LONG).unwrap();
    let before = monitor.device_memory();
    device.hold(true);
    submit(&mut tap, &batch, |row| tag(1, 16 + row));
    submit(&mut tap, &batch, |row| tag(1, 32 + row));
    monitor.replace_sae(site, Arc::clone(&second)).unwrap();
    // Two slots are still the old model's, two are free.
    assert_eq!(submit(&mut tap, &batch, |row| tag(1, 48 + row)), 16);
    assert_eq!(submit(&mut tap, &batch, |row| tag(1, 64 + row)), 16);
    assert_eq!(submit(&mut tap, &batch, |row| tag(1, 80 + row)), 0);
    device.hold(false);
    monitor.flush(LONG).unwrap();
    let now = counters(&monitor);
    assert_eq!((now.submitted, now.encoded, now.dropped), (96, 48, 48));
    let snapshot = monitor.snapshot();
    assert_eq!((snapshot.sites[0].model, snapshot.sites[0].tokens), (second.model_id().unwrap(), 32));
    let mut encoder = kronsae::Encoder::new(Arc::clone(&second), EncoderOptions::default()).unwrap();
    let mut latents = Latents::new(16, 3).unwrap();
    encoder.encode(batch.on_host(), &mut latents.as_mut()).unwrap();
    let kept = monitor.recent_tokens(site, 16, 100);
    assert_eq!(kept.len(), 32);
    for (at, token) in kept.iter().enumerate() {
        assert_eq!(token.tag.position, 48 + at as i32);
        assert_eq!((&*token.indices, &*token.values), latents.row(at % 16));
    }
    // Of the old model nothing is left, on the device or counted.
    assert!(monitor.device_memory() < before, "{} of {before}", monitor.device_memory());
    // What a device cannot do leaves the old model in force.
    let wide =
        crate::support::sae(3, kronsae::sae::Encoder::Dense { latents: 600 }, D, kronsae::sae::Selection::TopK(513));
    let refused = monitor.replace_sae(site, wide).unwrap_err();
    assert_eq!(refused.status(), Status::Unsupported);
    assert!(refused.message().contains("resid") && refused.message().contains("513"), "{refused}");
    assert_eq!(submit(&mut tap, &batch, |row| tag(2, row)), 16);
    monitor.flush(LONG).unwrap();
    assert_eq!(monitor.snapshot().sites[0].tokens, 48);
    // The same model again is another beginning, and what is in flight is still its own.
    device.hold(true);
    submit(&mut tap, &batch, |row| tag(3, row));
    monitor.replace_sae(site, second).unwrap();
    device.hold(false);
    monitor.flush(LONG).unwrap();
    assert_eq!(monitor.snapshot().sites[0].tokens, 16);
    drop((tap, of_two));
    drop(monitor);
    drop(batch);
    assert_eq!((device.allocated(), device.freed_in_use()), (0, 0));
}

#[test]
#[ignore = "needs the library of emulated kernels: cargo xtask test --only cuda-encode"]
fn models_come_and_go_while_tokens_do() {
    let device = device();
    let (first, second) = (plain(1, 8), plain(2, 5));
    let (monitor, site) = monitor_of(&first);
    let stop = AtomicBool::new(false);
    let (accepted, submitted) = std::thread::scope(|scope| {
        let (stop, device, monitor) = (&stop, &device, &monitor);
        let producer = scope.spawn(move || {
            let mut tap = monitor.device_tap(site, as_dyn(device), options(4, 8, Sampling::Every)).unwrap();
            let batch = Batch::small(device, 20, &mut Rng(3));
            let (mut accepted, mut submitted) = (0, 0);
            for round in 0.. {
                accepted += submit(&mut tap, &batch, |row| tag(1, 20 * round + row));
                submitted += 20;
                if stop.load(Ordering::Acquire) {
                    break;
                }
            }
            (accepted, submitted)
        });
        for round in 0..20 {
            let next = if round % 2 == 0 { &second } else { &first };
            monitor.replace_sae(site, Arc::clone(next)).unwrap();
            std::thread::sleep(Duration::from_millis(2));
        }
        stop.store(true, Ordering::Release);
        producer.join().unwrap()
    });
    monitor.flush(LONG).unwrap();
    let now = counters(&monitor);
    assert_eq!((now.submitted, now.queued), (submitted, 0));
    assert!(now.encoded > 0 && now.encoded <= accepted as u64, "{now:?}, {accepted} accepted");
    monitor.stop(LONG).unwrap();
    drop(monitor);
    assert_eq!((device.allocated(), device.freed_in_use()), (0, 0));
}

#[test]
#[ignore = "needs the library of emulated kernels: cargo xtask test --only cuda-encode"]
fn memory_is_counted_where_it_is() {
    let device = device();
    let (monitor, site) = monitor_of(&plain(1, 8));
    let (host, on_device) = (monitor.memory(), monitor.device_memory());
    assert_eq!(on_device, 0);
    let shape = DeviceTapOptions { slots: 4, rows: 100, ..options(4, 100, Sampling::Every) };
    let tap = monitor.device_tap(site, as_dyn(&device), shape).unwrap();
    // 8 K + 5 bytes a row, pinned; the same on the device, with the model and the workspace.
    let latents = 4 * 100 * (8 * 8 + 5);
    assert!(monitor.memory() - host >= latents && monitor.memory() - host < latents + 500 * 64 + 64 * 40);
    assert_eq!(device.allocated(), monitor.device_memory() + latents, "the rest is pinned");
    let (one, snapshot) = (monitor.device_memory(), monitor.snapshot());
    assert_eq!(snapshot.device_memory, one as u64);
    let second = monitor.device_tap(site, as_dyn(&device), shape).unwrap();
    let model = 2 * one - monitor.device_memory();
    assert!(model > 0, "the second tap shares the model");
    drop((tap, second));
    monitor.flush(LONG).unwrap();
    for _ in 0..1000 {
        if monitor.device_memory() == 0 {
            break;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    assert_eq!((monitor.device_memory(), monitor.memory(), device.allocated()), (0, host, 0));

    let limited = MonitorOptions { memory_limit: Some(host + 10_000), events: 100_000, ..Default::default() };
    let limited = Monitor::new(limited).unwrap();
    let site = limited.add_site(crate::support::named("resid"), plain(1, 8)).unwrap();
    let refused = limited.device_tap(site, as_dyn(&device), shape).unwrap_err();
    assert_eq!(refused.status(), Status::OutOfMemory);
    assert!(refused.message().contains("memory_limit"), "{refused}");
    assert_eq!(device.allocated(), 0);
}

/// A tap of each kind at one site: one set of statistics.
#[test]
#[ignore = "needs the library of emulated kernels: cargo xtask test --only cuda-encode"]
fn both_kinds_of_taps_at_one_site() {
    let device = device();
    let (monitor, site) = monitor_of(&plain(1, 8));
    let mut tap = monitor.device_tap(site, as_dyn(&device), options(4, 16, Sampling::Every)).unwrap();
    let mut host = monitor.tap(site, TapOptions::default()).unwrap();
    let batch = Batch::small(&device, 16, &mut Rng(5));
    device.hold(true);
    submit(&mut tap, &batch, |row| tag(1, row));
    host.submit(batch.on_host(), |row| tag(2, row)).unwrap();
    // The device being behind holds nobody else up.
    for _ in 0..2000 {
        if monitor.snapshot().sites[0].tokens == 16 {
            break;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    assert_eq!(monitor.snapshot().sites[0].tokens, 16);
    device.hold(false);
    monitor.flush(LONG).unwrap();
    let kept = monitor.recent_tokens(site, 0, 100);
    assert_eq!(kept.len(), 32);
    for row in 0..16 {
        assert_eq!((&kept[row].indices, &kept[row].values), (&kept[16 + row].indices, &kept[16 + row].values));
    }
    // SAFETY: no rows, so nothing is read.
    let none = unsafe {
        let x = kronsae::cuda::DeviceActivations { rows: 0, data: 0, ..batch.on_device() };
        tap.submit(&x, STREAM, |_| tag(1, 0))
    };
    assert_eq!(none, Ok(0));
}
