//! The runtime's CUDA room without a GPU: the whole encode on emulated kernels, and the driver's code against stand-ins for
//! NVIDIA's libraries.

use super::{Report, cuda};
use crate::process::{cargo, run};
use std::path::Path;

/// The encode over the emulated device, and a monitor's taps that rest on it.
pub(super) fn encode(root: &Path) -> Report {
    with_kernels(root, |kernels| {
        let args = ["test", "--package", "kronsae", "--features", "cuda-emulation", "--test", "cuda_encode"];
        let rest = ["--test", "device_tap", "--", "--include-ignored"];
        let mut command = cargo(root, &[&args[..], &rest].concat());
        command.env("KRONSAE_CUDA_EMULATION", kernels);
        Report::of_tests(run(command))
    })
}

/// The driver's device over the stand-ins, and lints of that feature.
pub(super) fn driver(root: &Path) -> Report {
    with_kernels(root, |kernels| {
        let args = ["test", "--package", "kronsae", "--features", "cuda", "--test", "cuda_driver", "--lib"];
        let mut command =
            cargo(root, &[&args[..], &["--", "--include-ignored", "--skip", "every_kernel_compiles"]].concat());
        command.env("FAKE_CUDA_KERNELS", kernels);
        let mut report = Report::of_tests(run(command));
        // Ranks that train together over them.
        let args = ["test", "--package", "kronsae-trainer", "--test", "nccl", "--", "--include-ignored"];
        let mut command = cargo(root, &args);
        command.env("FAKE_CUDA_KERNELS", kernels);
        report.add(&Report::of_tests(run(command)));
        for features in ["cuda", "cuda-emulation"] {
            let lints =
                ["clippy", "--package", "kronsae", "--features", features, "--all-targets", "--", "-D", "warnings"];
            report.add(&match super::succeed(run(cargo(root, &lints))) {
                Ok(()) => Report { passed: 1, ..Report::default() },
                Err(output) => Report { failed: 1, output, ..Report::default() },
            });
        }
        report
    })
}

/// Builds the emulated kernels, without the kernels that are wrong on purpose.
fn with_kernels(root: &Path, tests: impl FnOnce(&Path) -> Report) -> Report {
    match cuda::build(root, "kernels_alone", &[]) {
        Ok(kernels) => tests(&kernels),
        Err(error) => match error.strip_prefix("missing tool: ") {
            Some(tool) => Report { skipped: 1, missing: Some(tool.trim_end().to_owned()), ..Report::default() },
            None => Report { failed: 1, output: error, ..Report::default() },
        },
    }
}
