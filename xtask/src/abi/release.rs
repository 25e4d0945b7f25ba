//! The library beside that of the last release, by what libabigail reads from both.

use crate::process::{cargo, run};
use std::path::{Path, PathBuf};
use std::process::Command;

/// One sentence on what was compared.
///
/// # Errors
/// What changed incompatibly; a build that failed; a missing tool.
pub(super) fn check(root: &Path) -> Result<String, String> {
    let Some(tag) = last_tag(root)? else {
        return Ok("abidiff: no release tag (v*) yet, so there is no library to compare with".to_owned());
    };
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), |dir| root.join(dir));
    let tree = target.join(format!("abi/{tag}"));
    if !tree.exists() {
        let mut git = git(root);
        git.args(["worktree", "add", "--detach", "--force"]).arg(&tree).arg(&tag);
        succeed(git, "git worktree add")?;
    }
    let old = library(&tree, &target.join("abi/release"))?;
    let new = library(root, &target)?;
    compare(&old, &new)?;
    Ok(format!("abidiff: programs built against {tag} work with this library"))
}

fn git(root: &Path) -> Command {
    let mut command = Command::new("git");
    command.arg("-C").arg(root);
    command
}

fn last_tag(root: &Path) -> Result<Option<String>, String> {
    let mut git = git(root);
    git.args(["tag", "--list", "v*", "--sort=-version:refname", "--merged", "HEAD"]);
    let ran = run(git)?;
    // Sources without their history have no tags either.
    Ok(ran.success.then(|| ran.output.lines().next().map(str::to_owned)).flatten())
}

/// Builds the shared library of a tree.
fn library(tree: &Path, target: &Path) -> Result<PathBuf, String> {
    let mut command = cargo(tree, &["build", "--quiet", "--package", "kronsae", "--lib"]);
    command.env("CARGO_TARGET_DIR", target);
    succeed(command, "cargo build")?;
    Ok(target.join("debug/libkronsae.so"))
}

/// Fails where abidiff finds that functions went or changed.
fn compare(old: &Path, new: &Path) -> Result<(), String> {
    let mut abidiff = Command::new("abidiff");
    abidiff.args(["--no-added-syms", "--exported-interfaces-only"]).arg(old).arg(new);
    let ran = run(abidiff).map_err(|e| match e.as_str() {
        "missing tool: abidiff" => "missing tool: abidiff (Debian: apt-get install abigail-tools)".to_owned(),
        _ => e,
    })?;
    if ran.success { Ok(()) } else { Err(format!("abidiff:\n{}", ran.output)) }
}

fn succeed(command: Command, name: &str) -> Result<(), String> {
    let ran = run(command)?;
    if ran.success { Ok(()) } else { Err(format!("{name} failed:\n{}", ran.output)) }
}
