//! ONNX Runtime as a contender.

use super::contender::{Contender, Tokens, Work};
use super::peaks::Unit;
use crate::onnx::runtime::{OnnxEncoder, Runtime};
use kronsae::Result;
use std::hint::black_box;
use std::path::Path;
use std::time::Instant;

/// An exported graph in ONNX Runtime.
#[derive(Debug)]
pub(super) struct OnnxContender {
    encoder: OnnxEncoder,
    tokens: Tokens,
    rows: usize,
    d_model: usize,
}

impl OnnxContender {
    /// Loads the graph at `path`, whose encoder matrix is `[rows, d_model]`.
    ///
    /// # Errors
    /// Those of [`OnnxEncoder::open`].
    pub(super) fn open(runtime: &Runtime, path: &Path, threads: usize, rows: usize, d_model: usize) -> Result<Self> {
        let encoder = OnnxEncoder::open(runtime, path, threads)?;
        Ok(OnnxContender { encoder, tokens: Tokens::new(d_model), rows, d_model })
    }
}

impl Contender for OnnxContender {
    fn work(&self, _tokens: usize) -> Work {
        let bytes = self.rows as u64 * self.d_model as u64 * 4;
        Work { bytes, rows: self.rows, products: 1, unit: Some(Unit::F32), ours: None }
    }

    fn run(&mut self, tokens: usize, calls: usize, times: &mut Vec<f64>) -> Result<(), String> {
        for _ in 0..calls {
            let x = self.tokens.next(tokens);
            let start = Instant::now();
            let taken = self.encoder.run(x, self.d_model, |indices, values| {
                black_box((indices, values));
                start.elapsed()
            });
            times.push(taken.map_err(|e| e.message().to_owned())?.as_nanos() as f64);
        }
        Ok(())
    }
}
