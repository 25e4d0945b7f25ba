//! Where the host hands tokens over.

use super::ring::{Control, Producer};
use super::shared::{Core, FAILED, RUNNING, stopped};
use super::site::{SiteShared, TapShared, count};
use super::tag::{Sampling, TokenTag};
use crate::activations::Activations;
use crate::encode::{EncodeSummary, Encoder, EncoderOptions, LatentsMut};
use crate::error::{Error, Result, Status};
use std::mem::ManuallyDrop;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// A queue into a site, for one producing thread at a time.
///
/// [`Tap::submit`] never waits: it takes no lock, makes no system call but to wake a sleeping worker, allocates nothing
/// and logs nothing. Dropping a tap leaves what it queued to be encoded. A tap may outlive its monitor; its calls return
/// [`Status::Stopped`] then.
#[derive(Debug)]
pub struct Tap {
    parts: ManuallyDrop<Parts>,
}

#[derive(Debug)]
struct Parts {
    core: Arc<Core>,
    site: Arc<SiteShared>,
    shared: Arc<TapShared>,
    producer: Producer,
    sampling: Sampling,
    /// Made by the first [`Tap::encode`].
    encoder: Option<Box<Encoder>>,
}

impl Tap {
    pub(crate) fn new(core: Arc<Core>, site: Arc<SiteShared>, shared: Arc<TapShared>, producer: Producer) -> Self {
        let sampling = shared.sampling;
        Tap { parts: ManuallyDrop::new(Parts { core, site, shared, producer, sampling, encoder: None }) }
    }

    /// Queues the tokens that sampling takes, as far as there is room; the rest are dropped, the newest first, and
    /// counted. `tags(i)` says whose token row `i` is; tokens of one request come in order. Returns how many were queued.
    ///
    /// # Errors
    /// [`Status::Stopped`] after the monitor was stopped or destroyed, [`Status::Forked`] in a child process,
    /// [`Status::InvalidArgument`] if the width is not the site's or the dtype wider than the tap's. Nothing is queued or
    /// counted then. After a worker failed, all tokens are dropped and counted: that is no error.
    ///
    /// # Panics
    /// With the panic of `tags`; tokens of this call may be lost uncounted then.
    pub fn submit(&mut self, x: Activations<'_>, tags: impl Fn(usize) -> TokenTag) -> Result<usize> {
        let Parts { core, shared, producer, sampling, site, .. } = &mut *self.parts;
        core.fork.check()?;
        producer.check(&x)?;
        let rows = x.rows();
        let takes = match core.state() {
            RUNNING => true,
            FAILED => false,
            _ => return Err(stopped()),
        };
        let (mut accepted, mut sampled_out, mut dropped) = (0, 0, 0);
        if *sampling == Sampling::Every {
            accepted = if takes { producer.room(rows).min(rows) } else { 0 };
            dropped = rows - accepted;
            if accepted > 0 {
                producer.write(&x, 0, accepted, core.nanos(), &tags);
            }
        } else {
            let nanos = core.nanos();
            for row in 0..rows {
                let tag = tags(row);
                if !sampling.takes(&tag) {
                    sampled_out += 1;
                } else if takes && producer.room(1) > 0 {
                    producer.write(&x, row, 1, nanos, |_| tag);
                    accepted += 1;
                } else {
                    dropped += 1;
                }
            }
        }
        count(&shared.produced.submitted, rows);
        count(&shared.produced.sampled_out, sampled_out);
        count(&shared.produced.dropped, dropped);
        if accepted > 0 {
            producer.publish();
            if let Some(wake) = core.workers[site.worker].wake.get() {
                wake.after_publish();
            }
        }
        Ok(accepted)
    }

    /// Encodes on the calling thread, with an encoder of this tap's own, and submits the same tokens besides, for
    /// statistics and rules. For hosts that act on the result at once. The first call, and the first after a model was
    /// replaced, makes the encoder; both are no calls for a hot path. Latents are those of a full encode, whatever the
    /// site watches.
    ///
    /// # Errors
    /// As [`Tap::submit`] and [`Encoder::encode`]; [`Status::Unsupported`] at a site without a model.
    pub fn encode(
        &mut self,
        x: Activations<'_>,
        tags: impl Fn(usize) -> TokenTag,
        out: &mut LatentsMut<'_>,
    ) -> Result<EncodeSummary> {
        let parts = &mut *self.parts;
        parts.core.fork.check()?;
        if !matches!(parts.core.state(), RUNNING | FAILED) {
            return Err(stopped());
        }
        parts.producer.check(&x)?;
        let model = parts.site.model();
        let Some(sae) = &model.sae else {
            return Err(Error::new(
                Status::Unsupported,
                format!("site {} has no model to encode with", parts.site.name),
            ));
        };
        let encoder = match &mut parts.encoder {
            Some(encoder) if Arc::ptr_eq(encoder.sae(), sae) => encoder,
            stale => stale.insert(Box::new(Encoder::new(Arc::clone(sae), EncoderOptions::default())?)),
        };
        let summary = encoder.encode(x, out)?;
        self.submit(x, tags)?;
        Ok(summary)
    }

    /// Says that a request is over, in order with its tokens: its state is given up.
    ///
    /// # Errors
    /// [`Status::Full`] if the slots of control records are all taken: nothing was queued, try again later.
    /// [`Status::Stopped`], [`Status::Forked`].
    pub fn end_request(&mut self, request: u64) -> Result<()> {
        self.control(Control::End { request })
    }

    /// Takes back a request's tokens at positions of at least `position`, in order with its tokens: they leave the windows of
    /// rules, and events they completed are retracted. Statistics count what was computed and stay.
    ///
    /// # Errors
    /// As [`Tap::end_request`].
    pub fn rewind(&mut self, request: u64, position: i32) -> Result<()> {
        self.control(Control::Rewind { request, position })
    }

    fn control(&mut self, control: Control) -> Result<()> {
        let Parts { core, producer, site, .. } = &mut *self.parts;
        core.fork.check()?;
        match core.state() {
            RUNNING => {}
            // Nobody is left to whom it matters.
            FAILED => return Ok(()),
            _ => return Err(stopped()),
        }
        if !producer.control(control) {
            return Err(Error::new(
                Status::Full,
                "all slots of control records are taken; try again when the worker has come to them, or make the tap with more",
            ));
        }
        if let Some(wake) = core.workers[site.worker].wake.get() {
            wake.after_publish();
        }
        Ok(())
    }

    /// Tokens in the queue now.
    #[must_use]
    pub fn queued(&self) -> usize {
        let ring = &self.parts.shared.ring;
        let released = ring.released();
        ring.published().saturating_sub(released) as usize
    }

    /// Its number in the monitor, as in [`TapSnapshot`](super::TapSnapshot).
    #[must_use]
    pub fn number(&self) -> u32 {
        self.parts.shared.number
    }

    /// Whether this process is a fork of the one that made the monitor.
    #[must_use]
    pub fn is_forked(&self) -> bool {
        self.parts.core.fork.is_forked()
    }
}

impl Drop for Tap {
    fn drop(&mut self) {
        if self.parts.core.fork.is_forked() {
            // Locks inside may have been held by threads that do not exist here. Leaving the memory is safe.
            return;
        }
        let worker = self.parts.site.worker;
        self.parts.shared.closed.store(true, Ordering::Release);
        self.parts.core.workers[worker].rouse();
        // SAFETY: dropped once, here, and not used afterwards.
        unsafe { ManuallyDrop::drop(&mut self.parts) };
    }
}
