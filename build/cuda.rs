//! The kernels of `cuda/`, built into the library: as text, for NVRTC, and, where nvcc is there, as machine code.
//!
//! nvcc is what the environment variable NVCC names, else the one on PATH. Without one, nothing is said: the library then
//! compiles its kernels when it first needs them.

use std::ffi::OsString;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Architectures with machine code of their own. Others translate the PTX, which is of the oldest.
const MACHINES: [&str; 3] = ["80", "90a", "100"];

pub(crate) fn build() {
    println!("cargo::rerun-if-changed=build/cuda.rs");
    println!("cargo::rerun-if-changed=cuda");
    println!("cargo::rerun-if-env-changed=NVCC");
    let folder = PathBuf::from(variable("CARGO_MANIFEST_DIR")).join("cuda");
    let out = PathBuf::from(variable("OUT_DIR"));
    let image = out.join("kronsae.fatbin");
    let compiled = nvcc().is_some_and(|nvcc| compile(&nvcc, &folder, &image));
    let text = list(&folder, compiled.then_some(&image)).unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
    let to = out.join("cuda_sources.rs");
    std::fs::write(&to, text).unwrap_or_else(|e| panic!("{}: cannot write: {e}", to.display()));
}

fn variable(name: &str) -> OsString {
    std::env::var_os(name).unwrap_or_else(|| panic!("cargo sets {name} for build scripts"))
}

/// The compiler, if there is one.
fn nvcc() -> Option<PathBuf> {
    if let Some(named) = std::env::var_os("NVCC").filter(|named| !named.is_empty()) {
        return Some(PathBuf::from(named));
    }
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|folder| folder.join("nvcc")).find(|nvcc| nvcc.is_file())
}

/// Makes machine code for those of the architectures that this nvcc knows, and PTX.
fn compile(nvcc: &Path, folder: &Path, image: &Path) -> bool {
    let warn = |what: &str| {
        println!("cargo::warning={}: {what}; the library will compile its kernels at run time", nvcc.display());
        false
    };
    let known = match Command::new(nvcc).arg("--list-gpu-arch").output() {
        Ok(output) if output.status.success() => String::from_utf8_lossy(&output.stdout).into_owned(),
        Ok(output) => return warn(&format!("--list-gpu-arch ended with {}", output.status)),
        Err(error) => return warn(&format!("cannot be run: {error}")),
    };
    let mut arguments: Vec<OsString> = Vec::new();
    // Exact by contract: no fast-math, no flushing of denormals. The flags are those of src/cuda/driver/compile.rs.
    arguments
        .extend(["-fatbin", "-std=c++17", "-O3", "--ftz=false", "--prec-sqrt=true", "--threads=0"].map(OsString::from));
    arguments.extend(["-gencode", "arch=compute_80,code=compute_80"].map(OsString::from));
    for machine in MACHINES {
        // The list names no variants.
        if known.lines().any(|line| line.trim() == format!("compute_{}", machine.trim_end_matches('a'))) {
            arguments.push("-gencode".into());
            arguments.push(format!("arch=compute_{machine},code=sm_{machine}").into());
        }
    }
    arguments.extend([OsString::from("-o"), image.into(), folder.join("kronsae.cu").into()]);
    // Six times smaller; compilers before 12.8 do not know it, and drivers that take newer code do.
    let run = |more: &[&str]| Command::new(nvcc).args(more).args(&arguments).output();
    let output = match run(&["--compress-mode=size"]) {
        Ok(output) if !output.status.success() => run(&[]),
        ran => ran,
    };
    match output {
        Ok(output) if output.status.success() => true,
        Ok(output) => {
            let text = String::from_utf8_lossy(&output.stderr).into_owned();
            warn(&format!("cannot compile the kernels: {}", text.lines().next().unwrap_or("no message")))
        }
        Err(error) => warn(&format!("cannot be run: {error}")),
    }
}

/// The Rust source that names the files; see src/cuda/driver/sources.rs.
fn list(folder: &Path, image: Option<&PathBuf>) -> std::io::Result<String> {
    let mut headers = Vec::new();
    for (within, ending) in [("", "cuh"), ("nvrtc", "h")] {
        for entry in std::fs::read_dir(folder.join(within))? {
            let path = entry?.path();
            if path.extension().is_some_and(|found| found == ending) {
                headers.push(path);
            }
        }
    }
    headers.sort();
    let kernels = std::fs::read_to_string(folder.join("kernels.def"))?;
    let named = |macro_name: &str| {
        let name = |line: &'_ str| {
            line.trim().strip_prefix(macro_name)?.strip_prefix('(')?.split(')').next().map(str::to_owned)
        };
        kernels.lines().filter_map(name).collect::<Vec<_>>()
    };
    let source = folder.join("kronsae.cu");
    let mut text = String::new();
    let mut add = |line: String| writeln!(text, "{line}").map_err(std::io::Error::other);
    add(format!("pub(super) const SOURCE: &str = include_str!({source:?});"))?;
    add("pub(super) const HEADERS: &[(&str, &str)] = &[".to_owned())?;
    for header in &headers {
        let name = header.file_name().unwrap_or_default();
        add(format!("    ({name:?}, include_str!({header:?})),"))?;
    }
    add("];".to_owned())?;
    add(format!("pub(super) const ENCODE_KERNELS: &[&str] = &{:?};", named("KERNEL")))?;
    add(format!("pub(super) const TRAINING_KERNELS: &[&str] = &{:?};", named("TRAINING_KERNEL")))?;
    match image {
        Some(image) => {
            // The driver reads its numbers in place.
            add("#[repr(C, align(64))] struct Aligned<T: ?Sized>(T);".to_owned())?;
            add(format!("static IMAGE_BYTES: &Aligned<[u8]> = &Aligned(*include_bytes!({image:?}));"))?;
            add("pub(super) const IMAGE: Option<&[u8]> = Some(&IMAGE_BYTES.0);".to_owned())?;
        }
        None => add("pub(super) const IMAGE: Option<&[u8]> = None;".to_owned())?,
    }
    Ok(text)
}
