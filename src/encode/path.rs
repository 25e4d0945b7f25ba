//! Which way an encode takes.

use crate::error::{Error, Result, Status};
use crate::sae::Sae;
use crate::simd::Isa;
use crate::simd::int8::Int8Kernel;

/// How an [`Encoder`](crate::Encoder) finds its results. Every path but [`EncodePath::Fast`] returns the same bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum EncodePath {
    /// The faster one for the batch and the model, by a measured rule; or the one that the environment variable
    /// `KRONSAE_ENCODE` names: `plain` or `screened`.
    #[default]
    Auto,
    /// All rows of the encoder are computed exactly.
    Plain,
    /// An int8 copy of the encoder tells, with proven bounds, which rows can matter; those are computed exactly.
    Screened,
    /// As [`EncodePath::Screened`], with bounds that errors are *likely* to be within: four standard deviations, were they
    /// independent. **Not exact**: a latent may be missing, or another in its place; values that are reported are still
    /// those of `dot/1`. `kronsae bench fast` measures how often on a model and its activations, and docs/performance.md
    /// says what was found. Models too small to be screened are encoded exactly.
    Fast,
}

/// Batches up to this many rows are screened. Measured (`cargo run --release --example screening`): one row takes a
/// fifth of the time, or two fifths from cold caches, 16 rows half, 64 rows three fifths where there is AMX. Larger ones were
/// not measured.
const MOST_SCREENED: usize = 64;
/// As above without AMX, where 32 rows take four fifths.
const MOST_SCREENED_VECTORS: usize = 32;
/// As above without instructions for int8, where 8 rows take two thirds and 16 as long.
const MOST_SCREENED_AVX2: usize = 8;
/// Encoders of fewer weights stay in a core's cache, where the exact kernel is as fast.
const LEAST_WEIGHTS: usize = 1 << 20;
/// In shorter rows there is less to save than the bounds and the second selection cost.
const LEAST_WIDTH: usize = 256;

impl EncodePath {
    /// `Auto` becomes what the environment asks for, if it does.
    ///
    /// # Errors
    /// [`Status::Unsupported`] if that is not a path.
    pub(super) fn resolve(self) -> Result<Self> {
        match self {
            EncodePath::Auto => Self::named(std::env::var("KRONSAE_ENCODE").ok().as_deref()),
            path => Ok(path),
        }
    }

    fn named(name: Option<&str>) -> Result<Self> {
        match name {
            None | Some("") => Ok(EncodePath::Auto),
            Some("plain") => Ok(EncodePath::Plain),
            Some("screened") => Ok(EncodePath::Screened),
            Some(other) => {
                Err(Error::new(Status::Unsupported, format!("KRONSAE_ENCODE={other}: expected plain or screened")))
            }
        }
    }

    /// The most rows of a batch that is screened; 0: none ever is.
    pub(super) fn most_screened(self, sae: &Sae, isa: Isa) -> usize {
        let weight = sae.encoder().weight.as_ref();
        match self {
            EncodePath::Plain => 0,
            EncodePath::Screened => usize::MAX,
            EncodePath::Fast if weight.cols >= LEAST_WIDTH => usize::MAX,
            EncodePath::Fast => 0,
            // Without vectors the copy is no faster than the weights.
            EncodePath::Auto if isa.level() == crate::IsaLevel::Portable => 0,
            EncodePath::Auto if weight.cols < LEAST_WIDTH || weight.rows * weight.cols < LEAST_WEIGHTS => 0,
            EncodePath::Auto => match Int8Kernel::best(isa) {
                #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
                Int8Kernel::Amx(_) => MOST_SCREENED,
                #[cfg(target_arch = "x86_64")]
                Int8Kernel::Vnni(_) => MOST_SCREENED_VECTORS,
                _ => MOST_SCREENED_AVX2,
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        assert_eq!(EncodePath::named(None), Ok(EncodePath::Auto));
        assert_eq!(EncodePath::named(Some("plain")), Ok(EncodePath::Plain));
        assert_eq!(EncodePath::named(Some("screened")), Ok(EncodePath::Screened));
        let error = EncodePath::named(Some("fast")).unwrap_err();
        assert_eq!(error.status(), Status::Unsupported);
        assert!(error.message().contains("fast") && error.message().contains("screened"), "{error}");
    }
}
