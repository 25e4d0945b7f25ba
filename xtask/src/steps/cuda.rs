//! The CUDA kernels without CUDA: their source, compiled by g++ over cuda/emulate, runs as the tests' library.

use super::Report;
use crate::process::{cargo, run};
use std::path::{Path, PathBuf};
use std::process::Command;

/// Shared memory is a section of its own, which AddressSanitizer leaves alone unless told.
const SANITIZE: [&str; 4] = [
    "-fsanitize=address,undefined",
    "-fsanitize-sections=kronsae_shared",
    "-fno-sanitize-recover=all",
    "-fno-omit-frame-pointer",
];
/// Small tiles and lists, so that small cases go round the ring and overflow the lists.
const SMALL: [&str; 2] = ["-DKRONSAE_TILE_BYTES=1024", "-DKRONSAE_LIST=32"];
/// Kernels that are wrong on purpose, for the tests of the emulation itself.
const FAULTS: &str = "-DKRONSAE_EMULATE_FAULTS";

/// Builds the kernels for the CPU as target/cuda/NAME.so with these additional flags.
///
/// # Errors
/// What the compiler said, or `missing tool: g++`.
pub(super) fn build(root: &Path, name: &str, flags: &[&str]) -> Result<PathBuf, String> {
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), |dir| root.join(dir));
    let folder = target.join("cuda");
    std::fs::create_dir_all(&folder).map_err(|e| format!("{}: cannot create: {e}", folder.display()))?;
    let library = folder.join(format!("{name}.so"));
    let mut version = Command::new(compiler());
    version.arg("--version");
    run(version).map_err(|_| "missing tool: g++ (Debian: apt-get install g++)".to_owned())?;
    let mut command = Command::new(root.join("cuda/emulate/build.sh"));
    command.arg(&library).args(flags);
    let ran = run(command)?;
    if ran.success { Ok(library) } else { Err(format!("{name}.so of cuda/ does not compile\n{}", ran.output)) }
}

/// Builds libraries, each by its name and flags, as many at a time as there are cores.
fn build_all(root: &Path, builds: &[(&str, Vec<&str>)]) -> Result<Vec<PathBuf>, String> {
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let mut libraries = Vec::new();
    for some in builds.chunks(cores) {
        std::thread::scope(|scope| {
            let running: Vec<_> =
                some.iter().map(|(name, flags)| scope.spawn(move || build(root, name, flags))).collect();
            for one in running {
                libraries.push(one.join().map_err(|_| "a build of the kernels panicked".to_owned())??);
            }
            Ok::<(), String>(())
        })?;
    }
    Ok(libraries)
}

fn compiler() -> std::ffi::OsString {
    std::env::var_os("CXX").unwrap_or("g++".into())
}

/// The path of a library of the compiler's own, such as AddressSanitizer's.
fn library_of_compiler(name: &str) -> Result<String, String> {
    let mut command = Command::new(compiler());
    command.arg(format!("-print-file-name={name}"));
    Ok(run(command)?.output.trim().to_owned())
}

/// The kernels against the CPU's selector and backend: as they are, under sanitizers, with planted races.
pub(super) fn emulation(root: &Path) -> Report {
    match try_emulation(root) {
        Ok(report) => report,
        Err(error) => match error.strip_prefix("missing tool: ") {
            Some(tool) => Report { skipped: 1, missing: Some(tool.trim_end().to_owned()), ..Report::default() },
            None => Report { failed: 1, output: error, ..Report::default() },
        },
    }
}

fn try_emulation(root: &Path) -> Result<Report, String> {
    let builds = [
        ("kernels_sanitized", [&SANITIZE[..], &SMALL, &[FAULTS]].concat()),
        ("kernels", vec![FAULTS]),
        ("kernels_small", [&SMALL[..], &[FAULTS]].concat()),
    ];
    let libraries = build_all(root, &builds)?;
    let [sanitized, plain, small] = libraries.as_slice() else { unreachable!("a library for each build") };
    let test = |library: &Path, rest: &[&str]| {
        let args = ["test", "--package", "kronsae", "--test", "cuda_select", "--", "--ignored"];
        let mut command = cargo(root, &[&args, rest].concat());
        command.env("KRONSAE_CUDA_EMULATION", library);
        command
    };
    let mut report = Report::of_tests(run(test(plain, &[])));
    report.add(&Report::of_tests(run(test(small, &["select::any", "dead::"]))));
    report.add(&Report::of_tests(run(training(root, plain, &[]))));
    report.add(&Report::of_tests(run(backend(root, plain, &[]))));
    // The sanitizer's runtime has to come before all others, so it is loaded into the test's process, and only there:
    // cargo and the compiler would be slow under it, and leak.
    let preload = format!("env LD_PRELOAD={}", library_of_compiler("libasan.so")?);
    let sanitizing = [
        test(sanitized, &["--skip", "planted_races", "--skip", "a_million"]),
        // A step's memory is allocated to the byte: what a kernel reads or writes past it is seen.
        training(root, sanitized, &["--skip", "planted_races", "--skip", "bf16_step", "--skip", "without_a_barrier"]),
        backend(root, sanitized, &["gradients::", "batches_that_are_short"]),
    ];
    for mut command in sanitizing {
        command.env("CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUNNER", &preload);
        command.env("CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUNNER", &preload);
        command.env("ASAN_OPTIONS", "detect_leaks=0:abort_on_error=1").env("KRONSAE_CUDA_CASES", "60");
        report.add(&Report::of_tests(run(command)));
    }
    Ok(report)
}

/// The tests of the training kernels, one by one and a step of them; they take barriers out of this very library.
fn training(root: &Path, library: &Path, rest: &[&str]) -> Command {
    let args = ["test", "--package", "kronsae-trainer", "--test", "cuda_kernels", "--", "--ignored"];
    let mut command = cargo(root, &[&args, rest].concat());
    command.env("KRONSAE_CUDA_EMULATION", library);
    command
}

/// The tests of the trainer's backend over emulated kernels, or those with these in their names.
fn backend(root: &Path, library: &Path, names: &[&str]) -> Command {
    let args = ["test", "--package", "kronsae-trainer", "--features", "cuda-emulation", "--test", "cuda_backend", "--"];
    let mut command = cargo(root, &[&args, names].concat());
    command.env("KRONSAE_CUDA_EMULATION", library);
    command
}
