//! The report of a benchmark as a table, in Markdown that also reads well as text.

use super::{Report, rule};
use crate::terminal::grouped;
use std::fmt::Write as _;

/// Nanoseconds, with a unit.
#[must_use]
pub fn duration(ns: f64) -> String {
    match ns {
        ns if ns < 1e6 => format!("{:.1} us", ns / 1e3),
        ns if ns < 1e8 => format!("{:.2} ms", ns / 1e6),
        ns => format!("{:.0} ms", ns / 1e6),
    }
}

/// The whole report.
#[must_use]
pub fn markdown(report: &Report) -> String {
    let mut out = preamble(report);
    let share = |share: Option<f64>| share.map_or(String::new(), |s| format!("{:.0} %", 100.0 * s));
    let number = |number: Option<f64>| number.map_or(String::new(), |n| format!("{n:.0}"));
    let head = [
        "shape",
        "threads",
        "caches",
        "batch",
        "encoder",
        "median",
        "best",
        "p99",
        "p99 / median",
        "calls",
        "others",
        "GB/s",
        "of read",
        "Gop/s",
        "of peak",
        "by",
        "times ours",
        "best / best",
    ];
    let mut rows = vec![head.map(str::to_owned)];
    for cell in &report.cells {
        rows.push([
            cell.shape.clone(),
            cell.threads.to_string(),
            cell.caches.name().to_owned(),
            cell.batch.to_string(),
            cell.contender.clone(),
            duration(cell.times.median_ns),
            duration(cell.times.best_ns),
            duration(cell.times.p99_ns),
            format!("{:.2}", cell.p99_over_median),
            cell.times.calls.to_string(),
            cell.others.map_or(String::new(), |others| format!("{others:.2}")),
            format!("{:.1}", cell.gigabytes_per_second),
            share(cell.share_of_read),
            number(cell.gigaops_per_second),
            share(cell.share_of_peak),
            cell.unit.map_or(String::new(), |unit| match cell.products {
                1 => unit.name().to_owned(),
                products => format!("{products} x {}", unit.name()),
            }),
            cell.ratio.map_or(String::new(), |r| format!("{r:.2}")),
            cell.ratio_of_best.map_or(String::new(), |r| format!("{r:.2}")),
        ]);
    }
    out += &aligned(&rows);
    out.push('\n');
    out += &rule::markdown(&report.rule, &report.path_choices, &report.thread_choices);
    out += &selection(report);
    if !report.skipped.is_empty() {
        out += "\nNot measured:\n";
        for why in &report.skipped {
            let _ = writeln!(out, "- {why}");
        }
    }
    out
}

/// What share of an encode selection is.
fn selection(report: &Report) -> String {
    let mut out = String::new();
    for shape in &report.shapes {
        let shares: Vec<_> = report.selection.iter().filter(|share| share.shape == shape.name).collect();
        let Some(first) = shares.first() else { continue };
        let of = shares.iter().map(|s| format!("{:.1} % (batch {}, {} threads)", 100.0 * s.share, s.batch, s.threads));
        let _ = writeln!(
            out,
            "- selection of {}, from all pre-activations of a token to its latents: {} a token on one thread; of the median \
             encode, caches hot: {}",
            shape.name,
            duration(first.token_ns),
            of.collect::<Vec<_>>().join(", ")
        );
    }
    out
}

/// Machine, versions, method.
fn preamble(report: &Report) -> String {
    let machine = &report.machine;
    let mut out = String::new();
    let mut line = |text: String| {
        let _ = writeln!(out, "- {text}");
    };
    line(format!(
        "{}, {} cores, {:.0} GB of memory, last-level cache {} MB as told by the system",
        machine.cpu,
        machine.cores,
        machine.memory as f64 / 1e9,
        machine.last_level_cache >> 20
    ));
    line(format!("{}; instruction set {}", report.versions.join("; "), machine.isa));
    if !machine.environment.is_empty() {
        line(format!("environment: {}", machine.environment.join(", ")));
    }
    for shape in &report.shapes {
        line(format!(
            "{}: d {}, h {}, m {}, n {}, so F {} latents from {} rows; K {}",
            shape.name,
            shape.d_model,
            shape.heads,
            shape.base,
            shape.extension,
            grouped(shape.kron().latents() as u64),
            grouped(shape.kron().rows() as u64),
            report.k
        ));
    }
    let mut threads: Vec<usize> = report.peaks.iter().map(|peak| peak.threads).collect();
    threads.dedup();
    for threads in threads {
        let of = report.peaks.iter().filter(|peak| peak.threads == threads);
        let of: Vec<_> = of.map(|peak| format!("{} {:.0}", peak.unit.name(), peak.gigaops_per_second)).collect();
        line(format!("peaks on {threads} threads, Gop/s: {}", of.join(", ")));
    }
    line(format!(
        "{} rounds in which the encoders take turns of {:.2} s; caches are flushed by reading {} MB",
        report.effort.rounds,
        report.effort.turn_seconds,
        report.flushed_bytes >> 20
    ));
    line(
        "others: cores that other processes kept busy meanwhile; with more than a few hundredths of them, figures are \
         disturbed, p99 most"
            .to_owned(),
    );
    line(
        "GB/s: bytes of weights that a call reads at least once over the median, those of the int8 copy and of what is looked \
         at closer where it is screened; \"of read\": against the bandwidth measured beside it"
            .to_owned(),
    );
    line(
        "Gop/s: 2 x tokens x rows x d over the median; \"of peak\": that, times as many products of planes as each weight \
         takes, against the peak of what multiplies (\"by\"); the floor of a call is what takes longer, reading or \
         multiplying, so the larger of \"of read\" and \"of peak\" is the fraction of the floor: the first at batch 1"
            .to_owned(),
    );
    out.push('\n');
    out
}

/// A Markdown table whose columns line up; the first row is its head.
pub(super) fn aligned<R: AsRef<[String]>>(rows: &[R]) -> String {
    let columns = rows.first().map_or(0, |row| row.as_ref().len());
    let width = |column: usize| rows.iter().map(|row| row.as_ref()[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut out = String::new();
    for (at, row) in rows.iter().enumerate() {
        for (cell, &width) in row.as_ref().iter().zip(&widths) {
            let _ = write!(out, "| {cell:<width$} ");
        }
        out += "|\n";
        if at == 0 {
            for width in &widths {
                let _ = write!(out, "|{:-<1$}", "", width + 2);
            }
            out += "|\n";
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_and_columns() {
        assert_eq!([1234.0, 5.678e6, 2.5e8].map(duration), ["1.2 us", "5.68 ms", "250 ms"]);
        let table = aligned(&[["a".to_owned(), "bb".to_owned()], ["ccc".to_owned(), "d".to_owned()]]);
        assert_eq!(table, "| a   | bb |\n|-----|----|\n| ccc | d  |\n");
    }
}
