//! Starting kernels: how many blocks, how many threads, under which name.

use super::abi::{BiasUpdate, ByRow, Revival, RowUpdate, SortPass, SumLists};
use kronsae::Result;
use kronsae::cuda::{Argument, Arguments, Device, Element, Kernel, Product};

// SAFETY: `#[repr(C)]`, of numbers alone, laid out as the kernel's parameter is, with the size that abi.rs checks (so below).
unsafe impl Argument for ByRow {}
// SAFETY: as said above.
unsafe impl Argument for SortPass {}
// SAFETY: as said above.
unsafe impl Argument for RowUpdate {}
// SAFETY: as said above.
unsafe impl Argument for BiasUpdate {}
// SAFETY: as said above.
unsafe impl Argument for SumLists {}
// SAFETY: as said above.
unsafe impl Argument for Revival {}

/// A kernel over an element type, by that type.
pub(super) const fn of(element: Element, f32: &'static str, bf16: &'static str) -> Kernel {
    match element {
        Element::F32 => Kernel(f32),
        Element::Bf16 => Kernel(bf16),
    }
}

/// Names a kernel by its stem and the element type.
macro_rules! kernel {
    ($element:expr, $stem:literal) => {
        $crate::backend::cuda::launch::of(
            $element,
            concat!("kronsae_", $stem, "_f32"),
            concat!("kronsae_", $stem, "_bf16"),
        )
    };
}
pub(super) use kernel;

/// Starts kernels on the device's own stream.
#[derive(Clone, Copy)]
pub(super) struct Launcher<'a> {
    device: &'a dyn Device,
}

impl<'a> Launcher<'a> {
    /// # Safety
    /// For as long as it is used: whatever is started through it has the arguments that its kernel's comment in `cuda/`
    /// asks for, and memory that these lead to is allocated, large enough, and used by this stream alone until it is done.
    pub(super) unsafe fn new(device: &'a dyn Device) -> Self {
        Launcher { device }
    }

    /// Starts a kernel of blocks that take work in turn: at most `work` of them, at most as many as the device holds at
    /// once.
    pub(super) fn start(
        &self,
        kernel: Kernel,
        work: u32,
        block: u32,
        shared_bytes: u32,
        arguments: &mut Arguments,
    ) -> Result<()> {
        let resident = self.device.resident_blocks(kernel, block, shared_bytes)?;
        let grid = work.clamp(1, resident.max(1));
        // SAFETY: the promise of `new`. Every kernel takes any grid.
        unsafe { self.device.launch(kernel, grid, block, shared_bytes, arguments) }
    }

    pub(super) fn product(&self, product: &Product) -> Result<()> {
        // SAFETY: the promise of `new`.
        unsafe { self.device.product(product) }
    }

    pub(super) fn device(&self) -> &'a dyn Device {
        self.device
    }
}

/// Threads of a block that has a thread for each 16 bytes of a row: a multiple of 32, at most 1024.
pub(super) fn row_block(stride: usize, element: Element) -> u32 {
    ((stride * element.size()).div_ceil(16).next_multiple_of(32) as u32).min(1024)
}
