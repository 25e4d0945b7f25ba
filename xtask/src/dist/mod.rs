//! `cargo xtask dist`: a tarball and a Debian package of what is shipped, in `target/package`.

mod consumer;
mod library;

use crate::licences;
use crate::process::{cargo, run};
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
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), |dir| root.join(dir));
    let built = target.join("dist");
    let profile = ["build", "--quiet", "--locked", "--profile", "dist"];
    succeed(cargo(root, &[&profile[..], &["--package", "kronsae", "--lib"]].concat()))?;
    succeed(cargo(root, &[&profile[..], &["--package", "kronsae-trainer", "--bin", "kronsae"]].concat()))?;
    let mut bare = cargo(root, &[&profile[..], &["--package", "kronsae", "--lib", "--no-default-features"]].concat());
    let bare_target = target.join("without-live");
    bare.env("CARGO_TARGET_DIR", &bare_target);
    succeed(bare)?;

    let work = target.join("package");
    let name = format!("kronsae-{VERSION}-x86_64-linux");
    let tree = work.join(&name);
    fresh(&tree)?;
    lay_out(root, &built, &work, &tree)?;

    let bare = work.join("libkronsae-without-live.so");
    copy(&bare_target.join("dist/libkronsae.so"), &bare)?;
    library::strip(&bare)?;
    let shared = tree.join(format!("lib/libkronsae.so.{VERSION}"));
    limit("libkronsae.so", &shared, MOST)?;
    limit("libkronsae.so without the live page", &bare, MOST_WITHOUT_LIVE)?;
    for file in [shared, tree.join("bin/kronsae")] {
        println!("{}: needs {}", relative(&file, &tree), library::newest_glibc(&file)?);
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
    write(&doc.join("THIRD-PARTY.txt"), &licences::texts(root)?)
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
         <{repository}>\nSection: science\nPriority: optional\nDepends: libc6 (>= {glibc}), libgcc-s1\nHomepage: \
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
