//! `cargo xtask dist`: a tarball and a Debian package of what is shipped, in `target/package`.

mod consumer;
mod library;
mod linker;
mod newcomer;
pub(crate) mod nuget;
mod zip;

use crate::process::{cargo, run};
use crate::{abi, licences};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

const VERSION: &str = env!("CARGO_PKG_VERSION");
const MAJOR: &str = env!("CARGO_PKG_VERSION_MAJOR");
/// The number in the SONAME.
const ABI: u32 = kronsae::capi::version::KRONSAE_ABI_VERSION;

/// The most bytes of the stripped shared library, with all features and without the live page.
const MOST: u64 = 10_000_000;
const MOST_WITHOUT_LIVE: u64 = 6_000_000;

/// Builds, lays out and packs everything, and prints its sizes.
///
/// # Errors
/// A missing tool; a build's output; a library that is too large.
pub(crate) fn make(root: &Path) -> Result<(), String> {
    build(root).map(|_| ())
}

/// As [`make`]; then programs are built against the tarball, unpacked elsewhere and moved.
///
/// # Errors
/// As [`make`]; what does not work.
pub(crate) fn check(root: &Path) -> Result<(), String> {
    let packed = build(root)?;
    consumer::check(root, &packed)
}

/// What was made.
struct Packed {
    /// Of the folder that the tarball holds.
    name: String,
    tarball: PathBuf,
    debian: PathBuf,
}

fn build(root: &Path) -> Result<Packed, String> {
    abi::complete(root)?;
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), |dir| root.join(dir));
    let work = target.join("package");
    let built = library(root)?;
    let bare_built =
        shipped(root, &target.join("without-live"), &["--package", "kronsae", "--lib", "--no-default-features"])?;

    let name = format!("kronsae-{VERSION}-x86_64-linux");
    let tree = work.join(&name);
    fresh(&tree)?;
    lay_out(root, &built, &work, &tree)?;

    let bare = work.join("libkronsae-without-live.so");
    copy(&bare_built.join("libkronsae.so"), &bare)?;
    library::strip(&bare)?;
    let shared = tree.join(format!("lib/libkronsae.so.{VERSION}"));
    limit("libkronsae.so", &shared, MOST)?;
    limit("libkronsae.so without the live page", &bare, MOST_WITHOUT_LIVE)?;
    for file in [shared, tree.join("bin/kronsae")] {
        let newest = library::newest_glibc(&file)?;
        println!("{}: the newest symbol it needs is GLIBC_{newest}", relative(&file, &tree));
        if newest > linker::FLOOR {
            return Err(format!("{}: needs GLIBC_{newest}, expected at most {}", file.display(), linker::FLOOR));
        }
    }
    let (docs, stated) = (read(&root.join("docs/abi.md"))?, format!("glibc {}", linker::FLOOR));
    if !docs.contains(&stated) {
        return Err(format!("docs/abi.md does not state `{stated}`"));
    }
    for file in ["bin/kronsae", "lib/libkronsae.a"] {
        println!("{file}: {}", megabytes(size(&tree.join(file))?));
    }

    let tarball = work.join(format!("{name}.tar.gz"));
    let mut tar = Command::new("tar");
    tar.args(["--sort=name", "--owner=0", "--group=0", "--numeric-owner", "--mtime"]).arg(format!("@{}", date(root)));
    tar.arg("-C").arg(&work).arg("-czf").arg(&tarball).arg(&name).env("GZIP", "-n");
    succeed(tar)?;
    let debian = debian(&tree, &work, root)?;
    for file in [&tarball, &debian] {
        println!("{}: {}", file.display(), megabytes(size(file)?));
    }
    Ok(Packed { name, tarball, debian })
}

/// The folder with `libkronsae.so` and the program as they are shipped. Built together: apart, their dependencies have other
/// features, and each would make cargo link the other anew.
///
/// # Errors
/// zig is missing; the build's output.
pub(crate) fn library(root: &Path) -> Result<PathBuf, String> {
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), |dir| root.join(dir));
    let both = ["--package", "kronsae", "--package", "kronsae-trainer", "--lib", "--bin", "kronsae"];
    shipped(root, &target.join("shipped"), &both)
}

/// Builds something for packages, in a folder apart from what is built for this machine alone; returns where it lies.
fn shipped(root: &Path, folder: &Path, what: &[&str]) -> Result<PathBuf, String> {
    let linker = linker::script(&folder.with_file_name("package"))?;
    let profile = ["build", "--quiet", "--locked", "--profile", "dist", "--target", "x86_64-unknown-linux-gnu"];
    let mut command = cargo(root, &[&profile[..], what].concat());
    command.env("CARGO_TARGET_DIR", folder).env("CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_LINKER", &linker);
    succeed(command)?;
    Ok(folder.join("x86_64-unknown-linux-gnu/dist"))
}

/// The folder that becomes the tarball, and `/usr` of the Debian package.
fn lay_out(root: &Path, built: &Path, work: &Path, tree: &Path) -> Result<(), String> {
    let program = tree.join("bin/kronsae");
    copy(&built.join("kronsae"), &program)?;
    library::strip(&program)?;
    let file = format!("libkronsae.so.{VERSION}");
    copy(&built.join("libkronsae.so"), &tree.join("lib").join(&file))?;
    library::strip(&tree.join("lib").join(&file))?;
    for link in [format!("libkronsae.so.{ABI}"), "libkronsae.so".to_owned()] {
        let link = tree.join("lib").join(link);
        std::os::unix::fs::symlink(&file, &link).map_err(|e| format!("{}: cannot make: {e}", link.display()))?;
    }
    library::close_static(root, &built.join("libkronsae.a"), &tree.join("lib/libkronsae.a"), work)?;
    for header in ["kronsae.h", "kronsae.hpp"] {
        copy(&root.join("include").join(header), &tree.join("include").join(header))?;
    }
    for (template, to) in [
        ("kronsae-config.cmake", "lib/cmake/kronsae"),
        ("kronsae-config-version.cmake", "lib/cmake/kronsae"),
        ("kronsae.pc", "lib/pkgconfig"),
        ("kronsae-static.pc", "lib/pkgconfig"),
    ] {
        let text = read(&root.join(format!("packaging/{template}.in")))?;
        let text = text.replace("@VERSION@", VERSION).replace("@MAJOR@", MAJOR).replace("@ABI@", &ABI.to_string());
        write(&tree.join(to).join(template), &text)?;
    }
    manual(&program, work, tree)?;
    bindings(root, tree)?;
    let doc = tree.join("share/doc/kronsae");
    for (from, to) in [
        ("packaging/README.md", "README.md"),
        ("docs/abi.md", "abi.md"),
        ("CHANGELOG.md", "CHANGELOG.md"),
        ("LICENSE-MIT", "LICENSE-MIT"),
        ("LICENSE-APACHE", "LICENSE-APACHE"),
    ] {
        copy(&root.join(from), &doc.join(to))?;
    }
    write(&doc.join("THIRD-PARTY.txt"), &(licences::texts(root)? + &linker::licences()?))
}

/// Sources of the bindings that are compiled where they are used, without their tests.
fn bindings(root: &Path, tree: &Path) -> Result<(), String> {
    let to = tree.join("share/kronsae");
    for (from, into, only) in [
        ("go", "go", ".go"),
        ("go", "go", ".h"),
        ("go", "go", ".mod"),
        ("go", "go", "README.md"),
        ("csharp/src", "csharp/src", ".cs"),
    ] {
        copy_tree(&root.join("bindings").join(from), &to.join(into), only)?;
    }
    for file in ["README.md", "Kronsae.csproj", "examples/Example.cs", "examples/Gateway.cs"] {
        copy(&root.join("bindings/csharp").join(file), &to.join("csharp").join(file))?;
    }
    Ok(())
}

/// Files whose names end so, in all folders, but tests.
fn copy_tree(from: &Path, to: &Path, end: &str) -> Result<(), String> {
    let unreadable = |e: std::io::Error| format!("{}: cannot read: {e}", from.display());
    for entry in fs::read_dir(from).map_err(unreadable)? {
        let entry = entry.map_err(unreadable)?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if entry.path().is_dir() {
            copy_tree(&entry.path(), &to.join(&name), end)?;
        } else if name.ends_with(end) && !name.ends_with("_test.go") {
            copy(&entry.path(), &to.join(&name))?;
        }
    }
    Ok(())
}

/// Man pages and completions, as the program itself writes them.
fn manual(program: &Path, work: &Path, tree: &Path) -> Result<(), String> {
    let made = work.join("manual");
    fresh(&made)?;
    let mut command = Command::new(program);
    command.arg("manual").arg(&made);
    succeed(command)?;
    for page in fs::read_dir(made.join("man")).map_err(|e| format!("{}: cannot read: {e}", made.display()))? {
        let page = page.map_err(|e| e.to_string())?;
        copy(&page.path(), &tree.join("share/man/man1").join(page.file_name()))?;
    }
    for (from, to) in [
        ("kronsae.bash", "bash-completion/completions/kronsae"),
        ("_kronsae", "zsh/site-functions/_kronsae"),
        ("kronsae.fish", "fish/vendor_completions.d/kronsae.fish"),
    ] {
        copy(&made.join("completions").join(from), &tree.join("share").join(to))?;
    }
    Ok(())
}

/// The Debian package: the same tree below `/usr`.
fn debian(tree: &Path, work: &Path, root: &Path) -> Result<PathBuf, String> {
    let stage = work.join("debian");
    fresh(&stage)?;
    let mut command = Command::new("cp");
    command.arg("-a").arg(tree).arg(stage.join("usr"));
    succeed(command)?;
    let glibc = library::newest_glibc(&tree.join("bin/kronsae"))?
        .max(library::newest_glibc(&tree.join(format!("lib/libkronsae.so.{VERSION}")))?);
    let licences = format!("{}\n{}", read(&root.join("LICENSE-MIT"))?, read(&root.join("LICENSE-APACHE"))?);
    write(
        &stage.join("usr/share/doc/kronsae/copyright"),
        &format!("MIT or Apache-2.0, at your choice.\n\n{licences}"),
    )?;
    let control = format!(
        "Package: kronsae\nVersion: {VERSION}\nArchitecture: amd64\nMaintainer: The kronsae project \
         <{repository}>\nSection: science\nPriority: optional\nDepends: libc6 (>= {glibc})\nHomepage: \
         {repository}\nDescription: sparse latents of a language model's activations, on the CPU\n The command that \
         trains, evaluates and calibrates sparse autoencoders, the library\n that encodes with them and monitors a \
         serving model, and its C and C++ headers.\n",
        repository = env!("CARGO_PKG_REPOSITORY"),
        glibc = glibc,
    );
    write(&stage.join("DEBIAN/control"), &control)?;
    write(&stage.join("DEBIAN/triggers"), "activate-noawait ldconfig\n")?;
    let package = work.join(format!("kronsae_{VERSION}_amd64.deb"));
    let mut command = Command::new("dpkg-deb");
    command.args(["--root-owner-group", "--build"]).arg(&stage).arg(&package);
    command.env("SOURCE_DATE_EPOCH", date(root));
    succeed(command)?;
    Ok(package)
}

/// When the sources were last changed, for files that are the same whenever they are made.
fn date(root: &Path) -> String {
    let mut git = Command::new("git");
    git.arg("-C").arg(root).args(["log", "-1", "--format=%ct"]);
    run(git).ok().filter(|ran| ran.success).map_or_else(|| "0".to_owned(), |ran| ran.output.trim().to_owned())
}

fn limit(name: &str, file: &Path, most: u64) -> Result<(), String> {
    let size = size(file)?;
    println!("{name}: {} (at most {})", megabytes(size), megabytes(most));
    if size <= most { Ok(()) } else { Err(format!("{name} has {size} bytes, expected at most {most}")) }
}

fn size(file: &Path) -> Result<u64, String> {
    fs::metadata(file).map(|found| found.len()).map_err(|e| format!("{}: cannot read: {e}", file.display()))
}

fn megabytes(size: u64) -> String {
    format!("{:.2} MB", size as f64 / 1e6)
}

fn relative(file: &Path, tree: &Path) -> String {
    file.strip_prefix(tree).unwrap_or(file).display().to_string()
}

/// An empty folder.
fn fresh(folder: &Path) -> Result<(), String> {
    if folder.exists() {
        fs::remove_dir_all(folder).map_err(|e| format!("{}: cannot remove: {e}", folder.display()))?;
    }
    fs::create_dir_all(folder).map_err(|e| format!("{}: cannot make: {e}", folder.display()))
}

fn parent(file: &Path) -> Result<(), String> {
    let folder = file.parent().unwrap_or(file);
    fs::create_dir_all(folder).map_err(|e| format!("{}: cannot make: {e}", folder.display()))
}

fn copy(from: &Path, to: &Path) -> Result<(), String> {
    parent(to)?;
    fs::copy(from, to).map(|_| ()).map_err(|e| format!("{} to {}: cannot copy: {e}", from.display(), to.display()))
}

fn read(file: &Path) -> Result<String, String> {
    fs::read_to_string(file).map_err(|e| format!("{}: cannot read: {e}", file.display()))
}

fn write(file: &Path, text: &str) -> Result<(), String> {
    parent(file)?;
    fs::write(file, text).map_err(|e| format!("{}: cannot write: {e}", file.display()))
}

/// Runs a command that must succeed, and returns what it printed.
fn succeed(command: Command) -> Result<String, String> {
    let name = format!("{command:?}");
    let ran = run(command)?;
    if ran.success { Ok(ran.output) } else { Err(format!("{name} failed:\n{}", ran.output)) }
}
