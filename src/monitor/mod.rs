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
//!
//! ```no_run
//! use kronsae::monitor::{Monitor, MonitorOptions, Rules, SiteOptions, TapOptions, TokenTag};
//! use kronsae::{Activations, Sae};
//! use std::sync::Arc;
//! use std::time::Duration;
//!
//! let monitor = Monitor::new(MonitorOptions::default())?;
//! let sae = Arc::new(Sae::open("model.safetensors")?);
//! let site = monitor.add_site(SiteOptions { name: "resid_post".into(), ..Default::default() }, Arc::clone(&sae))?;
//! monitor.set_rules(&Rules::read("rules.toml".as_ref())?)?;
//! let mut tap = monitor.tap(site, TapOptions::default())?;
//!
//! let residual = vec![0.1_f32; 8 * sae.config().d_model]; // 8 tokens, [rows, d_model]
//! let x = Activations::from_f32(&residual, sae.config().d_model)?;
//! tap.submit(x, |row| TokenTag { request: 1, position: row as i32, token: -1, flags: 0 })?;
//! tap.end_request(1)?;
//!
//! for event in monitor.poll_events(100, Duration::from_millis(100))? {
//!     println!("{} at position {} of request {}", event.rule, event.position, event.request);
//! }
//! monitor.stop(Duration::from_secs(1))?;
//! # Ok::<(), kronsae::Error>(())
//! ```

pub mod metrics;
pub mod serve;

#[cfg(any(feature = "cuda", feature = "cuda-emulation"))]
mod device;
mod encode;
mod event;
mod events;
mod fork;
mod histogram;
mod intake;
mod labels;
mod memory;
#[allow(clippy::module_inception, reason = "the monitor itself, among its parts")]
mod monitor;
mod options;
mod picture;
mod prepare;
mod recent;
mod recorder;
mod requests;
mod ring;
mod rules;
mod scheduling;
mod shared;
mod site;
mod snapshot;
mod statistics;
mod sync;
mod tag;
mod tap;
mod text_file;
mod wake;
mod worker;

#[cfg(any(feature = "cuda", feature = "cuda-emulation"))]
pub use device::{DeviceTap, DeviceTapOptions};
pub use event::{Event, EventKind, EventLatent, Severity};
pub use events::EventCallback;
pub use labels::Labels;
pub use monitor::{Monitor, SiteId};
pub use options::{MonitorOptions, SiteOptions, TapOptions};
pub use recorder::{PushOutcome, Recorder, RecorderOptions, RecorderState};
pub use requests::{Match, RETRACTABLE_MATCHES, REWIND_TOKENS, Requests};
pub use rules::{Rules, SiteRules, Tokens};
pub use scheduling::Scheduling;
pub use shared::{Notice, TokenText};
pub use snapshot::{
    Counters, Histogram, LatentSnapshot, ModelId, MonitorStatus, RecentToken, RecordingStatus, RuleCount, SiteSnapshot,
    Snapshot, State, TapSnapshot, UnboundRule, WatchedLatent,
};
pub use tag::{Sampling, TokenTag, flags};
pub use tap::{Tap, TapEncode};
