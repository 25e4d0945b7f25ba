//! What the encoder allocates: nothing after the first call of a shape, and at no time a batch-by-latents buffer.
//!
//! One test function, alone in its program: the counts are those of the whole process.

mod common;

use common::{Rng, random_sae};
use kronsae::sae::{Encoder as Shape, Selection};
use kronsae::{Activations, Dtype, EncodePath, Encoder, EncoderOptions, Latents};
use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

/// Counts what goes through it.
struct Counting;

static CALLS: AtomicUsize = AtomicUsize::new(0);
static HELD: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

fn grew(bytes: usize) {
    CALLS.fetch_add(1, Relaxed);
    let held = HELD.fetch_add(bytes, Relaxed) + bytes;
    PEAK.fetch_max(held, Relaxed);
}

// SAFETY: everything is passed on to the system's allocator; counting allocates nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        grew(layout.size());
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }
    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        grew(layout.size());
        // SAFETY: the caller's promise.
        unsafe { System.alloc_zeroed(layout) }
    }
    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        grew(new_size);
        HELD.fetch_sub(layout.size(), Relaxed);
        // SAFETY: the caller's promise.
        unsafe { System.realloc(pointer, layout, new_size) }
    }
    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        HELD.fetch_sub(layout.size(), Relaxed);
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const D: usize = 64;

/// Calls of the allocator, and the most bytes held beyond those held before, while `body` runs.
fn measure<T>(body: impl FnOnce() -> T) -> (usize, usize, T) {
    let (calls, held) = (CALLS.load(Relaxed), HELD.load(Relaxed));
    PEAK.store(held, Relaxed);
    let out = body();
    (CALLS.load(Relaxed) - calls, PEAK.load(Relaxed) - held, out)
}

/// Latents that tie, fire everywhere, or not at all: what makes candidates pile up.
fn batches(rows: usize, rng: &mut Rng) -> [Vec<f32>; 4] {
    let random = rng.vec(rows * D);
    let ties = (0..rows * D).map(|_| rng.below(2) as f32).collect();
    let mut bad = rng.vec(rows * D);
    bad[rng.below(rows * D)] = f32::NAN;
    [random, vec![0.0; rows * D], ties, bad]
}

#[test]
fn encoding_allocates_nothing_and_never_a_row_of_latents_for_each_token() {
    // The counter itself counts: a check that could not fail would say nothing.
    let (calls, peak, _) = measure(|| std::hint::black_box(vec![1_u8; 5000]));
    assert!(calls == 1 && peak == 5000, "the allocator in use is not the counting one");

    let mut rng = Rng(11);
    let kron = Shape::Kron { heads: 256, base: 8, extension: 8 }; // F = 16,384, 4,096 rows
    let wide = Shape::Kron { heads: 4, base: 40, extension: 50 }; // F = 8,000 in few heads
    let dense = Shape::Dense { latents: 4096 };
    for (shape, selection) in [
        (kron, Selection::TopK(50)),
        (kron, Selection::Threshold { theta: 0.0, max_latents: 60 }),
        (wide, Selection::TopK(50)),
        (wide, Selection::Threshold { theta: 0.0, max_latents: 60 }),
        (dense, Selection::TopK(50)),
        (dense, Selection::Threshold { theta: 0.0, max_latents: 60 }),
    ] {
        let sae = Arc::new(random_sae(shape, D, selection, Dtype::Bf16, &mut rng));
        for (threads, path) in [1, 2].into_iter().flat_map(|t| [(t, EncodePath::Plain), (t, EncodePath::Screened)]) {
            for rows in [1, 256] {
                let inputs = batches(rows, &mut rng);
                let mut latents = Latents::new(rows, selection.capacity()).unwrap();
                let (_, workspace, mut encoder) =
                    measure(|| Encoder::new(Arc::clone(&sae), EncoderOptions { threads, path }).unwrap());
                let what = format!("{shape:?} {selection:?}, {path:?}, {threads} threads, {rows} rows");
                let copy = encoder.screening().map_or(0, |screening| screening.held_bytes);

                let mut encode = |x: &[f32]| {
                    encoder.encode(Activations::from_f32(x, D).unwrap(), &mut latents.as_mut()).unwrap();
                };
                let (_, first_peak, ()) = measure(|| encode(&inputs[0]));
                for x in &inputs {
                    let (calls, _, ()) = measure(|| encode(x));
                    assert_eq!(calls, 0, "{what}: an encode after the first allocated");
                }

                // A tile of tokens, its pre-activations, and some per thread that does not grow with the batch. The
                // largest of these shapes would need 16 MB for 256 tokens by F; a dense tile is its tokens x F by definition.
                let tokens = if path == EncodePath::Plain { 48 } else { 128 };
                let tile = tokens * (D + shape.rows()) * 4;
                let per_thread = 24 * shape.rows() + 64 * 1024;
                // Screened: the int8 copies, upper bounds and lists of rows for a tile, its tokens in 8 and 16 bits.
                let screening = if copy > 0 { copy + tokens * (8 * shape.rows() + 8 * D + 2048) } else { 0 };
                assert_eq!(copy > 0, path == EncodePath::Screened, "{what}");
                let bound = tile + threads * per_thread + screening;
                assert!(workspace + first_peak <= bound, "{what}: {workspace} + {first_peak} bytes, bound {bound}");
                if let Shape::Kron { .. } = shape {
                    assert!(bound < 256 * shape.latents() * 4, "{what}: the bound would let B x F pass");
                }
            }
        }
    }
}
