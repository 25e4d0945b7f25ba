//! The runtime of kronsae: one weights file in, exact sparse latents out.
//!
//! A sparse autoencoder (SAE) explains an activation vector of a language model by a few of its many *latents*. This
//! crate loads a trained one, KronSAE or dense, and encodes activations with it on the CPU:
//!
//! ```no_run
//! use kronsae::{Activations, Encoder, EncoderOptions, Latents, Sae};
//! use std::sync::Arc;
//!
//! let sae = Arc::new(Sae::open("model.safetensors")?);
//! let mut encoder = Encoder::new(Arc::clone(&sae), EncoderOptions { threads: 2, ..Default::default() })?;
//!
//! let residual = vec![0.1_f32; 8 * sae.config().d_model]; // 8 tokens, [rows, d_model]
//! let x = Activations::from_f32(&residual, sae.config().d_model)?;
//! let mut latents = Latents::new(x.rows(), sae.config().selection.capacity())?;
//! encoder.encode(x, &mut latents.as_mut())?;
//!
//! for (latent, value) in latents.row(0).0.iter().zip(latents.row(0).1) {
//!     println!("latent {latent} fires at {value}");
//! }
//! # Ok::<(), kronsae::Error>(())
//! ```
//!
//! Results are a function of token and model alone. Every pre-activation is computed by one canonical sequence of
//! operations (`dot/1`, see [`pre_activations`]), selection follows one total order, and neither batch size, thread count
//! nor instruction set changes a bit.
//!
//! [`Sae`] is immutable and shared by any number of threads; [`Encoder`] holds a workspace, one per thread. The C ABI over
//! all this is `include/kronsae.h`; training is the `kronsae` command, in a crate of its own.

#[cfg(any(feature = "cuda", feature = "cuda-emulation"))]
pub mod cuda;
pub mod dtype;
pub mod monitor;
pub mod sae;
pub mod tensor_file;
pub mod threads;

mod activations;
#[doc(hidden)]
#[allow(rustdoc::broken_intra_doc_links, reason = "its comments become the C header, where [rows] is a shape")]
pub mod capi;
mod decode;
mod encode;
mod error;
mod float_env;
mod memory;
mod simd;

pub use activations::Activations;
pub use decode::{LatentsRef, SteerTerm};
pub use dtype::Dtype;
pub use encode::{
    AutoRule, EncodePath, EncodeSummary, Encoder, EncoderOptions, Instruction, Latents, LatentsMut, Plan,
    ROW_NOT_FINITE, ROW_TRUNCATED, RowOutcome, Screening, Selector, Watch, WatchRule, pre_activations,
};
pub use error::{Error, Result, Status};
pub use float_env::FloatEnv;
pub use memory::{ALIGNMENT, Aligned};
pub use sae::Sae;
pub use simd::{AMX_BLOCK, Amx, AmxWeights, Isa, Level as IsaLevel, Term, gathered_dots, gathered_sum};
