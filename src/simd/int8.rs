//! Products of 16-bit rows and 16-bit tokens, by int8 arithmetic that is exact: the cheap side of screening.
//!
//! A weight is an integer Q, a token's element an integer Z, both of 16 bits and both kept as two *planes* of bytes:
//! `Q = 256 high + low`, with low signed. The *coarse* product of a row is that of its high plane alone, `sum high Z`: half
//! the bytes. The *fine* product is `sum Q Z`. Both are integers and come out as the f32 nearest to them, the same bits on
//! every instruction set, but for the fine products of AMX, which leave out the low plane times the low plane.
//!
//! Planes of weights are row-major, so that a row can be picked. Their bytes are stored plus 128, unsigned, for `vpdpbusd`
//! multiplies unsigned by signed; what that adds is 128 times the token's sum, and is taken off at the end. (`vpmaddubsw`
//! saturates and is not used.) No i32 overflows for d up to [`MOST_COLUMNS`].

use super::Isa;
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
use super::int8_amx;
#[cfg(target_arch = "x86_64")]
use super::int8_x86;

/// Rows whose results come together.
pub(crate) const BLOCK_ROWS: usize = 16;
/// Columns of a step of the kernels; widths are padded to them.
pub(crate) const GROUP: usize = 64;
/// The most that a weight or an element of a token may be in 16 bits, either side of 0: the high byte must not overflow.
pub(crate) const MOST: i32 = 127 * 256;
/// Wider rows could overflow sums of 32 bits: `2 * 128 * 255 * 32,768 < 2^31`.
pub(crate) const MOST_COLUMNS: usize = 1 << 15;
/// Tokens that lie together for AMX.
pub(crate) const TOKEN_TILE: usize = 16;

/// A matrix in two planes, or some rows of one.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Planes<'a> {
    /// `[rows, stride]`, each plus 128.
    pub(crate) high: &'a [u8],
    /// As `high`.
    pub(crate) low: &'a [u8],
    /// Bytes from one row to the next in either plane.
    pub(crate) stride: usize,
    /// Groups of columns.
    pub(crate) groups: usize,
}

/// Tokens in 16 bits.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Int8Tokens<'a> {
    /// `[capacity, 2, width]`: a token's high bytes, then its low ones.
    pub(crate) planes: &'a [i8],
    /// The same in the order of AMX, `[capacity / 16, groups, 2, 16, 16, 4]`: for each plane of 16 tokens and 64 columns, the
    /// first 4 columns of each token, then the next ones. Empty where AMX is not used.
    pub(crate) tiles: &'a [i8],
    /// `[capacity, width]`
    pub(crate) whole: &'a [i16],
    /// `[capacity]`: sum of a token's high bytes, of its low ones.
    pub(crate) sums: &'a [[i32; 2]],
    /// Groups of columns; `width = 64 * groups`.
    pub(crate) groups: usize,
    /// Tokens there is room for.
    pub(crate) capacity: usize,
    /// Tokens there are.
    pub(crate) count: usize,
}

/// Products of one token with the rows of a block.
pub(crate) type Line = [f32; BLOCK_ROWS];

/// Which kernel computes the products; each a proof that this CPU has what it takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Int8Kernel {
    /// Left to the compiler.
    Portable(Isa),
    /// 16-bit multiplications, 16 at a time.
    #[cfg(target_arch = "x86_64")]
    Avx2(int8_x86::Avx2Proof),
    /// `vpdpbusd`, 64 at a time.
    #[cfg(target_arch = "x86_64")]
    Vnni(int8_x86::VnniProof),
    /// `tdpbusd` for many tokens at a time, `vpdpbusd` for few.
    #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
    Amx(int8_amx::AmxProof),
}

impl Planes<'_> {
    /// Panics if `rows` are not all there.
    fn check(&self, rows: usize) {
        assert!(self.stride >= self.groups * GROUP, "rows overlap");
        let needed = rows.checked_mul(self.stride).expect("rows that exist");
        assert!(self.high.len() >= needed && self.low.len() >= needed, "rows outside the planes");
    }
}

impl Int8Tokens<'_> {
    fn check(&self, planes: &Planes<'_>) {
        let width = self.groups * GROUP;
        assert_eq!(self.groups, planes.groups, "tokens of another width");
        assert!(self.count <= self.capacity && self.sums.len() >= self.capacity, "tokens are missing");
        assert!(self.planes.len() >= self.capacity * 2 * width && self.whole.len() >= self.capacity * width);
        assert!(self.groups * GROUP <= MOST_COLUMNS, "sums could overflow");
    }
}

impl Int8Kernel {
    /// The best within `isa`.
    pub(crate) fn best(isa: Isa) -> Self {
        Self::all(isa).last().unwrap_or(Int8Kernel::Portable(isa))
    }

    /// All within `isa`, slowest first.
    pub(crate) fn all(isa: Isa) -> impl Iterator<Item = Self> {
        #[cfg(target_arch = "x86_64")]
        let others = [
            int8_x86::Avx2Proof::of(isa).map(Int8Kernel::Avx2),
            int8_x86::VnniProof::of(isa).map(Int8Kernel::Vnni),
            #[cfg(target_os = "linux")]
            int8_amx::AmxProof::of(isa).map(Int8Kernel::Amx),
        ];
        #[cfg(not(target_arch = "x86_64"))]
        let others: [Option<Self>; 0] = [];
        std::iter::once(Int8Kernel::Portable(isa)).chain(others.into_iter().flatten())
    }

    /// Whether this kernel takes tokens in tiles: [`Int8Tokens::tiles`] must be there then, and `capacity` a multiple of 16.
    pub(crate) fn takes_tiles(self) -> bool {
        #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
        return matches!(self, Int8Kernel::Amx(_));
        #[cfg(not(all(target_arch = "x86_64", target_os = "linux")))]
        false
    }

    /// The coarse products of the first 16 rows of `planes` with each token, into `out`, in units of 256 Q's.
    ///
    /// # Panics
    /// If a slice does not fit the shape.
    pub(crate) fn coarse(self, planes: Planes<'_>, tokens: Int8Tokens<'_>, out: &mut [Line]) {
        planes.check(BLOCK_ROWS);
        tokens.check(&planes);
        assert_eq!(out.len(), tokens.count, "as many results as tokens");
        match self {
            Int8Kernel::Portable(isa) => portable(isa, planes.high, planes.stride, tokens, out),
            #[cfg(target_arch = "x86_64")]
            Int8Kernel::Avx2(proof) => proof.coarse(planes, tokens, out),
            #[cfg(target_arch = "x86_64")]
            Int8Kernel::Vnni(proof) => proof.coarse(planes, tokens, out),
            #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
            Int8Kernel::Amx(proof) => proof.vnni().coarse(planes, tokens, out),
        }
    }

    /// The products of the first 32 rows of `planes` with each token, by tiles: `out[t]` for the first 16 rows,
    /// `out[count + t]` for the others. Fine ones lack `sum low low`; coarse ones are exact.
    ///
    /// # Panics
    /// If a slice does not fit the shape; if this kernel [takes no tiles](Self::takes_tiles).
    pub(crate) fn tiled(self, fine: bool, planes: Planes<'_>, tokens: Int8Tokens<'_>, out: &mut [Line]) {
        planes.check(2 * BLOCK_ROWS);
        tokens.check(&planes);
        assert_eq!(out.len(), 2 * tokens.count, "two lines for each token");
        let tiles = tokens.capacity * 2 * tokens.groups * GROUP;
        assert!(tokens.capacity.is_multiple_of(TOKEN_TILE) && tokens.tiles.len() >= tiles, "tiles are missing");
        match self {
            #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
            Int8Kernel::Amx(proof) => proof.tiled(fine, planes, tokens, out),
            _ => panic!("{self:?} takes no tiles"),
        }
    }

    /// The fine products of token `t` with the rows `picks`, into `out`, in units of Q's.
    ///
    /// # Panics
    /// If a slice does not fit the shape, or a row or the token is not there.
    pub(crate) fn picked(self, planes: Planes<'_>, tokens: Int8Tokens<'_>, t: usize, picks: &[u32], out: &mut [f32]) {
        tokens.check(&planes);
        assert!(t < tokens.count && out.len() == picks.len(), "a token that is not there, or too little room");
        planes.check(picks.iter().max().map_or(0, |&row| row as usize + 1));
        match self {
            Int8Kernel::Portable(isa) => portable_picked(isa, planes, tokens, t, picks, out),
            #[cfg(target_arch = "x86_64")]
            Int8Kernel::Avx2(proof) => proof.picked(planes, tokens, t, picks, out),
            #[cfg(target_arch = "x86_64")]
            Int8Kernel::Vnni(proof) => proof.picked(planes, tokens, t, picks, out),
            #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
            Int8Kernel::Amx(proof) => proof.vnni().picked(planes, tokens, t, picks, out),
        }
    }
}

/// Columns after which sums of 32 bits go into wider ones: `1024 / 16 * 255 * 32,512 < 2^30` in each of 16 lanes.
const FLUSH: usize = 1024;

/// `sum (row - 128) Z`.
#[inline(always)]
fn product(row: &[u8], whole: &[i16]) -> i64 {
    let mut sum = 0_i64;
    for (row, whole) in row.chunks(FLUSH).zip(whole.chunks(FLUSH)) {
        let mut lanes = [0_i32; 16];
        for (row, whole) in row.as_chunks::<16>().0.iter().zip(whole.as_chunks::<16>().0) {
            for j in 0..16 {
                lanes[j] += (i32::from(row[j]) - 128) * i32::from(whole[j]);
            }
        }
        sum += lanes.iter().map(|&v| i64::from(v)).sum::<i64>();
    }
    sum
}

crate::isa_fn! {
    fn portable(high: &[u8], stride: usize, tokens: Int8Tokens<'_>, out: &mut [Line]) {
        let width = tokens.groups * GROUP;
        for (out, whole) in out.iter_mut().zip(tokens.whole.chunks_exact(width)) {
            for (r, out) in out.iter_mut().enumerate() {
                *out = product(&high[r * stride..][..width], whole) as f32;
            }
        }
    }
}

crate::isa_fn! {
    fn portable_picked(planes: Planes<'_>, tokens: Int8Tokens<'_>, t: usize, picks: &[u32], out: &mut [f32]) {
        let width = tokens.groups * GROUP;
        let whole = &tokens.whole[t * width..][..width];
        for (&row, out) in picks.iter().zip(out) {
            let at = row as usize * planes.stride;
            let [high, low] = [planes.high, planes.low].map(|plane| product(&plane[at..][..width], whole));
            *out = (256 * high + low) as f32;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn noise(i: usize) -> u64 {
        (i as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 20
    }

    /// A matrix of 32 rows and some tokens, as slices are made of them.
    struct Case {
        stride: usize,
        groups: usize,
        count: usize,
        capacity: usize,
        planes: [Vec<u8>; 2],
        whole: Vec<i16>,
        bytes: Vec<i8>,
        tiles: Vec<i8>,
        sums: Vec<[i32; 2]>,
    }

    impl Case {
        /// Bytes and integers at the ends of their ranges, or numbers of no pattern.
        fn new(groups: usize, count: usize, extreme: bool) -> Self {
            let (width, capacity) = (groups * GROUP, count.next_multiple_of(TOKEN_TILE));
            let stride = width + GROUP;
            let planes = [0, 7].map(|salt| {
                (0..2 * BLOCK_ROWS * stride).map(|i| if extreme { 255 } else { noise(i + salt) as u8 }).collect()
            });
            let whole: Vec<i16> = (0..capacity * width)
                .map(|i| match extreme {
                    // One sign a token, so that its sums are as large as any.
                    true => (if (i / width).is_multiple_of(2) { MOST } else { -MOST }) as i16,
                    false => ((noise(i) % (2 * MOST as u64 + 1)) as i32 - MOST) as i16,
                })
                .collect();
            let split = |v: i16| [((v - i16::from(v as i8)) >> 8) as i8, v as i8];
            let mut bytes = vec![0; capacity * 2 * width];
            let mut tiles = vec![0; capacity * 2 * width];
            let mut sums = vec![[0; 2]; capacity];
            for (i, &v) in whole.iter().enumerate() {
                let (t, c) = (i / width, i % width);
                for (plane, byte) in split(v).into_iter().enumerate() {
                    bytes[(t * 2 + plane) * width + c] = byte;
                    let tile = (t / 16 * groups + c / GROUP) * 2 + plane;
                    tiles[tile * 1024 + c % GROUP / 4 * 64 + t % 16 * 4 + c % 4] = byte;
                    sums[t][plane] += i32::from(byte);
                }
            }
            Case { stride, groups, count, capacity, planes, whole, bytes, tiles, sums }
        }

        fn planes(&self) -> Planes<'_> {
            let [high, low] = &self.planes;
            Planes { high, low, stride: self.stride, groups: self.groups }
        }

        fn tokens(&self) -> Int8Tokens<'_> {
            let Case { groups, count, capacity, .. } = *self;
            Int8Tokens {
                planes: &self.bytes,
                tiles: &self.tiles,
                whole: &self.whole,
                sums: &self.sums,
                groups,
                capacity,
                count,
            }
        }

        /// `sum (plane - 128) of`, by the definition.
        fn exact(&self, plane: usize, row: usize, of: impl Fn(i16) -> i64, t: usize) -> i64 {
            let width = self.groups * GROUP;
            let weights = &self.planes[plane][row * self.stride..][..width];
            weights.iter().zip(&self.whole[t * width..]).map(|(&w, &z)| (i64::from(w) - 128) * of(z)).sum()
        }
    }

    #[test]
    fn kernels_agree_to_the_bit_with_the_definition() {
        crate::simd::Amx::request();
        for (groups, count) in [(1, 1), (3, 2), (2, 3), (37, 5), (2, 16), (3, 35), (512, 2)] {
            for extreme in [false, true] {
                let case = Case::new(groups, count, extreme);
                let whole = |plane, row, t| case.exact(plane, row, i64::from, t);
                for isa in Isa::available() {
                    for kernel in Int8Kernel::all(isa) {
                        let of = format!("{kernel:?}, {groups} groups, {count} tokens");
                        let mut coarse = vec![[0.0; BLOCK_ROWS]; count];
                        kernel.coarse(case.planes(), case.tokens(), &mut coarse);
                        for t in 0..count {
                            for r in 0..BLOCK_ROWS {
                                assert_eq!(coarse[t][r], whole(0, r, t) as f32, "{of}: row {r} of token {t}");
                            }
                            let picks = [3, 31, 0, 17, 16, 4, 2];
                            let mut fine = [0.0; 7];
                            kernel.picked(case.planes(), case.tokens(), t, &picks, &mut fine);
                            for (&pick, fine) in picks.iter().zip(fine) {
                                let exact = 256 * whole(0, pick as usize, t) + whole(1, pick as usize, t);
                                assert_eq!(fine, exact as f32, "{of}: row {pick} of token {t}, picked");
                            }
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn tiles_agree_with_the_definition() {
        crate::simd::Amx::request();
        let kernels = Isa::available().flat_map(Int8Kernel::all).filter(|kernel| kernel.takes_tiles());
        let Some(kernel) = kernels.last() else {
            eprintln!("no AMX here; nothing to check");
            return;
        };
        for (groups, count) in [(1, 16), (9, 12), (36, 35), (512, 48)] {
            for extreme in [false, true] {
                let case = Case::new(groups, count, extreme);
                for fine in [false, true] {
                    let mut lines = vec![[0.0; BLOCK_ROWS]; 2 * count];
                    kernel.tiled(fine, case.planes(), case.tokens(), &mut lines);
                    for t in 0..count {
                        for r in 0..2 * BLOCK_ROWS {
                            let found = f64::from(lines[r / 16 * count + t][r % 16]);
                            let high = |z: i16| i64::from(z - i16::from(z as i8)) >> 8;
                            let exact = match fine {
                                false => case.exact(0, r, i64::from, t),
                                true => 256 * case.exact(0, r, i64::from, t) + 256 * case.exact(1, r, high, t),
                            } as f64;
                            // Three roundings, of numbers no larger than these.
                            let size = 256.0 * (f64::from(case.sums[t][0]).abs() + 127.0 * (groups * GROUP) as f64);
                            let slack = if fine { 256.0 } else { 0.0 } * 128.0 * size * 2.0_f64.powi(-24);
                            let slack = slack + exact.abs() * 2.0_f64.powi(-24);
                            assert!(
                                (found - exact).abs() <= slack,
                                "{groups} {count} {fine}: {r} {t}: {found} {exact}"
                            );
                        }
                    }
                }
            }
        }
    }
}
