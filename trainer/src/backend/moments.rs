//! Adam's moments in bf16: half the bytes of what a step reads and writes most of, rounded at random so that nothing is
//! lost on average.
//!
//! bf16 has steps of 1/256 to 1/128 of a value, and a second moment with beta2 = 0.999 moves by up to 1/1000 of itself: rounded
//! to nearest it would stand still. So a moment is rounded up with the probability that makes its expectation right. The
//! "random" bits are a function of step, parameter and element alone, the same here and in `cuda/row.cuh`: runs repeat bit
//! by bit, and a run that is resumed from a checkpoint, which holds moments in f32, goes on as if it had never stopped.
//!
//! Only the two large parameters, the encoder's and the decoder's weights, have such moments; those of biases stay f32. The
//! update itself is computed from moments in f32, before they are rounded.

/// How Adam's moments of encoder and decoder weights are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Moments {
    /// In f32.
    F32,
    /// In bf16, rounded at random (on the CPU too, where they still take the room of f32).
    Bf16,
}

impl Moments {
    /// Bytes of one where they are kept as such: on a GPU.
    #[must_use]
    pub const fn bytes(self) -> usize {
        match self {
            Moments::F32 => 4,
            Moments::Bf16 => 2,
        }
    }
}

/// Bits for an element's two moments: 16 each. An integer hash of 32 bits with low bias (Wellons, "Prospecting for Hash
/// Functions", 2018, with the constants of hash-prospector's issue 19).
#[inline(always)]
pub(super) fn random_bits(seed: u32, element: u32) -> u32 {
    mix(seed.wrapping_add(element))
}

#[inline(always)]
fn mix(mut x: u32) -> u32 {
    x ^= x >> 16;
    x = x.wrapping_mul(0x21F0_AAAD);
    x ^= x >> 15;
    x = x.wrapping_mul(0x735A_2D97);
    x ^ x >> 15
}

/// Rounded to bf16: up with probability `bits / 65536` of what would be cut off, for `bits` below 65,536. The result is
/// bf16 in its upper half; 0 stays 0.
#[inline(always)]
pub(super) fn round(value: f32, bits: u32) -> f32 {
    f32::from_bits(value.to_bits().wrapping_add(bits) & 0xFFFF_0000)
}

/// The seed of a step, by which the moments of all parameters are rounded.
#[must_use]
pub fn seed_of_step(step: u64) -> u32 {
    mix(step as u32 ^ mix((step >> 32) as u32 ^ 0x9E37_79B9))
}

/// The seed of parameter 0 (encoder weights) or 1 (decoder weights) in a step.
#[must_use]
pub(super) fn seed_of(step_seed: u32, parameter: u32) -> u32 {
    mix(step_seed ^ parameter.wrapping_add(1).wrapping_mul(0x9E37_79B9))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rounded_moment_is_one_of_its_neighbours_and_right_on_average() {
        for value in [1.0_f32, 1.003, -1.003, 7e-9, 3.3e38, -2.5e-39, 1e-45] {
            let low = f32::from_bits(value.to_bits() & 0xFFFF_0000);
            let high = f32::from_bits((value.to_bits() & 0xFFFF_0000).wrapping_add(0x1_0000));
            let mut sum = 0.0;
            let samples = 1 << 16;
            for element in 0..samples {
                let bits = random_bits(seed_of(seed_of_step(11), 0), element);
                let rounded = [round(value, bits & 0xFFFF), round(value, bits >> 16)];
                assert!(rounded.iter().all(|&r| r == low || (r == high && value != low)), "{value}: {rounded:?}");
                sum += f64::from(rounded[0]) + f64::from(rounded[1]);
            }
            let mean = sum / f64::from(2 * samples);
            // Five deviations of a mean of 131,072 coin flips, each worth high - low.
            let width = f64::from(high) - f64::from(low);
            assert!((mean - f64::from(value)).abs() <= 0.007 * width.abs(), "{value}: {mean}, steps of {width}");
        }
        for bits in [0, 1, 0xFFFF] {
            assert_eq!(round(0.0, bits).to_bits(), 0, "0 is to stay 0");
        }
    }

    #[test]
    fn a_second_moment_decays_as_in_f32() {
        // Rounded to nearest, it would never leave 1.
        let (mut moments, steps) = (vec![1.0_f32; 4096], 2000);
        for step in 0..steps {
            let seed = seed_of(seed_of_step(step), 1);
            for (element, moment) in moments.iter_mut().enumerate() {
                *moment = round(*moment * 0.999, random_bits(seed, element as u32) & 0xFFFF);
            }
        }
        let mean = moments.iter().map(|&m| f64::from(m)).sum::<f64>() / 4096.0;
        let expected = 0.999_f64.powi(steps as i32);
        assert!((mean / expected - 1.0).abs() < 0.02, "{mean} against {expected}");
        let nearest = half::bf16::from_f32(0.999);
        assert_eq!(nearest.to_f32(), 1.0);
    }

    #[test]
    fn steps_and_parameters_have_bits_of_their_own() {
        let bits = |step, parameter| random_bits(seed_of(seed_of_step(step), parameter), 5);
        let all = [bits(0, 0), bits(0, 1), bits(1, 0), bits(1, 1), bits(1 << 32, 0)];
        for (at, a) in all.iter().enumerate() {
            assert!(all[at + 1..].iter().all(|b| a != b), "{all:?}");
        }
    }
}
