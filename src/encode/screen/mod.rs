//! Certified screening: encoding is bound by reading W, or by multiplying with it, so a copy in two planes of int8 is
//! used instead, of which small batches read a quarter of W's bytes.
//!
//! A token is centred and rounded to 16 bits ([`tokens`]), and the copy ([`copy`]) multiplied with it. That gives each row a
//! cheap pre-activation, and a proven bound of its distance from the canonical one ([`bound`]). A value that no selected
//! latent is below is known: the threshold, or what K latents reach. Rows whose products all stay strictly below it are
//! out ([`survivors`]); those that are left are computed by `dot/1`, and the ordinary selection runs on them. The result
//! is that of the plain path, bit for bit.
//!
//! Small batches are bound by memory: all rows are multiplied by the high plane alone. The rows of the K likeliest latents
//! are computed by `dot/1`, for the value that all of them reach. The rows that may still matter, a few in a hundred, are
//! multiplied by both planes, which leaves a few in a thousand.
//!
//! Large batches, where there are matrix tiles (AMX), are multiplied by both planes at once. Bounds are then so narrow that
//! lower bounds of the K likeliest latents serve as well as canonical values.
//!
//! A token for which the bound does not hold (not finite, or so large that something could overflow) has all of its rows
//! computed, which is the plain path again, rows that are not finite included.

mod bound;
mod copy;
mod run;
mod survivors;
#[cfg(test)]
mod tests;
mod tokens;

pub(super) use run::{Parts, Screener};
