//! What a rule's match becomes.

use super::snapshot::ModelId;
use serde::Serialize;
use std::sync::Arc;

/// How much a rule's match matters, as its author says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
#[repr(i32)]
pub enum Severity {
    /// Worth knowing.
    #[default]
    Info = 1,
    /// Worth looking at.
    Warning = 2,
    /// Worth being woken for.
    Critical = 3,
}

impl Severity {
    /// As rules and metrics spell it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Severity::Info => "info",
            Severity::Warning => "warning",
            Severity::Critical => "critical",
        }
    }
}

/// What an event says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
#[repr(i32)]
pub enum EventKind {
    /// A rule matched.
    Matched = 1,
    /// The tokens that an earlier match rests on were taken back by a rewind.
    Retracted = 2,
}

/// A latent of the token that completed a match.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct EventLatent {
    /// Its index, below F.
    pub latent: u32,
    /// Its value on the token, in units of normalised activations; 0 if it is not active.
    pub value: f32,
}

/// A match of a rule, or its retraction.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Event {
    /// Ascending in a monitor, from 1, without gaps: a consumer that misses a number has lost an event.
    pub id: u64,
    /// What it says.
    pub kind: EventKind,
    /// When the worker found it: nanoseconds since 1970, UTC.
    pub unix_nanos: u64,
    /// The site's name.
    pub site: Arc<str>,
    /// The model that was in force.
    pub model: ModelId,
    /// The request.
    pub request: u64,
    /// Position of the token that completed the match.
    pub position: i32,
    /// That token's id, or -1.
    pub token: i32,
    /// The rule's name.
    pub rule: Arc<str>,
    /// The rule's severity.
    pub severity: Severity,
    /// Whether tokens of the rule's window were missing (dropped, or not finite): the rule saw less than the model did.
    pub gap: bool,
    /// The rule's latents on that token, in the rule's order.
    pub latents: Box<[EventLatent]>,
    /// [`EventKind::Retracted`]: the id of the event taken back. Otherwise 0.
    pub retracts: u64,
}
