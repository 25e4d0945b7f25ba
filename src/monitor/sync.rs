//! Atomics and cells of the queue: those of std, or under `--cfg loom` those that the model checker watches.

#[cfg(all(loom, test))]
pub(crate) use loom::{
    cell::UnsafeCell,
    sync::atomic::{AtomicU32, AtomicU64, Ordering, fence},
};

#[cfg(not(all(loom, test)))]
pub(crate) use std::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};

/// A thread that can be parked and unparked.
#[cfg(not(all(loom, test)))]
#[derive(Debug)]
pub(crate) struct Sleeper(std::thread::Thread);

#[cfg(not(all(loom, test)))]
impl Sleeper {
    /// The calling thread.
    pub(crate) fn current() -> Self {
        Sleeper(std::thread::current())
    }

    /// Waits for a permit, which the calling thread, this one, takes; for at most `time`.
    pub(crate) fn park(&self, time: Option<std::time::Duration>) {
        debug_assert_eq!(std::thread::current().id(), self.0.id(), "parks another thread");
        match time {
            Some(time) => std::thread::park_timeout(time),
            None => std::thread::park(),
        }
    }

    /// Gives it a permit, if it has none.
    pub(crate) fn unpark(&self) {
        self.0.unpark();
    }
}

/// As std documents parking: one permit, kept until it is taken. The model has no clock: waiting with a limit ends at once.
#[cfg(all(loom, test))]
#[derive(Debug)]
pub(crate) struct Sleeper(loom::sync::Mutex<bool>, loom::sync::Condvar);

#[cfg(all(loom, test))]
impl Sleeper {
    pub(crate) fn current() -> Self {
        Sleeper(loom::sync::Mutex::new(false), loom::sync::Condvar::new())
    }

    pub(crate) fn park(&self, time: Option<std::time::Duration>) {
        let mut permit = self.0.lock().unwrap();
        while time.is_none() && !*permit {
            permit = self.1.wait(permit).unwrap();
        }
        *permit = false;
    }

    pub(crate) fn unpark(&self) {
        *self.0.lock().unwrap() = true;
        self.1.notify_one();
    }
}

/// The cell of std with the model checker's calls.
#[cfg(not(all(loom, test)))]
#[derive(Debug)]
pub(crate) struct UnsafeCell<T>(std::cell::UnsafeCell<T>);

#[cfg(not(all(loom, test)))]
impl<T> UnsafeCell<T> {
    pub(crate) fn new(value: T) -> Self {
        UnsafeCell(std::cell::UnsafeCell::new(value))
    }

    pub(crate) fn with<R>(&self, read: impl FnOnce(*const T) -> R) -> R {
        read(self.0.get())
    }

    pub(crate) fn with_mut<R>(&self, write: impl FnOnce(*mut T) -> R) -> R {
        write(self.0.get())
    }
}
