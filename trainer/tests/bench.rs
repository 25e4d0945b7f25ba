//! `kronsae bench`: what is missing is said, and the rest is measured. How fast is no matter here.

use serde_json::Value;
use std::path::Path;
use std::process::{Command, Output};

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
fn encode_runs_without_peers_and_names_them() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("results");
    let arguments =
        ["encode", "--quick", "--shape", "32,8,2,2", "--batch", "1,3", "--threads", "1", "--caches", "hot", "--json"];
    let run = bench(&[&arguments[..], &["--out", out.to_str().unwrap()]].concat());
    let json: Value = serde_json::from_str(&stdout(&run)).unwrap();
    let cells = json["cells"].as_array().unwrap();
    let names: Vec<_> = cells.iter().map(|cell| cell["contender"].as_str().unwrap()).collect();
    assert_eq!(names, ["kronsae, exact", "kronsae, exact, all rows in f32", "reading the weights alone"].repeat(2));
    for cell in cells {
        let number = |key: &str| cell[key].as_f64().unwrap();
        assert!(number("best_ns") > 0.0 && number("best_ns") <= number("median_ns"), "{cell}");
        assert!(number("median_ns") <= number("p99_ns") && number("calls") >= 3.0, "{cell}");
    }
    // 2 * tokens * h(m+n) * d operations.
    let operations = |cell: &Value| cell["gigaops_per_second"].as_f64().unwrap() * cell["median_ns"].as_f64().unwrap();
    assert!((operations(&cells[3]) - 2.0 * 3.0 * 32.0 * 32.0).abs() < 1e-6);
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
}

#[test]
fn scaling_draws_two_plots() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().to_str().unwrap();
    let run = ["scaling", "--quick", "--d-model", "16", "--batch", "2", "--threads", "1", "--out", out];
    stdout(&bench(&run));
    for name in ["scaling-latents", "scaling-rows"] {
        let svg = std::fs::read_to_string(Path::new(out).join(format!("{name}.svg"))).unwrap();
        assert_eq!(svg.matches("<circle").count(), 8, "{svg}");
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
