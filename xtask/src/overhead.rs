//! `cargo xtask overhead`: what a call costs from C++, Go and C# above the same call from C, with the library as it is shipped
//! and a model so small that the way into it shows.

use crate::process::{cargo, run};
use crate::steps::csharp::Runtime;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

/// How often each program is run, in turns; the best run counts.
const TURNS: usize = 5;
/// What each should cost at most above C, in ns.
const TARGETS: [(&str, f64); 4] = [("C++", 0.0), ("Go", 150.0), ("CoreCLR", 50.0), ("mono", 200.0)];

/// The fastest call seen, in ns, by `info` and `encode`.
type Best = BTreeMap<String, f64>;

/// Measures and prints the table. Figures are for reading: nothing fails by being slow.
///
/// # Errors
/// What does not build or run; a missing tool.
pub(crate) fn measure(root: &Path) -> Result<(), String> {
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), |dir| root.join(dir));
    let libraries = crate::dist::library(root)?;
    let soname = libraries.join("libkronsae.so.0");
    if !soname.exists() {
        std::os::unix::fs::symlink("libkronsae.so", &soname)
            .map_err(|e| format!("{}: cannot make: {e}", soname.display()))?;
    }
    succeed(cargo(root, &["build", "--quiet", "-p", "kronsae", "--lib", "--example", "make_model"]))?;
    let out = target.join("overhead");
    let mut models = Command::new(target.join("debug/examples/make_model"));
    models.arg(&out);
    succeed(models)?;
    let model = out.join("overhead.safetensors");
    let (mono, coreclr) = (Runtime::mono(root)?, Runtime::coreclr(root)?);
    let c = compile(root, &out, &libraries, "cc", "overhead.c")?;
    let cpp = compile(root, &out, &libraries, "c++", "overhead.cpp")?;
    let go = go_tests(root, &out, &libraries)?;

    let first = first_of_all();
    println!(
        "each the best of {TURNS} turns{}",
        if first.is_empty() { "" } else { ", first of all processes (chrt -f 50)" }
    );
    let mut best: BTreeMap<&str, Best> = BTreeMap::new();
    for _ in 0..TURNS {
        for (name, command) in [
            ("C", with(Command::new(&c), &model)),
            ("C++", with(Command::new(&cpp), &model)),
            ("CoreCLR", with(coreclr.command(Path::new("Bench.exe")), &model)),
            ("mono", with(mono.command(Path::new("Bench.exe")), &model)),
        ] {
            let text = succeed(ahead(command, &first, &libraries))?;
            take(best.entry(name).or_default(), plain(&text));
        }
        let mut command = Command::new(&go);
        command.args(["-test.run=^$", "-test.bench=Info|Encode", "-test.benchtime=200000x", "-test.count=5"]);
        let text = succeed(ahead(command, &first, &libraries))?;
        take(best.entry("Go").or_default(), of_go(&text, "go"));
        take(best.entry("C, called by Go").or_default(), of_go(&text, "c"));
    }
    println!("{}", table(&best)?);
    Ok(())
}

fn table(best: &BTreeMap<&str, Best>) -> Result<String, String> {
    let look = |name: &str, call: &str| {
        let found = best.get(name).and_then(|calls| calls.get(call));
        found.copied().ok_or_else(|| format!("{name} printed no time of {call}"))
    };
    let mut text =
        format!("{:<10} {:>10} {:>10} {:>10} {:>10} {:>8}\n", "ns", "info", "above C", "encode", "above C", "at most");
    text += &format!("{:<10} {:>10.1} {:>10} {:>10.1}\n", "C", look("C", "info")?, "", look("C", "encode")?);
    for (name, most) in TARGETS {
        // Go's loop of C is in the same process, as its calls are.
        let base = if name == "Go" { "C, called by Go" } else { "C" };
        let (info, encode) = (look(name, "info")?, look(name, "encode")?);
        let (info_above, encode_above) = (info - look(base, "info")?, encode - look(base, "encode")?);
        text +=
            &format!("{name:<10} {info:>10.1} {info_above:>+10.1} {encode:>10.1} {encode_above:>+10.1} {most:>8}\n");
    }
    Ok(text)
}

fn with(mut command: Command, model: &Path) -> Command {
    command.arg(model);
    command
}

/// Ahead of what else runs on the machine, where that is allowed: a pause inside a loop of short calls is not theirs.
fn first_of_all() -> Vec<&'static str> {
    let ahead = vec!["chrt", "-f", "50"];
    let mut command = Command::new(ahead[0]);
    command.args(&ahead[1..]).arg("true");
    if run(command).is_ok_and(|ran| ran.success) { ahead } else { Vec::new() }
}

fn ahead(command: Command, first: &[&str], libraries: &Path) -> Command {
    let mut ahead = match first {
        [] => command,
        [program, arguments @ ..] => {
            let mut ahead = Command::new(program);
            ahead.args(arguments).arg(command.get_program()).args(command.get_args());
            if let Some(folder) = command.get_current_dir() {
                ahead.current_dir(folder);
            }
            ahead
        }
    };
    ahead.env("LD_LIBRARY_PATH", libraries).env("KRONSAE_LIBRARY", libraries.join("libkronsae.so"));
    ahead
}

fn compile(root: &Path, out: &Path, libraries: &Path, compiler: &str, source: &str) -> Result<PathBuf, String> {
    let program = out.join(source.replace('.', "_"));
    let mut command = Command::new(compiler);
    command.arg("-O2").arg("-I").arg(root.join("include")).arg(root.join("bindings/bench").join(source));
    command.arg("-o").arg(&program).arg("-L").arg(libraries).arg("-lkronsae");
    succeed(command).map(|_| program)
}

/// The binding's tests as a program, whose benchmarks these are.
fn go_tests(root: &Path, out: &Path, libraries: &Path) -> Result<PathBuf, String> {
    let program = out.join("go.test");
    let mut command = crate::steps::go::command(root, libraries);
    command.args(["test", "-c", "-o"]).arg(&program).arg(".");
    succeed(command).map(|_| program)
}

/// Lines `info 12.3 ns`.
fn plain(text: &str) -> Vec<(String, f64)> {
    let line = |line: &str| {
        let (name, rest) = line.split_once(' ')?;
        Some((name.to_owned(), rest.strip_suffix(" ns")?.parse().ok()?))
    };
    text.lines().filter_map(line).collect()
}

/// Lines `BenchmarkInfo/go-2   200000   93.4 ns/op   0 B/op`.
fn of_go(text: &str, variant: &str) -> Vec<(String, f64)> {
    let line = |line: &str| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let (name, rest) = words.first()?.strip_prefix("Benchmark")?.split_once('/')?;
        if rest.split('-').next() != Some(variant) {
            return None;
        }
        let at = words.iter().position(|word| *word == "ns/op")?;
        Some((name.to_lowercase(), words.get(at.checked_sub(1)?)?.parse().ok()?))
    };
    text.lines().filter_map(line).collect()
}

fn take(best: &mut Best, found: Vec<(String, f64)>) {
    for (name, ns) in found {
        let entry = best.entry(name).or_insert(f64::INFINITY);
        *entry = entry.min(ns);
    }
}

fn succeed(command: Command) -> Result<String, String> {
    let name = format!("{command:?}");
    let ran = run(command)?;
    if ran.success { Ok(ran.output) } else { Err(format!("{name} failed:\n{}", ran.output)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read() {
        assert_eq!(plain("info 12.5 ns\nencode 400.0 ns\nnoise\n"), [("info".into(), 12.5), ("encode".into(), 400.0)]);
        let text = "BenchmarkInfo/c-2  100  9.5 ns/op\nBenchmarkInfo/go-2  100  70.5 ns/op  0 B/op  0 allocs/op\n";
        assert_eq!(of_go(text, "go"), [("info".into(), 70.5)]);
        assert_eq!(of_go(text, "c"), [("info".into(), 9.5)]);
    }

    #[test]
    fn what_is_missing_is_told() {
        let mut best: BTreeMap<&str, Best> = BTreeMap::new();
        take(best.entry("C").or_default(), plain("info 12.5 ns\n"));
        assert!(table(&best).unwrap_err().contains("C printed no time of encode"));
    }
}
