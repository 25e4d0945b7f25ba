//! Where the host hands over what its device has.

use super::cut::Cut;
use super::queue::Filling;
use crate::cuda::{Device, DeviceActivations, Stream};
use crate::error::{Error, Result, Status};
use crate::monitor::ring::{Control, Producer};
use crate::monitor::shared::{Core, FAILED, RUNNING, stopped};
use crate::monitor::site::{SiteShared, TapShared, count};
use crate::monitor::tag::TokenTag;
use std::mem::ManuallyDrop;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// A queue into a site for activations in a device's memory, for one producing thread at a time.
///
/// [`DeviceTap::submit`] enqueues on the host's stream and never waits: not for the device, not for a lock, and it allocates
/// and logs nothing. Dropping a tap leaves what it took to be encoded; where the monitor is gone, it waits for what the
/// device still does for it. A tap may outlive its monitor; its calls return [`Status::Stopped`] then.
///
/// Latents are those of [`crate::cuda::DeviceSae`]: exact on the pre-activations that the device computed, which are not,
/// bit for bit, the CPU's.
///
/// A device that fails, fails the tap: it drops and counts from then on, the [notice](crate::monitor::Monitor::set_notice)
/// says so once, and [`TapSnapshot::failure`](crate::monitor::TapSnapshot::failure) why.
pub struct DeviceTap {
    parts: ManuallyDrop<Parts>,
}

struct Parts {
    core: Arc<Core>,
    site: Arc<SiteShared>,
    shared: Arc<TapShared>,
    producer: Producer,
    filling: Filling,
}

impl std::fmt::Debug for DeviceTap {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "DeviceTap({} of site {})", self.parts.shared.number, self.parts.site.name)
    }
}

/// Where the rows of one submit went.
#[derive(Default)]
struct Went {
    accepted: usize,
    sampled_out: usize,
    dropped: usize,
}

impl Parts {
    /// Refuses rows that do not fit the site, or address space.
    fn check(&self, x: &DeviceActivations) -> Result<()> {
        if x.d_model != self.site.d_model {
            return Err(Error::invalid(format!(
                "activations have d_model {}, this tap's site has {}",
                x.d_model, self.site.d_model
            )));
        }
        let overflow =
            || Error::invalid(format!("activations: {} rows at a stride of {} bytes overflow", x.rows, x.row_stride));
        let row = (x.d_model * x.dtype.size()) as u64;
        let rows = (x.rows as u64).checked_mul(x.row_stride as u64).and_then(|bytes| bytes.checked_add(row));
        rows.and_then(|bytes| bytes.checked_add(x.data)).ok_or_else(overflow)?;
        if u32::try_from(x.rows).is_err() {
            return Err(overflow());
        }
        if x.rows > 0 && x.data == 0 {
            return Err(Error::invalid("activations is null, expected an address on the device"));
        }
        Ok(())
    }

    /// Refuses a stream whose work cannot be joined now. None: the device failed, and the tap with it.
    fn check_stream(&self, device: &dyn Device, stream: Stream) -> Result<Option<()>> {
        match device.check_stream(stream).and_then(|()| device.is_capturing(stream)) {
            Ok(false) => Ok(Some(())),
            Ok(true) => Err(Error::invalid(
                "the stream is being captured in a graph, which a tap cannot be part of: submit on it outside of the \
                 capture, after each launch of the graph",
            )),
            Err(error) if matches!(error.status(), Status::InvalidArgument | Status::Forked) => Err(error),
            Err(error) => {
                self.fail(&error);
                Ok(None)
            }
        }
    }

    fn fail(&self, error: &Error) {
        // The first failure is the one to tell.
        let _ = self.shared.failure.set(format!("the device failed: {error}"));
    }

    fn wake(&self) {
        if let Some(wake) = self.core.workers[self.site.worker].wake.get() {
            wake.after_publish();
        }
    }

    /// Enqueues a batch whose tags were written, and publishes it; false if the device failed.
    ///
    /// # Safety
    /// As [`DeviceTap::submit`].
    unsafe fn send(&mut self, x: &DeviceActivations, cut: &Cut, stream: Stream) -> bool {
        let first = self.producer.written() - cut.tokens as u64;
        // SAFETY: the caller's promise.
        match unsafe { self.filling.enqueue(x, cut, stream, first) } {
            Ok(()) => {
                self.filling.publish();
                self.producer.publish();
                true
            }
            Err(error) => {
                self.producer.abandon();
                self.fail(&error);
                false
            }
        }
    }
}

impl DeviceTap {
    pub(super) fn new(
        core: Arc<Core>,
        site: Arc<SiteShared>,
        shared: Arc<TapShared>,
        producer: Producer,
        filling: Filling,
    ) -> Self {
        DeviceTap { parts: ManuallyDrop::new(Parts { core, site, shared, producer, filling }) }
    }

    /// Enqueues on `stream` the encoding of the tokens that sampling takes, as far as there are slots; the rest are dropped,
    /// the newest first, whole batches at a time, and counted. `tags(i)` says whose token row `i` is; tokens of one request
    /// come in order. Returns how many were taken.
    ///
    /// Sampled rows that lie equally far apart are encoded alone, others with the rows between them; a submit of which
    /// sampling takes none enqueues nothing. Work that is enqueued on different streams is ordered by the device, not by the
    /// host.
    ///
    /// # Errors
    /// [`Status::Stopped`] after the monitor was stopped or destroyed, [`Status::Forked`] in a child process,
    /// [`Status::InvalidArgument`] if the width is not the site's, or the stream is of another device or being captured in
    /// a graph. Nothing is enqueued or counted then. After a worker or the device failed, all tokens are dropped and
    /// counted: that is no error.
    ///
    /// # Panics
    /// With the panic of `tags`; tokens of this call may be lost uncounted then.
    ///
    /// # Safety
    /// `x` describes rows in the device's memory that nobody writes until what this enqueues on `stream` is done: later work
    /// of the same stream may. `stream` is a live stream.
    pub unsafe fn submit(
        &mut self,
        x: &DeviceActivations,
        stream: Stream,
        tags: impl Fn(usize) -> TokenTag,
    ) -> Result<usize> {
        let parts = &mut *self.parts;
        parts.core.fork.check()?;
        parts.check(x)?;
        let mut room = match parts.core.state() {
            RUNNING => parts.shared.failure.get().is_none(),
            FAILED => false,
            _ => return Err(stopped()),
        };
        let well = room;
        // What a call left behind whose `tags` panicked.
        parts.producer.abandon();
        let (sampling, most, nanos) = (parts.shared.sampling, parts.filling.queue.options.rows, parts.core.nanos());
        let mut went = Went::default();
        let (mut batch, mut checked): (Option<Cut>, bool) = (None, false);
        for row in 0..x.rows {
            let tag = tags(row);
            if !sampling.takes(&tag) {
                went.sampled_out += 1;
                continue;
            }
            batch = match batch.map(|cut| (cut, cut.and(row))) {
                Some((_, longer)) if longer.rows() <= most => Some(longer),
                Some((full, _)) => {
                    // SAFETY: the caller's promise.
                    room = unsafe { parts.send(x, &full, stream) };
                    went.add(&full, room);
                    None
                }
                None => None,
            };
            if batch.is_none() {
                if room && !checked {
                    let device = Arc::clone(&parts.filling.queue.device);
                    checked = true;
                    room = parts.check_stream(&*device, stream)?.is_some();
                }
                // Once full, full for this call, whatever the worker frees meanwhile: it is the newest rows that are dropped.
                room = room && parts.filling.claim();
                if !room {
                    went.dropped += 1;
                    continue;
                }
                batch = Some(Cut::new(row));
            }
            if let Some(cut) = &batch {
                let written = parts.producer.write_tag(tag, (row - cut.first) as u32, nanos);
                debug_assert!(written, "the ring has room for one batch more than there are slots");
            }
        }
        if let Some(cut) = batch {
            // SAFETY: the caller's promise.
            let sent = unsafe { parts.send(x, &cut, stream) };
            went.add(&cut, sent);
        }
        count(&parts.shared.produced.sampled_out, went.sampled_out);
        count(&parts.shared.produced.dropped, went.dropped);
        if went.accepted > 0 || (well && parts.shared.failure.get().is_some()) {
            parts.wake();
        }
        Ok(went.accepted)
    }

    /// Says that a request is over, in order with its tokens: its state is given up.
    ///
    /// # Errors
    /// [`Status::Full`] if the slots of control records are all taken: nothing was queued, try again later.
    /// [`Status::Stopped`], [`Status::Forked`].
    pub fn end_request(&mut self, request: u64) -> Result<()> {
        self.control(Control::End { request })
    }

    /// Takes back a request's tokens at positions of at least `position`, in order with its tokens, as
    /// [`Tap::rewind`](crate::monitor::Tap::rewind) does.
    ///
    /// # Errors
    /// As [`DeviceTap::end_request`].
    pub fn rewind(&mut self, request: u64, position: i32) -> Result<()> {
        self.control(Control::Rewind { request, position })
    }

    fn control(&mut self, control: Control) -> Result<()> {
        let parts = &mut *self.parts;
        parts.core.fork.check()?;
        match parts.core.state() {
            RUNNING => {}
            // Nobody is left to whom it matters.
            FAILED => return Ok(()),
            _ => return Err(stopped()),
        }
        // Tags without a batch, of a call whose `tags` panicked, must not be published by this.
        parts.producer.abandon();
        if !parts.producer.control(control) {
            return Err(Error::new(
                Status::Full,
                "all slots of control records are taken; try again when the worker has come to them, or make the tap with more",
            ));
        }
        parts.wake();
        Ok(())
    }

    /// Tokens taken and not yet given up by the worker.
    #[must_use]
    pub fn queued(&self) -> usize {
        let ring = &self.parts.shared.ring;
        let released = ring.released();
        ring.published().saturating_sub(released) as usize
    }

    /// The device it takes activations of.
    #[must_use]
    pub fn device(&self) -> &Arc<dyn Device> {
        &self.parts.filling.queue.device
    }

    /// Its number in the monitor, as in [`TapSnapshot`](crate::monitor::TapSnapshot).
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

impl Went {
    fn add(&mut self, cut: &Cut, sent: bool) {
        *(if sent { &mut self.accepted } else { &mut self.dropped }) += cut.tokens;
    }
}

impl Drop for DeviceTap {
    fn drop(&mut self) {
        if self.parts.core.fork.is_forked() {
            // Locks inside may have been held by threads that do not exist here, and the device is the parent's. Leaving
            // the memory is safe.
            return;
        }
        // SAFETY: taken once, here, and not used afterwards.
        let Parts { core, site, shared, filling, .. } = unsafe { ManuallyDrop::take(&mut self.parts) };
        // Before the worker may let go of its end: the last one frees memory of the device, which may wait for that.
        drop(filling);
        shared.closed.store(true, Ordering::Release);
        core.workers[site.worker].rouse();
    }
}
