//! The last tokens of a site with their latents, in memory that never grows.

use super::snapshot::RecentToken;
use super::tag::TokenTag;
use crate::error::Result;
use crate::memory::try_vec;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Latents kept of a token, the strongest: threshold models may have thousands.
const MOST_LATENTS: usize = 128;

struct Kept {
    /// Tokens ever kept.
    count: u64,
    tags: Vec<(TokenTag, u32)>,
    indices: Vec<u32>,
    values: Vec<f32>,
}

/// A ring of tokens that a worker fills and readers copy from.
pub(crate) struct Recent {
    kept: Mutex<Kept>,
    capacity: usize,
    latents: usize,
}

impl std::fmt::Debug for Recent {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Recent({} tokens of {} latents)", self.capacity, self.latents)
    }
}

impl Recent {
    /// Bytes of a ring for `capacity` tokens of up to `latents` latents.
    pub(crate) fn bytes(capacity: usize, latents: usize) -> usize {
        capacity.saturating_mul(size_of::<(TokenTag, u32)>() + 8 * latents.min(MOST_LATENTS))
    }

    /// # Errors
    /// [`crate::Status::OutOfMemory`].
    pub(crate) fn new(capacity: usize, latents: usize) -> Result<Self> {
        let latents = latents.min(MOST_LATENTS);
        let what = "recent tokens";
        let kept = Kept {
            count: 0,
            tags: try_vec(capacity, (TokenTag::default(), 0), what)?,
            indices: try_vec(capacity * latents, 0, what)?,
            values: try_vec(capacity * latents, 0.0, what)?,
        };
        Ok(Recent { kept: Mutex::new(kept), capacity, latents })
    }

    fn lock(&self) -> MutexGuard<'_, Kept> {
        // Only copies happen under the lock, so a poisoned ring is whole.
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// For several tokens under one lock.
    pub(crate) fn add(&self) -> Adding<'_> {
        Adding { kept: self.lock(), of: self }
    }

    /// Up to `most` tokens with a sequence number above `since`: the oldest of those still kept first.
    pub(crate) fn read(&self, since: u64, most: usize) -> Vec<RecentToken> {
        let mut out = Vec::new();
        if self.capacity == 0 {
            return out;
        }
        let mut next = since + 1;
        while out.len() < most {
            // Locked token by token: a reader of many never holds the worker up.
            let kept = self.lock();
            next = next.max((kept.count + 1).saturating_sub(self.capacity as u64));
            if next > kept.count {
                break;
            }
            let at = ((next - 1) % self.capacity as u64) as usize;
            let (tag, count) = kept.tags[at];
            let range = at * self.latents..at * self.latents + count as usize;
            let (indices, values) = (kept.indices[range.clone()].into(), kept.values[range].into());
            drop(kept);
            out.push(RecentToken { sequence: next, tag, text: None, indices, values });
            next += 1;
        }
        out
    }
}

/// Adds tokens while it lives.
pub(crate) struct Adding<'a> {
    kept: MutexGuard<'a, Kept>,
    of: &'a Recent,
}

impl Adding<'_> {
    /// Adds a token with its latents, strongest first.
    pub(crate) fn token(&mut self, tag: &TokenTag, indices: &[u32], values: &[f32]) {
        self.kept.count += 1;
        if self.of.capacity == 0 {
            return;
        }
        let at = ((self.kept.count - 1) % self.of.capacity as u64) as usize;
        let count = indices.len().min(self.of.latents);
        self.kept.tags[at] = (*tag, count as u32);
        let start = at * self.of.latents;
        self.kept.indices[start..start + count].copy_from_slice(&indices[..count]);
        self.kept.values[start..start + count].copy_from_slice(&values[..count]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn readers_get_what_is_kept_once() {
        let recent = Recent::new(3, 2).unwrap();
        assert!(recent.read(0, 9).is_empty());
        for n in 1..=5_u32 {
            let tag = TokenTag { request: u64::from(n), ..TokenTag::default() };
            recent.add().token(&tag, &[n, n + 1, n + 2][..n as usize % 4], &[0.5; 3][..n as usize % 4]);
        }
        let read = recent.read(0, 9);
        assert_eq!(read.iter().map(|t| t.sequence).collect::<Vec<_>>(), [3, 4, 5]);
        assert_eq!((&*read[0].indices, read[0].tag.request), (&[3, 4][..], 3), "the strongest two");
        assert_eq!((&*read[1].indices, &*read[2].indices), (&[][..], &[5][..]));
        assert_eq!(recent.read(4, 9).len(), 1);
        assert_eq!(recent.read(3, 1)[0].sequence, 4);
        assert!(recent.read(5, 9).is_empty());
        let none = Recent::new(0, 2).unwrap();
        none.add().token(&TokenTag::default(), &[1], &[1.0]);
        assert!(none.read(0, 9).is_empty());
    }
}
