//! What happens to the process of a monitor: a disk that is full, signals while it drains.

#![cfg(target_os = "linux")]

mod common;

use common::{Rng, random_sae};
use kronsae::monitor::{
    Counters, Monitor, MonitorOptions, RecorderOptions, Rules, SiteId, SiteOptions, Tap, TapOptions, TokenTag,
};
use kronsae::sae::{Encoder, Selection};
use kronsae::{Activations, Dtype, Sae};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

const D: usize = 32;
const LONG: Duration = Duration::from_secs(60);
/// Matches on nearly every token.
const RULE: &str = "[[rule]]\nname = 'x'\nwhen = { any = [{ latent = 1, above = 0 }, { latent = 2, above = 0 }, { latent = 3, above = 0 }] }";

fn sae() -> Arc<Sae> {
    Arc::new(random_sae(Encoder::Dense { latents: 64 }, D, Selection::TopK(64), Dtype::F32, &mut Rng(1)))
}

fn monitor(options: MonitorOptions) -> (Monitor, SiteId) {
    let monitor = Monitor::new(options).unwrap();
    let site = monitor.add_site(SiteOptions { name: "a".into(), ..Default::default() }, sae()).unwrap();
    monitor.set_rules(&Rules::parse(RULE).unwrap()).unwrap();
    (monitor, site)
}

fn submit(tap: &mut Tap, rows: usize) -> usize {
    let x = Rng(5).vec(rows * D);
    let tags = |row: usize| TokenTag { request: 1, position: row as i32, token: -1, flags: 0 };
    tap.submit(Activations::from_f32(&x, D).unwrap(), tags).unwrap()
}

fn accounted(counters: Counters) -> bool {
    let Counters { submitted, encoded, sampled_out, dropped, not_finite, queued } = counters;
    submitted == encoded + sampled_out + dropped + not_finite + queued
}

/// Runs a part of this program as a process of its own, which must end well and soon.
fn as_a_process(part: &str) {
    let mut child = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "part_of_another_test", "--nocapture"])
        .env("KRONSAE_TEST_PART", part)
        .spawn()
        .unwrap();
    let end = Instant::now() + LONG;
    while Instant::now() < end {
        if let Some(status) = child.try_wait().unwrap() {
            assert!(status.success(), "{part}: {status}");
            return;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    panic!("{part} hangs");
}

/// A file-size limit stands for a disk that is full: writes fail, and SIGXFSZ would end a process that does not block it.
fn disk_full() {
    let folder = tempfile::tempdir().unwrap();
    let (monitor, site) = monitor(MonitorOptions::default());
    let options = RecorderOptions {
        keep_position_0: true,
        most_tokens_per_shard: 100,
        ..RecorderOptions::new(folder.path().join("r"))
    };
    monitor.record(site, options).unwrap();
    let mut tap = monitor.tap(site, TapOptions::default()).unwrap();
    let limit = |bytes| {
        let limit = libc::rlimit { rlim_cur: bytes, rlim_max: libc::RLIM_INFINITY };
        // SAFETY: the limit is valid for reads.
        assert_eq!(unsafe { libc::setrlimit(libc::RLIMIT_FSIZE, &raw const limit) }, 0);
    };
    limit(1000);
    for _ in 0..5 {
        assert_eq!(submit(&mut tap, 60), 60);
        monitor.flush(LONG).unwrap();
    }
    let found = monitor.recording(site).unwrap();
    assert!(found.recording && found.written == 0 && found.failures == 200, "{found:?}");
    assert_eq!(monitor.status().counters.encoded, 300, "encoding goes on");
    limit(libc::RLIM_INFINITY);
    monitor.stop(LONG).unwrap();
    let found = monitor.recording(site).unwrap();
    assert_eq!((found.recording, found.written, found.failures), (false, 100, 200), "what was kept is written later");
    assert!(accounted(monitor.status().counters));
}

static HEARD: AtomicBool = AtomicBool::new(false);

extern "C" fn hear(_: libc::c_int) {
    HEARD.store(true, Ordering::Relaxed);
}

/// A host that stops on SIGTERM, and gets more of them while it drains.
fn terminated_while_draining() {
    // SAFETY: the handler only stores to an atomic.
    unsafe { libc::signal(libc::SIGTERM, hear as *const () as libc::sighandler_t) };
    let (monitor, site) = monitor(MonitorOptions::default());
    monitor.set_event_callback(Some(Box::new(|_| std::thread::sleep(Duration::from_millis(1))))).unwrap();
    let mut tap = monitor.tap(site, TapOptions::default()).unwrap();
    assert_eq!(submit(&mut tap, 200), 200);
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                // SAFETY: to this process, which handles it.
                unsafe { libc::kill(libc::getpid(), libc::SIGTERM) };
                std::thread::sleep(Duration::from_millis(3));
            }
        });
        let stopped = monitor.stop(LONG);
        over.store(true, Ordering::Relaxed);
        stopped.unwrap();
    });
    let counters = monitor.status().counters;
    assert!(HEARD.load(Ordering::Relaxed) && counters.encoded == 200 && accounted(counters), "{counters:?}");
}

#[test]
fn part_of_another_test() {
    match std::env::var("KRONSAE_TEST_PART").as_deref() {
        Ok("disk_full") => disk_full(),
        Ok("terminated") => terminated_while_draining(),
        _ => {}
    }
}

#[test]
fn a_full_disk_costs_the_recording_and_nothing_else() {
    as_a_process("disk_full");
}

#[test]
fn signals_do_not_disturb_a_stop() {
    as_a_process("terminated");
}
