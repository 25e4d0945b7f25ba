//! `kronsae inspect`.

use super::{print, print_json};
use crate::terminal::{grouped, percent};
use kronsae::sae::{Encoder, Selection, tensors as names};
use kronsae::tensor_file::TensorFile;
use kronsae::{Error, Result, Sae};
use serde::Serialize;
use serde_json::{Map, Value, json};
use std::fmt::Write as _;
use std::path::PathBuf;

/// Show what a model file holds: shape, selection, origin, calibration, tensors, cost.
///
/// The file is read and validated in full, so this also says whether a file is sound. Encoder cost is counted in
/// multiplications and additions a token, 2 * d * rows, beside those of a dense encoder with as many latents; a KronSAE's
/// ratio is 1/m + 1/n.
#[derive(clap::Args, Debug)]
#[command(
    after_help = "Example:\n  kronsae inspect model.safetensors\n  kronsae inspect model.safetensors --json | jq .calibration.theta"
)]
pub struct Args {
    /// The model file.
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// Print JSON, and nothing else, on standard output.
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Tensor {
    name: String,
    dtype: String,
    shape: Vec<usize>,
    bytes: usize,
}

#[derive(Serialize)]
struct Norms {
    min: f64,
    mean: f64,
    max: f64,
    /// Rows whose norm is further than 1 % from 1.
    not_unit: usize,
}

/// What the file holds; its JSON is what `--json` prints.
#[derive(Serialize)]
struct Description {
    file: String,
    format: String,
    encoder: Value,
    d_model: usize,
    latents: usize,
    encoder_rows: usize,
    selection: Value,
    output_scale: f32,
    encoder_dtype: String,
    decoder_dtype: String,
    parameters: u64,
    bytes: u64,
    encoder_flops: u64,
    dense_encoder_flops: u64,
    encoder_flops_ratio: f64,
    decoder_row_norms: Norms,
    source: Value,
    training: Value,
    calibration: Value,
    /// Config keys that this version does not know.
    other: Map<String, Value>,
    tensors: Vec<Tensor>,
}

/// Runs the command.
///
/// # Errors
/// Those of [`Sae::open`].
#[expect(clippy::needless_pass_by_value, reason = "a command owns its arguments")]
pub fn run(args: Args) -> Result<()> {
    let description = describe(&args)?;
    if args.json { print_json(&description) } else { print(&description.text()) }
}

fn describe(args: &Args) -> Result<Description> {
    let sae = Sae::open(&args.file)?;
    let file = TensorFile::open(&args.file)?;
    let config = sae.config();
    let decoder = sae.decoder().ok_or_else(|| Error::invalid("the model was opened without its decoder"))?;
    let mut tensors = Vec::new();
    for name in file.tensor_names() {
        let info = file.require(&name)?;
        tensors.push(Tensor {
            dtype: format!("{:?}", info.dtype),
            shape: info.shape.to_vec(),
            bytes: info.bytes,
            name,
        });
    }
    let elements = |t: &Tensor| t.shape.iter().map(|&n| n as u64).product::<u64>();
    let dtype = |name: &str| tensors.iter().find(|t| t.name == name).map(|t| t.dtype.clone()).unwrap_or_default();
    let (encoder_dtype, decoder_dtype) = (dtype(names::ENCODER_WEIGHT), dtype(names::DECODER_WEIGHT));
    let flops = |rows: usize| 2 * config.d_model as u64 * rows as u64;
    let (rows, latents) = (config.encoder.rows(), config.encoder.latents());
    let known = ["encoder", "d_model", "heads", "base", "extension", "latents", "selection", "output_scale"];
    let known = known.into_iter().chain(["source", "training", "calibration"]).collect::<Vec<_>>();
    let mut other = config.json.clone();
    other.retain(|key, _| !known.contains(&key.as_str()));
    let part = |key: &str| config.json.get(key).cloned().unwrap_or(Value::Null);
    let bytes = std::fs::metadata(&args.file).map_err(|e| Error::io("examine", file.name(), &e))?.len();
    Ok(Description {
        file: file.name().to_owned(),
        format: file.metadata("format").unwrap_or_default().to_owned(),
        encoder: match config.encoder {
            Encoder::Kron { heads, base, extension } => {
                json!({"kind": "kron", "heads": heads, "base": base, "extension": extension})
            }
            Encoder::Dense { .. } => json!({"kind": "dense"}),
        },
        d_model: config.d_model,
        latents,
        encoder_rows: rows,
        selection: match config.selection {
            Selection::TopK(k) => json!({"topk": k}),
            Selection::Threshold { theta, max_latents } => json!({"threshold": theta, "max_latents": max_latents}),
        },
        output_scale: config.output_scale,
        encoder_dtype,
        decoder_dtype,
        parameters: tensors.iter().filter(|t| !t.name.starts_with("calibration.")).map(elements).sum(),
        bytes,
        encoder_flops: flops(rows),
        dense_encoder_flops: flops(latents),
        encoder_flops_ratio: rows as f64 / latents as f64,
        decoder_row_norms: norms(&decoder.weight),
        source: part("source"),
        training: part("training"),
        calibration: part("calibration"),
        other,
        tensors,
    })
}

fn norms(decoder: &kronsae::sae::Matrix) -> Norms {
    let mut row = vec![0.0_f32; decoder.cols()];
    let mut norms = Norms { min: f64::INFINITY, mean: 0.0, max: 0.0, not_unit: 0 };
    for at in 0..decoder.rows() {
        decoder.widen_row(at, &mut row);
        let norm = row.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>().sqrt();
        norms.min = norms.min.min(norm);
        norms.max = norms.max.max(norm);
        norms.mean += norm / decoder.rows() as f64;
        norms.not_unit += usize::from((norm - 1.0).abs() > 0.01);
    }
    norms
}

impl Description {
    fn text(&self) -> String {
        let mut out = format!("{}\n", self.file);
        let mut row = |name: &str, value: String| {
            let _ = writeln!(out, "  {name:<18} {value}");
        };
        row("format", self.format.clone());
        let part = |key: &str| self.encoder[key].as_u64().unwrap_or_default();
        let kron = self.encoder["kind"] == "kron";
        let shape = if kron {
            let (h, m, n) = (part("heads"), part("base"), part("extension"));
            format!("KronSAE, {} heads of {m} base x {n} extension rows", grouped(h))
        } else {
            "dense, one row a latent".to_owned()
        };
        row("encoder", format!("{shape}, {}", self.encoder_dtype));
        row("d_model", grouped(self.d_model as u64));
        let rows = grouped(self.encoder_rows as u64);
        row("latents", format!("{}, from {rows} encoder rows", grouped(self.latents as u64)));
        let selection = if let Some(k) = self.selection.get("topk") {
            format!("TopK, K = {k}")
        } else {
            format!("values above {}, at most {}", self.selection["threshold"], self.selection["max_latents"])
        };
        row("selection", selection);
        row("output scale", self.output_scale.to_string());
        row("parameters", grouped(self.parameters));
        row("bytes", grouped(self.bytes));
        row(
            "encoder cost",
            format!(
                "{} FLOP a token, {:.3} of a dense encoder's {}",
                grouped(self.encoder_flops),
                self.encoder_flops_ratio,
                grouped(self.dense_encoder_flops)
            ),
        );
        let n = &self.decoder_row_norms;
        let unit = if n.not_unit == 0 {
            "all within 1 % of 1".to_owned()
        } else {
            format!("{} of {} further than 1 % from 1", grouped(n.not_unit as u64), grouped(self.latents as u64))
        };
        row(
            "decoder rows",
            format!("{}, norms {:.4} to {:.4}, mean {:.4}: {unit}", self.decoder_dtype, n.min, n.max, n.mean),
        );
        for (name, value) in
            [("source", &self.source), ("training", &self.training), ("calibration", &self.calibration)]
        {
            section(&mut out, name, value);
        }
        if !self.other.is_empty() {
            section(&mut out, "other config keys", &Value::Object(self.other.clone()));
        }
        let _ = writeln!(out, "tensors");
        for t in &self.tensors {
            let shape = t.shape.iter().map(ToString::to_string).collect::<Vec<_>>().join(" x ");
            let share = percent(t.bytes as f64 / self.bytes as f64);
            let _ = writeln!(
                out,
                "  {:<24} {:<5} {shape:<16} {:>14} bytes  {share:>8}",
                crate::terminal::visible(&t.name),
                t.dtype,
                grouped(t.bytes as u64)
            );
        }
        out
    }
}

/// A part of the config, one key a line; nothing where there is none. What a file says is shown with its control
/// characters made visible.
fn section(out: &mut String, name: &str, value: &Value) {
    let Value::Object(keys) = value else {
        if !value.is_null() {
            let _ = writeln!(out, "{name}\n  {}", crate::terminal::visible(&value.to_string()));
        }
        return;
    };
    let _ = writeln!(out, "{name}");
    for (key, value) in keys {
        let value = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        let _ = writeln!(out, "  {:<18} {}", crate::terminal::visible(key), crate::terminal::visible(&value));
    }
}
