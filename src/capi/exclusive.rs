//! What is behind a non-const handle: one call at a time, and none after a panic.

use crate::error::{Error, Result, Status};
use std::cell::UnsafeCell;
use std::sync::atomic::{AtomicU32, Ordering};

const IDLE: u32 = 0;
const BUSY: u32 = 1;
const POISONED: u32 = 2;

/// A value that one call at a time may use.
pub(super) struct Exclusive<T> {
    /// The C type's noun, for messages: "encoder".
    noun: &'static str,
    state: AtomicU32,
    value: UnsafeCell<T>,
}

/// Holds the value for one call. Dropped by a panic, it leaves it poisoned.
struct Guard<'a> {
    state: &'a AtomicU32,
    finished: bool,
}

impl Drop for Guard<'_> {
    fn drop(&mut self) {
        self.state.store(if self.finished { IDLE } else { POISONED }, Ordering::Release);
    }
}

impl<T> Exclusive<T> {
    pub(super) fn new(noun: &'static str, value: T) -> Self {
        Exclusive { noun, state: AtomicU32::new(IDLE), value: UnsafeCell::new(value) }
    }

    /// Runs a call on the value, which this thread alone has meanwhile.
    ///
    /// # Errors
    /// The call's; [`Status::InvalidArgument`] if another thread is in one; [`Status::Poisoned`] after a panic in one.
    pub(super) fn run<R>(&self, call: impl FnOnce(&mut T) -> Result<R>) -> Result<R> {
        let noun = self.noun;
        match self.state.compare_exchange(IDLE, BUSY, Ordering::Acquire, Ordering::Relaxed) {
            Ok(_) => {}
            Err(POISONED) => {
                return Err(Error::new(
                    Status::Poisoned,
                    format!("an internal error was caught in this {noun} before; destroy it and make a new one"),
                ));
            }
            Err(_) => {
                return Err(Error::invalid(format!(
                    "this {noun} is in use by another thread; make one for each thread"
                )));
            }
        }
        let mut guard = Guard { state: &self.state, finished: false };
        // SAFETY: whoever moved the state from IDLE to BUSY has the value until the guard moves it on.
        let outcome = call(unsafe { &mut *self.value.get() });
        guard.finished = true;
        outcome
    }
}
