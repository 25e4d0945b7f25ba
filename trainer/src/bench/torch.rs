//! PyTorch as a contender, in a Python process of its own that times itself.

use super::contender::{Contender, Shape, Work};
use super::peaks::{Unit, has_tiles};
use std::cell::RefCell;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::rc::Rc;

/// What runs in the process; its protocol is at its top.
const SCRIPT: &str = include_str!("torch_peer.py");

/// The environment variable that names the interpreter.
pub const PYTHON_VARIABLE: &str = "KRONSAE_BENCH_PYTHON";

/// A running interpreter with torch.
#[derive(Debug)]
pub struct Torch {
    child: Child,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
    version: String,
}

impl Torch {
    /// Starts `python`, or what `KRONSAE_BENCH_PYTHON` says, or `python3`.
    ///
    /// # Errors
    /// What is missing, and how to have it.
    pub fn start(python: Option<&Path>) -> Result<Self, String> {
        let python = python
            .map(Path::to_owned)
            .or_else(|| std::env::var_os(PYTHON_VARIABLE).filter(|p| !p.is_empty()).map(PathBuf::from))
            .unwrap_or_else(|| "python3".into());
        let advice = format!("name a Python that has torch with --python or {PYTHON_VARIABLE}");
        let mut child = Command::new(&python)
            .args(["-u", "-c", SCRIPT])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .map_err(|e| format!("{}: cannot be started: {e}; {advice}", python.display()))?;
        let (Some(stdin), Some(stdout)) = (child.stdin.take(), child.stdout.take()) else {
            return Err("the Python process has no pipes".to_owned());
        };
        let mut torch = Torch { child, stdin, stdout: BufReader::new(stdout), version: String::new() };
        match torch.line().as_deref().map(|line| line.strip_prefix("ready ")) {
            Ok(Some(version)) => version.clone_into(&mut torch.version),
            _ => return Err(format!("{} has no torch that works; {advice}", python.display())),
        }
        Ok(torch)
    }

    /// Versions of torch and Python.
    #[must_use]
    pub fn version(&self) -> &str {
        &self.version
    }

    /// The process.
    #[must_use]
    pub fn process_id(&self) -> u32 {
        self.child.id()
    }

    fn line(&mut self) -> Result<String, String> {
        let mut line = String::new();
        match self.stdout.read_line(&mut line) {
            Ok(0) => Err("the Python process has ended".to_owned()),
            Ok(_) => Ok(line.trim_end().to_owned()),
            Err(e) => Err(format!("the Python process cannot be read: {e}")),
        }
    }

    /// Sends one command; its answer, which must start with `expected`.
    fn ask(&mut self, command: &str, expected: &str) -> Result<String, String> {
        writeln!(self.stdin, "{command}")
            .and_then(|()| self.stdin.flush())
            .map_err(|e| format!("the Python process does not listen: {e}"))?;
        let answer = self.line()?;
        answer.strip_prefix(expected).map(str::to_owned).ok_or_else(|| format!("torch: {answer}"))
    }
}

impl Drop for Torch {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A model in the Python process.
pub(super) struct TorchModel {
    torch: Rc<RefCell<Torch>>,
    kind: &'static str,
    rows: usize,
    d_model: usize,
}

impl TorchModel {
    /// A model of `kind`, `dense` or `kron`, with random bf16 weights.
    ///
    /// # Errors
    /// What the process has to say.
    pub(super) fn new(
        torch: Rc<RefCell<Torch>>,
        kind: &'static str,
        shape: &Shape,
        k: usize,
        threads: usize,
    ) -> Result<Self, String> {
        let Shape { d_model, heads, base, extension, .. } = shape;
        let command = format!("model {kind} {d_model} {heads} {base} {extension} {k} {threads}");
        torch.borrow_mut().ask(&command, "ok")?;
        let rows = if kind == "dense" { shape.dense().rows() } else { shape.kron().rows() };
        Ok(TorchModel { torch, kind, rows, d_model: shape.d_model })
    }
}

impl Drop for TorchModel {
    fn drop(&mut self) {
        // Where the process is gone, so is its model.
        let _ = self.torch.borrow_mut().ask(&format!("drop {}", self.kind), "ok");
    }
}

impl Contender for TorchModel {
    fn work(&self, tokens: usize) -> Work {
        let bytes = self.rows as u64 * self.d_model as u64 * 2;
        // It multiplies by tiles where they are, single tokens apart, of which little is known.
        let unit = (tokens > 1 && has_tiles()).then_some(Unit::Bf16Tiles);
        Work { bytes, rows: self.rows, products: 1, unit, ours: None }
    }

    fn run(&mut self, tokens: usize, calls: usize, times: &mut Vec<f64>) -> Result<(), String> {
        let answer = self.torch.borrow_mut().ask(&format!("run {} {tokens} {calls}", self.kind), "ns")?;
        let before = times.len();
        for number in answer.split_whitespace() {
            times.push(number.parse().map_err(|_| format!("torch: a time of `{number}`"))?);
        }
        if times.len() - before == calls { Ok(()) } else { Err(format!("torch: {calls} calls, answered {answer}")) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_named() {
        let error = Torch::start(Some(Path::new("/nonexistent/python"))).unwrap_err();
        assert!(error.contains("/nonexistent/python") && error.contains("--python"), "{error}");
        // Takes `-u -c SCRIPT` and ends without a word.
        let error = Torch::start(Some(Path::new("/bin/true"))).unwrap_err();
        assert!(error.contains("/bin/true has no torch"), "{error}");
    }
}
