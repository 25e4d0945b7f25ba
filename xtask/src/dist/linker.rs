//! Linking against an old C library, so that packages run where it is that old: zig has the symbol tables of each version.

use super::library::Glibc;
use super::{read, write};
use crate::process::run;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The oldest C library that packages run with.
pub(super) const FLOOR: Glibc = Glibc(2, 28);

/// Writes a script that links as cargo asks it to, by zig and for that C library.
///
/// # Errors
/// zig is missing.
pub(super) fn script(work: &Path) -> Result<PathBuf, String> {
    let zig = zig()?;
    let file = work.join("zig-cc");
    // zig has no libgcc_s, and brings an unwinder of the same interface. It reads neither which linker it is (its own) nor the
    // target's name in Rust's spelling.
    let text = format!(
        "#!/bin/sh\nfor argument; do\n    shift\n    case \"$argument\" in\n        -lgcc_s) set -- \"$@\" -lunwind ;;\n        \
         -fuse-ld=* | --target=* | -Wl,-O*) ;;\n        *) set -- \"$@\" \"$argument\" ;;\n    esac\ndone\nexec {zig} cc -target \
         x86_64-linux-gnu.{FLOOR} \"$@\"\n"
    );
    write(&file, &text)?;
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(&file, mode).map_err(|e| format!("{}: cannot make executable: {e}", file.display()))?;
    Ok(file)
}

/// The licences of what zig links in: the unwinder, and its own support of the compiler.
///
/// # Errors
/// zig is missing, or lacks them.
pub(super) fn licences() -> Result<String, String> {
    let mut shell = Command::new("sh");
    shell.args(["-c", &format!("{} env", zig()?)]);
    let found = run(shell)?.output;
    let folder = lib_dir(&found).ok_or_else(|| format!("zig env: names no lib_dir:\n{found}"))?;
    let mut out = String::new();
    for (name, file) in [("LLVM libunwind", "libunwind/LICENSE.TXT"), ("zig compiler-rt", "../LICENSE")] {
        let text = read(&Path::new(folder).join(file))?;
        out += &format!("\n{}\n{name}\n\n{}\n", "-".repeat(80), text.trim_end());
    }
    Ok(out)
}

/// From `"lib_dir": "/..."` or `.lib_dir = "/..."`.
fn lib_dir(env: &str) -> Option<&str> {
    let line = env.lines().find(|line| line.contains("lib_dir"))?;
    line.rsplit('"').nth(1)
}

/// `KRONSAE_ZIG`, `zig`, or that of the Python package, as words of a shell.
fn zig() -> Result<String, String> {
    let named = std::env::var("KRONSAE_ZIG").ok().filter(|zig| !zig.is_empty()).map(|zig| format!("'{zig}'"));
    for zig in named.into_iter().chain(["zig".to_owned(), "python3 -m ziglang".to_owned()]) {
        let mut shell = Command::new("sh");
        shell.args(["-c", &format!("{zig} version")]);
        if run(shell)?.success {
            return Ok(zig);
        }
    }
    Err("missing tool: zig (the Python package ziglang holds it; or set KRONSAE_ZIG)".to_owned())
}

#[cfg(test)]
mod tests {
    use super::lib_dir;

    #[test]
    fn where_zig_is() {
        assert_eq!(lib_dir(".{\n    .lib_dir = \"/a b/lib\",\n}"), Some("/a b/lib"));
        assert_eq!(lib_dir("{\n \"lib_dir\": \"/a/lib\",\n}"), Some("/a/lib"));
        assert_eq!(lib_dir(""), None);
    }
}
