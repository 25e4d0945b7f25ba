//! `kronsae bench`: the encoder and its peers, side by side, in one run.
//!
//! Every figure of a table comes from one process (torch from a child of it) in which the contenders take turns. For each
//! shape and number of threads the machine's own limits are measured among them: how long it takes to read as many bytes
//! as the encoder does, in the same state of the caches, and how many multiply-adds of each kind fit into a second. The
//! same run says whether the rule by which the encoder chooses its path chose well.

pub mod contender;
pub mod fast;
#[cfg(feature = "cuda")]
pub mod gpu;
pub mod input;
pub mod machine;
pub mod measure;
#[cfg(feature = "onnxruntime")]
mod onnx;
pub mod open;
mod ours;
pub mod peaks;
mod plot;
pub mod rule;
pub mod scaling;
pub mod selection;
pub mod table;
mod torch;
pub mod traffic;

pub use contender::{Peers, Shape};
pub use torch::PYTHON_VARIABLE;

use contender::{CONTENDERS, Contender, EXACT, Work, Workshop};
use kronsae::{AutoRule, Isa, Result};
use machine::{Flusher, Machine, Reader, Ticks};
use measure::{Effort, Times, measure};
use peaks::{Peak, Unit};
use rule::{PathChoice, ThreadChoice};
use selection::SelectionShare;
use serde::Serialize;

/// The name of the row that only reads as many bytes as the encoder does for one token.
pub const READER: &str = "reading the weights alone";

/// Cores kept busy by others, above which a measurement counts as disturbed.
pub const DISTURBED: f64 = 0.15;

/// What `kronsae bench encode` measures.
#[derive(Debug, Clone)]
pub struct Options {
    /// Shapes.
    pub shapes: Vec<Shape>,
    /// Tokens of a call.
    pub batches: Vec<usize>,
    /// Threads.
    pub threads: Vec<usize>,
    /// States of the caches.
    pub caches: Vec<Caches>,
    /// K.
    pub k: usize,
    /// How much.
    pub effort: Effort,
    /// How often a situation is measured again if others kept more than [`DISTURBED`] cores busy meanwhile; the calmest
    /// measurement is reported.
    pub retries: usize,
    /// Contenders whose name has none of these are left out; all take part if it is empty.
    pub only: Vec<String>,
    /// Contenders of these names are left out.
    pub without: &'static [&'static str],
}

/// What is in the caches when a call begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Caches {
    /// What the call before left there.
    Hot,
    /// Nothing of the encoder's: a language model ran in between, say.
    Flushed,
}

impl Caches {
    /// What it is called in tables.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Caches::Hot => "hot",
            Caches::Flushed => "flushed",
        }
    }
}

/// One figure: a contender in a situation.
#[derive(Debug, Clone, Serialize)]
pub struct Cell {
    /// Name of the shape.
    pub shape: String,
    /// Threads.
    pub threads: usize,
    /// State of the caches.
    pub caches: Caches,
    /// Tokens of a call.
    pub batch: usize,
    /// Who.
    pub contender: String,
    /// How long.
    #[serde(flatten)]
    pub times: Times,
    /// p99 over the median.
    pub p99_over_median: f64,
    /// Cores that other processes kept busy meanwhile, on average, if the system tells.
    pub others: Option<f64>,
    /// Bytes of weights that a call reads at least once; screened, those of the int8 copy and of what is looked at closer.
    pub weight_bytes: u64,
    /// These over the median, 1e9 a second.
    pub gigabytes_per_second: f64,
    /// Share of the read bandwidth measured beside it. The larger of this and `share_of_peak` is the fraction of the floor.
    pub share_of_read: Option<f64>,
    /// 2 * tokens * rows * d operations over the median, 1e9 a second; none where nothing is computed.
    pub gigaops_per_second: Option<f64>,
    /// How often each weight is multiplied with each token: once, or plane by plane.
    pub products: usize,
    /// What multiplies, where it is known.
    pub unit: Option<Unit>,
    /// Operations times products over the peak of that unit.
    pub share_of_peak: Option<f64>,
    /// Of this library's encoder: whether such a call is screened.
    pub screened: Option<bool>,
    /// Of this library's encoder: threads that take part.
    pub threads_used: Option<usize>,
    /// Its median over that of the first contender: how many times faster that one is.
    pub ratio: Option<f64>,
    /// The same of the fastest calls.
    pub ratio_of_best: Option<f64>,
}

/// What was measured, and where.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// The machine.
    pub machine: Machine,
    /// Names and versions of the contenders.
    pub versions: Vec<String>,
    /// The shapes.
    pub shapes: Vec<Shape>,
    /// K.
    pub k: usize,
    /// How much was measured.
    pub effort: Effort,
    /// Bytes read to flush the caches.
    pub flushed_bytes: usize,
    /// The machine's peaks on each number of threads.
    pub peaks: Vec<Peak>,
    /// All figures.
    pub cells: Vec<Cell>,
    /// The rule by which the encoder chooses, in words.
    pub rule: String,
    /// Whether it chose the faster path.
    pub path_choices: Vec<PathChoice>,
    /// Whether it had been faster on fewer threads.
    pub thread_choices: Vec<ThreadChoice>,
    /// Selection alone.
    pub selection: Vec<SelectionShare>,
    /// Who is missing, and why.
    pub skipped: Vec<String>,
}

struct ReaderContender {
    reader: Reader,
    bytes: u64,
}

impl Contender for ReaderContender {
    fn work(&self, _tokens: usize) -> Work {
        Work { bytes: self.bytes, rows: 0, products: 0, unit: None, ours: None }
    }

    fn run(&mut self, _tokens: usize, calls: usize, times: &mut Vec<f64>) -> Result<(), String> {
        for _ in 0..calls {
            times.push(self.reader.pass().map_err(|e| e.message().to_owned())?.as_nanos() as f64);
        }
        Ok(())
    }
}

/// Measures. `progress` is told what is being done.
///
/// # Errors
/// What keeps the machine from being measured at all; a contender that fails is in the report.
pub fn run(options: &Options, peers: &Peers, progress: &mut dyn FnMut(&str)) -> Result<Report> {
    let machine = Machine::this()?;
    let flusher = Flusher::new(&machine);
    let mut report = Report {
        versions: peers.versions(),
        shapes: options.shapes.clone(),
        k: options.k,
        effort: options.effort,
        flushed_bytes: flusher.bytes(),
        peaks: Vec::new(),
        cells: Vec::new(),
        rule: AutoRule::on(Isa::detect()?).to_string(),
        path_choices: Vec::new(),
        thread_choices: Vec::new(),
        selection: Vec::new(),
        skipped: Vec::new(),
        machine,
    };
    for &threads in &options.threads {
        progress(&format!("peaks on {threads} threads"));
        report.peaks.extend(peaks::peaks(threads)?);
    }
    for shape in &options.shapes {
        let mut workshop = Workshop::new(shape.clone(), options.k, peers.clone())?;
        for &threads in &options.threads {
            let (names, mut contenders) = assemble(&mut workshop, threads, options, &mut report.skipped, progress)?;
            for &caches in &options.caches {
                for &batch in &options.batches {
                    progress(&format!("{}, {threads} threads, caches {caches:?}, batch {batch}", shape.name));
                    let flusher = (caches == Caches::Flushed).then_some(&flusher);
                    let child = peers.torch.as_ref().ok().map(|torch| torch.borrow().process_id());
                    let mut calmest: Option<(Option<f64>, Vec<_>)> = None;
                    for _ in 0..=options.retries {
                        let before = Ticks::now(child);
                        let times = measure(&mut contenders, batch, flusher, options.effort);
                        let others = before.and_then(|b| Ticks::now(child).map(|now| now.others_since(&b)));
                        if calmest.as_ref().is_none_or(|(least, _)| others < *least) {
                            calmest = Some((others, times));
                        }
                        if others.is_none_or(|others| others <= DISTURBED) {
                            break;
                        }
                    }
                    let (others, times) = calmest.unwrap_or_default();
                    let situation = Situation { shape, threads, caches, batch, others };
                    situation.report(&names, &contenders, times, &mut report);
                }
            }
        }
        if report.cells.iter().any(|cell| cell.shape == shape.name && cell.contender == EXACT) {
            progress(&format!("{}: selection alone", shape.name));
            let token_ns = selection::token_ns(shape, options.k, options.effort.turn_seconds)?;
            let shares = selection::shares(shape, token_ns, &report.cells);
            report.selection.extend(shares);
        }
    }
    report.path_choices = rule::path_choices(&report.cells);
    report.thread_choices = rule::thread_choices(&report.cells);
    Ok(report)
}

type Assembled = (Vec<&'static str>, Vec<Box<dyn Contender>>);

/// The contenders of a shape, and a reader of as many bytes as the first one's weights have.
fn assemble(
    workshop: &mut Workshop,
    threads: usize,
    options: &Options,
    skipped: &mut Vec<String>,
    progress: &mut dyn FnMut(&str),
) -> Result<Assembled> {
    let (mut names, mut contenders): Assembled = Default::default();
    for (name, build) in CONTENDERS {
        let asked = options.only.is_empty() || options.only.iter().any(|only| name.contains(only.as_str()));
        if !asked || options.without.contains(name) {
            continue;
        }
        progress(&format!("{}, {threads} threads: preparing {name}", workshop.shape.name));
        match build(workshop, threads) {
            Ok(contender) => {
                names.push(*name);
                contenders.push(contender);
            }
            Err(why) => skip(skipped, format!("{name}, {}: {why}", workshop.shape.name)),
        }
    }
    if let Some(first) = contenders.first() {
        // What the floor of a single token is: reading the weights, or the copy of them that is read instead.
        let bytes = first.work(1).bytes;
        names.push(READER);
        contenders.push(Box::new(ReaderContender { reader: Reader::new(bytes as usize, threads)?, bytes }));
    }
    Ok((names, contenders))
}

fn skip(skipped: &mut Vec<String>, why: String) {
    if !skipped.contains(&why) {
        skipped.push(why);
    }
}

/// Where a set of figures was taken.
struct Situation<'a> {
    shape: &'a Shape,
    threads: usize,
    caches: Caches,
    batch: usize,
    others: Option<f64>,
}

impl Situation<'_> {
    fn report(
        &self,
        names: &[&'static str],
        contenders: &[Box<dyn Contender>],
        times: Vec<Result<Times, String>>,
        report: &mut Report,
    ) {
        let rate = |amount: f64, times: &Times| amount / times.median_ns;
        // Where the first of the list is left out, there is nobody to compare with.
        let first = times.first().filter(|_| names[0] == EXACT).and_then(|t| t.as_ref().ok()).copied();
        let read = match (contenders.last(), times.last()) {
            (Some(reader), Some(Ok(times))) => Some(rate(reader.work(self.batch).bytes as f64, times)),
            _ => None,
        };
        for (at, times) in times.into_iter().enumerate() {
            let times = match times {
                Ok(times) => times,
                Err(why) => {
                    skip(&mut report.skipped, format!("{}, {}: {why}", names[at], self.shape.name));
                    continue;
                }
            };
            let work = contenders[at].work(self.batch);
            let bytes = rate(work.bytes as f64, &times);
            let operations = 2.0 * (self.batch * work.rows) as f64 * self.shape.d_model as f64;
            let gigaops = (work.rows > 0).then(|| rate(operations, &times));
            let of_unit = |peak: &&Peak| Some(peak.unit) == work.unit && peak.threads == self.threads;
            let peak = report.peaks.iter().find(of_unit).map(|peak| peak.gigaops_per_second);
            let share_of_peak = gigaops.zip(peak).map(|(gigaops, peak)| gigaops * work.products as f64 / peak);
            let compared = at > 0 && names[at] != READER;
            report.cells.push(Cell {
                shape: self.shape.name.clone(),
                threads: self.threads,
                caches: self.caches,
                batch: self.batch,
                contender: names[at].to_owned(),
                times,
                p99_over_median: times.p99_ns / times.median_ns,
                others: self.others,
                weight_bytes: work.bytes,
                gigabytes_per_second: bytes,
                share_of_read: read.map(|read| bytes / read),
                gigaops_per_second: gigaops,
                products: work.products,
                unit: work.unit,
                share_of_peak,
                screened: work.ours.map(|(screened, _)| screened),
                threads_used: work.ours.map(|(_, threads)| threads),
                ratio: first.filter(|_| compared).map(|first| times.median_ns / first.median_ns),
                ratio_of_best: first.filter(|_| compared).map(|first| times.best_ns / first.best_ns),
            });
        }
    }
}
