//! Points in a stream's work that a host asks about, made once and recorded again and again.

use super::device::Stream;
use crate::error::Result;

/// A point in the work of a stream. One that was never recorded counts as reached.
///
/// Threads: any number at once, as far as the host orders them: whoever asks asks for the recording that it knows of.
pub trait DeviceEvent: Send + Sync {
    /// Puts the point behind what `stream` was given so far, in place of where it was before. Allocates nothing, waits for
    /// nothing.
    ///
    /// # Errors
    /// [`crate::Status::Device`] if the device fails.
    ///
    /// # Safety
    /// `stream` is a live stream of the event's device, which is not being captured.
    unsafe fn record(&self, stream: Stream) -> Result<()>;

    /// Whether the device has come to it. Waits for nothing. It may be asked while any stream is being captured, without
    /// harm to that.
    ///
    /// # Errors
    /// [`crate::Status::Device`] if the device failed before.
    fn reached(&self) -> Result<bool>;

    /// Waits for it, without keeping a CPU busy.
    ///
    /// # Errors
    /// As [`DeviceEvent::reached`].
    fn wait(&self) -> Result<()>;

    /// Lets what `stream` is given from now on wait for it. The host does not wait.
    ///
    /// # Errors
    /// [`crate::Status::Device`] if the device fails.
    ///
    /// # Safety
    /// As [`DeviceEvent::record`].
    unsafe fn hold(&self, stream: Stream) -> Result<()>;
}
