//! Charts as inline SVG. The drawing stretches with the page; axis labels are HTML beside it, so that their size does not.

use super::page::escape;
use std::fmt::Write as _;

/// Extent of a drawing in its own units, both ways; the page stretches it.
const SIZE: f64 = 1000.0;
/// More points than this are averaged in groups: nobody sees them, and the page stays small.
const MOST_POINTS: usize = 500;

/// One line of a chart.
pub(super) struct Series<'a> {
    /// Name in the legend.
    pub(super) name: &'a str,
    /// Class that gives it its colour: `a` or `b`.
    pub(super) class: &'a str,
    /// (x, y); points that are not finite interrupt the line.
    pub(super) points: Vec<(f64, f64)>,
    /// Whether each point is marked: for few and measured ones.
    pub(super) marked: bool,
}

/// A line chart over training steps.
pub(super) struct LineChart<'a> {
    pub(super) title: &'a str,
    /// One sentence on what is shown.
    pub(super) caption: &'a str,
    pub(super) series: Vec<Series<'a>>,
    /// Logarithmic y, where all values are positive.
    pub(super) log: bool,
    /// What the y axis must include or not go beyond.
    pub(super) low: Option<f64>,
    pub(super) high: Option<f64>,
    pub(super) format: fn(f64) -> String,
}

/// A linear or logarithmic axis.
struct Axis {
    low: f64,
    high: f64,
    log: bool,
}

impl Axis {
    /// Where `value` lies, 0 to 1.
    fn share(&self, value: f64) -> f64 {
        let at = |v: f64| if self.log { v.ln() } else { v };
        (at(value) - at(self.low)) / (at(self.high) - at(self.low))
    }

    /// Round numbers on the axis, some four to eight of them.
    fn ticks(&self) -> Vec<f64> {
        let ratio = self.high / self.low;
        if self.log && ratio > 4.0 {
            let steps: &[f64] = match ratio {
                r if r > 2000.0 => &[1.0],
                r if r > 20.0 => &[1.0, 2.0, 5.0],
                _ => &[1.0, 1.5, 2.0, 3.0, 5.0, 7.0],
            };
            let decades = self.low.log10().floor() as i32..=self.high.log10().ceil() as i32;
            let each = decades.flat_map(|e| steps.iter().map(move |s| s * 10_f64.powi(e)));
            return each.filter(|t| (self.low..=self.high).contains(t)).collect();
        }
        let raw = (self.high - self.low) / 5.0;
        let unit = 10_f64.powf(raw.log10().floor());
        let step = [1.0, 2.0, 2.5, 5.0, 10.0].into_iter().map(|s| s * unit).find(|s| *s >= raw * 0.999).unwrap_or(raw);
        let first = (self.low / step - 1e-9).ceil() as i64;
        let last = (self.high / step + 1e-9).floor() as i64;
        (first..=last).map(|n| n as f64 * step).collect()
    }
}

/// Averages neighbouring points, so that at most [`MOST_POINTS`] are left. The last point always stays.
fn thinned(points: &[(f64, f64)]) -> Vec<(f64, f64)> {
    let group = points.len().div_ceil(MOST_POINTS).max(1);
    let mean = |part: &[(f64, f64)]| {
        let n = part.len() as f64;
        let sum = part.iter().fold((0.0, 0.0), |sum, p| (sum.0 + p.0, sum.1 + p.1));
        (sum.0 / n, sum.1 / n)
    };
    let mut out: Vec<_> = points.chunks(group).map(mean).collect();
    if group > 1 {
        out.extend(points.last());
    }
    out
}

impl LineChart<'_> {
    /// The chart as HTML; nothing where no series has a finite point.
    pub(super) fn html(&self) -> String {
        let series: Vec<_> = self.series.iter().map(|s| (s, thinned(&s.points))).collect();
        let all = || series.iter().flat_map(|(_, p)| p).filter(|(x, y)| x.is_finite() && y.is_finite());
        if all().next().is_none() {
            return String::new();
        }
        let log = self.log && all().all(|(_, y)| *y > 0.0);
        let range = |of: &dyn Fn(&(f64, f64)) -> f64| {
            all().map(of).fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), v| (low.min(v), high.max(v)))
        };
        let (x_low, x_high) = range(&|p| p.0);
        let (mut low, mut high) = range(&|p| p.1);
        if let Some(bound) = self.low {
            low = bound;
        }
        if let Some(bound) = self.high {
            high = bound;
        }
        // A flat or empty range still needs an extent.
        if high <= low {
            high = low + low.abs().max(1e-3) * 0.1;
        } else if log {
            (low, high) = (low / 1.05, high * 1.05);
        } else {
            let margin = (high - low) * 0.04;
            (low, high) = (
                if self.low.is_some() { low } else { low - margin },
                if self.high.is_some() { high } else { high + margin },
            );
        }
        let x = Axis { low: x_low.min(0.0), high: x_high.max(x_low.min(0.0) + 1.0), log: false };
        let y = Axis { low, high, log };

        let mut plot = Plot::default();
        for tick in y.ticks() {
            plot.y_tick(y.share(tick), &(self.format)(tick));
        }
        for tick in x.ticks() {
            plot.x_tick(x.share(tick), &short(tick));
        }
        let mut said = Vec::new();
        for (s, points) in &series {
            let mut path = String::new();
            let mut down = false;
            for &(px, py) in points {
                if !(px.is_finite() && py.is_finite()) {
                    down = false;
                    continue;
                }
                let (px, py) = (x.share(px) * SIZE, (1.0 - y.share(py).clamp(-1.0, 2.0)) * SIZE);
                let _ = write!(path, "{}{px:.1} {py:.1}", if down { 'L' } else { 'M' });
                down = true;
            }
            let _ = write!(plot.svg, "<path class=\"line {}\" d=\"{path}\"/>", s.class);
            // So few points hardly make a line; one makes none at all.
            if s.marked || points.len() < 4 {
                // Lines of no length with round ends: dots that stay round however the drawing is stretched.
                for &(px, py) in points.iter().filter(|(px, py)| px.is_finite() && (0.0..=1.0).contains(&y.share(*py)))
                {
                    let (at_x, at_y) = (x.share(px) * SIZE, (1.0 - y.share(py)) * SIZE);
                    let title = escape(&format!("{}, step {}: {}", s.name, short(px), (self.format)(py)));
                    let _ = write!(
                        plot.dots,
                        "<path class=\"dot {}\" d=\"M{at_x:.1} {at_y:.1}h.01\"><title>{title}</title></path>",
                        s.class
                    );
                }
            }
            if let Some((_, last)) = points.iter().rev().find(|p| p.1.is_finite()) {
                said.push(format!("{} ends at {}", s.name, (self.format)(*last)));
            }
        }
        let legend = if self.series.len() < 2 {
            String::new()
        } else {
            let each = self.series.iter().filter(|s| !s.points.is_empty());
            each.map(|s| format!("<span><i class=\"{}\"></i>{}</span>", s.class, escape(s.name))).collect()
        };
        plot.figure(self.title, &legend, self.caption, &format!("{}: {}", self.title, said.join(", ")), "step")
    }
}

/// What stands in a plot: the drawing, and labels beside it.
#[derive(Default)]
struct Plot {
    /// Lines and bars, cut at the edges.
    svg: String,
    /// Marks, whole at the edges too.
    dots: String,
    labels: String,
}

impl Plot {
    fn y_tick(&mut self, share: f64, label: &str) {
        let at = (1.0 - share) * SIZE;
        let _ = write!(self.svg, "<path class=\"grid\" d=\"M0 {at:.1}H{SIZE}\"/>");
        let _ =
            write!(self.labels, "<span class=\"y\" style=\"top:{:.2}%\">{}</span>", at / SIZE * 100.0, escape(label));
    }

    fn x_tick(&mut self, share: f64, label: &str) {
        let _ = write!(self.labels, "<span class=\"x\" style=\"left:{:.2}%\">{}</span>", share * 100.0, escape(label));
    }

    fn figure(&self, title: &str, legend: &str, caption: &str, said: &str, x_name: &str) -> String {
        format!(
            "<figure class=\"chart\"><div class=\"head\"><h3>{}</h3><div class=\"legend\">{legend}</div></div>\
             <div class=\"plot\"><svg viewBox=\"0 0 {SIZE} {SIZE}\" preserveAspectRatio=\"none\" role=\"img\" aria-label=\"{}\">\
             <svg width=\"{SIZE}\" height=\"{SIZE}\">{}</svg>{}</svg>{}</div><div class=\"axis\">{}</div><figcaption>{}</figcaption></figure>\n",
            escape(title),
            escape(said),
            self.svg,
            self.dots,
            self.labels,
            escape(x_name),
            escape(caption),
        )
    }
}

/// A bar of a bar chart.
pub(super) struct Bar {
    pub(super) value: f64,
    /// What it stands for, read when the pointer rests on it.
    pub(super) title: String,
}

/// A chart of bars side by side, from 0 up.
pub(super) struct BarChart<'a> {
    pub(super) title: &'a str,
    pub(super) caption: &'a str,
    pub(super) x_name: &'a str,
    pub(super) bars: Vec<Bar>,
    /// Labels under the bars: (place among them, 0 to their number; text).
    pub(super) x_labels: Vec<(f64, String)>,
    /// A line across, to compare with: value and name.
    pub(super) reference: Option<(f64, &'a str)>,
    pub(super) format: fn(f64) -> String,
}

impl BarChart<'_> {
    /// The chart as HTML; nothing without bars.
    pub(super) fn html(&self) -> String {
        let most = self.bars.iter().map(|b| b.value).chain(self.reference.map(|r| r.0)).fold(0.0, f64::max);
        if self.bars.is_empty() || most <= 0.0 {
            return String::new();
        }
        let y = Axis { low: 0.0, high: most * 1.04, log: false };
        let mut plot = Plot::default();
        for tick in y.ticks() {
            plot.y_tick(y.share(tick), &(self.format)(tick));
        }
        let count = self.bars.len() as f64;
        let width = SIZE / count;
        // Gaps between few bars; many overlap a little, so that no seam shows in their silhouette.
        let gap = if self.bars.len() <= 64 { width * 0.12 } else { -width };
        for (at, bar) in self.bars.iter().enumerate() {
            let height = y.share(bar.value) * SIZE;
            let _ = write!(
                plot.svg,
                "<rect class=\"bar\" x=\"{:.2}\" y=\"{:.2}\" width=\"{:.2}\" height=\"{height:.2}\"><title>{}</title></rect>",
                at as f64 * width + gap.max(0.0) / 2.0,
                SIZE - height,
                width - gap,
                escape(&bar.title),
            );
        }
        let mut legend = String::new();
        if let Some((value, name)) = self.reference {
            let at = (1.0 - y.share(value)) * SIZE;
            let _ = write!(plot.svg, "<path class=\"line b dashed\" d=\"M0 {at:.1}H{SIZE}\"/>");
            legend = format!("<span><i class=\"b\"></i>{}</span>", escape(name));
        }
        for (place, label) in &self.x_labels {
            plot.x_tick(place / count, label);
        }
        plot.figure(self.title, &legend, self.caption, &format!("{}. {}", self.title, self.caption), self.x_name)
    }
}

/// A number for an axis: 1,500 as `1.5k`.
pub(super) fn short(value: f64) -> String {
    let (scaled, unit) = match value.abs() {
        v if v >= 1e9 => (value / 1e9, "G"),
        v if v >= 1e6 => (value / 1e6, "M"),
        v if v >= 1e3 => (value / 1e3, "k"),
        _ => (value, ""),
    };
    let text = format!("{scaled:.2}");
    let text = text.trim_end_matches('0').trim_end_matches('.');
    format!("{text}{unit}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chart(points: Vec<(f64, f64)>, log: bool) -> String {
        let series = vec![Series { name: "<s>", class: "a", points, marked: true }];
        LineChart { title: "t", caption: "c", series, log, low: None, high: None, format: short }.html()
    }

    #[test]
    fn ticks_are_round_and_inside() {
        for (low, high, log) in [
            (0.0, 1.0, false),
            (0.61, 0.78, false),
            (1e-4, 3.0, true),
            (0.4, 0.9, true),
            (0.23, 1.1, true),
            (0.5, 0.6, true),
            (1e-9, 1.0, true),
            (0.0, 137.0, false),
        ] {
            let axis = Axis { low, high, log };
            let ticks = axis.ticks();
            assert!((3..=12).contains(&ticks.len()), "{low} {high}: {ticks:?}");
            assert!(ticks.iter().all(|t| (-0.01..=1.01).contains(&axis.share(*t))), "{ticks:?}");
        }
        assert_eq!(
            Axis { low: 0.0, high: 1.0, log: false }.ticks(),
            [0.0, 0.2, 0.4, 0.6, 0.8, 1.0].map(|v: f64| (v * 5.0).round() * 0.2)
        );
    }

    #[test]
    fn hard_inputs_make_sound_drawings() {
        for points in [
            vec![(0.0, 1.0)],
            vec![(0.0, 0.0), (1.0, 0.0)],
            vec![(0.0, f64::NAN), (1.0, 2.0), (2.0, f64::INFINITY), (3.0, 4.0)],
            (0..5000).map(|n| (f64::from(n), f64::from(n) + 1.0)).collect(),
        ] {
            for log in [false, true] {
                let html = chart(points.clone(), log);
                assert!(
                    html.contains("<path class=\"line a\" d=\"M") && !html.contains("NaN") && !html.contains("inf"),
                    "{html}"
                );
                assert!(html.contains("&lt;s&gt;") && !html.contains("<s>"));
                assert!(html.len() < 200_000);
            }
        }
        assert_eq!(chart(vec![(1.0, f64::NAN)], false), "");
        assert_eq!(chart(Vec::new(), true), "");
    }

    #[test]
    fn short_numbers() {
        assert_eq!([0.0, 0.25, 1500.0, 2e6, 1e9].map(short), ["0", "0.25", "1.5k", "2M", "1G"]);
    }
}
