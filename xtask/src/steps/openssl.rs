//! CoreCLR 3.1 draws the seeds of its hash tables from OpenSSL 1.x, and ends the process where there is none, as on Debian 12.
//! The tests need no cryptography, so they give it a library that has every function it asks for, and each says 1.

use crate::process::run;
use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::Path;
use std::process::Command;

/// What stands for a version in the library's name: `CLR_OPENSSL_VERSION_OVERRIDE`.
pub(super) const VERSION: &str = "false";

/// Makes `libssl.so.false` in a folder, for the runtime whose assemblies these are.
///
/// # Errors
/// The runtime's own library cannot be read; a missing compiler.
pub(super) fn make(assemblies: &Path, folder: &Path) -> Result<(), String> {
    let asking = assemblies.join("System.Security.Cryptography.Native.OpenSsl.so");
    let bytes = std::fs::read(&asking).map_err(|e| format!("{}: cannot read: {e}", asking.display()))?;
    let mut source = "static void *one(void) { return (void *)1; }\n".to_owned();
    for name in names(&bytes) {
        let _ = writeln!(source, "void *{name}(void) __attribute__((alias(\"one\")));");
    }
    let file = folder.join("false_openssl.c");
    std::fs::write(&file, source).map_err(|e| format!("{}: cannot write: {e}", file.display()))?;
    let mut compiler = Command::new(std::env::var_os("CC").unwrap_or_else(|| "cc".into()));
    compiler.args(["-w", "-fno-builtin", "-shared", "-fPIC", "-o"]).arg(folder.join(format!("libssl.so.{VERSION}")));
    compiler.arg(&file);
    super::succeed(run(compiler))
}

/// Everything in it that may be a function's name. Linkers store a name that ends another only once, inside the longer one.
fn names(bytes: &[u8]) -> BTreeSet<&str> {
    const SHORTEST: usize = 5;
    let words = bytes.split(|byte| !byte.is_ascii_alphanumeric() && *byte != b'_').filter(|word| word.contains(&b'_'));
    let tails = words
        .filter_map(|word| std::str::from_utf8(word).ok())
        .filter(|word| word.len() < 60)
        .flat_map(|word| (0..word.len().saturating_sub(SHORTEST - 1)).map(move |from| &word[from..]));
    tails.filter(|tail| tail.starts_with(|first: char| first.is_ascii_alphabetic())).collect()
}

#[cfg(test)]
mod tests {
    #[test]
    fn names_inside_names_are_found() {
        let found = super::names(b"\0ECDSA_sign\0no\0plain\0");
        assert!(found.contains("ECDSA_sign") && found.contains("DSA_sign") && !found.contains("plain"));
    }
}
