//! A fork-join pool for a guest in somebody else's process: never more threads than asked for, signals blocked but
//! for faults, named `kronsae-*`, asleep between calls, and no allocation in a call.

mod barrier;
mod claims;
mod divided;
mod process;

pub use claims::Claims;
pub use divided::Divided;
pub(crate) use process::{SignalsBlocked, process_id};

use crate::error::{Error, Result, Status};
use crate::float_env::FloatEnv;
use barrier::{Barrier, SPINS};
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

/// The work of one call, with its lifetime erased. Only alive while [`Pool::run`] or [`Pool::run_open`] waits for it.
#[derive(Clone, Copy)]
enum Job {
    /// Of all threads.
    All(*const (dyn Fn(Worker<'_>) + Sync)),
    /// Of those that come in time.
    Open(*const (dyn Fn(Member<'_>) + Sync)),
}
// SAFETY: the pointees are Sync, and the call keeps them alive until every worker that took one has left it.
unsafe impl Send for Job {}

struct State {
    /// Counts calls; a worker takes part in each once at most.
    call: u64,
    /// What there is to take part in.
    job: Option<Job>,
    /// Threads that take part in the current call, the caller's included.
    members: usize,
    /// Whether the caller sleeps until the others are done.
    waiting: bool,
    stop: bool,
}

struct Shared {
    state: Mutex<State>,
    wake: Condvar,
    done: Condvar,
    barrier: Barrier,
    /// Workers still inside the current call.
    running: AtomicUsize,
    /// Threads of an open call once it is closed; 0 before.
    team: AtomicUsize,
}

/// What a thread of a call knows of itself.
#[derive(Clone, Copy)]
pub struct Worker<'a> {
    /// 0 for the calling thread, then 1, 2, ...
    pub index: usize,
    /// Threads in this call.
    pub count: usize,
    barrier: &'a Barrier,
}

impl Worker<'_> {
    /// Waits until all threads of the call are here. What they wrote before is visible to all after.
    ///
    /// # Panics
    /// If another thread of the call has panicked, so that none waits for ever.
    pub fn wait(&self) {
        if self.count > 1 {
            self.barrier.wait(self.count);
        }
    }

    /// This thread's share of `0..total` in pieces that are multiples of `granule`, in order of thread.
    #[must_use]
    pub fn share(&self, total: usize, granule: usize) -> Range<usize> {
        let granules = total.div_ceil(granule);
        let at = |index: usize| (granules * index / self.count * granule).min(total);
        at(self.index)..at(self.index + 1)
    }
}

/// A thread of an open call, in which threads may still join: see [`Pool::run_open`].
#[derive(Clone, Copy)]
pub struct Member<'a> {
    /// 0 for the calling thread, then 1, 2, ... in the order in which they came.
    pub index: usize,
    shared: &'a Shared,
}

impl<'a> Member<'a> {
    /// Closes the call (the calling thread does, the others wait for it) and waits for all that have joined. From here on
    /// they are a fixed team.
    ///
    /// # Panics
    /// If another thread of the call has panicked.
    #[must_use]
    pub fn settle(self) -> Worker<'a> {
        let Shared { barrier, team, .. } = self.shared;
        if self.index == 0 {
            let mut state = lock(self.shared);
            state.job = None;
            team.store(state.members, Ordering::Release);
        }
        let mut spins = 0;
        let count = loop {
            match team.load(Ordering::Acquire) {
                0 => barrier.pause(&mut spins),
                count => break count,
            }
        };
        let worker = Worker { index: self.index, count, barrier };
        worker.wait();
        worker
    }

    /// Waits until `done` says so: what other members have claimed and not finished.
    ///
    /// # Panics
    /// If another thread of the call has panicked.
    pub fn wait_until(&self, done: impl Fn() -> bool) {
        let mut spins = 0;
        while !done() {
            self.shared.barrier.pause(&mut spins);
        }
    }
}

/// A pool of `threads - 1` workers and the thread that calls [`Pool::run`].
pub struct Pool {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
    process: libc::pid_t,
}

impl std::fmt::Debug for Pool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Pool({} threads)", self.threads())
    }
}

fn lock(shared: &Shared) -> MutexGuard<'_, State> {
    // No user code runs under the lock, so a poisoned state is whole.
    shared.state.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Pool {
    /// A pool that runs each call on `threads` threads, the caller's included; `purpose` ends up in their names.
    ///
    /// # Errors
    /// [`Status::InvalidArgument`] for 0 threads or more than 1,024, [`Status::OutOfMemory`] if the system gives no thread.
    pub fn new(threads: usize, purpose: &str) -> Result<Self> {
        if threads == 0 || threads > 1024 {
            return Err(Error::invalid(format!("threads = {threads}, expected 1 to 1024")));
        }
        let shared = Arc::new(Shared {
            state: Mutex::new(State { call: 0, job: None, members: 1, waiting: false, stop: false }),
            wake: Condvar::new(),
            done: Condvar::new(),
            barrier: Barrier::default(),
            running: AtomicUsize::new(0),
            team: AtomicUsize::new(0),
        });
        let mut pool = Pool { shared, workers: Vec::new(), process: process_id() };
        let _blocked = SignalsBlocked::enter();
        for index in 1..threads {
            let shared = Arc::clone(&pool.shared);
            let worker = std::thread::Builder::new()
                .name(format!("kronsae-{purpose}-{index}"))
                .spawn(move || work(&shared, index, threads))
                .map_err(|e| {
                    Error::new(Status::OutOfMemory, format!("cannot start thread {index} of {threads}: {e}"))
                })?;
            pool.workers.push(worker);
        }
        // A thread's own start allocates; once all have been here, no call does.
        pool.run(&|_| {})?;
        Ok(pool)
    }

    /// Threads of a call, the caller's included.
    #[must_use]
    pub fn threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// Whether this process is a fork of the one that made the pool, in which the workers do not exist.
    #[must_use]
    pub fn is_forked(&self) -> bool {
        process_id() != self.process
    }

    /// Runs `job` once on every thread, the caller's included, and returns when all have. Each computes in the
    /// canonical floating-point environment.
    ///
    /// # Errors
    /// [`Status::Forked`] in a child process.
    ///
    /// # Panics
    /// With the caller's panic, or with one of its own if another thread panicked.
    pub fn run(&mut self, job: &(dyn Fn(Worker<'_>) + Sync)) -> Result<()> {
        // SAFETY: only the lifetime is erased; `call` does not return before the last thread has left the job.
        let erased = unsafe {
            std::mem::transmute::<*const (dyn Fn(Worker<'_>) + Sync + '_), *const (dyn Fn(Worker<'_>) + Sync + 'static)>(
                job,
            )
        };
        let count = self.threads();
        self.call(Job::All(erased), |shared| job(Worker { index: 0, count, barrier: &shared.barrier }))
    }

    /// Runs `job` on the caller's thread at once, and on the others if they wake before it calls [`Member::settle`], as
    /// each must once. For work that starts with pieces to be claimed ([`Claims`]): waking a thread can take longer than a
    /// small encode, and one that is late then costs nothing.
    ///
    /// # Errors
    /// [`Status::Forked`] in a child process.
    ///
    /// # Panics
    /// As [`Pool::run`].
    pub fn run_open(&mut self, job: &(dyn Fn(Member<'_>) + Sync)) -> Result<()> {
        // SAFETY: as in `run`.
        let erased = unsafe {
            std::mem::transmute::<*const (dyn Fn(Member<'_>) + Sync + '_), *const (dyn Fn(Member<'_>) + Sync + 'static)>(
                job,
            )
        };
        self.call(Job::Open(erased), |shared| job(Member { index: 0, shared }))
    }

    /// One call: `mine` is the caller's part of `job`.
    fn call(&mut self, job: Job, mine: impl FnOnce(&Shared)) -> Result<()> {
        if self.is_forked() {
            return Err(Error::new(
                Status::Forked,
                "this object was made before fork(); make a new one in the child process",
            ));
        }
        let (count, shared) = (self.threads(), &*self.shared);
        let barrier = &shared.barrier;
        {
            let mut state = lock(shared);
            // No worker is inside a call, and none gets into this one before the lock is released.
            barrier.reset();
            shared.team.store(0, Ordering::Relaxed);
            state.members = 1;
            if count > 1 {
                state.call += 1;
                state.job = Some(job);
                if let Job::All(_) = job {
                    // All are counted on, whenever they come.
                    shared.running.store(count - 1, Ordering::Relaxed);
                }
            }
        }
        if count > 1 {
            shared.wake.notify_all();
        }
        let result = {
            let _env = FloatEnv::enter();
            catch_unwind(AssertUnwindSafe(|| mine(shared)))
        };
        if result.is_err() {
            barrier.give_up();
        }
        if count > 1 {
            if let Job::Open(_) = job {
                // Closed already, unless `mine` panicked first.
                lock(shared).job = None;
            }
            let mut spins = 0;
            while shared.running.load(Ordering::Acquire) > 0 && spins < SPINS {
                spins += 1;
                std::hint::spin_loop();
            }
            let mut state = lock(shared);
            state.waiting = true;
            while shared.running.load(Ordering::Acquire) > 0 {
                state = shared.done.wait(state).unwrap_or_else(PoisonError::into_inner);
            }
            state.waiting = false;
            state.job = None;
        }
        if let Err(panic) = result {
            resume_unwind(panic);
        }
        assert!(!barrier.is_given_up(), "a worker thread panicked");
        Ok(())
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        if self.is_forked() {
            // There is nobody to join; forget the handles rather than wait for threads of another process.
            std::mem::take(&mut self.workers).into_iter().for_each(std::mem::forget);
            return;
        }
        lock(&self.shared).stop = true;
        self.shared.wake.notify_all();
        for worker in self.workers.drain(..) {
            // A worker catches panics, so it cannot have failed; and a destructor has nobody to tell.
            let _ = worker.join();
        }
    }
}

fn work(shared: &Shared, index: usize, count: usize) {
    let mut seen = 0;
    loop {
        let (job, index) = {
            let mut state = lock(shared);
            loop {
                if state.stop {
                    return;
                }
                if state.call != seen {
                    seen = state.call;
                    match state.job {
                        Some(job @ Job::All(_)) => break (job, index),
                        Some(job @ Job::Open(_)) => {
                            // Counted in under the lock under which the call is closed.
                            shared.running.fetch_add(1, Ordering::Relaxed);
                            state.members += 1;
                            break (job, state.members - 1);
                        }
                        // Too late for this one.
                        None => {}
                    }
                }
                state = shared.wake.wait(state).unwrap_or_else(PoisonError::into_inner);
            }
        };
        let _env = FloatEnv::enter();
        let done = catch_unwind(AssertUnwindSafe(|| match job {
            // SAFETY: the caller keeps the job alive until this thread has counted itself out below.
            Job::All(job) => unsafe { (*job)(Worker { index, count, barrier: &shared.barrier }) },
            // SAFETY: as above.
            Job::Open(job) => unsafe { (*job)(Member { index, shared }) },
        }));
        if done.is_err() {
            shared.barrier.give_up();
        }
        if shared.running.fetch_sub(1, Ordering::AcqRel) == 1 {
            let state = lock(shared);
            if state.waiting {
                shared.done.notify_one();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_thread_runs_each_call_once_and_barriers_hold() {
        let mut pool = Pool::new(4, "test").unwrap();
        for _ in 0..200 {
            let first = AtomicUsize::new(0);
            let second = AtomicUsize::new(0);
            pool.run(&|worker| {
                first.fetch_add(1, Ordering::Relaxed);
                worker.wait();
                assert_eq!(first.load(Ordering::Relaxed), 4);
                second.fetch_add(worker.share(1003, 4).len(), Ordering::Relaxed);
                worker.wait();
                assert_eq!(second.load(Ordering::Relaxed), 1003);
            })
            .unwrap();
        }
    }

    #[test]
    fn members_of_an_open_call_settle_into_a_team() {
        let mut pool = Pool::new(4, "test").unwrap();
        let (mut claims, mut seen) = (Claims::new(4).unwrap(), [0; 5]);
        for turn in 0..300 {
            let pieces = [0, 1, 3, 64, 1000][turn % 5];
            claims.reset(pieces);
            let done: Vec<AtomicUsize> = (0..pieces).map(|_| AtomicUsize::new(0)).collect();
            let (members, indices) = (AtomicUsize::new(0), AtomicUsize::new(0));
            pool.run_open(&|member| {
                while let Some(piece) = claims.claim(member.index) {
                    done[piece].fetch_add(1, Ordering::Relaxed);
                    if turn % 3 == 0 {
                        std::thread::yield_now();
                    }
                }
                let worker = member.settle();
                // All that was claimed is done, whoever claimed it.
                assert!(done.iter().all(|piece| piece.load(Ordering::Relaxed) == 1));
                members.fetch_add(1, Ordering::Relaxed);
                indices.fetch_or(1 << worker.index, Ordering::Relaxed);
                worker.wait();
                assert_eq!(members.load(Ordering::Relaxed), worker.count);
                assert_eq!(indices.load(Ordering::Relaxed), (1 << worker.count) - 1);
            })
            .unwrap();
            seen[members.into_inner()] += 1;
        }
        assert_eq!((seen[0], seen.iter().sum::<usize>()), (0, 300));
    }

    #[test]
    fn a_panic_in_an_open_call_reaches_the_caller() {
        let mut pool = Pool::new(3, "test").unwrap();
        for early in [true, false] {
            let result = catch_unwind(AssertUnwindSafe(|| {
                pool.run_open(&|member| {
                    assert!(!(early && member.index == 0), "planted");
                    let worker = member.settle();
                    assert!(early || worker.index != 0, "planted");
                    worker.wait();
                })
            }));
            assert!(result.is_err());
        }
        let ran = AtomicUsize::new(0);
        pool.run(&|_| {
            ran.fetch_add(1, Ordering::Relaxed);
        })
        .unwrap();
        assert_eq!(ran.into_inner(), 3);
    }

    #[test]
    fn a_panic_reaches_the_caller_and_the_pool_lives_on() {
        let mut pool = Pool::new(3, "test").unwrap();
        for guilty in 0..3 {
            let result = catch_unwind(AssertUnwindSafe(|| {
                pool.run(&|worker| {
                    assert_ne!(worker.index, guilty, "planted");
                    worker.wait();
                })
            }));
            assert!(result.is_err());
        }
        let ran = AtomicUsize::new(0);
        pool.run(&|_| {
            ran.fetch_add(1, Ordering::Relaxed);
        })
        .unwrap();
        assert_eq!(ran.into_inner(), 3);
    }
}
