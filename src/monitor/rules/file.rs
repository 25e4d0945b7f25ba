//! A rules file: TOML text -> rules, bound to no model. What is wrong is said with the rule, the line, what was found
//! and what was expected.

use super::{Condition, Level, Rule, Term, Tokens};
use crate::error::{Error, Result};
use crate::monitor::Severity;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::sync::Arc;
use toml::Spanned;

/// The longest file: rules are written by hand.
pub(super) const MOST_BYTES: usize = 4 << 20;
/// The most rules of one file.
pub(super) const MOST_RULES: usize = 4096;
/// The longest window, in tokens.
pub(super) const MOST_WINDOW: u32 = 1024;
/// The deepest nesting of `any` and `all`.
const MOST_DEPTH: usize = 8;
/// The most latents of one rule.
const MOST_LATENTS: usize = 4096;
/// The longest name of a rule: it becomes the value of a label in metrics.
const MOST_NAME: usize = 128;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FileToml {
    #[serde(default)]
    rule: Vec<Spanned<RuleToml>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RuleToml {
    name: Spanned<String>,
    #[serde(default)]
    description: String,
    #[serde(default)]
    severity: Severity,
    sites: Option<Spanned<Vec<String>>>,
    #[serde(default)]
    tokens: Tokens,
    when: Spanned<WhenToml>,
    window: Option<Spanned<WindowToml>>,
    cooldown: Option<Spanned<CooldownToml>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WhenToml {
    latent: Option<u32>,
    above: Option<Spanned<f64>>,
    above_quantile: Option<Spanned<f64>>,
    any: Option<Vec<Spanned<WhenToml>>>,
    all: Option<Vec<Spanned<WhenToml>>>,
    sum: Option<Vec<Spanned<TermToml>>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct TermToml {
    latent: u32,
    weight: Option<Spanned<f64>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WindowToml {
    at_least: Spanned<i64>,
    of_last: Spanned<i64>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct CooldownToml {
    tokens: Option<Spanned<i64>>,
    seconds: Option<Spanned<f64>>,
}

/// All rules of `text`, in its order.
pub(super) fn parse(text: &str) -> Result<Vec<Rule>> {
    if text.len() > MOST_BYTES {
        return Err(Error::format(format!("{} bytes; a rules file has at most {MOST_BYTES}", text.len())));
    }
    let file: FileToml = toml::from_str(text).map_err(|e| syntax(text, &e))?;
    if file.rule.len() > MOST_RULES {
        return Err(Error::format(format!("{} rules; a file has at most {MOST_RULES}", file.rule.len())));
    }
    let mut rules = Vec::with_capacity(file.rule.len());
    let (lines, mut named) = (Lines::of(text), BTreeMap::new());
    for rule in file.rule {
        let at = At { lines: &lines, rule: rule.get_ref().name.get_ref().clone() };
        let name = rule.get_ref().name.span();
        let rule = rule_of(&at, rule.into_inner())?;
        if let Some(before) = named.insert(Arc::clone(&rule.name), lines.at(name.start)) {
            return Err(at.bad(name.start, &format!("a rule of line {before} has this name already; names are unique")));
        }
        rules.push(rule);
    }
    Ok(rules)
}

/// Where something is wrong.
struct At<'a> {
    lines: &'a Lines,
    rule: String,
}

impl At<'_> {
    fn bad(&self, byte: usize, what: &str) -> Error {
        Error::format(format!("line {}, rule `{}`: {what}", self.lines.at(byte), self.rule.escape_debug()))
    }
}

/// Where lines begin. Every condition remembers its line, so that finding one must not read the text again.
struct Lines(Vec<usize>);

impl Lines {
    fn of(text: &str) -> Self {
        Lines(text.bytes().enumerate().filter(|(_, b)| *b == b'\n').map(|(at, _)| at + 1).collect())
    }

    /// The line of a byte, from 1.
    fn at(&self, byte: usize) -> usize {
        1 + self.0.partition_point(|start| *start <= byte)
    }
}

/// The error of text that is no TOML, or TOML of another form.
fn syntax(text: &str, error: &toml::de::Error) -> Error {
    let message = error.message().replace('\n', ", ");
    let Some(span) = error.span() else { return Error::format(message) };
    let line = Lines::of(text).at(span.start);
    match name_at(text, span.start) {
        Some(rule) => Error::format(format!("line {line}, rule {rule}: {message}")),
        None => Error::format(format!("line {line}: {message}")),
    }
}

/// The rule whose text holds `byte`, by name or, where it has none, by number; `None` outside rules and where the text
/// is no TOML at all.
fn name_at(text: &str, byte: usize) -> Option<String> {
    let document = toml::de::DeTable::parse(text).ok()?;
    let rules = document.get_ref().get("rule")?.get_ref().as_array()?;
    // A rule reaches from its header to the next one's.
    let (number, rule) = rules.iter().enumerate().take_while(|(_, rule)| rule.span().start <= byte).last()?;
    let name = rule.get_ref().get("name").and_then(|name| name.get_ref().as_str());
    Some(name.map_or_else(|| format!("number {}", number + 1), |name| format!("`{}`", name.escape_debug())))
}

fn rule_of(at: &At<'_>, rule: RuleToml) -> Result<Rule> {
    let name = rule.name.get_ref();
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-');
    if name.is_empty() || name.len() > MOST_NAME || !name.chars().all(plain) {
        let expected = format!("expected 1 to {MOST_NAME} of the characters a-z, A-Z, 0-9, `_`, `.`, `-`");
        return Err(at.bad(rule.name.span().start, &format!("the name is {name:?}, {expected}")));
    }
    if let Some(sites) = rule.sites.as_ref().filter(|sites| sites.get_ref().is_empty()) {
        return Err(at.bad(sites.span().start, "`sites` is empty; name a site, or leave the key out for all of them"));
    }
    let when = condition(at, &rule.when, 0, &mut 0)?;
    let (at_least, of_last) = match &rule.window {
        None => (1, 1),
        Some(window) => self::window(at, window.get_ref())?,
    };
    let mut parsed = Rule {
        name: name.as_str().into(),
        description: rule.description.into(),
        severity: rule.severity,
        sites: rule.sites.map(Spanned::into_inner),
        tokens: rule.tokens,
        when,
        at_least,
        of_last,
        cooldown_tokens: 0,
        cooldown_nanos: 0,
    };
    if let Some(cooldown) = &rule.cooldown {
        let CooldownToml { tokens, seconds } = cooldown.get_ref();
        if tokens.is_none() && seconds.is_none() {
            return Err(at.bad(cooldown.span().start, "`cooldown` has neither `tokens` nor `seconds`"));
        }
        if let Some(tokens) = tokens {
            parsed.cooldown_tokens = whole(at, "cooldown.tokens", tokens, i64::from(i32::MAX))?;
        }
        if let Some(seconds) = seconds {
            let found = *seconds.get_ref();
            // A year: beyond it, a mistake of units.
            if !(found > 0.0 && found <= 31_536_000.0) {
                let what =
                    format!("cooldown.seconds is {found}, expected a number above 0 and up to 31536000 (a year)");
                return Err(at.bad(seconds.span().start, &what));
            }
            parsed.cooldown_nanos = (found * 1e9).round() as u64;
        }
    }
    Ok(parsed)
}

fn whole(at: &At<'_>, key: &str, found: &Spanned<i64>, most: i64) -> Result<u32> {
    let value = *found.get_ref();
    let number = u32::try_from(value).ok().filter(|_| (1..=most).contains(&value));
    number
        .ok_or_else(|| at.bad(found.span().start, &format!("{key} is {value}, expected a whole number of 1 to {most}")))
}

fn window(at: &At<'_>, window: &WindowToml) -> Result<(u32, u32)> {
    let of_last = whole(at, "window.of_last", &window.of_last, i64::from(MOST_WINDOW))?;
    let at_least = whole(at, "window.at_least", &window.at_least, i64::from(MOST_WINDOW))?;
    if at_least > of_last {
        let what =
            format!("at least {at_least} of the last {of_last} tokens can never be; at_least is at most of_last");
        return Err(at.bad(window.at_least.span().start, &what));
    }
    Ok((at_least, of_last))
}

/// A value that latents are compared with.
fn level(at: &At<'_>, key: &str, found: &Spanned<f64>) -> Result<f64> {
    let value = *found.get_ref();
    if value.is_finite() && value >= 0.0 {
        return Ok(value);
    }
    let why = "expected a finite number of at least 0: a latent that is not active has the value 0";
    Err(at.bad(found.span().start, &format!("{key} is {value}, {why}")))
}

fn condition(at: &At<'_>, when: &Spanned<WhenToml>, depth: usize, latents: &mut usize) -> Result<Condition> {
    let start = when.span().start;
    let bad = |what: &str| at.bad(start, what);
    let too_many = |bad: &dyn Fn(&str) -> Error| bad(&format!("more than {MOST_LATENTS} latents in one rule"));
    if depth > MOST_DEPTH {
        return Err(bad(&format!("conditions are nested more than {MOST_DEPTH} deep")));
    }
    let WhenToml { latent, above, above_quantile, any, all, sum } = when.get_ref();
    let mut list = |of: &[Spanned<WhenToml>], key: &str| {
        if of.is_empty() {
            return Err(bad(&format!("`{key}` is empty, expected at least one condition")));
        }
        of.iter().map(|when| condition(at, when, depth + 1, latents)).collect::<Result<Vec<_>>>()
    };
    let condition = match (latent, above, above_quantile, any, all, sum) {
        (Some(latent), Some(above), None, None, None, None) => {
            *latents += 1;
            Condition::Latent {
                latent: *latent,
                above: Level::Value(level(at, "above", above)?),
                line: at.lines.at(start),
            }
        }
        (Some(latent), None, Some(quantile), None, None, None) => {
            let found = *quantile.get_ref();
            if !(found > 0.0 && found < 1.0) {
                let what = format!("above_quantile is {found}, expected a level between 0 and 1, such as 0.99");
                return Err(at.bad(quantile.span().start, &what));
            }
            *latents += 1;
            Condition::Latent { latent: *latent, above: Level::Quantile(found), line: at.lines.at(start) }
        }
        (None, None, None, Some(any), None, None) => Condition::Any(list(any, "any")?),
        (None, None, None, None, Some(all), None) => Condition::All(list(all, "all")?),
        (None, Some(above), None, None, None, Some(sum)) => {
            if sum.is_empty() {
                return Err(bad("`sum` is empty, expected at least one latent"));
            }
            *latents += sum.len();
            if *latents > MOST_LATENTS {
                return Err(too_many(&bad));
            }
            Condition::Sum { terms: terms(at, sum)?, above: level(at, "above", above)? }
        }
        found => {
            let keys = ["latent", "above", "above_quantile", "any", "all", "sum"];
            let has = [
                found.0.is_some(),
                found.1.is_some(),
                found.2.is_some(),
                found.3.is_some(),
                found.4.is_some(),
                found.5.is_some(),
            ];
            let keys: Vec<_> =
                keys.iter().zip(has).filter(|(_, has)| *has).map(|(key, _)| format!("`{key}`")).collect();
            let found = if keys.is_empty() { "no key".to_owned() } else { keys.join(", ") };
            return Err(bad(&format!(
                "a condition has {found}; expected `latent` with `above` or `above_quantile`, or `any`, or `all`, \
                 or `sum` with `above`"
            )));
        }
    };
    if *latents > MOST_LATENTS {
        return Err(too_many(&bad));
    }
    Ok(condition)
}

fn terms(at: &At<'_>, sum: &[Spanned<TermToml>]) -> Result<Vec<Term>> {
    let mut terms: Vec<Term> = Vec::with_capacity(sum.len());
    for term in sum {
        let (start, TermToml { latent, weight }) = (term.span().start, term.get_ref());
        let value = weight.as_ref().map_or(1.0, |weight| *weight.get_ref());
        if !value.is_finite() || value == 0.0 {
            let start = weight.as_ref().map_or(start, |weight| weight.span().start);
            return Err(
                at.bad(start, &format!("the weight of latent {latent} is {value}, expected a finite number but 0"))
            );
        }
        if terms.iter().any(|before| before.latent == *latent) {
            return Err(at.bad(start, &format!("latent {latent} stands in one sum twice; give it one weight")));
        }
        terms.push(Term { latent: *latent, weight: value, line: at.lines.at(start) });
    }
    if terms.iter().all(|term| term.weight < 0.0) {
        return Err(at.bad(sum[0].span().start, "all weights of the sum are negative: it is never above its value"));
    }
    Ok(terms)
}
