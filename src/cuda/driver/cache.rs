//! Compiled kernels on disk, so that they are compiled once a machine and not once a process.
//!
//! An entry is named by the hash of all that it was made of, and begins with the hash of what it holds: an entry that was
//! damaged is not believed but made anew. Where nothing can be written, nothing is, and everything works, more slowly.

use sha2::{Digest, Sha256};
use std::path::{Path, PathBuf};

const MAGIC: &[u8; 16] = b"kronsae-cuda/1\n\0";
const HASH_BYTES: usize = 32;

/// The folder of this user's compiled kernels: `$XDG_CACHE_HOME/kronsae`, or `~/.cache/kronsae`.
pub(super) fn folder() -> Option<PathBuf> {
    let named = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let base = named("XDG_CACHE_HOME").or_else(|| named("HOME").map(|home| home.join(".cache")))?;
    Some(base.join("kronsae"))
}

/// The name of the entry that was made of these parts.
pub(super) fn name(parts: &[&str]) -> String {
    let mut hash = Sha256::new();
    for part in parts {
        // With lengths, so that no two lists of parts run together to the same bytes.
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part.as_bytes());
    }
    let hex: String = hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    format!("kernels-{hex}.cubin")
}

/// What the entry holds, if there is one and it is whole.
pub(super) fn read(folder: &Path, name: &str) -> Option<Vec<u8>> {
    let mut entry = std::fs::read(folder.join(name)).ok()?;
    let start = MAGIC.len() + HASH_BYTES;
    let (head, content) = entry.split_at_checked(start)?;
    if head[..MAGIC.len()] != MAGIC[..] || head[MAGIC.len()..] != Sha256::digest(content)[..] || content.is_empty() {
        return None;
    }
    entry.drain(..start);
    Some(entry)
}

/// Writes an entry, whole or not at all: other processes may write the same one at the same time.
///
/// # Errors
/// Those of the file system. Callers go on without.
pub(super) fn write(folder: &Path, name: &str, content: &[u8]) -> std::io::Result<()> {
    std::fs::create_dir_all(folder)?;
    let part = folder.join(format!("{name}.{}.part", std::process::id()));
    let mut entry = Vec::with_capacity(MAGIC.len() + HASH_BYTES + content.len());
    entry.extend_from_slice(MAGIC);
    entry.extend_from_slice(&Sha256::digest(content));
    entry.extend_from_slice(content);
    let done = std::fs::write(&part, entry).and_then(|()| std::fs::rename(&part, folder.join(name)));
    if done.is_err() {
        let _ = std::fs::remove_file(&part);
    }
    done
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_comes_back_and_a_damaged_one_does_not() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path().join("not/there/yet");
        assert_eq!(read(&folder, "a"), None);
        write(&folder, "a", b"kernels").unwrap();
        assert_eq!(read(&folder, "a").as_deref(), Some(&b"kernels"[..]));
        let whole = std::fs::read(folder.join("a")).unwrap();
        for at in 0..whole.len() {
            let mut damaged = whole.clone();
            damaged[at] ^= 1;
            std::fs::write(folder.join("a"), &damaged).unwrap();
            assert_eq!(read(&folder, "a"), None, "byte {at}");
            std::fs::write(folder.join("a"), &whole[..at]).unwrap();
            assert_eq!(read(&folder, "a"), None, "cut to {at}");
        }
        write(&folder, "a", b"kernels, again").unwrap();
        assert_eq!(read(&folder, "a").as_deref(), Some(&b"kernels, again"[..]));
        // Nothing else is left.
        assert_eq!(std::fs::read_dir(&folder).unwrap().count(), 1);
    }

    #[test]
    fn a_folder_that_cannot_be_is_an_error_and_no_panic() {
        let file = tempfile::NamedTempFile::new().unwrap();
        assert!(write(&file.path().join("kronsae"), "a", b"kernels").is_err());
        assert_eq!(read(&file.path().join("kronsae"), "a"), None);
    }

    #[test]
    fn names_are_of_all_parts() {
        let parts = ["source", "sm_90a", "13.0"];
        assert_eq!(name(&parts), name(&parts));
        let others: [&[&str]; 4] =
            [&["source2", "sm_90a", "13.0"], &["source", "sm_80", "13.0"], &["sources", "m_90a", "13.0"], &["source"]];
        for other in others {
            assert_ne!(name(&parts), name(other));
        }
    }
}
