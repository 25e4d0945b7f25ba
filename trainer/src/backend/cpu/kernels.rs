//! The element-wise kernels of a step, compiled for each instruction set. All are lane-wise or sum in a fixed order, so
//! their bits do not depend on which one runs.

use crate::backend::moments::{random_bits, round};
use kronsae::isa_fn;

/// Adam's numbers for one step.
#[derive(Debug, Clone, Copy)]
pub(in crate::backend) struct Adam {
    pub(in crate::backend) beta1: f32,
    pub(in crate::backend) beta2: f32,
    pub(in crate::backend) epsilon: f32,
    /// Learning rate over the bias correction of the mean.
    pub(in crate::backend) rate: f32,
    /// Reciprocal root of the bias correction of the square.
    pub(in crate::backend) root: f32,
}

impl Adam {
    /// The numbers of step `step`, counted from 0.
    pub(in crate::backend) fn new(betas: (f32, f32), epsilon: f32, learning_rate: f32, step: u64) -> Self {
        let power = |beta: f32| f64::from(beta).powf(step as f64 + 1.0);
        Adam {
            beta1: betas.0,
            beta2: betas.1,
            epsilon,
            rate: (f64::from(learning_rate) / (1.0 - power(betas.0))) as f32,
            root: (1.0 - power(betas.1)).sqrt().recip() as f32,
        }
    }
}

/// Adam for one element.
#[inline(always)]
fn adam(adam: Adam, value: &mut f32, first: &mut f32, second: &mut f32, gradient: f32) {
    *first = (gradient - *first).mul_add(1.0 - adam.beta1, *first);
    *second = (gradient * gradient - *second).mul_add(1.0 - adam.beta2, *second);
    let denominator = second.sqrt().mul_add(adam.root, adam.epsilon);
    *value -= adam.rate * *first / denominator;
}

const LANES: usize = 64;

/// The dot product by 64 accumulators and a tree.
#[inline(always)]
fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut acc = [0.0_f32; LANES];
    for (a, b) in a.chunks(LANES).zip(b.chunks(LANES)) {
        for ((acc, a), b) in acc.iter_mut().zip(a).zip(b) {
            *acc = a.mul_add(*b, *acc);
        }
    }
    let mut half = LANES / 2;
    while half > 0 {
        for j in 0..half {
            acc[j] += acc[j + half];
        }
        half /= 2;
    }
    acc[0]
}

isa_fn! {
    /// Adam for a row of any parameter.
    pub(super) fn adam_row(numbers: Adam, value: &mut [f32], first: &mut [f32], second: &mut [f32], gradient: &[f32]) {
        for (((w, m), v), g) in value.iter_mut().zip(first).zip(second).zip(gradient) {
            adam(numbers, w, m, v, *g);
        }
    }
}

isa_fn! {
    /// Adam for a row of the decoder: the gradient loses its part along the row, and the row is set to norm 1.
    pub(super) fn decoder_row(
        numbers: Adam,
        value: &mut [f32],
        first: &mut [f32],
        second: &mut [f32],
        gradient: &[f32],
    ) {
        let along = dot(gradient, value);
        for (((w, m), v), g) in value.iter_mut().zip(first).zip(second).zip(gradient) {
            let across = (-along).mul_add(*w, *g);
            adam(numbers, w, m, v, across);
        }
        let norm = dot(value, value).sqrt();
        if norm > 0.0 {
            let scale = norm.recip();
            value.iter_mut().for_each(|w| *w *= scale);
        }
    }
}

isa_fn! {
    /// Rounds a row's moments to bf16, at random by `seed`, which is the step's of this parameter plus the number of the
    /// row's first element.
    pub(super) fn round_moments(seed: u32, first: &mut [f32], second: &mut [f32]) {
        for ((element, m), v) in (0_u32..).zip(first).zip(second) {
            let bits = random_bits(seed, element);
            *m = round(*m, bits & 0xFFFF);
            *v = round(*v, bits >> 16);
        }
    }
}

isa_fn! {
    /// `e = (x_hat - x) * scale`, in place over `x_hat`; returns |x_hat - x|^2 and |x|^2.
    pub(super) fn residual(x_hat: &mut [f32], x: &[f32], scale: f32) -> (f32, f32) {
        let (mut error, mut norm) = ([0.0_f32; LANES], [0.0_f32; LANES]);
        for (e, x) in x_hat.chunks_mut(LANES).zip(x.chunks(LANES)) {
            for (((e, x), error), norm) in e.iter_mut().zip(x).zip(&mut error).zip(&mut norm) {
                let difference = *e - *x;
                *error = difference.mul_add(difference, *error);
                *norm = x.mul_add(*x, *norm);
                *e = difference * scale;
            }
        }
        (error.iter().sum(), norm.iter().sum())
    }
}

isa_fn! {
    /// Sets `alive[r]` where `y[r] > 0`.
    pub(super) fn mark_positive(y: &[f32], alive: &mut [u32]) {
        for (alive, &y) in alive.iter_mut().zip(y) {
            *alive |= u32::from(y > 0.0);
        }
    }
}

isa_fn! {
    /// `to += from`.
    pub(super) fn add(to: &mut [f32], from: &[f32]) {
        for (t, f) in to.iter_mut().zip(from) {
            *t += f;
        }
    }
}

isa_fn! {
    /// The square of the norm.
    pub(super) fn square(values: &[f32]) -> f32 {
        dot(values, values)
    }
}
