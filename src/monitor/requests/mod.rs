//! What rules remember of each request: windows, cooldowns, and the matches that a rewind may still take back.
//!
//! A token is in a window because it was *observed*: encoded, and of the kind the rule looks at. Time runs along a
//! request's positions, which ascend; a token at a position that was seen already replaces it and all after it, whether
//! the host said so ([`Requests::rewind`]) or not.

mod history;
mod slots;
mod state;
#[cfg(test)]
mod tests;

use super::event::EventLatent;
use super::rules::SiteRules;
use super::tag::TokenTag;
use crate::error::Result;
use slots::Slots;
use state::{LastMatch, Logged, NONE, PerRules, Plan};
use std::sync::Arc;

/// How many tokens of a request a rewind can take back and leave windows as if they had never been: more than
/// speculative decoding ever does. Beyond, windows hold fewer tokens, and matches say `gap`.
pub const REWIND_TOKENS: usize = 128;

/// How many of a request's last matches can be retracted. Older ones stand, and are counted if a rewind reaches them.
pub const RETRACTABLE_MATCHES: usize = 32;

/// A rule's match on a token, or its retraction.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Match<'a> {
    /// The rule's number in the [`SiteRules`].
    pub rule: usize,
    /// Whether this takes an earlier match back: the one with this `handle`, `rule`, `tag` and `gap`.
    pub retracts: bool,
    /// Identifies the match, for its retraction; ascending from 1, unique in its [`Requests`].
    pub handle: u64,
    /// The token that completed the match.
    pub tag: TokenTag,
    /// Whether tokens of the rule's window are missing: the rule saw less than the model did.
    pub gap: bool,
    /// The rule's latents on that token, in the rule's order, 0 where not active. Empty in a retraction.
    pub latents: &'a [EventLatent],
}

/// The request state of one site. Used by one thread at a time. Its memory is fixed by the rules and the number of
/// requests: observing a token allocates nothing.
#[derive(Debug)]
pub struct Requests {
    rules: Arc<SiteRules>,
    most: usize,
    slots: Slots,
    state: PerRules,
    matches: u64,
    evicted: u64,
    unretracted: u64,
}

impl Requests {
    /// State for at most `most` requests at a time.
    ///
    /// # Errors
    /// [`crate::Status::InvalidArgument`] if `most` is 0 or beyond 2^31, [`crate::Status::OutOfMemory`].
    pub fn new(rules: Arc<SiteRules>, most: usize) -> Result<Self> {
        let (slots, state) = (Slots::new(most)?, PerRules::new(&rules, most)?);
        Ok(Requests { rules, most, slots, state, matches: 0, evicted: 0, unretracted: 0 })
    }

    /// The bytes that [`Requests::new`] takes with these arguments, closely: to be asked before, where memory is
    /// limited.
    #[must_use]
    pub fn bytes_for(rules: &SiteRules, most: usize) -> usize {
        Slots::bytes(most).saturating_add(Plan::of(rules).bytes(rules, most))
    }

    /// Puts other rules in force. Requests stay alive; their windows and cooldowns start anew, and matches of the rules
    /// before cannot be retracted any more.
    ///
    /// # Errors
    /// [`crate::Status::OutOfMemory`]; the rules before stay in force then, with all their state.
    pub fn set_rules(&mut self, rules: Arc<SiteRules>) -> Result<()> {
        self.state = PerRules::new(&rules, self.most)?;
        self.rules = rules;
        Ok(())
    }

    /// The rules in force.
    #[must_use]
    pub fn rules(&self) -> &Arc<SiteRules> {
        &self.rules
    }

    /// Takes in a token and its latents (`indices[i]` has `values[i]`), and emits what matches on it, in the order of
    /// the rules.
    ///
    /// `step` is the distance of positions of consecutive tokens where none is missing
    /// ([`crate::monitor::Sampling::step`]), 0 where there is no such distance. A position at or before the request's
    /// last one takes back what was there, as [`Requests::rewind`] does, before the token is looked at: hosts that
    /// regenerate need not say so. It follows that the tokens of one request come in order; `unix_nanos`, the time now,
    /// is what cooldowns in seconds go by.
    pub fn observe(
        &mut self,
        tag: &TokenTag,
        step: u32,
        unix_nanos: u64,
        indices: &[u32],
        values: &[f32],
        emit: &mut dyn FnMut(Match<'_>),
    ) {
        let slot = self.arrive(tag, step, false, emit);
        let Requests { rules, state, matches, .. } = self;
        rules.evaluate(tag, indices, values, &mut state.touched);
        for word in 0..state.touched.holding.len() {
            let mut left = state.touched.holding[word];
            while left != 0 {
                let number = word * 64 + left.trailing_zeros() as usize;
                left &= left - 1;
                let rule = &rules.rules()[number];
                let (column, cooldown) = state.plan.rules[number];
                let mut gap = false;
                if column != NONE
                    && let Some(windows) = &mut state.windows[rule.tokens as usize]
                {
                    windows.hold(slot, column as usize);
                    let held;
                    (held, gap) = windows.count(slot, column as usize, rule.of_last as usize);
                    if held < rule.at_least as usize {
                        continue;
                    }
                }
                let mut before = LastMatch::default();
                if cooldown != NONE {
                    let last = &mut state.cooldowns[slot * state.plan.cooldowns + cooldown as usize];
                    if let Some(at) = last.at {
                        let tokens = i64::from(tag.position) - i64::from(at);
                        // A clock that was set back far counts as time gone by, else it would silence the rule.
                        let nanos = unix_nanos.abs_diff(last.unix_nanos);
                        if tokens <= i64::from(rule.cooldown_tokens) || nanos < rule.cooldown_nanos {
                            continue;
                        }
                    }
                    before = std::mem::replace(last, LastMatch { at: Some(tag.position), unix_nanos });
                }
                *matches += 1;
                let TokenTag { position, token, flags, .. } = *tag;
                let logged = Logged { rule: number as u32, token, position, flags, gap, handle: *matches, before };
                if let Some(oldest) = state.log.push(slot, logged) {
                    state.tokens[slot].forgotten = Some(oldest.position);
                }
                rules.latents_of(number, &state.touched, &mut state.latents);
                let latents = &state.latents;
                emit(Match { rule: number, retracts: false, handle: *matches, tag: *tag, gap, latents });
            }
        }
        SiteRules::forget(&mut state.touched);
    }

    /// Says that a token was seen and could not be encoded (not finite): windows over it say `gap`. Otherwise as
    /// [`Requests::observe`], its way with positions included.
    pub fn missing(&mut self, tag: &TokenTag, step: u32, emit: &mut dyn FnMut(Match<'_>)) {
        self.arrive(tag, step, true, emit);
    }

    /// Takes the tokens of a request at positions of at least `position` back: out of the windows, and each match that
    /// one of them completed is emitted once more, as a retraction, newest first. Cooldowns are what they were before
    /// them.
    ///
    /// The last [`REWIND_TOKENS`] tokens and the last [`RETRACTABLE_MATCHES`] matches of a request are known; a rewind
    /// that reaches further leaves shorter windows, whose matches say `gap`, and older matches standing
    /// ([`Requests::unretracted`]).
    pub fn rewind(&mut self, request: u64, position: i32, emit: &mut dyn FnMut(Match<'_>)) {
        if let Some(slot) = self.slots.get(request) {
            self.unretracted += u64::from(self.state.rewind(slot, request, position, emit));
        }
    }

    /// Forgets a request. Its matches stand.
    pub fn end(&mut self, request: u64) {
        self.slots.release(request);
    }

    /// Requests with state now.
    #[must_use]
    pub fn alive(&self) -> u64 {
        self.slots.alive() as u64
    }

    /// Requests whose state was given up for want of room, the one seen longest ago first. One that goes on starts
    /// anew.
    #[must_use]
    pub fn evicted(&self) -> u64 {
        self.evicted
    }

    /// Rewinds that reached back to a match too old to be retracted.
    #[must_use]
    pub fn unretracted(&self) -> u64 {
        self.unretracted
    }

    /// Bytes of all this, closely.
    #[must_use]
    pub fn bytes(&self) -> usize {
        Slots::bytes(self.most) + self.state.plan.bytes(&self.rules, self.most)
    }

    /// The slot of a token's request, with the token at its end.
    fn arrive(&mut self, tag: &TokenTag, step: u32, missing: bool, emit: &mut dyn FnMut(Match<'_>)) -> usize {
        let taken = self.slots.take(tag.request);
        self.evicted += u64::from(taken.evicted);
        if taken.fresh {
            self.state.clear(taken.slot);
        } else {
            let reached = self.state.rewind(taken.slot, tag.request, tag.position, emit);
            self.unretracted += u64::from(reached);
        }
        self.state.pass(taken.slot, tag, step, missing);
        taken.slot
    }
}
