//! Rules: which latents make an event. A TOML file becomes [`Rules`], bound to no model; [`SiteRules`] are those of one
//! site, checked against its model and prepared so that a token costs what its active latents touch.
//!
//! The language is described in `docs/monitoring-rules.md`.

mod compile;
mod file;
#[cfg(test)]
pub(super) mod tests;

pub use compile::SiteRules;
pub(super) use compile::Touched;

use super::event::Severity;
use super::tag::{TokenTag, flags};
use crate::error::{Error, Result};
use serde::Deserialize;
use std::path::Path;
use std::sync::Arc;

/// A parsed rules file, bound to no model. Immutable; shared by any number of threads.
#[derive(Debug, Clone, Default)]
pub struct Rules {
    rules: Vec<Rule>,
}

impl Rules {
    /// The rules of a TOML text. An empty text has none, which switches rules off.
    ///
    /// # Errors
    /// [`crate::Status::Format`], with the line, the rule's name, what was found and what was expected: no TOML, an
    /// unknown or missing key, a name twice, a threshold that is negative or no number, a window that can never be
    /// full, and so on.
    ///
    /// # Examples
    /// ```
    /// use kronsae::monitor::Rules;
    ///
    /// let rules = Rules::parse(r#"
    ///     [[rule]]
    ///     name = "python"
    ///     when = { latent = 4711, above = 2.5 }
    ///     window = { at_least = 3, of_last = 8 }
    /// "#)?;
    /// assert_eq!(rules.len(), 1);
    /// # Ok::<(), kronsae::Error>(())
    /// ```
    pub fn parse(text: &str) -> Result<Self> {
        // Numbers are parsed here: a host that rounds otherwise must not get other thresholds.
        let _env = crate::float_env::FloatEnv::enter();
        Ok(Rules { rules: file::parse(text.strip_prefix('\u{FEFF}').unwrap_or(text))? })
    }

    /// The rules of a file.
    ///
    /// # Errors
    /// As [`Rules::parse`], naming the file; [`crate::Status::Io`] if it cannot be read.
    pub fn read(path: &Path) -> Result<Self> {
        let text = super::text_file::read(path, file::MOST_BYTES)?;
        Rules::parse(&text).map_err(|e| e.within(&path.display().to_string()))
    }

    /// How many rules there are, those for other sites included.
    #[must_use]
    pub fn len(&self) -> usize {
        self.rules.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.rules.is_empty()
    }

    /// The site names that rules ask for, each with the rule that does: a name that no site has is a mistake that the
    /// owner of the sites can see.
    pub fn sites(&self) -> impl Iterator<Item = (&str, &Arc<str>)> {
        self.rules.iter().flat_map(|rule| rule.sites.iter().flatten().map(move |site| (site.as_str(), &rule.name)))
    }
}

/// Which tokens of a request a rule looks at; the others neither match nor count in its window.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Tokens {
    /// All of them.
    #[default]
    All,
    /// Those with [`flags::PROMPT`] or [`flags::LAST_PROMPT`].
    Prompt,
    /// The others.
    Generated,
}

impl Tokens {
    /// Whether a rule of this kind looks at a token.
    #[must_use]
    pub fn takes(self, tag: &TokenTag) -> bool {
        let prompt = tag.flags & (flags::PROMPT | flags::LAST_PROMPT) != 0;
        match self {
            Tokens::All => true,
            Tokens::Prompt => prompt,
            Tokens::Generated => !prompt,
        }
    }
}

/// One rule of a file.
#[derive(Debug, Clone)]
struct Rule {
    name: Arc<str>,
    description: Arc<str>,
    severity: Severity,
    /// `None`: every site.
    sites: Option<Vec<String>>,
    tokens: Tokens,
    when: Condition,
    at_least: u32,
    of_last: u32,
    /// 0: none.
    cooldown_tokens: u32,
    /// 0: none.
    cooldown_nanos: u64,
}

/// What must hold of a token's latents.
#[derive(Debug, Clone)]
enum Condition {
    Latent { latent: u32, above: Level, line: usize },
    Any(Vec<Condition>),
    All(Vec<Condition>),
    Sum { terms: Vec<Term>, above: f64 },
}

/// What a latent's value is compared with.
#[derive(Debug, Clone, Copy)]
enum Level {
    Value(f64),
    /// Quantile of the value where active, on the model's calibration corpus.
    Quantile(f64),
}

#[derive(Debug, Clone, Copy)]
struct Term {
    latent: u32,
    weight: f64,
    line: usize,
}

/// The error of a rule that does not fit a site's model.
fn unfit(rule: &Rule, line: usize, site: &str, what: &str) -> Error {
    Error::invalid(format!("line {line}, rule `{}`, site `{site}`: {what}", rule.name))
}
