//! `kronsae bench`: the encoder and its peers, side by side, in one run.
//!
//! Every figure of a table comes from one process (torch from a child of it) in which the contenders take turns. For each
//! shape and number of threads the machine's own limits are measured among them: how long it takes to read as many bytes
//! as the encoder's weights have, in the same state of the caches, and how many f32 multiply-adds fit into a second.

pub mod contender;
pub mod machine;
pub mod measure;
#[cfg(feature = "onnxruntime")]
mod onnx;
mod ours;
mod plot;
pub mod scaling;
pub mod table;
mod torch;

pub use contender::{Peers, Shape};
pub use torch::PYTHON_VARIABLE;

use contender::{CONTENDERS, Contender, Workshop};
use kronsae::Result;
use machine::{Flusher, Machine, Reader, Ticks};
use measure::{Effort, Times, measure};
use serde::Serialize;

/// The name of the row that only reads as many bytes as the encoder's weights have.
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
    /// Cores that other processes kept busy meanwhile, on average, if the system tells.
    pub others: Option<f64>,
    /// Bytes of weights over the median, 1e9 a second.
    pub gigabytes_per_second: f64,
    /// Share of the read bandwidth measured beside it: at batch 1, the fraction of the floor.
    pub share_of_read: Option<f64>,
    /// Operations of the product over the median, 1e9 a second; none where nothing is computed.
    pub gigaops_per_second: Option<f64>,
    /// Share of the f32 multiply-add peak.
    pub share_of_f32_peak: Option<f64>,
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
    /// Threads, and their f32 multiply-add peak in 1e9 operations a second.
    pub f32_peaks: Vec<(usize, f64)>,
    /// All figures.
    pub cells: Vec<Cell>,
    /// Who is missing, and why.
    pub skipped: Vec<String>,
}

struct ReaderContender {
    reader: Reader,
    bytes: u64,
}

impl Contender for ReaderContender {
    fn weight_bytes(&self, _tokens: usize) -> u64 {
        self.bytes
    }

    fn rows(&self) -> usize {
        0
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
        f32_peaks: Vec::new(),
        cells: Vec::new(),
        skipped: Vec::new(),
        machine,
    };
    for &threads in &options.threads {
        report.f32_peaks.push((threads, machine::fma_peak(threads)? / 1e9));
    }
    for shape in &options.shapes {
        let mut workshop = Workshop::new(shape.clone(), options.k, peers.clone())?;
        for &(threads, peak) in &report.f32_peaks.clone() {
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
                    let situation = Situation { shape, threads, peak, caches, batch, others };
                    situation.report(&names, &contenders, times, &mut report);
                }
            }
        }
    }
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
        if !options.only.is_empty() && !options.only.iter().any(|only| name.contains(only.as_str())) {
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
        let bytes = first.weight_bytes(1);
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
    peak: f64,
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
        let first = times.first().filter(|_| names[0] == CONTENDERS[0].0).and_then(|t| t.as_ref().ok()).copied();
        let read = match (contenders.last(), times.last()) {
            (Some(reader), Some(Ok(times))) => Some(rate(reader.weight_bytes(self.batch) as f64, times)),
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
            let contender = &contenders[at];
            let bytes = rate(contender.weight_bytes(self.batch) as f64, &times);
            let operations = 2.0 * (self.batch * contender.rows()) as f64 * self.shape.d_model as f64;
            let gigaops = (contender.rows() > 0).then(|| rate(operations, &times));
            let compared = at > 0 && names[at] != READER;
            report.cells.push(Cell {
                shape: self.shape.name.clone(),
                threads: self.threads,
                caches: self.caches,
                batch: self.batch,
                contender: names[at].to_owned(),
                times,
                others: self.others,
                gigabytes_per_second: bytes,
                share_of_read: read.map(|read| bytes / read),
                gigaops_per_second: gigaops,
                share_of_f32_peak: gigaops.map(|gigaops| gigaops / self.peak),
                ratio: first.filter(|_| compared).map(|first| times.median_ns / first.median_ns),
                ratio_of_best: first.filter(|_| compared).map(|first| times.best_ns / first.best_ns),
            });
        }
    }
}
