//! A monitor as its host holds it.

use super::encode::{Engine, Recording, Site};
use super::event::Event;
use super::events::{EventCallback, Ids};
use super::histogram::Durations;
use super::intake::Intake;
use super::labels::Labels;
use super::options::{MonitorOptions, SiteOptions, TapOptions};
use super::picture;
use super::prepare::{ReadyRules, compile, distinct, latents_of_events, prepare, width};
use super::recent::Recent;
use super::recorder::{Recorder, RecorderOptions};
use super::requests::{Prepared, Requests};
use super::ring::Ring;
use super::rules::Rules;
use super::serve::Source;
use super::shared::{ABANDONED, Core, DRAINING, Notice, RUNNING, STOPPED, TokenText, is_worker, refuse_on_worker};
use super::site::{Gauges, RuleTable, SiteShared, TapShared, Taps, check_name, layer_of, lock};
use super::snapshot::{MonitorStatus, RecentToken, RecordingStatus, Snapshot, State, UnboundRule};
use super::tap::Tap;
use super::worker;
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

    pub(super) fn core(&self) -> &Arc<Core> {
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
        let watch = distinct(&options.watch);
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
        let prepared = prepare(core, &options.name, options.layer, options.any_layer, &watch, sae)?;
        let rules = Arc::new(compile(&configuration.rules, &options.name, &prepared, &watch)?);
        if let (Some(labels), Some(sae)) = (&options.labels, &prepared.sae) {
            labels.fit(sae.config().encoder.latents())?;
        }
        let kept = if prepared.sae.is_some() { core.options.recent_tokens } else { 0 };
        let rules_bytes = Prepared::bytes_for(&rules, core.options.requests);
        let bytes = Recent::bytes(kept, prepared.capacity)
            .saturating_add(Requests::bytes_for(&rules, core.options.requests) - rules_bytes)
            .saturating_add(Ids::bytes());
        let memory = core.budget.reserve(bytes, &format!("site {}", options.name))?;
        let rules_bytes = rules_bytes.saturating_add(latents_of_events(core, &rules));
        let rules_memory = core.budget.reserve(rules_bytes, &format!("the rules of site {}", options.name))?;
        let table = Arc::new(RuleTable::new(&rules, &RuleTable::default()));
        let model = Arc::new(prepared);
        let shared = Arc::new(SiteShared {
            number: number as u32,
            name: options.name.as_str().into(),
            layer,
            any_layer: options.any_layer,
            d_model,
            worker: number % core.workers.len(),
            watch: watch.into(),
            recent: Recent::new(kept, model.capacity)?,
            model: Mutex::new(Arc::clone(&model)),
            rules: Mutex::new(Arc::clone(&table)),
            rule_latents: Mutex::new(rules.latents().into()),
            labels: Mutex::new(options.labels.map(Arc::new)),
            taps: Mutex::new(Taps::default()),
            latency: Durations::new(&core.options.latency_bounds),
            encode: Durations::new(&core.options.latency_bounds),
            gauges: Gauges::default(),
            #[cfg(any(feature = "cuda", feature = "cuda-emulation"))]
            devices: super::device::Devices::default(),
            _memory: memory,
        });
        let requests = Requests::new(rules, core.options.requests)?;
        let threads = core.options.encoder_threads;
        let for_worker = Arc::clone(&shared);
        core.run_on(shared.worker, move |worker| {
            let engine = Engine::new(&model, &for_worker.watch, threads)?;
            worker.sites.push(Site {
                shared: for_worker,
                model,
                engine,
                requests,
                rules_memory,
                table,
                ids: Ids::default(),
                taps: Vec::new(),
                recorder: None,
                recorded_before: (0, 0),
                text: Vec::new(),
            });
            Ok(())
        })?;
        lock(&core.unbound).retain(|rule| *rule.site != *shared.name);
        lock(&core.sites).push(shared);
        drop(configuration);
        Ok(SiteId(number as u32))
    }

    /// Puts another model in force at a site, between two batches. The site's statistics start anew; windows of rules
    /// do, too. On any error the old model stays in force.
    ///
    /// Where the site has `DeviceTap`s, the model is copied to their devices first. What the old one has encoded there and
    /// is not on the host yet is counted as dropped.
    ///
    /// # Errors
    /// As [`Monitor::add_site`]; [`Status::InvalidArgument`] if the site has no model, the width is another, or a rule in
    /// force does not fit the new model; with device taps [`Status::Unsupported`], [`Status::OutOfMemory`] and
    /// [`Status::Internal`] of their devices.
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
        let rules = ReadyRules::new(core, &shared.name, rules)?;
        let model = Arc::new(model);
        let threads = core.options.encoder_threads;
        #[cfg(any(feature = "cuda", feature = "cuda-emulation"))]
        let mut lanes = shared.devices.lanes(core, &shared.name, model.sae.as_ref())?;
        let for_worker = Arc::clone(core);
        let replaced = core.run_on(shared.worker, move |worker| {
            let site = worker.site(site.0)?;
            let engine = Engine::new(&model, &site.shared.watch, threads)?;
            site.take_arrived(&for_worker)?;
            *lock(&site.shared.model) = Arc::clone(&model);
            (site.model, site.engine) = (model, engine);
            rules.install(site);
            #[cfg(any(feature = "cuda", feature = "cuda-emulation"))]
            {
                super::device::Devices::install(&mut lanes);
                Ok(lanes)
            }
            #[cfg(not(any(feature = "cuda", feature = "cuda-emulation")))]
            Ok(())
        });
        // What device taps had before goes here, since that may wait for a device.
        replaced.map(drop)
    }

    /// Puts rules in force at all sites; none of them if any does not fit. Windows start anew. Rules that keep their name
    /// keep their counts.
    ///
    /// A rule may name a site that there is not yet: it waits, and is checked when [`Monitor::add_site`] adds a site of
    /// that name; [`Monitor::unbound_rules`] and snapshots show it until then.
    ///
    /// # Errors
    /// [`Status::InvalidArgument`] or [`Status::Format`] naming what does not fit: the old rules stay in force. Others as
    /// [`Monitor::add_site`]; while the new rules are put in force, the limit of memory counts them and the old ones.
    pub fn set_rules(&self, rules: &Rules) -> Result<()> {
        let core = self.core();
        core.check()?;
        refuse_on_worker()?;
        let mut configuration = lock(&core.configuration);
        let sites = lock(&core.sites).clone();
        let unbound: Vec<UnboundRule> = rules
            .sites()
            .filter(|(named, _)| !sites.iter().any(|site| *site.name == **named))
            .map(|(named, rule)| UnboundRule { rule: Arc::clone(rule), site: named.into() })
            .collect();
        // All that can fail for want of sense or memory comes before the first change.
        let ready = |rules: &Rules, site: &SiteShared| {
            ReadyRules::new(core, &site.name, Arc::new(compile(rules, &site.name, &site.model(), &site.watch)?))
        };
        let all = sites.iter().map(|site| ready(rules, site)).collect::<Result<Vec<_>>>()?;
        let put = |site: &SiteShared, rules: ReadyRules| {
            let number = site.number;
            core.run_on(site.worker, move |worker| {
                rules.install(worker.site(number)?);
                Ok(())
            })
        };
        for (at, (site, new)) in sites.iter().zip(all).enumerate() {
            if let Err(error) = put(site, new) {
                // A worker that is stuck, or has ended. The others get their old rules back, as far as they take them.
                for changed in &sites[..at] {
                    let _ = ready(&configuration.rules, changed).and_then(|old| put(changed, old));
                }
                return Err(error);
            }
        }
        configuration.rules = rules.clone();
        *lock(&core.unbound) = unbound;
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
        options.validate()?;
        let bytes = Ring::bytes(options.capacity, options.controls, site.d_model, options.dtype);
        let memory = core.budget.reserve(bytes.unwrap_or(usize::MAX), "a tap's queue")?;
        let (producer, consumer, ring) = Ring::new(options.capacity, options.controls, site.d_model, options.dtype)?;
        let number = core.taps.fetch_add(1, Ordering::Relaxed);
        let shared = Arc::new(TapShared::new(number, ring, options.capacity, options.sampling, memory));
        lock(&site.taps).live.push(Arc::clone(&shared));
        let (for_worker, at) = (Arc::clone(&shared), site.number);
        let sent = core.workers[site.worker].send(Box::new(move |worker| {
            if let Ok(site) = worker.site(at) {
                site.taps.push(Intake::new(consumer, for_worker, None));
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
        Ok(self.core().events.poll(most, timeout).0)
    }

    /// As [`Monitor::poll_events`], and whether no event is left and none will come.
    ///
    /// # Errors
    /// [`Status::Forked`].
    pub(crate) fn poll_events_or_end(&self, most: usize, timeout: Duration) -> Result<(Vec<Event>, bool)> {
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

    /// Has `notice` told, once each and on a worker's thread, of what goes wrong with no call to return an error from: a
    /// device that failed under a `DeviceTap`, say.
    ///
    /// # Errors
    /// [`Status::Forked`].
    pub fn set_notice(&self, notice: Option<Notice>) -> Result<()> {
        self.core().fork.check()?;
        self.core().set_notice(notice);
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

    /// The label of a site's latent; `None` where it has none, there is no such site, and in a child process.
    #[must_use]
    pub fn label(&self, site: SiteId, latent: u32) -> Option<Arc<str>> {
        if self.is_forked() {
            return None;
        }
        let site = self.core().site(site.0).ok()?;
        let labels = lock(&site.labels).clone();
        labels?.get(latent).cloned()
    }

    /// What it is doing. In a child process: stopped.
    #[must_use]
    pub fn state(&self) -> State {
        picture::state(self.core())
    }

    /// Its state, its counters and what it costs: unlike [`Monitor::snapshot`] it reads no statistics, and so takes time
    /// for the number of taps alone. In a child process: stopped, all counters 0.
    #[must_use]
    pub fn status(&self) -> MonitorStatus {
        picture::status(self.core())
    }

    /// How far a site's recordings are.
    ///
    /// # Errors
    /// [`Status::InvalidArgument`] if there is no such site; [`Status::Forked`].
    pub fn recording(&self, site: SiteId) -> Result<RecordingStatus> {
        self.core().fork.check()?;
        let site = self.core().site(site.0)?;
        let gauges = &site.gauges;
        Ok(RecordingStatus {
            recording: gauges.recording.load(Ordering::Relaxed),
            written: gauges.recorded.load(Ordering::Relaxed),
            failures: gauges.record_failures.load(Ordering::Relaxed),
        })
    }

    /// Of the rules in force, those for sites that there are not (yet). None in a child process.
    #[must_use]
    pub fn unbound_rules(&self) -> Vec<UnboundRule> {
        if self.is_forked() {
            return Vec::new();
        }
        lock(&self.core().unbound).clone()
    }

    /// The layer of a site, where the host or the model file says it.
    pub(crate) fn layer(&self, site: SiteId) -> Result<Option<u32>> {
        Ok(self.core().site(site.0)?.layer)
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
        self.with_text(site.recent.read(since, most))
    }

    fn with_text(&self, mut tokens: Vec<RecentToken>) -> Vec<RecentToken> {
        let core = self.core();
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

    /// Bytes of devices' memory now, for device taps: buffers, workspaces, and the models' copies there.
    #[must_use]
    pub fn device_memory(&self) -> usize {
        self.core().device_budget.used()
    }

    /// Records what a site's taps hand over, from the next batch on.
    ///
    /// # Errors
    /// Those of [`Recorder::new`]; [`Status::InvalidArgument`] if the site records already; [`Status::Unsupported`] if it
    /// has `DeviceTap`s, whose activations never reach the host; others as [`Monitor::add_site`].
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
            if site.taps.iter().any(|intake| intake.latents.is_some()) {
                return Err(Error::new(
                    Status::Unsupported,
                    format!(
                        "site {} has taps whose activations stay on a device; record at a site of its own, whose taps \
                         take them from the host's memory",
                        site.shared.name
                    ),
                ));
            }
            site.recorder = Some(Recording { recorder, text, _memory: memory });
            site.gauges();
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

/// A monitor as its live page asks it.
impl Source for Monitor {
    fn snapshot(&self) -> Snapshot {
        Monitor::snapshot(self)
    }

    fn recent(&self, site: u32, since: u64, most: usize) -> Vec<RecentToken> {
        if self.is_forked() {
            return Vec::new();
        }
        let Ok(site) = self.core().site(site) else { return Vec::new() };
        let since = since.max(site.recent.count().saturating_sub(most as u64));
        self.with_text(site.recent.read(since, most))
    }

    fn events(&self, since: u64, most: usize) -> Vec<Event> {
        if self.is_forked() {
            return Vec::new();
        }
        self.core().events.latest(since, most)
    }

    fn label(&self, site: u32, latent: u32) -> Option<Arc<str>> {
        Monitor::label(self, SiteId(site), latent)
    }
}
