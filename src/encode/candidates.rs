//! Candidates for selection: sort keys that order like the format, and how they are found among many values and sorted.

use crate::isa_fn;

/// A candidate as one integer, so that ascending integer order is the order of the format: the complement of the
/// value's bits (positive floats order like their bits) above the index.
#[inline(always)]
pub(super) fn key(value: f32, index: usize) -> u64 {
    debug_assert!(value > 0.0);
    (u64::from(!value.to_bits()) << 32) | index as u64
}

#[inline(always)]
pub(super) fn value_of(key: u64) -> f32 {
    f32::from_bits(!((key >> 32) as u32))
}

#[inline(always)]
pub(super) fn index_of(key: u64) -> usize {
    (key & 0xFFFF_FFFF) as usize
}

/// Room that [`scan`] needs for `k`.
pub(super) fn scan_capacity(k: usize) -> usize {
    // At least one whole chunk beyond the point where the candidates are cut back to k.
    2 * k + CHUNK + 64
}

const CHUNK: usize = 32;

/// The smallest positive number: values that reach it are the positive ones.
pub(super) const SMALLEST: f32 = f32::from_bits(1);

/// The most keys that are sorted by rank: its time is quadratic, but without a branch to mispredict.
pub(super) const MOST_RANKED: usize = 128;

isa_fn! {
    /// A floor that at least `k` values reach and not many more, or, where fewer than `k` are positive, the smallest
    /// positive number. None if some probes did not find one: many values are equal.
    pub(super) fn near_cut(values: &[f32], k: usize, guess: f32) -> Option<f32> {
        // Positive floats order like their bits. `low` is reached by too many, `high` by too few.
        let (mut low, mut high) = (None::<u32>, None::<u32>);
        let mut at = guess.to_bits();
        let mut step = 1_u32 << 19;
        for _ in 0..24 {
            let reached = count_from(values, f32::from_bits(at));
            if reached < k {
                if at <= 1 {
                    return Some(SMALLEST);
                }
                high = Some(at);
            } else if reached <= k + k / 4 + 8 {
                return Some(f32::from_bits(at));
            } else {
                low = Some(at);
            }
            at = match (low, high) {
                (Some(low), Some(high)) if high - low <= 1 => return None,
                (Some(low), Some(high)) => low + (high - low) / 2,
                (Some(low), None) => low.saturating_add(step).min(f32::MAX.to_bits()),
                // Perhaps there are not that many positive values at all.
                (None, _) if step == 1 << 23 => 1,
                (None, high) => high.unwrap_or(at).saturating_sub(step).max(1),
            };
            step = step.saturating_mul(2);
        }
        None
    }
}

/// How many values are at least `floor`.
#[inline(always)]
fn count_from(values: &[f32], floor: f32) -> usize {
    values.iter().map(|&v| u32::from(v >= floor)).sum::<u32>() as usize
}

isa_fn! {
    /// Collects the keys of the `k` first values that reach `floor` (positive), unsorted; fewer where fewer reach it.
    pub(super) fn scan(values: &[f32], k: usize, floor: f32, keys: &mut Vec<u64>) {
        let most = scan_capacity(k) - CHUNK;
        // Indices ascend, so a value equal to the k-th found before comes after it: strictly above is enough from then on.
        let mut floor = floor.next_down();
        for (c, chunk) in values.chunks(CHUNK).enumerate() {
            let mut hits = match <&[f32; CHUNK]>::try_from(chunk) {
                // Of fixed length, for the vectoriser.
                Ok(chunk) => hits(chunk, floor),
                Err(_) => hits(chunk, floor),
            };
            while hits != 0 {
                let j = hits.trailing_zeros() as usize;
                hits &= hits - 1;
                keys.push(key(chunk[j], c * CHUNK + j));
            }
            if keys.len() > most {
                keys.select_nth_unstable(k - 1);
                keys.truncate(k);
                floor = value_of(keys[k - 1]);
            }
        }
        if keys.len() > k {
            keys.select_nth_unstable(k - 1);
            keys.truncate(k);
        }
    }
}

isa_fn! {
    /// Collects the keys of all values strictly above `floor` (at least 0).
    pub(super) fn above(values: &[f32], floor: f32, keys: &mut Vec<u64>) {
        for (c, chunk) in values.chunks(CHUNK).enumerate() {
            let mut hits = match <&[f32; CHUNK]>::try_from(chunk) {
                // Of fixed length, for the vectoriser.
                Ok(chunk) => hits(chunk, floor),
                Err(_) => hits(chunk, floor),
            };
            while hits != 0 {
                let j = hits.trailing_zeros() as usize;
                hits &= hits - 1;
                keys.push(key(chunk[j], c * CHUNK + j));
            }
        }
    }
}

isa_fn! {
    /// Collects the indices of all values that reach `floor` (positive).
    pub(super) fn reaching(values: &[f32], floor: f32, indices: &mut Vec<u32>) {
        let below = floor.next_down();
        for (c, chunk) in values.chunks(CHUNK).enumerate() {
            let mut hits = match <&[f32; CHUNK]>::try_from(chunk) {
                // Of fixed length, for the vectoriser.
                Ok(chunk) => hits(chunk, below),
                Err(_) => hits(chunk, below),
            };
            while hits != 0 {
                indices.push((c * CHUNK) as u32 + hits.trailing_zeros());
                hits &= hits - 1;
            }
        }
    }
}

/// One bit for each value above `floor`.
#[inline(always)]
fn hits(chunk: &[f32], floor: f32) -> u32 {
    let mut hits = 0_u32;
    for (j, &value) in chunk.iter().enumerate() {
        hits |= u32::from(value > floor) << j;
    }
    hits
}

isa_fn! {
    /// Sorts at most [`MOST_RANKED`] different keys: the place of each is the number of those below it.
    pub(super) fn rank_sort(keys: &mut [u64]) {
        const LANES: usize = 16;
        let n = keys.len();
        let mut from = [u64::MAX; MOST_RANKED];
        from[..n].copy_from_slice(keys);
        for block in from[..n.next_multiple_of(LANES)].as_chunks::<LANES>().0 {
            let mut ranks = [0_u64; LANES];
            for &key in &from[..n] {
                for lane in 0..LANES {
                    ranks[lane] += u64::from(key < block[lane]);
                }
            }
            for lane in 0..LANES {
                // The padding of the last block ranks behind all keys.
                if let Some(to) = keys.get_mut(ranks[lane] as usize) {
                    *to = block[lane];
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_order_like_the_format() {
        assert!(key(2.0, 5) < key(1.0, 0));
        assert!(key(1.0, 0) < key(1.0, 1));
        assert_eq!((value_of(key(1.5, 7)), index_of(key(1.5, 7))), (1.5, 7));
    }

    #[test]
    fn rank_sort_sorts() {
        for isa in crate::Isa::available() {
            for n in 0..=MOST_RANKED {
                // An odd multiplier: all different, in no order.
                let mut keys: Vec<u64> = (1..=n as u64).map(|i| i.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 1).collect();
                let mut sorted = keys.clone();
                sorted.sort_unstable();
                rank_sort(isa, &mut keys);
                assert_eq!(keys, sorted);
            }
        }
    }

    #[test]
    fn near_cut_is_reached_by_enough() {
        let spread: Vec<f32> = (0..1000).map(|i| (i * 7919 % 1000) as f32 / 250.0 - 1.0).collect();
        let tied: Vec<f32> = (0..1000).map(|i| (i % 3) as f32).collect();
        for (values, may_fail) in [(&spread, false), (&tied, true)] {
            let positive = values.iter().filter(|&&v| v > 0.0).count();
            for k in [1, 2, 50, 200, 700, 900] {
                for guess in [1e-30, 0.5, 1.0, 2.9, 1e30] {
                    let reached = |floor: f32| values.iter().filter(|&&v| v >= floor).count();
                    match near_cut(crate::Isa::detect().unwrap(), values, k, guess) {
                        Some(SMALLEST) if positive < k => {}
                        Some(floor) => {
                            assert!((k..=k + k / 4 + 8).contains(&reached(floor)), "{k} {guess} {}", reached(floor));
                        }
                        None => assert!(may_fail, "{k} {guess}"),
                    }
                }
            }
        }
    }
}
