//! Rules of one site, checked against its model, with what a token's latents touch looked up beforehand.

use super::{Condition, Level, Rule, Rules, Tokens, unfit};
use crate::Sae;
use crate::error::{Error, Result};
use crate::monitor::event::{EventLatent, Severity};
use crate::monitor::tag::TokenTag;
use std::sync::Arc;

/// Rules compiled for one site and its model: latents checked, quantiles resolved to values. Immutable; shared by any
/// number of threads.
#[derive(Debug, Default)]
pub struct SiteRules {
    rules: Vec<Compiled>,
    /// All latents looked at, ascending. A latent's place here is its *local* number.
    latents: Vec<u32>,
    /// Local numbers by latent: open addressing in a power of two of cells, at most a quarter of them taken.
    cells: Vec<Cell>,
    /// Rules that look at local latent `l`: `users[starts[l]..starts[l + 1]]`.
    starts: Vec<u32>,
    users: Vec<u32>,
}

#[derive(Debug, Clone, Copy)]
struct Cell {
    latent: u32,
    /// [`FREE`]: nobody's.
    local: u32,
}

const FREE: u32 = u32::MAX;

/// One rule, ready to run.
#[derive(Debug)]
pub(in crate::monitor) struct Compiled {
    pub(in crate::monitor) name: Arc<str>,
    pub(in crate::monitor) description: Arc<str>,
    pub(in crate::monitor) severity: Severity,
    pub(in crate::monitor) tokens: Tokens,
    pub(in crate::monitor) at_least: u32,
    pub(in crate::monitor) of_last: u32,
    /// 0: none.
    pub(in crate::monitor) cooldown_tokens: u32,
    /// 0: none.
    pub(in crate::monitor) cooldown_nanos: u64,
    when: Test,
    /// Latents in the order in which the rule names them, and their local numbers.
    latents: Vec<(u32, u32)>,
}

/// A condition over local latents. Values are compared as f64, so that what the file says is not rounded.
#[derive(Debug)]
enum Test {
    Above { local: u32, value: f64 },
    Any(Vec<Test>),
    All(Vec<Test>),
    Sum { terms: Vec<(u32, f64)>, above: f64 },
}

impl Test {
    fn holds(&self, values: &[f32]) -> bool {
        let value = |local: u32| f64::from(values[local as usize]);
        match self {
            Test::Above { local, value: level } => value(*local) > *level,
            Test::Any(tests) => tests.iter().any(|test| test.holds(values)),
            Test::All(tests) => tests.iter().all(|test| test.holds(values)),
            Test::Sum { terms, above } => {
                terms.iter().map(|&(local, weight)| weight * value(local)).sum::<f64>() > *above
            }
        }
    }
}

/// What one token's latents touch; scratch of whoever evaluates, of a size that the rules alone decide.
#[derive(Debug, Default)]
pub(in crate::monitor) struct Touched {
    /// Value of each local latent; 0: not active.
    values: Vec<f32>,
    /// Local latents whose value is not 0.
    active: Vec<u32>,
    /// A bit for each rule whose condition holds.
    pub(in crate::monitor) holding: Vec<u64>,
}

impl Touched {
    pub(in crate::monitor) fn new(rules: &SiteRules) -> Result<Self> {
        let mut active = crate::memory::try_vec(rules.latents.len(), 0, "a rule's latents")?;
        active.clear();
        Ok(Touched {
            values: crate::memory::try_vec(rules.latents.len(), 0.0, "a rule's latents")?,
            active,
            holding: crate::memory::try_vec(rules.rules.len().div_ceil(64), 0, "rules that hold")?,
        })
    }

    pub(in crate::monitor) fn bytes(rules: &SiteRules) -> usize {
        rules.latents.len() * 8 + rules.rules.len().div_ceil(64) * 8
    }
}

impl SiteRules {
    /// The rules of `rules` that are for the site `site`, for its model `sae`.
    ///
    /// # Errors
    /// [`crate::Status::InvalidArgument`], with line, rule and site: a latent that the model does not have, a quantile
    /// where it is not calibrated, a level it was not calibrated at (the error names those there are), or the quantile
    /// of a latent that never was active on the calibration corpus.
    pub fn compile(rules: &Rules, site: &str, sae: &Sae) -> Result<Self> {
        let _env = crate::float_env::FloatEnv::enter();
        let here = |rule: &&Rule| rule.sites.as_ref().is_none_or(|sites| sites.iter().any(|name| name == site));
        let rules: Vec<_> = rules.rules.iter().filter(here).collect();
        let mut latents = Vec::new();
        for rule in &rules {
            name_latents(&rule.when, &mut latents);
        }
        latents.sort_unstable();
        latents.dedup();

        let mut out = SiteRules { cells: cells(&latents), latents, ..SiteRules::default() };
        let model = Model::of(sae);
        let mut seen_by = vec![usize::MAX; out.latents.len()];
        for (number, rule) in rules.into_iter().enumerate() {
            let when = out.test(&rule.when, &|line, what: String| unfit(rule, line, site, &what), &model)?;
            let mut named = Vec::new();
            name_latents(&rule.when, &mut named);
            let mut latents: Vec<(u32, u32)> = Vec::with_capacity(named.len());
            for latent in named {
                let local = out.local(latent).expect("every latent of a rule has a local number");
                if std::mem::replace(&mut seen_by[local as usize], number) != number {
                    latents.push((latent, local));
                }
            }
            out.rules.push(Compiled {
                name: Arc::clone(&rule.name),
                description: Arc::clone(&rule.description),
                severity: rule.severity,
                tokens: rule.tokens,
                at_least: rule.at_least,
                of_last: rule.of_last,
                cooldown_tokens: rule.cooldown_tokens,
                cooldown_nanos: rule.cooldown_nanos,
                when,
                latents,
            });
        }
        let mut users = vec![Vec::new(); out.latents.len()];
        for (number, rule) in out.rules.iter().enumerate() {
            for (_, local) in &rule.latents {
                users[*local as usize].push(number as u32);
            }
        }
        out.starts.push(0);
        for users in users {
            out.users.extend(users);
            out.starts.push(out.users.len() as u32);
        }
        Ok(out)
    }

    /// No rules.
    #[must_use]
    pub fn empty() -> Self {
        SiteRules::default()
    }

    /// Each rule's name and severity; their order is the numbering of [`crate::monitor::Match::rule`].
    pub fn names(&self) -> impl Iterator<Item = (&Arc<str>, Severity)> {
        self.rules.iter().map(|rule| (&rule.name, rule.severity))
    }

    /// The description of rule number `rule`, empty where it has none.
    ///
    /// # Panics
    /// If there is no such rule.
    #[must_use]
    pub fn description(&self, rule: usize) -> &Arc<str> {
        &self.rules[rule].description
    }

    /// How many rules there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.rules.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.rules.is_empty()
    }

    /// All latents that a rule looks at, ascending. At a site that encodes only watched latents, one that is not among
    /// them never matches.
    #[must_use]
    pub fn latents(&self) -> &[u32] {
        &self.latents
    }

    pub(in crate::monitor) fn rules(&self) -> &[Compiled] {
        &self.rules
    }

    /// The longest list of latents that a match of these rules has.
    pub(in crate::monitor) fn most_latents(&self) -> usize {
        self.rules.iter().map(|rule| rule.latents.len()).max().unwrap_or(0)
    }

    fn local(&self, latent: u32) -> Option<u32> {
        let mask = self.cells.len().checked_sub(1)?;
        let mut at = home(latent, mask);
        loop {
            let cell = self.cells[at];
            if cell.local == FREE || cell.latent == latent {
                return (cell.local != FREE).then_some(cell.local);
            }
            at = (at + 1) & mask;
        }
    }

    /// Marks in `touched.holding` the rules whose condition holds on a token with these latents: work for the active
    /// latents and the rules that name one of them, whatever the number of others. The marks and values stay until
    /// [`SiteRules::forget`].
    pub(in crate::monitor) fn evaluate(&self, tag: &TokenTag, indices: &[u32], values: &[f32], touched: &mut Touched) {
        if self.rules.is_empty() {
            return;
        }
        for (&latent, &value) in indices.iter().zip(values) {
            let Some(local) = self.local(latent).map(|local| local as usize) else { continue };
            // An active latent is positive; a latent given twice keeps its first value.
            if value <= 0.0 || touched.values[local] != 0.0 {
                continue;
            }
            touched.values[local] = value;
            touched.active.push(local as u32);
            // No rule holds without an active latent: levels are at least 0, and nothing is above 0 then.
            for &rule in &self.users[self.starts[local] as usize..self.starts[local + 1] as usize] {
                touched.holding[rule as usize / 64] |= 1 << (rule % 64);
            }
        }
        for word in 0..touched.holding.len() {
            let mut left = touched.holding[word];
            while left != 0 {
                let bit = left.trailing_zeros();
                left &= left - 1;
                let rule = &self.rules[word * 64 + bit as usize];
                if !rule.tokens.takes(tag) || !rule.when.holds(&touched.values) {
                    touched.holding[word] &= !(1 << bit);
                }
            }
        }
    }

    /// The latents of rule `rule` on the token evaluated last, in the rule's order.
    pub(in crate::monitor) fn latents_of(&self, rule: usize, touched: &Touched, out: &mut Vec<EventLatent>) {
        out.clear();
        let value = |&(latent, local): &(u32, u32)| EventLatent { latent, value: touched.values[local as usize] };
        out.extend(self.rules[rule].latents.iter().map(value));
    }

    /// Clears `touched` for the next token.
    pub(in crate::monitor) fn forget(touched: &mut Touched) {
        for local in touched.active.drain(..) {
            touched.values[local as usize] = 0.0;
        }
        touched.holding.fill(0);
    }

    fn test(&self, when: &Condition, bad: &dyn Fn(usize, String) -> Error, model: &Model<'_>) -> Result<Test> {
        let known = |latent: u32, line: usize| {
            let local = self.local(latent).filter(|_| (latent as usize) < model.latents);
            local.ok_or_else(|| {
                bad(
                    line,
                    format!("latent {latent}: the model has {} latents, 0 to {}", model.latents, model.latents - 1),
                )
            })
        };
        Ok(match when {
            Condition::Latent { latent, above, line } => {
                let local = known(*latent, *line)?;
                let value = match above {
                    Level::Value(value) => *value,
                    Level::Quantile(level) => model.quantile(*latent, *level).map_err(|what| bad(*line, what))?,
                };
                Test::Above { local, value }
            }
            Condition::Any(list) => Test::Any(list.iter().map(|c| self.test(c, bad, model)).collect::<Result<_>>()?),
            Condition::All(list) => Test::All(list.iter().map(|c| self.test(c, bad, model)).collect::<Result<_>>()?),
            Condition::Sum { terms, above } => {
                let terms = terms.iter().map(|term| Ok((known(term.latent, term.line)?, term.weight)));
                Test::Sum { terms: terms.collect::<Result<_>>()?, above: *above }
            }
        })
    }
}

fn home(latent: u32, mask: usize) -> usize {
    // Fibonacci hashing: neighbouring latents spread.
    (latent.wrapping_mul(0x9E37_79B1) >> 7) as usize & mask
}

fn cells(latents: &[u32]) -> Vec<Cell> {
    if latents.is_empty() {
        return Vec::new();
    }
    let mut cells = vec![Cell { latent: 0, local: FREE }; (latents.len() * 4).next_power_of_two()];
    let mask = cells.len() - 1;
    for (local, &latent) in latents.iter().enumerate() {
        let mut at = home(latent, mask);
        while cells[at].local != FREE {
            at = (at + 1) & mask;
        }
        cells[at] = Cell { latent, local: local as u32 };
    }
    cells
}

/// The latents of a condition in its order, repetitions included.
fn name_latents(when: &Condition, out: &mut Vec<u32>) {
    match when {
        Condition::Latent { latent, .. } => out.push(*latent),
        Condition::Any(list) | Condition::All(list) => list.iter().for_each(|when| name_latents(when, out)),
        Condition::Sum { terms, .. } => out.extend(terms.iter().map(|term| term.latent)),
    }
}

/// What rules ask of a model.
struct Model<'a> {
    latents: usize,
    /// Quantiles `[F, levels]` and their levels; or why there are none.
    quantiles: Result<(&'a [f32], Vec<f64>), String>,
}

impl<'a> Model<'a> {
    fn of(sae: &'a Sae) -> Self {
        let quantiles = sae.calibration().and_then(|c| c.quantiles.as_deref().map(|q| (q, c.levels)));
        let config = &sae.config().json;
        let levels = || -> Option<Vec<f64>> {
            let levels = config.get("calibration")?.get("levels")?.as_array()?;
            levels.iter().map(serde_json::Value::as_f64).collect()
        };
        let quantiles = match (quantiles, levels()) {
            (None, _) => {
                Err("the model has no calibrated quantiles; calibrate it (`kronsae calibrate`), or use `above`"
                    .to_owned())
            }
            (Some((quantiles, count)), Some(levels)) if levels.len() == count => Ok((quantiles, levels)),
            (Some((_, count)), levels) => Err(format!(
                "the model has quantiles at {count} levels, its config says {}; calibrate it again, or use `above`",
                levels.map_or_else(|| "none".to_owned(), |levels| format!("{levels:?}"))
            )),
        };
        Model { latents: sae.config().encoder.latents(), quantiles }
    }

    /// The value of a latent (of this model) at a level, or what is wrong.
    fn quantile(&self, latent: u32, level: f64) -> Result<f64, String> {
        let (quantiles, levels) = self.quantiles.as_ref().map_err(Clone::clone)?;
        let Some(at) = levels.iter().position(|l| (l - level).abs() < 1e-9) else {
            return Err(format!("above_quantile is {level}; the model is calibrated at the levels {levels:?}"));
        };
        let value = quantiles[latent as usize * levels.len() + at];
        if value.is_finite() && value >= 0.0 {
            return Ok(f64::from(value));
        }
        if value.is_nan() {
            return Err(format!(
                "latent {latent} was never active on the calibration corpus, so that it has no quantile; use `above`"
            ));
        }
        Err(format!("the model's quantile {level} of latent {latent} is {value}, expected a number of at least 0"))
    }
}
