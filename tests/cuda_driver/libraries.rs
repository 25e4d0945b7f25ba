//! The stand-ins, built once a run, in folders that hold some of them; and processes that find those alone.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// Which libraries a process finds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Installed {
    Nothing,
    /// A driver of CUDA 11.0, with three functions.
    AncientDriver,
    /// A driver that says it is of CUDA 12, with three functions.
    HollowDriver,
    WithoutCublasLt,
    WithoutNvrtc,
    WithoutNccl,
    /// A libnccl with one function.
    HollowNccl,
    Everything,
}

const HOLLOW_NCCL: &str = "extern \"C\" int ncclGetUniqueId(void* id) { (void)id; return 0; }";
const ANCIENT: &str = "
const char* text = \"CUDA_ERROR\";
int cuDriverGetVersion(int* v) { *v = VERSION; return 0; }
int cuGetErrorName(int e, const char** out) { (void)e; *out = text; return 0; }
int cuGetErrorString(int e, const char** out) { (void)e; *out = text; return 0; }
";

fn compile(arguments: &[&str]) {
    let output = Command::new(std::env::var_os("CXX").unwrap_or("g++".into()))
        .args(["-O1", "-g", "-fPIC", "-shared", "-std=c++17", "-Wall", "-Wextra", "-Werror"])
        .args(arguments)
        .output()
        .expect("g++ (Debian: apt-get install g++)");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// Builds everything; the folder that has a folder for each of [`Installed`].
fn built() -> &'static Path {
    static BUILT: OnceLock<tempfile::TempDir> = OnceLock::new();
    let built = BUILT.get_or_init(|| {
        let folder = tempfile::tempdir().expect("a folder");
        let all = folder.path().join("all");
        std::fs::create_dir(&all).unwrap();
        // Of this package, or of one inside its folder that shares this file.
        let folders = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors();
        let sources = folders.map(|folder| folder.join("tests/cuda_driver/fake")).find(|folder| folder.is_dir());
        let sources = sources.expect("the stand-ins' sources");
        let path = |path: PathBuf| path.to_str().unwrap().to_owned();
        let source = |name: &str| path(sources.join(name));
        let output = |name: &str| path(all.join(name));
        let link = format!("-L{}", all.display());
        compile(&[&source("driver.cpp"), "-Wl,-soname,libcuda.so.1", "-o", &output("libcuda.so.1"), "-ldl"]);
        std::os::unix::fs::symlink("libcuda.so.1", all.join("libcuda.so")).unwrap();
        for (name, from) in
            [("libcublasLt.so.13", "cublaslt.cpp"), ("libnvrtc.so.13", "nvrtc.cpp"), ("libnccl.so.2", "nccl.cpp")]
        {
            compile(&[&source(from), &format!("-Wl,-soname,{name}"), "-o", &output(name), &link, "-lcuda"]);
        }
        for (kind, version) in [(Installed::AncientDriver, 11000), (Installed::HollowDriver, 12000)] {
            let to = folder.path().join(format!("{kind:?}"));
            std::fs::create_dir(&to).unwrap();
            let text = to.join("driver.cpp");
            std::fs::write(&text, format!("extern \"C\" {{ {ANCIENT} }}")).unwrap();
            compile(&[&path(text), &format!("-DVERSION={version}"), "-o", &path(to.join("libcuda.so.1"))]);
        }
        let drivers = ["libcuda.so.1", "libcublasLt.so.13", "libnvrtc.so.13"];
        for (kind, files) in [
            (Installed::Nothing, &[][..]),
            (Installed::WithoutNccl, &drivers),
            (Installed::HollowNccl, &drivers),
            (Installed::WithoutCublasLt, &["libcuda.so.1", "libnvrtc.so.13"]),
            (Installed::WithoutNvrtc, &["libcuda.so.1", "libcublasLt.so.13"]),
            (Installed::Everything, &["libcuda.so.1", "libcublasLt.so.13", "libnvrtc.so.13", "libnccl.so.2"]),
        ] {
            let to = folder.path().join(format!("{kind:?}"));
            std::fs::create_dir(&to).unwrap();
            for file in files {
                std::os::unix::fs::symlink(all.join(file), to.join(file)).unwrap();
            }
        }
        let to = folder.path().join(format!("{:?}", Installed::HollowNccl));
        let text = to.join("nccl.cpp");
        std::fs::write(&text, HOLLOW_NCCL).unwrap();
        compile(&[&path(text), "-o", &path(to.join("libnccl.so.2"))]);
        folder
    });
    built.path()
}

/// The folder of these libraries, for `LD_LIBRARY_PATH`.
pub(crate) fn folder(installed: Installed) -> PathBuf {
    built().join(format!("{installed:?}"))
}

/// Set in processes that [`outcome`] started.
const CHILD: &str = "KRONSAE_TEST_CHILD";

/// Whether this process was started by [`outcome`]; elsewhere a child's test has nothing to do.
pub(crate) fn is_child() -> bool {
    std::env::var_os(CHILD).is_some()
}

/// Runs one of this program's own ignored tests in a process that finds these libraries; what it said after `OUTCOME `.
pub(crate) fn outcome(test: &str, installed: Installed, environment: &[(&str, &str)]) -> String {
    let cache = tempfile::tempdir().expect("a folder");
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", test, "--ignored", "--nocapture", "--test-threads=1"]);
    command.env("LD_LIBRARY_PATH", folder(installed));
    command.env("XDG_CACHE_HOME", cache.path()).env(CHILD, "1");
    command.envs(environment.iter().copied());
    let output = command.output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let said = text.lines().find_map(|line| Some(line.split_once("OUTCOME ")?.1.to_owned()));
    said.filter(|_| output.status.success()).unwrap_or_else(|| {
        panic!("{test} with {installed:?}: {}\n{text}\n{}", output.status, String::from_utf8_lossy(&output.stderr))
    })
}
