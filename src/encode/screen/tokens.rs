//! Tokens in 16 bits, with the norms that the bounds need.

use super::bound::{Bound, Token, norm_of};
use super::copy::{TO_INTEGER, scale_for, split};
use crate::error::Result;
use crate::isa_fn;
use crate::memory::{Aligned, try_vec};
use crate::simd::Isa;
use crate::simd::int8::{GROUP, Int8Tokens, TOKEN_TILE};
use crate::threads::Divided;

/// Workspace for a tile of tokens.
#[derive(Debug)]
pub(super) struct Tokens {
    groups: usize,
    capacity: usize,
    planes: Aligned<i8>,
    tiles: Aligned<i8>,
    whole: Aligned<i16>,
    sums: Vec<[i32; 2]>,
    of: Vec<Token>,
}

/// The workspace as threads share it, each preparing its own tokens.
pub(super) struct SharedTokens<'a> {
    groups: usize,
    capacity: usize,
    has_tiles: bool,
    planes: Divided<'a, i8>,
    tiles: Divided<'a, i8>,
    whole: Divided<'a, i16>,
    sums: Divided<'a, [i32; 2]>,
    of: Divided<'a, Token>,
}

/// Sums of squares.
#[derive(Debug, Default)]
struct Squares {
    x: f64,
    z: f64,
    error: f64,
    low: f64,
}

const LANES: usize = 16;

isa_fn! {
    /// The largest |x - c|, NaN apart.
    fn largest(x: &[f32], centre: &[f32]) -> f32 {
        let mut most = [0.0_f32; LANES];
        for (x, centre) in x.as_chunks::<LANES>().0.iter().zip(centre.as_chunks::<LANES>().0) {
            for j in 0..LANES {
                let size = (x[j] - centre[j]).abs();
                most[j] = if size > most[j] { size } else { most[j] };
            }
        }
        most.iter().fold(0.0, |a: f32, &b| a.max(b))
    }
}

isa_fn! {
    /// Rounds x - c to integers; `x` is padded to whole vectors with zeros.
    fn round_token(
        x: &[f32],
        centre: &[f32],
        scale: f32,
        high: &mut [i8],
        low: &mut [i8],
        whole: &mut [i16],
        squares: &mut Squares,
    ) {
        let (step, inverse) = (f64::from(scale), if scale > 0.0 { 1.0 / f64::from(scale) } else { 0.0 });
        let mut of_x = [0.0_f64; LANES];
        let (mut of_z, mut error, mut of_low) = (of_x, of_x, of_x);
        for (i, x) in x.as_chunks::<LANES>().0.iter().enumerate() {
            let at = i * LANES..(i + 1) * LANES;
            let (centre, whole) = (&centre[at.clone()], &mut whole[at.clone()]);
            let (high, low) = (&mut high[at.clone()], &mut low[at]);
            for j in 0..LANES {
                let z = f64::from(x[j] - centre[j]);
                let shifted = z * inverse + TO_INTEGER;
                let rest = z - step * (shifted - TO_INTEGER);
                let integer = shifted.to_bits() as i16;
                whole[j] = integer;
                let [h, l] = split(integer);
                (high[j], low[j]) = (h, l);
                of_x[j] += f64::from(x[j]) * f64::from(x[j]);
                of_z[j] += z * z;
                error[j] += rest * rest;
                of_low[j] += f64::from(l) * f64::from(l);
            }
        }
        let sum = |lanes: [f64; LANES]| lanes.iter().sum::<f64>();
        *squares = Squares { x: sum(of_x), z: sum(of_z), error: sum(error), low: sum(of_low) * step * step };
    }
}

isa_fn! {
    fn sum(of: &[i8]) -> i32 {
        of.iter().map(|&v| i32::from(v)).sum()
    }
}

impl Tokens {
    /// Room for `capacity` tokens of `groups` groups; with tiles for AMX, if they are asked for.
    ///
    /// # Errors
    /// [`crate::Status::OutOfMemory`].
    pub(super) fn new(capacity: usize, groups: usize, tiles: bool) -> Result<Self> {
        let capacity = if tiles { capacity.next_multiple_of(TOKEN_TILE) } else { capacity };
        let (what, width) = ("the encoder's tokens in 16 bits", capacity.saturating_mul(groups * GROUP));
        Ok(Tokens {
            groups,
            capacity,
            planes: Aligned::zeroed(width.saturating_mul(2), what)?,
            tiles: Aligned::zeroed(if tiles { width.saturating_mul(2) } else { 0 }, what)?,
            whole: Aligned::zeroed(width, what)?,
            sums: try_vec(capacity, [0; 2], what)?,
            of: try_vec(capacity, Token::default(), what)?,
        })
    }

    pub(super) fn shared(&mut self) -> SharedTokens<'_> {
        SharedTokens {
            groups: self.groups,
            capacity: self.capacity,
            has_tiles: !self.tiles.is_empty(),
            planes: Divided::of(&mut self.planes),
            tiles: Divided::of(&mut self.tiles),
            whole: Divided::of(&mut self.whole),
            sums: Divided::of(&mut self.sums),
            of: Divided::of(&mut self.of),
        }
    }
}

impl SharedTokens<'_> {
    /// Rounds token `t`, whose elements are `x`, zero-padded to whole vectors of 16; also into tiles, if `tiled`. Bounds are
    /// proven, or so many `deviations` of errors that are taken to be independent: see [`Bound::token`].
    ///
    /// # Safety
    /// Nobody else may access token `t` meanwhile.
    pub(super) unsafe fn prepare(
        &self,
        isa: Isa,
        bound: &Bound,
        centre: &[f32],
        deviations: Option<f64>,
        t: usize,
        x: &[f32],
        tiled: bool,
    ) {
        let width = self.groups * GROUP;
        // SAFETY: the caller's promise: parts of token t.
        let (planes, whole, sums, of) = unsafe {
            (
                self.planes.slice(t * 2 * width..(t + 1) * 2 * width),
                self.whole.slice(t * width..(t + 1) * width),
                &mut self.sums.slice(t..t + 1)[0],
                &mut self.of.slice(t..t + 1)[0],
            )
        };
        let (high, low) = planes.split_at_mut(width);
        let scale = scale_for(largest(isa, x, centre));
        let mut squares = Squares::default();
        round_token(isa, x, centre, scale, high, low, whole, &mut squares);
        *sums = [sum(isa, high), sum(isa, low)];
        let Squares { x, z, error, low } = squares;
        let [z, error, low] = [z, error, low].map(norm_of);
        *of = bound.token(norm_of(x), [z, error, low], scale, deviations);
        if tiled {
            // SAFETY: the caller's promise: the lines of token t of its tile.
            unsafe { self.tile(t, planes) };
        }
    }

    /// Lays token `t` out for AMX.
    ///
    /// # Safety
    /// Nobody else may access token `t` meanwhile.
    unsafe fn tile(&self, t: usize, planes: &[i8]) {
        let (first, lane) = (t / TOKEN_TILE, t % TOKEN_TILE);
        for (plane, bytes) in planes.chunks_exact(self.groups * GROUP).enumerate() {
            for (g, group) in bytes.as_chunks::<GROUP>().0.iter().enumerate() {
                let tile = ((first * self.groups + g) * 2 + plane) * GROUP * TOKEN_TILE;
                for (k, four) in group.as_chunks::<4>().0.iter().enumerate() {
                    let at = tile + (k * TOKEN_TILE + lane) * 4;
                    // SAFETY: the caller's promise; only token t's bytes.
                    unsafe { self.tiles.slice(at..at + 4) }.copy_from_slice(four);
                }
            }
        }
    }

    /// What the bounds of token `t` are made of.
    ///
    /// # Safety
    /// Nobody may write token `t` meanwhile.
    pub(super) unsafe fn of(&self, t: usize) -> &Token {
        // SAFETY: the caller's promise.
        unsafe { &self.of.read(t..t + 1)[0] }
    }

    /// What the bounds of the first `count` tokens are made of.
    ///
    /// # Safety
    /// Nobody may write any token meanwhile.
    pub(super) unsafe fn all(&self, count: usize) -> &[Token] {
        // SAFETY: the caller's promise.
        unsafe { self.of.read(0..count) }
    }

    /// The first `count` tokens, to read.
    ///
    /// # Safety
    /// Nobody may write any token while the result lives.
    pub(super) unsafe fn read(&self, count: usize) -> Int8Tokens<'_> {
        assert!(count <= self.capacity, "more tokens than there is room for");
        let all = self.capacity * self.groups * GROUP;
        // SAFETY: the caller's promise; of the other tokens nothing that matters is read through the result.
        unsafe {
            Int8Tokens {
                planes: self.planes.read(0..2 * all),
                tiles: self.tiles.read(0..if self.has_tiles { 2 * all } else { 0 }),
                whole: self.whole.read(0..all),
                sums: self.sums.read(0..self.capacity),
                groups: self.groups,
                capacity: self.capacity,
                count,
            }
        }
    }
}
