//! Live monitoring: which latents fire, for which request and token, inside a process that serves a language model.
//!
//! Data flows one way:
//!
//! ```text
//! host thread --Tap::submit--> ring --> worker: encode --> statistics, rules --> events
//!                                                     \--> recorder          \--> snapshot --> metrics, live page
//! ```
//!
//! A [`Tap`] copies into a bounded ring and returns; everything else happens on the monitor's own workers. What does
//! not fit is dropped and counted; the host is never made to wait.

pub mod metrics;
pub mod serve;

mod event;
mod labels;
mod recorder;
mod requests;
mod rules;
mod snapshot;
mod tag;
mod text_file;

pub use event::{Event, EventKind, EventLatent, Severity};
pub use labels::Labels;
pub use recorder::{PushOutcome, Recorder, RecorderOptions, RecorderState};
pub use requests::{Match, RETRACTABLE_MATCHES, REWIND_TOKENS, Requests};
pub use rules::{Rules, SiteRules, Tokens};
pub use snapshot::{
    Counters, Histogram, LatentSnapshot, ModelId, RecentToken, RuleCount, SiteSnapshot, Snapshot, State, TapSnapshot,
    WatchedLatent,
};
pub use tag::{Sampling, TokenTag, flags};
