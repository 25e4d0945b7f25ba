//! ONNX Runtime, opened at run time: exported graphs are checked against it and compared with it in benchmarks.

use kronsae::{Error, Result, Status};
use ort::environment::Environment;
use ort::session::Session;
use ort::value::TensorRef;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

/// The environment variable that names the library.
pub const LIBRARY_VARIABLE: &str = "ORT_DYLIB_PATH";

/// The loaded library, one a process.
#[derive(Debug)]
pub struct Runtime {
    environment: Environment,
    version: String,
}

fn failed(doing: &str, error: &ort::Error) -> Error {
    Error::new(Status::Unsupported, format!("ONNX Runtime cannot {doing}: {}", error.message()))
}

impl Runtime {
    /// The library at `path`, or where `ORT_DYLIB_PATH` says, or `libonnxruntime.so` where the system finds it. The
    /// first call decides for the process.
    ///
    /// # Errors
    /// [`Status::Unsupported`] if there is none or it is too old, with what to do.
    pub fn get(path: Option<&Path>) -> Result<&'static Self> {
        static LOADED: OnceLock<Result<Runtime>> = OnceLock::new();
        LOADED.get_or_init(|| Self::load(path)).as_ref().map_err(Clone::clone)
    }

    fn load(path: Option<&Path>) -> Result<Self> {
        let path = path
            .map(Path::to_owned)
            .or_else(|| std::env::var_os(LIBRARY_VARIABLE).filter(|p| !p.is_empty()).map(PathBuf::from))
            .unwrap_or_else(|| "libonnxruntime.so".into());
        let missing = |error: &dyn std::fmt::Display| {
            Error::new(
                Status::Unsupported,
                format!(
                    "{}: ONNX Runtime cannot be loaded ({error}); set {LIBRARY_VARIABLE} to its libonnxruntime.so, \
                     which the Python package onnxruntime holds",
                    path.display()
                ),
            )
        };
        // A relative path would be looked for beside the program first.
        let at = if path.exists() { path.canonicalize().unwrap_or_else(|_| path.clone()) } else { path.clone() };
        let environment = ort::init_from(&at)
            .map_err(|e| missing(&e))?
            .with_name("kronsae")
            .build()
            .map_err(|e| failed("start", &e))?;
        let minor = ort::util::probe(&at).map_or("unknown".to_owned(), |minor| format!("1.{minor}"));
        Ok(Runtime { environment, version: minor })
    }

    /// Its version, `1.22` say.
    #[must_use]
    pub fn version(&self) -> &str {
        &self.version
    }
}

/// An exported encoder in ONNX Runtime.
#[derive(Debug)]
pub struct OnnxEncoder {
    session: Session,
}

impl OnnxEncoder {
    /// Loads a graph, to run on `threads` threads.
    ///
    /// # Errors
    /// [`Status::Unsupported`] with what ONNX Runtime has to say.
    pub fn open(runtime: &Runtime, path: &Path, threads: usize) -> Result<Self> {
        let load = || -> ort::Result<Session> {
            Session::builder(&runtime.environment)?
                .with_intra_threads(threads)?
                .with_inter_threads(1)?
                .commit_from_file(path)
        };
        let session = load();
        Ok(OnnxEncoder { session: session.map_err(|e| failed(&format!("load {}", path.display()), &e))? })
    }

    /// Encodes `x`, `[rows, d_model]`, and hands indices and values, each `[rows, K]`, to `take`.
    ///
    /// # Errors
    /// [`Status::Unsupported`] with what ONNX Runtime has to say.
    pub fn run<T>(&mut self, x: &[f32], d_model: usize, take: impl FnOnce(&[i64], &[f32]) -> T) -> Result<T> {
        let run = || -> ort::Result<T> {
            let input = TensorRef::from_array_view(([x.len() / d_model, d_model], x))?;
            let outputs = self.session.run(ort::inputs!["activations" => input])?;
            let indices = outputs["indices"].try_extract_tensor::<i64>()?.1;
            let values = outputs["values"].try_extract_tensor::<f32>()?.1;
            Ok(take(indices, values))
        };
        run().map_err(|e| failed("run the encoder", &e))
    }
}

/// An exported decoder in ONNX Runtime.
#[derive(Debug)]
pub struct OnnxDecoder {
    session: OnnxEncoder,
}

impl OnnxDecoder {
    /// Loads a graph.
    ///
    /// # Errors
    /// [`Status::Unsupported`] with what ONNX Runtime has to say.
    pub fn open(runtime: &Runtime, path: &Path) -> Result<Self> {
        Ok(OnnxDecoder { session: OnnxEncoder::open(runtime, path, 1)? })
    }

    /// Reconstructs `rows` rows of `indices` and `values`, `[rows, K]`, into `[rows, d_model]`.
    ///
    /// # Errors
    /// [`Status::Unsupported`] with what ONNX Runtime has to say.
    pub fn run(&mut self, indices: &[i64], values: &[f32], rows: usize) -> Result<Vec<f32>> {
        let mut run = || -> ort::Result<Vec<f32>> {
            let shape = [rows, indices.len() / rows];
            let indices = TensorRef::from_array_view((shape, indices))?;
            let values = TensorRef::from_array_view((shape, values))?;
            let outputs = self.session.session.run(ort::inputs!["indices" => indices, "values" => values])?;
            Ok(outputs["reconstruction"].try_extract_tensor::<f32>()?.1.to_vec())
        };
        run().map_err(|e| failed("run the decoder", &e))
    }
}
