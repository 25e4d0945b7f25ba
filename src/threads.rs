//! A fork-join pool for a guest in somebody else's process: never more threads than asked for, all signals blocked,
//! named `kronsae-*`, asleep between calls, and no allocation in a call.

use crate::error::{Error, Result, Status};
use crate::float_env::FloatEnv;
use std::marker::PhantomData;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

/// The work of one call, with its lifetime erased. Only alive while [`Pool::run`] waits for it.
#[derive(Clone, Copy)]
struct Job(*const (dyn Fn(Worker<'_>) + Sync));
// SAFETY: the pointee is Sync, and `run` keeps it alive until every worker has left it.
unsafe impl Send for Job {}

struct State {
    /// Counts calls; a worker runs each once.
    call: u64,
    job: Option<Job>,
    /// Workers still inside the current call.
    running: usize,
    stop: bool,
}

struct Shared {
    state: Mutex<State>,
    wake: Condvar,
    done: Condvar,
    barrier: Barrier,
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

struct Barrier {
    arrived: AtomicUsize,
    generation: AtomicUsize,
    panicked: AtomicBool,
}

impl Barrier {
    fn wait(&self, count: usize) {
        let generation = self.generation.load(Ordering::Acquire);
        if self.arrived.fetch_add(1, Ordering::AcqRel) + 1 == count {
            self.arrived.store(0, Ordering::Relaxed);
            self.generation.fetch_add(1, Ordering::Release);
        } else {
            let mut spins = 0_u32;
            while self.generation.load(Ordering::Acquire) == generation {
                assert!(!self.panicked.load(Ordering::Relaxed), "another thread of this call panicked");
                spins += 1;
                if spins < 4096 {
                    std::hint::spin_loop();
                } else {
                    // The others may be waiting for this very core.
                    std::thread::yield_now();
                }
            }
        }
        assert!(!self.panicked.load(Ordering::Relaxed), "another thread of this call panicked");
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
            state: Mutex::new(State { call: 0, job: None, running: 0, stop: false }),
            wake: Condvar::new(),
            done: Condvar::new(),
            barrier: Barrier {
                arrived: AtomicUsize::new(0),
                generation: AtomicUsize::new(0),
                panicked: AtomicBool::new(false),
            },
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
        if self.is_forked() {
            return Err(Error::new(
                Status::Forked,
                "this object was made before fork(); make a new one in the child process",
            ));
        }
        let count = self.threads();
        let barrier = &self.shared.barrier;
        barrier.panicked.store(false, Ordering::Relaxed);
        barrier.arrived.store(0, Ordering::Relaxed);
        if count > 1 {
            // SAFETY: only the lifetime is erased; this function does not return before `running` is 0 again, and a
            // worker does not touch the job after it has counted itself out.
            let job = unsafe {
                std::mem::transmute::<
                    *const (dyn Fn(Worker<'_>) + Sync + '_),
                    *const (dyn Fn(Worker<'_>) + Sync + 'static),
                >(job)
            };
            let mut state = lock(&self.shared);
            state.call += 1;
            state.job = Some(Job(job));
            state.running = count - 1;
            drop(state);
            self.shared.wake.notify_all();
        }
        let mine = {
            let _env = FloatEnv::enter();
            catch_unwind(AssertUnwindSafe(|| job(Worker { index: 0, count, barrier })))
        };
        if mine.is_err() {
            barrier.panicked.store(true, Ordering::Relaxed);
        }
        if count > 1 {
            let mut state = lock(&self.shared);
            while state.running > 0 {
                state = self.shared.done.wait(state).unwrap_or_else(PoisonError::into_inner);
            }
            state.job = None;
        }
        if let Err(panic) = mine {
            resume_unwind(panic);
        }
        assert!(!barrier.panicked.load(Ordering::Relaxed), "a worker thread panicked");
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
        let job = {
            let mut state = lock(shared);
            loop {
                if state.stop {
                    return;
                }
                if state.call != seen {
                    seen = state.call;
                    break state.job;
                }
                state = shared.wake.wait(state).unwrap_or_else(PoisonError::into_inner);
            }
        };
        if let Some(Job(job)) = job {
            let _env = FloatEnv::enter();
            // SAFETY: `run` keeps the job alive until this thread has counted itself out below.
            let job = unsafe { &*job };
            let worker = Worker { index, count, barrier: &shared.barrier };
            if catch_unwind(AssertUnwindSafe(|| job(worker))).is_err() {
                shared.barrier.panicked.store(true, Ordering::Relaxed);
            }
        }
        let mut state = lock(shared);
        state.running -= 1;
        if state.running == 0 {
            shared.done.notify_one();
        }
    }
}

pub(crate) fn process_id() -> libc::pid_t {
    // SAFETY: getpid has no preconditions.
    unsafe { libc::getpid() }
}

/// While alive, this thread has all signals blocked; threads started meanwhile inherit that, so that the host's
/// handlers never run on them.
pub(crate) struct SignalsBlocked {
    before: libc::sigset_t,
}

impl SignalsBlocked {
    pub(crate) fn enter() -> Self {
        // SAFETY: both sets are valid for writes; sigset_t is plain data for which zeroes are a value.
        unsafe {
            let mut all: libc::sigset_t = std::mem::zeroed();
            let mut before: libc::sigset_t = std::mem::zeroed();
            libc::sigfillset(&raw mut all);
            libc::pthread_sigmask(libc::SIG_SETMASK, &raw const all, &raw mut before);
            SignalsBlocked { before }
        }
    }
}

impl Drop for SignalsBlocked {
    fn drop(&mut self) {
        // SAFETY: `before` is the mask that pthread_sigmask returned.
        unsafe {
            libc::pthread_sigmask(libc::SIG_SETMASK, &raw const self.before, std::ptr::null_mut());
        }
    }
}

/// A mutable slice that the threads of one call divide among themselves.
#[derive(Debug)]
pub struct Divided<'a, T> {
    pointer: *mut T,
    len: usize,
    borrow: PhantomData<&'a mut [T]>,
}

// SAFETY: handed to threads that take disjoint parts, as each use argues.
unsafe impl<T: Send> Sync for Divided<'_, T> {}

impl<'a, T> Divided<'a, T> {
    /// The slice, to be divided.
    pub fn of(slice: &'a mut [T]) -> Self {
        Divided { pointer: slice.as_mut_ptr(), len: slice.len(), borrow: PhantomData }
    }

    /// The start of the slice.
    #[must_use]
    pub fn pointer(&self) -> *mut T {
        self.pointer
    }

    /// A part of the slice, for this thread alone.
    ///
    /// # Panics
    /// If the range is outside.
    ///
    /// # Safety
    /// Nobody else may access the range while the slice lives.
    #[expect(clippy::mut_from_ref, reason = "exclusive by the caller's promise, as with a raw pointer")]
    #[must_use]
    pub unsafe fn slice(&self, range: Range<usize>) -> &mut [T] {
        assert!(range.start <= range.end && range.end <= self.len, "part outside the slice");
        // SAFETY: inside the slice this was made of; exclusive by the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.pointer.add(range.start), range.len()) }
    }

    /// A part of the slice, to read.
    ///
    /// # Panics
    /// If the range is outside.
    ///
    /// # Safety
    /// Nobody may write to the range while the slice lives.
    #[must_use]
    pub unsafe fn read(&self, range: Range<usize>) -> &[T] {
        assert!(range.start <= range.end && range.end <= self.len, "part outside the slice");
        // SAFETY: inside the slice this was made of; unwritten by the caller's promise.
        unsafe { std::slice::from_raw_parts(self.pointer.add(range.start), range.len()) }
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
