//! Training on several ranks without a GPU: MPI processes over the emulated kernels, and lints of that feature.

use super::{Report, cuda, succeed};
use crate::process::{cargo, run};
use std::path::Path;
use std::process::Command;

const PACKAGES: &str = "Debian: apt-get install libopenmpi-dev openmpi-bin libclang-dev";
const FEATURES: [&str; 4] = ["--package", "kronsae-trainer", "--features", "cuda-emulation,mpi"];

/// Ranks against one process.
pub(super) fn ranks(root: &Path) -> Report {
    for tool in ["mpirun", "mpicc"] {
        let mut version = Command::new(tool);
        version.arg("--version");
        if run(version).is_err() {
            return missing(format!("{tool} ({PACKAGES})"));
        }
    }
    let kernels = match cuda::build(root, "kernels_alone", &[]) {
        Ok(kernels) => kernels,
        Err(error) => match error.strip_prefix("missing tool: ") {
            Some(tool) => return missing(tool.trim_end().to_owned()),
            None => return Report { failed: 1, output: error, ..Report::default() },
        },
    };
    let mut tests = cargo(root, &[&["test"][..], &FEATURES, &["--test", "mpi"]].concat());
    tests.env("KRONSAE_CUDA_EMULATION", kernels);
    let ran = run(tests);
    if ran.as_ref().is_ok_and(|ran| !ran.success && ran.output.contains("Unable to find libclang")) {
        return missing(format!("libclang ({PACKAGES})"));
    }
    let mut report = Report::of_tests(ran);
    // What ranks run is started by the tests, and counted there.
    report.skipped = 0;
    let lints = [&["clippy"][..], &FEATURES, &["--all-targets", "--", "-D", "warnings"]].concat();
    report.add(&match succeed(run(cargo(root, &lints))) {
        Ok(()) => Report { passed: 1, ..Report::default() },
        Err(output) => Report { failed: 1, output, ..Report::default() },
    });
    report
}

fn missing(tool: String) -> Report {
    Report { skipped: 1, missing: Some(tool), ..Report::default() }
}
