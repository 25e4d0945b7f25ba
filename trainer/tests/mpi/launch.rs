//! Starting ranks.

use crate::common::library;
use kronsae::cuda::EMULATION;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

/// `mpirun` of so many ranks of a program, on any machine, whoever runs it.
pub(crate) fn mpirun(ranks: usize, program: &Path) -> Command {
    let mut command = Command::new("mpirun");
    command.args(["--allow-run-as-root", "--oversubscribe", "--bind-to", "none", "-n", &ranks.to_string()]);
    // More ranks than cores: who waits lets others work. And containers let no process read another's memory.
    command.env("OMPI_MCA_mpi_yield_when_idle", "1").env("OMPI_MCA_btl_vader_single_copy_mechanism", "none");
    command.arg(program).env(EMULATION, library());
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// Set in the processes of [`ranks`]: the folder where they leave what they found.
const CHILD: &str = "KRONSAE_TEST_RANKS";

/// The folder for what is found, in a process that [`ranks`] started; elsewhere a child's test has nothing to do.
pub(crate) fn child() -> Option<std::path::PathBuf> {
    std::env::var_os(CHILD).map(Into::into)
}

/// Runs one of this program's own ignored tests on so many ranks, which leave what they find in `folder`.
pub(crate) fn ranks(ranks: usize, test: &str, folder: &Path) -> Output {
    let mut command = mpirun(ranks, &std::env::current_exe().unwrap());
    command.args(["--exact", test, "--ignored", "--nocapture", "--test-threads=1"]);
    let child = command.env(CHILD, folder).spawn().unwrap();
    end(child, Duration::from_secs(150))
}

/// The end of a process, which must come in time.
pub(crate) fn end(mut child: Child, limit: Duration) -> Output {
    // What it says is read meanwhile: a full pipe would hold it up.
    let reader = |from: Option<Box<dyn std::io::Read + Send>>| {
        std::thread::spawn(move || {
            let mut bytes = Vec::new();
            if let Some(mut from) = from {
                let _ = from.read_to_end(&mut bytes);
            }
            bytes
        })
    };
    let stdout = reader(child.stdout.take().map(|pipe| Box::new(pipe) as _));
    let stderr = reader(child.stderr.take().map(|pipe| Box::new(pipe) as _));
    let start = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        if start.elapsed() > limit {
            let _ = child.kill();
            let _ = child.wait();
            panic!("not at its end after {limit:?}\n{}", String::from_utf8_lossy(&stderr.join().unwrap()));
        }
        std::thread::sleep(Duration::from_millis(5));
    };
    Output { status, stdout: stdout.join().unwrap(), stderr: stderr.join().unwrap() }
}

/// What a process said on standard error.
pub(crate) fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}
