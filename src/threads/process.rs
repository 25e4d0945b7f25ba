//! What threads of a library must know of the process they are guests in: its signals, and whether it is still the same.

pub(crate) fn process_id() -> libc::pid_t {
    // SAFETY: getpid has no preconditions.
    unsafe { libc::getpid() }
}

/// Faults of the thread itself. Where they are blocked the kernel ends the process without asking the host's handlers, by
/// which crashes are reported and managed runtimes throw their null references.
const FAULTS: [libc::c_int; 6] = [libc::SIGSEGV, libc::SIGBUS, libc::SIGFPE, libc::SIGILL, libc::SIGTRAP, libc::SIGSYS];

/// Signals without a meaning of their own, which others than Linux may lack.
#[cfg(target_os = "linux")]
fn real_time() -> impl Iterator<Item = libc::c_int> {
    libc::SIGRTMIN()..=libc::SIGRTMAX()
}

#[cfg(not(target_os = "linux"))]
fn real_time() -> impl Iterator<Item = libc::c_int> {
    std::iter::empty()
}

/// While alive, this thread blocks the signals that are sent to a process; threads started meanwhile inherit that, so that
/// the host's handlers never run on them. Faults get through: they are the thread's own.
pub(crate) struct SignalsBlocked {
    before: libc::sigset_t,
}

impl SignalsBlocked {
    pub(crate) fn enter() -> Self {
        Self::but(FAULTS)
    }

    /// For threads that call the host back. mono and CoreCLR stop the threads in their code, for a collection, by real-time
    /// signals sent to each; were those blocked, a collection would wait for a callback, and one that allocates for the
    /// collection.
    pub(crate) fn with_callbacks() -> Self {
        Self::but(FAULTS.into_iter().chain(real_time()))
    }

    fn but(open: impl IntoIterator<Item = libc::c_int>) -> Self {
        // SAFETY: both sets are valid for writes; sigset_t is plain data for which zeroes are a value.
        unsafe {
            let mut all: libc::sigset_t = std::mem::zeroed();
            let mut before: libc::sigset_t = std::mem::zeroed();
            libc::sigfillset(&raw mut all);
            for signal in open {
                libc::sigdelset(&raw mut all, signal);
            }
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
