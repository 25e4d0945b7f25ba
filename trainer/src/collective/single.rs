//! One rank: every part already lies in its place.

use super::{Collective, Gathered};
use kronsae::cuda::{Device, DeviceMemory};
use kronsae::{Error, Result};

/// The only rank.
#[derive(Debug, Clone, Copy, Default)]
pub struct Single;

impl Collective for Single {
    fn rank(&self) -> u32 {
        0
    }

    fn ranks(&self) -> u32 {
        1
    }

    fn name(&self) -> &'static str {
        ""
    }

    fn can_be_captured(&self) -> bool {
        true
    }

    unsafe fn all_gather(&self, _device: &dyn Device, parts: &[Gathered<'_>]) -> Result<()> {
        parts.iter().try_for_each(|part| part.all.check(0, part.bytes_each))
    }

    unsafe fn broadcast(&self, _device: &dyn Device, values: &DeviceMemory, bytes: usize, _root: u32) -> Result<()> {
        values.check(0, bytes)
    }

    fn barrier(&self, device: &dyn Device) -> Result<()> {
        device.synchronize()
    }

    fn wait(&self, _device: &dyn Device) -> Result<()> {
        // What reads the device's memory waits itself.
        Ok(())
    }

    fn give_up(&self, error: Error) -> Error {
        error
    }
}
