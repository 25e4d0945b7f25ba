//! The `kronsae` command.

mod manual;

use clap::{Parser, Subcommand};
use kronsae_trainer::commands::{bench, calibrate, convert, demo, encode, eval, inspect, train};
use kronsae_trainer::progress::tell;
use kronsae_trainer::terminal::visible;
use std::process::ExitCode;

/// Train KronSAEs on recorded activations of a language model, and look into them
///
/// Start with `kronsae demo`: it trains on a bundled sample of real activations and shows what the latents stand for.
#[derive(Parser)]
#[command(name = "kronsae", version, propagate_version = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Demo(demo::Args),
    Train(Box<train::Args>),
    Eval(eval::Args),
    Inspect(inspect::Args),
    Encode(encode::Args),
    Calibrate(calibrate::Args),
    Convert(convert::Args),
    Bench(bench::Args),
    #[command(hide = true)]
    Manual(manual::Args),
}

fn main() -> ExitCode {
    // A program of its own may decide that for its process; the library leaves it to its host.
    kronsae::Amx::request();
    let result = match Cli::parse().command {
        Command::Demo(args) => demo::run(&args),
        Command::Train(args) => train::run_command(*args),
        Command::Eval(args) => eval::run(args),
        Command::Inspect(args) => inspect::run(args),
        Command::Encode(args) => encode::run(args),
        Command::Calibrate(args) => calibrate::run(args),
        Command::Convert(args) => convert::run(args),
        Command::Bench(args) => bench::run(args),
        Command::Manual(args) => manual::run::<Cli>(&args),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // It may quote a file's own words, which must not reach the terminal as commands.
            let lines: Vec<String> = error.to_string().split('\n').map(visible).collect();
            tell(&format!("error: {}", lines.join("\n")));
            ExitCode::FAILURE
        }
    }
}
