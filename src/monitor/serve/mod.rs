//! An HTTP server for one monitor: metrics, a JSON snapshot, a stream of events, and the live page that shows them.
//!
//! | path | what it answers |
//! |---|---|
//! | `/` | the page: one document, no other resource; it holds no data, and fetches `/events` itself |
//! | `/metrics` | the metrics, in the form that `Accept` prefers ([`MetricsForm`](super::metrics::MetricsForm)) |
//! | `/snapshot` | the [`Snapshot`] as JSON |
//! | `/events` | server-sent events: `rule`, an event with its id; `tick`, the snapshot and the tokens since the last tick |
//!
//! All of it is read-only. The server is one thread, `kronsae-serve`, with all signals blocked, of low priority, and
//! whatever its clients do, it holds no more than a fixed number of connections with bounded buffers each.
//!
//! Who may ask:
//! - `Host` must be an IP address, `localhost`, or one of [`ServeOptions::hosts`]: a page of another site that has its
//!   own name point here (DNS rebinding) is refused. There are no CORS headers, and requests that a browser marks as
//!   coming from elsewhere (`Origin`, `Sec-Fetch-Site`) are refused.
//! - With a token, everything but the page wants `Authorization: Bearer TOKEN`, compared in constant time. It is never
//!   taken from a URL, and no log, error or `Debug` shows it. The page asks for it in a form and keeps it in memory.
//! - An address beyond loopback without a token is refused. There is no TLS: beyond loopback, put a proxy in front that
//!   has it, or the token can be read on the way.
//!
//! Needs the cargo feature `live`; without it [`Server::start`] returns [`Status::Unsupported`](crate::Status).

#[cfg(feature = "live")]
mod guard;
#[cfg(feature = "live")]
mod http;
#[cfg(feature = "live")]
mod page;
#[cfg(feature = "live")]
mod patience;
#[cfg(feature = "live")]
mod server;
#[cfg(feature = "live")]
mod stream;

#[cfg(feature = "live")]
pub use server::Server;

use super::event::Event;
use super::snapshot::{RecentToken, Snapshot};
use std::fmt;
use std::sync::Arc;

/// What is served. Called from the server's thread alone, a few times a second at most for each client; an answer that
/// takes long delays other clients and nobody else.
pub trait Source: Send + Sync + 'static {
    /// The monitor now.
    fn snapshot(&self) -> Snapshot;

    /// Tokens of a site (its index in [`Snapshot::sites`]) whose sequence is above `since`, ascending; of more than
    /// `most` the latest. Empty for a site that does not exist.
    fn recent(&self, site: u32, since: u64, most: usize) -> Vec<RecentToken>;

    /// Events whose id is above `since`, ascending; of more than `most` the latest.
    fn events(&self, since: u64, most: usize) -> Vec<Event>;

    /// The label of a site's latent, where it has one.
    fn label(&self, site: u32, latent: u32) -> Option<Arc<str>> {
        let _ = (site, latent);
        None
    }
}

/// How a monitor is served.
#[derive(Clone)]
pub struct ServeOptions {
    /// IP address and port, `127.0.0.1:9464` or `[::1]:9464`; `localhost` stands for 127.0.0.1. Port 0: a free one, see
    /// [`Server::address`].
    pub address: String,
    /// What clients have to present, at least 16 visible ASCII characters; none: anybody who can connect may read.
    pub token: Option<String>,
    /// Names, besides IP addresses and `localhost`, by which clients may call this server. Without port.
    pub hosts: Vec<String>,
    /// Clients that may follow `/events` at once, 1 to 1,024. The others get 503. A few more connections are held for
    /// short requests; when they are all taken, the one that has waited longest without asking anything is closed.
    pub clients: usize,
}

impl Default for ServeOptions {
    fn default() -> Self {
        ServeOptions { address: "127.0.0.1:9464".to_owned(), token: None, hosts: Vec::new(), clients: 16 }
    }
}

impl fmt::Debug for ServeOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ServeOptions { address, token, hosts, clients } = self;
        let token = token.as_ref().map(|_| "set");
        f.debug_struct("ServeOptions")
            .field("address", address)
            .field("token", &token)
            .field("hosts", hosts)
            .field("clients", clients)
            .finish()
    }
}

/// A running server; in this build, which lacks the cargo feature `live`, there is none.
#[cfg(not(feature = "live"))]
#[derive(Debug)]
pub enum Server {}

#[cfg(not(feature = "live"))]
impl Server {
    /// Refuses.
    ///
    /// # Errors
    /// [`Status::Unsupported`](crate::Status) always: this build has no live page.
    pub fn start(options: ServeOptions, source: Arc<dyn Source>) -> crate::Result<Server> {
        let _ = (options, source);
        Err(crate::Error::new(
            crate::Status::Unsupported,
            "this build has no live page: build it with the cargo feature `live`, or serve the metrics' text yourself",
        ))
    }

    /// The address it listens at.
    #[must_use]
    pub fn address(&self) -> std::net::SocketAddr {
        match *self {}
    }

    /// Ends it.
    pub fn stop(self) {
        match self {}
    }
}

#[cfg(all(test, not(feature = "live")))]
mod tests {
    use super::*;

    struct Nothing;

    impl Source for Nothing {
        fn snapshot(&self) -> Snapshot {
            unreachable!("nobody serves it")
        }

        fn recent(&self, _site: u32, _since: u64, _most: usize) -> Vec<RecentToken> {
            Vec::new()
        }

        fn events(&self, _since: u64, _most: usize) -> Vec<Event> {
            Vec::new()
        }
    }

    #[test]
    fn a_build_without_the_feature_says_so() {
        let error = Server::start(ServeOptions::default(), Arc::new(Nothing)).unwrap_err();
        assert_eq!(error.status(), crate::Status::Unsupported);
        assert!(error.message().contains("cargo feature `live`"), "{error}");
    }
}
