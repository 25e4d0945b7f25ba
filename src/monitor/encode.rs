//! A site as its worker knows it: from tokens in a ring to statistics, matches and records.

use super::event::{Event, EventKind};
use super::events::Ids;
use super::intake::{Arrived, Elsewhere, Intake};
use super::memory::Reserved;
use super::recorder::{Recorder, RecorderState};
use super::requests::{Match, Requests};
use super::ring::{Control, Next};
use super::shared::Core;
use super::site::{Model, RuleTable, SiteShared, Way, count, lock, sum};
use crate::activations::Activations;
use crate::encode::{Encoder, EncoderOptions, Latents, ROW_NOT_FINITE, Watch};
use crate::error::Result;
use crate::memory::try_vec;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Tokens of a batch: a tile of the encoder, and few enough for screening. A tap's turn is over after one.
pub(crate) const BATCH: usize = 48;

/// What computes latents.
pub(crate) enum Engine {
    Full { encoder: Box<Encoder>, latents: Latents },
    Watch { watch: Box<Watch>, values: Vec<f32>, flags: Vec<u8>, active: Active },
    Record,
}

/// The active ones of a token's watched latents, strongest first: entries of the watch list, latents, values.
#[derive(Default)]
pub(crate) struct Active {
    /// The list by latent: latents, ascending, and their entries.
    by_latent: Vec<(u32, u32)>,
    order: Vec<(u32, f32)>,
    indices: Vec<u32>,
    values: Vec<f32>,
    entries: Vec<u32>,
}

impl Active {
    fn new(list: &[u32]) -> Self {
        let mut by_latent: Vec<(u32, u32)> = list.iter().copied().zip(0..).collect();
        by_latent.sort_unstable();
        Active { by_latent, ..Active::default() }
    }

    /// Sorts the active ones of these, each an entry of `list` and its value.
    fn sort(&mut self, list: &[u32], values: impl Iterator<Item = (u32, f32)>) {
        self.order.clear();
        self.order.extend(values.filter(|(_, value)| *value > 0.0));
        let latent = |entry: u32| list[entry as usize];
        self.order.sort_unstable_by(|a, b| b.1.total_cmp(&a.1).then(latent(a.0).cmp(&latent(b.0))));
        self.entries.clear();
        self.entries.extend(self.order.iter().map(|(entry, _)| *entry));
        self.indices.clear();
        self.indices.extend(self.order.iter().map(|(entry, _)| latent(*entry)));
        self.values.clear();
        self.values.extend(self.order.iter().map(|(_, value)| *value));
    }

    fn sorted(&self) -> (&[u32], &[f32], &[u32]) {
        (&self.indices, &self.values, &self.entries)
    }
}

impl Engine {
    /// Made on the worker's own thread, so that the encoder's threads inherit how it is scheduled.
    pub(crate) fn new(model: &Model, watch: &[u32], threads: usize) -> Result<Self> {
        let Some(sae) = &model.sae else { return Ok(Engine::Record) };
        if model.way == Way::Watch {
            let what = "watched values";
            return Ok(Engine::Watch {
                watch: Box::new(Watch::new(Arc::clone(sae), watch)?),
                values: try_vec(BATCH * watch.len(), 0.0, what)?,
                flags: try_vec(BATCH, 0, what)?,
                active: Active::new(watch),
            });
        }
        let encoder = Box::new(Encoder::new(Arc::clone(sae), EncoderOptions { threads, ..Default::default() })?);
        Ok(Engine::Full { encoder, latents: Latents::new(BATCH, model.capacity)? })
    }

    /// Bytes of the worker's buffers, the encoder's included, closely.
    pub(crate) fn bytes(sae: &crate::Sae, way: Way, watch: usize, capacity: usize, threads: usize) -> usize {
        let (rows, d) = (sae.config().encoder.rows(), sae.config().d_model);
        match way {
            Way::Record => 0,
            Way::Watch => 4 * (rows + d) + watch * (4 * BATCH + 32),
            Way::Full => {
                let tile = BATCH.min(((4 << 20) / rows.max(1)).max(6));
                tile * 4 * (rows + d) + threads * 24 * rows + BATCH * (8 * capacity + 16)
            }
        }
    }

    fn encode(&mut self, x: Activations<'_>) -> Result<()> {
        match self {
            Engine::Full { encoder, latents } => {
                encoder.encode(x, &mut latents.as_mut())?;
            }
            Engine::Watch { watch, values, flags, .. } => watch.encode(x, values, Some(flags))?,
            Engine::Record => {}
        }
        Ok(())
    }

    /// Row `row` of the last batch: its latents, strongest first, and the entries of the statistics they belong to;
    /// None where it is not finite.
    fn row(&mut self, row: usize, list: &[u32]) -> Option<(&[u32], &[f32], &[u32])> {
        match self {
            Engine::Full { latents, .. } => {
                let (indices, values) = latents.row(row);
                (latents.flags[row] & ROW_NOT_FINITE == 0).then_some((indices, values, indices))
            }
            Engine::Watch { values, flags, active, .. } => {
                if flags[row] & ROW_NOT_FINITE != 0 {
                    return None;
                }
                let values = &values[row * list.len()..(row + 1) * list.len()];
                active.sort(list, (0..).zip(values.iter().copied()));
                Some(active.sorted())
            }
            Engine::Record => Some((&[], &[], &[])),
        }
    }

    /// Of a token's latents that were computed elsewhere, strongest first: those that the site is for, and the entries of
    /// the statistics they belong to.
    fn of_latents<'a>(
        &'a mut self,
        indices: &'a [u32],
        values: &'a [f32],
        list: &[u32],
    ) -> (&'a [u32], &'a [f32], &'a [u32]) {
        match self {
            Engine::Full { .. } => (indices, values, indices),
            Engine::Watch { active, .. } => {
                let by_latent = std::mem::take(&mut active.by_latent);
                let watched = indices.iter().zip(values).filter_map(|(latent, value)| {
                    let at = by_latent.binary_search_by_key(latent, |(latent, _)| *latent).ok()?;
                    Some((by_latent[at].1, *value))
                });
                active.sort(list, watched);
                active.by_latent = by_latent;
                active.sorted()
            }
            Engine::Record => (&[], &[], &[]),
        }
    }
}

/// A token's latents: of row `row` of the engine's last batch, or, where another computes them, of row `theirs` of that one's.
fn row_of<'a>(
    engine: &'a mut Engine,
    latents: Option<&'a dyn Elsewhere>,
    row: usize,
    theirs: u32,
    list: &[u32],
) -> Option<(&'a [u32], &'a [f32], &'a [u32])> {
    match latents {
        None => engine.row(row, list),
        Some(latents) => latents.row(theirs).map(|(indices, values)| engine.of_latents(indices, values, list)),
    }
}

/// Turns matches into events.
struct Emit<'a> {
    core: &'a Core,
    site: &'a SiteShared,
    model: &'a Model,
    table: &'a RuleTable,
    ids: &'a mut Ids,
    unix_nanos: u64,
}

impl Emit<'_> {
    fn event(&mut self, of: &Match<'_>) {
        let (rule, severity) = &self.table.rules[of.rule];
        let counts = if of.retracts { &self.table.retracted } else { &self.table.matched };
        count(&counts[of.rule], 1);
        let kind = if of.retracts { EventKind::Retracted } else { EventKind::Matched };
        let id = self.core.events.push(Event {
            id: 0,
            kind,
            unix_nanos: self.unix_nanos,
            site: Arc::clone(&self.site.name),
            model: self.model.id,
            request: of.tag.request,
            position: of.tag.position,
            token: of.tag.token,
            rule: Arc::clone(rule),
            severity: *severity,
            gap: of.gap,
            latents: of.latents.into(),
            retracts: if of.retracts { self.ids.id(of.handle) } else { 0 },
        });
        if !of.retracts {
            self.ids.remember(of.handle, id);
        }
    }
}

/// What a tap's turn did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Turn {
    Idle,
    Control,
    Tokens { count: usize, busy: Duration },
}

/// A recorder in its worker's hands.
pub(crate) struct Recording {
    pub(crate) recorder: Recorder,
    /// Whether it asked for text.
    pub(crate) text: bool,
    pub(crate) _memory: Reserved,
}

/// A site in its worker's hands.
pub(crate) struct Site {
    pub(crate) shared: Arc<SiteShared>,
    pub(crate) model: Arc<Model>,
    pub(crate) engine: Engine,
    pub(crate) requests: Requests,
    /// What the rules in force take of the monitor's memory.
    pub(crate) rules_memory: Reserved,
    pub(crate) table: Arc<RuleTable>,
    pub(crate) ids: Ids,
    pub(crate) taps: Vec<Intake>,
    pub(crate) recorder: Option<Recording>,
    /// Of recorders that were closed.
    pub(crate) recorded_before: (u64, u64),
    pub(crate) text: Vec<u8>,
}

impl Site {
    /// The turn of tap `at`: control records that wait, then one batch.
    pub(crate) fn turn(&mut self, core: &Core, at: usize) -> Result<Turn> {
        let mut turn = Turn::Idle;
        self.taps[at].waits = false;
        self.taps[at].tell(core, &self.shared.name);
        // Bounded, so that a host that queues nothing but control records cannot keep the others waiting.
        for _ in 0..BATCH {
            match self.taps[at].consumer.next(BATCH) {
                Next::Empty => return Ok(turn),
                Next::Control(control) => {
                    self.control(core, control);
                    // Last: who sees the queue empty sees everything that came of it.
                    self.taps[at].consumer.release_control();
                    turn = Turn::Control;
                }
                Next::Tokens(tokens) => {
                    let of_tokens = self.tokens(core, at, tokens)?;
                    return Ok(if of_tokens == Turn::Idle { turn } else { of_tokens });
                }
            }
        }
        Ok(turn)
    }

    fn control(&mut self, core: &Core, control: Control) {
        let Site { shared, model, requests, table, ids, .. } = self;
        match control {
            Control::End { request } => {
                requests.end(request);
                if let Some(recording) = &mut self.recorder {
                    recording.recorder.end(request);
                }
            }
            Control::Rewind { request, position } => {
                let mut emit = Emit { core, site: shared, model, table, ids, unix_nanos: unix_nanos() };
                requests.rewind(request, position, &mut |found| emit.event(&found));
            }
        }
        self.gauges();
    }

    fn tokens(&mut self, core: &Core, at: usize, tokens: usize) -> Result<Turn> {
        let start = Instant::now();
        let Site { shared, model, engine, requests, table, ids, taps, recorder, text, .. } = self;
        let Intake { consumer, tap, latents, waits, .. } = &mut taps[at];
        let tokens = match latents {
            None => {
                engine.encode(consumer.view(tokens))?;
                if model.way != Way::Record {
                    shared.encode.observe(start.elapsed().as_nanos() as u64 / tokens as u64, tokens as u64);
                }
                tokens
            }
            Some(latents) => match latents.arrived(consumer.head(), tokens, model.sae.as_ref()) {
                Arrived::NotYet => {
                    *waits = true;
                    return Ok(Turn::Idle);
                }
                Arrived::Here(tokens) => tokens,
                Arrived::Lost(tokens) => return Ok(self.lost(core, at, tokens)),
            },
        };
        let encoded_at = core.nanos();
        let now = unix_nanos();
        let step = tap.sampling.step();
        let mut not_finite = 0;
        let mut emit = Emit { core, site: shared, model, table, ids, unix_nanos: now };
        for row in 0..tokens {
            let slot = consumer.slot(row);
            if let Some(Recording { recorder, text: with_text, .. }) = recorder {
                let text = if *with_text && core.text_of(slot.tag.token, text) { Some(&text[..]) } else { None };
                recorder.push(consumer.view(tokens).slice(row..row + 1), &slot.tag, text);
            }
            match row_of(engine, latents.as_deref(), row, slot.row, &shared.watch) {
                None => {
                    not_finite += 1;
                    requests.missing(&slot.tag, step, &mut |found| emit.event(&found));
                }
                Some((indices, values, entries)) => {
                    if let Some(statistics) = &model.statistics {
                        statistics.observe(entries, values);
                        requests.observe(&slot.tag, step, now, indices, values, &mut |found| emit.event(&found));
                    }
                    shared.latency.observe(encoded_at.saturating_sub(slot.nanos), 1);
                }
            }
        }
        if model.way != Way::Record {
            // After the callbacks, which may read: never while one runs.
            let mut recent = shared.recent.add();
            for row in 0..tokens {
                let slot = consumer.slot(row);
                if let Some((indices, values, _)) = row_of(engine, latents.as_deref(), row, slot.row, &shared.watch) {
                    recent.token(&slot.tag, indices, values);
                }
            }
        }
        count(&tap.consumed.encoded, tokens - not_finite);
        count(&tap.consumed.not_finite, not_finite);
        if let Some(latents) = latents {
            latents.release(tokens);
        }
        // Last: who sees the queue empty sees everything that came of it.
        consumer.release(tokens);
        self.gauges();
        Ok(Turn::Tokens { count: tokens, busy: start.elapsed() })
    }

    /// Takes tokens whose latents will never be here: counted as dropped, and a gap in the windows of rules.
    fn lost(&mut self, core: &Core, at: usize, tokens: usize) -> Turn {
        let start = Instant::now();
        let Site { shared, model, requests, table, ids, taps, .. } = self;
        let Intake { consumer, tap, latents, .. } = &mut taps[at];
        let mut emit = Emit { core, site: shared, model, table, ids, unix_nanos: unix_nanos() };
        for row in 0..tokens {
            requests.missing(&consumer.slot(row).tag, tap.sampling.step(), &mut |found| emit.event(&found));
        }
        count(&tap.consumed.lost, tokens);
        if let Some(latents) = latents {
            latents.release(tokens);
        }
        consumer.release(tokens);
        self.gauges();
        Turn::Tokens { count: tokens, busy: start.elapsed() }
    }

    /// Takes what others have computed for this site and is here, so that it still meets the model it was computed with.
    pub(crate) fn take_arrived(&mut self, core: &Core) -> Result<()> {
        for at in 0..self.taps.len() {
            if self.taps[at].latents.is_none() {
                continue;
            }
            // What comes meanwhile is not waited for.
            let until = self.taps[at].consumer.ring().published();
            while self.taps[at].consumer.head() < until && self.turn(core, at)? != Turn::Idle {}
        }
        Ok(())
    }

    /// Copies counts out for readers.
    pub(crate) fn gauges(&self) {
        let gauges = &self.shared.gauges;
        gauges.requests.store(self.requests.alive(), Ordering::Relaxed);
        gauges.evicted.store(self.requests.evicted(), Ordering::Relaxed);
        let (written, failures) =
            self.recorder.as_ref().map_or((0, 0), |r| (r.recorder.written(), r.recorder.failures()));
        gauges.recorded.store(self.recorded_before.0 + written, Ordering::Relaxed);
        gauges.record_failures.store(self.recorded_before.1 + failures, Ordering::Relaxed);
        let goes_on = |r: &Recording| matches!(r.recorder.state(), RecorderState::Recording | RecorderState::Failing);
        gauges.recording.store(self.recorder.as_ref().is_some_and(goes_on), Ordering::Relaxed);
    }

    /// Closes the recorder, if one runs.
    pub(crate) fn close_recorder(&mut self) -> Result<()> {
        let Some(Recording { mut recorder, .. }) = self.recorder.take() else { return Ok(()) };
        let closed = recorder.close();
        self.recorded_before.0 += recorder.written();
        self.recorded_before.1 += recorder.failures();
        self.gauges();
        closed
    }

    /// Lets go of taps whose handles are gone and whose queues are empty.
    pub(crate) fn forget_closed_taps(&mut self) {
        let shared = &self.shared;
        self.taps.retain(|Intake { consumer, tap, .. }| {
            // In this order: nothing is queued after it was closed.
            let over = tap.closed.load(Ordering::Acquire) && consumer.ring().is_empty();
            if over {
                let mut taps = lock(&shared.taps);
                taps.gone = sum(taps.gone, tap.counters(false));
                taps.live.retain(|other| other.number != tap.number);
            }
            !over
        });
    }
}

/// The time now, in nanoseconds since 1970, UTC.
pub(crate) fn unix_nanos() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos() as u64)
}
