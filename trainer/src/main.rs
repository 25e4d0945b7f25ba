//! The `kronsae` command.

use clap::{Parser, Subcommand};
use std::process::ExitCode;

/// Train KronSAEs on recorded activations of a language model, and look into them.
#[derive(Parser)]
#[command(version, propagate_version = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {}

fn main() -> ExitCode {
    let cli = Cli::parse();
    match cli.command {}
}
