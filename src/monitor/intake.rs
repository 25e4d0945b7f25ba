//! A tap in its worker's hands: where its tokens come from, and their latents, where somebody else computes them.

use super::ring::Consumer;
use super::shared::Core;
use super::site::TapShared;
use crate::sae::Sae;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// Of a tap's next tokens, how many have latents.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(
    not(any(feature = "cuda", feature = "cuda-emulation")),
    expect(dead_code, reason = "nobody else computes latents in this build")
)]
pub(crate) enum Arrived {
    /// None yet: ask again later.
    NotYet,
    /// So many have.
    Here(usize),
    /// So many will never have.
    Lost(usize),
}

/// Latents that are computed elsewhere, for the tokens of a queue in their order.
pub(crate) trait Elsewhere: Send {
    /// How it stands with the next tokens, at most `most`, the first of them number `from` of the queue; latents of another
    /// model than `sae` are lost. Waits for nothing.
    fn arrived(&mut self, from: u64, most: usize, sae: Option<&Arc<Sae>>) -> Arrived;

    /// Of a token that is here, by its [`row`](super::ring::Slot::row): indices and values, strongest first; None where the
    /// row is not finite.
    fn row(&self, row: u32) -> Option<(&[u32], &[f32])>;

    /// Gives the next `tokens` tokens' latents up, before the queue gives the tokens up.
    fn release(&mut self, tokens: usize);
}

/// A tap, in its worker's hands.
pub(crate) struct Intake {
    pub(crate) consumer: Consumer,
    pub(crate) tap: Arc<TapShared>,
    /// None: the worker encodes rows of the queue.
    pub(crate) latents: Option<Box<dyn Elsewhere>>,
    /// Whether the last turn ended at tokens whose latents are not here yet.
    pub(crate) waits: bool,
    /// Whether it was told that the tap's device failed.
    told: bool,
}

impl Intake {
    pub(crate) fn new(consumer: Consumer, tap: Arc<TapShared>, latents: Option<Box<dyn Elsewhere>>) -> Self {
        Intake { consumer, tap, latents, waits: false, told: false }
    }

    /// Whether a turn would do something, as far as the host goes.
    pub(crate) fn has_work(&self) -> bool {
        let queued = !self.consumer.ring().is_empty() || self.tap.closed.load(Ordering::Acquire);
        (queued && !self.waits) || self.untold()
    }

    fn untold(&self) -> bool {
        !self.told && self.tap.failure.get().is_some()
    }

    /// Tells the host of a device that failed, once.
    pub(crate) fn tell(&mut self, core: &Core, site: &str) {
        if self.untold()
            && let Some(failure) = self.tap.failure.get()
        {
            self.told = true;
            let number = self.tap.number;
            core.notice(&format!(
                "tap {number} of site {site}: {failure}; it drops and counts from now on, make a new one"
            ));
        }
    }
}
