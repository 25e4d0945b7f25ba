//! Which rank this process is, as its launcher says in the environment.

use kronsae::{Error, Result};
use std::fmt;

/// Who started the ranks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Launcher {
    /// torchrun: `RANK`, `WORLD_SIZE`, `LOCAL_RANK`.
    Torchrun,
    /// Open MPI's mpirun: `OMPI_COMM_WORLD_RANK`, `_SIZE`, `_LOCAL_RANK`.
    OpenMpi,
    /// Slurm's srun: `SLURM_PROCID`, `SLURM_NTASKS`, `SLURM_LOCALID`.
    Slurm,
    /// Nobody: one process.
    None,
}

/// Of each launcher: its rank, the number of ranks, and the rank among those of its machine.
///
/// In this order: torchrun may be started by srun, once a machine; and mpirun by a batch job, whose variables its ranks
/// inherit.
const SETS: [(Launcher, [&str; 3]); 3] = [
    (Launcher::Torchrun, ["RANK", "WORLD_SIZE", "LOCAL_RANK"]),
    (Launcher::OpenMpi, ["OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK"]),
    (Launcher::Slurm, ["SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID"]),
];

/// Set for what srun starts, and not for a batch script, which has all of Slurm's three and is one process.
const SLURM_STEP: &str = "SLURM_STEP_ID";

/// What tells this attempt of a job from others, by launcher; those that are set are joined.
const ATTEMPTS: [(Launcher, &[&str]); 3] = [
    (Launcher::Torchrun, &["TORCHELASTIC_RUN_ID", "TORCHELASTIC_RESTART_COUNT"]),
    (Launcher::OpenMpi, &["PMIX_NAMESPACE"]),
    (Launcher::Slurm, &["SLURM_JOB_ID", SLURM_STEP, "SLURM_RESTART_COUNT"]),
];

impl fmt::Display for Launcher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Launcher::Torchrun => "torchrun",
            Launcher::OpenMpi => "Open MPI",
            Launcher::Slurm => "Slurm",
            Launcher::None => "no launcher",
        })
    }
}

impl fmt::Display for Launch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "rank {} of {}", self.rank, self.ranks)
    }
}

/// A process among those that train together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Launch {
    /// Who said so.
    pub launcher: Launcher,
    /// Which of them, from 0.
    pub rank: u32,
    /// How many there are.
    pub ranks: u32,
    /// Which of those on this machine, from 0.
    pub local_rank: u32,
    /// Letters and digits that another attempt of the same job does not have, as far as the launcher tells.
    pub attempt: String,
}

impl Launch {
    /// One process, whatever the environment says.
    #[must_use]
    pub fn alone() -> Self {
        Launch { launcher: Launcher::None, rank: 0, ranks: 1, local_rank: 0, attempt: String::new() }
    }

    /// From this process's environment.
    ///
    /// # Errors
    /// As [`Launch::from_variables`].
    pub fn from_environment() -> Result<Self> {
        Self::from_variables(&|name| std::env::var(name).ok())
    }

    /// From variables by name: the first launcher counts of which all are set; one process if none is.
    ///
    /// # Errors
    /// [`kronsae::Status::InvalidArgument`] if no launcher's are all set and one's are in part, naming what is missing; or
    /// if they are not numbers that go together.
    pub fn from_variables(variable: &dyn Fn(&str) -> Option<String>) -> Result<Self> {
        let in_step = variable(SLURM_STEP).is_some();
        let mut half = None;
        for (launcher, names) in SETS.into_iter().filter(|(launcher, _)| *launcher != Launcher::Slurm || in_step) {
            let values = names.map(variable);
            let missing: Vec<&str> =
                names.into_iter().zip(&values).filter(|(_, value)| value.is_none()).map(|(name, _)| name).collect();
            match values {
                [Some(rank), Some(ranks), Some(local)] => {
                    let attempt = attempt(launcher, variable);
                    return Self::parsed(launcher, names, [&rank, &ranks, &local], attempt);
                }
                _ if missing.len() == names.len() => {}
                _ => half = half.or(Some((launcher, names, missing))),
            }
        }
        let Some((launcher, names, missing)) = half else { return Ok(Self::alone()) };
        let set: Vec<&str> = names.into_iter().filter(|name| !missing.contains(name)).collect();
        Err(Error::invalid(format!(
            "{} set, but {} not: {launcher} sets {} for every rank. Start all ranks by it, unset what is there, or give \
             --collective none",
            is(&set),
            is(&missing),
            names.join(", ")
        )))
    }

    fn parsed(launcher: Launcher, names: [&str; 3], values: [&str; 3], attempt: String) -> Result<Self> {
        let mut numbers = [0_u32; 3];
        for ((to, name), value) in numbers.iter_mut().zip(names).zip(values) {
            *to = value.trim().parse().map_err(|_| {
                Error::invalid(format!("{name} is `{value}`: expected a number, as {launcher} sets it"))
            })?;
        }
        let [rank, ranks, local_rank] = numbers;
        let [rank_name, ranks_name, local_name] = names;
        if ranks == 0 || ranks > MOST_RANKS {
            return Err(Error::invalid(format!("{ranks_name} is {ranks}: expected 1 to {MOST_RANKS}")));
        }
        for (name, value) in [(rank_name, rank), (local_name, local_rank)] {
            if value >= ranks {
                return Err(Error::invalid(format!(
                    "{name} is {value}: expected less than {ranks_name}, which is {ranks}"
                )));
            }
        }
        Ok(Launch { launcher, rank, ranks, local_rank, attempt })
    }
}

/// More than anybody has; what is gathered of each rank is allocated by it.
const MOST_RANKS: u32 = 65_536;

/// "A is", "A and B are".
fn is(names: &[&str]) -> String {
    format!("{} {}", names.join(" and "), if names.len() == 1 { "is" } else { "are" })
}

fn attempt(launcher: Launcher, variable: &dyn Fn(&str) -> Option<String>) -> String {
    let names = ATTEMPTS.iter().filter(|(of, _)| *of == launcher).flat_map(|(_, names)| names.iter());
    let parts: Vec<String> = names.filter_map(|name| variable(name)).collect();
    // It becomes part of a file's name.
    parts.join("-").chars().map(|c| if c.is_ascii_alphanumeric() || c == '-' { c } else { '_' }).take(100).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn launch(variables: &[(&str, &str)]) -> Result<Launch> {
        Launch::from_variables(&|name| {
            variables.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned())
        })
    }

    fn fails(variables: &[(&str, &str)], words: &[&str]) {
        let error = launch(variables).unwrap_err();
        assert_eq!(error.status(), kronsae::Status::InvalidArgument);
        for word in words {
            assert!(error.message().contains(word), "{error}\nhas not `{word}`");
        }
    }

    const TORCHRUN: [(&str, &str); 3] = [("RANK", "5"), ("WORLD_SIZE", "8"), ("LOCAL_RANK", "1")];
    const OPEN_MPI: [(&str, &str); 3] =
        [("OMPI_COMM_WORLD_RANK", "1"), ("OMPI_COMM_WORLD_SIZE", "2"), ("OMPI_COMM_WORLD_LOCAL_RANK", "0")];
    const SLURM: [(&str, &str); 4] =
        [("SLURM_PROCID", "3"), ("SLURM_NTASKS", "4"), ("SLURM_LOCALID", "2"), ("SLURM_STEP_ID", "0")];

    #[test]
    fn nobody() {
        assert_eq!(launch(&[]).unwrap(), Launch::alone());
        assert_eq!(launch(&[("MASTER_ADDR", "x"), ("SLURM_JOB_ID", "7")]).unwrap(), Launch::alone());
    }

    #[test]
    fn each_launcher() {
        let of = |variables: &[(&str, &str)]| {
            let Launch { launcher, rank, ranks, local_rank, .. } = launch(variables).unwrap();
            (launcher, rank, ranks, local_rank)
        };
        assert_eq!(of(&TORCHRUN), (Launcher::Torchrun, 5, 8, 1));
        assert_eq!(of(&OPEN_MPI), (Launcher::OpenMpi, 1, 2, 0));
        assert_eq!(of(&SLURM), (Launcher::Slurm, 3, 4, 2));
        // One inside the other.
        assert_eq!(of(&[&SLURM[..], &TORCHRUN].concat()).0, Launcher::Torchrun);
        assert_eq!(of(&[&SLURM[..], &OPEN_MPI].concat()).0, Launcher::OpenMpi);
        assert_eq!(of(&[&OPEN_MPI[..], &TORCHRUN].concat()).0, Launcher::Torchrun);
        // The first that is complete counts, whatever is left of others.
        assert_eq!(of(&[&TORCHRUN[..1], &OPEN_MPI].concat()).0, Launcher::OpenMpi);
    }

    /// A batch script is one process, though Slurm tells it how many tasks there will be.
    #[test]
    fn a_batch_script_is_no_rank() {
        assert_eq!(launch(&SLURM[..3]).unwrap(), Launch::alone());
        assert_eq!(launch(&SLURM[1..2]).unwrap(), Launch::alone());
    }

    #[test]
    fn half_a_set() {
        for set in [&TORCHRUN[..], &OPEN_MPI, &SLURM[..3]] {
            for without in 0..3 {
                let mut some = set.to_vec();
                let (missing, _) = some.remove(without);
                some.push(SLURM[3]);
                fails(&some, &[&format!("{missing} is not"), some[0].0, some[1].0, "unset"]);
            }
        }
        fails(&TORCHRUN[..1], &["RANK is set", "WORLD_SIZE and LOCAL_RANK are not", "torchrun"]);
    }

    #[test]
    fn nonsense() {
        let with = |name: &str, value: &'static str| {
            let mut set = TORCHRUN;
            set.iter_mut().find(|(key, _)| *key == name).unwrap().1 = value;
            set
        };
        fails(&with("RANK", ""), &["RANK is ``", "expected a number", "torchrun"]);
        fails(&with("RANK", "-1"), &["RANK is `-1`"]);
        fails(&with("RANK", "8"), &["RANK is 8", "less than WORLD_SIZE", "8"]);
        fails(&with("RANK", "4294967296"), &["RANK is `4294967296`"]);
        fails(&with("WORLD_SIZE", "0"), &["WORLD_SIZE is 0", "1 to"]);
        fails(&with("WORLD_SIZE", "4000000000"), &["WORLD_SIZE is 4000000000"]);
        fails(&with("WORLD_SIZE", "two"), &["WORLD_SIZE is `two`"]);
        fails(&with("LOCAL_RANK", "9"), &["LOCAL_RANK is 9", "less than WORLD_SIZE"]);
        let mut slurm = SLURM;
        slurm[0].1 = "4";
        fails(&slurm, &["SLURM_PROCID is 4", "SLURM_NTASKS"]);
    }

    #[test]
    fn attempts_differ() {
        let of = |more: &[(&str, &str)], set: &[(&str, &str)]| launch(&[set, more].concat()).unwrap().attempt;
        assert_eq!(of(&[("TORCHELASTIC_RUN_ID", "a/b c"), ("TORCHELASTIC_RESTART_COUNT", "2")], &TORCHRUN), "a_b_c-2");
        assert_eq!(of(&[("SLURM_JOB_ID", "77")], &SLURM), "77-0");
        assert_eq!(of(&[("SLURM_JOB_ID", "77"), ("SLURM_RESTART_COUNT", "1")], &SLURM), "77-0-1");
        assert_eq!(of(&[("PMIX_NAMESPACE", "12345")], &OPEN_MPI), "12345");
        assert_eq!(of(&[], &TORCHRUN), "");
    }
}
