//! The floating-point environment every result is computed in: round to nearest, denormals on, exceptions masked.
//!
//! A host built with `-ffast-math` leaves flush-to-zero and denormals-are-zero set in its threads; results must not
//! depend on that, and the host must find its own setting again.

/// While alive, this thread computes in the canonical environment; dropping it restores what was found.
///
/// On x86-64 this is MXCSR. On other architectures it does nothing: their default environment is the canonical one,
/// and a host that changes it is outside what this library can answer for.
#[derive(Debug)]
pub struct FloatEnv {
    #[cfg(target_arch = "x86_64")]
    saved: u32,
    // The guard belongs to the thread it was made on.
    _not_send: std::marker::PhantomData<*const ()>,
}

/// MXCSR after reset: all exceptions masked, round to nearest, no FTZ, no DAZ.
#[cfg(target_arch = "x86_64")]
const CANONICAL: u32 = 0x1F80;

impl FloatEnv {
    /// Enters the canonical environment on this thread.
    #[must_use]
    pub fn enter() -> Self {
        #[cfg(target_arch = "x86_64")]
        {
            let mut saved = 0_u32;
            // SAFETY: stmxcsr writes four bytes to a valid, aligned u32.
            unsafe {
                std::arch::asm!("stmxcsr [{}]", in(reg) &raw mut saved, options(nostack, preserves_flags));
            }
            load(CANONICAL);
            FloatEnv { saved, _not_send: std::marker::PhantomData }
        }
        #[cfg(not(target_arch = "x86_64"))]
        FloatEnv { _not_send: std::marker::PhantomData }
    }
}

#[cfg(target_arch = "x86_64")]
fn load(mxcsr: u32) {
    // SAFETY: ldmxcsr reads four bytes from a valid u32; both values used here (the reset value and one that stmxcsr
    // returned) have no reserved bit set, so it cannot fault. Not `nomem`: float operations must not move across it.
    unsafe {
        std::arch::asm!("ldmxcsr [{}]", in(reg) &raw const mxcsr, options(nostack, preserves_flags));
    }
}

impl Drop for FloatEnv {
    fn drop(&mut self) {
        #[cfg(target_arch = "x86_64")]
        load(self.saved);
    }
}

#[cfg(all(test, target_arch = "x86_64"))]
mod tests {
    use super::*;

    fn mxcsr() -> u32 {
        let mut value = 0_u32;
        // SAFETY: stmxcsr writes four bytes to a valid u32.
        unsafe { std::arch::asm!("stmxcsr [{}]", in(reg) &raw mut value, options(nostack)) };
        value
    }

    #[test]
    fn guard_sets_and_restores() {
        let before = mxcsr();
        load(CANONICAL | 0x8040); // FTZ and DAZ, as -ffast-math sets them
        {
            let _env = FloatEnv::enter();
            assert_eq!(mxcsr() & 0xFFC0, CANONICAL);
        }
        assert_eq!(mxcsr() & 0x8040, 0x8040);
        load(before);
    }
}
