//! The page around the charts.

use super::RunReport;
use super::chart::{Bar, BarChart, LineChart, Series, short};
use crate::eval::Evaluation;
use crate::examples::LatentExamples;
use crate::terminal::{grouped, percent, visible};
use std::fmt::Write as _;

const STYLE: &str = include_str!("style.css");

/// Text for HTML, in elements and in quoted attributes alike. Control characters are made visible.
pub(super) fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in visible(text).chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            c => out.push(c),
        }
    }
    out
}

/// The whole page.
pub(super) fn html(report: &RunReport) -> String {
    let title = escape(&report.title);
    let mut out = format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <meta name=\"color-scheme\" content=\"light dark\">\n<title>{title}</title>\n<style>\n{STYLE}</style>\n</head>\n\
         <body>\n<main>\n<header><h1>{title}</h1>{}</header>\n",
        subtitle(report)
    );
    out += &notes(report);
    out += &tiles(report);
    out += &evaluations(report);
    out += &section("Training", &training(report));
    out += &section("How the latents are used", &usage(report));
    out += &examples(&report.examples);
    out += &config(report);
    out += "</main>\n</body>\n</html>\n";
    out
}

fn section(title: &str, charts: &str) -> String {
    if charts.is_empty() {
        String::new()
    } else {
        format!("<section><h2>{title}</h2><div class=\"charts\">{charts}</div></section>\n")
    }
}

fn subtitle(report: &RunReport) -> String {
    let Some(last) = report.curve.last() else { return String::new() };
    format!(
        "<p>{} steps, {} tokens, {} of training, {} tokens a second at the end</p>",
        grouped(last.step),
        grouped(last.tokens),
        duration(last.seconds),
        grouped(last.tokens_per_second.max(0.0).round() as u64)
    )
}

fn duration(seconds: f64) -> String {
    match seconds {
        s if s < 120.0 => format!("{s:.0} s"),
        s if s < 7200.0 => format!("{:.0} min", s / 60.0),
        s => format!("{:.1} h", s / 3600.0),
    }
}

fn notes(report: &RunReport) -> String {
    let each: String = report.notes.iter().map(|note| format!("<p>{}</p>", escape(note))).collect();
    if each.is_empty() { each } else { format!("<div class=\"notes\">{each}</div>\n") }
}

/// A number with `digits` decimals.
fn fixed(value: f64, digits: usize) -> String {
    if value.is_finite() { format!("{value:.digits$}") } else { "n/a".to_owned() }
}

/// The figures that matter, of the held-out data where there are any.
fn tiles(report: &RunReport) -> String {
    let (held_out, of) = match (&report.held_out, &report.train) {
        (Some(e), _) => (e, "held-out"),
        (None, Some(e)) => (e, "training data"),
        (None, None) => return String::new(),
    };
    let mut out = String::from("<div class=\"tiles\">");
    let mut tile = |name: &str, value: &str, about: &str, class: &str| {
        let _ = write!(
            out,
            "<div class=\"tile {class}\"><div class=\"name\">{}</div><div class=\"value\">{}</div><div class=\"about\">{}</div></div>",
            escape(name),
            escape(value),
            escape(about)
        );
    };
    let trained = match (&report.held_out, &report.train) {
        (Some(_), Some(train)) => format!("{of}; {} on training data", fixed(train.explained_variance.pooled, 4)),
        _ => of.to_owned(),
    };
    tile("Explained variance", &fixed(held_out.explained_variance.pooled, 4), &format!("pooled, {trained}"), "first");
    tile("Per token", &fixed(held_out.explained_variance.per_token_mean, 4), "explained variance, mean of tokens", "");
    tile("L0", &fixed(held_out.l0, 1), "latents a token", "");
    tile("Latents", &grouped(held_out.latents), "in the dictionary", "");
    let dead = format!("{} never fired on {} tokens", grouped(held_out.dead_latents), grouped(held_out.tokens));
    tile("Dead", &percent(held_out.dead_share), &dead, "");
    out + "</div>\n"
}

/// Training and held-out data side by side.
fn evaluations(report: &RunReport) -> String {
    let columns: Vec<(&str, &Evaluation)> = [("Training data", &report.train), ("Held-out data", &report.held_out)]
        .into_iter()
        .filter_map(|(name, e)| e.as_ref().map(|e| (name, e)))
        .collect();
    if columns.is_empty() {
        return String::new();
    }
    let mut out = String::from(
        "<section><h2>The written model</h2><div class=\"scroll\"><table class=\"figures\"><thead><tr><td></td>",
    );
    for (name, _) in &columns {
        let _ = write!(out, "<th scope=\"col\">{name}</th>");
    }
    out += "</tr></thead><tbody>";
    let mut row = |name: &str, of: &dyn Fn(&Evaluation) -> String| {
        let _ = write!(out, "<tr><th scope=\"row\">{name}</th>");
        for (_, e) in &columns {
            let _ = write!(out, "<td>{}</td>", escape(&of(e)));
        }
        out += "</tr>";
    };
    row("Explained variance, pooled", &|e| fixed(e.explained_variance.pooled, 4));
    row("Explained variance, mean of tokens", &|e| fixed(e.explained_variance.per_token_mean, 4));
    row("Fraction of variance unexplained", &|e| fixed(e.fvu, 4));
    row("Mean squared error, raw units", &|e| fixed(e.mse, 5));
    row("L0", &|e| fixed(e.l0, 2));
    row("Dead latents", &|e| format!("{} ({})", grouped(e.dead_latents), percent(e.dead_share)));
    row("Tokens", &|e| grouped(e.tokens));
    if columns.iter().any(|(_, e)| e.non_finite_tokens > 0) {
        row("Tokens left out, not finite", &|e| grouped(e.non_finite_tokens));
    }
    if columns.iter().any(|(_, e)| e.truncated_tokens > 0) {
        row("Tokens cut to max_latents", &|e| grouped(e.truncated_tokens));
    }
    out + "</tbody></table></div></section>\n"
}

fn training(report: &RunReport) -> String {
    let line =
        |of: fn(&super::StepRecord) -> f64| report.curve.iter().map(|p| (p.step as f64, of(p))).collect::<Vec<_>>();
    let held = |of: fn(&Evaluation) -> f64| {
        report.evaluations.iter().map(|p| (p.step as f64, of(&p.evaluation))).collect::<Vec<_>>()
    };
    let both = |train: Vec<(f64, f64)>, held: Vec<(f64, f64)>| {
        let mut series = vec![Series { name: "training batches", class: "a", points: train, marked: false }];
        if !held.is_empty() {
            series.push(Series { name: "held-out", class: "b", points: held, marked: true });
        }
        series
    };
    let variance = both(line(|p| p.explained_variance), held(|e| e.explained_variance.pooled));
    // The first steps may lie far below 0, and would flatten all the rest.
    let least = variance.iter().flat_map(|s| &s.points).map(|p| p.1).fold(f64::INFINITY, f64::min);
    let charts = [
        LineChart {
            title: "Explained variance",
            caption: "Pooled: 1 - SSE / SST. Higher is better; 1 is perfect.",
            series: variance,
            log: false,
            low: Some(if least.is_finite() { (least * 10.0).floor().max(0.0) / 10.0 } else { 0.0 }),
            high: Some(1.0),
            format: |v| fixed(v, 2),
        },
        LineChart {
            title: "Loss",
            caption: "The training loss, in normalised units; logarithmic.",
            series: both(line(|p| p.loss), Vec::new()),
            log: true,
            low: None,
            high: None,
            format: short,
        },
        LineChart {
            title: "Dead latents",
            caption: "Share of latents that have not fired lately (training) or at all (held-out).",
            series: both(line(|p| p.dead_share), held(|e| e.dead_share)),
            log: false,
            low: Some(0.0),
            high: None,
            format: percent_axis,
        },
        LineChart {
            title: "L0",
            caption: "Latents a token. Fewer than K where fewer are positive.",
            series: both(line(|p| p.l0), held(|e| e.l0)),
            log: false,
            low: Some(0.0),
            high: None,
            format: short,
        },
        LineChart {
            title: "Learning rate",
            caption: "The schedule as it was applied.",
            series: both(line(|p| p.learning_rate), Vec::new()),
            log: false,
            low: Some(0.0),
            high: None,
            format: |v| if v == 0.0 { "0".to_owned() } else { format!("{v:.1e}") },
        },
        LineChart {
            title: "Speed",
            caption: "Tokens a second.",
            series: both(line(|p| p.tokens_per_second), Vec::new()),
            log: false,
            low: Some(0.0),
            high: None,
            format: short,
        },
    ];
    charts.iter().map(LineChart::html).collect()
}

/// A share on an axis, in per cent.
fn percent_axis(share: f64) -> String {
    format!("{} %", short(share * 100.0))
}

fn usage(report: &RunReport) -> String {
    let (e, of) = match (&report.held_out, &report.train) {
        (Some(e), _) => (e, "held-out data"),
        (None, Some(e)) => (e, "training data"),
        (None, None) => return String::new(),
    };
    let density = &e.firing_density;
    let first = density.counts.iter().position(|n| *n > 0).unwrap_or(0);
    let last = density.counts.iter().rposition(|n| *n > 0).unwrap_or(0);
    let edge = |at: usize| 10_f64.powf(density.log10_edges[at]);
    let bars = (first..=last).map(|at| Bar {
        value: density.counts[at] as f64,
        title: format!("{} to {}: {} latents", percent(edge(at)), percent(edge(at + 1)), grouped(density.counts[at])),
    });
    let whole = |at: &usize| (density.log10_edges[*at] - density.log10_edges[*at].round()).abs() < 1e-9;
    let x_labels = (first..=last + 1).filter(whole).map(|at| ((at - first) as f64, short_percent(edge(at)))).collect();
    let firing = BarChart {
        title: "Firing density",
        caption: &format!(
            "Latents by the share of tokens on which they fire, {of}. {} never fired.",
            grouped(e.dead_latents)
        ),
        x_name: "share of tokens",
        bars: bars.collect(),
        x_labels,
        reference: None,
        format: short,
    };
    let mut out = firing.html();
    if let Some(heads) = &e.head_usage {
        let count = heads.len();
        let mut sorted: Vec<(usize, f64)> = heads.iter().copied().enumerate().collect();
        sorted.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        let unused = sorted.iter().filter(|(_, share)| *share == 0.0).count();
        // So many that a bar is no pixel wide: neighbours share one.
        let group = count.div_ceil(512);
        let bars = sorted.chunks(group).map(|part| {
            let times = part.iter().map(|(_, share)| share).sum::<f64>() / part.len() as f64 * count as f64;
            let names = if part.len() == 1 { format!("head {}", part[0].0) } else { format!("{} heads", part.len()) };
            Bar { value: times, title: format!("{names}: {times:.2} times its even share") }
        });
        let bars: Vec<_> = bars.collect();
        let places = bars.len() as f64;
        let label = |share: f64| (places * share, grouped((count as f64 * share).round() as u64));
        let chart = BarChart {
            title: "Head usage",
            caption: &format!(
                "Firings of each head relative to an even share, {of}; the busiest first. {} of {} heads unused.",
                grouped(unused as u64),
                grouped(count as u64)
            ),
            x_name: "heads, by use",
            bars,
            x_labels: [0.0, 0.25, 0.5, 0.75, 1.0].map(label).to_vec(),
            reference: Some((1.0, "even share")),
            format: short,
        };
        out += &chart.html();
    }
    out
}

/// A power of ten as a percentage, short enough for an axis.
fn short_percent(share: f64) -> String {
    let text = format!("{:.5}", share * 100.0);
    format!("{} %", text.trim_end_matches('0').trim_end_matches('.'))
}

fn examples(latents: &[LatentExamples]) -> String {
    if latents.is_empty() {
        return String::new();
    }
    let mut out = String::from(
        "<section><h2>The strongest latents</h2>\
         <p class=\"lead\">For each, the tokens that excite it most, marked in their text. The fuller the colour and the \
         longer the bar, the larger the value.</p>\n<div class=\"latents\">",
    );
    for latent in latents {
        let _ = write!(
            out,
            "<article><h3>Latent {}</h3><p class=\"about\">fires on {} of tokens, at most {}</p><ol>",
            latent.latent,
            escape(&percent(latent.firing_rate)),
            fixed(f64::from(latent.max_value), 2)
        );
        for example in &latent.examples {
            let share = f64::from(example.value / latent.max_value);
            let share = if share.is_finite() { share.clamp(0.0, 1.0) } else { 0.0 };
            let _ = write!(
                out,
                "<li style=\"--v:{share:.3}\"><span class=\"value\">{}</span><span class=\"text\">{}<mark>{}</mark>{}</span></li>",
                fixed(f64::from(example.value), 2),
                escape(example.before.trim_start_matches(' ')),
                escape(&example.token),
                escape(&example.after)
            );
        }
        out += "</ol></article>\n";
    }
    out + "</div></section>\n"
}

fn config(report: &RunReport) -> String {
    if report.config.is_empty() {
        return String::new();
    }
    let rows: String = report
        .config
        .iter()
        .map(|(name, value)| format!("<tr><th scope=\"row\">{}</th><td>{}</td></tr>", escape(name), escape(value)))
        .collect();
    format!(
        "<section><h2>Configuration</h2><div class=\"scroll\"><table class=\"config\"><tbody>{rows}</tbody></table></div></section>\n"
    )
}
