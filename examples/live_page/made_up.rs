//! A monitor that is none: two sites, a few requests at a time, rules that match. Data of a shape that a real one has, so
//! that the page can be looked at, and tests can ask a server for something.

use kronsae::monitor::serve::Source;
use kronsae::monitor::{
    Counters, Event, EventKind, EventLatent, Histogram, LatentSnapshot, ModelId, RecentToken, RuleCount, Severity,
    SiteSnapshot, Snapshot, State, TapSnapshot, TokenTag, WatchedLatent, flags,
};
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

const TEXT: &str = "The river rose in the night, and by morning the lower road was gone. People stood at the edge of the \
    water with their shoes in their hands.\nNobody said that it had been foretold; nobody said that it had not. A boat \
    went out for the mill, and came back with two cats and a clock. \"It still goes,\" said the miller, and wound it. ";
const PROMPT: &str = "Write three sentences about a flood, please.\n";
const LATENTS: u32 = 8192;
const BOUNDS: [f64; 10] = [0.0001, 0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0];
const LABELS: [(u32, &str); 6] = [
    (17, "water and weather"),
    (256, "reported speech"),
    (1031, "negation"),
    (2900, "line breaks"),
    (4077, "hands, shoes, clothing"),
    (8000, "timepieces"),
];

/// The state behind a [`Source`].
pub(crate) struct MadeUp {
    world: Mutex<World>,
}

struct World {
    started: Instant,
    tokens_per_second: f64,
    made: u64,
    words: Vec<(String, bool)>,
    sites: Vec<Site>,
    events: VecDeque<Event>,
    event: u64,
    matched: [u64; 3],
    retracted: u64,
}

struct Site {
    name: Arc<str>,
    layer: u32,
    model: ModelId,
    recent: VecDeque<RecentToken>,
    counters: Counters,
    latency: Histogram,
    encode: Histogram,
}

/// SplitMix64, to `0..1`.
fn random(seed: u64) -> f64 {
    let mut z = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15);
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    ((z ^ (z >> 31)) >> 11) as f64 / (1_u64 << 53) as f64
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos() as u64
}

/// Words with the space before them, as a tokenizer cuts them; and whether they are of the prompt.
fn words() -> Vec<(String, bool)> {
    let cut = |text: &str, prompt| {
        let mut words: Vec<(String, bool)> = Vec::new();
        for c in text.chars() {
            match words.last_mut() {
                Some((word, _)) if c.is_alphabetic() && word.trim_start().chars().all(char::is_alphabetic) => {
                    word.push(c);
                }
                _ => words.push((c.to_string(), prompt)),
            }
        }
        words
    };
    [cut(PROMPT, true), cut(TEXT, false)].concat()
}

fn observe(histogram: &mut Histogram, seconds: f64) {
    let bucket = histogram.bounds.partition_point(|bound| *bound < seconds);
    histogram.counts[bucket] += 1;
    histogram.sum += seconds;
}

impl MadeUp {
    /// Two sites that see this many tokens a second each.
    pub(crate) fn new(tokens_per_second: f64) -> Self {
        let histogram = || Histogram { bounds: BOUNDS.to_vec(), counts: vec![0; BOUNDS.len() + 1], sum: 0.0 };
        let site = |name: &str, layer, byte| Site {
            name: name.into(),
            layer,
            model: ModelId([byte, 0x1f, 0x80, 0xc4, 0x22, 0x9d, 0x07, byte]),
            recent: VecDeque::new(),
            counters: Counters::default(),
            latency: histogram(),
            encode: histogram(),
        };
        let world = World {
            started: Instant::now(),
            tokens_per_second,
            made: 0,
            words: words(),
            sites: vec![site("residual-15", 15, 0xa3), site("residual-22", 22, 0x5e)],
            events: VecDeque::new(),
            event: 0,
            matched: [0; 3],
            retracted: 0,
        };
        MadeUp { world: Mutex::new(world) }
    }

    /// Replaces the words of all requests: text from outside, hostile perhaps.
    #[allow(dead_code, reason = "only tests need it")]
    pub(crate) fn with_words(self, words: &[&str]) -> Self {
        let words = words.iter().map(|word| ((*word).to_owned(), false)).collect();
        self.world.lock().unwrap_or_else(PoisonError::into_inner).words = words;
        self
    }

    fn up_to_now<T>(&self, then: impl FnOnce(&mut World) -> T) -> T {
        let mut world = self.world.lock().unwrap_or_else(PoisonError::into_inner);
        let due = (world.started.elapsed().as_secs_f64() * world.tokens_per_second) as u64;
        // After a long sleep only the last tokens matter.
        world.made = world.made.max(due.saturating_sub(2000));
        while world.made < due {
            world.token();
        }
        then(&mut world)
    }
}

impl World {
    /// One more token at every site.
    fn token(&mut self) {
        self.made += 1;
        let n = self.made;
        // Three requests take turns.
        let length = self.words.len() as u64;
        let (lane, step) = (n % 3, n / 3 + (n % 3) * 40);
        let (request, position) = (step / length * 3 + lane + 1, (step % length) as i32);
        let (word, prompt) = self.words[position as usize].clone();
        let last = prompt && !self.words[(position as usize + 1) % self.words.len()].1;
        let tag = TokenTag {
            request,
            position,
            token: (random(n ^ 0x77) * 49_000.0) as i32,
            flags: u32::from(prompt) * flags::PROMPT + u32::from(last) * flags::LAST_PROMPT,
        };
        for (index, site) in (0_u64..).zip(&mut self.sites) {
            site.counters.submitted += 1;
            site.counters.queued = (random(n ^ 0x1234) * 30.0) as u64;
            // Now and then the queue is full.
            if n % 4000 > 3960 && random(n ^ 9) < 0.5 {
                site.counters.dropped += 1;
                continue;
            }
            if n.is_multiple_of(9973) {
                site.counters.not_finite += 1;
                continue;
            }
            site.counters.encoded += 1;
            let slow = 1.0 + 4.0 * random(n ^ 5).powi(12);
            observe(&mut site.latency, 0.0018 * slow * (0.5 + random(n ^ 3)));
            observe(&mut site.encode, 0.00021 * (0.5 + random(n ^ 4)));
            let mut latents = active(&word, n.wrapping_mul(31) ^ index);
            latents.sort_by(|a, b| b.1.total_cmp(&a.1));
            let (indices, values) = latents.into_iter().unzip::<_, _, Vec<u32>, Vec<f32>>();
            site.recent.push_back(RecentToken {
                sequence: site.counters.encoded,
                tag,
                text: Some(word.clone().into_boxed_str()),
                indices: indices.into(),
                values: values.into(),
            });
            if site.recent.len() > 512 {
                site.recent.pop_front();
            }
        }
        let value = (2.0 + 2.0 * random(n)) as f32;
        match word.trim() {
            "nobody" | "Nobody" | "not" => self.matches(0, tag, &[(1031, value), (17, 0.0)]),
            "said" => self.matches(1, tag, &[(256, value)]),
            "clock" => self.matches(2, tag, &[(8000, value), (4077, value / 2.0)]),
            _ => {}
        }
    }

    fn matches(&mut self, rule: usize, tag: TokenTag, latents: &[(u32, f32)]) {
        self.matched[rule] += 1;
        let (name, severity) = RULES[rule];
        let latents = latents.iter().map(|&(latent, value)| EventLatent { latent, value }).collect();
        let event = Event {
            id: self.event + 1,
            kind: EventKind::Matched,
            unix_nanos: now(),
            site: Arc::clone(&self.sites[rule % 2].name),
            model: self.sites[rule % 2].model,
            request: tag.request,
            position: tag.position,
            token: tag.token,
            rule: name.into(),
            severity,
            gap: self.event % 5 == 3,
            latents,
            retracts: 0,
        };
        self.event += 1;
        let taken_back = self.event % 6 == 2;
        self.events.push_back(event.clone());
        if taken_back {
            self.retracted += 1;
            self.event += 1;
            self.events.push_back(Event {
                id: self.event,
                kind: EventKind::Retracted,
                retracts: event.id,
                gap: false,
                ..event
            });
        }
        while self.events.len() > 1000 {
            self.events.pop_front();
        }
    }
}

const RULES: [(&str, Severity); 3] =
    [("denial", Severity::Warning), ("quotes-somebody", Severity::Info), ("time-is-mentioned", Severity::Critical)];

/// What fires on a word: what its letters say, always the same, and some noise.
fn active(word: &str, seed: u64) -> Vec<(u32, f32)> {
    let word = word.trim_matches(' ');
    let topic: &[u32] = match word {
        "river" | "water" | "boat" | "flood" | "morning" | "night" => &[17],
        "said" | "\"" => &[256],
        "Nobody" | "nobody" | "not" => &[1031],
        "\n" => &[2900],
        "shoes" | "hands" => &[4077],
        "clock" | "wound" | "goes" => &[8000, 17],
        _ => &[],
    };
    let hash = word.bytes().fold(7_u64, |hash, byte| hash.wrapping_mul(131).wrapping_add(byte.into()));
    let mut latents: Vec<_> = topic.iter().map(|&latent| (latent, (3.0 + random(seed) * 2.0) as f32)).collect();
    for k in 0..12 {
        let latent = (random(hash ^ (k * 977)) * f64::from(LATENTS)) as u32;
        if latents.iter().all(|(taken, _)| *taken != latent) {
            latents.push((latent, (0.2 + random(seed ^ k) * 1.5) as f32));
        }
    }
    latents
}

impl Source for MadeUp {
    fn snapshot(&self) -> Snapshot {
        self.up_to_now(|world| {
            let uptime = world.started.elapsed().as_secs_f64();
            let sites = (0..world.sites.len()).map(|index| world.site(index, uptime)).collect();
            Snapshot {
                unix_nanos: now(),
                version: env!("CARGO_PKG_VERSION"),
                state: State::Running,
                failure: None,
                uptime,
                memory: 23 << 20,
                device_memory: 0,
                events: world.event,
                events_lost: 0,
                cpu_seconds: uptime * 0.04,
                sites,
                unbound_rules: Vec::new(),
            }
        })
    }

    fn recent(&self, site: u32, since: u64, most: usize) -> Vec<RecentToken> {
        self.up_to_now(|world| {
            let Some(site) = world.sites.get(site as usize) else { return Vec::new() };
            let new = site.recent.iter().filter(|token| token.sequence > since).count().min(most);
            site.recent.iter().skip(site.recent.len() - new).cloned().collect()
        })
    }

    fn events(&self, since: u64, most: usize) -> Vec<Event> {
        self.up_to_now(|world| {
            let new = world.events.iter().filter(|event| event.id > since).count().min(most);
            world.events.iter().skip(world.events.len() - new).cloned().collect()
        })
    }

    fn label(&self, _site: u32, latent: u32) -> Option<Arc<str>> {
        LABELS.iter().find(|(labelled, _)| *labelled == latent).map(|(_, label)| (*label).into())
    }
}

impl World {
    fn site(&self, index: usize, uptime: f64) -> SiteSnapshot {
        let site = &self.sites[index];
        let of = |latent: u32, k: u64| {
            let calibrated = 0.004 + 0.05 * random(u64::from(latent));
            let wave = 1.0 + 0.5 * (uptime / 20.0 + k as f64).sin();
            let rate = calibrated * (1.0 + 6.0 / (1.0 + k as f64)) * wave;
            LatentSnapshot {
                latent,
                count: (rate * site.counters.encoded as f64) as u64,
                mean: (1.0 + 2.0 * random(u64::from(latent) ^ 2)) as f32,
                rate: rate as f32,
                calibrated_rate: calibrated as f32,
                drift: ((rate - calibrated) * 60.0) as f32,
            }
        };
        let watched = LABELS[..3]
            .iter()
            .zip(0..)
            .map(|((latent, label), k)| WatchedLatent { of: of(*latent, k + 3), label: Some((*label).into()) });
        let mut strongest: Vec<_> = LABELS.iter().map(|(latent, _)| *latent).zip(0..).map(|(l, k)| of(l, k)).collect();
        strongest.extend((6..20_u64).map(|k| of((random(k) * f64::from(LATENTS)) as u32, k)));
        strongest.sort_by(|a, b| (b.rate / b.calibrated_rate).total_cmp(&(a.rate / a.calibrated_rate)));
        let rules = RULES.iter().zip(self.matched).enumerate().filter(|(rule, _)| rule % 2 == index);
        let rules = rules.map(|(rule, (&(name, severity), matched))| RuleCount {
            rule: name.into(),
            severity,
            matched,
            retracted: if rule == 0 { self.retracted.min(matched) } else { 0 },
        });
        SiteSnapshot {
            site: Arc::clone(&site.name),
            layer: Some(site.layer),
            model: site.model,
            latents: LATENTS,
            rule: "topk",
            counters: Counters { submitted: site.counters.submitted + site.counters.queued, ..site.counters },
            taps: vec![TapSnapshot {
                tap: index as u32,
                counters: site.counters,
                capacity: 512,
                closed: false,
                failure: None,
            }],
            tokens: site.counters.encoded,
            l0: 12.6,
            drift: 0.06 + 0.03 * (uptime / 30.0).sin(),
            latency: site.latency.clone(),
            encode: site.encode.clone(),
            requests: 3,
            requests_evicted: 0,
            rules: rules.collect(),
            watched: watched.collect(),
            strongest,
            recorded: 0,
            record_failures: 0,
        }
    }
}
