//! How NCCL's ranks are given rank 0's mark: through files in the run's folder, which all ranks see, since they read
//! checkpoints from it.
//!
//! Each other rank writes a random word of its own (`rank-N`). Rank 0 writes its mark with the words of all (`id`), and anew
//! when a word changes; a rank takes a mark that has its own word beside it, and answers with both. When all have, rank 0
//! removes the folder. So what an earlier attempt left is never taken, whatever it was called.

use super::Launch;
use kronsae::cuda::CommunicatorId;
use kronsae::{Error, Result, Status};
use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How often files are looked for.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// Gives the mark that rank 0 makes to all ranks; waits at most `limit` for the others.
///
/// # Errors
/// [`Status::Io`]; [`Status::Internal`] if others do not come in time, naming them; rank 0: those of `make`.
pub fn meet(
    run: &Path,
    launch: &Launch,
    limit: Duration,
    make: &mut dyn FnMut() -> Result<CommunicatorId>,
) -> Result<CommunicatorId> {
    let folder = folder_of(run, launch);
    let name = folder.display().to_string();
    std::fs::create_dir_all(&folder).map_err(|e| Error::io("create", &name, &e))?;
    let end = Instant::now() + limit;
    if launch.rank == 0 { invite(&folder, launch, end, limit, &make()?) } else { answer(&folder, launch, end, limit) }
}

/// Where the ranks of an attempt meet.
fn folder_of(run: &Path, launch: &Launch) -> PathBuf {
    let launcher = format!("{:?}", launch.launcher).to_lowercase();
    run.join(format!(".ranks-{launcher}-{}", launch.attempt))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn from_hex(text: &str) -> Option<CommunicatorId> {
    let mut id: CommunicatorId = [0; 128];
    if text.len() != 2 * id.len() || !text.is_ascii() {
        return None;
    }
    for (at, byte) in id.iter_mut().enumerate() {
        *byte = u8::from_str_radix(&text[2 * at..2 * at + 2], 16).ok()?;
    }
    Some(id)
}

/// Written beside and renamed: read whole or not at all. It need not outlive a power failure.
fn write(folder: &Path, file: &str, text: &str) -> Result<()> {
    let (path, beside) = (folder.join(file), folder.join(format!(".{file}.{}", std::process::id())));
    let written = std::fs::write(&beside, text).and_then(|()| std::fs::rename(&beside, &path));
    written.map_err(|e| Error::io("write", &path.display().to_string(), &e))
}

fn rank_file(rank: u32) -> String {
    format!("rank-{rank}")
}

/// Rank 0's part.
fn invite(
    folder: &Path,
    launch: &Launch,
    end: Instant,
    limit: Duration,
    id: &CommunicatorId,
) -> Result<CommunicatorId> {
    let mark = hex(id);
    let mut written = Vec::new();
    loop {
        let said: Vec<String> = (1..launch.ranks)
            .map(|rank| std::fs::read_to_string(folder.join(rank_file(rank))).unwrap_or_default())
            .collect();
        // A word, and the mark behind it once that was taken.
        if said.iter().all(|said| said.split_once(' ').is_some_and(|(_, taken)| taken == mark)) {
            // Left behind, it costs nothing but a look.
            let _ = std::fs::remove_dir_all(folder);
            return Ok(*id);
        }
        let words: Vec<&str> = said.iter().map(|said| said.split(' ').next().unwrap_or_default()).collect();
        if words.iter().all(|word| !word.is_empty()) && words != written {
            write(folder, "id", &format!("{mark} {}", words.join(" ")))?;
            written = words.into_iter().map(str::to_owned).collect();
        }
        if Instant::now() >= end {
            let absent = (1..launch.ranks).zip(&said).filter(|(_, said)| !said.ends_with(&mark));
            let absent: Vec<String> = absent.map(|(rank, _)| rank.to_string()).collect();
            return Err(late(folder, limit, &format!("rank {}", absent.join(", "))));
        }
        std::thread::sleep(LOOK_EVERY);
    }
}

/// The others'.
fn answer(folder: &Path, launch: &Launch, end: Instant, limit: Duration) -> Result<CommunicatorId> {
    let own = word();
    write(folder, &rank_file(launch.rank), &own)?;
    loop {
        if let Ok(text) = std::fs::read_to_string(folder.join("id"))
            && let Some((mark, words)) = text.split_once(' ')
            && words.split(' ').any(|word| word == own)
            && let Some(id) = from_hex(mark)
        {
            write(folder, &rank_file(launch.rank), &format!("{own} {mark}"))?;
            return Ok(id);
        }
        if Instant::now() >= end {
            return Err(late(folder, limit, "rank 0"));
        }
        std::thread::sleep(LOOK_EVERY);
    }
}

fn late(folder: &Path, limit: Duration, who: &str) -> Error {
    let message = format!(
        "waited {} seconds for {who} in {}: do all ranks run, and see the same --out folder?",
        limit.as_secs_f32(),
        folder.display()
    );
    Error::new(Status::Internal, message)
}

/// A word that no other process makes. The standard library seeds its hash tables from the system's randomness.
fn word() -> String {
    let part = || {
        let mut hasher = RandomState::new().build_hasher();
        hasher.write_u32(std::process::id());
        hasher.finish()
    };
    format!("{:016x}{:016x}", part(), part())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::collective::Launcher;

    const SOON: Duration = Duration::from_secs(20);

    fn launch(rank: u32, ranks: u32) -> Launch {
        Launch { launcher: Launcher::Torchrun, rank, ranks, local_rank: 0, attempt: "none-0".into() }
    }

    fn mark(of: u8) -> CommunicatorId {
        std::array::from_fn(|at| (at as u8).wrapping_mul(7).wrapping_add(of))
    }

    /// All ranks as threads; what each was given.
    fn all(run: &Path, ranks: u32, of: u8) -> Vec<CommunicatorId> {
        std::thread::scope(|scope| {
            let threads: Vec<_> = (0..ranks)
                .map(|rank| {
                    scope.spawn(move || {
                        // The first comes last, and the other way round.
                        std::thread::sleep(Duration::from_millis(u64::from((rank + u32::from(of)) % ranks) * 30));
                        meet(run, &launch(rank, ranks), SOON, &mut || Ok(mark(of))).unwrap()
                    })
                })
                .collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        })
    }

    #[test]
    fn all_ranks_have_the_firsts_mark() {
        let run = tempfile::tempdir().unwrap();
        for (of, ranks) in [1, 2, 3, 5].into_iter().enumerate() {
            assert!(all(run.path(), ranks, of as u8).into_iter().all(|id| id == mark(of as u8)));
        }
        assert_eq!(std::fs::read_dir(run.path()).unwrap().count(), 0, "nothing is left");
    }

    /// An attempt that died left everything it could, under the very name.
    #[test]
    fn what_an_earlier_attempt_left_is_not_taken() {
        for left in ["rank 0 alone", "all"] {
            let run = tempfile::tempdir().unwrap();
            let folder = folder_of(run.path(), &launch(0, 3));
            std::fs::create_dir(&folder).unwrap();
            let old = hex(&mark(99));
            std::fs::write(folder.join("id"), format!("{old} aaaa bbbb")).unwrap();
            if left == "all" {
                std::fs::write(folder.join("rank-1"), format!("aaaa {old}")).unwrap();
                std::fs::write(folder.join("rank-2"), "bbbb").unwrap();
            }
            assert!(all(run.path(), 3, 5).into_iter().all(|id| id == mark(5)), "{left}");
        }
    }

    #[test]
    fn who_does_not_come_is_named() {
        let run = tempfile::tempdir().unwrap();
        let short = Duration::from_millis(60);
        let error = meet(run.path(), &launch(2, 4), short, &mut || unreachable!("rank 0's")).unwrap_err();
        assert!(error.message().contains("for rank 0 in") && error.message().contains("--out"), "{error}");
        let error = meet(run.path(), &launch(0, 4), short, &mut || Ok(mark(1))).unwrap_err();
        assert!(error.message().contains("for rank 1, 2, 3 in"), "{error}");
        let error = meet(run.path(), &launch(0, 2), short, &mut || Err(Error::invalid("of its own"))).unwrap_err();
        assert_eq!(error.message(), "of its own");
    }
}
