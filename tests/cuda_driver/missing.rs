//! Whatever is missing, one error names it.

use crate::libraries::{Installed, is_child, outcome};
use kronsae::cuda::{CudaDevice, Device};

const OPEN: &str = "missing::child_opens";

#[test]
#[ignore = "runs in processes of its own, which the other tests start"]
fn child_opens() {
    if !is_child() {
        return;
    }
    let ordinal = std::env::var("ORDINAL").map_or(0, |text| text.parse().unwrap());
    match CudaDevice::open(ordinal) {
        Ok(device) => println!("\nOUTCOME opened {}", device.name()),
        Err(error) => println!("\nOUTCOME {:?}: {}", error.status(), error.message().replace('\n', " | ")),
    }
}

#[track_caller]
fn refused(installed: Installed, environment: &[(&str, &str)], words: &[&str]) {
    let said = outcome(OPEN, installed, environment);
    assert!(said.starts_with("Unsupported: "), "{said}");
    for word in words {
        assert!(said.contains(word), "{said}\nhas not `{word}`");
    }
}

#[test]
fn no_driver() {
    refused(Installed::Nothing, &[], &["no NVIDIA driver", "libcuda.so.1", "use the CPU"]);
}

#[test]
fn a_driver_that_is_too_old() {
    refused(Installed::AncientDriver, &[], &["too old", "supports CUDA 11.0", "11.4"]);
    refused(Installed::Everything, &[("FAKE_CUDA_VERSION", "11020")], &["too old", "supports CUDA 11.2"]);
    refused(Installed::HollowDriver, &[], &["too old", "CUDA 12.0", "has no cuCtxPopCurrent_v2"]);
}

#[test]
fn no_device() {
    let none = [("FAKE_CUDA_DEVICES", "0")];
    refused(Installed::Everything, &none, &["finds no device", "CUDA_ERROR_NO_DEVICE", "CUDA_VISIBLE_DEVICES"]);
    refused(Installed::Everything, &[("ORDINAL", "3")], &["no CUDA device 3", "shows 1"]);
}

#[test]
fn a_device_that_is_too_old() {
    refused(Installed::Everything, &[("FAKE_CUDA_CAPABILITY", "75")], &["Stand-in H200", "7.5", "8.0 (Ampere)"]);
}

#[test]
fn no_cublaslt() {
    refused(Installed::WithoutCublasLt, &[], &["libcublasLt cannot be opened", "LD_LIBRARY_PATH", "Stand-in H200"]);
}

#[test]
#[ignore = "needs the library of emulated kernels: cargo xtask test --only cuda-driver"]
fn no_nvrtc_and_nothing_built_in() {
    if built_in() {
        return;
    }
    refused(Installed::WithoutNvrtc, &[], &["none were built in", "libnvrtc cannot be opened", "nvcc"]);
}

#[test]
fn a_compiler_that_fails_is_quoted() {
    let fails = [("FAKE_NVRTC_FAILS", "1"), ("FAKE_CUDA_REFUSES", "1")];
    refused(Installed::Everything, &fails, &["NVRTC_ERROR_COMPILATION", "error: planted"]);
}

/// Whether this build has kernels built in: nvcc was there.
fn built_in() -> bool {
    let environment = [("FAKE_CUDA_KERNELS", kernels())];
    outcome(OPEN, Installed::WithoutNvrtc, &environment).starts_with("opened")
}

fn kernels() -> &'static str {
    static KERNELS: std::sync::OnceLock<String> = std::sync::OnceLock::new();
    KERNELS.get_or_init(|| std::env::var("FAKE_CUDA_KERNELS").unwrap_or_default())
}

/// Kernels are compiled once a machine; what the cache holds is not believed blindly, and it need not be writable.
#[test]
#[ignore = "needs the library of emulated kernels: cargo xtask test --only cuda-driver"]
fn kernels_are_compiled_once() {
    let cache = tempfile::tempdir().unwrap();
    let log = cache.path().join("log");
    let folder = cache.path().join("cache");
    let open = |more: &[(&str, &str)]| {
        let mut environment = vec![
            ("FAKE_CUDA_KERNELS", kernels()),
            ("FAKE_CUDA_REFUSES", "1"),
            ("FAKE_CUDA_LOG", log.to_str().unwrap()),
            ("XDG_CACHE_HOME", folder.to_str().unwrap()),
        ];
        environment.extend_from_slice(more);
        std::fs::write(&log, "").unwrap();
        assert_eq!(outcome(OPEN, Installed::Everything, &environment), "opened Stand-in H200");
        let log = std::fs::read_to_string(&log).unwrap();
        let lines: Vec<String> = log.lines().filter(|line| line.contains("compiled")).map(str::to_owned).collect();
        lines
    };
    let compiled = "compiled for --gpu-architecture=sm_90a ";
    let first = open(&[]);
    assert!(first.len() == 2 && first[0].starts_with(compiled), "{first:?}");
    assert_eq!(open(&[]), ["loaded a compiled image"]);
    // Another architecture and another compiler are other entries; a device that the compiler does not know gets PTX.
    assert!(open(&[("FAKE_CUDA_CAPABILITY", "80")])[0].contains("=sm_80 "));
    assert!(open(&[("FAKE_NVRTC_VERSION", "12060")])[0].starts_with(compiled));
    assert!(open(&[("FAKE_CUDA_CAPABILITY", "100"), ("FAKE_NVRTC_NEWEST", "90")])[0].contains("=compute_90 "));
    let entries: Vec<_> = std::fs::read_dir(folder.join("kronsae")).unwrap().map(|e| e.unwrap().path()).collect();
    assert_eq!(entries.len(), 4, "{entries:?}");
    for entry in &entries {
        let mut bytes = std::fs::read(entry).unwrap();
        let last = bytes.len() - 3;
        bytes[last] ^= 1;
        std::fs::write(entry, bytes).unwrap();
    }
    assert!(open(&[])[0].starts_with(compiled), "a damaged entry is made anew");
    assert_eq!(open(&[]), ["loaded a compiled image"]);
    // A place where nothing can be written, and none at all.
    for nowhere in ["/proc/kronsae", "relative"] {
        assert!(open(&[("XDG_CACHE_HOME", nowhere), ("HOME", "/proc")])[0].starts_with(compiled));
    }
}

/// A driver older than the toolkit of the build: what was built in is refused, and the compiler of this machine used.
#[test]
#[ignore = "needs the library of emulated kernels: cargo xtask test --only cuda-driver"]
fn what_was_built_in_is_used_where_the_driver_takes_it() {
    let environment = [("FAKE_CUDA_KERNELS", kernels())];
    if !built_in() {
        let said = outcome(OPEN, Installed::WithoutNvrtc, &environment);
        assert!(said.contains("none were built in"), "{said}");
        return;
    }
    assert_eq!(outcome(OPEN, Installed::WithoutNvrtc, &environment), "opened Stand-in H200");
    let refuses = [environment[0], ("FAKE_CUDA_REFUSES", "1")];
    assert_eq!(outcome(OPEN, Installed::Everything, &refuses), "opened Stand-in H200");
    refused(
        Installed::WithoutNvrtc,
        &refuses,
        &["does not take those that were built in", "CUDA_ERROR_UNSUPPORTED_PTX_VERSION", "libnvrtc cannot be opened"],
    );
}
