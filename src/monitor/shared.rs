//! What a monitor's handles, taps and workers share.

use super::events::Events;
use super::fork::ForkMark;
use super::memory::{Budget, Reserved};
use super::options::MonitorOptions;
use super::rules::Rules;
use super::site::{SiteShared, lock};
use super::snapshot::UnboundRule;
use super::wake::Wake;
use super::worker::Worker;
use crate::error::{Error, Result, Status};
use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering};
use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::sync::{Arc, Condvar, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

/// Is told, in a sentence, of what goes wrong with nobody there to return an error to.
pub type Notice = Box<dyn Fn(&str) + Send + Sync>;

/// Gives a token's bytes: appends them to the buffer.
pub type TokenText = Box<dyn Fn(i32, &mut Vec<u8>) + Send + Sync>;

pub(crate) const RUNNING: u8 = 1;
pub(crate) const STOPPED: u8 = 2;
pub(crate) const FAILED: u8 = 3;
/// Workers take what is queued, and end.
pub(crate) const DRAINING: u8 = 4;
/// Workers end as soon as they can.
pub(crate) const ABANDONED: u8 = 5;

/// How long a change of settings waits for a worker that is busy: in a callback of the host, say.
const PATIENCE: Duration = Duration::from_secs(60);

/// Something that a worker does between two batches.
pub(crate) type Command = Box<dyn FnOnce(&mut Worker) + Send>;

/// One worker as others see it.
#[derive(Default)]
pub(crate) struct WorkerShared {
    pub(crate) wake: OnceLock<Wake>,
    /// None once the worker has ended.
    commands: Mutex<Option<VecDeque<Command>>>,
    waiting: AtomicBool,
    pub(crate) ended: AtomicBool,
    pub(crate) cpu_nanos: AtomicU64,
}

impl WorkerShared {
    pub(crate) fn new() -> Self {
        WorkerShared { commands: Mutex::new(Some(VecDeque::new())), ..Default::default() }
    }

    /// Whether commands wait.
    pub(crate) fn has_commands(&self) -> bool {
        self.waiting.load(Ordering::Acquire)
    }

    pub(crate) fn take_command(&self) -> Option<Command> {
        let mut commands = lock(&self.commands);
        let command = commands.as_mut()?.pop_front();
        if command.is_none() {
            self.waiting.store(false, Ordering::Release);
        }
        command
    }

    /// # Errors
    /// [`Status::Stopped`] once the worker has ended.
    pub(crate) fn send(&self, command: Command) -> Result<()> {
        let mut commands = lock(&self.commands);
        let Some(queue) = commands.as_mut() else { return Err(stopped()) };
        queue.push_back(command);
        self.waiting.store(true, Ordering::Release);
        drop(commands);
        self.rouse();
        Ok(())
    }

    pub(crate) fn rouse(&self) {
        if let Some(wake) = self.wake.get() {
            wake.wake();
        }
    }

    /// Refuses further commands; those waiting are dropped, which tells who waits for them.
    pub(crate) fn end(&self) {
        let commands = lock(&self.commands).take();
        drop(commands);
        self.ended.store(true, Ordering::Release);
    }
}

/// What is read and changed by configuration calls alone, one at a time.
pub(crate) struct Configuration {
    pub(crate) rules: Rules,
}

/// The middle of a monitor.
pub(crate) struct Core {
    pub(crate) options: MonitorOptions,
    pub(crate) fork: ForkMark,
    pub(crate) start: Instant,
    state: AtomicU8,
    failure: Mutex<Option<String>>,
    pub(crate) budget: Arc<Budget>,
    /// Of devices' memory.
    pub(crate) device_budget: Arc<Budget>,
    pub(crate) events: Events,
    text: Mutex<Option<Arc<TokenText>>>,
    notice: Mutex<Option<Arc<Notice>>>,
    pub(crate) sites: Mutex<Vec<Arc<SiteShared>>>,
    pub(crate) configuration: Mutex<Configuration>,
    /// Of the rules in force, those for sites that there are not. Changed under the lock of `configuration`.
    pub(crate) unbound: Mutex<Vec<UnboundRule>>,
    pub(crate) workers: Box<[WorkerShared]>,
    pub(crate) taps: AtomicU32,
    /// Workers that have not ended.
    alive: Mutex<usize>,
    one_ended: Condvar,
    _memory: Reserved,
}

impl std::fmt::Debug for Core {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Core({} workers, state {})", self.workers.len(), self.state())
    }
}

thread_local! {
    /// Whether this thread is a worker: it cannot wait for itself.
    static IS_WORKER: std::cell::Cell<bool> = const { std::cell::Cell::new(false) };
}

/// Says that the calling thread is a worker.
pub(crate) fn this_is_a_worker() {
    IS_WORKER.set(true);
}

/// Whether the calling thread is a worker, of any monitor.
pub(crate) fn is_worker() -> bool {
    IS_WORKER.get()
}

pub(crate) fn stopped() -> Error {
    Error::new(Status::Stopped, "the monitor was stopped; make a new one")
}

impl Core {
    pub(crate) fn new(options: MonitorOptions) -> Result<Self> {
        let budget = Budget::new(options.memory_limit);
        let memory = budget.reserve(Events::bytes(options.events), "the event queue")?;
        Ok(Core {
            fork: ForkMark::new(),
            start: Instant::now(),
            state: AtomicU8::new(RUNNING),
            failure: Mutex::new(None),
            budget,
            device_budget: Budget::new(None),
            events: Events::new(options.events),
            text: Mutex::new(None),
            notice: Mutex::new(None),
            sites: Mutex::new(Vec::new()),
            configuration: Mutex::new(Configuration { rules: Rules::default() }),
            unbound: Mutex::new(Vec::new()),
            workers: (0..options.workers).map(|_| WorkerShared::new()).collect(),
            taps: AtomicU32::new(0),
            alive: Mutex::new(options.workers),
            one_ended: Condvar::new(),
            options,
            _memory: memory,
        })
    }

    #[inline]
    pub(crate) fn state(&self) -> u8 {
        self.state.load(Ordering::Acquire)
    }

    /// The monitor's clock: nanoseconds since it was made.
    #[inline]
    pub(crate) fn nanos(&self) -> u64 {
        self.start.elapsed().as_nanos() as u64
    }

    /// Goes from one state to another, if it is in it, and tells the workers.
    pub(crate) fn change(&self, from: &[u8], to: u8) -> bool {
        let changed = self
            .state
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, |state| from.contains(&state).then_some(to))
            .is_ok();
        if changed {
            self.workers.iter().for_each(WorkerShared::rouse);
        }
        changed
    }

    pub(crate) fn fail(&self, why: String) {
        lock(&self.failure).get_or_insert(why);
        self.change(&[RUNNING, DRAINING, ABANDONED], FAILED);
        self.events.close();
    }

    pub(crate) fn failure(&self) -> Option<String> {
        lock(&self.failure).clone()
    }

    /// # Errors
    /// [`Status::Forked`], [`Status::Stopped`], [`Status::Poisoned`] after a worker panicked.
    pub(crate) fn check(&self) -> Result<()> {
        self.fork.check()?;
        match self.state() {
            RUNNING => Ok(()),
            FAILED => Err(Error::new(
                Status::Poisoned,
                format!("the monitor failed: {}; make a new one", self.failure().unwrap_or_default()),
            )),
            _ => Err(stopped()),
        }
    }

    /// Runs `job` on a worker, between two batches, and waits for it.
    ///
    /// # Errors
    /// Those of `job`; [`Status::Timeout`] if the worker does not come to it, `job` will not run then;
    /// [`Status::Stopped`]; [`Status::InvalidArgument`] on a worker's own thread.
    pub(crate) fn run_on<T: Send + 'static>(
        &self,
        worker: usize,
        job: impl FnOnce(&mut Worker) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        refuse_on_worker()?;
        let (sender, receiver) = sync_channel(1);
        // Whoever takes it first: the worker to run the job, or the caller to call it off.
        let taken = Arc::new(AtomicBool::new(false));
        let by_worker = Arc::clone(&taken);
        self.workers[worker].send(Box::new(move |worker| {
            if !by_worker.swap(true, Ordering::AcqRel) {
                // The caller is still there: it does not leave while the job runs.
                let _ = sender.send(job(worker));
            }
        }))?;
        match receiver.recv_timeout(PATIENCE) {
            Ok(done) => done,
            Err(RecvTimeoutError::Timeout) if !taken.swap(true, Ordering::AcqRel) => Err(Error::new(
                Status::Timeout,
                format!("worker {worker} was busy for {} s (in a callback?); nothing was changed", PATIENCE.as_secs()),
            )),
            Err(RecvTimeoutError::Timeout) => receiver.recv().unwrap_or_else(|_| Err(stopped())),
            Err(RecvTimeoutError::Disconnected) => {
                self.check()?;
                Err(stopped())
            }
        }
    }

    /// Says that a worker's thread is at its end.
    pub(crate) fn ended(&self, worker: usize) {
        self.workers[worker].end();
        *lock(&self.alive) -= 1;
        self.one_ended.notify_all();
    }

    /// Waits until all workers have ended; false if `timeout` was over first.
    pub(crate) fn wait_for_end(&self, timeout: Duration) -> bool {
        let end = Instant::now().checked_add(timeout);
        let mut alive = lock(&self.alive);
        while *alive > 0 {
            let left = end.map_or(Duration::from_secs(3600), |end| end.saturating_duration_since(Instant::now()));
            if left.is_zero() {
                return false;
            }
            alive = self.one_ended.wait_timeout(alive, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        true
    }

    pub(crate) fn set_text(&self, text: Option<TokenText>) {
        let former = std::mem::replace(&mut *lock(&self.text), text.map(Arc::new));
        // The host's own destructor may run here, without the lock.
        drop(former);
    }

    pub(crate) fn set_notice(&self, notice: Option<Notice>) {
        let former = std::mem::replace(&mut *lock(&self.notice), notice.map(Arc::new));
        // The host's own destructor may run here, without the lock.
        drop(former);
    }

    /// Tells the host of something, if it wants to know.
    pub(crate) fn notice(&self, text: &str) {
        let notice = lock(&self.notice).clone();
        if let Some(notice) = notice {
            notice(text);
        }
    }

    /// Puts a token's bytes into `out`; false where the host does not say.
    pub(crate) fn text_of(&self, token: i32, out: &mut Vec<u8>) -> bool {
        out.clear();
        if token < 0 {
            return false;
        }
        let callback = lock(&self.text).clone();
        callback.is_some_and(|callback| {
            callback(token, out);
            true
        })
    }

    /// The site with this number.
    ///
    /// # Errors
    /// [`Status::InvalidArgument`].
    pub(crate) fn site(&self, number: u32) -> Result<Arc<SiteShared>> {
        let sites = lock(&self.sites);
        sites
            .get(number as usize)
            .cloned()
            .ok_or_else(|| Error::invalid(format!("there is no site {number}; this monitor has {} sites", sites.len())))
    }
}

/// # Errors
/// [`Status::InvalidArgument`] on a worker's own thread, which would wait for itself.
pub(crate) fn refuse_on_worker() -> Result<()> {
    if is_worker() {
        return Err(Error::invalid("called from a callback on a worker's thread, which would wait for itself"));
    }
    Ok(())
}
