//! Which requests have state, and where: a fixed number of slots, the one used longest ago given up first.

use crate::error::{Error, Result};
use crate::memory::try_vec;
use std::collections::HashMap;

/// No slot.
const NONE: u32 = u32::MAX;

/// Slots by request, in order of use.
#[derive(Debug)]
pub(super) struct Slots {
    /// Has room for twice the slots: with that much it makes room for new keys in place, never by allocating.
    by_request: HashMap<u64, u32>,
    links: Vec<Link>,
    newest: u32,
    oldest: u32,
    /// Slots that were never used or are free again.
    free: Vec<u32>,
}

#[derive(Debug, Clone, Copy)]
struct Link {
    request: u64,
    newer: u32,
    older: u32,
}

/// What [`Slots::take`] found.
pub(super) struct Taken {
    pub(super) slot: usize,
    /// The slot is new to this request.
    pub(super) fresh: bool,
    /// It was another's.
    pub(super) evicted: bool,
}

impl Slots {
    pub(super) fn new(most: usize) -> Result<Self> {
        if most == 0 || most >= NONE as usize / 2 {
            return Err(Error::invalid(format!("{most} requests, expected 1 to {}", NONE / 2 - 1)));
        }
        let mut by_request = HashMap::new();
        by_request.try_reserve(most * 2).map_err(|_| Error::out_of_memory("requests", Slots::bytes(most)))?;
        let mut free = try_vec(most, 0, "requests")?;
        free.iter_mut().zip((0..most as u32).rev()).for_each(|(free, slot)| *free = slot);
        let links = try_vec(most, Link { request: 0, newer: NONE, older: NONE }, "requests")?;
        Ok(Slots { by_request, links, newest: NONE, oldest: NONE, free })
    }

    /// An estimate: the map's cells are its own affair.
    pub(super) fn bytes(most: usize) -> usize {
        let cells = most.saturating_mul(2).saturating_mul(8).div_euclid(7).max(1).next_power_of_two();
        cells.saturating_mul(size_of::<(u64, u32)>() + 1).saturating_add(most.saturating_mul(size_of::<Link>() + 4))
    }

    pub(super) fn alive(&self) -> usize {
        self.by_request.len()
    }

    pub(super) fn get(&self, request: u64) -> Option<usize> {
        self.by_request.get(&request).map(|slot| *slot as usize)
    }

    /// The slot of a request, made the newest; where it has none, a free one or the oldest.
    pub(super) fn take(&mut self, request: u64) -> Taken {
        if let Some(slot) = self.get(request) {
            if self.newest != slot as u32 {
                self.unlink(slot);
                self.link(slot);
            }
            return Taken { slot, fresh: false, evicted: false };
        }
        let (slot, evicted) = match self.free.pop() {
            Some(slot) => (slot as usize, false),
            None => {
                let slot = self.oldest as usize;
                self.unlink(slot);
                self.by_request.remove(&self.links[slot].request);
                (slot, true)
            }
        };
        self.links[slot].request = request;
        self.link(slot);
        self.by_request.insert(request, slot as u32);
        Taken { slot, fresh: true, evicted }
    }

    /// Gives a request's slot back.
    pub(super) fn release(&mut self, request: u64) {
        if let Some(slot) = self.by_request.remove(&request) {
            self.unlink(slot as usize);
            self.free.push(slot);
        }
    }

    fn unlink(&mut self, slot: usize) {
        let Link { newer, older, .. } = self.links[slot];
        match newer {
            NONE => self.newest = older,
            newer => self.links[newer as usize].older = older,
        }
        match older {
            NONE => self.oldest = newer,
            older => self.links[older as usize].newer = newer,
        }
    }

    fn link(&mut self, slot: usize) {
        self.links[slot].newer = NONE;
        self.links[slot].older = self.newest;
        match self.newest {
            NONE => self.oldest = slot as u32,
            newest => self.links[newest as usize].newer = slot as u32,
        }
        self.newest = slot as u32;
    }
}
