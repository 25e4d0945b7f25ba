//! The CUDA kernels with CUDA's own compilers, on a machine without a GPU: nvcc and NVRTC for every architecture that has
//! machine code of its own, and what ptxas reports of registers that did not suffice.

use super::Report;
use crate::process::{cargo, run};
use std::path::{Path, PathBuf};
use std::process::Command;

/// Architectures, as in build/cuda.rs.
const MACHINES: [&str; 3] = ["80", "90a", "100"];
/// Kernels that may use local memory: none. A name here wants a reason beside it.
const COLD: [&str; 0] = [];

/// One kernel in ptxas' report.
#[derive(Debug, PartialEq, Eq)]
struct Kernel {
    name: String,
    stack_bytes: u64,
    spilled_bytes: u64,
    registers: u64,
}

/// Compiles every kernel for every architecture, twice.
pub(super) fn tests(root: &Path) -> Report {
    let nvcc = match find_nvcc() {
        Ok(nvcc) => nvcc,
        Err(tool) => return Report { skipped: 1, missing: Some(tool), ..Report::default() },
    };
    let mut report = Report::default();
    let mut table = String::new();
    for machine in MACHINES {
        match compile(root, &nvcc, machine) {
            Ok(kernels) => {
                report.passed += 1;
                for kernel in kernels {
                    table.push_str(&format!("sm_{machine} {} {} registers\n", kernel.name, kernel.registers));
                }
            }
            Err(error) => {
                report.failed += 1;
                report.output.push_str(&format!("sm_{machine}: {error}\n"));
            }
        }
    }
    report.output.push_str(&table);
    // NVRTC lies beside nvcc, where both come from one package or toolkit.
    let beside = nvcc.parent().and_then(Path::parent).unwrap_or(Path::new("/"));
    let folders = ["lib", "lib64"].map(|name| beside.join(name).display().to_string()).join(":");
    let mut command = cargo(
        root,
        &["test", "--package", "kronsae", "--lib", "--features", "cuda", "--", "--ignored", "cuda::driver::compile::"],
    );
    let inherited = std::env::var("LD_LIBRARY_PATH").map_or(String::new(), |path| format!(":{path}"));
    command.env("LD_LIBRARY_PATH", folders + &inherited);
    report.add(&Report::of_tests(run(command)));
    report
}

fn find_nvcc() -> Result<PathBuf, String> {
    // NVCC is also what a build looks for to embed kernels; the first is for those who want the test alone.
    let named =
        ["KRONSAE_NVCC", "NVCC"].iter().find_map(|name| std::env::var_os(name).filter(|named| !named.is_empty()));
    let named = named.map(PathBuf::from);
    let path = std::env::var_os("PATH").unwrap_or_default();
    let on_path = || std::env::split_paths(&path).map(|folder| folder.join("nvcc")).find(|nvcc| nvcc.is_file());
    named
        .or_else(on_path)
        .ok_or_else(|| "nvcc 13.0 (set KRONSAE_NVCC to the nvcc of the Python package nvidia-cuda-nvcc)".to_owned())
}

/// Compiles for one architecture and judges what ptxas says.
fn compile(root: &Path, nvcc: &Path, machine: &str) -> Result<Vec<Kernel>, String> {
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), |dir| root.join(dir));
    let folder = target.join("cuda");
    std::fs::create_dir_all(&folder).map_err(|e| format!("{}: cannot create: {e}", folder.display()))?;
    let mut command = Command::new(nvcc);
    command.args(["-cubin", "-std=c++17", "-O3", "--ftz=false", "--prec-sqrt=true", "-Werror", "all-warnings"]);
    command.args(["-Xptxas", "-v"]).arg(format!("-arch=sm_{machine}"));
    command.arg("-o").arg(folder.join(format!("sm_{machine}.cubin"))).arg(root.join("cuda/kronsae.cu"));
    let ran = run(command)?;
    if !ran.success {
        return Err(format!("nvcc does not compile cuda/kronsae.cu\n{}", ran.output));
    }
    let names = root.join("cuda/kernels.def");
    let names = std::fs::read_to_string(&names).map_err(|e| format!("{}: cannot read: {e}", names.display()))?;
    judge(parse(&ran.output)?, &expected(&names))
}

/// The names that kernels.def lists.
fn expected(definitions: &str) -> Vec<String> {
    let name = |line: &str| {
        let line = line.trim();
        Some(line.strip_prefix("TRAINING_").unwrap_or(line).strip_prefix("KERNEL(")?.split(')').next()?.to_owned())
    };
    definitions.lines().filter_map(name).collect()
}

/// Reads ptxas' report: for each kernel a line that names it, its stack and spills, its registers.
fn parse(report: &str) -> Result<Vec<Kernel>, String> {
    let mut kernels: Vec<Kernel> = Vec::new();
    for line in report.lines() {
        let number_before = |words: &str| -> Option<u64> {
            line.split_once(words)?.0.rsplit([' ', ',']).find(|word| !word.is_empty())?.parse().ok()
        };
        if let Some((_, rest)) = line.split_once("Compiling entry function '") {
            let name = rest.split('\'').next().unwrap_or_default().to_owned();
            kernels.push(Kernel { name, stack_bytes: u64::MAX, spilled_bytes: u64::MAX, registers: u64::MAX });
        } else if let Some(kernel) = kernels.last_mut() {
            if let Some(bytes) = number_before(" bytes stack frame") {
                kernel.stack_bytes = bytes;
                let stored = number_before(" bytes spill stores");
                let loaded = number_before(" bytes spill loads");
                kernel.spilled_bytes = stored.zip(loaded).map_or(u64::MAX, |(stored, loaded)| stored + loaded);
            } else if let Some((_, rest)) = line.split_once(": Used ") {
                kernel.registers = rest.split(' ').next().and_then(|n| n.parse().ok()).unwrap_or(u64::MAX);
            }
        }
    }
    let unread = |kernel: &&Kernel| [kernel.stack_bytes, kernel.spilled_bytes, kernel.registers].contains(&u64::MAX);
    match kernels.iter().find(unread) {
        Some(kernel) => Err(format!("ptxas' report of {} is not understood:\n{report}", kernel.name)),
        None => Ok(kernels),
    }
}

/// Every kernel is there, and none but the cold ones uses local memory.
fn judge(kernels: Vec<Kernel>, expected: &[String]) -> Result<Vec<Kernel>, String> {
    let mut found: Vec<&str> = kernels.iter().map(|kernel| kernel.name.as_str()).collect();
    let mut expected: Vec<&str> = expected.iter().map(String::as_str).collect();
    found.sort_unstable();
    expected.sort_unstable();
    if found != expected || found.is_empty() {
        return Err(format!("ptxas compiled {found:?}, kernels.def lists {expected:?}"));
    }
    let slow: Vec<String> = kernels
        .iter()
        .filter(|kernel| !COLD.contains(&kernel.name.as_str()) && kernel.stack_bytes + kernel.spilled_bytes > 0)
        .map(|k| format!("{}: {} bytes of stack, {} bytes spilled", k.name, k.stack_bytes, k.spilled_bytes))
        .collect();
    if slow.is_empty() { Ok(kernels) } else { Err(format!("local memory in hot kernels:\n{}", slow.join("\n"))) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const REPORT: &str = "\
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function 'kronsae_a_f32' for 'sm_90a'
ptxas info    : Function properties for kronsae_a_f32
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 59 registers, used 1 barriers, 1040 bytes smem
ptxas info    : Compiling entry function 'kronsae_b_f32' for 'sm_90a'
ptxas info    : Function properties for kronsae_b_f32
    STACK bytes stack frame, SPILL bytes spill stores, 396 bytes spill loads
ptxas info    : Used 32 registers, used 1 barriers, 128 bytes cumulative stack size, 1040 bytes smem
";

    fn names(text: &str) -> Vec<String> {
        expected(&format!("// Every kernel.\n{text}"))
    }

    #[test]
    fn a_report_is_read() {
        let report = REPORT.replace("STACK", "128").replace("SPILL", "148");
        let kernels = parse(&report).unwrap();
        let kernel = |name: &str, stack_bytes, spilled_bytes, registers| Kernel {
            name: name.to_owned(),
            stack_bytes,
            spilled_bytes,
            registers,
        };
        assert_eq!(kernels, [kernel("kronsae_a_f32", 0, 0, 59), kernel("kronsae_b_f32", 128, 544, 32)]);
        let error = judge(kernels, &names("KERNEL(kronsae_b_f32)\nKERNEL(kronsae_a_f32)\n")).unwrap_err();
        assert_eq!(error, "local memory in hot kernels:\nkronsae_b_f32: 128 bytes of stack, 544 bytes spilled");
    }

    #[test]
    fn what_is_not_understood_is_an_error() {
        assert!(parse(REPORT).unwrap_err().contains("kronsae_b_f32"));
        let cut = REPORT.lines().take(3).collect::<Vec<_>>().join("\n");
        assert!(parse(&cut).unwrap_err().contains("kronsae_a_f32"));
    }

    #[test]
    fn a_kernel_that_is_missing_is_an_error() {
        let report = REPORT.replace("STACK", "0").replace("SPILL", "0").replace("396", "0");
        let both = "KERNEL(kronsae_a_f32)\nKERNEL(kronsae_b_f32)";
        assert_eq!(judge(parse(&report).unwrap(), &names(both)).unwrap().len(), 2);
        assert!(judge(parse(&report).unwrap(), &names("KERNEL(kronsae_a_f32)")).is_err());
        assert!(judge(parse(&report).unwrap(), &names(&format!("{both}\nKERNEL(kronsae_c_f32)"))).is_err());
        assert!(judge(Vec::new(), &[]).is_err());
    }
}
