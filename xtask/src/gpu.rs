//! `cargo xtask gpu`: builds the trainer, then checks and measures the GPU backend by `tools/gpu.sh`. Without a GPU the
//! same runs on emulated kernels, on tiny shapes, and says so.

use crate::process;
use std::path::Path;
use std::process::Command;

/// Where the report goes.
const OUT: &str = "target/gpu";

/// Runs it; false if a check does not hold.
///
/// # Errors
/// What could not be built or started.
pub(crate) fn run(root: &Path, options: &[&str]) -> Result<bool, String> {
    let mut build = process::cargo(root, &["build", "--release", "--package", "kronsae-trainer", "--features"]);
    build.arg("cuda-emulation");
    let built = build.status().map_err(|e| format!("cargo cannot be started: {e}"))?;
    if !built.success() {
        return Err("the trainer could not be built".to_owned());
    }
    let out = root.join(OUT);
    std::fs::create_dir_all(&out).map_err(|e| format!("{}: {e}", out.display()))?;
    let library = out.join("libkronsae_emulate.so");
    let mut emulation = Command::new("sh");
    emulation.arg(root.join("cuda/emulate/build.sh")).arg(&library);
    let emulation = process::run(emulation)?;
    if !emulation.success {
        // Where there is a GPU nothing needs it.
        eprintln!("no emulated kernels: {}", emulation.output.trim_end());
    }
    let binary = root.join(target(root)).join("release/kronsae");
    let mut script = Command::new("sh");
    script.arg(root.join("tools/gpu.sh")).arg("--binary").arg(binary).arg("--out").arg(&out);
    if emulation.success {
        script.arg("--emulate").arg(&library);
    }
    let status = script.args(options).status().map_err(|e| format!("tools/gpu.sh cannot be started: {e}"))?;
    match status.code() {
        Some(0) => Ok(true),
        Some(1) => Ok(false),
        _ => Err(format!("tools/gpu.sh ended with {status}")),
    }
}

/// Cargo's folder for what it builds.
fn target(root: &Path) -> std::path::PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), Into::into)
}
