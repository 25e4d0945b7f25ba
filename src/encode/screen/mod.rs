//! Certified screening: at small batches encoding is bound by reading W, so an int8 copy is read instead, a quarter of it.
//!
//! 1. A token is rounded to 16 bits ([`tokens`]), the copy ([`copy`]) multiplied with it, and from each row's cheap
//!    pre-activation and the proven bound of its error ([`bound`]) come a lower and an upper bound of the canonical one.
//! 2. Rounded multiplication of positive numbers is monotone, so the maxima of the upper bounds are upper bounds of the
//!    canonical products' maxima, and TopK over the lower bounds gives a value that at least K canonical products reach.
//!    A head (dense: a row) whose maximum has an upper bound strictly below that is out. With a threshold, its floor
//!    takes the place of that value.
//! 3. The rows of all others are computed by `dot/1`. The row of pre-activations from which the ordinary selection then
//!    selects has zeros for the rest, which are never selected: the result is that of the plain path, bit for bit.
//!
//! A token for which the bound does not hold (not finite, or so large that something could overflow) has all of its rows
//! computed in step 3, which is the plain path again, rows that are not finite included.

mod bound;
mod copy;
mod run;
mod tokens;

pub(super) use run::{Parts, Screener};
