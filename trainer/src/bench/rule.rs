//! Whether the rule by which the encoder chooses its path chose the faster one, from the figures of one run.

use super::contender::{EXACT, FULL, SCREENED};
use super::table::duration;
use super::{Caches, Cell};
use serde::Serialize;
use std::fmt::Write as _;

/// Choices whose times differ by less are both right: as much as medians differ from run to run.
const ALIKE: f64 = 1.05;

/// A choice of path in one situation.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct PathChoice {
    /// Name of the shape.
    pub shape: String,
    /// Threads.
    pub threads: usize,
    /// State of the caches.
    pub caches: Caches,
    /// Tokens of a call.
    pub batch: usize,
    /// What was chosen: to screen, or to compute all rows.
    pub screens: bool,
    /// Nanoseconds of an encoder that always screens, median.
    pub screened_ns: f64,
    /// Of one that computes all rows.
    pub full_ns: f64,
    /// Whether the choice is the faster one, or as fast within a twentieth.
    pub right: bool,
}

/// A choice of threads in one situation.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ThreadChoice {
    /// Name of the shape.
    pub shape: String,
    /// State of the caches.
    pub caches: Caches,
    /// Tokens of a call.
    pub batch: usize,
    /// Threads that the encoder was given.
    pub given: usize,
    /// Threads that it used.
    pub used: usize,
    /// Nanoseconds, median.
    pub ns: f64,
    /// The fewer threads that were fastest of all fewer, and their nanoseconds.
    pub fewer: (usize, f64),
    /// Whether none fewer were faster by more than a twentieth.
    pub right: bool,
}

fn of<'a>(cells: &'a [Cell], cell: &Cell, contender: &str) -> Option<&'a Cell> {
    let situation = |c: &Cell| (c.shape.clone(), c.threads, c.caches, c.batch);
    cells.iter().find(|other| other.contender == contender && situation(other) == situation(cell))
}

/// The choice of path in each situation in which all that it takes was measured.
#[must_use]
pub fn path_choices(cells: &[Cell]) -> Vec<PathChoice> {
    let mut choices = Vec::new();
    for cell in cells.iter().filter(|cell| cell.contender == EXACT) {
        let (Some(screened), Some(full), Some(screens)) =
            (of(cells, cell, SCREENED), of(cells, cell, FULL), cell.screened)
        else {
            continue;
        };
        let (screened_ns, full_ns) = (screened.times.median_ns, full.times.median_ns);
        let (chosen, other) = if screens { (screened_ns, full_ns) } else { (full_ns, screened_ns) };
        choices.push(PathChoice {
            shape: cell.shape.clone(),
            threads: cell.threads,
            caches: cell.caches,
            batch: cell.batch,
            screens,
            screened_ns,
            full_ns,
            right: chosen <= other * ALIKE,
        });
    }
    choices
}

/// The choice of threads in each situation that was measured with fewer as well.
#[must_use]
pub fn thread_choices(cells: &[Cell]) -> Vec<ThreadChoice> {
    let mut choices = Vec::new();
    for cell in cells.iter().filter(|cell| cell.contender == EXACT) {
        let same = |c: &&Cell| {
            c.contender == EXACT && c.shape == cell.shape && c.caches == cell.caches && c.batch == cell.batch
        };
        let fewer = cells.iter().filter(same).filter(|c| c.threads < cell.threads);
        let fewer = fewer.map(|c| (c.threads, c.times.median_ns)).min_by(|a, b| a.1.total_cmp(&b.1));
        let (Some(fewer), Some(used)) = (fewer, cell.threads_used) else { continue };
        choices.push(ThreadChoice {
            shape: cell.shape.clone(),
            caches: cell.caches,
            batch: cell.batch,
            given: cell.threads,
            used,
            ns: cell.times.median_ns,
            fewer,
            right: cell.times.median_ns <= fewer.1 * ALIKE,
        });
    }
    choices
}

/// What the choices come to, as lines of a list.
#[must_use]
pub fn markdown(rule: &str, paths: &[PathChoice], threads: &[ThreadChoice]) -> String {
    let mut out = format!("- the rule of \"{EXACT}\": {rule}\n");
    if !paths.is_empty() {
        let right = paths.iter().filter(|choice| choice.right).count();
        let _ = writeln!(
            out,
            "- path: in {right} of {} situations it chose the faster one, or one as fast within 5 %",
            paths.len()
        );
    }
    for choice in paths.iter().filter(|choice| !choice.right) {
        let _ = writeln!(
            out,
            "  - not for {}, {} threads, {}, batch {}: {} screened, {} in full; it chose {}",
            choice.shape,
            choice.threads,
            choice.caches.name(),
            choice.batch,
            duration(choice.screened_ns),
            duration(choice.full_ns),
            if choice.screens { "to screen" } else { "not to" }
        );
    }
    if !threads.is_empty() {
        let right = threads.iter().filter(|choice| choice.right).count();
        let _ = writeln!(
            out,
            "- threads: in {right} of {} situations none fewer than those given were faster by more than 5 %",
            threads.len()
        );
    }
    for choice in threads.iter().filter(|choice| !choice.right) {
        let _ = writeln!(
            out,
            "  - not for {}, {}, batch {}: {} given {} threads, of which it used {}; {} given {}",
            choice.shape,
            choice.caches.name(),
            choice.batch,
            duration(choice.ns),
            choice.given,
            choice.used,
            duration(choice.fewer.1),
            choice.fewer.0
        );
    }
    out
}

#[cfg(test)]
mod tests {
    use super::super::measure::Times;
    use super::*;

    fn cell(contender: &str, threads: usize, screened: Option<bool>, median_ns: f64) -> Cell {
        Cell {
            shape: "S9".to_owned(),
            threads,
            caches: Caches::Hot,
            batch: 8,
            contender: contender.to_owned(),
            times: Times { median_ns, best_ns: median_ns, p99_ns: median_ns, calls: 1 },
            p99_over_median: 1.0,
            others: None,
            weight_bytes: 1,
            gigabytes_per_second: 1.0,
            share_of_read: None,
            gigaops_per_second: None,
            products: 1,
            unit: None,
            share_of_peak: None,
            screened,
            threads_used: screened.map(|_| threads),
            ratio: None,
            ratio_of_best: None,
        }
    }

    #[test]
    fn wrong_choices_are_told() {
        let cells = |screens: bool, two: f64| {
            vec![
                cell(EXACT, 1, Some(screens), 100.0),
                cell(SCREENED, 1, Some(true), 100.0),
                cell(FULL, 1, Some(false), 150.0),
                cell(EXACT, 2, Some(screens), two),
            ]
        };
        let good = cells(true, 60.0);
        let (paths, threads) = (path_choices(&good), thread_choices(&good));
        assert_eq!((paths.len(), threads.len()), (1, 1), "with two threads the forced paths were not measured");
        let text = markdown("so and so", &paths, &threads);
        assert!(
            text.contains("exact\": so and so") && text.contains("in 1 of 1") && !text.contains("not for"),
            "{text}"
        );

        let bad = cells(false, 130.0);
        let (paths, threads) = (path_choices(&bad), thread_choices(&bad));
        assert!(!paths[0].right && !threads[0].right && threads[0].fewer == (1, 100.0));
        let text = markdown("so and so", &paths, &threads);
        assert!(text.contains("0.1 us screened, 0.1 us in full; it chose not to"), "{text}");
        assert_eq!(text.matches("in 0 of 1").count(), 2, "{text}");
        // As fast within 5 %.
        assert!(
            path_choices(&[
                cell(EXACT, 1, Some(true), 1.0),
                cell(SCREENED, 1, None, 104.0),
                cell(FULL, 1, None, 100.0)
            ])[0]
                .right
        );
    }
}
