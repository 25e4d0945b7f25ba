//! What one follower of `/events` is sent.
//!
//! Frames are made when the client's connection has room for them, from what the source holds then. A client that reads
//! slowly misses ticks and tokens, and holds nothing up.

use super::http::Place;
use crate::monitor::{Event, EventLatent, RecentToken};
use hyper::body::Bytes;
use serde::{Serialize, Serializer};
use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::time::{Interval, MissedTickBehavior};

/// How often rule events are looked for.
const LOOK: Duration = Duration::from_millis(250);
/// Every how many looks there is a tick.
const LOOKS_PER_TICK: u32 = 4;
/// Most tokens of a site in a tick, and most rule events at once.
const MOST_TOKENS: usize = 128;
const MOST_EVENTS: usize = 200;
/// Labels a client is remembered to have, and for how many looks: then they are sent again, the host may have set others.
const MOST_LABELS: usize = 16_384;
const LABELS_HOLD: u32 = 120;

/// The frames of one client.
pub(super) struct EventStream {
    place: Place,
    looks: Interval,
    look: u32,
    /// The last event that was sent, or is known to the client from before.
    event: u64,
    /// Each site's last token that was sent.
    tokens: Vec<u64>,
    /// Labels that were sent: site and latent.
    labels: HashSet<(u32, u32)>,
}

impl EventStream {
    /// `last`: the client has seen events up to this one.
    pub(super) fn new(place: Place, last: Option<u64>) -> Self {
        let mut looks = tokio::time::interval(LOOK);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        EventStream { place, looks, look: 0, event: last.unwrap_or(0), tokens: Vec::new(), labels: HashSet::new() }
    }

    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Bytes> {
        loop {
            if self.looks.poll_tick(cx).is_pending() {
                return Poll::Pending;
            }
            let mut out = Vec::new();
            self.rules(&mut out);
            if self.look.is_multiple_of(LOOKS_PER_TICK) {
                self.tick(&mut out);
            }
            self.look = self.look.wrapping_add(1);
            if !out.is_empty() {
                return Poll::Ready(Bytes::from(out));
            }
        }
    }

    fn rules(&mut self, out: &mut Vec<u8>) {
        let source = &self.place.shared().source;
        let mut events = source.events(self.event, MOST_EVENTS);
        if events.is_empty() && self.event > 0 && source.events(0, 1).last().is_some_and(|last| last.id < self.event) {
            // The client remembers another monitor's numbers, of before a restart.
            events = source.events(0, MOST_EVENTS);
        }
        for event in events {
            self.event = event.id;
            let latents = event.latents.iter().map(|latent| latent.latent);
            let names = self.site_index(&event.site).map(|site| self.all_labels(site, latents)).unwrap_or_default();
            out.extend_from_slice(format!("id: {}\nevent: rule\ndata: ", event.id).as_bytes());
            json(&RuleFrame::of(&event, names), out);
            out.extend_from_slice(b"\n\n");
        }
    }

    fn site_index(&self, name: &str) -> Option<u32> {
        let (_, snapshot) = self.place.shared().snapshot();
        snapshot.sites.iter().position(|site| &*site.site == name).map(|index| index as u32)
    }

    fn all_labels(&self, site: u32, latents: impl Iterator<Item = u32>) -> BTreeMap<u32, Arc<str>> {
        let source = &self.place.shared().source;
        latents.filter_map(|latent| Some((latent, source.label(site, latent)?))).collect()
    }

    fn tick(&mut self, out: &mut Vec<u8>) {
        let (json_text, snapshot) = self.place.shared().snapshot();
        self.tokens.resize(snapshot.sites.len(), 0);
        if self.labels.len() > MOST_LABELS || self.look.is_multiple_of(LABELS_HOLD) {
            self.labels.clear();
        }
        out.extend_from_slice(b"event: tick\ndata: {\"snapshot\":");
        out.extend_from_slice(&json_text);
        out.extend_from_slice(b",\"recent\":[");
        for (index, site) in (0_u32..).zip(&snapshot.sites) {
            let since = &mut self.tokens[index as usize];
            let source = &self.place.shared().source;
            let tokens = source.recent(index, *since, MOST_TOKENS);
            let missed = tokens.first().map_or(0, |first| first.sequence.saturating_sub(*since + 1));
            let missed = if *since == 0 { 0 } else { missed };
            *since = tokens.last().map_or(*since, |last| last.sequence);
            let shown = site.strongest.iter().map(|latent| latent.latent);
            let watched = site.watched.iter().map(|latent| latent.of.latent);
            let fired = tokens.iter().flat_map(|token| token.indices.iter().copied());
            let new = shown.chain(watched).chain(fired).filter(|latent| self.labels.insert((index, *latent)));
            let labels = new.filter_map(|latent| Some((latent, source.label(index, latent)?))).collect();
            if index > 0 {
                out.push(b',');
            }
            json(&SiteFrame { tokens: tokens.iter().map(TokenFrame::of).collect(), missed, labels }, out);
        }
        out.extend_from_slice(b"]}\n\n");
    }
}

/// JSON has no line break outside of strings and none, but escaped, inside; so it is one line, as a data field must be.
fn json(value: &impl Serialize, out: &mut Vec<u8>) {
    serde_json::to_writer(out, value).expect("plain data into memory");
}

/// A number that JavaScript would round: as a string.
fn exact<S: Serializer>(number: &u64, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(number)
}

#[derive(Serialize)]
struct SiteFrame<'a> {
    tokens: Vec<TokenFrame<'a>>,
    /// Tokens between the last tick and the first of these.
    missed: u64,
    labels: BTreeMap<u32, Arc<str>>,
}

#[derive(Serialize)]
struct TokenFrame<'a> {
    sequence: u64,
    #[serde(serialize_with = "exact")]
    request: u64,
    position: i32,
    token: i32,
    flags: u32,
    text: Option<&'a str>,
    indices: &'a [u32],
    values: &'a [f32],
}

impl<'a> TokenFrame<'a> {
    fn of(token: &'a RecentToken) -> Self {
        let RecentToken { sequence, tag, text, indices, values } = token;
        TokenFrame {
            sequence: *sequence,
            request: tag.request,
            position: tag.position,
            token: tag.token,
            flags: tag.flags,
            text: text.as_deref(),
            indices,
            values,
        }
    }
}

#[derive(Serialize)]
struct RuleFrame<'a> {
    id: u64,
    kind: crate::monitor::EventKind,
    /// Milliseconds since 1970.
    time: u64,
    site: &'a str,
    model: crate::monitor::ModelId,
    #[serde(serialize_with = "exact")]
    request: u64,
    position: i32,
    token: i32,
    rule: &'a str,
    severity: crate::monitor::Severity,
    gap: bool,
    retracts: u64,
    latents: &'a [EventLatent],
    labels: BTreeMap<u32, Arc<str>>,
}

impl<'a> RuleFrame<'a> {
    fn of(event: &'a Event, labels: BTreeMap<u32, Arc<str>>) -> Self {
        RuleFrame {
            id: event.id,
            kind: event.kind,
            time: event.unix_nanos / 1_000_000,
            site: &event.site,
            model: event.model,
            request: event.request,
            position: event.position,
            token: event.token,
            rule: &event.rule,
            severity: event.severity,
            gap: event.gap,
            retracts: event.retracts,
            latents: &event.latents,
            labels,
        }
    }
}
