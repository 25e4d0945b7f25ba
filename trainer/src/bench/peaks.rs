//! The most arithmetic that the machine reaches, by kind: what the floor of a large batch is made of.

use kronsae::threads::Pool;
use kronsae::{Amx, Isa, Result};
use serde::Serialize;
use std::hint::black_box;
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

/// What multiplies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Unit {
    /// f32 multiply-adds in vectors.
    F32,
    /// `vpdpbusd`: int8 in vectors.
    Int8Vectors,
    /// `tdpbusd`: int8 in the tiles of AMX.
    Int8Tiles,
    /// `tdpbf16ps`: bf16 in the tiles of AMX.
    Bf16Tiles,
}

impl Unit {
    /// All of them.
    pub const ALL: [Unit; 4] = [Unit::F32, Unit::Int8Vectors, Unit::Int8Tiles, Unit::Bf16Tiles];

    /// What it is called in tables.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Unit::F32 => "f32",
            Unit::Int8Vectors => "int8 vectors",
            Unit::Int8Tiles => "int8 tiles",
            Unit::Bf16Tiles => "bf16 tiles",
        }
    }

    /// Runs some of its multiply-adds on registers alone; the operations done, two for each. None where this process does
    /// not have it.
    fn run(self) -> Option<usize> {
        match self {
            Unit::F32 => Some(multiply_adds(500_000)),
            #[cfg(target_arch = "x86_64")]
            Unit::Int8Vectors => x86::int8_vectors(500_000),
            #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
            Unit::Int8Tiles => x86::tiles(20_000, true),
            #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
            Unit::Bf16Tiles => x86::tiles(20_000, false),
            #[cfg(not(all(target_arch = "x86_64", target_os = "linux")))]
            _ => None,
        }
    }
}

/// One of the machine's peaks.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Peak {
    /// What multiplies.
    pub unit: Unit,
    /// Threads.
    pub threads: usize,
    /// Operations, two for each multiply-add, 1e9 a second.
    pub gigaops_per_second: f64,
}

/// The peaks that `threads` threads reach, of each [`Unit`] that this process has: the best of many short runs on registers
/// alone, so that some fall where nothing else ran.
///
/// # Errors
/// Those of making threads.
pub fn peaks(threads: usize) -> Result<Vec<Peak>> {
    let mut pool = Pool::new(threads, "peak")?;
    let mut peaks = Vec::new();
    for unit in Unit::ALL {
        let best = Mutex::new(0.0_f64);
        for _ in 0..50 {
            pool.run(&|worker| {
                worker.wait();
                let start = Instant::now();
                let done = unit.run();
                worker.wait();
                if let Some(operations) = done
                    && worker.index == 0
                {
                    let rate = (operations * worker.count) as f64 / start.elapsed().as_secs_f64();
                    let mut best = best.lock().unwrap_or_else(PoisonError::into_inner);
                    *best = best.max(rate);
                }
            })?;
        }
        let rate = best.into_inner().unwrap_or_else(PoisonError::into_inner);
        if rate > 0.0 {
            peaks.push(Peak { unit, threads, gigaops_per_second: rate / 1e9 });
        }
    }
    Ok(peaks)
}

/// Whether this process may use the tiles of AMX.
#[must_use]
pub fn has_tiles() -> bool {
    Isa::available().last().and_then(Amx::detect).is_some()
}

/// `steps` rounds of independent multiply-adds on the widest registers; returns the f32 operations done.
fn multiply_adds(steps: usize) -> usize {
    #[cfg(target_arch = "x86_64")]
    if let Some(done) = x86::multiply_adds(steps) {
        return done;
    }
    // Multiplication and addition apart: where there is no FMA, that is what there is.
    let (factor, term) = (black_box(0.999_f32), black_box(1e-3_f32));
    let mut chains = [black_box(1.0_f32); 32];
    for _ in 0..steps {
        for chain in &mut chains {
            *chain = *chain * factor + term;
        }
    }
    black_box(chains);
    steps * chains.len() * 2
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;
    use std::hint::black_box;

    /// Latency 4, two a cycle: 8 chains suffice, 12 leave room.
    const CHAINS: usize = 12;

    #[target_feature(enable = "avx512f")]
    fn avx512(steps: usize) -> usize {
        let (factor, term) = (_mm512_set1_ps(black_box(0.999)), _mm512_set1_ps(black_box(1e-3)));
        let mut chains = [_mm512_set1_ps(black_box(1.0)); CHAINS];
        for _ in 0..steps {
            for chain in &mut chains {
                *chain = _mm512_fmadd_ps(*chain, factor, term);
            }
        }
        black_box(chains);
        steps * CHAINS * 16 * 2
    }

    #[target_feature(enable = "avx2,fma")]
    fn avx2(steps: usize) -> usize {
        let (factor, term) = (_mm256_set1_ps(black_box(0.999)), _mm256_set1_ps(black_box(1e-3)));
        let mut chains = [_mm256_set1_ps(black_box(1.0)); CHAINS];
        for _ in 0..steps {
            for chain in &mut chains {
                *chain = _mm256_fmadd_ps(*chain, factor, term);
            }
        }
        black_box(chains);
        steps * CHAINS * 8 * 2
    }

    pub(super) fn multiply_adds(steps: usize) -> Option<usize> {
        if is_x86_feature_detected!("avx512f") {
            // SAFETY: the CPU has AVX-512F, it was just asked.
            return Some(unsafe { avx512(steps) });
        }
        // SAFETY: the CPU has AVX2 and FMA, it is asked first.
        (is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma")).then(|| unsafe { avx2(steps) })
    }

    #[target_feature(enable = "avx512f,avx512vnni")]
    fn vnni(steps: usize) -> usize {
        let (a, b) = (_mm512_set1_epi8(black_box(3)), _mm512_set1_epi8(black_box(-2)));
        let mut chains = [_mm512_setzero_si512(); CHAINS];
        for _ in 0..steps {
            for chain in &mut chains {
                *chain = _mm512_dpbusd_epi32(*chain, a, b);
            }
        }
        black_box(chains);
        steps * CHAINS * 64 * 2
    }

    pub(super) fn int8_vectors(steps: usize) -> Option<usize> {
        let there = is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512vnni");
        // SAFETY: the CPU has AVX-512F and VNNI, it is asked first.
        there.then(|| unsafe { vnni(steps) })
    }

    /// `steps` rounds of six products of tiles, of int8 or of bf16.
    #[cfg(target_os = "linux")]
    pub(super) fn tiles(steps: usize, int8: bool) -> Option<usize> {
        if !super::has_tiles() || (int8 && __cpuid_count(7, 0).edx >> 25 & 1 == 0) {
            return None;
        }
        macro_rules! rounds {
            ($product:literal) => {
                std::arch::asm!(
                    "ldtilecfg [{config}]",
                    "tilezero tmm0", "tilezero tmm1", "tilezero tmm2", "tilezero tmm3", "tilezero tmm4", "tilezero tmm5",
                    "tilezero tmm6", "tilezero tmm7",
                    "2:",
                    concat!($product, " tmm0, tmm6, tmm7"),
                    concat!($product, " tmm1, tmm6, tmm7"),
                    concat!($product, " tmm2, tmm6, tmm7"),
                    concat!($product, " tmm3, tmm6, tmm7"),
                    concat!($product, " tmm4, tmm6, tmm7"),
                    concat!($product, " tmm5, tmm6, tmm7"),
                    "dec {steps}",
                    "jnz 2b",
                    "tilerelease",
                    config = in(reg) CONFIG.0.as_ptr(),
                    steps = inout(reg) steps => _,
                    options(nostack),
                )
            };
        }
        /// Eight tiles of 16 rows of 64 bytes, palette 1.
        #[repr(align(64))]
        struct Config([u8; 64]);
        static CONFIG: Config = {
            let mut config = [0; 64];
            config[0] = 1;
            let mut tile = 0;
            while tile < 8 {
                config[16 + 2 * tile] = 64;
                config[48 + tile] = 16;
                tile += 1;
            }
            Config(config)
        };
        if steps == 0 {
            return Some(0);
        }
        // SAFETY: the tiles are there and granted to this process, and so are int8 products where they are asked for (bf16's
        // are part of what `Amx::detect` asks for). All tile registers are released again; nobody else on this thread is in
        // the midst of using them, for they are not kept over calls. The configuration is 64 readable bytes. `steps` is at
        // least 1, so the loop ends.
        unsafe {
            if int8 {
                rounds!("tdpbusd");
            } else {
                rounds!("tdpbf16ps");
            }
        }
        Some(steps * 6 * 16 * 16 * if int8 { 64 } else { 32 } * 2)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_unit_that_is_there_has_a_peak() {
        Amx::request();
        let peaks = peaks(1).unwrap();
        let of = |unit: Unit| peaks.iter().find(|peak| peak.unit == unit).map(|peak| peak.gigaops_per_second);
        assert!(of(Unit::F32).unwrap() > 0.1, "{peaks:?}");
        assert_eq!(of(Unit::Bf16Tiles).is_some(), has_tiles());
        #[cfg(target_arch = "x86_64")]
        assert_eq!(of(Unit::Int8Vectors).is_some(), is_x86_feature_detected!("avx512vnni"));
        // The instruction does four times as much and is issued as often; a disturbed run still shows twice.
        if let Some(int8) = of(Unit::Int8Vectors) {
            assert!(int8 > 1.5 * of(Unit::F32).unwrap(), "{peaks:?}");
        }
    }
}
