//! Who is measured: the trait of a contender, what contenders are made of, and the list of them.

use super::ours::{self, Ours};
use super::peaks::Unit;
use super::torch::{Torch, TorchModel};
use kronsae::sae::{Config, DecoderWeights, Encoder, EncoderWeights, Matrix, Selection};
use kronsae::{Aligned, EncodePath, EncoderOptions, Result, Sae};
use serde::Serialize;
use std::cell::RefCell;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;

/// A KronSAE's extents, and with them those of the dense SAE of as many latents.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Shape {
    /// What it is called in the table.
    pub name: String,
    /// d, width of an activation vector.
    pub d_model: usize,
    /// h, heads.
    pub heads: usize,
    /// m, base rows of a head.
    pub base: usize,
    /// n, extension rows of a head.
    pub extension: usize,
}

impl Shape {
    /// The KronSAE of this shape.
    #[must_use]
    pub fn kron(&self) -> Encoder {
        Encoder::Kron { heads: self.heads, base: self.base, extension: self.extension }
    }

    /// The dense SAE of as many latents.
    #[must_use]
    pub fn dense(&self) -> Encoder {
        Encoder::Dense { latents: self.kron().latents() }
    }
}

/// What a call of a contender amounts to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Work {
    /// Bytes of weights that it reads at least once.
    pub bytes: u64,
    /// Rows of the matrix that it multiplies by: 2 * rows * d operations a token.
    pub rows: usize,
    /// How often each weight is multiplied with each token: once, or plane by plane.
    pub products: usize,
    /// What multiplies, where it is known.
    pub unit: Option<Unit>,
    /// Of this library's encoder: whether it screens such a call, and on how many threads it runs.
    pub ours: Option<(bool, usize)>,
}

/// One encoder under measurement.
pub trait Contender {
    /// What a call of `tokens` tokens amounts to; asked after calls of that size.
    fn work(&self, tokens: usize) -> Work;

    /// Encodes `tokens` tokens, `calls` times, each time others; appends the nanoseconds of each call.
    ///
    /// # Errors
    /// What the encoder has to say.
    fn run(&mut self, tokens: usize, calls: usize, times: &mut Vec<f64>) -> Result<(), String>;
}

/// Random tokens, standard normal, a window of them a call.
#[derive(Debug)]
pub struct Tokens {
    d_model: usize,
    values: Vec<f32>,
    at: usize,
}

impl Tokens {
    /// None yet.
    #[must_use]
    pub fn new(d_model: usize) -> Self {
        Tokens { d_model, values: Vec::new(), at: 0 }
    }

    /// The next `tokens` of them, `[tokens, d_model]`.
    pub fn next(&mut self, tokens: usize) -> &[f32] {
        if self.values.len() < 4 * tokens * self.d_model {
            self.values = ours::normals(77, 4 * tokens * self.d_model, 1.0);
        }
        let first = self.at % (self.values.len() / self.d_model - tokens + 1);
        self.at += tokens;
        &self.values[first * self.d_model..][..tokens * self.d_model]
    }
}

/// What the contenders of one shape are made of. Each is made when it is asked for first.
pub struct Workshop {
    /// The shape.
    pub shape: Shape,
    /// K.
    pub k: usize,
    sae: Option<Arc<Sae>>,
    /// Exported graphs, removed with it.
    #[cfg(feature = "onnxruntime")]
    folder: tempfile::TempDir,
    peers: Peers,
}

/// The other libraries, or why they are not there.
#[derive(Clone)]
pub struct Peers {
    /// ONNX Runtime's library.
    #[cfg(feature = "onnxruntime")]
    pub onnx: Result<&'static crate::onnx::runtime::Runtime, String>,
    /// A Python process that has torch.
    pub torch: Result<Rc<RefCell<Torch>>, String>,
}

impl Peers {
    /// Looks for them: `onnxruntime` is the path of its library, `python` that of an interpreter that has torch.
    #[must_use]
    pub fn find(onnxruntime: Option<&Path>, python: Option<&Path>) -> Self {
        #[cfg(not(feature = "onnxruntime"))]
        let _ = onnxruntime;
        Peers {
            #[cfg(feature = "onnxruntime")]
            onnx: crate::onnx::runtime::Runtime::get(onnxruntime).map_err(|e| e.message().to_owned()),
            torch: Torch::start(python).map(|torch| Rc::new(RefCell::new(torch))),
        }
    }

    /// Names and versions of those that are there.
    #[must_use]
    pub fn versions(&self) -> Vec<String> {
        let mut versions = vec![format!("kronsae {}", env!("CARGO_PKG_VERSION"))];
        #[cfg(feature = "onnxruntime")]
        versions.extend(self.onnx.as_ref().ok().map(|onnx| format!("ONNX Runtime {}", onnx.version())));
        versions.extend(self.torch.as_ref().ok().map(|torch| torch.borrow().version().to_owned()));
        versions
    }
}

/// A graph that ONNX Runtime is measured with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum GraphKind {
    Kron,
    /// The KronSAE with TopK over all F latents.
    KronAllLatents,
    Dense,
}

/// A model of random weights, N(0, 1/d), biases 0, without a decoder.
pub(super) fn random_sae(encoder: Encoder, d: usize, k: usize) -> Result<Sae> {
    let rows = encoder.rows();
    let config = Config::new(encoder, d, Selection::TopK(k), 1.0)?;
    let mut weight = Matrix::zeroed(rows, d, "random weights")?;
    let stride = weight.stride();
    for (row, to) in weight.f32_mut().chunks_exact_mut(stride).enumerate() {
        ours::fill_normals(1 + row as u64, (d as f32).sqrt().recip(), &mut to[..d]);
    }
    let weights = EncoderWeights { weight, bias: Aligned::zeroed(rows, "biases")?, threshold: None };
    Sae::from_parts(config, weights, None::<DecoderWeights>)
}

impl Workshop {
    /// For one shape.
    ///
    /// # Errors
    /// If no temporary folder can be made.
    pub fn new(shape: Shape, k: usize, peers: Peers) -> Result<Self> {
        Ok(Workshop {
            shape,
            k,
            sae: None,
            #[cfg(feature = "onnxruntime")]
            folder: tempfile::tempdir().map_err(|e| kronsae::Error::io("create", "a temporary folder", &e))?,
            peers,
        })
    }

    fn random(&self, encoder: Encoder) -> Result<Sae> {
        random_sae(encoder, self.shape.d_model, self.k)
    }

    fn sae(&mut self) -> Result<Arc<Sae>, String> {
        if self.sae.is_none() {
            self.sae = Some(Arc::new(self.random(self.shape.kron()).map_err(|e| e.message().to_owned())?));
        }
        Ok(Arc::clone(self.sae.as_ref().expect("made just now")))
    }

    fn ours(&mut self, options: EncoderOptions) -> Result<Box<dyn Contender>, String> {
        let ours = Ours::new(self.sae()?, options).map_err(|e| e.message().to_owned())?;
        Ok(Box::new(ours))
    }

    #[cfg(feature = "onnxruntime")]
    fn onnx(&mut self, kind: GraphKind, threads: usize) -> Result<Box<dyn Contender>, String> {
        use super::onnx::OnnxContender;
        use crate::onnx::{ExportOptions, TopKOver, export};
        let runtime = self.peers.onnx.clone()?;
        let text = |e: kronsae::Error| e.message().to_owned();
        let encoder = if kind == GraphKind::Dense { self.shape.dense() } else { self.shape.kron() };
        let bytes = encoder.rows() as u64 * self.shape.d_model as u64 * 4;
        // The weights, the loaded graph, and the copy that ONNX Runtime packs from it.
        if let Some(available) = super::machine::available_memory().filter(|&available| available < bytes * 3) {
            return Err(format!(
                "its weights of {:.1} GB need about three times that, {:.1} GB are available",
                bytes as f64 / 1e9,
                available as f64 / 1e9
            ));
        }
        let path = self.folder.path().join(format!("{kind:?}.onnx"));
        if !path.exists() {
            let over = if kind == GraphKind::KronAllLatents { TopKOver::Latents } else { TopKOver::Heads };
            let options = ExportOptions { top_k_over: over, ..ExportOptions::default() };
            if kind == GraphKind::Dense {
                export(&self.random(encoder).map_err(text)?, &path, options).map_err(text)?;
            } else {
                export(&*self.sae()?, &path, options).map_err(text)?;
            }
        }
        let contender = OnnxContender::open(runtime, &path, threads, encoder.rows(), self.shape.d_model);
        Ok(Box::new(contender.map_err(text)?))
    }

    #[cfg(not(feature = "onnxruntime"))]
    fn onnx(&mut self, _kind: GraphKind, _threads: usize) -> Result<Box<dyn Contender>, String> {
        Err("this build has no ONNX Runtime; build with --features onnxruntime".to_owned())
    }

    fn torch(&mut self, kind: &'static str, threads: usize) -> Result<Box<dyn Contender>, String> {
        let torch = self.peers.torch.clone()?;
        Ok(Box::new(TorchModel::new(torch, kind, &self.shape, self.k, threads)?))
    }
}

/// Makes a contender for so many threads.
pub type Build = fn(&mut Workshop, usize) -> Result<Box<dyn Contender>, String>;

/// The encoder as it chooses by itself.
pub const EXACT: &str = "kronsae, exact";
/// The encoder made to screen.
pub const SCREENED: &str = "kronsae, exact, always screened";
/// The encoder made to compute all rows.
pub const FULL: &str = "kronsae, exact, all rows in f32";
/// The encoder with bounds that are likely, not proven.
pub const FAST: &str = "kronsae, fast (not exact)";

/// Everybody, by name. The first is the one that the others are compared with.
pub const CONTENDERS: &[(&str, Build)] = &[
    (EXACT, |w, threads| w.ours(EncoderOptions { threads, path: EncodePath::Auto })),
    (SCREENED, |w, threads| w.ours(EncoderOptions { threads, path: EncodePath::Screened })),
    (FULL, |w, threads| w.ours(EncoderOptions { threads, path: EncodePath::Plain })),
    (FAST, |w, threads| w.ours(EncoderOptions { threads, path: EncodePath::Fast })),
    ("ONNX Runtime f32 KronSAE", |w, threads| w.onnx(GraphKind::Kron, threads)),
    ("ONNX Runtime f32 KronSAE, TopK over all F", |w, threads| w.onnx(GraphKind::KronAllLatents, threads)),
    ("ONNX Runtime f32 dense TopK", |w, threads| w.onnx(GraphKind::Dense, threads)),
    ("torch bf16 KronSAE", |w, threads| w.torch("kron", threads)),
    ("torch bf16 dense TopK", |w, threads| w.torch("dense", threads)),
];
