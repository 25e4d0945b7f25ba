//! Line plots on two logarithmic axes, as one SVG file each.

use std::fmt::Write as _;

const WIDTH: f64 = 820.0;
const HEIGHT: f64 = 420.0;
/// Left, top, right, bottom.
const MARGIN: [f64; 4] = [74.0, 46.0, 316.0, 54.0];
/// Told apart by most eyes, on white.
const COLOURS: [&str; 6] = ["#0072b2", "#d55e00", "#e69f00", "#009e73", "#cc79a7", "#666666"];

/// The pattern of line `at`: those that colours no longer tell apart are broken.
fn dashes(at: usize) -> &'static str {
    if at < COLOURS.len() { "" } else { " stroke-dasharray=\"6 4\"" }
}

/// A line: its name and points, both coordinates positive.
pub(super) struct Line {
    pub(super) name: String,
    pub(super) points: Vec<(f64, f64)>,
}

/// A plot of some lines over one axis.
pub(super) struct Plot {
    pub(super) title: String,
    pub(super) x_name: String,
    pub(super) y_name: String,
    pub(super) lines: Vec<Line>,
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

/// `16384` as `16k`, where that is exact enough to read.
fn short(value: f64) -> String {
    match value {
        v if v >= 1024.0 && v % 1024.0 == 0.0 => format!("{}k", v / 1024.0),
        v if v >= 1.0 => format!("{v}"),
        v => format!("{v:.3}").trim_end_matches('0').to_owned(),
    }
}

/// Powers of ten, with 2 and 5 between, inside `low..=high`.
fn decades(low: f64, high: f64) -> Vec<f64> {
    let range = low.log10().floor() as i32..=high.log10().ceil() as i32;
    let each = range.flat_map(|e| [1.0, 2.0, 5.0].map(|s| s * 10_f64.powi(e)));
    each.filter(|v| (low * 0.999..=high * 1.001).contains(v)).collect()
}

impl Plot {
    /// The file; nothing where there is no point.
    pub(super) fn svg(&self) -> Option<String> {
        let points = || self.lines.iter().flat_map(|line| &line.points);
        points().next()?;
        let range = |of: fn(&(f64, f64)) -> f64, margin: f64| {
            let (low, high) = points().map(of).fold((f64::INFINITY, 0.0_f64), |(l, h), v| (l.min(v), h.max(v)));
            (low / margin, high * margin)
        };
        let ((x_low, x_high), (y_low, y_high)) = (range(|p| p.0, 1.1), range(|p| p.1, 1.25));
        let [left, top, right, bottom] = MARGIN;
        let share = |v: f64, low: f64, high: f64| (v / low).ln() / (high / low).ln();
        let x = |v: f64| left + share(v, x_low, x_high) * (WIDTH - left - right);
        let y = |v: f64| HEIGHT - bottom - share(v, y_low, y_high) * (HEIGHT - top - bottom);

        let mut out = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" width=\"{WIDTH}\" height=\"{HEIGHT}\" \
             font-family=\"sans-serif\" font-size=\"12\">\n<rect width=\"100%\" height=\"100%\" fill=\"#fff\"/>\n\
             <text x=\"{left}\" y=\"24\" font-size=\"15\" font-weight=\"bold\">{}</text>\n",
            escape(&self.title)
        );
        let (x_end, y_end) = (WIDTH - right, HEIGHT - bottom);
        for tick in decades(y_low, y_high) {
            let at = y(tick);
            let _ = writeln!(
                out,
                "<path d=\"M{left} {at:.1}H{x_end}\" stroke=\"#ddd\"/><text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
                left - 8.0,
                at + 4.0,
                short(tick)
            );
        }
        let mut ticks: Vec<f64> = points().map(|p| p.0).collect();
        ticks.sort_by(f64::total_cmp);
        ticks.dedup();
        for tick in ticks {
            let at = x(tick);
            let _ = writeln!(
                out,
                "<path d=\"M{at:.1} {y_end}v5\" stroke=\"#333\"/><text x=\"{at:.1}\" y=\"{}\" text-anchor=\"middle\">{}</text>",
                y_end + 19.0,
                short(tick)
            );
        }
        let _ = writeln!(
            out,
            "<path d=\"M{left} {top}V{y_end}H{x_end}\" fill=\"none\" stroke=\"#333\"/>\n\
             <text x=\"{}\" y=\"{}\" text-anchor=\"middle\">{}</text>\n\
             <text transform=\"translate(18 {}) rotate(-90)\" text-anchor=\"middle\">{}</text>",
            (left + x_end) / 2.0,
            HEIGHT - 14.0,
            escape(&self.x_name),
            (top + y_end) / 2.0,
            escape(&self.y_name)
        );
        // Names stand beside the ends of their lines, moved apart where those meet.
        let mut labels: Vec<(f64, usize)> = Vec::new();
        for (at, line) in self.lines.iter().enumerate() {
            let colour = COLOURS[at % COLOURS.len()];
            let mut path = String::new();
            for (n, point) in line.points.iter().enumerate() {
                let _ = write!(path, "{}{:.1} {:.1}", if n == 0 { "M" } else { "L" }, x(point.0), y(point.1));
            }
            let _ = writeln!(
                out,
                "<path d=\"{path}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\"{}/>",
                dashes(at)
            );
            for point in &line.points {
                let _ = writeln!(
                    out,
                    "<circle cx=\"{:.1}\" cy=\"{:.1}\" r=\"3.5\" fill=\"{colour}\"><title>{}: {} at {}</title></circle>",
                    x(point.0),
                    y(point.1),
                    escape(&line.name),
                    super::table::duration(point.1 * 1e6),
                    short(point.0)
                );
            }
            labels.extend(line.points.last().map(|last| (y(last.1), at)));
        }
        labels.sort_by(|a, b| a.0.total_cmp(&b.0));
        let mut least = top;
        for (at, line) in labels {
            let place = at.max(least);
            least = place + 15.0;
            let (colour, name) = (COLOURS[line % COLOURS.len()], escape(&self.lines[line].name));
            let _ = writeln!(
                out,
                "<path d=\"M{} {place:.1}h22\" stroke=\"{colour}\" stroke-width=\"2\"{}/><text x=\"{}\" y=\"{:.1}\" fill=\"{colour}\">{name}</text>",
                x_end + 8.0,
                dashes(line),
                x_end + 36.0,
                place + 4.0
            );
        }
        out += "</svg>\n";
        Some(out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plots_hold_their_points() {
        let line = |name: &str, points: &[(f64, f64)]| Line { name: name.to_owned(), points: points.to_vec() };
        let mut plot = Plot {
            title: "a < b".to_owned(),
            x_name: "x".to_owned(),
            y_name: "y".to_owned(),
            lines: vec![line("one", &[(1024.0, 0.5), (4096.0, 20.0)]), line("two", &[(1024.0, 0.5)])],
        };
        let svg = plot.svg().unwrap();
        assert_eq!(svg.matches("<circle").count(), 3);
        assert!(svg.contains("a &lt; b") && svg.contains(">4k<") && svg.contains(">10<") && svg.contains(">0.5<"));
        assert!(!svg.contains("NaN") && !svg.contains("inf"));
        plot.lines.clear();
        assert!(plot.svg().is_none());
    }
}
