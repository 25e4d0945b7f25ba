//! Programs built against the tarball as a user would: unpacked elsewhere, moved once, by CMake and by pkg-config.

use super::{Packed, fresh, newcomer, read, succeed, write};
use crate::process::{cargo, run};
use std::path::{Path, PathBuf};
use std::process::Command;

/// What the README's programs print of the tiny model, whose latents can be computed by hand.
pub(super) const EXPECTED: &str = "0 6\n5 4\n2 3\n";
/// The most that opening the library may take.
const MOST_MS: f64 = 5.0;

pub(super) fn check(root: &Path, packed: &Packed) -> Result<(), String> {
    for (tool, package) in [("cmake", "cmake"), ("pkg-config", "pkg-config")] {
        let mut version = Command::new(tool);
        version.arg("--version");
        run(version).map_err(|_| format!("missing tool: {tool} (Debian: apt-get install {package})"))?;
    }
    let elsewhere = tempfile::tempdir().map_err(|e| format!("no temporary folder: {e}"))?;
    let (first, moved) = (elsewhere.path().join("first"), elsewhere.path().join("a second place"));
    fresh(&first)?;
    let mut tar = Command::new("tar");
    tar.arg("-xzf").arg(&packed.tarball).arg("-C").arg(&first);
    succeed(tar)?;
    std::fs::rename(&first, &moved).map_err(|e| format!("{}: cannot move: {e}", first.display()))?;
    let prefix = moved.join(&packed.name);

    let model = model(root, elsewhere.path())?;
    let sources = sources(root, elsewhere.path(), &prefix)?;
    with_cmake(&sources, &prefix, &model)?;
    with_pkg_config(&sources, &prefix, &model)?;
    newcomer::check(root, &prefix, &model, elsewhere.path())?;
    in_debian(packed, &sources, elsewhere.path(), &model)?;
    println!("{}", opens(&sources, &prefix)?);
    Ok(())
}

pub(super) fn model(root: &Path, folder: &Path) -> Result<PathBuf, String> {
    let mut command = cargo(root, &["run", "--quiet", "--package", "kronsae", "--example", "make_model", "--"]);
    command.arg(folder);
    succeed(command)?;
    Ok(folder.join("tiny.safetensors"))
}

/// The project in tests/dist with the programs of the package's own README, and another Rust library.
fn sources(root: &Path, folder: &Path, prefix: &Path) -> Result<PathBuf, String> {
    let sources = folder.join("consumer");
    for file in ["CMakeLists.txt", "beside.c", "open.c"] {
        write(&sources.join(file), &read(&root.join("tests/dist").join(file))?)?;
    }
    let readme = read(&prefix.join("share/doc/kronsae/README.md"))?;
    for language in ["c", "cpp"] {
        let code = newcomer::program(&readme, language).map_err(|error| format!("packaging/{error}"))?;
        write(&sources.join(format!("first.{language}")), &code)?;
    }
    let mut rustc = Command::new(std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into()));
    rustc.args(["--edition=2024", "--crate-type=staticlib", "-O", "-o"]).arg(sources.join("libother.a"));
    rustc.arg(root.join("tests/dist/other.rs"));
    succeed(rustc)?;
    Ok(sources)
}

fn with_cmake(sources: &Path, prefix: &Path, model: &Path) -> Result<(), String> {
    let build = sources.join("build");
    let mut configure = Command::new("cmake");
    configure.arg("-S").arg(sources).arg("-B").arg(&build);
    configure.arg(format!("-DCMAKE_PREFIX_PATH={}", prefix.display()));
    configure.arg(format!("-DOTHER_RUST={}", sources.join("libother.a").display()));
    succeed(configure)?;
    let mut make = Command::new("cmake");
    make.arg("--build").arg(&build);
    succeed(make)?;
    for name in ["first_c_kronsae", "first_c_static", "first_cpp_kronsae", "first_cpp_static"] {
        prints(&build.join(name), model, None, EXPECTED)?;
    }
    prints(&build.join("beside"), model, None, "both work\n")?;
    // A request for another minor version, which before 1.0 is another interface, is refused.
    let other = sources.join("other");
    let project = "cmake_minimum_required(VERSION 3.16)\nproject(other C)\nfind_package(kronsae 0.999 REQUIRED)\n";
    write(&other.join("CMakeLists.txt"), project)?;
    let mut refused = Command::new("cmake");
    refused.arg("-S").arg(&other).arg("-B").arg(other.join("build"));
    refused.arg(format!("-DCMAKE_PREFIX_PATH={}", prefix.display()));
    let ran = run(refused)?;
    if ran.success || !ran.output.contains("requested version \"0.999\"") {
        return Err(format!("find_package(kronsae 0.999) was not refused:\n{}", ran.output));
    }
    Ok(())
}

fn with_pkg_config(sources: &Path, prefix: &Path, model: &Path) -> Result<(), String> {
    for package in ["kronsae", "kronsae-static"] {
        for (language, compiler, standard) in [("c", "cc", "-std=c11"), ("cpp", "c++", "-std=c++17")] {
            let program = sources.join(format!("{package}-{language}"));
            // As a user's shell would: paths with spaces come out of pkg-config escaped.
            let script = format!(
                "eval {compiler} {standard} -Wall -Wextra -Werror $(pkg-config --cflags {package}) \"'$1'\" -o \"'$2'\" $(pkg-config \
                 --libs {package})"
            );
            let mut shell = Command::new("sh");
            shell.args(["-ec", &script, "sh"]).arg(sources.join(format!("first.{language}"))).arg(&program);
            shell.env("PKG_CONFIG_PATH", prefix.join("lib/pkgconfig"));
            succeed(shell)?;
            let found_by_loader = (package == "kronsae").then(|| prefix.join("lib"));
            prints(&program, model, found_by_loader.as_deref(), EXPECTED)?;
        }
    }
    Ok(())
}

/// The Debian package, unpacked without installing: its program runs, and its library serves a program built before.
fn in_debian(packed: &Packed, sources: &Path, folder: &Path, model: &Path) -> Result<(), String> {
    let unpacked = folder.join("debian");
    let mut command = Command::new("dpkg-deb");
    command.arg("-x").arg(&packed.debian).arg(&unpacked);
    succeed(command)?;
    prints(&sources.join("kronsae-c"), model, Some(&unpacked.join("usr/lib")), EXPECTED)?;
    let mut version = Command::new(unpacked.join("usr/bin/kronsae"));
    version.arg("--version");
    let (found, expected) = (succeed(version)?, format!("kronsae {}\n", super::VERSION));
    if found == expected {
        Ok(())
    } else {
        Err(format!("bin/kronsae --version printed `{found}`, expected `{expected}`"))
    }
}

/// The fastest of several, since others may use the machine meanwhile.
fn opens(sources: &Path, prefix: &Path) -> Result<String, String> {
    let program = sources.join("open");
    let mut compiler = Command::new("cc");
    compiler.args(["-std=c11", "-O2", "-o"]).arg(&program).arg(sources.join("open.c")).arg("-ldl");
    succeed(compiler)?;
    let mut best = f64::INFINITY;
    for _ in 0..10 {
        let mut command = Command::new(&program);
        command.arg(prefix.join("lib/libkronsae.so"));
        let found = succeed(command)?;
        let took = found.trim().strip_suffix(" ms").and_then(|number| number.parse().ok());
        best = f64::min(best, took.ok_or_else(|| format!("open.c printed `{found}`, expected milliseconds"))?);
    }
    let text = format!("libkronsae.so opens in {best:.2} ms (at most {MOST_MS})");
    if best <= MOST_MS { Ok(text) } else { Err(text) }
}

/// Runs a program with the model, and without it, which is an error of its own.
pub(super) fn prints(program: &Path, model: &Path, libraries: Option<&Path>, expected: &str) -> Result<(), String> {
    let mut command = Command::new(program);
    command.arg(model);
    if let Some(folder) = libraries {
        command.env("LD_LIBRARY_PATH", folder);
    }
    let found = succeed(command)?;
    if found == expected {
        return Ok(());
    }
    Err(format!("{} printed `{found}`, expected `{expected}`", program.display()))
}
