//! Which tokens of a batch are whose: contiguous ranges in the order of ranks, so that the gathered lists are those that one
//! rank would have made.

use std::ops::Range;

/// A rank's share of batches of some number of tokens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Share {
    /// The rank's own tokens; empty where there are fewer than ranks.
    pub own: Range<usize>,
    /// Tokens of every rank's part, what is padding included: parts are gathered in equal sizes.
    pub each: usize,
}

impl Share {
    /// Rank `rank`'s of `ranks`, of `tokens` tokens.
    #[must_use]
    pub fn of(tokens: usize, rank: u32, ranks: u32) -> Self {
        let each = Self::each(tokens, ranks);
        let start = (rank as usize * each).min(tokens);
        Share { own: start..(start + each).min(tokens), each }
    }

    /// Tokens of a part.
    #[must_use]
    pub fn each(tokens: usize, ranks: u32) -> usize {
        tokens.div_ceil(ranks as usize)
    }

    /// Tokens that there must be room for: padding of the last parts included. No smaller number of tokens needs more.
    #[must_use]
    pub fn room(tokens: usize, ranks: u32) -> usize {
        Self::each(tokens, ranks) * ranks as usize
    }
}

#[cfg(test)]
mod tests {
    use super::Share;

    #[test]
    fn every_token_is_of_one_rank() {
        for ranks in 1..9 {
            for tokens in 0..70 {
                let shares: Vec<Share> = (0..ranks).map(|rank| Share::of(tokens, rank, ranks)).collect();
                let all: Vec<usize> = shares.iter().flat_map(|share| share.own.clone()).collect();
                assert_eq!(all, (0..tokens).collect::<Vec<_>>(), "{tokens} of {ranks}");
                for (rank, share) in shares.iter().enumerate() {
                    // Where the gather expects it.
                    assert!(share.own.is_empty() || share.own.start == rank * share.each);
                    assert!(share.own.len() <= share.each);
                }
                assert!((0..=tokens).all(|fewer| Share::room(fewer, ranks) <= Share::room(tokens, ranks)));
                assert!(Share::room(tokens, ranks) >= tokens);
            }
        }
    }
}
