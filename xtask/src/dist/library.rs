//! What is done to libraries before they are shipped, and what is asked of them.

use super::{copy, fresh, read, succeed};
use crate::header;
use std::path::Path;
use std::process::Command;

/// Takes out what neither running nor linking needs.
pub(super) fn strip(file: &Path) -> Result<(), String> {
    let mut command = Command::new("strip");
    command.arg("--strip-unneeded").arg(file);
    succeed(command).map(|_| ())
}

/// The static library as one object that shows the header's functions alone: Rust's standard library inside it would
/// otherwise define the same names as that inside another Rust library.
pub(super) fn close_static(root: &Path, from: &Path, to: &Path, work: &Path) -> Result<(), String> {
    let functions = header::functions(&read(&root.join("include/kronsae.h"))?);
    let folder = work.join("static");
    fresh(&folder)?;
    let object = folder.join("kronsae.o");
    let mut link = Command::new("ld");
    link.args(["-r", "--gc-sections", "--force-group-allocation", "-o"]).arg(&object);
    link.args(functions.iter().flat_map(|name| ["-u", name])).arg(from);
    succeed(link)?;
    let mut hide = Command::new("objcopy");
    // Unneeded are also names of newer system functions, which Rust asks for weakly: `ld -r` would demand them.
    // The compiler's own code beside the machine's, of a version that linkers' plugins may not read.
    hide.args(["-R", ".llvmbc", "-R", ".llvmcmd"]);
    hide.args(functions.iter().flat_map(|name| ["-G", name])).arg("--strip-unneeded").arg(&object);
    succeed(hide)?;
    let archive = folder.join("libkronsae.a");
    let mut ar = Command::new("ar");
    ar.arg("rcsD").arg(&archive).arg(&object);
    succeed(ar)?;
    copy(&archive, to)
}

/// A version of the C library, compared as numbers.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct Glibc(pub(super) u32, pub(super) u32);

impl std::fmt::Display for Glibc {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}", self.0, self.1)
    }
}

/// The newest version of glibc's symbols that a program or library asks for.
pub(super) fn newest_glibc(file: &Path) -> Result<Glibc, String> {
    let mut command = Command::new("readelf");
    command.args(["-V", "-W"]).arg(file);
    newest(&succeed(command)?).ok_or_else(|| format!("{}: asks for no GLIBC_ symbol", file.display()))
}

fn newest(text: &str) -> Option<Glibc> {
    let versions = text.split("GLIBC_").skip(1).filter_map(|rest| {
        let end = rest.find(|next: char| !next.is_ascii_digit() && next != '.').unwrap_or(rest.len());
        let mut parts = rest[..end].split('.');
        Some(Glibc(parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
    });
    versions.max()
}

#[cfg(test)]
mod tests {
    use super::{Glibc, newest};

    #[test]
    fn versions_are_compared_as_numbers() {
        assert_eq!(newest("Name: GLIBC_2.9  Flags\nGLIBC_2.34\nGLIBC_2.2.5 GLIBC_PRIVATE"), Some(Glibc(2, 34)));
        assert_eq!(newest("GLIBCXX_3.4"), None);
    }
}
