//! Randomness as a function: every number is computed from the seed and what it is for, so that nothing depends on who
//! asks first, on threads, or on where a run was resumed.

/// The finaliser of SplitMix64: a bijection of 64 bits whose output looks random.
#[must_use]
pub fn mix(mut z: u64) -> u64 {
    z = z.wrapping_add(0x9E37_79B9_7F4A_7C15);
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

/// A stream of numbers for one purpose.
#[derive(Debug, Clone)]
pub struct Stream {
    key: u64,
    counter: u64,
}

impl Stream {
    /// The stream of `seed` for the purpose that `path` names.
    #[must_use]
    pub fn new(seed: u64, path: &[u64]) -> Self {
        Stream { key: path.iter().fold(mix(seed), |key, &part| mix(key ^ mix(part))), counter: 0 }
    }

    /// The next 64 bits.
    pub fn bits(&mut self) -> u64 {
        self.counter += 1;
        mix(self.key ^ self.counter.wrapping_mul(0xD605_BBB5_8C8A_BC0D))
    }

    /// Uniform in (0, 1].
    pub fn unit(&mut self) -> f64 {
        ((self.bits() >> 11) + 1) as f64 / (1_u64 << 53) as f64
    }

    /// Two independent standard normals (Box-Muller).
    pub fn normals(&mut self) -> (f64, f64) {
        let radius = (-2.0 * self.unit().ln()).sqrt();
        let (sin, cos) = (std::f64::consts::TAU * self.unit()).sin_cos();
        (radius * cos, radius * sin)
    }
}

/// A random permutation of `0..len` that needs no memory: a Feistel network over the next even number of bits, walked
/// until it lands inside.
#[derive(Debug, Clone, Copy)]
pub struct Permutation {
    len: u64,
    half_bits: u32,
    key: u64,
}

impl Permutation {
    /// The permutation of `0..len` of `seed` for the purpose that `path` names.
    #[must_use]
    pub fn new(len: usize, seed: u64, path: &[u64]) -> Self {
        let bits = usize::BITS - len.saturating_sub(1).leading_zeros();
        let key = Stream::new(seed, path).bits();
        Permutation { len: len as u64, half_bits: bits.div_ceil(2).max(1), key }
    }

    /// Where the permutation sends `at`.
    ///
    /// # Panics
    /// If `at` is not below the length.
    #[must_use]
    pub fn apply(&self, at: usize) -> usize {
        self.walk(at, |left, right, key| (right, left ^ key(right)), std::convert::identity)
    }

    /// What the permutation sends to `at`.
    ///
    /// # Panics
    /// If `at` is not below the length.
    #[must_use]
    pub fn invert(&self, at: usize) -> usize {
        self.walk(at, |left, right, key| (right ^ key(left), left), |round| Self::ROUNDS - 1 - round)
    }

    const ROUNDS: u64 = 6;

    fn walk(
        &self,
        at: usize,
        step: impl Fn(u64, u64, &dyn Fn(u64) -> u64) -> (u64, u64),
        round: impl Fn(u64) -> u64,
    ) -> usize {
        assert!((at as u64) < self.len, "{at} of a permutation of {}", self.len);
        let mask = (1_u64 << self.half_bits) - 1;
        let mut value = at as u64;
        loop {
            let (mut left, mut right) = (value >> self.half_bits, value & mask);
            for at in 0..Self::ROUNDS {
                let key = |half: u64| mix(self.key ^ (round(at) << 58) ^ half) & mask;
                (left, right) = step(left, right, &key);
            }
            value = (left << self.half_bits) | right;
            if value < self.len {
                return value as usize;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn permutations_permute_and_invert() {
        for len in [1, 2, 3, 7, 64, 65, 1000, 4097] {
            for seed in 0..3 {
                let permutation = Permutation::new(len, seed, &[1, 2]);
                let mut seen = vec![false; len];
                for at in 0..len {
                    let to = permutation.apply(at);
                    assert!(!std::mem::replace(&mut seen[to], true));
                    assert_eq!(permutation.invert(to), at);
                }
            }
        }
        assert_ne!(
            (0..100).map(|i| Permutation::new(100, 1, &[]).apply(i)).collect::<Vec<_>>(),
            (0..100).map(|i| Permutation::new(100, 2, &[]).apply(i)).collect::<Vec<_>>()
        );
    }

    #[test]
    fn normals_are_normal() {
        let mut stream = Stream::new(7, &[3]);
        let (mut sum, mut square) = (0.0, 0.0);
        for _ in 0..50_000 {
            let (a, b) = stream.normals();
            sum += a + b;
            square += a * a + b * b;
        }
        assert!((sum / 1e5).abs() < 0.02 && (square / 1e5 - 1.0).abs() < 0.02);
    }
}
