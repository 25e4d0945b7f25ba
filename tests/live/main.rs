//! The live server from outside: what it answers to good, bad and hostile clients, what Prometheus makes of its metrics, and
//! the page in a real browser. The data are the example's.

#[path = "../../examples/live_page/made_up.rs"]
mod made_up;

mod answers;
mod browser;
mod client;
mod hostile;
mod metrics;
mod prometheus;

use kronsae::monitor::serve::{ServeOptions, Server, Source};
use std::sync::Arc;

/// A server of made-up data at a free port.
fn server() -> Server {
    server_of(made_up::MadeUp::new(200.0), ServeOptions::default())
}

/// One at a free port of 127.0.0.1.
fn server_of(source: impl Source, options: ServeOptions) -> Server {
    Server::start(ServeOptions { address: "127.0.0.1:0".to_owned(), ..options }, Arc::new(source)).unwrap()
}
