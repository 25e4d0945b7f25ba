//! What the linker must know of the shared library: its SONAME, and that it stays in memory once loaded. And, with the
//! feature `cuda`, the kernels that are built in.

#[path = "build/cuda.rs"]
mod cuda;

use std::path::{Path, PathBuf};

/// The name programs record and look for at start. Its number is `KRONSAE_ABI_VERSION`.
const SONAME: &str = "libkronsae.so.0";

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    if std::env::var_os("CARGO_FEATURE_CUDA").is_some() {
        cuda::build();
    }
    if std::env::var("CARGO_CFG_TARGET_OS").as_deref() != Ok("linux") {
        return;
    }
    println!("cargo::rustc-cdylib-link-arg=-Wl,-soname,{SONAME}");
    // Encoders have threads; dlclose() under a running one would unmap its code.
    println!("cargo::rustc-cdylib-link-arg=-Wl,-z,nodelete");
    if let Some(folder) = std::env::var_os("OUT_DIR").and_then(|out| profile_folder(Path::new(&out))) {
        link_soname(&folder);
    }
}

/// `target/<profile>`, where the library will lie, from `target/<profile>/build/<package>/out`.
fn profile_folder(out: &Path) -> Option<PathBuf> {
    let build = out.parent()?.parent()?;
    (build.file_name()? == "build").then(|| build.parent().map(Path::to_owned))?
}

/// Puts the SONAME beside the library, so that a program linked against it in this tree starts. The link dangles until
/// the library is there, since this runs before it is linked.
#[cfg(unix)]
fn link_soname(folder: &Path) {
    let link = folder.join(SONAME);
    if let Err(error) = std::os::unix::fs::symlink("libkronsae.so", &link)
        && error.kind() != std::io::ErrorKind::AlreadyExists
    {
        println!(
            "cargo:warning={}: cannot make this link: {error}; programs linked here will not start",
            link.display()
        );
    }
}

#[cfg(not(unix))]
fn link_soname(_folder: &Path) {}
