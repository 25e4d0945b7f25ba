//! What goes wrong in a host, and that the host lives: callbacks that block or panic, handles dropped under use, fork, exit.

#![cfg(target_os = "linux")]

mod common;

use common::{Rng, random_sae};
use kronsae::monitor::{
    Counters, Monitor, MonitorOptions, Rules, Scheduling, SiteId, SiteOptions, State, Tap, TapOptions, TokenTag,
};
use kronsae::sae::{Encoder, Selection};
use kronsae::{Activations, Dtype, Result, Status};
use std::process::Command;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

const D: usize = 32;
const LONG: Duration = Duration::from_secs(60);

/// A monitor with one site whose rule matches on nearly every token.
fn monitor(options: MonitorOptions) -> (Monitor, SiteId) {
    let sae = random_sae(Encoder::Dense { latents: 64 }, D, Selection::TopK(64), Dtype::F32, &mut Rng(1));
    let monitor = Monitor::new(options).unwrap();
    let site = monitor.add_site(SiteOptions { name: "a".into(), ..Default::default() }, Arc::new(sae)).unwrap();
    let rules = "[[rule]]\nname = 'x'\nwhen = { any = [{ latent = 1, above = 0 }, { latent = 2, above = 0 }, { latent = 3, above = 0 }] }";
    monitor.set_rules(&Rules::parse(rules).unwrap()).unwrap();
    (monitor, site)
}

fn submit(tap: &mut Tap, rows: usize) -> Result<usize> {
    let x = Rng(5).vec(rows * D);
    tap.submit(Activations::from_f32(&x, D)?, |row| TokenTag { request: 1, position: row as i32, token: -1, flags: 0 })
}

fn accounted(counters: Counters) -> bool {
    let Counters { submitted, encoded, sampled_out, dropped, not_finite, queued } = counters;
    submitted == encoded + sampled_out + dropped + not_finite + queued
}

/// A callback that waits in its first call until the sender is used or dropped.
fn blocking() -> (kronsae::monitor::EventCallback, Receiver<()>, Sender<()>) {
    let (entered, has_entered) = channel();
    let (release, released) = channel::<()>();
    let (released, entered) = (Mutex::new(released), Mutex::new(entered));
    let callback = Box::new(move |_: &kronsae::monitor::Event| {
        let _ = entered.lock().unwrap().send(());
        let _ = released.lock().unwrap().recv();
    });
    (callback, has_entered, release)
}

#[test]
fn a_callback_that_blocks_costs_tokens_and_nothing_else() {
    let (monitor, site) = monitor(MonitorOptions::default());
    let (callback, entered, release) = blocking();
    monitor.set_event_callback(Some(callback)).unwrap();
    let mut tap = monitor.tap(site, TapOptions { capacity: 64, controls: 2, ..Default::default() }).unwrap();
    submit(&mut tap, 10).unwrap();
    entered.recv_timeout(LONG).unwrap();
    let start = Instant::now();
    assert_eq!(submit(&mut tap, 100), Ok(54), "the batch in hand holds its slots");
    assert_eq!(submit(&mut tap, 100), Ok(0));
    // Control records have slots of their own.
    tap.end_request(1).unwrap();
    tap.rewind(1, 0).unwrap();
    assert_eq!(tap.end_request(1).unwrap_err().status(), Status::Full);
    let snapshot = monitor.snapshot();
    assert_eq!((snapshot.state, snapshot.sites[0].counters.dropped), (State::Running, 146));
    assert!(monitor.recent_tokens(site, 0, 10).len() <= 10);
    assert!(start.elapsed() < Duration::from_secs(5), "something waited for the callback");
    assert_eq!(monitor.flush(Duration::from_millis(20)).unwrap_err().status(), Status::Timeout);
    assert_eq!(monitor.stop(Duration::from_millis(20)).unwrap_err().status(), Status::Timeout);
    assert_eq!(submit(&mut tap, 1).unwrap_err().status(), Status::Stopped);
    drop(release);
    monitor.stop(LONG).unwrap();
    monitor.stop(LONG).unwrap();
    let counters = monitor.snapshot().sites[0].counters;
    assert_eq!((counters.encoded, counters.dropped, counters.queued), (64, 146, 0));
    assert!(accounted(counters));
}

#[test]
fn a_worker_that_panics_fails_its_monitor_alone() {
    let (monitor, site) = monitor(MonitorOptions { workers: 2, ..Default::default() });
    let quiet = std::panic::take_hook();
    std::panic::set_hook(Box::new(|_| {}));
    monitor.set_event_callback(Some(Box::new(|_| panic!("planted")))).unwrap();
    let mut tap = monitor.tap(site, TapOptions::default()).unwrap();
    assert_eq!(submit(&mut tap, 100), Ok(100));
    let end = Instant::now() + LONG;
    while monitor.snapshot().state != State::Failed {
        assert!(Instant::now() < end);
        std::thread::sleep(Duration::from_millis(1));
    }
    std::panic::set_hook(quiet);
    assert_eq!(submit(&mut tap, 50), Ok(0), "a drop by count, no error");
    tap.end_request(1).unwrap();
    assert_eq!(monitor.poll_events(10, LONG), Ok(vec![]), "nobody waits for what cannot come");
    assert_eq!(monitor.set_rules(&Rules::default()).unwrap_err().status(), Status::Poisoned);
    monitor.stop(LONG).unwrap();
    let snapshot = monitor.snapshot();
    assert!(snapshot.failure.unwrap().contains("planted"));
    let counters = snapshot.sites[0].counters;
    assert_eq!((counters.submitted, counters.queued), (150, 0));
    assert!(counters.dropped >= 50 && accounted(counters), "{counters:?}");
}

#[test]
fn a_monitor_goes_while_other_threads_use_its_taps() {
    for round in 0..20 {
        let (monitor, site) = monitor(MonitorOptions::default());
        let threads: Vec<_> = (0..3)
            .map(|_| {
                let mut tap = monitor.tap(site, TapOptions { capacity: 50, ..Default::default() }).unwrap();
                std::thread::spawn(move || {
                    let end = Instant::now() + LONG;
                    while Instant::now() < end {
                        if let Err(error) = submit(&mut tap, 7).and_then(|_| tap.end_request(1))
                            && error.status() != Status::Full
                        {
                            return error.status();
                        }
                    }
                    Status::Timeout
                })
            })
            .collect();
        std::thread::sleep(Duration::from_millis(round % 7));
        if round % 2 == 0 {
            monitor.stop(LONG).unwrap();
        }
        drop(monitor);
        for thread in threads {
            assert_eq!(thread.join().unwrap(), Status::Stopped);
        }
    }
}

#[test]
fn dropping_a_monitor_waits_for_nobody_for_long() {
    let (monitor, site) = monitor(MonitorOptions::default());
    let (callback, entered, release) = blocking();
    monitor.set_event_callback(Some(callback)).unwrap();
    let mut tap = monitor.tap(site, TapOptions::default()).unwrap();
    submit(&mut tap, 10).unwrap();
    entered.recv_timeout(LONG).unwrap();
    let start = Instant::now();
    drop(monitor);
    assert!(start.elapsed() < Duration::from_secs(20), "{:?}", start.elapsed());
    assert_eq!(submit(&mut tap, 1).unwrap_err().status(), Status::Stopped);
    drop(release);
}

#[test]
fn a_callback_may_drop_the_last_handle_and_may_not_wait_for_itself() {
    let (monitor, site) = monitor(MonitorOptions::default());
    let slot = Arc::new(Mutex::new(None::<Monitor>));
    let (says, hears) = channel();
    let (inside, says) = (Arc::clone(&slot), Mutex::new(says));
    monitor
        .set_event_callback(Some(Box::new(move |_| {
            if let Some(monitor) = inside.lock().unwrap().take() {
                let refused = [monitor.stop(LONG), monitor.flush(LONG), monitor.set_rules(&Rules::default())];
                drop(monitor);
                let _ = says.lock().unwrap().send(refused.map(|refused| refused.unwrap_err().status()));
            }
        })))
        .unwrap();
    let mut tap = monitor.tap(site, TapOptions::default()).unwrap();
    *slot.lock().unwrap() = Some(monitor);
    submit(&mut tap, 10).unwrap();
    assert_eq!(hears.recv_timeout(LONG).unwrap(), [Status::InvalidArgument; 3]);
    let end = Instant::now() + LONG;
    while submit(&mut tap, 1).is_ok() {
        assert!(Instant::now() < end);
    }
}

/// The lines of /proc/self/task/*/status of threads whose names start so.
fn threads(prefix: &str) -> Vec<(String, String)> {
    let read = |path: std::path::PathBuf| std::fs::read_to_string(path).unwrap_or_default();
    let tasks = std::fs::read_dir("/proc/self/task").unwrap().flatten();
    let tasks = tasks.map(|task| (read(task.path().join("status")), read(task.path().join("stat"))));
    tasks.filter(|(status, _)| status.starts_with(&format!("Name:\t{prefix}"))).collect()
}

/// In a process of its own: names of threads are the process's.
fn guests() {
    let cpus = vec![0];
    let scheduling = Scheduling { nice: Some(7), cpus, ..Default::default() };
    let (_monitor, _) = monitor(MonitorOptions { encoder_threads: 3, scheduling, ..Default::default() });
    let all = threads("kronsae-");
    assert_eq!(all.len(), 3, "the worker and its encoder's two: {all:?}");
    for (status, stat) in all {
        let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).unwrap().trim().to_owned();
        // All that can be blocked but faults: the C library keeps two for itself, SIGKILL and SIGSTOP cannot be. Workers,
        // which call back, let real-time signals through as well.
        let blocked = if field("Name:").starts_with("kronsae-mon") { "000000003ffbfa27" } else { "fffffffe3ffbfa27" };
        assert_eq!(field("SigBlk:"), blocked, "{status}");
        assert_eq!(field("Cpus_allowed_list:"), "0");
        let numbers: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
        // Of proc(5), counted from the third field: 19 is nice, 41 the policy, 3 SCHED_BATCH.
        assert_eq!((numbers[16], numbers[38]), ("7", "3"), "{stat}");
    }
}

fn exit_while_busy() {
    let (monitor, site) = monitor(MonitorOptions { workers: 2, ..Default::default() });
    for _ in 0..2 {
        let mut tap = monitor.tap(site, TapOptions::default()).unwrap();
        std::thread::spawn(move || while submit(&mut tap, 20).is_ok() {});
    }
    std::thread::sleep(Duration::from_millis(50));
    std::mem::forget(monitor);
    // Runs destructors of the C library while workers encode.
    std::process::exit(0);
}

fn fork_while_busy() {
    let (monitor, site) = monitor(MonitorOptions::default());
    let mut tap = monitor.tap(site, TapOptions::default()).unwrap();
    let mut busy = monitor.tap(site, TapOptions::default()).unwrap();
    std::thread::spawn(move || while submit(&mut busy, 20).is_ok() {});
    for _ in 0..20 {
        submit(&mut tap, 10).unwrap();
        // SAFETY: the child uses nothing but this library, whose promise it tests, and leaves by _exit.
        let child = unsafe { libc::fork() };
        if child == 0 {
            // SAFETY: ends a child that hangs, visibly.
            unsafe { libc::alarm(20) };
            let refused = [
                submit(&mut tap, 1).map(|_| ()),
                tap.end_request(1),
                tap.rewind(1, 0),
                monitor.flush(LONG),
                monitor.stop(LONG),
                monitor.set_rules(&Rules::default()),
                monitor.poll_events(1, LONG).map(|_| ()),
                monitor.tap(site, TapOptions::default()).map(|_| ()),
                monitor.set_event_callback(None),
                monitor.stop_recording(site),
            ];
            let all = refused.iter().all(|done| done.as_ref().is_err_and(|e| e.status() == Status::Forked));
            let snapshot = monitor.snapshot();
            let all = all && snapshot.sites.is_empty() && monitor.recent_tokens(site, 0, 9).is_empty();
            drop(tap);
            drop(monitor);
            // SAFETY: ends the child.
            unsafe { libc::_exit(if all { 0 } else { 1 }) };
        }
        let mut status = 0;
        // SAFETY: waits for the child just made.
        unsafe { libc::waitpid(child, &raw mut status, 0) };
        assert!(libc::WIFEXITED(status) && libc::WEXITSTATUS(status) == 0, "child: {status:#x}");
    }
    submit(&mut tap, 10).unwrap();
    monitor.stop(LONG).unwrap();
    assert!(accounted(monitor.snapshot().sites[0].counters));
}

/// Runs a part of this program as a process of its own, which must end well and soon.
fn as_a_process(part: &str) {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "part_of_another_test", "--nocapture"])
        .env("KRONSAE_TEST_PART", part)
        .spawn()
        .unwrap();
    let end = Instant::now() + LONG;
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            assert!(status.success(), "{part}: {status}");
            return;
        }
        if Instant::now() > end {
            child.kill().unwrap();
            panic!("{part} hangs");
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn part_of_another_test() {
    match std::env::var("KRONSAE_TEST_PART").as_deref() {
        Ok("guests") => guests(),
        Ok("exit") => exit_while_busy(),
        Ok("fork") => fork_while_busy(),
        _ => {}
    }
}

#[test]
fn threads_are_named_scheduled_and_deaf_to_signals() {
    as_a_process("guests");
}

#[test]
fn exit_with_a_live_monitor() {
    for _ in 0..5 {
        as_a_process("exit");
    }
}

#[test]
fn every_call_in_a_forked_child_says_so() {
    as_a_process("fork");
}

#[test]
fn a_share_of_the_cpu_is_kept_to() {
    let scheduling = Scheduling { cpu_share: 0.2, ..Default::default() };
    let sae = random_sae(Encoder::Dense { latents: 2048 }, 256, Selection::TopK(16), Dtype::F32, &mut Rng(1));
    let monitor = Monitor::new(MonitorOptions { scheduling, ..Default::default() }).unwrap();
    let site = monitor.add_site(SiteOptions { name: "a".into(), ..Default::default() }, Arc::new(sae)).unwrap();
    let mut tap = monitor.tap(site, TapOptions::default()).unwrap();
    let x = Rng(5).vec(64 * 256);
    let x = Activations::from_f32(&x, 256).unwrap();
    let (start, before) = (Instant::now(), monitor.snapshot().cpu_seconds);
    while start.elapsed() < Duration::from_millis(1500) {
        tap.submit(x, |row| TokenTag { request: 1, position: row as i32, token: -1, flags: 0 }).unwrap();
        std::thread::sleep(Duration::from_micros(500));
    }
    let share = (monitor.snapshot().cpu_seconds - before) / start.elapsed().as_secs_f64();
    let counters = monitor.snapshot().sites[0].counters;
    // Others may leave it less; that is no fault.
    assert!(share < 0.27, "{share}");
    assert!(counters.encoded > 0 && counters.dropped > 0, "{counters:?}");
}
