//! The integration with llama.cpp: its demonstration in small, then its tests, in a real llama-server.

use super::Report;
use crate::{native, process};
use std::path::Path;
use std::process::Command;

/// `integrations/llama.cpp/demo --small` and `integrations/llama.cpp/tests/run`, which build what they need into
/// target/llama, llama.cpp included: minutes the first time, seconds later.
pub(super) fn tests(root: &Path) -> Report {
    let folder = Path::new("integrations/llama.cpp");
    let script = |name: &str, argument: Option<&str>| {
        let mut command = Command::new("bash");
        command.arg(folder.join(name)).args(argument).current_dir(root).env("CARGO_TERM_COLOR", "never");
        process::run(command)
    };
    let demo = match script("demo", Some("--small")) {
        Ok(ran) => ran,
        Err(error) => match error.strip_prefix(native::MISSING_TOOL) {
            Some(tool) => return missing(tool),
            None => return Report { failed: 1, output: error, ..Report::default() },
        },
    };
    if !demo.success {
        let tool = demo.output.lines().find_map(|line| line.strip_prefix(native::MISSING_TOOL));
        return match tool {
            Some(tool) => missing(tool),
            None => Report { failed: 1, output: demo.output, ..Report::default() },
        };
    }
    let mut report = Report { passed: 1, ..Report::default() };
    report.add(&Report::of_tests(script("tests/run", None)));
    report
}

fn missing(tool: &str) -> Report {
    Report { skipped: 1, missing: Some(tool.trim_end().to_owned()), ..Report::default() }
}
