//! A monitor as its host holds it.

use super::encode::{Engine, Recording, Site};
use super::event::Event;
use super::events::{EventCallback, Ids};
use super::histogram::Durations;
use super::labels::Labels;
use super::options::{MonitorOptions, SiteOptions, TapOptions};
use super::picture;
use super::recent::Recent;
use super::recorder::{Recorder, RecorderOptions};
use super::requests::Requests;
use super::ring::Ring;
use super::rules::{Rules, SiteRules};
use super::shared::{ABANDONED, Core, DRAINING, RUNNING, STOPPED, TokenText, is_worker, refuse_on_worker};
use super::site::{
    Gauges, Model, RuleTable, SiteShared, TapShared, Taps, check_layer, check_name, check_rules_are_watched, layer_of,
    lock,
};
use super::snapshot::{ModelId, RecentToken, Snapshot};
use super::statistics::Statistics;
use super::tap::Tap;
use super::worker;
use crate::encode::{Encoder, EncoderOptions, Watch};
use crate::error::{Error, Result, Status};
use crate::sae::Sae;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// A site of a [`Monitor`], by its number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SiteId(pub u32);

/// Encodes, on workers of its own, what taps hand over.
///
/// A handle: clones are the same monitor, from any thread. When the last one goes without [`Monitor::stop`], workers
/// end at once and what is queued is lost; taps that are left return [`Status::Stopped`]. After fork, calls in the child
/// return [`Status::Forked`]. Callbacks run on worker threads and may not call what waits for workers.
#[derive(Debug, Clone)]
pub struct Monitor {
    handle: Arc<Handle>,
}

#[derive(Debug)]
struct Handle {
    core: std::mem::ManuallyDrop<Arc<Core>>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

/// How long dropping a monitor waits for workers that are in a callback or in the middle of a batch.
const PARTING: Duration = Duration::from_secs(1);

impl Monitor {
    /// A monitor with its workers, which sleep until there is something to do.
    ///
    /// # Errors
    /// [`Status::InvalidArgument`] for an option out of range, [`Status::OutOfMemory`], [`Status::Unsupported`] if the system
    /// refuses a nice value or policy.
    pub fn new(options: MonitorOptions) -> Result<Self> {
        options.validate()?;
        let core = Arc::new(Core::new(options)?);
        let handle = Handle { core: std::mem::ManuallyDrop::new(core), threads: Mutex::new(Vec::new()) };
        for number in 0..handle.core.workers.len() {
            match worker::start(&handle.core, number) {
                Ok(thread) => lock(&handle.threads).push(thread),
                Err(error) => {
                    // Those never started have ended; the one that failed has said so itself, if it ran.
                    for never in number..handle.core.workers.len() {
                        if !handle.core.workers[never].ended.load(Ordering::Acquire) {
                            handle.core.ended(never);
                        }
                    }
                    return Err(error);
                }
            }
        }
        Ok(Monitor { handle: Arc::new(handle) })
    }

    fn core(&self) -> &Arc<Core> {
        &self.handle.core
    }

    /// Whether this process is a fork of the one that made the monitor.
    #[must_use]
    pub fn is_forked(&self) -> bool {
        self.core().fork.is_forked()
    }

    /// Adds a site with its model, or with `None` one that can only record.
    ///
    /// The model's file is read once more here, for its [`Sae::model_id`].
    ///
    /// # Errors
    /// [`Status::InvalidArgument`]: the name is bad or taken, the layer is not the model's (and not any is meant), a watched
    /// latent does not exist, the width is not the model's, or a rule in force does not fit. [`Status::Io`] if the model's
    /// file has changed. [`Status::OutOfMemory`], the limit of memory included. [`Status::Timeout`],
    /// [`Status::Stopped`], [`Status::Poisoned`], [`Status::Forked`].
    pub fn add_site(&self, options: SiteOptions, sae: impl Into<Option<Arc<Sae>>>) -> Result<SiteId> {
        let core = self.core();
        core.check()?;
        refuse_on_worker()?;
        let sae: Option<Arc<Sae>> = sae.into();
        check_name(&options.name)?;
        let d_model = width(&options, sae.as_deref())?;
        let configuration = lock(&core.configuration);
        let number = {
            let sites = lock(&core.sites);
            if sites.iter().any(|site| *site.name == *options.name) {
                return Err(Error::invalid(format!("there is a site {} already", options.name)));
            }
            sites.len()
        };
        let layer = layer_of(&options, sae.as_deref());
        let prepared = prepare(core, &options.name, options.layer, options.any_layer, &options.watch, sae)?;
        let rules = compile(&configuration.rules, &options.name, &prepared, &options.watch)?;
        if let (Some(labels), Some(sae)) = (&options.labels, &prepared.sae) {
            labels.fit(sae.config().encoder.latents())?;
        }
        let kept = if prepared.sae.is_some() { core.options.recent_tokens } else { 0 };
        let bytes = Recent::bytes(kept, prepared.capacity)
            .saturating_add(Requests::bytes_for(&rules, core.options.requests))
            .saturating_add(Ids::bytes());
        let memory = core.budget.reserve(bytes, &format!("site {}", options.name))?;
        let table = Arc::new(RuleTable::new(&rules, &RuleTable::default()));
        let model = Arc::new(prepared);
        let shared = Arc::new(SiteShared {
            number: number as u32,
            name: options.name.as_str().into(),
            layer,
            any_layer: options.any_layer,
            d_model,
            worker: number % core.workers.len(),
            watch: options.watch.into(),
            recent: Recent::new(kept, model.capacity)?,
            model: Mutex::new(Arc::clone(&model)),
            rules: Mutex::new(Arc::clone(&table)),
            rule_latents: Mutex::new(rules.latents().into()),
            labels: Mutex::new(options.labels.map(Arc::new)),
            taps: Mutex::new(Taps::default()),
            latency: Durations::new(&core.options.latency_bounds),
            encode: Durations::new(&core.options.latency_bounds),
            gauges: Gauges::default(),
            _memory: memory,
        });
        let requests = Requests::new(Arc::new(rules), core.options.requests)?;
        let threads = core.options.encoder_threads;
        let for_worker = Arc::clone(&shared);
        core.run_on(shared.worker, move |worker| {
            let engine = Engine::new(&model, &for_worker.watch, threads)?;
            worker.sites.push(Site {
                shared: for_worker,
                model,
                engine,
                requests,
                table,
                ids: Ids::default(),
                taps: Vec::new(),
                recorder: None,
                recorded_before: (0, 0),
                text: Vec::new(),
            });
            Ok(())
        })?;
        lock(&core.sites).push(shared);
        drop(configuration);
        Ok(SiteId(number as u32))
    }

    /// Puts another model in force at a site, between two batches. The site's statistics start anew; windows of rules
    /// do, too. On any error the old model stays in force.
    ///
    /// # Errors
    /// As [`Monitor::add_site`]; [`Status::InvalidArgument`] if the site has no model, the width is another, or a rule in
    /// force does not fit the new model.
    pub fn replace_sae(&self, site: SiteId, sae: Arc<Sae>) -> Result<()> {
        let core = self.core();
        core.check()?;
        refuse_on_worker()?;
        let shared = core.site(site.0)?;
        let configuration = lock(&core.configuration);
        let before = shared.model();
        if before.sae.is_none() {
            return Err(Error::invalid(format!("site {} was made without a model; add a site with one", shared.name)));
        }
        if sae.config().d_model != shared.d_model {
            return Err(Error::invalid(format!(
                "site {}: the new model has d_model {}, the site's activations {}",
                shared.name,
                sae.config().d_model,
                shared.d_model
            )));
        }
        let model = prepare(core, &shared.name, shared.layer, shared.any_layer, &shared.watch, Some(sae))?;
        let rules = Arc::new(compile(&configuration.rules, &shared.name, &model, &shared.watch)?);
        let model = Arc::new(model);
        let threads = core.options.encoder_threads;
        core.run_on(shared.worker, move |worker| {
            let site = worker.site(site.0)?;
            let engine = Engine::new(&model, &site.shared.watch, threads)?;
            site.requests.set_rules(Arc::clone(&rules))?;
            let table = Arc::new(RuleTable::new(&rules, &site.table));
            *lock(&site.shared.model) = Arc::clone(&model);
            *lock(&site.shared.rules) = Arc::clone(&table);
            *lock(&site.shared.rule_latents) = rules.latents().into();
            (site.model, site.engine, site.table) = (model, engine, table);
            Ok(())
        })
    }

    /// Puts rules in force at all sites; none of them if any does not fit. Windows start anew. Rules that keep their name
    /// keep their counts.
    ///
    /// # Errors
    /// [`Status::InvalidArgument`] or [`Status::Format`] naming what does not fit: the old rules stay in force. Others as
    /// [`Monitor::add_site`].
    pub fn set_rules(&self, rules: &Rules) -> Result<()> {
        let core = self.core();
        core.check()?;
        refuse_on_worker()?;
        let mut configuration = lock(&core.configuration);
        let sites = lock(&core.sites).clone();
        for (named, rule) in rules.sites() {
            if !sites.iter().any(|site| *site.name == *named) {
                let known: Vec<&str> = sites.iter().map(|site| &*site.name).collect();
                return Err(Error::invalid(format!(
                    "rule `{rule}` is for site `{named}`, which there is not; there are: {}",
                    known.join(", ")
                )));
            }
        }
        let mut compiled = Vec::new();
        for site in &sites {
            compiled.push(Arc::new(compile(rules, &site.name, &site.model(), &site.watch)?));
        }
        for (site, rules) in sites.iter().zip(compiled) {
            let number = site.number;
            core.run_on(site.worker, move |worker| {
                let site = worker.site(number)?;
                site.requests.set_rules(Arc::clone(&rules))?;
                let table = Arc::new(RuleTable::new(&rules, &site.table));
                *lock(&site.shared.rules) = Arc::clone(&table);
                *lock(&site.shared.rule_latents) = rules.latents().into();
                site.table = table;
                Ok(())
            })?;
        }
        configuration.rules = rules.clone();
        Ok(())
    }

    /// A tap into a site. Its memory is taken here.
    ///
    /// # Errors
    /// [`Status::InvalidArgument`] for an extent of 0, [`Status::OutOfMemory`], the limit of memory included;
    /// [`Status::Stopped`], [`Status::Poisoned`], [`Status::Forked`].
    pub fn tap(&self, site: SiteId, options: TapOptions) -> Result<Tap> {
        let core = self.core();
        core.check()?;
        let site = core.site(site.0)?;
        if options.sampling == super::Sampling::EveryNth(0) {
            return Err(Error::invalid("sampling every 0th token; expected every n-th with n of at least 1"));
        }
        let bytes = Ring::bytes(options.capacity, options.controls, site.d_model, options.dtype);
        let memory = core.budget.reserve(bytes.unwrap_or(usize::MAX), "a tap's queue")?;
        let (producer, consumer, ring) = Ring::new(options.capacity, options.controls, site.d_model, options.dtype)?;
        let number = core.taps.fetch_add(1, Ordering::Relaxed);
        let shared = Arc::new(TapShared::new(number, ring, &options, memory));
        lock(&site.taps).live.push(Arc::clone(&shared));
        let (for_worker, at) = (Arc::clone(&shared), site.number);
        let sent = core.workers[site.worker].send(Box::new(move |worker| {
            if let Ok(site) = worker.site(at) {
                site.taps.push((consumer, for_worker));
            }
        }));
        if let Err(error) = sent {
            lock(&site.taps).live.retain(|tap| tap.number != number);
            return Err(error);
        }
        Ok(Tap::new(Arc::clone(core), site, shared, producer))
    }

    /// Takes up to `most` waiting events, the oldest first; waits up to `timeout` for the first. Without waiting, and
    /// empty, once the monitor has ended. While a callback is set, events go to it instead.
    ///
    /// # Errors
    /// [`Status::Forked`].
    pub fn poll_events(&self, most: usize, timeout: Duration) -> Result<Vec<Event>> {
        self.core().fork.check()?;
        Ok(self.core().events.poll(most, timeout))
    }

    /// Up to `most` of the events kept for readers, those with an id above `since`, the oldest first; whether or not they
    /// were polled.
    #[must_use]
    pub fn recent_events(&self, since: u64, most: usize) -> Vec<Event> {
        if self.is_forked() {
            return Vec::new();
        }
        self.core().events.since(since, most)
    }

    /// Has each event handed to `callback` on the worker's thread, in place of the queue for [`Monitor::poll_events`].
    /// What it takes the worker cannot encode; a callback that blocks makes queues fill and tokens drop, and nothing
    /// worse. When this returns, the former callback is not running any more, unless this is called by a callback.
    ///
    /// # Errors
    /// [`Status::Forked`].
    ///
    /// # Panics
    /// Not here; a panic in the callback is the worker's, and the monitor has failed then.
    pub fn set_event_callback(&self, callback: Option<EventCallback>) -> Result<()> {
        self.core().fork.check()?;
        self.core().events.set_callback(callback, (!is_worker()).then_some(Duration::MAX));
        Ok(())
    }

    /// Lets text appear: `text(token, buffer)` appends the token's bytes. It is called from any thread that reads recent
    /// tokens, and from workers that record text; never by a tap.
    ///
    /// # Errors
    /// [`Status::Forked`].
    pub fn set_token_text(&self, text: Option<TokenText>) -> Result<()> {
        self.core().fork.check()?;
        self.core().set_text(text);
        Ok(())
    }

    /// Names a site's latents.
    ///
    /// # Errors
    /// [`Status::InvalidArgument`] if there is no such site, or a label is for a latent that its model does not have;
    /// [`Status::Forked`].
    pub fn set_labels(&self, site: SiteId, labels: Labels) -> Result<()> {
        self.core().fork.check()?;
        let site = self.core().site(site.0)?;
        if let Some(sae) = &site.model().sae {
            labels.fit(sae.config().encoder.latents())?;
        }
        *lock(&site.labels) = Some(Arc::new(labels));
        Ok(())
    }

    /// Everything there is to know now. Workers are not held up. In a child process: stopped, with no sites.
    #[must_use]
    pub fn snapshot(&self) -> Snapshot {
        picture::of(self.core())
    }

    /// Up to `most` of a site's last tokens, those with a sequence number above `since`, the oldest first; with their text
    /// where [`Monitor::set_token_text`] lets it appear. Empty if there is no such site, and in a child process.
    #[must_use]
    pub fn recent_tokens(&self, site: SiteId, since: u64, most: usize) -> Vec<RecentToken> {
        let core = self.core();
        if core.fork.is_forked() {
            return Vec::new();
        }
        let Ok(site) = core.site(site.0) else { return Vec::new() };
        let mut tokens = site.recent.read(since, most);
        let mut bytes = Vec::new();
        for token in &mut tokens {
            if core.text_of(token.tag.token, &mut bytes) {
                // A token may be a part of a character.
                token.text = Some(String::from_utf8_lossy(&bytes).into());
            }
        }
        tokens
    }

    /// Bytes of queues and state now; models are not counted.
    #[must_use]
    pub fn memory(&self) -> usize {
        self.core().budget.used()
    }

    /// Records what a site's taps hand over, from the next batch on.
    ///
    /// # Errors
    /// Those of [`Recorder::new`]; [`Status::InvalidArgument`] if the site records already; others as
    /// [`Monitor::add_site`].
    pub fn record(&self, site: SiteId, options: RecorderOptions) -> Result<()> {
        let core = self.core();
        core.check()?;
        refuse_on_worker()?;
        let shared = core.site(site.0)?;
        let text = options.text;
        let recorder = Recorder::new(options, shared.d_model)?;
        let memory = core.budget.reserve(recorder.bytes(), "a recorder")?;
        core.run_on(shared.worker, move |worker| {
            let site = worker.site(site.0)?;
            if site.recorder.is_some() {
                return Err(Error::invalid(format!("site {} records already", site.shared.name)));
            }
            site.recorder = Some(Recording { recorder, text, _memory: memory });
            Ok(())
        })
    }

    /// Ends a site's recording and closes its last shard; nothing, if it does not record.
    ///
    /// # Errors
    /// [`Status::Io`] if the last shard could not be written; others as [`Monitor::add_site`].
    pub fn stop_recording(&self, site: SiteId) -> Result<()> {
        let core = self.core();
        core.check()?;
        let shared = core.site(site.0)?;
        core.run_on(shared.worker, move |worker| worker.site(site.0)?.close_recorder())
    }

    /// Waits until everything that was queued before this call has been taken: statistics, events and callbacks included.
    ///
    /// # Errors
    /// [`Status::Timeout`]; [`Status::Stopped`], [`Status::Poisoned`], [`Status::Forked`]; [`Status::InvalidArgument`] on a
    /// worker's own thread.
    pub fn flush(&self, timeout: Duration) -> Result<()> {
        let core = self.core();
        core.fork.check()?;
        refuse_on_worker()?;
        let end = Instant::now().checked_add(timeout);
        let mut goals = Vec::new();
        for site in lock(&core.sites).iter() {
            for tap in &lock(&site.taps).live {
                goals.push((Arc::clone(&tap.ring), tap.ring.published(), tap.ring.controls().0));
            }
        }
        let mut pause = Duration::from_micros(50);
        loop {
            goals.retain(|(ring, tokens, controls)| ring.released() < *tokens || ring.controls().1 < *controls);
            if goals.is_empty() {
                return Ok(());
            }
            core.check()?;
            let left = end.map_or(pause, |end| end.saturating_duration_since(Instant::now()));
            if left.is_zero() {
                let message = format!("{} queues were not emptied within {timeout:?}; wait again", goals.len());
                return Err(Error::new(Status::Timeout, message));
            }
            std::thread::sleep(pause.min(left));
            pause = (2 * pause).min(Duration::from_millis(2));
        }
    }

    /// Stops: taps return [`Status::Stopped`] from now on, what is queued is still taken, recorders are closed, workers end.
    /// Snapshots and events remain readable. Again, or after a failure: nothing, successfully.
    ///
    /// # Errors
    /// [`Status::Timeout`] if workers are still at it: they go on, and this may be called again. [`Status::Forked`];
    /// [`Status::InvalidArgument`] on a worker's own thread.
    pub fn stop(&self, timeout: Duration) -> Result<()> {
        let core = self.core();
        core.fork.check()?;
        refuse_on_worker()?;
        core.change(&[RUNNING], DRAINING);
        if !core.wait_for_end(timeout) {
            return Err(Error::new(
                Status::Timeout,
                format!("workers did not come to the end of their queues within {timeout:?}; they go on, stop again"),
            ));
        }
        core.change(&[DRAINING, ABANDONED], STOPPED);
        core.events.close();
        self.handle.join();
        Ok(())
    }
}

impl Handle {
    fn join(&self) {
        for thread in lock(&self.threads).drain(..) {
            // Panics were caught and told; the thread is at its very end.
            let _ = thread.join();
        }
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        if self.core.fork.is_forked() {
            // Locks inside may have been held by threads that do not exist here, and there is nobody to join. Leaving
            // the memory is safe.
            let threads = self.threads.get_mut().unwrap_or_else(std::sync::PoisonError::into_inner);
            std::mem::take(threads).into_iter().for_each(std::mem::forget);
            return;
        }
        self.core.change(&[RUNNING, DRAINING], ABANDONED);
        self.core.events.close();
        if !is_worker() && self.core.wait_for_end(PARTING) {
            self.core.change(&[ABANDONED], STOPPED);
            self.join();
        }
        // Else by a callback, or while one does not return: threads end by themselves, holding what they need.
        self.core.events.set_callback(None, None);
        self.core.set_text(None);
        // SAFETY: dropped once, here, and not used afterwards.
        unsafe { std::mem::ManuallyDrop::drop(&mut self.core) };
    }
}

/// d_model of a new site.
fn width(options: &SiteOptions, sae: Option<&Sae>) -> Result<usize> {
    match (sae.map(|sae| sae.config().d_model), options.d_model) {
        (Some(of_model), 0) => Ok(of_model),
        (Some(of_model), given) if of_model == given => Ok(given),
        (Some(of_model), given) => Err(Error::invalid(format!(
            "site {}: the model has d_model {of_model}, the site was given {given}",
            options.name
        ))),
        (None, 0) => Err(Error::invalid(format!("site {} has no model: it needs a d_model", options.name))),
        (None, _) if !options.watch.is_empty() => {
            Err(Error::invalid(format!("site {} has no model: there is nothing to watch", options.name)))
        }
        (None, given) => Ok(given),
    }
}

/// A model ready to be put in force. What takes long happens here, on the caller's thread: its hash, and what encoders
/// derive from its weights.
fn prepare(
    core: &Core,
    site: &str,
    layer: Option<u32>,
    any_layer: bool,
    watch: &[u32],
    sae: Option<Arc<Sae>>,
) -> Result<Model> {
    let (way, rule) = Model::way(sae.as_deref(), watch);
    let Some(sae) = sae else {
        let memory = core.budget.reserve(0, "nothing")?;
        let id = ModelId([0; 8]);
        return Ok(Model { sae: None, id, way, rule, statistics: None, capacity: 0, _memory: memory });
    };
    check_layer(site, layer, any_layer, &sae)?;
    Model::check_watch(&sae, watch)?;
    let only = (way == super::site::Way::Watch).then(|| Box::<[u32]>::from(watch));
    let counted = only.as_ref().map_or(sae.config().encoder.latents(), |only| only.len());
    let capacity = only.as_ref().map_or(sae.config().selection.capacity(), |only| only.len());
    let engine = Engine::bytes(&sae, way, watch.len(), capacity, core.options.encoder_threads);
    let memory = core.budget.reserve(Statistics::bytes(counted).saturating_add(engine), &format!("site {site}"))?;
    let id = sae.model_id()?;
    // Made only to derive what its twin on the worker then finds; its own workspace goes at once.
    match &only {
        Some(only) => drop(Watch::new(Arc::clone(&sae), only)?),
        None => drop(Encoder::new(Arc::clone(&sae), EncoderOptions::default())?),
    }
    let statistics = Some(Statistics::new(Arc::clone(&sae), only, core.options.half_life_tokens)?);
    Ok(Model { sae: Some(sae), id, way, rule, statistics, capacity, _memory: memory })
}

/// Rules bound to a site and its model.
fn compile(rules: &Rules, site: &str, model: &Model, watch: &[u32]) -> Result<SiteRules> {
    let Some(sae) = &model.sae else { return Ok(SiteRules::empty()) };
    let compiled = SiteRules::compile(rules, site, sae)?;
    check_rules_are_watched(site, model.way, watch, &compiled)?;
    Ok(compiled)
}
