//! A race on purpose, which ThreadSanitizer must find before its silence about the monitor means anything.

use std::sync::atomic::{AtomicU32, Ordering};

/// A number that two threads write at once.
struct Shared(std::cell::UnsafeCell<u64>);

// SAFETY: it is not, and that is the point; only an ignored test that a sanitizer watches uses it.
unsafe impl Sync for Shared {}

static SHARED: Shared = Shared(std::cell::UnsafeCell::new(0));

#[test]
#[ignore = "a data race on purpose, run under ThreadSanitizer by `cargo xtask test --only tsan`, which must report it"]
fn a_planted_race() {
    let both = AtomicU32::new(0);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                // Together, and ordered by nothing else.
                both.fetch_add(1, Ordering::Relaxed);
                while both.load(Ordering::Relaxed) < 2 {
                    std::hint::spin_loop();
                }
                for _ in 0..1000 {
                    // SAFETY: none; see above.
                    unsafe { SHARED.0.get().write_volatile(SHARED.0.get().read_volatile() + 1) };
                }
            });
        }
    });
}
