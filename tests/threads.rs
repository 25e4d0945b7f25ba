//! The pool as a guest: under stress with panics planted anywhere, its threads' names and signals, and after fork.

#![cfg(target_os = "linux")]

use kronsae::Status;
use kronsae::threads::{Divided, Pool};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

/// SplitMix64.
fn mix(mut z: u64) -> u64 {
    z = z.wrapping_add(0x9E37_79B9_7F4A_7C15);
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

/// Calls of several phases, each thread writing its share and then reading everybody's. Some threads panic in some phase;
/// whoever waits for them must come back, and the next call must find the pool whole.
#[test]
fn calls_with_panics_anywhere() {
    const LEN: usize = 97;
    let quiet = std::panic::take_hook();
    std::panic::set_hook(Box::new(|_| {}));
    let outcome = catch_unwind(|| {
        for threads in [1, 2, 3, 7] {
            let mut pool = Pool::new(threads, "stress").unwrap();
            let mut values = vec![0_u64; LEN];
            for call in 0..600_u64 {
                let random = mix(call * 31 + threads as u64);
                let phases = 1 + random % 4;
                let guilty = (random >> 8).is_multiple_of(3);
                let (who, when) = ((random >> 16) as usize % threads, (random >> 32) % phases);
                let entered = AtomicUsize::new(0);
                let sum = AtomicU64::new(0);
                let divided = Divided::of(&mut values);
                let result = catch_unwind(AssertUnwindSafe(|| {
                    pool.run(&|worker| {
                        entered.fetch_add(1, Ordering::Relaxed);
                        for phase in 0..phases {
                            assert!(!(guilty && worker.index == who && phase == when), "planted");
                            let share = worker.share(LEN, 1 + (random >> 40) as usize % 9);
                            // SAFETY: shares are disjoint, and barriers separate writes from reads.
                            unsafe { divided.slice(share).fill(mix(call ^ phase)) };
                            worker.wait();
                            // SAFETY: nobody writes before the next barrier.
                            let all = unsafe { divided.read(0..LEN) };
                            assert!(all.iter().all(|v| *v == mix(call ^ phase)));
                            worker.wait();
                        }
                        sum.fetch_add(worker.index as u64, Ordering::Relaxed);
                    })
                }));
                assert_eq!(result.is_err(), guilty, "threads {threads} call {call}");
                assert_eq!(entered.into_inner(), threads);
                if !guilty {
                    assert_eq!(sum.into_inner(), (0..threads as u64).sum::<u64>());
                }
            }
        }
    });
    std::panic::set_hook(quiet);
    outcome.unwrap();
}

#[test]
fn pools_come_and_go() {
    for threads in (1..9).cycle().take(300) {
        let mut pool = Pool::new(threads, "brief").unwrap();
        if threads % 2 == 0 {
            let ran = AtomicUsize::new(0);
            pool.run(&|_| {
                ran.fetch_add(1, Ordering::Relaxed);
            })
            .unwrap();
            assert_eq!(ran.into_inner(), threads);
        }
    }
}

/// `/proc/self/task`: the named threads and the signals they block.
fn tasks(prefix: &str) -> Vec<(String, u64)> {
    let entries = std::fs::read_dir("/proc/self/task").unwrap();
    let found = entries.flatten().filter_map(|entry| {
        let name = std::fs::read_to_string(entry.path().join("comm")).ok()?.trim().to_owned();
        let status = std::fs::read_to_string(entry.path().join("status")).ok()?;
        let blocked = status.lines().find_map(|line| line.strip_prefix("SigBlk:"))?.trim().to_owned();
        name.starts_with(prefix).then(|| (name, u64::from_str_radix(&blocked, 16).unwrap()))
    });
    found.collect()
}

#[test]
fn threads_are_named_and_block_signals_but_faults() {
    // A kernel keeps 15 bytes of a name.
    let mut pool = Pool::new(4, "sig").unwrap();
    pool.run(&|worker| worker.wait()).unwrap();
    let found = tasks("kronsae-sig");
    assert_eq!(found.len(), 3, "{found:?}");
    for (name, blocked) in &found {
        for signal in 1..=31 {
            // The first two cannot be blocked; the others are the thread's own faults.
            let faults = [libc::SIGSEGV, libc::SIGBUS, libc::SIGFPE, libc::SIGILL, libc::SIGTRAP, libc::SIGSYS];
            let open = [libc::SIGKILL, libc::SIGSTOP].contains(&signal) || faults.contains(&signal);
            assert_eq!(blocked >> (signal - 1) & 1 == 0, open, "{name}: signal {signal}");
        }
    }
    drop(pool);
    assert!(tasks("kronsae-sig").is_empty(), "a dropped pool has no threads");
}

#[test]
fn a_child_process_is_told_and_may_drop_the_pool() {
    let mut pool = Pool::new(3, "fork").unwrap();
    // SAFETY: the child only does what a child of a process with threads may: it allocates nothing but an error message,
    // with an allocator that survives fork, and leaves by _exit.
    let child = unsafe { libc::fork() };
    if child == 0 {
        let told = pool.run(&|_| ()).is_err_and(|e| e.status() == Status::Forked);
        drop(pool);
        // SAFETY: always may be called.
        unsafe { libc::_exit(if told { 0 } else { 1 }) };
    }
    let mut status = 0;
    // SAFETY: waits for the child just made.
    assert_eq!(unsafe { libc::waitpid(child, &raw mut status, 0) }, child);
    assert!(libc::WIFEXITED(status) && libc::WEXITSTATUS(status) == 0, "{status}");
    pool.run(&|worker| worker.wait()).unwrap();
}
