//! The commands as programs: what they print, what they write, what they refuse.

mod fixtures;

use fixtures::{Rng, activations, write_model, write_shards};
use kronsae::sae::{Encoder, Selection};
use kronsae::tensor_file::TensorFile;
use kronsae::{Activations, EncoderOptions, Latents, Sae};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Arc;

const KRON: Encoder = Encoder::Kron { heads: 8, base: 2, extension: 3 };

struct Case {
    folder: tempfile::TempDir,
    model: PathBuf,
    data: PathBuf,
    x: Vec<f32>,
}

const D: usize = 16;
const ROWS: usize = 1500;

/// A model and a folder of shards, one of whose tokens is not finite.
fn case() -> Case {
    let mut rng = Rng(11);
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    std::fs::create_dir(&data).unwrap();
    let mut x = activations(ROWS, D, &mut rng);
    x[100 * D] = f32::INFINITY;
    write_shards(&data, &x, D, 700);
    let model = write_model(folder.path(), KRON, D, Selection::TopK(5), &mut rng);
    Case { folder, model, data, x }
}

fn kronsae(arguments: &[&dyn AsRef<std::ffi::OsStr>]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_kronsae")).args(arguments.iter().map(AsRef::as_ref)).output().unwrap()
}

fn stdout(output: &Output) -> String {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn refused(output: &Output, what: &str) {
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && text.contains(what), "expected an error with `{what}`, found: {text}");
    assert!(!text.contains("panicked"), "{text}");
    assert!(output.stdout.is_empty());
}

fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn eval_prints_a_table_or_json_alone() {
    let case = case();
    let json = kronsae(&[&"eval", &"--model", &case.model, &"--data", &case.data, &"--threads", &"2", &"--json"]);
    assert!(json.stderr.is_empty(), "no progress bar where stderr is no terminal");
    let json: Value = serde_json::from_str(&stdout(&json)).unwrap();
    let keys: Vec<_> = json.as_object().unwrap().keys().map(String::as_str).collect();
    let first = ["explained_variance", "fvu", "mse", "l0", "dead_share", "tokens", "non_finite_tokens"];
    assert_eq!(keys[..first.len()], first);
    assert_eq!((json["tokens"].as_u64(), json["non_finite_tokens"].as_u64()), (Some(1499), Some(1)));
    assert!(json["explained_variance"]["pooled"].is_f64() && json["explained_variance"]["per_token_mean"].is_f64());
    assert_eq!(json["head_usage"].as_array().unwrap().len(), 8);

    let table = stdout(&kronsae(&[&"eval", &"--model", &case.model, &"--data", &case.data]));
    for part in ["explained variance, pooled", "tokens left out (not finite)", "█", "latents by the share of tokens"]
    {
        assert!(table.contains(part), "{part} in {table}");
    }
    assert!(!table.contains('\x1b'), "no escape sequences into a pipe");
}

#[test]
fn inspect_describes_the_file() {
    let case = case();
    let text = stdout(&kronsae(&[&"inspect", &case.model]));
    for part in ["8 heads of 2 base x 3 extension rows, BF16", "TopK, K = 5", "0.833 of a dense encoder's", "later"] {
        assert!(text.contains(part), "{part} in {text}");
    }
    let json: Value = serde_json::from_str(&stdout(&kronsae(&[&"inspect", &case.model, &"--json"]))).unwrap();
    assert_eq!((json["latents"].as_u64(), json["encoder_rows"].as_u64()), (Some(48), Some(40)));
    assert_eq!(json["encoder_flops"].as_u64(), Some(2 * 16 * 40));
    assert_eq!(json["parameters"].as_u64(), Some(40 * 16 + 40 + 48 * 16 + 16));
    assert_eq!(json["bytes"].as_u64(), Some(std::fs::metadata(&case.model).unwrap().len()));
    assert_eq!(json["other"]["later"]["kept"][1], 2);
    let sae = Sae::open(&case.model).unwrap();
    let mut row = [0.0_f32; D];
    let norms = (0..48).map(|f| {
        sae.decoder().unwrap().weight.widen_row(f, &mut row);
        row.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>().sqrt()
    });
    let largest = norms.fold(0.0, f64::max);
    assert!((json["decoder_row_norms"]["max"].as_f64().unwrap() - largest).abs() < 1e-12);
}

#[test]
fn encode_writes_what_the_encoder_returns() {
    let case = case();
    let out = case.folder.path().join("latents.safetensors");
    let mut files = Vec::new();
    for threads in ["1", "3"] {
        let run = kronsae(&[
            &"encode",
            &"--model",
            &case.model,
            &"--data",
            &case.data,
            &"--out",
            &out,
            &"--threads",
            &threads,
        ]);
        let text = stdout(&run);
        assert!(text.contains("1,500 tokens") && text.contains("not finite, so without latents: 1\n"), "{text}");
        files.push(std::fs::read(&out).unwrap());
    }
    assert!(files[0] == files[1], "the file depends on the number of threads");
    assert_eq!(names(case.folder.path()), ["data", "latents.safetensors", "model.safetensors"]);

    let sae = Arc::new(Sae::open(&case.model).unwrap());
    let mut latents = Latents::new(ROWS, 5).unwrap();
    let mut encoder = kronsae::Encoder::new(sae, EncoderOptions::default()).unwrap();
    encoder.encode(Activations::from_f32(&case.x, D).unwrap(), &mut latents.as_mut()).unwrap();
    let file = TensorFile::open(&out).unwrap();
    assert_eq!(file.metadata("format"), Some("latents/1"));
    assert_eq!(file.metadata("activations.model"), Some("a test"));
    let u32s = |name: &str, shape: &[usize]| -> Vec<u32> {
        let info = file.require(name).unwrap();
        assert_eq!(info.shape, shape, "{name}");
        let mut bytes = vec![0; info.bytes];
        file.read(name, 0, &mut bytes).unwrap();
        bytes.as_chunks::<4>().0.iter().map(|b| u32::from_le_bytes(*b)).collect()
    };
    // Fresh buffers hold zeros, and the encoder leaves unused entries alone.
    assert_eq!(u32s("counts", &[ROWS]), latents.counts);
    assert_eq!(u32s("indices", &[ROWS, 5]), latents.indices);
    assert_eq!(u32s("values", &[ROWS, 5]), latents.values.iter().map(|v| v.to_bits()).collect::<Vec<_>>());
    assert_eq!(latents.counts[100], 0);
}

#[test]
fn what_is_wrong_is_named_and_nothing_is_left_behind() {
    let case = case();
    let before = names(case.folder.path());
    let nowhere = case.folder.path().join("nowhere.safetensors");
    let out = case.folder.path().join("latents.safetensors");
    refused(&kronsae(&[&"inspect", &nowhere]), "nowhere.safetensors");
    refused(&kronsae(&[&"inspect", &case.data.join("shard-0.safetensors")]), "format is `activations/1`");
    refused(&kronsae(&[&"eval", &"--model", &case.model, &"--data", &case.model]), "activation shard");
    refused(&kronsae(&[&"eval", &"--model", &case.model, &"--data", &case.data, &"--threads", &"0"]), "threads = 0");

    let shard = case.data.join("shard-1.safetensors");
    for out in [&case.model, &shard, &case.data.join("new.safetensors")] {
        let model_before = std::fs::read(&case.model).unwrap();
        let run = kronsae(&[&"encode", &"--model", &case.model, &"--data", &case.data, &"--out", out]);
        refused(&run, "choose another --out");
        assert!(std::fs::read(&case.model).unwrap() == model_before);
    }
    let run = kronsae(&[&"encode", &"--model", &case.model, &"--data", &case.data, &"--out", &"/dev/null/x"]);
    refused(&run, "/dev/null");

    // A shard that ends early, after its header was sound.
    let bytes = std::fs::read(&shard).unwrap();
    std::fs::write(&shard, &bytes[..bytes.len() - 1000]).unwrap();
    let run = kronsae(&[&"encode", &"--model", &case.model, &"--data", &case.data, &"--out", &out]);
    refused(&run, "shard-1.safetensors");
    assert_eq!(names(case.folder.path()), before);
}

#[test]
fn help_teaches() {
    for command in ["eval", "inspect", "encode", "calibrate"] {
        let text = stdout(&kronsae(&[&command, &"--help"]));
        assert!(text.contains("Example:") && text.contains(&format!("kronsae {command}")), "{text}");
    }
}

/// What a file says is shown, never obeyed: not by the terminal either.
#[test]
fn escape_sequences_of_a_file_do_not_reach_the_terminal() {
    let case = case();
    let bytes = std::fs::read(&case.model).unwrap();
    let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let header = std::str::from_utf8(&bytes[8..8 + length]).unwrap();
    let with = |from: &str, to: &str| {
        let header = header.replacen(from, to, 1);
        let path = case.folder.path().join("hostile.safetensors");
        let parts = [&(header.len() as u64).to_le_bytes(), header.as_bytes(), &bytes[8 + length..]];
        std::fs::write(&path, parts.concat()).unwrap();
        path
    };
    let extra = r#"{"\u001b[2Jx\u0007\n":{"dtype":"U8","shape":[0],"data_offsets":[0,0]},"#;
    let text = stdout(&kronsae(&[&"inspect", &with("{", extra)]));
    assert!(text.contains("␛[2Jx␇⏎") && !text.contains('\x1b') && !text.contains('\x07'), "{text:?}");
    let run = kronsae(&[&"inspect", &with("kronsae/1", r"\u001b[2J\u0007")]);
    refused(&run, "format is `␛[2J␇`");
    assert!(!run.stderr.contains(&0x1b));
}
