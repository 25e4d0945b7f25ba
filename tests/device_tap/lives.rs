//! Taps and monitors that end while the device is still at it, in any order: nothing is freed under its hands.

use crate::common::Rng;
use crate::support::{Batch, LONG, STREAM, as_dyn, counters, device, monitor_of, options, plain, submit, tag};
use kronsae::Status;
use kronsae::cuda::EmulatedDevice;
use kronsae::monitor::Sampling;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Lets the device go on after a while.
fn later(device: &Arc<EmulatedDevice>, after: Duration) -> std::thread::JoinHandle<()> {
    let device = Arc::clone(device);
    std::thread::spawn(move || {
        std::thread::sleep(after);
        device.hold(false);
    })
}

fn wait_for(what: &str, mut done: impl FnMut() -> bool) {
    let end = Instant::now() + LONG;
    while !done() {
        assert!(Instant::now() < end, "{what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

#[test]
#[ignore = "needs the library of emulated kernels: cargo xtask test --only cuda-encode"]
fn a_tap_that_is_dropped_in_flight() {
    let device = device();
    let (monitor, site) = monitor_of(&plain(1, 8));
    let mut tap = monitor.device_tap(site, as_dyn(&device), options(4, 16, Sampling::Every)).unwrap();
    let batch = Batch::small(&device, 40, &mut Rng(2));
    device.hold(true);
    assert_eq!(submit(&mut tap, &batch, |row| tag(1, row)), 40);
    // Does not wait: the worker has the rest.
    drop(tap);
    drop(batch);
    let cpu = monitor.status().cpu_seconds;
    std::thread::sleep(Duration::from_millis(300));
    assert!(monitor.status().cpu_seconds - cpu < 0.15, "a worker that waits for the device keeps a CPU busy");
    assert_eq!(counters(&monitor).queued, 40);
    device.hold(false);
    monitor.flush(LONG).unwrap();
    assert_eq!(counters(&monitor).encoded, 40, "what it took is encoded");
    wait_for("its memory is freed", || device.allocated() == 0);
    assert_eq!(monitor.device_memory(), 0);
    assert!(monitor.snapshot().sites[0].taps.is_empty());
    assert_eq!(device.freed_in_use(), 0);
}

#[test]
#[ignore = "needs the library of emulated kernels: cargo xtask test --only cuda-encode"]
fn a_monitor_that_is_destroyed_in_flight() {
    let device = device();
    let (monitor, site) = monitor_of(&plain(1, 8));
    let mut tap = monitor.device_tap(site, as_dyn(&device), options(4, 16, Sampling::Every)).unwrap();
    let batch = Batch::small(&device, 40, &mut Rng(2));
    device.hold(true);
    submit(&mut tap, &batch, |row| tag(1, row));
    drop(monitor);
    // SAFETY: refused before anything is read.
    let after = unsafe { tap.submit(&batch.on_device(), STREAM, |row| tag(1, row)) };
    assert_eq!(after.unwrap_err().status(), Status::Stopped);
    assert_eq!(tap.end_request(1).unwrap_err().status(), Status::Stopped);
    drop(batch);
    assert!(device.allocated() > 0, "the device still writes there");
    let start = Instant::now();
    let on = later(&device, Duration::from_millis(200));
    drop(tap);
    assert!(start.elapsed() > Duration::from_millis(150), "the last to go waits for the device");
    on.join().unwrap();
    assert_eq!((device.allocated(), device.freed_in_use()), (0, 0));
}

#[test]
#[ignore = "needs the library of emulated kernels: cargo xtask test --only cuda-encode"]
fn both_in_flight_and_the_tap_first() {
    let device = device();
    let (monitor, site) = monitor_of(&plain(1, 8));
    let mut tap = monitor.device_tap(site, as_dyn(&device), options(4, 16, Sampling::Every)).unwrap();
    let batch = Batch::small(&device, 40, &mut Rng(2));
    device.hold(true);
    submit(&mut tap, &batch, |row| tag(1, row));
    drop(tap);
    // Its worker waits for the device on its way out.
    drop(monitor);
    drop(batch);
    later(&device, Duration::from_millis(100)).join().unwrap();
    wait_for("its memory is freed", || device.allocated() == 0);
    assert_eq!(device.freed_in_use(), 0);
}

#[test]
#[ignore = "needs the library of emulated kernels: cargo xtask test --only cuda-encode"]
fn stopping_waits_for_the_device_as_long_as_it_may() {
    let device = device();
    let (monitor, site) = monitor_of(&plain(1, 8));
    let mut tap = monitor.device_tap(site, as_dyn(&device), options(4, 16, Sampling::Every)).unwrap();
    let batch = Batch::small(&device, 40, &mut Rng(2));
    device.hold(true);
    submit(&mut tap, &batch, |row| tag(1, row));
    tap.end_request(1).unwrap();
    assert_eq!(monitor.stop(Duration::from_millis(50)).unwrap_err().status(), Status::Timeout);
    assert_eq!(tap.rewind(1, 0).unwrap_err().status(), Status::Stopped);
    let on = later(&device, Duration::from_millis(50));
    monitor.stop(LONG).unwrap();
    on.join().unwrap();
    let now = counters(&monitor);
    assert_eq!((now.encoded, now.dropped, now.queued), (40, 0, 0));
    assert_eq!(monitor.snapshot().sites[0].requests, 0, "the record behind the tokens was taken, too");
    drop(tap);
    drop(batch);
    assert_eq!((device.allocated(), device.freed_in_use()), (0, 0));
}

#[test]
#[ignore = "needs the library of emulated kernels: cargo xtask test --only cuda-encode"]
fn a_child_process_leaves_the_parents_tap_alone() {
    let device = device();
    let (monitor, site) = monitor_of(&plain(1, 8));
    let mut tap = monitor.device_tap(site, as_dyn(&device), options(4, 16, Sampling::Every)).unwrap();
    let batch = Batch::small(&device, 10, &mut Rng(2));
    device.hold(true);
    submit(&mut tap, &batch, |row| tag(1, row));
    // SAFETY: the child makes calls that are refused, drops handles that know of the fork, and leaves by _exit.
    let child = unsafe { libc::fork() };
    if child == 0 {
        // SAFETY: refused before anything is read.
        let submitted = unsafe { tap.submit(&batch.on_device(), STREAM, |row| tag(1, row)) };
        let statuses = [submitted.map(drop), tap.end_request(1), tap.rewind(1, 0)].map(|r| r.map_err(|e| e.status()));
        let refused = statuses.iter().all(|status| *status == Err(Status::Forked)) && tap.is_forked();
        // Does not wait for the parent's device.
        drop(tap);
        drop(monitor);
        // SAFETY: ends the child without running destructors.
        unsafe { libc::_exit(if refused { 42 } else { 1 }) };
    }
    let mut status = 0;
    // SAFETY: waits for the child just made.
    assert_eq!(unsafe { libc::waitpid(child, &raw mut status, 0) }, child);
    assert_eq!(libc::WEXITSTATUS(status), 42);
    device.hold(false);
    monitor.flush(LONG).unwrap();
    assert_eq!(counters(&monitor).encoded, 10);
}
