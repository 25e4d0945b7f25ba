//! How many bytes a monitor's queues and state take, and the limit on them.

use crate::error::{Error, Result, Status};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Counts the bytes of one monitor.
#[derive(Debug)]
pub(crate) struct Budget {
    used: AtomicUsize,
    limit: usize,
}

/// Bytes that are counted until this is dropped.
#[derive(Debug)]
pub(crate) struct Reserved {
    of: Arc<Budget>,
    bytes: usize,
}

impl Budget {
    pub(crate) fn new(limit: Option<usize>) -> Arc<Self> {
        Arc::new(Budget { used: AtomicUsize::new(0), limit: limit.unwrap_or(usize::MAX) })
    }

    pub(crate) fn used(&self) -> usize {
        self.used.load(Ordering::Relaxed)
    }

    /// Counts `bytes` for `what`.
    ///
    /// # Errors
    /// [`Status::OutOfMemory`] if the limit does not allow them.
    pub(crate) fn reserve(self: &Arc<Self>, bytes: usize, what: &str) -> Result<Reserved> {
        let fits = |used: usize| used.checked_add(bytes).filter(|sum| *sum <= self.limit);
        match self.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fits) {
            Ok(_) => Ok(Reserved { of: Arc::clone(self), bytes }),
            Err(used) => Err(Error::new(
                Status::OutOfMemory,
                format!(
                    "{what} needs {bytes} bytes; {used} of the monitor's memory_limit of {} are in use",
                    self.limit
                ),
            )),
        }
    }
}

impl Drop for Reserved {
    fn drop(&mut self) {
        self.of.used.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limit_holds_and_bytes_come_back() {
        let budget = Budget::new(Some(100));
        let first = budget.reserve(60, "this").unwrap();
        let error = budget.reserve(41, "that").unwrap_err();
        assert_eq!(error.status(), Status::OutOfMemory);
        assert!(error.message().contains("that") && error.message().contains("60"), "{error}");
        let _second = budget.reserve(40, "that").unwrap();
        assert_eq!(budget.used(), 100);
        drop(first);
        assert_eq!(budget.used(), 40);
        assert!(Budget::new(None).reserve(usize::MAX, "all").is_ok());
    }
}
