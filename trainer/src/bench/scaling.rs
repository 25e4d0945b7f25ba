//! How time grows: with the number of latents at a fixed number of encoder rows, and with the rows at a fixed number of
//! latents.

use super::contender::SCREENED;
use super::measure::Effort;
use super::plot::{Line, Plot};
use super::{Caches, Options, Peers, READER, Report, Shape, run};
use kronsae::{Error, Result};

/// What is held fixed, and the sweep.
#[derive(Debug, Clone)]
pub struct Sweep {
    /// Name of the file, without its ending.
    pub file: &'static str,
    title: &'static str,
    x_name: &'static str,
    shapes: Vec<Shape>,
    x: fn(&Shape) -> usize,
}

/// The two sweeps at width `d_model`: m = n = 2, 4, 8, 16 at as many heads as the fixed extent asks for.
#[must_use]
pub fn sweeps(d_model: usize) -> [Sweep; 2] {
    let shape = |heads: usize, part: usize| Shape {
        name: format!("h{heads} m{part} n{part}"),
        d_model,
        heads,
        base: part,
        extension: part,
    };
    let parts = [2, 4, 8, 16];
    [
        Sweep {
            file: "scaling-latents",
            title: "Time against latents, 8,192 encoder rows",
            x_name: "latents F = h m n, at h (m + n) = 8,192",
            shapes: parts.map(|part| shape(4096 / part, part)).to_vec(),
            x: |shape| shape.kron().latents(),
        },
        Sweep {
            file: "scaling-rows",
            title: "Time against encoder rows, 32,768 latents",
            x_name: "encoder rows h (m + n), at F = 32,768",
            shapes: parts.map(|part| shape(32_768 / (part * part), part)).to_vec(),
            x: |shape| shape.kron().rows(),
        },
    ]
}

impl Sweep {
    /// What is measured, one after the other.
    #[must_use]
    pub fn shapes(&self) -> &[Shape] {
        &self.shapes
    }
}

/// What a sweep is measured with.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Tokens of a call.
    pub batch: usize,
    /// Threads.
    pub threads: usize,
    /// K.
    pub k: usize,
    /// How much.
    pub effort: Effort,
    /// As [`Options::retries`].
    pub retries: usize,
    /// Contenders, as [`Options::only`].
    pub only: Vec<String>,
}

/// Measures a sweep with hot caches; the report and the plot as SVG.
///
/// # Errors
/// Those of [`run`]; [`kronsae::Status::InvalidArgument`] if nobody was measured.
pub fn measure(
    sweep: &Sweep,
    settings: &Settings,
    peers: &Peers,
    progress: &mut dyn FnMut(&str),
) -> Result<(Report, String)> {
    let options = Options {
        shapes: sweep.shapes.clone(),
        batches: vec![settings.batch],
        threads: vec![settings.threads],
        caches: vec![Caches::Hot],
        k: settings.k,
        effort: settings.effort,
        retries: settings.retries,
        only: settings.only.clone(),
        // Its line would lie on that of the encoder as it chooses, or tell of choices, which is not this plot's subject.
        without: &[SCREENED],
    };
    let report = run(&options, peers, progress)?;
    let mut lines: Vec<Line> = Vec::new();
    for cell in report.cells.iter().filter(|cell| cell.contender != READER) {
        let Some(shape) = sweep.shapes.iter().find(|shape| shape.name == cell.shape) else { continue };
        let point = ((sweep.x)(shape) as f64, cell.times.median_ns / 1e6);
        match lines.iter_mut().find(|line| line.name == cell.contender) {
            Some(line) => line.points.push(point),
            None => lines.push(Line { name: cell.contender.clone(), points: vec![point] }),
        }
    }
    for line in &mut lines {
        line.points.sort_by(|a, b| a.0.total_cmp(&b.0));
    }
    let plot = Plot {
        title: format!("{}, batch {}", sweep.title, settings.batch),
        x_name: sweep.x_name.to_owned(),
        y_name: "median of a call, ms".to_owned(),
        lines,
    };
    let svg = plot.svg().ok_or_else(|| Error::invalid("no encoder was measured: does --only name one?"))?;
    Ok((report, svg))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sweeps_hold_one_extent_fixed() {
        let [latents, rows] = sweeps(64);
        let of = |sweep: &Sweep, f: fn(&Shape) -> usize| sweep.shapes.iter().map(f).collect::<Vec<_>>();
        assert_eq!(of(&latents, |s| s.kron().rows()), [8192; 4]);
        assert_eq!(of(&latents, |s| s.kron().latents()), [8192, 16_384, 32_768, 65_536]);
        assert_eq!(of(&rows, |s| s.kron().latents()), [32_768; 4]);
        assert_eq!(of(&rows, |s| s.kron().rows()), [32_768, 16_384, 8192, 4096]);
    }
}
