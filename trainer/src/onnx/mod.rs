//! ONNX export: a model file as graphs that ONNX Runtime and others run.
//!
//! The encoder's graph takes `activations`, f32 `[batch, d_model]`, and returns `indices`, i64 `[batch, K]`, and
//! `values`, f32 `[batch, K]`, strongest first. The decoder's, a graph of its own so that a host may change latents in
//! between, takes those two and returns `reconstruction`, f32 `[batch, d_model]`.
//!
//! What a graph gives is not what the runtime gives, bit for bit:
//! - Pre-activations are some GEMM's f32 sums, not `dot/1`: values differ in their last digits, with batch size and
//!   threads too, and latents whose values are that close may swap places, at the cut as well.
//! - K is the model's, and every row has K entries: where fewer latents are positive, the rest have the value 0 and
//!   indices without meaning.
//! - Rows that are not finite are not flagged.
//! - BF16 and F16 weights are widened to f32, exactly; nothing else is rounded.
//!
//! Selection by a threshold keeps a varying number of latents a row and is refused.

mod graph;
mod proto;
#[cfg(feature = "onnxruntime")]
pub mod runtime;

use crate::onnx::graph::{Element, Graph};
use kronsae::sae::{Encoder, Selection};
use kronsae::tensor_file::replace;
use kronsae::{Error, Result, Sae, Status};
use std::path::{Path, PathBuf};

/// The operator set of the graphs: every ONNX Runtime since 1.12 has it.
pub const OPSET: i64 = 17;

/// Protobuf messages end below this; larger weights go into a file beside the graph.
const LARGEST_MESSAGE: u64 = i32::MAX as u64;

/// How the graph of a KronSAE finds its K latents. Both are exact for the pre-activations at hand.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum TopKOver {
    /// The K heads with the largest maxima first, then their latents alone. Falls back to all latents where K >= h.
    #[default]
    Heads,
    /// All F latents of every row: the `[batch, F]` matrix exists. What a direct transcription of the method gives.
    Latents,
}

/// What is written, and how.
#[derive(Debug, Clone, Copy, Default)]
pub struct ExportOptions {
    /// Also writes the decoder's graph.
    pub with_decoder: bool,
    /// Weights go into a file beside the graph even where they would fit into it.
    pub external_data: bool,
    /// How a KronSAE's latents are selected.
    pub top_k_over: TopKOver,
}

/// The files of an export.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exported {
    /// Graphs, and weights beside them, in the order written.
    pub files: Vec<PathBuf>,
    /// K, the entries of a row.
    pub k: usize,
}

/// Where the decoder's graph goes: `model.onnx` has `model.decoder.onnx` beside it.
#[must_use]
pub fn decoder_path(out: &Path) -> PathBuf {
    let mut name = out.file_stem().unwrap_or_default().to_owned();
    name.push(".decoder.onnx");
    out.with_file_name(name)
}

/// Where the weights of a graph go that cannot hold them: `model.onnx.data` beside `model.onnx`.
#[must_use]
pub fn data_path(graph: &Path) -> PathBuf {
    let mut name = graph.file_name().unwrap_or_default().to_owned();
    name.push(".data");
    graph.with_file_name(name)
}

/// Writes the graph of `sae`'s encoder at `out`, and what the options ask for beside it. Each file appears under its
/// name when it is complete, a graph after its weights.
///
/// # Errors
/// [`Status::Unsupported`] for what ONNX cannot express (threshold selection), or a decoder that was not loaded;
/// [`Status::Io`].
pub fn export(sae: &Sae, out: &Path, options: ExportOptions) -> Result<Exported> {
    let config = sae.config();
    let Selection::TopK(k) = config.selection else {
        return Err(Error::new(
            Status::Unsupported,
            "the model selects latents by a threshold, a varying number a row, which an ONNX graph of fixed shape \
             cannot express; export the TopK model it was calibrated from",
        ));
    };
    let mut graphs = vec![(out.to_owned(), encoder_graph(sae, k, options.top_k_over))];
    if options.with_decoder {
        let decoder = sae.decoder().ok_or_else(|| {
            Error::new(Status::Unsupported, "this Sae was opened encoder-only; its decoder cannot be exported")
        })?;
        graphs.push((decoder_path(out), decoder_graph(sae, decoder, k)));
    }
    let mut files = Vec::new();
    for (path, graph) in graphs {
        write(&path, &graph, &config.to_json(), options.external_data, &mut files)?;
    }
    Ok(Exported { files, k })
}

fn write(path: &Path, graph: &Graph<'_>, config: &str, external: bool, files: &mut Vec<PathBuf>) -> Result<()> {
    let inline = graph.model(OPSET, config, None);
    if !external && inline.len() <= LARGEST_MESSAGE {
        replace(path, |sink| inline.write(sink))?;
        files.push(path.to_owned());
        return Ok(());
    }
    drop(inline);
    let data = data_path(path);
    let location = data.file_name().and_then(|n| n.to_str()).ok_or_else(|| {
        Error::invalid(format!("{}: weights go into a file beside this one, whose name must be UTF-8", path.display()))
    })?;
    replace(&data, |sink| graph.write_data(sink))?;
    let model = graph.model(OPSET, config, Some(location));
    replace(path, |sink| model.write(sink))?;
    files.extend([data, path.to_owned()]);
    Ok(())
}

/// activations -> indices, values.
fn encoder_graph(sae: &Sae, k: usize, over: TopKOver) -> Graph<'_> {
    let (config, weights) = (sae.config(), sae.encoder());
    let mut g = Graph::new("encoder");
    g.input("activations", Element::F32, &["batch".into(), config.d_model.into()]);
    g.matrix("encoder.weight", &weights.weight);
    g.vector("encoder.bias", &weights.bias);
    g.node("Gemm", &["activations", "encoder.weight", "encoder.bias"], &["pre_activations"]).int("transB", 1);
    g.node("Relu", &["pre_activations"], &["positive"]);
    g.ints("k", &[k]);
    match config.encoder {
        Encoder::Dense { .. } => {
            // Of equal values ONNX's TopK takes the lower index first, as the format does.
            g.node("TopK", &["positive", "k"], &["values", "indices"]).int("axis", 1);
        }
        Encoder::Kron { heads, base, extension } => {
            g.ints("head_shape", &[0, heads, base + extension]);
            g.ints("head_parts", &[base, extension]);
            g.node("Reshape", &["positive", "head_shape"], &["by_head"]);
            g.node("Split", &["by_head", "head_parts"], &["base", "extension"]).int("axis", 2);
            if over == TopKOver::Latents || k >= heads {
                outer_product(&mut g, "base", "extension", heads * base * extension);
                g.node("TopK", &["products", "k"], &["squares", "indices"]).int("axis", 1);
            } else {
                strongest_heads(&mut g, [k, base, extension]);
            }
            g.node("Sqrt", &["squares"], &["values"]);
        }
    }
    g.output("indices", Element::I64, &["batch".into(), k.into()]);
    g.output("values", Element::F32, &["batch".into(), k.into()]);
    g
}

/// `base` [batch, g, m] and `extension` [batch, g, n] to `products` [batch, g*m*n].
fn outer_product(g: &mut Graph<'_>, base: &str, extension: &str, latents: usize) {
    g.ints("last_axis", &[3]);
    g.ints("third_axis", &[2]);
    g.ints("flat_shape", &[0, latents]);
    g.node("Unsqueeze", &[base, "last_axis"], &["column"]);
    g.node("Unsqueeze", &[extension, "third_axis"], &["row"]);
    g.node("Mul", &["column", "row"], &["outer"]);
    g.node("Reshape", &["outer", "flat_shape"], &["products"]);
}

/// Selects among the latents of the k heads whose largest products come first: no other head can hold one of the k.
fn strongest_heads(g: &mut Graph<'_>, [k, base, extension]: [usize; 3]) {
    for (of, maximum) in [("base", "base_maximum"), ("extension", "extension_maximum")] {
        g.node("ReduceMax", &[of], &[maximum]).ints("axes", &[2]).int("keepdims", 0);
    }
    g.node("Mul", &["base_maximum", "extension_maximum"], &["maximum"]);
    g.node("TopK", &["maximum", "k"], &["strongest_maximum", "strongest"]).int("axis", 1);
    // Ascending, so that candidates stand in the order of their indices, by which TopK breaks ties.
    g.node("TopK", &["strongest", "k"], &["heads", "order"]).int("axis", 1).int("largest", 0);
    g.ints("head_axis", &[2]);
    g.node("Unsqueeze", &["heads", "head_axis"], &["head_index"]);
    for (of, taken) in [("base", "base_taken"), ("extension", "extension_taken")] {
        g.node("GatherND", &[of, "head_index"], &[taken]).int("batch_dims", 1);
    }
    outer_product(g, "base_taken", "extension_taken", k * base * extension);
    g.node("TopK", &["products", "k"], &["squares", "candidate"]).int("axis", 1);
    // Candidate c is latent c mod mn of the head in place c / mn.
    g.scalar("head_latents", base * extension);
    g.node("Div", &["candidate", "head_latents"], &["place"]);
    g.node("Mul", &["place", "head_latents"], &["place_start"]);
    g.node("Sub", &["candidate", "place_start"], &["within"]);
    g.node("GatherElements", &["heads", "place"], &["head"]).int("axis", 1);
    g.node("Mul", &["head", "head_latents"], &["head_start"]);
    g.node("Add", &["head_start", "within"], &["indices"]);
}

/// indices, values -> reconstruction.
fn decoder_graph<'a>(sae: &'a Sae, decoder: &'a kronsae::sae::DecoderWeights, k: usize) -> Graph<'a> {
    let config = sae.config();
    let mut g = Graph::new("decoder");
    g.input("indices", Element::I64, &["batch".into(), k.into()]);
    g.input("values", Element::F32, &["batch".into(), k.into()]);
    g.matrix("decoder.weight", &decoder.weight);
    g.vector("decoder.bias", &decoder.bias);
    g.vector("output_scale", std::slice::from_ref(&config.output_scale));
    g.ints("middle_axis", &[1]);
    g.node("Gather", &["decoder.weight", "indices"], &["atoms"]).int("axis", 0);
    g.node("Unsqueeze", &["values", "middle_axis"], &["weights"]);
    g.node("MatMul", &["weights", "atoms"], &["sums"]);
    g.node("Squeeze", &["sums", "middle_axis"], &["sum"]);
    g.node("Mul", &["sum", "output_scale"], &["scaled"]);
    g.node("Add", &["scaled", "decoder.bias"], &["reconstruction"]);
    g.output("reconstruction", Element::F32, &["batch".into(), config.d_model.into()]);
    g
}
