//! Work captured once and replayed by one call.

use super::context::{Context, check};
use crate::error::Result;
use cudarc::driver::sys::{self, CUgraph, CUgraphExec, CUstream, CUstreamCaptureMode};
use std::sync::Arc;

/// A captured graph, ready to run.
pub(super) struct Captured {
    ready: CUgraphExec,
    context: Arc<Context>,
}

// SAFETY: a handle that the driver lets any thread use, one at a time or not, once the context is current there.
unsafe impl Send for Captured {}
// SAFETY: as above.
unsafe impl Sync for Captured {}

/// What was captured and not yet made ready.
struct Raw(CUgraph);

impl Drop for Raw {
    fn drop(&mut self) {
        if !self.0.is_null() {
            // SAFETY: given by the driver at the end of a capture, destroyed once; what was made of it lives on.
            let _ = unsafe { sys::cuGraphDestroy(self.0) };
        }
    }
}

impl Captured {
    /// Captures what `step` gives to the context's own stream. The context is current.
    pub(super) fn of(context: &Arc<Context>, step: &mut dyn FnMut() -> Result<()>) -> Result<Self> {
        let stream = context.stream;
        // Relaxed: what other threads do meanwhile, allocating say, is theirs and allowed.
        let mode = CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_RELAXED;
        // SAFETY: the context's own stream, which is not capturing.
        check(unsafe { sys::cuStreamBeginCapture_v2(stream, mode) }, "begin capturing")?;
        let mut end = End { stream, graph: Raw(std::ptr::null_mut()), ended: false };
        let stepped = step();
        let ended = end.now();
        // What the step says is why the capture failed, too.
        stepped?;
        ended?;
        let mut ready = std::ptr::null_mut();
        // SAFETY: a live graph; it writes one handle.
        let made = unsafe { sys::cuGraphInstantiateWithFlags(&raw mut ready, end.graph.0, 0) };
        check(made, "make a graph ready")?;
        Ok(Captured { ready, context: Arc::clone(context) })
    }

    /// Whether it was captured on this device.
    pub(super) fn is_of(&self, context: &Arc<Context>) -> bool {
        Arc::ptr_eq(&self.context, context)
    }

    /// Runs it on a stream. The context is current.
    ///
    /// # Safety
    /// As [`crate::cuda::Device::replay`].
    pub(super) unsafe fn launch(&self, stream: CUstream) -> Result<()> {
        // SAFETY: a live graph and stream, and the caller's promise.
        check(unsafe { sys::cuGraphLaunch(self.ready, stream) }, "replay a graph")
    }
}

impl Drop for Captured {
    fn drop(&mut self) {
        if let Ok(_current) = self.context.enter() {
            // SAFETY: made once, destroyed once; a replay that is under way is finished first.
            let _ = unsafe { sys::cuGraphExecDestroy(self.ready) };
        }
    }
}

/// Ends the capture, also where the step panics: a stream that captures for ever would be lost.
struct End {
    stream: CUstream,
    graph: Raw,
    ended: bool,
}

impl End {
    fn now(&mut self) -> Result<()> {
        self.ended = true;
        // SAFETY: the stream is capturing since `Captured::of` began it; it writes one handle, null if it failed.
        check(unsafe { sys::cuStreamEndCapture(self.stream, &raw mut self.graph.0) }, "capture a graph")
    }
}

impl Drop for End {
    fn drop(&mut self) {
        if !self.ended {
            let _ = self.now();
        }
    }
}
