//! `cargo xtask test`: the list of steps, and what runs them.

pub(crate) mod csharp;
mod cuda;
mod cuda_compile;
mod cuda_device;
pub(crate) mod go;
mod llama;
mod mpi;
mod openssl;
mod rust;

use crate::{abi, data, dist, header, licences, native, process};
use std::path::Path;
use std::time::{Duration, Instant};

const HELP: &str = "\
Runs every test as named steps and ends with a table of seconds.

  cargo xtask test                 all steps
  cargo xtask test --quick         without the slow ones; under 5 minutes
  cargo xtask test --only STEP     one step (may be repeated)
  cargo xtask test --list          the steps

A failing step shows its output and the others still run; the exit status is 1 then. A step whose tool is missing is
skipped with the tool's name; with CI=true in the environment that is a failure.
The last line counts tests, a step without tests of its own as one: `N passed, N failed, N skipped`.
";

/// What a step did, in tests; a step that is one check counts as one.
#[derive(Default)]
pub(crate) struct Report {
    passed: usize,
    failed: usize,
    skipped: usize,
    /// Shown if something failed.
    output: String,
    /// The tool that is missing, if the step could not run.
    missing: Option<String>,
}

/// How a step is run.
enum Run {
    /// A test runner, which counts its tests.
    Tests(fn(&Path) -> Report),
    /// One check. An error starting with `missing tool: ` skips it.
    Check(fn(&Path) -> Result<(), String>),
}

struct Step {
    name: &'static str,
    about: &'static str,
    /// Whether `--quick` runs it.
    quick: bool,
    run: Run,
}

const fn tests(name: &'static str, about: &'static str, quick: bool, run: fn(&Path) -> Report) -> Step {
    Step { name, about, quick, run: Run::Tests(run) }
}

const fn check(name: &'static str, about: &'static str, quick: bool, run: fn(&Path) -> Result<(), String>) -> Step {
    Step { name, about, quick, run: Run::Check(run) }
}

/// In the order they run: what fails fast first.
const STEPS: &[Step] = &[
    check("format", "rustfmt finds nothing to change", true, rust::format),
    check("data", "data/ stays small, and held-out tokens are in no training file", true, data::check),
    check("licences", "every dependency's licence is among those allowed", true, licences::check),
    check("clippy", "no lint, in any target of any crate", true, rust::clippy),
    tests("rust", "unit and integration tests of every crate (golden vectors among them)", true, rust::tests),
    tests("doc-tests", "the examples in the documentation", true, rust::doc_tests),
    check("rustdoc", "documentation builds without a warning", true, rust::rustdoc),
    check("header", "include/kronsae.h is what cbindgen makes of the C ABI", true, header_is_fresh),
    check(
        "exported-symbols",
        "the shared library exports what was recorded, and what the header declares alone",
        true,
        native::exported_symbols,
    ),
    tests(
        "cuda-emulation",
        "the CUDA kernels of selection run on the CPU, again under sanitizers, and with planted races",
        false,
        cuda::emulation,
    ),
    tests(
        "cuda-encode",
        "encoding on a device whose kernels are emulated, and taps of what is there, against the CPU's",
        false,
        cuda_device::encode,
    ),
    tests(
        "cuda-driver",
        "the CUDA driver's device against stand-ins for NVIDIA's libraries, and what is missing is named",
        false,
        cuda_device::driver,
    ),
    tests(
        "mpi",
        "training on two and three MPI ranks over emulated kernels ends with the bits of one process",
        false,
        mpi::ranks,
    ),
    tests(
        "cuda-compile",
        "nvcc and NVRTC compile every kernel for sm_80, sm_90a and sm_100, without local memory",
        false,
        cuda_compile::tests,
    ),
    check("abi", "programs built against the recorded interface and the last release go on working", true, abi::check),
    check("c-and-cpp", "C and C++ programs against the shared and the static library", true, native::c_and_cpp),
    check("dist", "programs built against the packages, moved, shared and static", false, dist::check),
    tests(
        "go",
        "the Go binding: golden vectors, bad input, lifetimes; again under the race detector",
        false,
        go::tests,
    ),
    check("sanitizers", "the same programs under AddressSanitizer and UBSan", false, native::sanitizers),
    check("tsan-c", "the monitor's C and C++ programs under ThreadSanitizer", false, native::thread_sanitizer),
    check("valgrind", "the same programs under valgrind", false, native::valgrind),
    tests("csharp", "the C# bindings, their examples and golden vectors on mono", false, csharp::mono),
    tests("csharp-coreclr", "the same on CoreCLR", false, csharp::coreclr),
    check("nuget", "the NuGet package, unpacked, on CoreCLR", false, dist::nuget::check),
    tests("old-cpus", "golden vectors on emulated CPUs without AVX and without AVX-512", false, rust::old_cpus),
    tests("loom", "the monitor's queue and wake-up in every interleaving", false, rust::loom),
    tests(
        "tsan",
        "the monitor's queue and counters under ThreadSanitizer, which first finds a planted race",
        false,
        rust::tsan,
    ),
    tests("onnx", "what ONNX Runtime computes from exported graphs, and lints of that feature", false, rust::onnx),
    tests("without-live", "the runtime without the live page, and its lints", false, rust::without_live),
    tests("live-page", "the live page in a real browser", false, rust::browser),
    tests("prometheus", "metrics, alert rules and dashboard with promtool and Prometheus", false, rust::prometheus),
    check("benches", "every benchmark runs once", false, rust::benches),
    tests(
        "llama",
        "llama-server with monitoring attached: the demonstration in small, and faults",
        false,
        llama::tests,
    ),
    check("fuzz-targets", "the fuzz targets still compile", false, rust::fuzz_targets),
];

fn header_is_fresh(_root: &Path) -> Result<(), String> {
    header::verify()
}

/// Runs what the options ask for; false if something failed.
///
/// # Errors
/// An unknown option or step.
pub(crate) fn test(root: &Path, options: &[&str]) -> Result<bool, String> {
    let mut quick = false;
    let mut only = Vec::new();
    let mut options = options.iter();
    while let Some(&option) = options.next() {
        match option {
            "--help" | "-h" => {
                print!("{HELP}\n{}", list());
                return Ok(true);
            }
            "--list" => {
                print!("{}", list());
                return Ok(true);
            }
            "--quick" => quick = true,
            "--only" => {
                let name = *options.next().ok_or("--only needs the name of a step; see --list")?;
                if !STEPS.iter().any(|step| step.name == name) {
                    return Err(format!("no step `{name}`; there are:\n{}", list()));
                }
                only.push(name);
            }
            other => return Err(format!("unknown option `{other}`\n\n{HELP}")),
        }
    }
    let ci = ci();
    let chosen = |step: &&Step| match only.is_empty() {
        true => step.quick || !quick,
        false => only.contains(&step.name),
    };
    let mut done = Vec::new();
    for step in STEPS.iter().filter(chosen) {
        println!("{}: {}", step.name, step.about);
        let start = Instant::now();
        let report = perform(step, root, ci);
        let seconds = start.elapsed();
        if report.failed > 0 {
            println!("{}\n{}: FAILED", report.output.trim_end(), step.name);
        } else if let Some(tool) = &report.missing {
            println!("{}: skipped, {tool} is missing", step.name);
        }
        done.push((step.name, report, seconds));
    }
    Ok(summarise(&done))
}

/// Whether a missing tool is a failure.
fn ci() -> bool {
    std::env::var("CI").is_ok_and(|ci| ci == "true")
}

fn perform(step: &Step, root: &Path, ci: bool) -> Report {
    let report = match step.run {
        Run::Tests(run) => run(root),
        Run::Check(run) => match run(root) {
            Ok(()) => Report { passed: 1, ..Report::default() },
            Err(error) => match error.strip_prefix("missing tool: ") {
                Some(tool) => Report { skipped: 1, missing: Some(tool.trim_end().to_owned()), ..Report::default() },
                None => Report { failed: 1, output: error, ..Report::default() },
            },
        },
    };
    match &report.missing {
        Some(tool) if ci => {
            Report { failed: 1, output: format!("{tool} is missing, and CI=true: install it"), ..Report::default() }
        }
        _ => report,
    }
}

/// Prints the table and the totals; whether nothing failed.
fn summarise(done: &[(&str, Report, Duration)]) -> bool {
    println!("\n{:<20} {:>9} {:>8} {:>8} {:>8}", "step", "seconds", "passed", "failed", "skipped");
    let (mut total, mut seconds) = (Report::default(), Duration::ZERO);
    let row = |name: &str, report: &Report, seconds: Duration| {
        let note = report.missing.as_ref().map_or(String::new(), |tool| format!("  missing: {tool}"));
        let Report { passed, failed, skipped, .. } = report;
        println!("{name:<20} {:>9.1} {passed:>8} {failed:>8} {skipped:>8}{note}", seconds.as_secs_f64());
    };
    for (name, report, took) in done {
        row(name, report, *took);
        total.passed += report.passed;
        total.failed += report.failed;
        total.skipped += report.skipped;
        seconds += *took;
    }
    row("total", &total, seconds);
    println!("\n{} passed, {} failed, {} skipped", total.passed, total.failed, total.skipped);
    total.failed == 0
}

fn list() -> String {
    let mut text = String::new();
    for step in STEPS {
        let slow = match step.quick {
            true => "",
            false => " (not with --quick)",
        };
        text += &format!("  {:<18} {}{slow}\n", step.name, step.about);
    }
    text
}

impl Report {
    /// Counts another run of the same step as well.
    fn add(&mut self, other: &Report) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.skipped += other.skipped;
        self.output += &other.output;
    }

    /// From a test runner's output: `test result: ok. 3 passed; 0 failed; 1 ignored` (cargo test, once a program) or
    /// `Summary [1.2s] 14 tests run: 13 passed (1 slow), 1 failed, 2 skipped` (nextest).
    pub(crate) fn of_tests(ran: Result<process::Ran, String>) -> Report {
        let ran = match ran {
            Ok(ran) => ran,
            Err(output) => return Report { failed: 1, output, ..Report::default() },
        };
        let mut report = Report::default();
        for line in ran.output.lines() {
            if !line.contains("test result: ") && !line.trim_start().starts_with("Summary [") {
                continue;
            }
            let words: Vec<_> = line.split(|c: char| !c.is_ascii_alphanumeric()).filter(|w| !w.is_empty()).collect();
            for pair in words.windows(2) {
                let Ok(count) = pair[0].parse::<usize>() else { continue };
                match pair[1] {
                    "passed" => report.passed += count,
                    "failed" | "timed" => report.failed += count,
                    "ignored" | "skipped" => report.skipped += count,
                    _ => {}
                }
            }
        }
        if !ran.success {
            // It may have failed to compile, without having counted anything.
            report.failed = report.failed.max(1);
        } else if report.passed + report.failed == 0 {
            report.failed = 1;
            report.output = "the runner reported no test at all\n".to_owned();
        }
        report.output += &with_advice(ran.output);
        report
    }
}

/// For a check that is one command: its output is the error.
fn succeed(ran: Result<process::Ran, String>) -> Result<(), String> {
    match ran? {
        process::Ran { success: true, .. } => Ok(()),
        ran => Err(with_advice(ran.output)),
    }
}

fn with_advice(output: String) -> String {
    match process::advice(&output) {
        Some(advice) => format!("{output}\n{advice}"),
        None => output,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(output: &str, success: bool) -> (usize, usize, usize) {
        let report = Report::of_tests(Ok(process::Ran { success, output: output.to_owned() }));
        (report.passed, report.failed, report.skipped)
    }

    #[test]
    fn runners_are_counted() {
        let cargo = "test result: ok. 3 passed; 0 failed; 1 ignored; 0 measured; 2 filtered out; finished in 0.01s\n";
        assert_eq!(of(&format!("{cargo}noise\n{cargo}"), true), (6, 0, 2));
        let nextest = "     Summary [   1.234s] 14 tests run: 12 passed (1 slow), 1 failed, 1 timed out, 2 skipped\n";
        assert_eq!(of(nextest, false), (12, 2, 2));
    }

    #[test]
    fn a_runner_that_counts_nothing_has_failed() {
        assert_eq!(of("error: could not compile", false).1, 1);
        assert_eq!(of("", true).1, 1);
    }

    #[test]
    fn step_names_are_unique() {
        let mut names: Vec<_> = STEPS.iter().map(|step| step.name).collect();
        names.sort_unstable();
        assert!(names.windows(2).all(|pair| pair[0] != pair[1]));
    }

    #[test]
    fn missing_tools_skip_except_in_ci() {
        let step = check("x", "", true, |_| Err("missing tool: frobnicate".to_owned()));
        let here = perform(&step, Path::new("."), false);
        assert_eq!((here.skipped, here.failed, here.missing.as_deref()), (1, 0, Some("frobnicate")));
        let ci = perform(&step, Path::new("."), true);
        assert_eq!((ci.skipped, ci.failed), (0, 1));
        assert!(ci.output.contains("frobnicate"));
    }
}
