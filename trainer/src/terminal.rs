//! Results as text for a terminal: examples with the token marked, bars, the firing-density histogram.
//!
//! Token text comes from whatever the data set was recorded on. It is shown, never obeyed: control characters, escape
//! sequences and direction overrides appear as visible marks.

use crate::eval::FiringDensity;
use crate::examples::{LatentExamples, TokenLatents};
use std::fmt::Write as _;
use std::io::IsTerminal as _;
use unicode_width::{UnicodeWidthChar as _, UnicodeWidthStr as _};

/// Columns of text shown before a token and after it.
const BEFORE: usize = 44;
const AFTER: usize = 28;
/// Columns of a bar.
const BAR: usize = 10;

/// How to write.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Style {
    /// Whether to use colour (ANSI escape sequences).
    pub colour: bool,
}

impl Style {
    /// Colour if standard output is a terminal and the environment variable `NO_COLOR` is unset or empty.
    #[must_use]
    pub fn of_stdout() -> Self {
        let refused = std::env::var_os("NO_COLOR").is_some_and(|v| !v.is_empty());
        Style { colour: std::io::stdout().is_terminal() && !refused }
    }

    fn paint(self, code: &str, text: &str) -> String {
        if self.colour { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }

    /// Bold.
    #[must_use]
    pub fn strong(self, text: &str) -> String {
        self.paint("1", text)
    }

    /// Dim.
    #[must_use]
    pub fn faint(self, text: &str) -> String {
        self.paint("2", text)
    }

    /// The token that a line is about: inverse, or in brackets where there is no colour.
    #[must_use]
    pub fn marked(self, text: &str) -> String {
        if self.colour { format!("\x1b[1;7m{text}\x1b[0m") } else { format!("⟦{text}⟧") }
    }
}

/// Text with everything that would move the cursor or change the terminal's state made visible: `⏎` for a line feed, `⇥`
/// for a tab, control pictures for other control characters, a replacement mark for direction overrides.
#[must_use]
pub fn visible(text: &str) -> String {
    let each = |c: char| match c {
        '\n' => '⏎',
        '\t' => '⇥',
        '\0'..='\x1f' => char::from_u32(0x2400 + c as u32).unwrap_or(char::REPLACEMENT_CHARACTER),
        '\x7f' => '␡',
        '\u{80}'..='\u{9f}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => {
            char::REPLACEMENT_CHARACTER
        }
        c => c,
    };
    text.chars().map(each).collect()
}

/// A bar of `value` out of `full`, `columns` wide, in eighths of a column, padded with spaces.
#[must_use]
pub fn bar(value: f64, full: f64, columns: usize) -> String {
    let share = if full > 0.0 { (value / full).clamp(0.0, 1.0) } else { 0.0 };
    let eighths = (share * (columns * 8) as f64).round() as usize;
    let mut out = "█".repeat(eighths / 8);
    out.extend(["", "▏", "▎", "▍", "▌", "▋", "▊", "▉"].get(eighths % 8).copied());
    let used = eighths.div_ceil(8);
    out + &" ".repeat(columns - used.min(columns))
}

/// The last `columns` of a text, marked where it was cut and padded to that width.
fn last_columns(text: &str, columns: usize) -> String {
    let mut used = 0;
    let kept = text.chars().rev().take_while(|c| {
        used += c.width().unwrap_or(0);
        used < columns
    });
    let kept: String = kept.collect::<Vec<_>>().into_iter().rev().collect();
    let out = if kept.len() < text.len() { format!("…{kept}") } else { kept };
    " ".repeat(columns.saturating_sub(out.width())) + &out
}

/// The first `columns` of a text, marked where it was cut.
fn first_columns(text: &str, columns: usize) -> String {
    let mut used = 0;
    let kept: String = text
        .chars()
        .take_while(|c| {
            used += c.width().unwrap_or(0);
            used < columns
        })
        .collect();
    if kept.len() < text.len() { format!("{kept}…") } else { kept }
}

/// A token in its text; `aligned` puts the tokens of several lines below each other.
fn line(style: Style, before: &str, token: &str, after: &str, aligned: bool) -> String {
    let before = last_columns(&visible(before), BEFORE);
    let before = if aligned { &before } else { before.trim_start() };
    let after = first_columns(&visible(after), AFTER);
    format!("{}{}{}", style.faint(before), style.marked(&visible(token)), style.faint(&after))
}

/// Latents, each with the tokens that excite it most, one a line.
#[must_use]
pub fn latents(latents: &[LatentExamples], style: Style) -> String {
    let mut out = String::new();
    for latent in latents {
        let name = style.strong(&format!("latent {}", latent.latent));
        let _ = writeln!(out, "{name}   fires on {} of tokens", percent(latent.firing_rate));
        for example in &latent.examples {
            let bar = bar(f64::from(example.value), f64::from(latent.max_value), BAR);
            let text = line(style, &example.before, &example.token, &example.after, true);
            let _ = writeln!(out, "  {:>7.2} {bar} {text}", example.value);
        }
        out.push('\n');
    }
    out
}

/// Tokens in their text, each with its strongest latents.
#[must_use]
pub fn tokens(tokens: &[TokenLatents], style: Style) -> String {
    let full = tokens.iter().flat_map(|t| &t.latents).map(|(_, v)| f64::from(*v)).fold(0.0, f64::max);
    let mut out = String::new();
    for token in tokens {
        let _ = writeln!(out, "{}", line(style, &token.before, &token.token, &token.after, false));
        if token.latents.is_empty() {
            let _ = writeln!(out, "    no latent fires");
        }
        for (latent, value) in &token.latents {
            let bar = bar(f64::from(*value), full, BAR);
            let _ = writeln!(out, "    latent {latent:>6} {value:>7.2} {}", bar.trim_end());
        }
        out.push('\n');
    }
    out
}

/// The firing-density histogram: a line for each bin between the lowest and the highest that hold a latent.
#[must_use]
pub fn density(density: &FiringDensity) -> String {
    let full = density.counts.iter().copied().max().unwrap_or(0);
    let first = density.counts.iter().position(|n| *n > 0);
    let last = density.counts.iter().rposition(|n| *n > 0);
    let (Some(first), Some(last)) = (first, last) else { return "  no latent fired\n".to_owned() };
    let mut out = String::new();
    for at in first..=last {
        let (low, high) = (10_f64.powf(density.log10_edges[at]), 10_f64.powf(density.log10_edges[at + 1]));
        let range = format!("{} to {}", percent(low), percent(high));
        let bar = bar(density.counts[at] as f64, full as f64, 40);
        let _ = writeln!(out, "  {range:>22}  {bar} {}", density.counts[at]);
    }
    out
}

/// A share in per cent, to two significant digits below 10 %.
#[must_use]
pub fn percent(share: f64) -> String {
    let value = share * 100.0;
    if !value.is_finite() {
        return "n/a".to_owned();
    }
    let digits = if value == 0.0 { 0 } else { (1.0 - value.abs().log10().floor()).clamp(1.0, 7.0) as usize };
    format!("{value:.digits$} %")
}

/// `1234567` as `1,234,567`.
#[must_use]
pub fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut out = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::examples::Example;

    fn example(before: &str, token: &str, after: &str) -> LatentExamples {
        let (before, token, after) = (before.to_owned(), token.to_owned(), after.to_owned());
        let examples = vec![Example { row: 3, value: 2.0, before, token, after }];
        LatentExamples { latent: 7, firing_rate: 0.0123, max_value: 4.0, examples }
    }

    #[test]
    fn hostile_text_cannot_leave_its_line() {
        let text = latents(&[example("a\x1b[2J\r\n", "\x07\u{9b}31m", "\t\u{202e}x")], Style { colour: false });
        assert_eq!(text.lines().count(), 3, "{text:?}");
        assert!(text.chars().all(|c| c == '\n' || !c.is_control()), "{text:?}");
        assert!(text.contains("a␛[2J␍⏎⟦␇\u{fffd}31m⟧⇥\u{fffd}x"), "{text}");
        assert!(text.contains("fires on 1.2 % of tokens"), "{text}");
    }

    #[test]
    fn lines_are_cut_to_their_columns() {
        let long = "文字".repeat(100);
        let text = latents(&[example(&long, "x", &long), example("short", "x", "")], Style { colour: false });
        let columns: Vec<usize> = text.lines().filter_map(|l| l.find('⟦').map(|at| l[..at].width())).collect();
        assert_eq!(columns.len(), 2);
        assert!(columns[0].abs_diff(columns[1]) <= 1, "{columns:?}\n{text}");
        assert!(text.lines().all(|l| l.width() <= 2 + 8 + BAR + 1 + BEFORE + 3 + AFTER + 1), "{text}");
    }

    #[test]
    fn bars() {
        assert_eq!(bar(1.0, 1.0, 3), "███");
        assert_eq!(bar(0.5, 1.0, 3), "█▌ ");
        assert_eq!(bar(0.0, 0.0, 3), "   ");
        assert_eq!(bar(f64::NAN, 1.0, 2), "  ");
    }

    #[test]
    fn thousands() {
        assert_eq!([0, 999, 1000, 1_234_567].map(grouped), ["0", "999", "1,000", "1,234,567"]);
    }

    #[test]
    fn percents() {
        assert_eq!([0.5, 0.0123, 0.000_012, 1.0, 0.0].map(percent), ["50.0 %", "1.2 %", "0.0012 %", "100.0 %", "0 %"]);
    }
}
