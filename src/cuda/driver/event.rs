//! Events of the driver that are made once and recorded again and again.

use super::context::{Context, Event, check};
use crate::cuda::device::Stream;
use crate::cuda::event::DeviceEvent;
use crate::error::Result;
use cudarc::driver::sys::{self, CUresult};
use std::sync::Arc;

/// An event, and what keeps its context.
pub(super) struct Point {
    event: Option<Event>,
    context: Arc<Context>,
}

impl Point {
    /// The context is current.
    pub(super) fn new(context: &Arc<Context>) -> Result<Self> {
        Ok(Point { event: Some(Event::new()?), context: Arc::clone(context) })
    }

    fn handle(&self) -> sys::CUevent {
        // Taken by drop alone.
        self.event.as_ref().map_or(std::ptr::null_mut(), |event| event.0)
    }
}

impl DeviceEvent for Point {
    unsafe fn record(&self, stream: Stream) -> Result<()> {
        let _current = self.context.enter()?;
        // SAFETY: a live event, and a live stream by the caller's promise.
        check(unsafe { sys::cuEventRecord(self.handle(), stream.0.cast()) }, "record an event")
    }

    fn reached(&self) -> Result<bool> {
        let _current = self.context.enter()?;
        // SAFETY: a live event.
        match unsafe { sys::cuEventQuery(self.handle()) } {
            CUresult::CUDA_ERROR_NOT_READY => Ok(false),
            result => check(result, "ask whether the device is done").map(|()| true),
        }
    }

    fn wait(&self) -> Result<()> {
        let _current = self.context.enter()?;
        // SAFETY: a live event.
        check(unsafe { sys::cuEventSynchronize(self.handle()) }, "wait for the device")
    }

    unsafe fn hold(&self, stream: Stream) -> Result<()> {
        let _current = self.context.enter()?;
        // SAFETY: a live event, and a live stream by the caller's promise.
        check(unsafe { sys::cuStreamWaitEvent(stream.0.cast(), self.handle(), 0) }, "wait for an event")
    }
}

impl Drop for Point {
    fn drop(&mut self) {
        // The event's handle is of the context.
        let current = self.context.enter();
        drop(self.event.take());
        drop(current);
    }
}
