//! One run a folder: two that wrote into the same one would take turns at spoiling each other's checkpoints and metrics.

use kronsae::{Error, Result, Status};
use std::fs::{File, TryLockError};
use std::io::{Read, Write};
use std::path::Path;

/// Name of the file that is locked.
pub const NAME: &str = ".kronsae-lock";

/// A folder that is this run's alone until this is dropped, or the process ends, however it does.
#[derive(Debug)]
pub struct Claim {
    /// Holds the lock; `None` on file systems that know no locks.
    _file: Option<File>,
}

/// Claims a folder, which is created if there is none.
///
/// # Errors
/// [`Status::InvalidArgument`] naming the process, if another run has it; [`Status::Io`] if nothing can be written there.
pub fn claim(folder: &Path) -> Result<Claim> {
    std::fs::create_dir_all(folder).map_err(|e| Error::io("create", &folder.display().to_string(), &e))?;
    let path = folder.join(NAME);
    let name = path.display().to_string();
    let mut file = File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(&path)
        .map_err(|e| Error::io("write", &name, &e))?;
    match file.try_lock() {
        Ok(()) => {
            // For whoever comes second; without it they are told less.
            let _ = file.set_len(0).and_then(|()| write!(file, "{}", std::process::id()));
            Ok(Claim { _file: Some(file) })
        }
        Err(TryLockError::WouldBlock) => {
            let mut owner = String::new();
            let _ = (&file).take(32).read_to_string(&mut owner);
            let owner =
                owner.trim().parse::<u32>().map_or_else(|_| "another run".to_owned(), |id| format!("process {id}"));
            let folder = folder.display();
            Err(Error::new(
                Status::InvalidArgument,
                format!("{folder}: {owner} trains into this folder; wait for it, stop it, or choose another --out"),
            ))
        }
        // Network file systems without locks: as if there were no such file.
        Err(TryLockError::Error(_)) => Ok(Claim { _file: None }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_is_claimed_once_at_a_time() {
        let folder = tempfile::tempdir().unwrap();
        let first = claim(folder.path()).unwrap();
        let error = claim(folder.path()).unwrap_err();
        assert_eq!(error.status(), Status::InvalidArgument);
        assert!(error.message().contains(&format!("process {}", std::process::id())), "{error}");
        drop(first);
        drop(claim(folder.path()).unwrap());
        drop(claim(&folder.path().join("a/new")).unwrap());
        std::fs::write(folder.path().join("file"), "").unwrap();
        assert_eq!(claim(&folder.path().join("file")).unwrap_err().status(), Status::Io);
    }
}
