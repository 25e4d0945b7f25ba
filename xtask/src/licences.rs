//! `cargo xtask licences`: what the licences of the dependencies ask for, from `cargo metadata`.

use crate::process::cargo;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

/// Licences under which a crate may become part of what is shipped.
const SHIPPED: [&str; 10] = [
    "0BSD",
    "Apache-2.0",
    "Apache-2.0 WITH LLVM-exception",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "ISC",
    "MIT",
    "Unicode-3.0",
    "Unlicense",
    "Zlib",
];
/// And those of programs that only build and test it.
const TOOLS: [&str; 1] = ["MPL-2.0"];

struct Package {
    name: String,
    version: String,
    licence: String,
    folder: PathBuf,
    ours: bool,
    shipped: bool,
}

/// That every dependency's licence is one of the allowed.
///
/// # Errors
/// The crates whose licence is not.
pub(crate) fn check(root: &Path) -> Result<(), String> {
    // Those of optional features too, which somebody may build and hand on.
    let packages = packages(root, &["--all-features"])?;
    let wrong: Vec<String> = packages
        .iter()
        .filter(|package| !allowed(&package.licence, package.shipped))
        .map(|package| format!("{} {}: `{}`", package.name, package.version, package.licence))
        .collect();
    let shipped = packages.iter().filter(|package| package.shipped && !package.ours).count();
    if wrong.is_empty() {
        println!("{} packages, {shipped} of them shipped: all under allowed licences", packages.len());
        return Ok(());
    }
    Err(format!("licences that are not on the list in xtask/src/licences.rs:\n  {}", wrong.join("\n  ")))
}

/// The licence texts of everything that is shipped, each text once, with the crates that bring it.
///
/// # Errors
/// Those of `cargo metadata` and of reading.
pub(crate) fn texts(root: &Path) -> Result<String, String> {
    let packages = packages(root, &[])?;
    let (mut texts, mut list): (BTreeMap<String, BTreeSet<String>>, String) = Default::default();
    for package in packages.iter().filter(|package| package.shipped && !package.ours) {
        let name = format!("{} {}", package.name, package.version);
        let _ = writeln!(list, "  {name}: {}", package.licence);
        for text in licence_files(&package.folder)? {
            texts.entry(text).or_default().insert(name.clone());
        }
    }
    let mut out = format!("kronsae contains these works of others, under these licences:\n\n{list}");
    for (text, names) in texts {
        let names: Vec<String> = names.into_iter().collect();
        let _ = write!(out, "\n{}\n{}\n\n{}\n", "-".repeat(80), names.join(", "), text.trim_end());
    }
    Ok(out)
}

fn licence_files(folder: &Path) -> Result<Vec<String>, String> {
    let cannot = |e: std::io::Error| format!("{}: cannot read: {e}", folder.display());
    let mut files: Vec<PathBuf> = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(cannot)? {
        let path = entry.map_err(cannot)?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().to_uppercase();
        if path.is_file()
            && ["LICENSE", "LICENCE", "COPYING", "NOTICE", "UNLICENSE"].iter().any(|n| name.starts_with(n))
        {
            files.push(path);
        }
    }
    files.sort();
    files.iter().map(|file| Ok(String::from_utf8_lossy(&std::fs::read(file).map_err(cannot)?).into_owned())).collect()
}

fn packages(root: &Path, features: &[&str]) -> Result<Vec<Package>, String> {
    let mut command = cargo(root, &[&["metadata", "--format-version=1", "--locked"], features].concat());
    let ran = command.output().map_err(|e| format!("cargo metadata: cannot be started: {e}"))?;
    if !ran.status.success() {
        return Err(format!("cargo metadata failed:\n{}", String::from_utf8_lossy(&ran.stderr)));
    }
    let metadata: Value = serde_json::from_slice(&ran.stdout).map_err(|e| format!("cargo metadata: {e}"))?;
    let shipped = shipped(&metadata);
    let array = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let found: Vec<Package> = array(&metadata["packages"])
        .iter()
        .map(|package| {
            let text = |key: &str| package[key].as_str().unwrap_or_default().to_owned();
            Package {
                name: text("name"),
                version: text("version"),
                licence: text("license"),
                folder: Path::new(&text("manifest_path")).parent().unwrap_or(Path::new("")).to_owned(),
                ours: package["source"].is_null(),
                shipped: shipped.contains(&text("id")),
            }
        })
        .collect();
    if found.is_empty() { Err("cargo metadata: no packages in it".to_owned()) } else { Ok(found) }
}

/// The ids of what the runtime and the command are built from.
fn shipped(metadata: &Value) -> BTreeSet<String> {
    let nodes: BTreeMap<&str, &Value> = metadata["resolve"]["nodes"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|node| Some((node["id"].as_str()?, node)))
        .collect();
    let ours = ["kronsae", "kronsae-trainer"];
    let packages = metadata["packages"].as_array().into_iter().flatten();
    let mut open: Vec<&str> = packages
        .filter(|package| package["source"].is_null() && ours.iter().any(|name| package["name"] == *name))
        .filter_map(|package| package["id"].as_str())
        .collect();
    let mut reached = BTreeSet::new();
    while let Some(id) = open.pop() {
        if !reached.insert(id.to_owned()) {
            continue;
        }
        for dependency in nodes.get(id).and_then(|node| node["deps"].as_array()).into_iter().flatten() {
            let mut kinds = dependency["dep_kinds"].as_array().into_iter().flatten();
            if kinds.any(|kind| kind["kind"].is_null()) {
                open.extend(dependency["pkg"].as_str());
            }
        }
    }
    reached
}

/// Whether an SPDX expression (or the older `A/B`) can be met with licences on the list.
fn allowed(expression: &str, shipped: bool) -> bool {
    let spaced = expression.replace('(', " ( ").replace(')', " ) ").replace('/', " OR ");
    let words: Vec<&str> = spaced.split_whitespace().collect();
    let mut at = 0;
    let met = any_of(&words, &mut at, shipped);
    met && at == words.len()
}

fn any_of(words: &[&str], at: &mut usize, shipped: bool) -> bool {
    let mut met = all_of(words, at, shipped);
    while words.get(*at) == Some(&"OR") {
        *at += 1;
        met |= all_of(words, at, shipped);
    }
    met
}

fn all_of(words: &[&str], at: &mut usize, shipped: bool) -> bool {
    let mut met = one(words, at, shipped);
    while words.get(*at) == Some(&"AND") {
        *at += 1;
        met &= one(words, at, shipped);
    }
    met
}

fn one(words: &[&str], at: &mut usize, shipped: bool) -> bool {
    let Some(&word) = words.get(*at) else { return false };
    *at += 1;
    if word == "(" {
        let met = any_of(words, at, shipped);
        let closed = words.get(*at) == Some(&")");
        *at += 1;
        return met && closed;
    }
    let mut name = word.to_owned();
    if words.get(*at) == Some(&"WITH") {
        name = format!("{word} WITH {}", words.get(*at + 1).unwrap_or(&""));
        *at += 2;
    }
    SHIPPED.contains(&&*name) || (!shipped && TOOLS.contains(&&*name))
}

#[cfg(test)]
mod tests {
    use super::allowed;

    #[test]
    fn expressions() {
        for (expression, shipped, tool) in [
            ("MIT", true, true),
            ("MIT OR Apache-2.0", true, true),
            ("Unlicense/MIT", true, true),
            ("MIT OR Apache-2.0 OR LGPL-2.1-or-later", true, true),
            ("(MIT OR Apache-2.0) AND Unicode-3.0", true, true),
            ("Apache-2.0 WITH LLVM-exception", true, true),
            ("MPL-2.0", false, true),
            ("GPL-3.0-only", false, false),
            ("MIT AND GPL-3.0-only", false, false),
            ("(MIT OR GPL-3.0-only) AND AGPL-3.0-only", false, false),
            ("GPL-2.0-only WITH Classpath-exception-2.0", false, false),
            ("(MIT", false, false),
            ("MIT MIT", false, false),
            ("", false, false),
        ] {
            assert_eq!((allowed(expression, true), allowed(expression, false)), (shipped, tool), "{expression}");
        }
    }
}
