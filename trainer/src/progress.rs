//! What a person sees of a run: a progress bar on stderr, or plain lines where stderr is no terminal; and what a machine
//! sees: JSON lines on stdout.

use crate::backend::StepStats;
use crate::metrics::{EvalRecord, StepRecord};
use crate::run::Observer;
use indicatif::{ProgressBar, ProgressStyle};
use std::io::{IsTerminal, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Writes a line to standard error. Whoever read it may be gone (`kronsae train 2>&1 | head`), which is no reason for a
/// run to end; `eprintln!` would panic.
pub fn tell(line: &str) {
    let _ = writeln!(std::io::stderr(), "{line}");
}

/// Shows a run.
pub struct Progress {
    bar: ProgressBar,
    total_steps: u64,
    batch: u64,
    json: bool,
    terminal: bool,
    quiet: bool,
    phase: String,
    last_line: Instant,
    held_out: Option<f64>,
    stop: Arc<AtomicBool>,
    /// Everything the user was told.
    pub notes: Vec<String>,
}

impl Progress {
    /// Shows a run of `total_steps` steps of `batch` tokens. With `json`, log entries go to stdout as JSON lines.
    /// SIGINT and SIGTERM ask the run to stop after its step, a second one ends it at once.
    #[must_use]
    pub fn new(total_steps: u64, batch: usize, json: bool) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let flag = Arc::clone(&stop);
        // A second handler in one process (tests) is refused; the first one serves.
        let _ = ctrlc::set_handler(move || {
            // Asked again, it does not wait for an evaluation to end: all files are whole at any moment.
            if flag.swap(true, Ordering::Relaxed) {
                std::process::exit(130);
            }
        });
        Progress {
            bar: ProgressBar::hidden(),
            total_steps,
            batch: batch as u64,
            json,
            terminal: std::io::stderr().is_terminal(),
            quiet: false,
            phase: String::new(),
            last_line: Instant::now(),
            held_out: None,
            stop,
            notes: Vec::new(),
        }
    }

    /// Shows nothing, and listens to signals alone: for the ranks behind the first, which find the same.
    #[must_use]
    pub fn quiet(mut self) -> Self {
        (self.quiet, self.json, self.terminal) = (true, false, false);
        self
    }

    /// Takes the bar away.
    pub fn finish(&self) {
        self.bar.finish_and_clear();
    }

    fn begin(&mut self, what: &str, total: u64, template: &str) {
        self.bar.finish_and_clear();
        what.clone_into(&mut self.phase);
        self.bar = if self.terminal { ProgressBar::new(total) } else { ProgressBar::hidden() };
        if let Ok(style) = ProgressStyle::with_template(template) {
            self.bar.set_style(style.progress_chars("━╸─"));
        }
    }

    fn json(&self, value: &impl serde::Serialize) {
        if self.json
            && let Ok(line) = serde_json::to_string(value)
        {
            // Whoever read stdout may be gone; the run is worth more than its log.
            let _ = writeln!(std::io::stdout(), "{line}");
        }
    }
}

impl Observer for Progress {
    fn phase(&mut self, what: &str, done: usize, total: usize) {
        if self.phase != what {
            self.begin(what, total as u64, "{msg} {wide_bar:.cyan/dim} {human_pos}/{human_len} tokens");
            self.bar.set_message(what.to_owned());
        }
        self.bar.set_position(done as u64);
    }

    fn step(&mut self, step: u64, stats: &StepStats, record: Option<&StepRecord>) {
        if self.phase != "training" {
            let template = "{wide_bar:.cyan/dim} {human_pos}/{human_len} tokens, {eta} left\n{msg}";
            self.begin("training", self.total_steps * self.batch, template);
            self.bar.set_position((step - 1) * self.batch);
            self.bar.reset_eta();
        }
        self.bar.set_position(step * self.batch);
        let Some(record) = record else { return };
        self.json(record);
        let held_out = self.held_out.map_or(String::new(), |ev| format!("  held out {ev:.4}"));
        let message = format!(
            "loss {:.4}  EV {:.4}{held_out}  L0 {:.1}  dead {:.1} %  {:.0} tokens/s",
            stats.loss,
            stats.explained_variance,
            stats.l0,
            100.0 * record.dead_share,
            record.tokens_per_second
        );
        if !self.terminal
            && !self.quiet
            && (self.last_line.elapsed() > Duration::from_secs(10) || step == self.total_steps || step == 1)
        {
            tell(&format!("step {step}/{}  {message}", self.total_steps));
            self.last_line = Instant::now();
        }
        self.bar.set_message(message);
    }

    fn evaluated(&mut self, record: &EvalRecord) {
        self.json(record);
        self.held_out = Some(record.evaluation.explained_variance.pooled);
        if !self.terminal && !self.quiet {
            let ev = &record.evaluation.explained_variance;
            tell(&format!(
                "step {}/{}  held-out EV {:.4} pooled, {:.4} per token",
                record.step, self.total_steps, ev.pooled, ev.per_token_mean
            ));
        }
    }

    fn note(&mut self, note: &str) {
        if !self.quiet {
            self.bar.suspend(|| tell(note));
        }
        self.notes.push(note.to_owned());
    }

    fn should_stop(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }
}
