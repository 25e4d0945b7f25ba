//! `kronsae bench`: what is missing is said, and the rest is measured. How fast is no matter here.

mod fixtures;

use fixtures::{Rng, activations, write_model, write_shard};
use kronsae::sae::{Encoder, Selection};
use serde_json::Value;
use std::path::Path;
use std::process::{Command, Output};

/// Runs a command that has no peers.
fn alone(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_kronsae")).arg("bench").args(arguments).output().unwrap()
}

/// Runs the command without a library of ONNX Runtime, and with a Python that has no torch.
fn bench(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_kronsae"))
        .arg("bench")
        .args(arguments)
        .args(["--python", "/bin/true", "--onnxruntime", "/nonexistent/libonnxruntime.so", "--k", "4"])
        .env_remove("ORT_DYLIB_PATH")
        .output()
        .unwrap()
}

fn stdout(output: &Output) -> String {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout.clone()).unwrap()
}

#[test]
fn input_makes_batches_in_three_ways() {
    let folder = tempfile::tempdir().unwrap();
    let shard = folder.path().join("activations.safetensors");
    write_shard(&shard, &activations(600, 8, &mut Rng(1)), 8, None);
    let shard = shard.to_str().unwrap();
    let arguments = ["input", "--data", shard, "--batch", "100", "--shuffle-window", "256", "--seconds", "1"];
    let json: Value = serde_json::from_str(&stdout(&alone(&[&arguments[..], &["--json"]].concat()))).unwrap();
    assert_eq!((json["tokens"].as_u64(), json["row_bytes"].as_u64()), (Some(600), Some(32)));
    let ways = json["ways"].as_array().unwrap();
    assert_eq!(ways.len(), 3);
    for way in ways {
        let number = |key: &str| way[key].as_f64().unwrap();
        assert!(number("median_ms") > 0.0 && number("median_ms") <= number("p99_ms"), "{way}");
        assert!((number("bytes_per_second") / number("tokens_per_second") - 32.0).abs() < 1e-6, "{way}");
        assert!(number("batches") * 100.0 <= 2.0 * number("tokens_per_second"), "{way}");
    }
    assert!(stdout(&alone(&arguments)).contains("shuffled, as they are, for a GPU"));
    let refused = alone(&["input", "--data", "/nonexistent"]);
    assert!(!refused.status.success() && String::from_utf8_lossy(&refused.stderr).contains("/nonexistent"));
}

#[test]
fn encode_runs_without_peers_and_names_them() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("results");
    let arguments =
        ["encode", "--quick", "--shape", "32,8,2,2", "--batch", "1,3", "--threads", "1", "--caches", "hot", "--json"];
    let run = bench(&[&arguments[..], &["--out", out.to_str().unwrap()]].concat());
    let json: Value = serde_json::from_str(&stdout(&run)).unwrap();
    let cells = json["cells"].as_array().unwrap();
    let names: Vec<_> = cells.iter().map(|cell| cell["contender"].as_str().unwrap()).collect();
    let ours = ["kronsae, exact", "kronsae, exact, always screened", "kronsae, exact, all rows in f32"];
    let expected = [&ours[..], &["kronsae, fast (not exact)", "reading the weights alone"]].concat();
    assert_eq!(names, expected.repeat(2));
    for cell in cells {
        let number = |key: &str| cell[key].as_f64().unwrap();
        assert!(number("best_ns") > 0.0 && number("best_ns") <= number("median_ns"), "{cell}");
        assert!(number("median_ns") <= number("p99_ns") && number("calls") >= 3.0, "{cell}");
    }
    // 2 * tokens * h(m+n) * d operations.
    let operations = |cell: &Value| cell["gigaops_per_second"].as_f64().unwrap() * cell["median_ns"].as_f64().unwrap();
    assert!((operations(&cells[expected.len()]) - 2.0 * 3.0 * 32.0 * 32.0).abs() < 1e-6);
    let bytes = |cell: &Value| cell["weight_bytes"].as_u64().unwrap();
    let [chosen, screened, full] = [&cells[0], &cells[1], &cells[2]];
    // Too small to be screened by choice.
    assert_eq!([chosen, screened, full].map(|cell| cell["screened"].as_bool().unwrap()), [false, true, false]);
    assert_eq!([bytes(chosen), bytes(full)], [32 * 32 * 4; 2]);
    // A byte for each of 64 columns, padding included, 20 for scales and bounds; then what is looked at closer, which is not
    // more than all rows in the other plane and in f32.
    let copy = 32 * (64 + 20);
    assert!(bytes(screened) > copy && bytes(screened) <= copy + 32 * 32 * 5, "{screened}");
    assert_eq!((full["unit"].as_str(), full["products"].as_u64()), (Some("f32"), Some(1)));
    let peaks = json["peaks"].as_array().unwrap();
    let peak = peaks.iter().find(|peak| peak["unit"] == "f32").unwrap()["gigaops_per_second"].as_f64().unwrap();
    let share = full["gigaops_per_second"].as_f64().unwrap() / peak;
    assert!((full["share_of_peak"].as_f64().unwrap() / share - 1.0).abs() < 1e-9, "{full}");

    let choices = json["path_choices"].as_array().unwrap();
    assert_eq!(choices.len(), 2, "one for each batch");
    for choice in choices {
        let ns = |key: &str| choice[key].as_f64().unwrap();
        assert_eq!(choice["screens"], false);
        assert_eq!(choice["right"], ns("full_ns") <= 1.05 * ns("screened_ns"), "{choice}");
    }
    let selection = json["selection"].as_array().unwrap();
    assert_eq!(selection.len(), 2);
    assert!(selection.iter().all(|of| of["token_ns"].as_f64().unwrap() > 0.0 && of["share"].as_f64().unwrap() > 0.0));
    let skipped = json["skipped"].as_array().unwrap();
    assert_eq!(skipped.len(), 5, "{skipped:?}");
    for peer in ["ONNX Runtime f32 dense TopK", "torch bf16 dense TopK", "torch bf16 KronSAE"] {
        let why = skipped.iter().filter_map(Value::as_str).find(|s| s.starts_with(peer)).unwrap();
        assert!(why.contains(if peer.starts_with("torch") { "--python" } else { "onnxruntime" }), "{why}");
    }

    let written: Value = serde_json::from_slice(&std::fs::read(out.join("encode.json")).unwrap()).unwrap();
    assert_eq!(written, json);
    let table = std::fs::read_to_string(out.join("encode.md")).unwrap();
    assert!(table.contains("| kronsae, exact ") && table.contains("Not measured:") && table.contains("d 32, h 8"));
    assert!(table.contains("- the rule of \"kronsae, exact\": ") && table.contains(" of 2 situations"), "{table}");
    assert!(table.contains("- selection of 32,8,2,2, from all pre-activations"), "{table}");
    assert!(table.contains("- peaks on 1 threads, Gop/s: f32 "), "{table}");
}

#[test]
fn scaling_draws_two_plots() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().to_str().unwrap();
    let run = ["scaling", "--quick", "--d-model", "16", "--batch", "2", "--threads", "1", "--out", out];
    stdout(&bench(&run));
    for name in ["scaling-latents", "scaling-rows"] {
        let svg = std::fs::read_to_string(Path::new(out).join(format!("{name}.svg"))).unwrap();
        assert_eq!(svg.matches("<circle").count(), 12, "{svg}");
        assert!(Path::new(out).join(format!("{name}.json")).exists());
    }
}

#[test]
fn wrong_arguments_are_refused() {
    for (arguments, what) in [
        (&["encode", "--shape", "S9"][..], "expected S1, S2, S3"),
        (&["encode", "--shape", "8,1,1,2"], "--k 4: 8,1,1,2 has 2 latents"),
        (&["encode", "--batch", "0"], "from 1 to 1,048,576"),
        (&["encode", "--only", "nobody", "--shape", "8,4,2,2", "--quick", "--caches", "cold"], "hot, flushed"),
    ] {
        let output = bench(arguments);
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && text.contains(what), "expected `{what}`, found {text}");
    }
}

#[test]
fn misses_of_the_fast_path_are_counted() {
    let folder = tempfile::tempdir().unwrap();
    let (d, rows, mut rng) = (288, 150, Rng(5));
    let data = folder.path().join("data.safetensors");
    write_shard(&data, &activations(rows, d, &mut rng), d, None);
    let kron = Encoder::Kron { heads: 64, base: 4, extension: 4 };
    let model = write_model(folder.path(), kron, d, Selection::TopK(8), &mut rng);
    let paths = [model.to_str().unwrap(), data.to_str().unwrap()];
    let run = |more: &[&str]| alone(&[&["fast"], &paths[..], &["--threads", "2"], more].concat());

    let json: Value = serde_json::from_str(&stdout(&run(&["--batch", "1,64", "--json"]))).unwrap();
    assert_eq!((json["can_be_screened"].as_bool(), json["latents"].as_u64()), (Some(true), Some(1024)));
    let runs = json["runs"].as_array().unwrap();
    assert_eq!(runs.len(), 2);
    for run in runs {
        let count = |key: &str| run[key].as_u64().unwrap();
        assert_eq!((count("tokens"), count("values_differing"), count("non_finite_tokens")), (150, 0, 0));
        assert!(count("latents") > 150 && count("missing") * 100 < count("latents"), "{run}");
        assert_eq!(run["largest_missing"].is_null(), count("missing") == 0, "{run}");
        let share = |path: &str| run["rows_computed"][path].as_f64().unwrap();
        // The exact path computes all rows of so small a model.
        assert!((share("exact") - 1.0).abs() < 1e-9 && share("fast") > 0.0 && share("fast") < 1.0, "{run}");
        assert!(run["token_ns"]["fast"].as_f64().unwrap() > 0.0);
    }
    let table = stdout(&run(&["--tokens", "10", "--batch", "3"]));
    assert!(table.contains("| missing ") && table.contains("| tokens                            | 10 "), "{table}");

    let narrow = folder.path().join("narrow");
    std::fs::create_dir(&narrow).unwrap();
    let other = write_model(&narrow, kron, 20, Selection::TopK(8), &mut rng);
    for (arguments, what) in [
        (&["fast", paths[0]][..], "<DATA>"),
        (&["fast", paths[0], paths[1], "--tokens", "151"], "expected 1 to 150"),
        (&["fast", paths[0], paths[1], "--batch", "0"], "from 1 to 1,048,576"),
        (&["fast", other.to_str().unwrap(), paths[1]], "d_model 288, the model expects 20"),
        (&["fast", "/nonexistent.safetensors", paths[1]], "/nonexistent.safetensors"),
        (&["fast", paths[0], paths[0]], "activations"),
    ] {
        refused(arguments, what);
    }
    let narrow_data = folder.path().join("narrow.safetensors");
    write_shard(&narrow_data, &activations(20, 20, &mut rng), 20, None);
    let table = stdout(&alone(&["fast", other.to_str().unwrap(), narrow_data.to_str().unwrap()]));
    assert!(table.contains("too small to be screened"), "{table}");
}

#[test]
fn opening_is_measured_in_processes_of_its_own() {
    let folder = tempfile::tempdir().unwrap();
    let kron = Encoder::Kron { heads: 512, base: 4, extension: 4 };
    let model = write_model(folder.path(), kron, 512, Selection::TopK(8), &mut Rng(6));
    let model = model.to_str().unwrap();
    let text = stdout(&alone(&["open", model, "--runs", "1", "--threads", "2", "--json"]));
    let json: Value = serde_json::from_str(&text).unwrap();
    let openings = json["openings"].as_array().unwrap();
    assert_eq!(openings.iter().map(|o| o["encoder_only"].as_bool().unwrap()).collect::<Vec<_>>(), [true, false]);
    for o in openings {
        let number = |key: &str| o[key].as_f64().unwrap();
        assert_eq!((number("encoder_f32_bytes"), o["dtype"].as_str()), (4096.0 * 512.0 * 4.0, Some("BF16")));
        for key in
            ["open_ns", "encoder_ns", "first_encode_ns", "second_encode_ns", "read_ns", "memory_ns", "workspace_ns"]
        {
            assert!(number(key) > 0.0, "{key}: {o}");
        }
        let steps = number("open_ns") + number("encoder_ns") + number("first_encode_ns");
        assert!((number("until_latents_ns") - steps).abs() < 1.0, "{o}");
        assert!((number("rss_multiple") * number("encoder_f32_bytes") - number("rss_encoded")).abs() < 1.0, "{o}");
        // The weights, of 4 MB, and with the encoder their copy, as large; a decoder in f32 of 16 MB.
        let grew = |from: &str, to: &str| number(to) - number(from);
        assert!(grew("rss_at_start", "rss_opened") > 4e6, "{o}");
        assert!(o["has_copy"] == false || grew("rss_opened", "rss_encoder") > 4e6, "{o}");
        assert!(number("rss_peak") >= number("rss_opened"), "{o}");
    }
    assert!(openings[1]["rss_opened"].as_f64().unwrap() > openings[0]["rss_opened"].as_f64().unwrap() + 16e6);

    for dtype in ["f32", "bf16"] {
        let random = ["open", "--shape", "32,8,2,2", "--dtype", dtype, "--k", "4", "--runs", "2", "--threads", "1"];
        let table = stdout(&alone(&random));
        assert!(table.contains("| 32,8,2,2, random weights ") && table.contains("Medians of 2 processes"), "{table}");
        assert!(table.contains(&format!("| {} ", dtype.to_uppercase())), "{table}");
    }
    for (arguments, what) in [
        (&["open"][..], "<MODEL>"),
        (&["open", model, "--shape", "S1"], "cannot be used with"),
        (&["open", "/nonexistent.safetensors"], "/nonexistent.safetensors"),
        (&["open", "--shape", "8,1,1,2", "--k", "3"], "has 2 latents"),
        (&["open", model, "--threads", "2000", "--runs", "1"], "expected 1 to 1024"),
    ] {
        refused(arguments, what);
    }
}

fn refused(arguments: &[&str], what: &str) {
    let output = alone(arguments);
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && text.contains(what), "expected `{what}`, found {text}");
}
