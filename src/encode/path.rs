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

/// Where the CPU multiplies int8 by vectors (VNNI) or tiles (AMX), batches of any size are screened. Measured
/// (`cargo run --release --example screening`, d 2,304, 32,768 rows, two threads): one row takes a fifth of the time of
/// all rows in f32, or a third from cold caches; with tiles 64 rows take a quarter and 256 as well, with vectors seven
/// and eight tenths.
const MOST_SCREENED: usize = usize::MAX;
/// As above without instructions for int8, where 8 rows take three quarters and 16 as long.
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
            EncodePath::Auto => AutoRule::on(isa).most_rows_of(weight.rows, weight.cols),
        }
    }
}

/// The measured rule by which [`EncodePath::Auto`] chooses, on one machine. Shown, it says it in words.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AutoRule {
    /// Batches of at most so many rows are screened; 0: none are.
    pub most_rows: usize,
    /// Encoders of fewer weights are never screened.
    pub least_weights: usize,
    /// Nor are narrower ones.
    pub least_width: usize,
    /// If more than one encoder row in so many is left by screening a batch, it is given up for some calls.
    pub most_left: usize,
    /// So many calls.
    pub pause: u32,
}

impl AutoRule {
    /// The rule on a CPU with `isa`; with AMX as far as this process may use it.
    #[must_use]
    pub fn on(isa: Isa) -> Self {
        let most_rows = match Int8Kernel::best(isa) {
            // Without vectors the copy is no faster than the weights.
            _ if isa.level() == crate::IsaLevel::Portable => 0,
            #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
            Int8Kernel::Amx(_) => MOST_SCREENED,
            #[cfg(target_arch = "x86_64")]
            Int8Kernel::Vnni(_) => MOST_SCREENED,
            _ => MOST_SCREENED_AVX2,
        };
        AutoRule {
            most_rows,
            least_weights: LEAST_WEIGHTS,
            least_width: LEAST_WIDTH,
            most_left: super::MOST_RESCORED,
            pause: super::PAUSE,
        }
    }

    /// The most rows of a batch that is screened by an encoder of `rows` rows of `cols` weights; 0: none is.
    #[must_use]
    pub fn most_rows_of(&self, rows: usize, cols: usize) -> usize {
        if cols < self.least_width || rows * cols < self.least_weights { 0 } else { self.most_rows }
    }
}

impl std::fmt::Display for AutoRule {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let AutoRule { most_rows, least_weights, least_width, most_left, pause } = self;
        if *most_rows == 0 {
            return write!(f, "no batch is screened: this instruction set has nothing that makes int8 faster");
        }
        let batches = match *most_rows {
            usize::MAX => "all batches".to_owned(),
            most => format!("batches of up to {most} rows"),
        };
        write!(
            f,
            "{batches} are screened by encoders of at least {least_weights} weights in rows of at \
             least {least_width}, all others computed in full; where a screened call leaves more than one encoder row in \
             {most_left}, the next {pause} calls are not screened; a call runs on its own thread at once, and on those of its encoder's others that wake in time"
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rule_says_what_it_does() {
        for isa in Isa::available() {
            let rule = AutoRule::on(isa);
            assert_eq!(rule.most_rows > 0, isa.level() != crate::IsaLevel::Portable);
            assert_eq!(rule.most_rows_of(LEAST_WEIGHTS / LEAST_WIDTH, LEAST_WIDTH), rule.most_rows);
            assert_eq!(rule.most_rows_of(LEAST_WEIGHTS / LEAST_WIDTH - 1, LEAST_WIDTH), 0);
            assert_eq!(rule.most_rows_of(LEAST_WEIGHTS, LEAST_WIDTH - 1), 0);
            let said = match rule.most_rows {
                0 => "no batch".to_owned(),
                usize::MAX => "all batches".to_owned(),
                most => format!("up to {most} rows"),
            };
            assert!(rule.to_string().contains(&said), "{rule}");
        }
    }

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
