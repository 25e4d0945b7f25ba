//! How much of the machine a worker may take: set by each worker for itself, inherited by its encoder's threads.

use crate::error::{Error, Result, Status};
use std::time::{Duration, Instant};

/// How workers are scheduled. The default is one that does not preempt the host: on Linux workers run as `SCHED_BATCH`,
/// so that waking one does not take the CPU from the thread that woke it.
#[derive(Debug, Clone, PartialEq)]
pub struct Scheduling {
    /// Nice value, -20 to 19; None: the host's. Lower than the host's needs privileges.
    pub nice: Option<i32>,
    /// Run only where nothing else wants a CPU (`SCHED_IDLE`).
    pub idle: bool,
    /// CPUs that workers and their encoders may run on; empty: the host's.
    pub cpus: Vec<usize>,
    /// The most CPU time a worker may take, as a share of one CPU, over 0 up to 1; the threads of its encoder are taken to
    /// be as busy as the worker while it encodes, so that a worker with t encoder threads takes at most t times this.
    /// 1: all it needs.
    pub cpu_share: f32,
    /// Tokens a second that each worker is let encode, as far as the machine can, whatever `cpu_share` says. 0: none.
    pub least_tokens_per_second: f32,
}

impl Default for Scheduling {
    fn default() -> Self {
        Scheduling { nice: None, idle: false, cpus: Vec::new(), cpu_share: 1.0, least_tokens_per_second: 0.0 }
    }
}

impl Scheduling {
    /// # Errors
    /// [`Status::InvalidArgument`] naming the value out of range.
    pub(crate) fn validate(&self) -> Result<()> {
        if let Some(nice) = self.nice.filter(|nice| !(-20..=19).contains(nice)) {
            return Err(Error::invalid(format!("nice = {nice}, expected -20 to 19")));
        }
        if !(self.cpu_share > 0.0 && self.cpu_share <= 1.0) {
            return Err(Error::invalid(format!("cpu_share = {}, expected over 0 up to 1", self.cpu_share)));
        }
        if !(self.least_tokens_per_second >= 0.0 && self.least_tokens_per_second.is_finite()) {
            return Err(Error::invalid(format!(
                "least_tokens_per_second = {}, expected a finite number of at least 0",
                self.least_tokens_per_second
            )));
        }
        Ok(())
    }

    /// Applies nice, policy and CPUs to the calling thread.
    ///
    /// # Errors
    /// [`Status::InvalidArgument`] if a CPU does not exist or may not be used, [`Status::Unsupported`] if the system
    /// refuses (a nice value below the host's without privileges, say).
    #[cfg(target_os = "linux")]
    pub(crate) fn apply(&self) -> Result<()> {
        let policy = if self.idle { libc::SCHED_IDLE } else { libc::SCHED_BATCH };
        let refused =
            |what: &str| Error::new(Status::Unsupported, format!("{what}: {}", std::io::Error::last_os_error()));
        // SAFETY: the parameter is valid for reads; 0 is the calling thread. sched_param may have more fields elsewhere,
        // all plain numbers for which 0 is a value.
        let done = unsafe {
            let parameter: libc::sched_param = std::mem::zeroed();
            libc::sched_setscheduler(0, policy, &raw const parameter)
        };
        // Not preempting the host is a courtesy that the system may refuse; running idle was asked for.
        if done != 0 && self.idle {
            return Err(refused("SCHED_IDLE"));
        }
        if let Some(nice) = self.nice {
            // SAFETY: no preconditions; on Linux 0 is the calling thread.
            if unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, nice) } != 0 {
                return Err(refused(&format!("nice = {nice}")));
            }
        }
        if !self.cpus.is_empty() {
            // SAFETY: cpu_set_t is plain bits; indices are checked against its size; the set is valid for reads.
            let done = unsafe {
                let mut set: libc::cpu_set_t = std::mem::zeroed();
                for &cpu in &self.cpus {
                    if cpu >= 8 * size_of::<libc::cpu_set_t>() {
                        return Err(Error::invalid(format!("CPU {cpu} is beyond what a CPU set can name")));
                    }
                    libc::CPU_SET(cpu, &mut set);
                }
                libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &raw const set)
            };
            if done != 0 {
                let error = std::io::Error::last_os_error();
                return Err(Error::invalid(format!("CPUs {:?} cannot be used: {error}", self.cpus)));
            }
        }
        Ok(())
    }

    /// Elsewhere than on Linux nothing can be set.
    #[cfg(not(target_os = "linux"))]
    pub(crate) fn apply(&self) -> Result<()> {
        if self.nice.is_some() || self.idle || !self.cpus.is_empty() {
            return Err(Error::new(Status::Unsupported, "nice, SCHED_IDLE and CPUs can be set on Linux only"));
        }
        Ok(())
    }
}

/// CPU time of the calling thread since it started.
pub(crate) fn thread_cpu_time() -> Duration {
    // SAFETY: the time is valid for writes; this clock exists for every thread.
    unsafe {
        let mut time: libc::timespec = std::mem::zeroed();
        libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &raw mut time);
        Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
    }
}

/// Keeps a worker to its share: says how long to rest after each batch.
#[derive(Debug)]
pub(crate) struct Pace {
    share: f64,
    least: f64,
    /// CPU seconds that may still be spent; grows with time by `share`, at most to a burst.
    credit: f64,
    seen: Instant,
    cpu: Duration,
}

/// Credit that is kept for later, in seconds: short bursts go through at once.
const BURST: f64 = 0.02;
/// Rests are cut so that a stop or a change of settings need not wait for them.
const LONGEST_REST: f64 = 0.1;

impl Pace {
    pub(crate) fn new(scheduling: &Scheduling) -> Self {
        Pace {
            share: f64::from(scheduling.cpu_share),
            least: f64::from(scheduling.least_tokens_per_second),
            credit: BURST,
            seen: Instant::now(),
            cpu: thread_cpu_time(),
        }
    }

    /// How long to rest now that `tokens` were encoded, which took `busy`; None: go on.
    pub(crate) fn after(&mut self, tokens: usize, busy: Duration) -> Option<Duration> {
        if self.share >= 1.0 {
            return None;
        }
        let (now, cpu) = (Instant::now(), thread_cpu_time());
        let wall = (now - self.seen).as_secs_f64();
        let spent = cpu.saturating_sub(self.cpu).as_secs_f64();
        (self.seen, self.cpu) = (now, cpu);
        self.rest(wall, spent, tokens, busy.as_secs_f64()).map(Duration::from_secs_f64)
    }

    fn rest(&mut self, wall: f64, spent: f64, tokens: usize, busy: f64) -> Option<f64> {
        self.credit = (self.credit + wall * self.share - spent).min(BURST);
        if self.credit >= 0.0 {
            return None;
        }
        let mut rest = -self.credit / self.share;
        if self.least > 0.0 {
            // These tokens may take so long at the least rate, the time they took included.
            let allowed = (tokens as f64 / self.least - busy).max(0.0);
            if allowed < rest {
                rest = allowed;
                // What the least rate costs beyond the share is not owed later.
                self.credit = -allowed * self.share;
            }
        }
        let rest = rest.min(LONGEST_REST);
        (rest > 50e-6).then_some(rest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pace(share: f32, least: f32) -> Pace {
        Pace::new(&Scheduling { cpu_share: share, least_tokens_per_second: least, ..Scheduling::default() })
    }

    /// Wall time, CPU time and tokens of a worker that always has work: batches of 10 tokens that take 10 ms of CPU.
    fn run(mut pace: Pace, batches: usize) -> (f64, f64) {
        let (mut wall, mut cpu) = (0.0, 0.0);
        let mut rested = 0.0;
        for _ in 0..batches {
            let rest = pace.rest(rested + 0.01, 0.01, 10, 0.01).unwrap_or(0.0);
            wall += 0.01 + rest;
            cpu += 0.01;
            rested = rest;
        }
        (wall, cpu)
    }

    #[test]
    fn share_and_least_rate_hold() {
        let (wall, cpu) = run(pace(0.25, 0.0), 1000);
        assert!((cpu / wall - 0.25).abs() < 0.01, "{}", cpu / wall);
        // 1000 tokens a second are possible; a share of .05 would let 50 through, 500 are to be.
        let (wall, _) = run(pace(0.05, 500.0), 1000);
        let rate = 10_000.0 / wall;
        assert!((450.0..=600.0).contains(&rate), "{rate}");
        assert_eq!(pace(1.0, 0.0).after(1, Duration::ZERO), None);
    }

    #[test]
    fn out_of_range() {
        let base = Scheduling::default();
        for bad in [
            Scheduling { nice: Some(20), ..base.clone() },
            Scheduling { cpu_share: 0.0, ..base.clone() },
            Scheduling { cpu_share: f32::NAN, ..base.clone() },
            Scheduling { least_tokens_per_second: -1.0, ..base.clone() },
        ] {
            assert_eq!(bad.validate().unwrap_err().status(), Status::InvalidArgument);
        }
        // On a thread of its own, which ends with the settings.
        let bad = Scheduling { cpus: vec![100_000], ..base };
        let error = std::thread::spawn(move || bad.apply()).join().unwrap().unwrap_err();
        assert_eq!(error.status(), Status::InvalidArgument);
    }
}
