//! The machine under the benchmark: what it is, and what it can do at most.

use kronsae::threads::Pool;
use kronsae::{Aligned, Result};
use serde::Serialize;
use std::hint::black_box;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// What the machine says of itself.
#[derive(Debug, Clone, Serialize)]
pub struct Machine {
    /// Model of the CPU.
    pub cpu: String,
    /// Cores this process may use.
    pub cores: usize,
    /// Last-level cache as the system tells it, bytes. A virtual machine may own only a part.
    pub last_level_cache: u64,
    /// Memory, bytes.
    pub memory: u64,
    /// The instruction set of the library's kernels here.
    pub isa: String,
    /// Environment variables that change what the library does.
    pub environment: Vec<String>,
}

fn proc_field(file: &str, key: &str) -> Option<String> {
    let text = std::fs::read_to_string(file).ok()?;
    let line = text.lines().find(|line| line.starts_with(key))?;
    Some(line.split_once(':')?.1.trim().to_owned())
}

fn kilobytes(text: &str) -> Option<u64> {
    text.trim_end_matches(|c: char| !c.is_ascii_digit()).parse::<u64>().ok().map(|k| k << 10)
}

/// Memory that could be allocated without swapping, bytes, if the system tells.
#[must_use]
pub fn available_memory() -> Option<u64> {
    kilobytes(&proc_field("/proc/meminfo", "MemAvailable")?)
}

impl Machine {
    /// This machine.
    ///
    /// # Errors
    /// [`kronsae::Status::Unsupported`] if `KRONSAE_ISA` forces an instruction set this CPU lacks.
    pub fn this() -> Result<Self> {
        let cache = |index: u32| {
            let path = format!("/sys/devices/system/cpu/cpu0/cache/index{index}/size");
            kilobytes(std::fs::read_to_string(path).ok()?.trim())
        };
        let own = std::env::vars_os().filter_map(|(key, value)| {
            let key = key.into_string().ok()?;
            let ours = key.starts_with("KRONSAE_") && key != "KRONSAE_BENCH_PYTHON";
            ours.then(|| format!("{key}={}", value.to_string_lossy()))
        });
        Ok(Machine {
            cpu: proc_field("/proc/cpuinfo", "model name").unwrap_or_else(|| "unknown CPU".to_owned()),
            cores: std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
            last_level_cache: (0..5).filter_map(cache).max().unwrap_or(64 << 20),
            memory: proc_field("/proc/meminfo", "MemTotal").and_then(|m| kilobytes(&m)).unwrap_or(0),
            isa: kronsae::Isa::detect()?.name().to_owned(),
            environment: own.collect(),
        })
    }
}

/// Processor time since the machine started, in the kernel's ticks: of everybody, and of this process and `child`.
#[derive(Debug, Clone, Copy)]
pub struct Ticks {
    everybody: u64,
    own: u64,
    at: Instant,
}

impl Ticks {
    /// Now, if the system tells. `child` is a process whose time counts as this one's.
    #[must_use]
    pub fn now(child: Option<u32>) -> Option<Self> {
        let text = std::fs::read_to_string("/proc/stat").ok()?;
        let fields: Vec<u64> = text.lines().next()?.split_whitespace().skip(1).flat_map(str::parse).collect();
        // user, nice, system, then idle and waiting for disks, which is nobody's time; then interrupts and what other
        // guests of the host took. Guests' own time, after that, is within user's.
        let everybody = fields.iter().take(8).sum::<u64>() - fields.iter().skip(3).take(2).sum::<u64>();
        let of = |process: &str| -> Option<u64> {
            let text = std::fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
            // The name, in parentheses, may hold anything; utime and stime are the 12th and 13th field after it.
            let mut fields = text.rsplit_once(')')?.1.split_whitespace().skip(11);
            Some(fields.next()?.parse::<u64>().ok()? + fields.next()?.parse::<u64>().ok()?)
        };
        let own = of("self")? + child.and_then(|child| of(&child.to_string())).unwrap_or(0);
        Some(Ticks { everybody, own, at: Instant::now() })
    }

    /// Cores that others kept busy since `before`, on average.
    #[must_use]
    pub fn others_since(&self, before: &Ticks) -> f64 {
        // 100 ticks a second is what Linux tells on every architecture that this runs on.
        let ticks = (self.everybody - before.everybody).saturating_sub(self.own - before.own) as f64;
        ticks / 100.0 / self.at.duration_since(before.at).as_secs_f64().max(1e-3)
    }
}

/// Pushes everything else out of the caches.
#[derive(Debug)]
pub struct Flusher {
    buffer: Vec<u64>,
    cores: usize,
}

impl Flusher {
    /// A flusher for `machine`: a buffer a quarter larger than its last-level cache, an eighth of its memory at most.
    #[must_use]
    pub fn new(machine: &Machine) -> Self {
        let bytes = (machine.last_level_cache / 4 * 5).min(machine.memory / 8).max(32 << 20);
        Flusher { buffer: vec![1; bytes as usize / 8], cores: machine.cores }
    }

    /// Reads the whole buffer, each core its part, which leaves caches full of it.
    pub fn flush(&self) {
        std::thread::scope(|scope| {
            for part in self.buffer.chunks(self.buffer.len().div_ceil(self.cores)) {
                scope.spawn(move || black_box(sum(part)));
            }
        });
    }

    /// Size of the buffer.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.buffer.len() * 8
    }
}

/// Reads memory as fast as it comes: what an encoder that reads so many bytes cannot be faster than.
#[derive(Debug)]
pub struct Reader {
    pool: Pool,
    buffer: Aligned<u8>,
}

impl Reader {
    /// Reads `bytes` bytes a pass on `threads` threads.
    ///
    /// # Errors
    /// [`kronsae::Status::OutOfMemory`], or those of making threads.
    pub fn new(bytes: usize, threads: usize) -> Result<Self> {
        let mut buffer = Aligned::zeroed(bytes.next_multiple_of(4096), "the read benchmark")?;
        // Untouched pages would all be one page of zeros.
        buffer.iter_mut().step_by(512).for_each(|byte| *byte = 1);
        Ok(Reader { pool: Pool::new(threads, "read")?, buffer })
    }

    /// One pass over the buffer, timed from when all threads are there until all are done: waking them is not in it.
    ///
    /// # Errors
    /// Those of [`Pool::run`].
    pub fn pass(&mut self) -> Result<Duration> {
        let words = self.buffer.as_chunks::<8>().0;
        let taken = Mutex::new(Duration::ZERO);
        self.pool.run(&|worker| {
            let part = worker.share(words.len(), 512);
            // SAFETY: any 8 bytes are a u64, and the buffer's alignment of 64 bytes holds at every multiple of 8.
            let part = unsafe { std::slice::from_raw_parts(words[part.clone()].as_ptr().cast::<u64>(), part.len()) };
            worker.wait();
            let start = Instant::now();
            black_box(sum(part));
            worker.wait();
            if worker.index == 0 {
                *taken.lock().unwrap_or_else(PoisonError::into_inner) = start.elapsed();
            }
        })?;
        Ok(taken.into_inner().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Sums words with the widest loads at hand.
fn sum(words: &[u64]) -> u64 {
    #[inline(always)]
    fn body(words: &[u64]) -> u64 {
        let mut lanes = [0_u64; 32];
        let (chunks, rest) = words.as_chunks::<32>();
        for chunk in chunks {
            for (lane, word) in lanes.iter_mut().zip(chunk) {
                *lane = lane.wrapping_add(*word);
            }
        }
        rest.iter().chain(&lanes).fold(0, |sum, word| sum.wrapping_add(*word))
    }
    #[cfg(target_arch = "x86_64")]
    {
        #[target_feature(enable = "avx2")]
        fn wide(words: &[u64]) -> u64 {
            body(words)
        }
        if is_x86_feature_detected!("avx2") {
            // SAFETY: the CPU has AVX2, it was just asked.
            return unsafe { wide(words) };
        }
    }
    body(words)
}
