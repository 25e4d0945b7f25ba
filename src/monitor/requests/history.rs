//! What is kept of each request's tokens: the last of them, in rings of fixed size, newest last.

use crate::error::Result;
use crate::memory::try_vec;

/// One ring for each slot, entries of type `T` all in one array.
#[derive(Debug)]
pub(super) struct Rings<T> {
    depth: usize,
    entries: Vec<T>,
    spans: Vec<Span>,
}

#[derive(Debug, Clone, Copy, Default)]
struct Span {
    start: u32,
    len: u32,
    /// Entries were overwritten by newer ones since the ring was cleared.
    lost: bool,
}

impl<T: Copy + Default> Rings<T> {
    /// `depth` may be 0: nothing is kept then.
    pub(super) fn new(slots: usize, depth: usize, what: &str) -> Result<Self> {
        let entries = try_vec(slots.saturating_mul(depth), T::default(), what)?;
        Ok(Rings { depth, entries, spans: try_vec(slots, Span::default(), what)? })
    }

    pub(super) fn bytes(slots: usize, depth: usize) -> usize {
        slots.saturating_mul(depth.saturating_mul(size_of::<T>()).saturating_add(size_of::<Span>()))
    }

    pub(super) fn clear(&mut self, slot: usize) {
        self.spans[slot] = Span::default();
    }

    pub(super) fn len(&self, slot: usize) -> usize {
        self.spans[slot].len as usize
    }

    /// Whether there were older entries than those held.
    pub(super) fn lost(&self, slot: usize) -> bool {
        self.spans[slot].lost
    }

    /// Where entry `back` stands, counted from the newest, 0.
    fn at(&self, slot: usize, back: usize) -> usize {
        let span = self.spans[slot];
        debug_assert!(back < span.len as usize, "entry {back} of {}", span.len);
        let place = span.start as usize + span.len as usize - 1 - back;
        slot * self.depth + if place >= self.depth { place - self.depth } else { place }
    }

    /// Entry `back`, counted from the newest, 0.
    pub(super) fn get(&self, slot: usize, back: usize) -> Option<&T> {
        (back < self.len(slot)).then(|| &self.entries[self.at(slot, back)])
    }

    /// The place of entry `back` in arrays that run beside the entries.
    pub(super) fn place(&self, slot: usize, back: usize) -> usize {
        self.at(slot, back)
    }

    /// Appends an entry; returns the oldest one where it had to go.
    pub(super) fn push(&mut self, slot: usize, entry: T) -> Option<T> {
        if self.depth == 0 {
            return None;
        }
        let span = &mut self.spans[slot];
        let full = span.len as usize == self.depth;
        if full {
            span.start = if span.start as usize + 1 == self.depth { 0 } else { span.start + 1 };
            span.lost = true;
        } else {
            span.len += 1;
        }
        let at = self.at(slot, 0);
        let before = std::mem::replace(&mut self.entries[at], entry);
        full.then_some(before)
    }

    /// Removes the newest entry.
    pub(super) fn pop(&mut self, slot: usize) -> Option<T> {
        let entry = *self.get(slot, 0)?;
        self.spans[slot].len -= 1;
        Some(entry)
    }
}

/// A token in a window.
#[derive(Debug, Clone, Copy, Default)]
struct Seen {
    position: i32,
    /// Tokens are missing between this one and the one before it.
    gap: bool,
}

/// What rules with windows of more than one token saw of the tokens of one kind.
#[derive(Debug)]
pub(super) struct Windows {
    seen: Rings<Seen>,
    /// Which rules held on each of them: `words` for an entry of `seen`, a bit for a rule's column.
    held: Vec<u64>,
    words: usize,
}

impl Windows {
    /// For `columns` rules; `depth` is the longest window and the tokens that can be taken back without shortening it.
    pub(super) fn new(slots: usize, depth: usize, columns: usize) -> Result<Self> {
        let (what, words) = ("windows of rules", columns.div_ceil(64));
        let held = try_vec(slots.saturating_mul(depth).saturating_mul(words), 0, what)?;
        Ok(Windows { seen: Rings::new(slots, depth, what)?, held, words })
    }

    pub(super) fn bytes(slots: usize, depth: usize, columns: usize) -> usize {
        let held = slots.saturating_mul(depth).saturating_mul(columns.div_ceil(64) * 8);
        Rings::<Seen>::bytes(slots, depth).saturating_add(held)
    }

    pub(super) fn clear(&mut self, slot: usize) {
        self.seen.clear(slot);
    }

    /// Appends a token on which no rule holds yet.
    pub(super) fn push(&mut self, slot: usize, position: i32, gap: bool) {
        self.seen.push(slot, Seen { position, gap });
        let place = self.seen.place(slot, 0) * self.words;
        self.held[place..place + self.words].fill(0);
    }

    /// Says that the rule of `column` holds on the newest token.
    pub(super) fn hold(&mut self, slot: usize, column: usize) {
        let place = self.seen.place(slot, 0) * self.words;
        self.held[place + column / 64] |= 1 << (column % 64);
    }

    /// Takes tokens at positions of at least `position` out.
    pub(super) fn rewind(&mut self, slot: usize, position: i32) {
        while self.seen.get(slot, 0).is_some_and(|seen| seen.position >= position) {
            self.seen.pop(slot);
        }
    }

    /// On how many of the last `of_last` tokens the rule of `column` held, and whether tokens among them are missing.
    pub(super) fn count(&self, slot: usize, column: usize, of_last: usize) -> (usize, bool) {
        let len = self.seen.len(slot).min(of_last);
        // Older tokens were seen and are not known any more: a rewind reached too far back.
        let mut gap = len < of_last && self.seen.lost(slot);
        let mut count = 0;
        for back in 0..len {
            let place = self.seen.place(slot, back);
            count += (self.held[place * self.words + column / 64] >> (column % 64) & 1) as usize;
            // What is missing before the oldest is not the window's.
            gap |= back + 1 < len && self.seen.entries[place].gap;
        }
        (count, gap)
    }
}
