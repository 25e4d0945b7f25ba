//! Encoding on an NVIDIA GPU: activations and latents in the device's memory, on the caller's stream.

use super::buffers::output;
use super::error::{boundary, destructor, kronsae_error};
use super::handle::{self, Handle};
use super::sae::kronsae_sae;
use super::status::kronsae_status;
use super::structs::{self, Versioned};
use super::views::{kronsae_activations, kronsae_dtype};
use crate::error::{Error, Result};
use std::ffi::c_void;
use std::mem::offset_of;

/// A model's encoder in the memory of a CUDA device: uploaded once.
///
/// Threads: immutable. Any number of threads and streams may use one at once, except for `kronsae_device_sae_destroy`.
///
/// Lifetime: the `kronsae_sae` it was made of must outlive its use; destroying that one stops it.
pub struct kronsae_device_sae {
    _opaque: [u8; 0],
}

/// In which arithmetic a device computes pre-activations: one of `KRONSAE_COMPUTE_*`. They are accumulated, and selected
/// from, in f32 either way.
pub type kronsae_compute = i32;

/// As the model file has the encoder: BF16 weights in bf16, others in f32.
pub const KRONSAE_COMPUTE_AUTO: kronsae_compute = 0;
/// True f32, without TF32.
pub const KRONSAE_COMPUTE_F32: kronsae_compute = 1;
/// Weights and activations are rounded to bfloat16; their products are exact.
pub const KRONSAE_COMPUTE_BF16: kronsae_compute = 2;

/// How a model is put on a device. Start from `KRONSAE_DEVICE_OPTIONS_INIT`; zero means default.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct kronsae_device_options {
    /// sizeof(kronsae_device_options).
    pub struct_size: u32,
    /// Which of the devices that the driver shows to this process, counted from 0, as cudaSetDevice counts.
    pub device: u32,
    /// `KRONSAE_COMPUTE_*`.
    pub compute: kronsae_compute,
    /// Rows whose pre-activations exist at a time; they bound the workspace. 0: as many as take 256 MB, at least 128.
    pub tile_rows: u32,
}

/// Sparse latents of a batch, in buffers of the caller in the device's memory. Start from `KRONSAE_DEVICE_LATENTS_INIT`.
///
/// Row r is at `r * capacity` of `indices` and `values`, as in kronsae_latents. Buffers must be aligned for their type and
/// must not overlap.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct kronsae_device_latents {
    /// sizeof(kronsae_device_latents).
    pub struct_size: u32,
    /// 0.
    pub reserved: u32,
    /// Rows the buffers have room for, at least as many as the activations have.
    pub rows: usize,
    /// Entries a row. With TopK selection at least K; with a threshold, rows of more keep the strongest and are flagged.
    pub capacity: usize,
    /// [rows], device memory: entries written.
    pub counts: *mut u32,
    /// [rows, capacity], device memory: latent indices, below F.
    pub indices: *mut u32,
    /// [rows, capacity], device memory: latent values, in units of normalised activations.
    pub values: *mut f32,
    /// [rows], device memory, or NULL: how many latents were active before any cut.
    pub active: *mut u32,
    /// [rows], device memory, or NULL: `KRONSAE_ROW_*` bits.
    pub row_flags: *mut u8,
    /// One number, device memory, or NULL: rows with KRONSAE_ROW_NOT_FINITE are added to it. The caller sets it to 0.
    pub skipped_rows: *mut u32,
}

// SAFETY: repr(C), four 4-byte fields, struct_size first; plain numbers.
unsafe impl Versioned for kronsae_device_options {
    const NAME: &'static str = "kronsae_device_options";
    const FIRST_SIZE: usize = offset_of!(Self, tile_rows) + size_of::<u32>();
}
// SAFETY: repr(C) without padding, struct_size first; integers and raw pointers, for which zeroes are a value.
unsafe impl Versioned for kronsae_device_latents {
    const NAME: &'static str = "kronsae_device_latents";
    const FIRST_SIZE: usize = offset_of!(Self, skipped_rows) + size_of::<*mut u32>();
}

/// Builds with the device encoder.
#[cfg(any(feature = "cuda", feature = "cuda-emulation"))]
mod device {
    use super::*;
    use crate::capi::buffers::{Extent, disjoint};
    use crate::capi::sae::Model;
    use crate::capi::views::dtype;
    use crate::cuda::{Compute, DeviceActivations, DeviceLatents, DeviceSae, DeviceSaeOptions, Stream};
    use std::sync::Arc;

    impl kronsae_device_latents {
        /// Entries in `indices` and in `values` of the first `rows` rows.
        fn entries(&self, rows: usize) -> Result<usize> {
            if self.reserved != 0 {
                return Err(Error::invalid(format!(
                    "kronsae_device_latents: reserved is {}, expected 0",
                    self.reserved
                )));
            }
            if rows > self.rows {
                return Err(Error::invalid(format!(
                    "kronsae_device_latents: room for {} rows, the activations have {rows}",
                    self.rows
                )));
            }
            rows.checked_mul(self.capacity).ok_or_else(|| {
                Error::invalid(format!("kronsae_device_latents: {rows} rows of capacity {} overflow", self.capacity))
            })
        }

        /// Where the buffers of the first `rows` rows are.
        fn extents(&self, rows: usize, entries: usize) -> [Extent; 6] {
            [
                Extent::new("counts", self.counts.cast_const(), rows),
                Extent::new("indices", self.indices.cast_const(), entries),
                Extent::new("values", self.values.cast_const(), entries),
                Extent::new("active", self.active.cast_const(), rows),
                Extent::new("row_flags", self.row_flags.cast_const(), rows),
                Extent::new("skipped_rows", self.skipped_rows.cast_const(), 1),
            ]
        }
    }

    /// The arithmetic that the struct called `of` asks for.
    pub(in crate::capi) fn compute(number: kronsae_compute, of: &str) -> Result<Compute> {
        match number {
            KRONSAE_COMPUTE_AUTO => Ok(Compute::Auto),
            KRONSAE_COMPUTE_F32 => Ok(Compute::F32),
            KRONSAE_COMPUTE_BF16 => Ok(Compute::Bf16),
            other => Err(Error::invalid(format!("{of}: compute is {other}, expected KRONSAE_COMPUTE_*"))),
        }
    }

    pub(in crate::capi) struct DeviceSaeBody {
        model: Arc<Model>,
        sae: DeviceSae,
    }

    fn address<T>(pointer: *const T) -> u64 {
        pointer.addr() as u64
    }

    impl DeviceSaeBody {
        pub(super) fn create(model: &Arc<Model>, options: kronsae_device_options) -> Result<Self> {
            let compute = compute(options.compute, kronsae_device_options::NAME)?;
            model.check_running()?;
            let device = crate::cuda::open(options.device)?;
            let options = DeviceSaeOptions { compute, tile: options.tile_rows as usize };
            Ok(DeviceSaeBody { sae: DeviceSae::upload(device, &model.sae, options)?, model: Arc::clone(model) })
        }

        pub(super) fn workspace(&self, rows: usize, dtype_number: kronsae_dtype) -> Result<usize> {
            self.model.check_running()?;
            // All dtypes need the same today.
            dtype(dtype_number)?;
            self.sae.workspace_bytes(rows)
        }

        pub(super) unsafe fn encode(
            &self,
            x: &kronsae_activations,
            to: &kronsae_device_latents,
            workspace: *mut c_void,
            workspace_bytes: usize,
            stream: *mut c_void,
        ) -> Result<()> {
            self.model.check_running()?;
            let batch = x.batch()?;
            let entries = to.entries(batch.rows)?;
            let [counts, indices, values, active, flags, skipped] = to.extents(batch.rows, entries);
            let scratch = Extent::new("workspace", workspace.cast_const().cast::<u8>(), workspace_bytes);
            disjoint(&[counts, indices, values, active, flags, skipped, scratch], &[batch.extent(x.data)])?;
            let from = DeviceActivations {
                data: address(x.data),
                dtype: batch.dtype,
                rows: batch.rows,
                d_model: batch.d_model,
                row_stride: batch.row_stride,
            };
            let out = DeviceLatents {
                counts: address(to.counts),
                indices: address(to.indices),
                values: address(to.values),
                capacity: to.capacity,
                active: address(to.active),
                flags: address(to.row_flags),
                skipped: address(to.skipped_rows),
            };
            // SAFETY: the header asks for what `DeviceSae::encode` asks for.
            unsafe { self.sae.encode(&from, &out, address(workspace), workspace_bytes, Stream(stream)) }
        }
    }
}

/// Builds without: there are no handles, and every call says so.
#[cfg(not(any(feature = "cuda", feature = "cuda-emulation")))]
mod device {
    use super::*;
    use crate::capi::sae::Model;
    use std::sync::Arc;

    pub(in crate::capi) enum DeviceSaeBody {}

    impl DeviceSaeBody {
        pub(super) fn create(_model: &Arc<Model>, _options: kronsae_device_options) -> Result<Self> {
            Err(left_out())
        }

        pub(super) fn workspace(&self, _rows: usize, _dtype: kronsae_dtype) -> Result<usize> {
            match *self {}
        }

        pub(super) unsafe fn encode(
            &self,
            _x: &kronsae_activations,
            _to: &kronsae_device_latents,
            _workspace: *mut c_void,
            _workspace_bytes: usize,
            _stream: *mut c_void,
        ) -> Result<()> {
            match *self {}
        }
    }
}

use device::DeviceSaeBody;
#[cfg(any(feature = "cuda", feature = "cuda-emulation"))]
pub(super) use device::compute;

/// Refuses where the library was built without.
pub(super) fn available() -> Result<()> {
    if cfg!(any(feature = "cuda", feature = "cuda-emulation")) { Ok(()) } else { Err(left_out()) }
}

pub(super) fn left_out() -> Error {
    Error::new(
        crate::Status::Unsupported,
        "this libkronsae was built without CUDA; encode on the CPU (kronsae_encode), or use a build with cargo's feature `cuda`",
    )
}

impl Handle for kronsae_device_sae {
    type Body = DeviceSaeBody;
    const NAME: &'static str = "kronsae_device_sae";
    const MAGIC: u64 = u64::from_le_bytes(*b"kronsDEV");
}

/// Uploads a model's encoder to a CUDA device: weights, biases, thresholds. The decoder is not needed.
///
/// The first call in a process opens the driver and loads the kernels. A library that was built without them compiles them
/// then, which takes some seconds once on a machine: they are kept in `$XDG_CACHE_HOME/kronsae`. The device's primary
/// context is used, the one of the CUDA runtime; what was current on the calling thread is current afterwards.
///
/// options: NULL for defaults. out: receives the model on its device, to be freed with `kronsae_device_sae_destroy`; NULL on
/// failure.
///
/// Errors: `KRONSAE_STATUS_UNSUPPORTED`, also if the library was built without CUDA, or something it needs is not there, and
/// the message names it: the driver, one that is new enough, a device, one that is new enough (Ampere), cuBLASLt, or kernels
/// (built in, or libnvrtc to compile them); or if the model selects more than 512 latents a row;
/// `KRONSAE_STATUS_OUT_OF_MEMORY`, also of the device's; `KRONSAE_STATUS_STOPPED` if the model was destroyed;
/// `KRONSAE_STATUS_DEVICE` if the device fails; `KRONSAE_STATUS_INVALID_ARGUMENT`.
///
/// Threads: any number at once. Waits for the device; not while a stream is being captured in a graph.
///
/// Unstable: it was tested over emulated kernels and never on a device.
/// Since 0.1.0.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kronsae_device_sae_create(
    sae: *const kronsae_sae,
    options: *const kronsae_device_options,
    out: *mut *mut kronsae_device_sae,
    error: *mut *mut kronsae_error,
) -> kronsae_status {
    let body = || {
        let out = output(out, "out")?;
        // SAFETY: checked; the header asks for pointers that are valid where they are not null (so everywhere below).
        unsafe {
            out.write(std::ptr::null_mut());
            available()?;
            let model = &handle::borrow(sae)?.model;
            let options = structs::read_options(options)?;
            out.write(handle::create(DeviceSaeBody::create(model, options)?));
        }
        Ok(())
    };
    // SAFETY: as above.
    unsafe { boundary("kronsae_device_sae_create", error, body) }
}

/// Frees a model on its device. NULL is allowed. May come before or after `kronsae_sae_destroy`.
///
/// Threads: one, when no other uses it any more and all work that was enqueued with it is done.
///
/// Unstable: it was tested over emulated kernels and never on a device.
/// Since 0.1.0.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kronsae_device_sae_destroy(device_sae: *mut kronsae_device_sae) {
    // SAFETY: as in kronsae_device_sae_create, and by the header nobody uses it any more.
    destructor("kronsae_device_sae_destroy", || unsafe { handle::destroy(device_sae) });
}

/// Bytes of workspace that `kronsae_encode_cuda` needs for batches of up to `rows` rows of `dtype`. It also decides how the
/// products of such batches are computed, so that encoding them need not.
///
/// The workspace grows with the rows up to those of a tile (see kronsae_device_options), and with no more. One workspace
/// serves one stream at a time.
///
/// bytes: receives the size; the workspace must start at a multiple of 256, as all that cudaMalloc gives does.
///
/// Errors: `KRONSAE_STATUS_UNSUPPORTED`, also if the library was built without CUDA; `KRONSAE_STATUS_STOPPED` if the model
/// was destroyed; `KRONSAE_STATUS_FORKED`; `KRONSAE_STATUS_INVALID_ARGUMENT`.
///
/// Threads: any number at once. Does not touch the device.
///
/// Unstable: it was tested over emulated kernels and never on a device.
/// Since 0.1.0.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kronsae_encode_cuda_workspace(
    device_sae: *const kronsae_device_sae,
    rows: usize,
    dtype: kronsae_dtype,
    bytes: *mut usize,
    error: *mut *mut kronsae_error,
) -> kronsae_status {
    let body = || {
        let bytes = output(bytes, "bytes")?;
        available()?;
        // SAFETY: as in kronsae_device_sae_create.
        unsafe { bytes.write(handle::borrow(device_sae)?.workspace(rows, dtype)?) };
        Ok(())
    };
    // SAFETY: as above.
    unsafe { boundary("kronsae_encode_cuda_workspace", error, body) }
}

/// Enqueues the encoding of a batch on the caller's stream: activations [rows, d_model] in the device's memory to the latents
/// of each row there. It allocates nothing and waits for nothing.
///
/// Selection is exact on the pre-activations that the device computed, in the order of kronsae_latents. Results are the same
/// for the same shape, device and library versions. They are not, bit for bit, those of `kronsae_encode`, nor those of
/// another batch size: products are summed in another order.
///
/// activations: data is an address on the device, of any alignment; rows that start at multiples of 16 bytes and have the
/// dtype of the computation (see kronsae_compute) are read in place, others are converted first. latents: the caller's
/// buffers on the device; those of the first activations->rows rows are written, when the stream gets there. workspace,
/// workspace_bytes: as `kronsae_encode_cuda_workspace` asks for. stream: a cudaStream_t (or CUstream) of that device's primary
/// context; NULL is the default stream.
///
/// Errors: `KRONSAE_STATUS_INVALID_ARGUMENT`, also if d_model is not the model's, a capacity is below k (TopK), the workspace
/// is too small, or the stream is of another device: nothing was enqueued then. `KRONSAE_STATUS_UNSUPPORTED`, also if the
/// library was built without CUDA; `KRONSAE_STATUS_STOPPED` if the model was destroyed; `KRONSAE_STATUS_FORKED`;
/// `KRONSAE_STATUS_DEVICE` if the device fails: what is written is unspecified then. A failure of what was enqueued shows
/// where the caller waits for the stream.
///
/// Graphs: may be captured, after one call with as many rows outside of a capture; buffers, workspace and the model on its
/// device must then live as long as the graph is launched.
///
/// Threads: any number at once, with buffers and a workspace each.
///
/// Unstable: it was tested over emulated kernels and never on a device.
/// Since 0.1.0.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kronsae_encode_cuda(
    device_sae: *const kronsae_device_sae,
    activations: *const kronsae_activations,
    latents: *const kronsae_device_latents,
    workspace: *mut c_void,
    workspace_bytes: usize,
    stream: *mut c_void,
    error: *mut *mut kronsae_error,
) -> kronsae_status {
    let body = || {
        available()?;
        // SAFETY: as in kronsae_device_sae_create; what the structs point to is as the header asks.
        unsafe {
            let body = handle::borrow(device_sae)?;
            let (x, to) = (structs::read(activations)?, structs::read(latents)?);
            body.encode(&x, &to, workspace, workspace_bytes, stream)
        }
    };
    // SAFETY: as above.
    unsafe { boundary("kronsae_encode_cuda", error, body) }
}
