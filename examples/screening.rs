//! Plain against screened encode at small batches: `cargo run --release --example screening -- [THREADS] [D] [HEADS]`.
//!
//! Weights are random, as of a fresh model; heads of 4 x 4 latents, K = 50. Times are medians and bests, with the caches
//! as the previous call left them ("hot") and after writing a buffer larger than a core's share of them ("flushed"). GB/s
//! are of the bests; the read bandwidth is measured in the same run, on as many threads, over memory of the same sizes.

use kronsae::sae::{Config, Encoder as Shape, EncoderWeights, Matrix, Selection};
use kronsae::{Activations, Aligned, EncodePath, Encoder, EncoderOptions, Isa, Latents, Sae};
use std::hint::black_box;
use std::sync::Arc;
use std::time::{Duration, Instant};

const K: usize = 50;
/// Beyond what a core's own caches hold. A shared last-level cache may still hold more.
const FLUSH: usize = 256 << 20;

/// SplitMix64, and from it numbers of variance 1 that are close to normal.
struct Rng(u64);

impl Rng {
    fn unit(&mut self) -> f32 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        ((z ^ (z >> 31)) >> 40) as f32 / (1_u64 << 23) as f32 - 1.0
    }

    fn normal(&mut self) -> f32 {
        (0..6).map(|_| self.unit()).sum::<f32>() * 0.5_f32.sqrt()
    }
}

fn model(d: usize, heads: usize) -> kronsae::Result<Sae> {
    let shape = Shape::Kron { heads, base: 4, extension: 4 };
    let config = Config::new(shape, d, Selection::TopK(K), 1.0)?;
    let mut rng = Rng(1);
    let mut weight = Matrix::zeroed(shape.rows(), d, "weights")?;
    let stride = weight.stride();
    for row in weight.f32_mut().chunks_mut(stride) {
        row[..d].iter_mut().for_each(|w| *w = rng.normal() / (d as f32).sqrt());
    }
    let bias = Aligned::zeroed(shape.rows(), "biases")?;
    Sae::from_parts(config, EncoderWeights { weight, bias, threshold: None }, None)
}

/// Median and least, in seconds.
fn statistics(mut times: Vec<Duration>) -> [f64; 2] {
    times.sort_unstable();
    [times[times.len() / 2].as_secs_f64(), times[0].as_secs_f64()]
}

/// GB/s of reading `bytes` on `threads` threads, at best.
fn bandwidth(isa: Isa, threads: usize, bytes: usize) -> f64 {
    let data = vec![1.0_f32; bytes / 4];
    let parts: Vec<&[f32]> = data.chunks(data.len().div_ceil(threads)).collect();
    let read = |part: &[f32]| {
        let x = vec![1.0_f32; 4096];
        let picks: Vec<u32> = (0..(part.len() / 4096) as u32).collect();
        let mut out = vec![0.0; picks.len()];
        kronsae::gathered_dots(isa, part, 4096, &picks, &x, &mut out);
        black_box(out);
    };
    let times = (0..9)
        .map(|_| {
            let start = Instant::now();
            std::thread::scope(|scope| {
                parts[1..].iter().for_each(|part| _ = scope.spawn(|| read(part)));
                read(parts[0]);
            });
            start.elapsed()
        })
        .collect();
    bytes as f64 / statistics(times)[1] / 1e9
}

/// Memory this process has of the system, where that can be asked.
fn resident() -> String {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    line.map_or_else(|| "unknown".into(), |kb| kb.trim().to_owned())
}

fn main() -> kronsae::Result<()> {
    let arguments: Vec<usize> = std::env::args().skip(1).filter_map(|a| a.parse().ok()).collect();
    let argument = |at: usize, default: usize| arguments.get(at).copied().unwrap_or(default);
    let (threads, d, heads) = (argument(0, 1), argument(1, 2304), argument(2, 4096));
    kronsae::Amx::request();
    let isa = Isa::detect()?;
    let sae = Arc::new(model(d, heads)?);
    let weights = sae.config().encoder.rows() * d;
    println!("{threads} threads, d {d}, heads {heads} of 4 x 4, K {K}, {}", isa.name());
    for bytes in [weights, 4 * weights] {
        println!(
            "read bandwidth over {:.0} MB, at best: {:.1} GB/s",
            bytes as f64 / 1e6,
            bandwidth(isa, threads, bytes)
        );
    }
    let start = Instant::now();
    let mut plain = Encoder::new(Arc::clone(&sae), EncoderOptions { threads, path: EncodePath::Plain })?;
    println!("plain encoder made in {:.3} s; resident: {}", start.elapsed().as_secs_f64(), resident());
    let start = Instant::now();
    let mut screened = Encoder::new(Arc::clone(&sae), EncoderOptions { threads, path: EncodePath::Screened })?;
    let took = start.elapsed().as_secs_f64();
    println!("screened encoder made in {took:.3} s, the int8 copy included; resident: {}", resident());

    let mut rng = Rng(2);
    let mut flush = vec![0_u8; FLUSH];
    println!("batch  path       hot ms     best   GB/s  flushed ms   best   GB/s   bytes/weight  rows recomputed");
    for batch in [1, 2, 4, 8, 16, 32, 64] {
        let repeats = (120 / batch).clamp(7, 41);
        let x: Vec<f32> = (0..batch * d * repeats).map(|_| rng.normal()).collect();
        let mut latents = Latents::new(batch, K)?;
        for (name, encoder) in [("plain", &mut plain), ("screened", &mut screened)] {
            let before = encoder.screening().map_or(0, |s| s.recomputed_rows);
            let mut tokens = 0;
            let mut measure = |flushed: bool| -> kronsae::Result<[f64; 2]> {
                let mut times = Vec::new();
                for x in x.chunks_exact(batch * d) {
                    if flushed {
                        flush.iter_mut().step_by(64).for_each(|b| *b = b.wrapping_add(1));
                        black_box(&flush);
                    }
                    let start = Instant::now();
                    encoder.encode(Activations::from_f32(x, d)?, &mut latents.as_mut())?;
                    times.push(start.elapsed());
                    tokens += batch;
                }
                Ok(statistics(times))
            };
            let (hot, flushed) = (measure(false)?, measure(true)?);
            let rows = sae.config().encoder.rows() as f64;
            let (share, bytes) = match encoder.screening() {
                Some(s) => {
                    let share = (s.recomputed_rows - before) as f64 / tokens as f64 / rows;
                    // Rows that several tokens need are read once or more; counted here as often as computed.
                    let copy = s.copy_bytes[usize::from(batch > 8)] as f64 * batch.div_ceil(s.tile_rows) as f64;
                    (share, copy + share * 4.0 * weights as f64 * batch as f64)
                }
                None => (1.0, 4.0 * weights as f64),
            };
            println!(
                "{batch:5}  {name:8} {:8.3} {:8.3} {:6.1}  {:8.3} {:8.3} {:6.1}   {:10.3}  {:12.2} %",
                hot[0] * 1e3,
                hot[1] * 1e3,
                bytes / hot[1] / 1e9,
                flushed[0] * 1e3,
                flushed[1] * 1e3,
                bytes / flushed[1] / 1e9,
                bytes / weights as f64,
                share * 100.0
            );
        }
    }
    Ok(())
}
