//! What a host says of each token it submits.

use serde::Serialize;

/// Bits of [`TokenTag::flags`].
pub mod flags {
    /// The token belongs to a prompt (it was read, not generated).
    pub const PROMPT: u32 = 1;
    /// The last token of a prompt: the one whose activations decide the first generated token.
    pub const LAST_PROMPT: u32 = 2;
}

/// Whose token an activation vector is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct TokenTag {
    /// The request it belongs to; the host's numbering, unique among requests alive at a time.
    pub request: u64,
    /// Its position in the request's sequence, from 0.
    pub position: i32,
    /// The token's id in the model's vocabulary; -1 where the host does not say.
    pub token: i32,
    /// Bits of [`flags`].
    pub flags: u32,
}

/// Which of the tokens submitted to a tap are encoded. The others are counted as sampled out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Sampling {
    /// Every token.
    #[default]
    Every,
    /// Tokens whose position is a multiple of this, at least 1. By position, so that the choice does not depend on how a
    /// request was cut into batches.
    EveryNth(u32),
    /// Tokens with [`flags::LAST_PROMPT`].
    LastPrompt,
}

impl Sampling {
    /// Whether a token is encoded.
    #[must_use]
    pub fn takes(self, tag: &TokenTag) -> bool {
        match self {
            Sampling::Every => true,
            Sampling::EveryNth(n) => i64::from(tag.position).rem_euclid(i64::from(n.max(1))) == 0,
            Sampling::LastPrompt => tag.flags & flags::LAST_PROMPT != 0,
        }
    }

    /// How far apart the positions of encoded tokens of one request are when none is missing; 0: anything goes.
    #[must_use]
    pub fn step(self) -> u32 {
        match self {
            Sampling::Every => 1,
            Sampling::EveryNth(n) => n.max(1),
            Sampling::LastPrompt => 0,
        }
    }
}
