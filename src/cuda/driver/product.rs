//! Products by cuBLASLt: true f32, or bf16 accumulated in f32, the bias added in the same pass. How a shape is computed is
//! asked of the library's heuristic once, and kept.

use super::context::Context;
use crate::cuda::device::{Element, Product};
use crate::error::{Error, Result, Status};
use cudarc::cublaslt::sys::{
    self, cublasComputeType_t, cublasLtEpilogue_t, cublasLtHandle_t, cublasLtMatmulDesc_t,
    cublasLtMatmulDescAttributes_t as Desc, cublasLtMatmulHeuristicResult_t, cublasLtMatmulPreference_t,
    cublasLtMatmulPreferenceAttributes_t as Pref, cublasLtMatrixLayout_t, cublasStatus_t, cudaDataType_t,
};
use cudarc::driver::sys::CUstream;
use std::collections::HashMap;
use std::ffi::c_void;
use std::mem::MaybeUninit;
use std::sync::{Arc, Mutex, PoisonError};

/// What a product may use: NVIDIA's recommendation for Hopper.
pub(super) const WORKSPACE: usize = 32 << 20;
/// What every address and stride is a multiple of, see [`Product`].
const ALIGNMENT: u32 = 16;
/// `CUBLAS_OP_N` and `CUBLAS_OP_T`, which the bindings have for cuBLAS alone.
const AS_IT_IS: i32 = 0;
const TRANSPOSED: i32 = 1;
/// Shapes that are remembered: those of two models' taps of the most rows, which are decided in advance, and others.
const MOST_PLANS: usize = 16_384;

fn check(result: cublasStatus_t, doing: &str) -> Result<()> {
    let status = match result {
        cublasStatus_t::CUBLAS_STATUS_SUCCESS => return Ok(()),
        cublasStatus_t::CUBLAS_STATUS_NOT_SUPPORTED | cublasStatus_t::CUBLAS_STATUS_ARCH_MISMATCH => {
            Status::Unsupported
        }
        cublasStatus_t::CUBLAS_STATUS_ALLOC_FAILED => Status::OutOfMemory,
        _ => Status::Device,
    };
    Err(Error::new(status, format!("cuBLASLt cannot {doing}: {result:?}")))
}

fn data_type(element: Element) -> cudaDataType_t {
    match element {
        Element::F32 => cudaDataType_t::CUDA_R_32F,
        Element::Bf16 => cudaDataType_t::CUDA_R_16BF,
    }
}

/// A product without what may differ between calls of one plan.
fn shape(product: &Product) -> Product {
    Product { x: 0, w: 0, y: 0, workspace: 0, ..*product }
}

/// A matrix's layout.
struct Layout(cublasLtMatrixLayout_t);

impl Layout {
    /// `columns` columns of `rows` elements, `stride` apart: cuBLAS counts by columns.
    fn new(element: Element, rows: u32, columns: u32, stride: u32) -> Result<Self> {
        let mut layout = std::ptr::null_mut();
        // SAFETY: it writes one handle.
        let made = unsafe {
            sys::cublasLtMatrixLayoutCreate(
                &raw mut layout,
                data_type(element),
                u64::from(rows),
                u64::from(columns),
                i64::from(stride),
            )
        };
        check(made, "describe a matrix")?;
        Ok(Layout(layout))
    }
}

impl Drop for Layout {
    fn drop(&mut self) {
        // SAFETY: created once, destroyed once.
        let _ = unsafe { sys::cublasLtMatrixLayoutDestroy(self.0) };
    }
}

struct Description(cublasLtMatmulDesc_t);

impl Description {
    /// `y^T = w x^T + bias`, since our rows are cuBLAS's columns.
    fn new(bias: u64) -> Result<Self> {
        let mut desc = std::ptr::null_mut();
        // SAFETY: it writes one handle.
        let made = unsafe {
            // Not FAST_TF32: f32 means f32.
            let compute = cublasComputeType_t::CUBLAS_COMPUTE_32F;
            sys::cublasLtMatmulDescCreate(&raw mut desc, compute, cudaDataType_t::CUDA_R_32F)
        };
        check(made, "describe a product")?;
        let description = Description(desc);
        description.set(Desc::CUBLASLT_MATMUL_DESC_TRANSA, TRANSPOSED)?;
        description.set(Desc::CUBLASLT_MATMUL_DESC_TRANSB, AS_IT_IS)?;
        if bias != 0 {
            description.set(Desc::CUBLASLT_MATMUL_DESC_EPILOGUE, cublasLtEpilogue_t::CUBLASLT_EPILOGUE_BIAS)?;
            description.set(Desc::CUBLASLT_MATMUL_DESC_BIAS_POINTER, bias)?;
        }
        Ok(description)
    }

    fn set<T: Copy>(&self, which: Desc, value: T) -> Result<()> {
        let bytes = size_of::<T>();
        // SAFETY: a live description; it reads `bytes` bytes of a value of the attribute's type.
        let done =
            unsafe { sys::cublasLtMatmulDescSetAttribute(self.0, which, (&raw const value).cast::<c_void>(), bytes) };
        check(done, "describe a product")
    }
}

impl Drop for Description {
    fn drop(&mut self) {
        // SAFETY: created once, destroyed once.
        let _ = unsafe { sys::cublasLtMatmulDescDestroy(self.0) };
    }
}

struct Preference(cublasLtMatmulPreference_t);

impl Preference {
    fn new() -> Result<Self> {
        let mut preference = std::ptr::null_mut();
        // SAFETY: it writes one handle.
        check(unsafe { sys::cublasLtMatmulPreferenceCreate(&raw mut preference) }, "take a preference")?;
        let preference = Preference(preference);
        preference.set(Pref::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, WORKSPACE)?;
        for which in [
            Pref::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES,
            Pref::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES,
            Pref::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES,
            Pref::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES,
        ] {
            preference.set(which, ALIGNMENT)?;
        }
        Ok(preference)
    }

    fn set<T: Copy>(&self, which: Pref, value: T) -> Result<()> {
        let bytes = size_of::<T>();
        // SAFETY: a live preference; it reads `bytes` bytes of a value of the attribute's type.
        let done = unsafe {
            sys::cublasLtMatmulPreferenceSetAttribute(self.0, which, (&raw const value).cast::<c_void>(), bytes)
        };
        check(done, "take a preference")
    }
}

impl Drop for Preference {
    fn drop(&mut self) {
        // SAFETY: created once, destroyed once.
        let _ = unsafe { sys::cublasLtMatmulPreferenceDestroy(self.0) };
    }
}

/// How one shape is computed.
struct Plan {
    description: Description,
    w: Layout,
    x: Layout,
    y: Layout,
    found: cublasLtMatmulHeuristicResult_t,
}

// SAFETY: descriptions that are only read once they are made.
unsafe impl Send for Plan {}
// SAFETY: as above.
unsafe impl Sync for Plan {}

impl Plan {
    fn new(handle: cublasLtHandle_t, product: &Product) -> Result<Self> {
        let Product { tokens, rows, inner, input, output, .. } = *product;
        let description = Description::new(product.bias)?;
        let w = Layout::new(input, inner, rows, product.w_stride)?;
        let x = Layout::new(input, inner, tokens, product.x_stride)?;
        let y = Layout::new(output, rows, tokens, product.y_stride)?;
        let preference = Preference::new()?;
        let mut found = MaybeUninit::<cublasLtMatmulHeuristicResult_t>::zeroed();
        let mut count = 0;
        // SAFETY: live descriptions; it writes at most one result and a number.
        let asked = unsafe {
            sys::cublasLtMatmulAlgoGetHeuristic(
                handle,
                description.0,
                w.0,
                x.0,
                y.0,
                y.0,
                preference.0,
                1,
                found.as_mut_ptr(),
                &raw mut count,
            )
        };
        let doing = format!("compute {tokens} tokens of {inner} x {rows} rows, {input:?} to {output:?}");
        check(asked, &doing)?;
        if count < 1 {
            return Err(Error::new(Status::Unsupported, format!("cuBLASLt cannot {doing}: it knows no way")));
        }
        // SAFETY: one result was written.
        let found = unsafe { found.assume_init() };
        check(found.state, &doing)?;
        Ok(Plan { description, w, x, y, found })
    }
}

/// cuBLASLt on one device.
pub(super) struct Products {
    handle: cublasLtHandle_t,
    plans: Mutex<HashMap<Product, Arc<Plan>>>,
    /// Whose context the handle is of.
    context: Arc<Context>,
}

// SAFETY: the library lets any thread use its handle; plans are behind a lock.
unsafe impl Send for Products {}
// SAFETY: as above.
unsafe impl Sync for Products {}

impl Products {
    /// The context is current.
    pub(super) fn new(context: &Arc<Context>) -> Result<Self> {
        let mut handle = std::ptr::null_mut();
        // SAFETY: the library was found; it writes one handle.
        check(unsafe { sys::cublasLtCreate(&raw mut handle) }, "start")?;
        Ok(Products { handle, plans: Mutex::default(), context: Arc::clone(context) })
    }

    fn plan(&self, product: &Product) -> Result<Arc<Plan>> {
        let shape = shape(product);
        let mut plans = self.plans.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(plan) = plans.get(&shape) {
            return Ok(Arc::clone(plan));
        }
        let plan = Arc::new(Plan::new(self.handle, product)?);
        if plans.len() >= MOST_PLANS {
            plans.clear();
        }
        plans.insert(shape, Arc::clone(&plan));
        Ok(plan)
    }

    /// Decides how a shape is computed. The context is current.
    pub(super) fn prepare(&self, product: &Product) -> Result<()> {
        self.plan(product).map(drop)
    }

    /// Enqueues a product. The context is current.
    ///
    /// # Safety
    /// As [`crate::cuda::Device::product_on`]; `workspace` has [`WORKSPACE`] bytes.
    pub(super) unsafe fn run(&self, stream: CUstream, product: &Product, workspace: u64) -> Result<()> {
        let plan = self.plan(product)?;
        let (one, zero) = (1.0_f32, 0.0_f32);
        let at = |address: u64| std::ptr::without_provenance_mut::<c_void>(address as usize);
        // SAFETY: descriptions of the same shape, and addresses as the caller promises. The two factors are read before the
        // call returns.
        let done = unsafe {
            sys::cublasLtMatmul(
                self.handle,
                plan.description.0,
                (&raw const one).cast(),
                at(product.w),
                plan.w.0,
                at(product.x),
                plan.x.0,
                (&raw const zero).cast(),
                at(product.y),
                plan.y.0,
                at(product.y),
                plan.y.0,
                &raw const plan.found.algo,
                at(workspace),
                plan.found.workspaceSize,
                stream.cast(),
            )
        };
        check(done, "start a product")
    }
}

impl Drop for Products {
    fn drop(&mut self) {
        if let Ok(_current) = self.context.enter() {
            // SAFETY: created once; nobody uses it any more.
            let _ = unsafe { sys::cublasLtDestroy(self.handle) };
        }
    }
}
