//! The two text forms: families, samples, labels, and what must be escaped in them.

use super::{MOST_LABEL_BYTES, MetricsForm};
use crate::monitor::snapshot::Histogram;
use std::fmt::Write;

/// What kind of metric a family is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Counter,
    Gauge,
    Histogram,
    /// Labels that say what something is; the value is 1.
    Info,
}

/// The labels of a sample, written and escaped.
#[derive(Debug, Clone, Default)]
pub(super) struct Labels(String);

impl Labels {
    pub(super) fn none() -> Self {
        Labels::default()
    }

    pub(super) fn of(pairs: &[(&str, &str)]) -> Self {
        pairs.iter().fold(Labels::none(), |labels, (name, value)| labels.and(name, value))
    }

    /// One more. An empty value means the same as no label at all, and is left out.
    pub(super) fn and(mut self, name: &str, value: &str) -> Self {
        if value.is_empty() {
            return self;
        }
        if !self.0.is_empty() {
            self.0.push(',');
        }
        self.0.push_str(name);
        self.0.push_str("=\"");
        let cut = shortened(value);
        escape(cut, true, &mut self.0);
        if cut.len() < value.len() {
            self.0.push('…');
        }
        self.0.push('"');
        self
    }
}

/// At most [`MOST_LABEL_BYTES`] of it, ellipsis included, in whole characters.
fn shortened(value: &str) -> &str {
    if value.len() <= MOST_LABEL_BYTES {
        return value;
    }
    &value[..value.floor_char_boundary(MOST_LABEL_BYTES - '…'.len_utf8())]
}

fn escape(text: &str, quote: bool, out: &mut String) {
    for c in text.chars() {
        match c {
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '"' if quote => out.push_str("\\\""),
            // Legal, but a terminal or an editor may take them for the end of a line or worse.
            c if c.is_control() => out.push('\u{FFFD}'),
            c => out.push(c),
        }
    }
}

/// Writes families in order: [`Writer::family`], then its samples.
pub(super) struct Writer<'a> {
    form: MetricsForm,
    out: &'a mut String,
    family: &'static str,
    /// What precedes the first sample. A family without samples is not mentioned.
    head: String,
}

impl<'a> Writer<'a> {
    pub(super) fn new(form: MetricsForm, out: &'a mut String) -> Self {
        Writer { form, out, family: "", head: String::new() }
    }

    /// Starts a family. `name` is OpenMetrics': without `_total` and `_info`.
    pub(super) fn family(&mut self, name: &'static str, kind: Kind, help: &str) {
        self.family = name;
        self.head.clear();
        let open = self.form == MetricsForm::OpenMetrics;
        // In 0.0.4 the family has its samples' name, and there is no kind of its own for what only says.
        let (suffix, kind) = match kind {
            Kind::Counter => (if open { "" } else { "_total" }, "counter"),
            Kind::Gauge => ("", "gauge"),
            Kind::Histogram => ("", "histogram"),
            Kind::Info if open => ("", "info"),
            Kind::Info => ("_info", "gauge"),
        };
        let mut text = String::new();
        escape(help, open, &mut text);
        let _ = writeln!(self.head, "# HELP {name}{suffix} {text}\n# TYPE {name}{suffix} {kind}");
        if let Some(unit) = ["seconds", "bytes"].iter().find(|unit| open && name.ends_with(**unit)) {
            let _ = writeln!(self.head, "# UNIT {name} {unit}");
        }
    }

    fn sample(&mut self, suffix: &str, labels: &Labels) {
        self.out.push_str(&std::mem::take(&mut self.head));
        self.out.push_str(self.family);
        self.out.push_str(suffix);
        if !labels.0.is_empty() {
            let _ = write!(self.out, "{{{}}}", labels.0);
        }
        self.out.push(' ');
    }

    pub(super) fn info(&mut self, labels: Labels) {
        self.integer("_info", labels, 1);
    }

    #[expect(clippy::needless_pass_by_value, reason = "labels are made for the one sample they are handed to")]
    pub(super) fn integer(&mut self, suffix: &str, labels: Labels, value: u64) {
        self.sample(suffix, &labels);
        let _ = writeln!(self.out, "{value}");
    }

    /// Nothing, for a NaN.
    #[expect(clippy::needless_pass_by_value, reason = "labels are made for the one sample they are handed to")]
    pub(super) fn number(&mut self, suffix: &str, labels: Labels, value: f64) {
        if value.is_nan() {
            return;
        }
        self.sample(suffix, &labels);
        number(value, self.out);
        self.out.push('\n');
    }

    pub(super) fn histogram(&mut self, labels: Labels, of: &Histogram) {
        let mut count = 0;
        for (bucket, observed) in of.counts.iter().enumerate() {
            count += observed;
            let mut bound = String::new();
            number(of.bounds.get(bucket).copied().unwrap_or(f64::INFINITY), &mut bound);
            self.integer("_bucket", labels.clone().and("le", &bound), count);
        }
        if of.counts.len() <= of.bounds.len() {
            // Nothing was observed yet, or the last bucket is missing: the one without end must be there.
            self.integer("_bucket", labels.clone().and("le", "+Inf"), count);
        }
        self.number("_sum", labels.clone(), of.sum);
        self.integer("_count", labels, count);
    }

    pub(super) fn end(self) {
        if self.form == MetricsForm::OpenMetrics {
            self.out.push_str("# EOF\n");
        }
    }
}

/// The shortest form that reads back as the same number; with a point or an exponent, as OpenMetrics wants its bounds, and
/// the same in both forms, so that neither makes series of its own.
fn number(value: f64, out: &mut String) {
    let _ = if value == f64::INFINITY {
        out.write_str("+Inf")
    } else if value == f64::NEG_INFINITY {
        out.write_str("-Inf")
    } else {
        write!(out, "{value:?}")
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_escaped_cut_and_left_out_when_empty() {
        assert_eq!(Labels::of(&[("a", "x\"y\\z\nw"), ("b", ""), ("c", "é")]).0, r#"a="x\"y\\z\nw",c="é""#);
        assert_eq!(Labels::of(&[("a", "\r\u{1b}[2J\0")]).0, "a=\"\u{FFFD}\u{FFFD}[2J\u{FFFD}\"");
        let fits = "x".repeat(MOST_LABEL_BYTES);
        assert_eq!(Labels::of(&[("a", &fits)]).0, format!("a=\"{fits}\""));
        let long = "é".repeat(MOST_LABEL_BYTES);
        let Labels(cut) = Labels::of(&[("a", &long)]);
        assert!(cut.ends_with("é…\"") && cut.len() <= MOST_LABEL_BYTES + 4, "{cut}");
    }

    #[test]
    fn numbers_read_back_and_nan_has_no_sample() {
        for value in [0.0, -0.0, 1.0, 1e-5, 2.5e-7, 1e300, f64::MIN_POSITIVE, f64::INFINITY, f64::NEG_INFINITY] {
            let mut text = String::new();
            number(value, &mut text);
            assert_eq!(text.parse::<f64>().unwrap().to_bits(), value.to_bits(), "{text}");
            assert!(text.contains(['.', 'e', 'I']), "{text}");
        }
        let mut out = String::new();
        let mut writer = Writer::new(MetricsForm::Prometheus, &mut out);
        writer.family("kronsae_x", Kind::Gauge, "x");
        writer.number("", Labels::none(), f64::NAN);
        writer.end();
        assert_eq!(out, "");
    }

    #[test]
    fn a_histogram_is_cumulated_and_always_ends_in_infinity() {
        let write = |bounds: &[f64], counts: &[u64]| {
            let mut out = String::new();
            let mut writer = Writer::new(MetricsForm::OpenMetrics, &mut out);
            writer.family("kronsae_x_seconds", Kind::Histogram, "x");
            let of = Histogram { bounds: bounds.to_vec(), counts: counts.to_vec(), sum: 3.5 };
            writer.histogram(Labels::none(), &of);
            out.split_once("# UNIT kronsae_x_seconds seconds\n").unwrap().1.to_owned()
        };
        assert_eq!(
            write(&[0.001, 1.0], &[2, 0, 5]),
            "kronsae_x_seconds_bucket{le=\"0.001\"} 2\nkronsae_x_seconds_bucket{le=\"1.0\"} 2\n\
             kronsae_x_seconds_bucket{le=\"+Inf\"} 7\nkronsae_x_seconds_sum 3.5\nkronsae_x_seconds_count 7\n"
        );
        assert_eq!(
            write(&[], &[]),
            "kronsae_x_seconds_bucket{le=\"+Inf\"} 0\nkronsae_x_seconds_sum 3.5\nkronsae_x_seconds_count 0\n"
        );
    }
}
