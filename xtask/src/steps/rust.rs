//! The steps that are cargo commands.

use super::{Report, succeed};
use crate::process::{cargo, has_cargo, run};
use std::path::Path;

pub(super) fn format(root: &Path) -> Result<(), String> {
    require(root, "fmt", "rustfmt (rustup component add rustfmt)")?;
    succeed(run(cargo(root, &["fmt", "--all", "--check"])))
}

pub(super) fn clippy(root: &Path) -> Result<(), String> {
    require(root, "clippy", "clippy (rustup component add clippy)")?;
    succeed(run(cargo(root, &["clippy", "--workspace", "--all-targets", "--keep-going", "--", "-D", "warnings"])))
}

/// With nextest where it is installed: a test that dies takes no other with it.
pub(super) fn tests(root: &Path) -> Report {
    let args: &[&str] = if has_cargo(root, "nextest") {
        &["nextest", "run", "--workspace", "--no-fail-fast", "--status-level=fail", "--show-progress=none"]
    } else {
        &["test", "--workspace", "--no-fail-fast", "--lib", "--bins", "--tests", "--examples"]
    };
    Report::of_tests(run(cargo(root, args)))
}

pub(super) fn doc_tests(root: &Path) -> Report {
    Report::of_tests(run(cargo(root, &["test", "--workspace", "--no-fail-fast", "--doc"])))
}

pub(super) fn rustdoc(root: &Path) -> Result<(), String> {
    let mut command = cargo(root, &["doc", "--workspace", "--no-deps"]);
    command.env("RUSTDOCFLAGS", "-D warnings");
    succeed(run(command))
}

/// The golden vectors on emulated CPUs without AVX, and with AVX2 but no AVX-512: the library starts there and is right.
pub(super) fn old_cpus(root: &Path) -> Report {
    let mut report = Report::default();
    for cpu in ["Nehalem", "Haswell"] {
        let emulator = "qemu-x86_64";
        let mut version = std::process::Command::new(emulator);
        version.arg("--version");
        if run(version).is_err() {
            let tool = format!("{emulator} (Debian: apt-get install qemu-user)");
            return Report { skipped: 1, missing: Some(tool), ..Report::default() };
        }
        let mut command = cargo(root, &["test", "--package", "kronsae", "--test", "golden"]);
        command.env("CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUNNER", format!("{emulator} -cpu {cpu}"));
        report.add(&Report::of_tests(run(command)));
    }
    report
}

/// With the feature that opens ONNX Runtime, whose library `ORT_DYLIB_PATH` names.
pub(super) fn onnx(root: &Path) -> Report {
    if std::env::var_os("ORT_DYLIB_PATH").is_none_or(|path| path.is_empty()) {
        let tool =
            "ONNX Runtime (set ORT_DYLIB_PATH to the libonnxruntime.so that the Python package onnxruntime holds)";
        return Report { skipped: 1, missing: Some(tool.to_owned()), ..Report::default() };
    }
    let feature = ["--package", "kronsae-trainer", "--features", "onnxruntime"];
    let lints = [&["clippy"][..], &feature, &["--all-targets", "--", "-D", "warnings"]].concat();
    if let Err(output) = succeed(run(cargo(root, &lints))) {
        return Report { failed: 1, output, ..Report::default() };
    }
    Report::of_tests(run(cargo(root, &[&["test"][..], &feature, &["--test", "onnx"]].concat())))
}

/// Builds of their own, with another set of atomics: minutes the first time.
pub(super) fn loom(root: &Path) -> Report {
    let mut command = cargo(root, &["test", "--release", "--package", "kronsae", "--lib", "loom_model"]);
    command.env("RUSTFLAGS", "--cfg loom").env("CARGO_TARGET_DIR", root.join("target/loom"));
    Report::of_tests(run(command))
}

/// The standard library comes without the sanitizer, and the compiler must be told that this is meant; both are switches of
/// the nightly compiler that the stable one has, too.
pub(super) fn tsan(root: &Path) -> Report {
    let target = "x86_64-unknown-linux-gnu";
    if !cfg!(all(target_arch = "x86_64", target_os = "linux")) {
        let tool = format!("ThreadSanitizer's runtime ({target} only)");
        return Report { skipped: 1, missing: Some(tool), ..Report::default() };
    }
    let test = |program: &str, more: &[&str]| {
        let mut command = cargo(
            root,
            &[&["test", "--package", "kronsae", "--target", target, "--test", program, "--"], more].concat(),
        );
        command.env("RUSTC_BOOTSTRAP", "1").env("CARGO_TARGET_DIR", root.join("target/tsan"));
        command.env("RUSTFLAGS", "-Zsanitizer=thread -Cunsafe-allow-abi-mismatch=sanitizer");
        command.env("TSAN_OPTIONS", format!("halt_on_error=1 suppressions={}", root.join("tests/tsan.supp").display()));
        run(command)
    };
    match test("monitor_race", &["--ignored"]) {
        Ok(ran) if ran.output.contains("WARNING: ThreadSanitizer: data race") => {}
        Ok(ran) => {
            let output = format!("{}\nThreadSanitizer did not report a planted race", ran.output);
            return Report { failed: 1, output, ..Report::default() };
        }
        Err(output) => return Report { failed: 1, output, ..Report::default() },
    }
    Report::of_tests(test("monitor", &[]))
}

/// In the tests' profile, each for one iteration: that they run, not how fast.
pub(super) fn benches(root: &Path) -> Result<(), String> {
    succeed(run(cargo(root, &["test", "--workspace", "--benches"])))
}

/// Compiled by the stable compiler, which cannot run them: `cargo fuzz` needs a nightly one.
pub(super) fn fuzz_targets(root: &Path) -> Result<(), String> {
    // libfuzzer-sys compiles C++.
    if std::env::var_os("CXX").is_none() && run(std::process::Command::new("c++")).is_err() {
        return Err("missing tool: c++ (Debian: apt-get install g++)".to_owned());
    }
    let mut command = cargo(root, &["check", "--manifest-path", "fuzz/Cargo.toml"]);
    command.env("CARGO_TARGET_DIR", root.join("target/fuzz"));
    succeed(run(command))
}

/// The runtime without its default features: it compiles, and what is missing says so.
pub(super) fn without_live(root: &Path) -> Report {
    let bare = ["--package", "kronsae", "--no-default-features"];
    let lints = [&["clippy"][..], &bare, &["--all-targets", "--", "-D", "warnings"]].concat();
    if let Err(output) = succeed(run(cargo(root, &lints))) {
        return Report { failed: 1, output, ..Report::default() };
    }
    Report::of_tests(run(cargo(root, &[&["test"][..], &bare, &["--lib", "monitor::"]].concat())))
}

/// The live page in a real browser.
pub(super) fn browser(root: &Path) -> Report {
    live(root, "browser::", &[("chromium", "chromium (Debian: apt-get install chromium)")])
}

/// What Prometheus makes of metrics and alert rules.
pub(super) fn prometheus(root: &Path) -> Report {
    let tool = "prometheus (Debian: apt-get install prometheus)";
    live(root, "prometheus::", &[("promtool", tool), ("prometheus", tool)])
}

/// Tests of the live server that other tests' runs leave out, for the programs they need.
fn live(root: &Path, module: &str, programs: &[(&str, &str)]) -> Report {
    for (program, tool) in programs {
        let mut version = std::process::Command::new(program);
        version.arg("--version");
        if run(version).is_err() {
            return Report { skipped: 1, missing: Some((*tool).to_owned()), ..Report::default() };
        }
    }
    let args = ["test", "--package", "kronsae", "--test", "live", "--", "--ignored", "--test-threads=2", module];
    Report::of_tests(run(cargo(root, &args)))
}

fn require(root: &Path, subcommand: &str, tool: &str) -> Result<(), String> {
    if has_cargo(root, subcommand) { Ok(()) } else { Err(format!("missing tool: {tool}")) }
}
