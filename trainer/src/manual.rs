//! The files that a package of `kronsae` carries besides the program, made from the same definitions as its `--help`.

use clap::{CommandFactory, ValueEnum};
use clap_complete::Shell;
use kronsae::{Error, Result};
use std::path::{Path, PathBuf};

/// Write man pages and shell completions.
///
/// Into FOLDER/man: kronsae.1 and a page for each command. Into FOLDER/completions: one file for each shell. Existing ones
/// are replaced.
#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    /// The folder to write to, made if it is missing.
    #[arg(value_name = "FOLDER")]
    folder: PathBuf,
}

/// Runs the command for the program that `Program` describes.
///
/// # Errors
/// A folder or a file that cannot be written.
pub(crate) fn run<Program: CommandFactory>(args: &Args) -> Result<()> {
    let man = make(&args.folder.join("man"))?;
    clap_mangen::generate_to(Program::command(), &man)
        .map_err(|e| Error::io("write man pages", &man.display().to_string(), &e))?;
    let completions = make(&args.folder.join("completions"))?;
    for shell in Shell::value_variants() {
        clap_complete::generate_to(*shell, &mut Program::command(), "kronsae", &completions)
            .map_err(|e| Error::io("write completions", &completions.display().to_string(), &e))?;
    }
    Ok(())
}

fn make(folder: &Path) -> Result<PathBuf> {
    std::fs::create_dir_all(folder).map_err(|e| Error::io("make", &folder.display().to_string(), &e))?;
    Ok(folder.to_owned())
}
