//! The live page with made-up data that moves: `cargo run --example live_page [ADDRESS]`.
//!
//! With `KRONSAE_TOKEN` in the environment, clients must present it.

mod made_up;

use kronsae::monitor::serve::{ServeOptions, Server};
use made_up::MadeUp;
use std::sync::Arc;

fn main() -> kronsae::Result<()> {
    let options = ServeOptions {
        address: std::env::args().nth(1).unwrap_or_else(|| "127.0.0.1:9464".to_owned()),
        token: std::env::var("KRONSAE_TOKEN").ok(),
        ..ServeOptions::default()
    };
    let server = Server::start(options, Arc::new(MadeUp::new(40.0)))?;
    println!("made-up data at http://{}/ until this program is ended", server.address());
    loop {
        std::thread::park();
    }
}
