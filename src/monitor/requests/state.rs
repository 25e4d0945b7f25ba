//! What is kept of requests for one set of rules, and how tokens come and go.

use super::history::{Rings, Windows};
use super::{Match, RETRACTABLE_MATCHES, REWIND_TOKENS};
use crate::error::Result;
use crate::memory::try_vec;
use crate::monitor::event::EventLatent;
use crate::monitor::rules::{SiteRules, Tokens, Touched};
use crate::monitor::tag::TokenTag;

/// All state whose shape depends on the rules.
#[derive(Debug)]
pub(super) struct PerRules {
    pub(super) plan: Plan,
    pub(super) tokens: Vec<Tail>,
    /// The last tokens, missing ones included, of all kinds; nothing where no rule has a window.
    timeline: Rings<Passed>,
    pub(super) windows: [Option<Windows>; 3],
    /// Last match of each rule with a cooldown: `[slots, cooldowns]`.
    pub(super) cooldowns: Vec<LastMatch>,
    pub(super) log: Rings<Logged>,
    pub(super) touched: Touched,
    pub(super) latents: Vec<EventLatent>,
}

/// What rules need.
#[derive(Debug, Default)]
pub(super) struct Plan {
    /// Each rule's column in the windows of its kind of tokens, and its number among rules with cooldowns; [`NONE`].
    pub(super) rules: Vec<(u32, u32)>,
    /// By kind: rules with windows, and tokens of the longest one.
    pub(super) columns: [usize; 3],
    pub(super) longest: [usize; 3],
    pub(super) cooldowns: usize,
}

pub(super) const NONE: u32 = u32::MAX;

/// Where a request is.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Tail {
    /// Position of the last token, observed or missing.
    pub(super) last: Option<i32>,
    /// By kind of tokens: something is missing since the last observed one.
    pub(super) missing: [bool; 3],
    /// Position of the newest match that cannot be retracted any more.
    pub(super) forgotten: Option<i32>,
}

/// A token of the timeline.
#[derive(Debug, Clone, Copy, Default)]
struct Passed {
    position: i32,
    /// Not finite: its rules saw nothing.
    missing: bool,
    /// Positions before it were left out.
    jump: bool,
    prompt: bool,
}

impl Passed {
    fn is_of(&self, kind: usize) -> bool {
        kind == Tokens::All as usize || (kind == Tokens::Prompt as usize) == self.prompt
    }
}

#[derive(Debug, Clone, Copy, Default)]
pub(super) struct LastMatch {
    pub(super) at: Option<i32>,
    pub(super) unix_nanos: u64,
}

/// A match that can be retracted.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Logged {
    pub(super) rule: u32,
    pub(super) token: i32,
    pub(super) position: i32,
    pub(super) flags: u32,
    pub(super) gap: bool,
    pub(super) handle: u64,
    /// The rule's cooldown before it.
    pub(super) before: LastMatch,
}

impl Plan {
    pub(super) fn of(rules: &SiteRules) -> Self {
        let mut plan = Plan::default();
        for rule in rules.rules() {
            let (kind, mut numbers) = (rule.tokens as usize, (NONE, NONE));
            if rule.of_last > 1 {
                numbers.0 = plan.columns[kind] as u32;
                plan.columns[kind] += 1;
                plan.longest[kind] = plan.longest[kind].max(rule.of_last as usize);
            }
            if rule.cooldown_tokens > 0 || rule.cooldown_nanos > 0 {
                numbers.1 = plan.cooldowns as u32;
                plan.cooldowns += 1;
            }
            plan.rules.push(numbers);
        }
        plan
    }

    fn timeline(&self) -> usize {
        if self.columns == [0; 3] { 0 } else { REWIND_TOKENS + 1 }
    }

    fn log(&self) -> usize {
        if self.rules.is_empty() { 0 } else { RETRACTABLE_MATCHES }
    }

    fn depth(&self, kind: usize) -> usize {
        self.longest[kind] + REWIND_TOKENS
    }

    pub(super) fn bytes(&self, rules: &SiteRules, most: usize) -> usize {
        let windows = (0..3).filter(|kind| self.columns[*kind] > 0);
        let windows = windows.map(|kind| Windows::bytes(most, self.depth(kind), self.columns[kind]));
        [
            self.rules.len() * size_of::<(u32, u32)>(),
            most.saturating_mul(size_of::<Tail>()),
            Rings::<Passed>::bytes(most, self.timeline()),
            most.saturating_mul(self.cooldowns).saturating_mul(size_of::<LastMatch>()),
            Rings::<Logged>::bytes(most, self.log()),
            Touched::bytes(rules),
            rules.most_latents() * size_of::<EventLatent>(),
        ]
        .into_iter()
        .chain(windows)
        .fold(0, usize::saturating_add)
    }
}

impl PerRules {
    pub(super) fn new(rules: &SiteRules, most: usize) -> Result<Self> {
        let plan = Plan::of(rules);
        let mut windows = [None, None, None];
        for kind in 0..3 {
            if plan.columns[kind] > 0 {
                windows[kind] = Some(Windows::new(most, plan.depth(kind), plan.columns[kind])?);
            }
        }
        let mut latents = try_vec(rules.most_latents(), EventLatent { latent: 0, value: 0.0 }, "a match's latents")?;
        latents.clear();
        Ok(PerRules {
            tokens: try_vec(most, Tail::default(), "requests")?,
            timeline: Rings::new(most, plan.timeline(), "requests' last tokens")?,
            windows,
            cooldowns: try_vec(most.saturating_mul(plan.cooldowns), LastMatch::default(), "cooldowns of rules")?,
            log: Rings::new(most, plan.log(), "requests' last matches")?,
            touched: Touched::new(rules)?,
            latents,
            plan,
        })
    }

    pub(super) fn clear(&mut self, slot: usize) {
        self.tokens[slot] = Tail::default();
        self.timeline.clear(slot);
        self.windows.iter_mut().flatten().for_each(|windows| windows.clear(slot));
        let cooldowns = self.plan.cooldowns;
        self.cooldowns[slot * cooldowns..(slot + 1) * cooldowns].fill(LastMatch::default());
        self.log.clear(slot);
    }

    /// Takes back what lies at `position` and after; returns whether a match was reached that cannot be retracted.
    pub(super) fn rewind(&mut self, slot: usize, request: u64, position: i32, emit: &mut dyn FnMut(Match<'_>)) -> bool {
        if self.tokens[slot].last.is_none_or(|last| last < position) {
            return false;
        }
        while self.log.get(slot, 0).is_some_and(|logged| logged.position >= position) {
            let Some(Logged { rule, token, position: at, flags, gap, handle, mut before }) = self.log.pop(slot) else {
                break;
            };
            // That match is gone as well, only no longer in the log.
            if before.at.is_some_and(|at| at >= position) {
                before = LastMatch::default();
            }
            let (_, cooldown) = self.plan.rules[rule as usize];
            if cooldown != NONE {
                self.cooldowns[slot * self.plan.cooldowns + cooldown as usize] = before;
            }
            let tag = TokenTag { request, position: at, token, flags };
            emit(Match { rule: rule as usize, retracts: true, handle, tag, gap, latents: &[] });
        }
        self.windows.iter_mut().flatten().for_each(|windows| windows.rewind(slot, position));
        let mut taken = [false; 3];
        while self.timeline.get(slot, 0).is_some_and(|token| token.position >= position) {
            if let Some(token) = self.timeline.pop(slot) {
                (0..3).for_each(|kind| taken[kind] |= !token.missing && token.is_of(kind));
            }
        }
        let tail = &mut self.tokens[slot];
        tail.last = match self.timeline.get(slot, 0) {
            Some(token) => Some(token.position),
            None if self.plan.timeline() == 0 || self.timeline.lost(slot) => Some(position.saturating_sub(1)),
            None => None,
        };
        for kind in 0..3 {
            // What is missing between the last token of this kind that is left and now.
            let mut missing = false;
            let mut back = 0;
            loop {
                match self.timeline.get(slot, back) {
                    Some(token) if !token.missing && token.is_of(kind) => break,
                    Some(token) => missing |= token.jump || (token.missing && token.is_of(kind)),
                    // What was before is not known; if there was something, go by what was missing until now.
                    None => {
                        missing |= self.timeline.lost(slot) && (tail.missing[kind] || taken[kind]);
                        break;
                    }
                }
                back += 1;
            }
            tail.missing[kind] = missing;
        }
        let reached = tail.forgotten.take_if(|forgotten| *forgotten >= position).is_some();
        if reached {
            // Nothing may stay silent for a match that is gone; which one was before it is not known.
            let cooldowns = self.plan.cooldowns;
            for last in &mut self.cooldowns[slot * cooldowns..(slot + 1) * cooldowns] {
                last.at.take_if(|at| *at >= position);
            }
        }
        reached
    }

    /// Appends a token to the request's tail, of the positions that a tap with this `step` lets through.
    pub(super) fn pass(&mut self, slot: usize, tag: &TokenTag, step: u32, missing: bool) {
        let tail = &mut self.tokens[slot];
        let distance = tail.last.map(|last| i64::from(tag.position) - i64::from(last));
        let jump = step > 0 && distance.is_some_and(|distance| distance > i64::from(step));
        let token = Passed { position: tag.position, missing, jump, prompt: Tokens::Prompt.takes(tag) };
        tail.last = Some(tag.position);
        self.timeline.push(slot, token);
        for kind in 0..3 {
            let unseen = tail.missing[kind] || jump;
            tail.missing[kind] = unseen || (missing && token.is_of(kind));
            if !missing && token.is_of(kind) {
                if let Some(windows) = &mut self.windows[kind] {
                    windows.push(slot, tag.position, unseen);
                }
                tail.missing[kind] = false;
            }
        }
    }
}
