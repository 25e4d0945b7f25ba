//! What the monitor's documentation promises at its edges: counters exact at every moment, calls that wait for what they
//! say, limits that hold.

mod common;

use common::{Rng, random_sae};
use kronsae::monitor::metrics::{self, MetricsForm};
use kronsae::monitor::serve::Source;
use kronsae::monitor::{
    Counters, EventKind, Labels, Monitor, MonitorOptions, RecorderOptions, Rules, Sampling, SiteId, SiteOptions, State,
    Tap, TapOptions, TokenTag,
};
use kronsae::sae::{Encoder, Selection};
use kronsae::{Activations, Dtype, Sae, Status};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::time::{Duration, Instant};

const D: usize = 32;
const LONG: Duration = Duration::from_secs(60);
/// Matches on nearly every token.
const RULE: &str = "[[rule]]\nname = 'x'\nwhen = { any = [{ latent = 1, above = 0 }, { latent = 2, above = 0 }, { latent = 3, above = 0 }] }";

fn sae() -> Arc<Sae> {
    Arc::new(random_sae(Encoder::Dense { latents: 64 }, D, Selection::TopK(64), Dtype::F32, &mut Rng(1)))
}

fn named(name: &str) -> SiteOptions {
    SiteOptions { name: name.into(), ..Default::default() }
}

fn monitor(options: MonitorOptions) -> (Monitor, SiteId) {
    let monitor = Monitor::new(options).unwrap();
    let site = monitor.add_site(named("a"), sae()).unwrap();
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

#[test]
fn counters_add_up_at_every_moment() {
    let (monitor, site) = monitor(MonitorOptions::default());
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for seed in 0..2 {
            let mut tap = monitor.tap(site, TapOptions { capacity: 70, ..Default::default() }).unwrap();
            let over = &over;
            scope.spawn(move || {
                let mut x = Rng(seed).vec(20 * D);
                x[3] = f32::NAN;
                let x = Activations::from_f32(&x, D).unwrap();
                while !over.load(Ordering::Relaxed) {
                    tap.submit(x, |row| TokenTag { request: 1, position: row as i32, ..Default::default() }).unwrap();
                }
            });
        }
        let (end, mut before) = (Instant::now() + Duration::from_millis(400), Counters::default());
        let mut wrong = None;
        while Instant::now() < end && wrong.is_none() {
            let site = &monitor.snapshot().sites[0];
            let now = site.counters;
            let fits = site.taps.iter().all(|tap| accounted(tap.counters));
            let grows = now.submitted >= before.submitted && now.encoded >= before.encoded;
            wrong = (!accounted(now) || !fits || !grows).then_some((before, now));
            before = now;
        }
        over.store(true, Ordering::Relaxed);
        assert_eq!(wrong, None);
        assert!(before.encoded > 0 && before.not_finite > 0);
    });
}

#[test]
fn flush_waits_for_what_a_rewind_takes_back() {
    let (monitor, site) = monitor(MonitorOptions::default());
    let mut tap = monitor.tap(site, TapOptions::default()).unwrap();
    submit(&mut tap, 10);
    monitor.flush(LONG).unwrap();
    let (release, released) = mpsc::channel::<()>();
    let released = Mutex::new(released);
    monitor
        .set_event_callback(Some(Box::new(move |event| {
            assert_eq!(event.kind, EventKind::Retracted);
            let _ = released.lock().unwrap().recv();
        })))
        .unwrap();
    tap.rewind(1, 0).unwrap();
    let early = monitor.flush(Duration::from_millis(200));
    assert_eq!(early.unwrap_err().status(), Status::Timeout, "the retraction was still being delivered");
    drop(release);
    monitor.flush(LONG).unwrap();
    assert!(monitor.snapshot().sites[0].rules[0].retracted > 0);
}

#[test]
fn a_callback_taken_away_is_not_running_any_more() {
    let (monitor, site) = monitor(MonitorOptions::default());
    let (inside, done) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
    let (in_call, was_done) = (Arc::clone(&inside), Arc::clone(&done));
    monitor
        .set_event_callback(Some(Box::new(move |_| {
            in_call.store(true, Ordering::Release);
            std::thread::sleep(Duration::from_millis(100));
            was_done.store(true, Ordering::Release);
        })))
        .unwrap();
    let mut tap = monitor.tap(site, TapOptions::default()).unwrap();
    submit(&mut tap, 1);
    while !inside.load(Ordering::Acquire) {
        std::thread::yield_now();
    }
    monitor.set_event_callback(None).unwrap();
    assert!(done.load(Ordering::Acquire), "its call was still under way");
}

#[test]
fn rules_are_under_the_limit_of_memory() {
    let options = MonitorOptions { requests: 1000, memory_limit: Some(16 << 20), ..Default::default() };
    let (monitor, _) = monitor(options);
    let before = monitor.memory();
    let wide = "[[rule]]\nname = 'w'\nwhen = { latent = 1, above = 0 }\nwindow = { at_least = 1, of_last = 1024 }";
    // 1000 requests of 1152 tokens of 16 bytes.
    let error = monitor.set_rules(&Rules::parse(wide).unwrap()).unwrap_err();
    assert_eq!(error.status(), Status::OutOfMemory, "{error}");
    let snapshot = monitor.snapshot();
    assert_eq!((&*snapshot.sites[0].rules[0].rule, monitor.memory()), ("x", before), "the old rules stay in force");
    let narrow = wide.replace("1024", "2");
    monitor.set_rules(&Rules::parse(&narrow).unwrap()).unwrap();
    assert!(monitor.memory() > before);
    monitor.set_rules(&Rules::default()).unwrap();
    assert!(monitor.memory() < before);
}

#[test]
fn events_of_many_latents_are_under_the_limit_of_memory() {
    let (monitor, _) = monitor(MonitorOptions { events: 1000, ..Default::default() });
    let any = |count: usize| {
        let latents: Vec<String> = (0..count).map(|latent| format!("{{ latent = {latent}, above = 0 }}")).collect();
        let text = format!("[[rule]]\nname = 'w'\nwhen = {{ any = [{}] }}", latents.join(", "));
        monitor.set_rules(&Rules::parse(&text).unwrap()).unwrap();
        monitor.memory()
    };
    // Kept for polling and for readers; the first eight latents of each are counted with the queue.
    let (few, many) = (any(8), any(64));
    assert!(many - few >= 2 * 1000 * 56 * 8, "{few} {many}");
}

#[test]
fn a_latent_watched_twice_is_one_series() {
    let monitor = Monitor::new(MonitorOptions::default()).unwrap();
    monitor.add_site(SiteOptions { watch: vec![3, 5, 3, 3], ..named("a") }, sae()).unwrap();
    let mut text = String::new();
    metrics::write(&monitor.snapshot(), MetricsForm::Prometheus, &mut text);
    let mut series: Vec<&str> = text
        .lines()
        .filter(|line| !line.starts_with('#'))
        .filter_map(|line| line.rsplit_once(' '))
        .map(|l| l.0)
        .collect();
    series.sort_unstable();
    let twice: Vec<_> = series.array_windows().filter(|[a, b]| a == b).collect();
    assert!(twice.is_empty(), "a scrape refuses these: {twice:?}");
    let watched: Vec<u32> = monitor.snapshot().sites[0].watched.iter().map(|latent| latent.of.latent).collect();
    assert_eq!(watched, [3, 5]);
}

#[test]
fn numbers_from_nowhere() {
    let (monitor, site) = monitor(MonitorOptions::default());
    for (capacity, controls) in [(1 << 45, 1), (1, 1 << 45), (usize::MAX, usize::MAX)] {
        let error = monitor.tap(site, TapOptions { capacity, controls, ..Default::default() }).unwrap_err();
        assert_eq!(error.status(), Status::InvalidArgument, "{error}");
    }
    let mut tap = monitor.tap(site, TapOptions::default()).unwrap();
    let x = Rng(5).vec(8 * D);
    let positions = [i32::MIN, -1, 0, i32::MAX, i32::MAX, i32::MIN, i32::MIN, 3];
    let tags = |row: usize| TokenTag { request: u64::MAX, position: positions[row], token: i32::MIN, flags: u32::MAX };
    assert_eq!(tap.submit(Activations::from_f32(&x, D).unwrap(), tags), Ok(8));
    tap.rewind(u64::MAX, i32::MIN).unwrap();
    tap.rewind(u64::MAX, i32::MAX).unwrap();
    tap.end_request(u64::MAX).unwrap();
    tap.rewind(u64::MAX, 0).unwrap();
    // The number is used again at once.
    assert_eq!(tap.submit(Activations::from_f32(&x, D).unwrap(), tags), Ok(8));
    monitor.flush(LONG).unwrap();
    assert!(monitor.recent_tokens(site, u64::MAX, 9).is_empty() && monitor.recent_events(u64::MAX, 9).is_empty());
    assert_eq!(monitor.recent_tokens(site, 0, usize::MAX).len(), 16);
    let snapshot = monitor.snapshot();
    assert_eq!((snapshot.state, snapshot.sites[0].requests), (State::Running, 1));
}

#[test]
fn a_recording_survives_the_failure_of_the_monitor() {
    let (monitor, site) = monitor(MonitorOptions { workers: 2, ..Default::default() });
    let other = monitor.add_site(named("b"), sae()).unwrap();
    let quiet = std::panic::take_hook();
    std::panic::set_hook(Box::new(|_| {}));
    let folders = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    for (site, folder) in [site, other].into_iter().zip(&folders) {
        let options = RecorderOptions { keep_position_0: true, ..RecorderOptions::new(folder.path().join("r")) };
        monitor.record(site, options).unwrap();
    }
    monitor.set_rules(&Rules::parse(&format!("{RULE}\nsites = ['a']")).unwrap()).unwrap();
    let mut taps = [site, other].map(|site| monitor.tap(site, TapOptions::default()).unwrap());
    submit(&mut taps[1], 20);
    submit(&mut taps[0], 5);
    monitor.flush(LONG).unwrap();
    monitor.set_event_callback(Some(Box::new(|_| panic!("planted")))).unwrap();
    submit(&mut taps[0], 5);
    monitor.stop(LONG).unwrap();
    std::panic::set_hook(quiet);
    let snapshot = monitor.snapshot();
    assert_eq!(snapshot.state, State::Failed);
    assert!(snapshot.sites[0].recorded >= 5, "{}", snapshot.sites[0].recorded);
    assert_eq!(snapshot.sites[1].recorded, 20);
    for (site, folder) in snapshot.sites.iter().zip(&folders) {
        assert!(accounted(site.counters) && folder.path().join("r/shard-00000000.safetensors").exists());
    }
}

#[test]
fn rules_may_come_before_their_sites() {
    let monitor = Monitor::new(MonitorOptions::default()).unwrap();
    let text = format!(
        "{RULE}\nsites = ['early', 'late']\n[[rule]]\nname = 'all'\nwhen = {{ latent = 70, above = 0 }}\nsites = ['bad']"
    );
    monitor.set_rules(&Rules::parse(&text).unwrap()).unwrap();
    let waiting = |monitor: &Monitor| -> Vec<String> {
        let rules = monitor.unbound_rules();
        assert_eq!(rules, monitor.snapshot().unbound_rules);
        rules.iter().map(|rule| format!("{} for {}", rule.rule, rule.site)).collect()
    };
    assert_eq!(waiting(&monitor), ["x for early", "x for late", "all for bad"]);
    let site = monitor.add_site(named("late"), sae()).unwrap();
    assert_eq!(waiting(&monitor), ["x for early", "all for bad"]);
    let error = monitor.add_site(named("bad"), sae()).unwrap_err();
    assert!(error.message().contains("`all`") && error.message().contains("70"), "{error}");
    assert_eq!(waiting(&monitor), ["x for early", "all for bad"], "a site that was refused is none");
    let mut tap = monitor.tap(site, TapOptions::default()).unwrap();
    submit(&mut tap, 10);
    monitor.flush(LONG).unwrap();
    assert!(monitor.status().events > 0);
    monitor.set_rules(&Rules::default()).unwrap();
    assert!(waiting(&monitor).is_empty());
}

#[test]
fn the_page_is_told_the_latest_and_the_labels() {
    let (monitor, site) = monitor(MonitorOptions::default());
    monitor.set_labels(site, Labels::parse("9\tnine\n").unwrap()).unwrap();
    let mut tap = monitor.tap(site, TapOptions::default()).unwrap();
    submit(&mut tap, 100);
    monitor.flush(LONG).unwrap();
    let sequences: Vec<u64> = Source::recent(&monitor, 0, 0, 10).iter().map(|token| token.sequence).collect();
    assert_eq!(sequences, (91..=100).collect::<Vec<_>>());
    assert_eq!(Source::recent(&monitor, 0, 97, 10).len(), 3);
    let last = monitor.status().events;
    // What tells a client of before a restart from one that has seen everything.
    assert_eq!(Source::events(&monitor, 0, 1)[0].id, last);
    assert!(Source::events(&monitor, last, 9).is_empty() && Source::recent(&monitor, 7, 0, 9).is_empty());
    // Whether or not it is watched.
    assert_eq!(Source::label(&monitor, 0, 9).as_deref(), Some("nine"));
    assert_eq!((Source::label(&monitor, 0, 8), Source::label(&monitor, 7, 9)), (None, None));
}

#[test]
fn a_status_says_what_a_snapshot_says() {
    let (monitor, site) = monitor(MonitorOptions::default());
    let second = monitor.add_site(named("b"), sae()).unwrap();
    for site in [site, second] {
        let mut tap = monitor.tap(site, TapOptions { capacity: 30, ..Default::default() }).unwrap();
        submit(&mut tap, 50);
    }
    monitor.stop(LONG).unwrap();
    let (status, snapshot) = (monitor.status(), monitor.snapshot());
    assert_eq!((status.state, monitor.state()), (State::Stopped, State::Stopped));
    assert_eq!(
        (status.events, status.events_lost, status.memory),
        (snapshot.events, snapshot.events_lost, snapshot.memory)
    );
    let sum = |of: fn(&Counters) -> u64| snapshot.sites.iter().map(|site| of(&site.counters)).sum::<u64>();
    let Counters { submitted, encoded, dropped, .. } = status.counters;
    assert_eq!((submitted, encoded, dropped), (100, sum(|c| c.encoded), sum(|c| c.dropped)));
    assert!(accounted(status.counters));
}

#[test]
fn a_recording_at_its_limit_is_over() {
    let (monitor, site) = monitor(MonitorOptions::default());
    let folder = tempfile::tempdir().unwrap();
    let options = RecorderOptions {
        keep_position_0: true,
        most_tokens_total: Some(10),
        ..RecorderOptions::new(folder.path().join("r"))
    };
    assert!(!monitor.recording(site).unwrap().recording);
    monitor.record(site, options).unwrap();
    assert!(monitor.recording(site).unwrap().recording);
    let mut tap = monitor.tap(site, TapOptions::default()).unwrap();
    submit(&mut tap, 10);
    let end = Instant::now() + LONG;
    while monitor.recording(site).unwrap().recording {
        assert!(Instant::now() < end, "no further token comes, and it is over all the same");
        std::thread::sleep(Duration::from_millis(5));
    }
    assert_eq!(monitor.recording(site).unwrap().written, 10);
    assert_eq!(monitor.state(), State::Running);
}

#[test]
fn an_encode_says_what_its_queue_took() {
    let sae = sae();
    let (monitor, site) = monitor(MonitorOptions::default());
    let (release, released) = mpsc::channel::<()>();
    let released = Mutex::new(released);
    let wait = move |_: &kronsae::monitor::Event| {
        let _ = released.lock().unwrap().recv();
    };
    monitor.set_event_callback(Some(Box::new(wait))).unwrap();
    let mut tap = monitor.tap(site, TapOptions { capacity: 8, ..Default::default() }).unwrap();
    let x = Rng(5).vec(20 * D);
    let mut out = kronsae::Latents::new(20, sae.config().selection.capacity()).unwrap();
    let tags = |row: usize| TokenTag { request: 1, position: row as i32, ..Default::default() };
    let done = tap.encode(Activations::from_f32(&x, D).unwrap(), tags, &mut out.as_mut()).unwrap();
    assert_eq!((done.accepted, done.encode.skipped_rows), (8, 0));
    assert_eq!((monitor.status().counters.dropped, out.counts[19] > 0), (12, true));
    drop(release);
}

#[test]
fn a_callback_may_call_anything() {
    let (monitor, site) = monitor(MonitorOptions::default());
    let (says, hears) = mpsc::channel();
    let (says, handle, folder) = (Mutex::new(says), monitor.clone(), tempfile::tempdir().unwrap());
    let path = folder.path().join("r");
    monitor
        .set_event_callback(Some(Box::new(move |event| {
            let m = &handle;
            assert_eq!(
                (m.state(), m.status().state, m.snapshot().state),
                (State::Running, State::Running, State::Running)
            );
            assert!(m.memory() > 0 && m.label(site, 1).is_none() && m.unbound_rules().is_empty());
            assert!(m.recent_tokens(site, 0, 9).is_empty(), "its batch is not over");
            assert_eq!(m.recent_events(0, 9)[0].id, event.id);
            let mut tap = m.tap(site, TapOptions::default()).unwrap();
            assert_eq!(submit(&mut tap, 3), 3);
            let (mut out, x) = (kronsae::Latents::new(1, 64).unwrap(), Rng(5).vec(D));
            tap.encode(Activations::from_f32(&x, D).unwrap(), |_| TokenTag::default(), &mut out.as_mut()).unwrap();
            tap.rewind(1, 0).and_then(|()| tap.end_request(1)).unwrap();
            drop(tap);
            m.set_token_text(Some(Box::new(|_, _| {}))).and_then(|()| m.set_token_text(None)).unwrap();
            m.set_labels(site, Labels::default()).unwrap();
            assert!(m.poll_events(9, Duration::from_millis(1)).unwrap().is_empty(), "the callback has them");
            assert!(!m.recording(site).unwrap().recording);
            let refused = [
                m.flush(LONG),
                m.stop(LONG),
                m.set_rules(&Rules::default()),
                m.replace_sae(site, sae()),
                m.add_site(named("b"), sae()).map(|_| ()),
                m.record(site, RecorderOptions::new(path.clone())),
                m.stop_recording(site),
            ];
            m.set_event_callback(None).unwrap();
            let _ = says.lock().unwrap().send(refused.map(|refused| refused.map_err(|error| error.status())));
        })))
        .unwrap();
    let mut tap = monitor.tap(site, TapOptions::default()).unwrap();
    submit(&mut tap, 10);
    assert_eq!(hears.recv_timeout(LONG).unwrap(), [Err(Status::InvalidArgument); 7]);
    monitor.flush(LONG).unwrap();
    monitor.stop(LONG).unwrap();
    assert_eq!((monitor.status().counters.submitted, monitor.status().counters.encoded), (14, 14));
}

#[test]
fn a_full_queue_drops_the_newest_of_a_sampled_batch() {
    let (monitor, site) = monitor(MonitorOptions::default());
    let options = TapOptions { capacity: 2, sampling: Sampling::EveryNth(2), ..Default::default() };
    let (mut tap, x) = (monitor.tap(site, options).unwrap(), Rng(5).vec(12 * D));
    // The queue is full when the second call comes to it, and the worker empties it during that call.
    assert_eq!(submit(&mut tap, 3), 2);
    let tags = |row: usize| {
        if row == 8 {
            monitor.flush(LONG).unwrap();
        }
        TokenTag { request: 2, position: row as i32, ..Default::default() }
    };
    let accepted = tap.submit(Activations::from_f32(&x, D).unwrap(), tags).unwrap();
    monitor.stop(LONG).unwrap();
    let positions: Vec<i32> = monitor.recent_tokens(site, 2, 9).iter().map(|token| token.tag.position).collect();
    assert_eq!(positions, (0..accepted as i32).map(|at| 2 * at).collect::<Vec<_>>(), "the first ones");
}

#[test]
fn any_limit_of_memory_is_kept_or_refused() {
    let mut whole = 0;
    for limit in (0..26).map(|bits| 1_usize << bits) {
        let out_of_memory = |error: kronsae::Error| assert_eq!(error.status(), Status::OutOfMemory, "{error}");
        let monitor = Monitor::new(MonitorOptions { memory_limit: Some(limit), ..Default::default() });
        let Ok(monitor) = monitor.map_err(out_of_memory) else { continue };
        let done = monitor
            .add_site(named("a"), sae())
            .map(|site| (monitor.set_rules(&Rules::parse(RULE).unwrap()), monitor.tap(site, TapOptions::default())));
        assert!(monitor.memory() <= limit);
        match done.map_err(out_of_memory) {
            Ok((Ok(()), Ok(mut tap))) => {
                assert_eq!(submit(&mut tap, 10), 10);
                monitor.flush(LONG).unwrap();
                assert!(monitor.status().events > 0);
                whole += 1;
            }
            Ok((rules, tap)) => drop((rules.map_err(out_of_memory), tap.map_err(out_of_memory))),
            Err(()) => {}
        }
        assert_eq!(monitor.state(), State::Running);
    }
    assert!(whole > 0);
}
