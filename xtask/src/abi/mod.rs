//! The guard of the binary interface: `abi/kronsae.abi` describes what programs were built against, and nothing in it may
//! change or go. What is added may be, and is recorded by `cargo xtask abi --write`.

mod compare;
mod describe;
mod release;
pub(crate) mod symbols;

use compare::compare;
use std::path::Path;

const RECORDED: &str = "abi/kronsae.abi";
const HEAD: &str = "\
# The binary interface of libkronsae, one promise a line; docs/abi.md says which. Written by `cargo xtask abi --write`.
";

/// That the header keeps every promise recorded, and the library those of the last release.
///
/// # Errors
/// The broken promises; a missing tool.
pub(crate) fn check(root: &Path) -> Result<(), String> {
    let added = verify(root)?;
    if !added.is_empty() {
        println!("new, to be recorded by `cargo xtask abi --write`:\n  {}", added.join("\n  "));
    }
    println!("{}", release::check(root)?);
    Ok(())
}

/// Records the interface as the header has it.
///
/// # Errors
/// If that breaks a promise and `KRONSAE_ABI_VERSION` was not raised.
pub(crate) fn write(root: &Path) -> Result<(), String> {
    let lines = describe::describe(root)?;
    let path = root.join(RECORDED);
    if path.exists() {
        let recorded = read(&path)?;
        let broken = compare(&recorded, &lines).broken;
        if !broken.is_empty() && abi_version(&lines) <= abi_version(&recorded) {
            return Err(format!("{}\nraise KRONSAE_ABI_VERSION, or take that back", told(&broken)));
        }
    }
    let header = include(root)?;
    symbols::write(root, &crate::header::functions(&header))?;
    std::fs::create_dir_all(root.join("abi")).map_err(|e| format!("abi: cannot make: {e}"))?;
    std::fs::write(&path, HEAD.to_owned() + &lines.join("\n") + "\n")
        .map_err(|e| format!("{}: cannot write: {e}", path.display()))
}

/// That nothing is missing from the record: what a package ships is promised from then on.
///
/// # Errors
/// What is missing, or broken.
pub(crate) fn complete(root: &Path) -> Result<(), String> {
    let mut missing = verify(root)?;
    let names = symbols::recorded(root)?;
    missing.extend(crate::header::functions(&include(root)?).into_iter().filter(|name| !names.contains(name)));
    if missing.is_empty() {
        return Ok(());
    }
    Err(format!("not recorded, while a package promises it: `cargo xtask abi --write`:\n  {}", missing.join("\n  ")))
}

fn include(root: &Path) -> Result<String, String> {
    let path = root.join("include/kronsae.h");
    std::fs::read_to_string(&path).map_err(|e| format!("{}: cannot read: {e}", path.display()))
}

/// The lines that the header has and the record lacks.
fn verify(root: &Path) -> Result<Vec<String>, String> {
    let difference = compare(&read(&root.join(RECORDED))?, &describe::describe(root)?);
    if difference.broken.is_empty() { Ok(difference.added) } else { Err(told(&difference.broken)) }
}

fn told(broken: &[String]) -> String {
    format!("programs built against {RECORDED} would break:\n  {}", broken.join("\n  "))
}

fn read(path: &Path) -> Result<Vec<String>, String> {
    let text = std::fs::read_to_string(path).map_err(|e| format!("{}: cannot read: {e}", path.display()))?;
    Ok(text.lines().filter(|line| !line.starts_with('#') && !line.is_empty()).map(str::to_owned).collect())
}

/// The recorded `KRONSAE_ABI_VERSION`.
fn abi_version(lines: &[String]) -> Option<u32> {
    lines.iter().find_map(|line| line.strip_prefix("constant KRONSAE_ABI_VERSION ")?.parse().ok())
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_header_keeps_what_is_recorded() {
        let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
        // What is new may be recorded later; packages are not made before.
        super::verify(root).unwrap();
    }
}
