//! Development tasks: `cargo xtask help`.

mod abi;
mod data;
mod dist;
mod gpu;
mod header;
mod licences;
mod native;
mod process;
mod sample;
mod steps;

use std::path::Path;
use std::process::ExitCode;

const HELP: &str = "\
Development tasks of the kronsae workspace.

  cargo xtask test           every test, as named steps; `cargo xtask test --help` for its options
  cargo xtask header         writes include/kronsae.h anew from the C ABI
  cargo xtask abi            that programs built against abi/kronsae.abi and the last release go on working;
                             with --write, records what was added
  cargo xtask dist           a tarball and a Debian package in target/package; with --check, tries them
  cargo xtask licences       that the dependencies' licences are among those allowed
  cargo xtask gpu            checks the GPU backend and measures it beside its peers; emulated where there is no GPU;
                             options as tools/gpu.sh, which does the same from a built binary
  cargo xtask golden         writes data/golden anew from the naive reference in tests/common
  cargo xtask sample FOLDER  cuts data/sample anew from a folder of activation shards

A first run after cloning: `cargo xtask test --quick` (a few minutes), then `cargo xtask test`.
";

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or(Path::new("."));
    let done = match args.as_slice() {
        [] | ["help" | "--help" | "-h"] => {
            print!("{HELP}");
            Ok(true)
        }
        ["test", options @ ..] => steps::test(root, options),
        ["gpu", options @ ..] => gpu::run(root, options),
        ["golden"] => data::write_golden(root).map(|()| true),
        ["sample", folder] => sample::run(Path::new(folder), &root.join("data/sample")).map(|()| true),
        ["abi"] => abi::check(root).map(|()| true),
        ["abi", "--write"] => abi::write(root).map(|()| true),
        ["dist"] => dist::make(root).map(|()| true),
        ["dist", "--check"] => dist::check(root).map(|()| true),
        ["licences"] => licences::check(root).map(|()| true),
        ["header"] => header::write().map(|()| true),
        other => Err(format!("unknown task `{}`\n\n{HELP}", other.join(" "))),
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {}", error.trim_end());
            ExitCode::from(2)
        }
    }
}
