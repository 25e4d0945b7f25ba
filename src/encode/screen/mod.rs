//! Certified screening: at small batches encoding is bound by reading W, so an int8 copy is read instead, a quarter of it.
//!
//! 1. A token is rounded to 16 bits ([`tokens`]), the copy ([`copy`]) multiplied with it, and from each row's cheap
//!    pre-activation and the proven bound of its error ([`bound`]) come a lower and an upper bound of the canonical one.
//! 2. A value that no selected latent is below is known: the threshold, or what K latents reach, for which the rows of the
//!    K likeliest are computed by `dot/1` ([`survivors`]). Rounded multiplication of positive numbers is monotone, so upper
//!    bounds of rows give upper bounds of products, and rows whose products all stay strictly below that value are out.
//! 3. The rows that are left are computed by `dot/1`. The pre-activations from which the ordinary selection then selects
//!    are 0 in all other rows, which is never selected: the result is that of the plain path, bit for bit.
//!
//! A token for which the bound does not hold (not finite, or so large that something could overflow) has all of its rows
//! computed in step 3, which is the plain path again, rows that are not finite included.

mod bound;
mod copy;
mod run;
mod survivors;
#[cfg(test)]
mod tests;
mod tokens;

pub(super) use run::{Parts, Screener};
