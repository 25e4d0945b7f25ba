//! Devices that fail, streams that capture, and what does not fit.

use crate::common::Rng;
use crate::support::{
    Batch, D, LONG, STREAM, as_dyn, counters, device, monitor_of, named, options, plain, submit, tag,
};
use kronsae::cuda::DeviceActivations;
use kronsae::monitor::{
    DeviceTapOptions, Monitor, MonitorOptions, RecorderOptions, Sampling, SiteOptions, State, TapOptions,
};
use kronsae::sae::{Encoder, Selection};
use kronsae::{Dtype, Status};
use std::sync::{Arc, Mutex};

#[test]
#[ignore = "needs the library of emulated kernels: cargo xtask test --only cuda-encode"]
fn a_device_that_fails_costs_tokens_and_nothing_else() {
    let device = device();
    let (monitor, site) = monitor_of(&plain(1, 8));
    let said = Arc::new(Mutex::new(Vec::<String>::new()));
    let sink = Arc::clone(&said);
    monitor.set_notice(Some(Box::new(move |text| sink.lock().unwrap().push(text.to_owned())))).unwrap();
    let mut tap = monitor.device_tap(site, as_dyn(&device), options(4, 16, Sampling::Every)).unwrap();
    let mut other = monitor.device_tap(site, as_dyn(&device), options(4, 16, Sampling::Every)).unwrap();
    let mut host = monitor.tap(site, TapOptions::default()).unwrap();
    let batch = Batch::small(&device, 40, &mut Rng(2));
    assert_eq!(submit(&mut tap, &batch, |row| tag(1, row)), 40);
    monitor.flush(LONG).unwrap();
    device.set_failing(true);
    assert_eq!(submit(&mut tap, &batch, |row| tag(1, 40 + row)), 0);
    device.set_failing(false);
    // It is over for this tap, whatever the device does later.
    for _ in 0..3 {
        assert_eq!(submit(&mut tap, &batch, |row| tag(1, 80 + row)), 0);
        tap.end_request(1).unwrap();
        monitor.flush(LONG).unwrap();
    }
    assert_eq!(submit(&mut other, &batch, |row| tag(2, row)), 40);
    assert_eq!(host.submit(batch.on_host(), |row| tag(3, row)), Ok(40));
    monitor.flush(LONG).unwrap();
    let now = counters(&monitor);
    assert_eq!((now.submitted, now.encoded, now.dropped, now.queued), (280, 120, 160, 0));
    let snapshot = monitor.snapshot();
    assert_eq!(snapshot.state, State::Running);
    let failures: Vec<bool> = snapshot.sites[0].taps.iter().map(|tap| tap.failure.is_some()).collect();
    assert_eq!(failures, [true, false, false]);
    let said = said.lock().unwrap();
    assert_eq!(said.len(), 1, "once: {said:?}");
    assert!(said[0].contains("tap 0 of site resid") && said[0].contains("as a test asked for"), "{said:?}");
    assert!(snapshot.sites[0].taps[0].failure.as_ref().unwrap().contains("as a test asked for"));
    drop((tap, other));
    monitor.stop(LONG).unwrap();
    drop(batch);
    drop(monitor);
    assert_eq!((device.allocated(), device.freed_in_use()), (0, 0));
}

/// A sleeping worker is told, too.
#[test]
#[ignore = "needs the library of emulated kernels: cargo xtask test --only cuda-encode"]
fn a_failure_is_told_without_another_call() {
    let device = device();
    let (monitor, site) = monitor_of(&plain(1, 8));
    let (sender, receiver) = std::sync::mpsc::sync_channel(10);
    monitor.set_notice(Some(Box::new(move |text| sender.send(text.to_owned()).unwrap()))).unwrap();
    let mut tap = monitor.device_tap(site, as_dyn(&device), options(4, 16, Sampling::Every)).unwrap();
    let batch = Batch::small(&device, 4, &mut Rng(2));
    std::thread::sleep(std::time::Duration::from_millis(20));
    device.set_failing(true);
    assert_eq!(submit(&mut tap, &batch, |row| tag(1, row)), 0);
    let text = receiver.recv_timeout(LONG).unwrap();
    assert!(text.contains("the device failed") && text.contains("make a new one"), "{text}");
}

#[test]
#[ignore = "needs the library of emulated kernels: cargo xtask test --only cuda-encode"]
fn a_stream_that_is_captured_is_refused() {
    let device = device();
    let (monitor, site) = monitor_of(&plain(1, 8));
    let mut tap = monitor.device_tap(site, as_dyn(&device), options(4, 16, Sampling::Every)).unwrap();
    let batch = Batch::small(&device, 4, &mut Rng(2));
    device.set_capturing(true);
    // SAFETY: refused before anything is enqueued.
    let refused = unsafe { tap.submit(&batch.on_device(), STREAM, |row| tag(1, row)) }.unwrap_err();
    assert_eq!(refused.status(), Status::InvalidArgument);
    assert!(refused.message().contains("captured"), "{refused}");
    device.set_capturing(false);
    assert_eq!(counters(&monitor).submitted, 0);
    assert_eq!(submit(&mut tap, &batch, |row| tag(1, row)), 4);
    monitor.flush(LONG).unwrap();
    assert_eq!(counters(&monitor).encoded, 4);
}

#[test]
#[ignore = "needs the library of emulated kernels: cargo xtask test --only cuda-encode"]
fn tags_that_panic_lose_their_call_alone() {
    let device = device();
    let (monitor, site) = monitor_of(&plain(1, 8));
    let mut tap = monitor.device_tap(site, as_dyn(&device), options(2, 16, Sampling::Every)).unwrap();
    let batch = Batch::small(&device, 10, &mut Rng(2));
    for round in 0..5 {
        let call = std::panic::AssertUnwindSafe(|| {
            submit(&mut tap, &batch, |row| if row == 7 { panic!("planted") } else { tag(1, row) })
        });
        assert!(std::panic::catch_unwind(call).is_err());
        if round % 2 == 0 {
            tap.end_request(1).unwrap();
            monitor.replace_sae(site, plain(round, 8)).unwrap();
        }
        assert_eq!(submit(&mut tap, &batch, |row| tag(2, row)), 10, "round {round}");
        monitor.flush(LONG).unwrap();
    }
    let now = counters(&monitor);
    // The first call after a replacement may have the slot that the panicking one took with the model before.
    assert_eq!((now.submitted, now.queued, now.encoded + now.dropped), (50, 0, 50));
    assert!(now.encoded >= 20, "{now:?}");
}

#[test]
#[ignore = "needs the library of emulated kernels: cargo xtask test --only cuda-encode"]
fn what_does_not_fit_is_refused() {
    let device = device();
    let (monitor, site) = monitor_of(&plain(1, 8));
    let shape = options(4, 16, Sampling::Every);
    let recording = SiteOptions { d_model: D, ..named("records") };
    let recording = monitor.add_site(recording, None).unwrap();
    let error = monitor.device_tap(recording, as_dyn(&device), shape).unwrap_err();
    assert_eq!(error.status(), Status::Unsupported);
    assert!(error.message().contains("no model"), "{error}");
    for (bad, words) in [
        (DeviceTapOptions { slots: 0, ..shape }, "slots"),
        (DeviceTapOptions { slots: 1025, ..shape }, "slots"),
        (DeviceTapOptions { rows: 0, ..shape }, "rows"),
        (DeviceTapOptions { rows: 4097, ..shape }, "rows"),
        (DeviceTapOptions { controls: 0, ..shape }, "controls"),
        (DeviceTapOptions { sampling: Sampling::EveryNth(0), ..shape }, "0th"),
    ] {
        let error = monitor.device_tap(site, as_dyn(&device), bad).unwrap_err();
        assert_eq!(error.status(), Status::InvalidArgument);
        assert!(error.message().contains(words), "{error}");
    }
    let wide = crate::support::sae(2, Encoder::Dense { latents: 600 }, D, Selection::TopK(513));
    let wide = monitor.add_site(named("wide"), wide).unwrap();
    assert_eq!(monitor.device_tap(wide, as_dyn(&device), shape).unwrap_err().status(), Status::Unsupported);

    // A recorder and a device tap exclude one another, in either order.
    let folder = tempfile::tempdir().unwrap();
    monitor.record(site, RecorderOptions::new(folder.path().join("a"))).unwrap();
    let error = monitor.device_tap(site, as_dyn(&device), shape).unwrap_err();
    assert!(error.status() == Status::Unsupported && error.message().contains("records"), "{error}");
    monitor.stop_recording(site).unwrap();
    let mut tap = monitor.device_tap(site, as_dyn(&device), shape).unwrap();
    let error = monitor.record(site, RecorderOptions::new(folder.path().join("b"))).unwrap_err();
    assert!(error.status() == Status::Unsupported && error.message().contains("device"), "{error}");

    let batch = Batch::small(&device, 4, &mut Rng(2));
    let x = batch.on_device();
    for (bad, words) in [
        (DeviceActivations { d_model: D + 1, ..x }, "d_model 25"),
        (DeviceActivations { data: 0, ..x }, "null"),
        (DeviceActivations { row_stride: usize::MAX / 2, ..x }, "overflow"),
        (DeviceActivations { data: u64::MAX - 10, ..x }, "overflow"),
    ] {
        // SAFETY: refused before anything is read.
        let error = unsafe { tap.submit(&bad, STREAM, |row| tag(1, row)) }.unwrap_err();
        assert_eq!(error.status(), Status::InvalidArgument);
        assert!(error.message().contains(words), "{error}");
    }
    assert_eq!(counters(&monitor).submitted, 0);
    drop(tap);
    // Nothing is left of it once the worker has let go: the site can record again.
    let again = (0..1000).find_map(|_| {
        std::thread::sleep(std::time::Duration::from_millis(5));
        monitor.record(site, RecorderOptions::new(folder.path().join("c"))).ok()
    });
    assert!(again.is_some());
    drop(batch);
    assert_eq!(device.allocated(), 0);

    // Every dtype, whatever the model's.
    let other = Monitor::new(MonitorOptions::default()).unwrap();
    let site = other.add_site(named("a"), plain(1, 8)).unwrap();
    let mut tap = other.device_tap(site, as_dyn(&device), shape).unwrap();
    for dtype in [Dtype::F32, Dtype::F16, Dtype::Bf16] {
        let batch = Batch::new(&device, &vec![1.0; D * 3], dtype, D, D * dtype.size());
        assert_eq!(submit(&mut tap, &batch, |row| tag(1, row)), 3);
    }
    other.flush(LONG).unwrap();
    assert_eq!(counters(&other).encoded, 9);
    let kept = other.recent_tokens(site, 0, 9);
    assert!(kept.iter().all(|token| token.indices == kept[0].indices && token.values == kept[0].values));
    // A callback of a worker may submit, and may not make taps.
}
