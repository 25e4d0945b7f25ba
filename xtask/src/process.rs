//! Running other programs: their output kept in order, a missing one named.

use std::io::Read;
use std::path::Path;
use std::process::{Command, Stdio};

/// What a program that ran left behind.
pub(crate) struct Ran {
    pub(crate) success: bool,
    /// Standard output and standard error, interleaved as they came.
    pub(crate) output: String,
}

/// `cargo` with these arguments, in the workspace's root.
pub(crate) fn cargo(root: &Path, args: &[&str]) -> Command {
    // The cargo that runs this program, so that a toolchain chosen by `cargo +NAME` stays chosen.
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or("cargo".into()));
    command.args(args).current_dir(root).env("CARGO_TERM_COLOR", "never");
    // Set by the outer cargo for this package; an inner one must not believe they are for its own.
    for (key, _) in std::env::vars_os() {
        if key.to_string_lossy().starts_with("CARGO_PKG_") {
            command.env_remove(key);
        }
    }
    command
}

/// Whether `cargo NAME` is an installed subcommand.
pub(crate) fn has_cargo(root: &Path, name: &str) -> bool {
    let mut command = cargo(root, &[name, "--version"]);
    command.stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok_and(|status| status.success())
}

/// Runs a command to its end.
///
/// # Errors
/// `missing tool: NAME` if there is no such program; another sentence if it could not be started otherwise.
pub(crate) fn run(mut command: Command) -> Result<Ran, String> {
    let name = command.get_program().to_string_lossy().into_owned();
    let failed = |e: std::io::Error| match e.kind() {
        std::io::ErrorKind::NotFound => format!("missing tool: {name}"),
        _ => format!("{name}: cannot be started: {e}"),
    };
    let (mut reader, writer) = std::io::pipe().map_err(failed)?;
    command.stdin(Stdio::null()).stdout(writer.try_clone().map_err(failed)?).stderr(writer);
    let mut child = command.spawn().map_err(failed)?;
    // It holds the other copies of the writing end, which would keep the pipe open for ever.
    drop(command);
    let mut output = Vec::new();
    reader.read_to_end(&mut output).map_err(failed)?;
    let status = child.wait().map_err(failed)?;
    let mut output = String::from_utf8_lossy(&output).into_owned();
    if let Some(signal) = std::os::unix::process::ExitStatusExt::signal(&status) {
        // It may have said nothing itself.
        output += &format!("\n{name}: ended by signal {signal}\n");
    }
    Ok(Ran { success: status.success(), output })
}

/// A line that says what to do, where cargo's own many lines mean that crates could not be downloaded or linked.
pub(crate) fn advice(output: &str) -> Option<&'static str> {
    let offline = ["Could not resolve host", "failed to download", "download of config.json failed", "network failure"];
    if offline.iter().any(|sign| output.contains(sign)) {
        return Some("crates could not be downloaded: run `cargo fetch` once with a network");
    }
    if output.contains("linker `cc` not found") {
        return Some("no C compiler: install one (Debian: apt-get install gcc g++)");
    }
    None
}
