//! `kronsae bench gpu`: checks of the device backend, then measurements, against the model of its own traffic and against
//! peers. On a device whose kernels are emulated everything runs on tiny shapes, to show that it runs; times mean nothing
//! there, and the report says so.

mod checks;
mod encodes;
mod measures;
mod taps;

use super::table::aligned;
use super::traffic::{Peaks, Step};
use kronsae::Result;
use kronsae::cuda::Device;
use kronsae::sae::Encoder;
use serde::Serialize;
use std::fmt::Write as _;
use std::sync::Arc;

/// What to do.
#[derive(Debug, Clone)]
pub struct Options {
    /// The step that is measured.
    pub step: Step,
    /// Timed calls of each measurement.
    pub calls: usize,
    /// Whether step times over F are measured: shapes of up to 2^20 latents, minutes.
    pub sweep: bool,
    /// Checks alone.
    pub checks_only: bool,
    /// What `tools/gpu_peers.py` measured, if it did.
    pub peers: Option<serde_json::Value>,
}

impl Options {
    /// The shape of the targets.
    #[must_use]
    pub fn full() -> Self {
        Options { step: Step::REFERENCE, calls: 50, sweep: true, checks_only: false, peers: None }
    }

    /// A tiny shape, for emulated devices and for sanitizers.
    #[must_use]
    pub fn tiny() -> Self {
        let encoder = Encoder::Kron { heads: 16, base: 2, extension: 4 };
        let step = Step { encoder, d_model: 32, batch: 64, k: 4, aux: 0, ..Step::REFERENCE };
        Options { step, calls: 3, sweep: false, checks_only: false, peers: None }
    }
}

/// A check, and what it found.
#[derive(Debug, Clone, Serialize)]
pub struct Check {
    /// What was checked.
    pub name: String,
    /// Whether it holds.
    pub passed: bool,
    /// Figures.
    pub found: String,
}

/// A measurement.
#[derive(Debug, Clone, Serialize)]
pub struct Measure {
    /// What was measured.
    pub name: String,
    /// The figure.
    pub value: f64,
    /// Its unit: `ms`, `GB`, `x` for ratios, `%`.
    pub unit: &'static str,
    /// The most it may be (where `at_least`: the least), if there is a target.
    pub target: Option<f64>,
    /// Whether more is better.
    pub at_least: bool,
    /// What it is made of.
    pub note: String,
}

impl Measure {
    fn plain(name: impl Into<String>, value: f64, unit: &'static str, note: impl Into<String>) -> Self {
        Measure { name: name.into(), value, unit, target: None, at_least: false, note: note.into() }
    }

    fn at_most(name: impl Into<String>, value: f64, unit: &'static str, target: f64, note: impl Into<String>) -> Self {
        Measure { target: Some(target), ..Measure::plain(name, value, unit, note) }
    }

    /// Whether the target is met.
    #[must_use]
    pub fn met(&self) -> Option<bool> {
        self.target.map(|target| if self.at_least { self.value >= target } else { self.value <= target })
    }
}

/// Everything that was found.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// What the device calls itself.
    pub device: String,
    /// Whether kernels were emulated on the CPU: times say nothing then.
    pub emulated: bool,
    /// Checks.
    pub checks: Vec<Check>,
    /// Measurements.
    pub measures: Vec<Measure>,
    /// What was not measured, and why.
    pub skipped: Vec<String>,
    /// The model of the step's traffic, as Markdown.
    pub traffic: String,
    /// What the peers' program said.
    pub peers: Option<serde_json::Value>,
}

impl Report {
    /// Whether every check holds. Targets are not checks.
    #[must_use]
    pub fn passed(&self) -> bool {
        self.checks.iter().all(|check| check.passed)
    }

    /// The report as Markdown.
    #[must_use]
    pub fn markdown(&self) -> String {
        let mut out = format!("Device: {}.\n", self.device);
        if self.emulated {
            out += "**Kernels were emulated on the CPU, on tiny shapes: what follows shows that everything runs; no time in it \
                    says anything about a GPU.**\n";
        }
        let mut rows = vec![["check", "holds", "found"].map(str::to_owned)];
        let holds = |passed: bool| if passed { "yes" } else { "**NO**" }.to_owned();
        rows.extend(self.checks.iter().map(|c| [c.name.clone(), holds(c.passed), c.found.clone()]));
        let _ = write!(out, "\n{}", aligned(&rows));
        if !self.measures.is_empty() {
            let mut rows = vec![["measure", "value", "target", "met", "what"].map(str::to_owned)];
            rows.extend(self.measures.iter().map(|m| {
                let sign = if m.at_least { ">=" } else { "<=" };
                let met = match (self.emulated, m.met()) {
                    (true, Some(_)) => "not judged".to_owned(),
                    (false, Some(met)) => holds(met),
                    (_, None) => String::new(),
                };
                [
                    m.name.clone(),
                    format!("{:.3} {}", m.value, m.unit),
                    m.target.map_or(String::new(), |t| format!("{sign} {t} {}", m.unit)),
                    met,
                    m.note.clone(),
                ]
            }));
            let _ = write!(out, "\n{}", aligned(&rows));
        }
        if !self.skipped.is_empty() {
            out += "\nNot measured:\n";
            self.skipped.iter().for_each(|why| {
                let _ = writeln!(out, "- {why}");
            });
        }
        let _ = write!(out, "\nThe step's traffic: {}", self.traffic);
        out
    }
}

/// Runs checks and measurements on `device`; `progress` is told what is being done.
///
/// # Errors
/// Device errors, out of memory. A check that does not hold is in the report, and no error.
pub fn run(
    device: &Arc<dyn Device>,
    emulated: bool,
    options: &Options,
    progress: &mut dyn FnMut(&str),
) -> Result<Report> {
    let peaks = Peaks::h200(options.step.element);
    let mut report = Report {
        device: device.name(),
        emulated,
        checks: checks::run(device, emulated, progress)?,
        measures: Vec::new(),
        skipped: Vec::new(),
        traffic: options.step.markdown(peaks),
        peers: options.peers.clone(),
    };
    if options.checks_only {
        report.skipped.push("everything: only checks were asked for".to_owned());
    } else {
        measures::run(device, options, &mut report, progress)?;
    }
    Ok(report)
}
