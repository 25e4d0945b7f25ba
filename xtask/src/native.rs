//! The C and C++ side: programs built against the header, linked both ways, run plainly, under gcc's sanitizers and under
//! valgrind; and what the shared library exports.
//!
//! Each step's error is a text. One that begins with [`MISSING_TOOL`] names a program to install.

use crate::{abi, header};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// How the error of a step begins that could not run for lack of a tool.
pub(crate) const MISSING_TOOL: &str = "missing tool: ";

const WARNINGS: [&str; 5] = ["-pedantic", "-Wall", "-Wextra", "-Werror", "-g"];
const SANITIZE: [&str; 3] = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer"];
const SANITIZE_THREADS: [&str; 2] = ["-fsanitize=thread", "-fno-omit-frame-pointer"];
/// What valgrind exits with when it found something; the programs themselves exit with 0, 1 or 2.
const VALGRIND_FOUND: &str = "--error-exitcode=99";

/// A program to compile.
struct Program {
    name: &'static str,
    sources: &'static [&'static str],
    cpp: bool,
    flags: &'static [&'static str],
}

const C: Program =
    Program { name: "capi", sources: &["tests/c/capi.c", "tests/c/hostile.c"], cpp: false, flags: &["-std=c11"] };
const CPP: Program = Program { name: "capi_cpp", sources: &["tests/c/capi.cpp"], cpp: true, flags: &["-std=c++17"] };
const CPP_20: Program =
    Program { name: "capi_cpp20", sources: &["tests/c/capi.cpp"], cpp: true, flags: &["-std=c++20"] };
const MONITOR: Program = Program {
    name: "monitor",
    sources: &["tests/c/monitor.c", "tests/c/monitor_hostile.c", "tests/c/monitor_lives.c"],
    cpp: false,
    flags: &["-std=c11"],
};
const MONITOR_CPP: Program =
    Program { name: "monitor_cpp", sources: &["tests/c/monitor.cpp"], cpp: true, flags: &["-std=c++17"] };
const MONITOR_CPP_NO_EXCEPTIONS: Program = Program {
    name: "monitor_cpp_no_exceptions",
    sources: &["tests/c/monitor.cpp"],
    cpp: true,
    flags: &["-std=c++17", "-fno-exceptions", "-fno-rtti"],
};
const THREADS: Program =
    Program { name: "threads", sources: &["tests/c/threads.cpp"], cpp: true, flags: &["-std=c++17"] };
const FRONT_PAGE: Program =
    Program { name: "front_page_cpp", sources: &["tests/c/front_page.cpp"], cpp: true, flags: &["-std=c++17"] };
const EXAMPLE: Program =
    Program { name: "example_monitor", sources: &["examples/c/monitor.c"], cpp: false, flags: &["-std=c11"] };
const CPP_NO_EXCEPTIONS: Program = Program {
    name: "capi_cpp_no_exceptions",
    sources: &["tests/c/capi.cpp"],
    cpp: true,
    flags: &["-std=c++17", "-fno-exceptions", "-fno-rtti"],
};

#[derive(Clone, Copy, PartialEq)]
enum Link {
    Shared,
    Static,
}

impl Link {
    fn name(self) -> &'static str {
        match self {
            Link::Shared => "shared",
            Link::Static => "static",
        }
    }
}

/// Where things are once the library is built.
struct Tree {
    root: PathBuf,
    /// `libkronsae.so`, `.so.0` and `.a`.
    libraries: PathBuf,
    /// What these steps make.
    out: PathBuf,
}

/// Builds the library and the model files the programs open.
fn build(root: &Path) -> Result<Tree, String> {
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), |dir| root.join(dir));
    let tree = Tree { root: root.to_owned(), libraries: target.join("debug"), out: target.join("native") };
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command.args(["build", "--quiet", "-p", "kronsae", "--lib", "--example", "make_model"]).current_dir(root);
    output(command, "cargo")?;
    let mut command = Command::new(tree.libraries.join("examples/make_model"));
    command.arg(tree.out.join("models"));
    output(command, "make_model")?;
    Ok(tree)
}

impl Tree {
    /// Compiles a program and returns the executable.
    fn compile(&self, program: &Program, link: Link, extra: &[&str]) -> Result<PathBuf, String> {
        let compiler = compiler(program.cpp);
        let variant = match extra {
            [] => "",
            ["-fsanitize=thread", ..] => "_threads",
            [flag, ..] if flag.starts_with("-I") => "",
            _ => "_sanitized",
        };
        let executable = self.out.join(format!("{}_{}{variant}", program.name, link.name()));
        let mut command = Command::new(&compiler);
        command.current_dir(&self.root).args(program.flags).args(WARNINGS).args(extra);
        command.args(["-Iinclude", "-Itests/c"]).args(program.sources).arg("-o").arg(&executable);
        match link {
            Link::Shared => {
                command.arg("-L").arg(&self.libraries).arg("-lkronsae");
                command.arg(format!("-Wl,-rpath,{}", self.libraries.display()));
            }
            // What Rust's standard library asks of the system, as `--print native-static-libs` lists it.
            Link::Static => {
                command.arg(self.libraries.join("libkronsae.a")).args(["-lgcc_s", "-lrt", "-ldl"]);
            }
        }
        command.args(["-pthread", "-lm"]);
        output(command, &compiler)?;
        Ok(executable)
    }

    /// Runs one of the test programs, under `prefix` if it is not empty, and wants its line of checks.
    fn check(&self, executable: &Path, prefix: &[&str], environment: &[(&str, &str)]) -> Result<(), String> {
        let mut command = match prefix {
            [] => Command::new(executable),
            [program, arguments @ ..] => {
                let mut command = Command::new(program);
                command.args(arguments).arg(executable);
                command
            }
        };
        command.args(["tiny", "threshold", "random"].map(|name| self.model(name)));
        command.envs(environment.iter().copied());
        let label = executable.display().to_string();
        let found = output(command, prefix.first().unwrap_or(&label.as_str()))?;
        let text = String::from_utf8_lossy(&found.stdout);
        let checks =
            text.lines().find_map(|line| line.strip_prefix("ok ")?.strip_suffix(" checks")?.parse::<u32>().ok());
        match checks {
            Some(1..) => Ok(()),
            _ => Err(format!("{label}: printed `{}`, expected `ok N checks`", text.trim())),
        }
    }

    fn model(&self, name: &str) -> PathBuf {
        self.out.join("models").join(format!("{name}.safetensors"))
    }

    /// Compiles and runs the examples on the header's front page as a reader would copy them.
    fn front_page(&self) -> Result<(), String> {
        let path = self.root.join("include/kronsae.h");
        let text = std::fs::read_to_string(&path).map_err(|e| format!("{}: cannot read: {e}", path.display()))?;
        let [encode, monitor] = header::front_page_examples(&text)?;
        let fires = |text: &str| text.lines().all(|line| line.starts_with("latent ") && line.contains(" fires at "));
        self.front_page_program("front_page", &encode, "random", &fires)?;
        let found = |text: &str| text == "seen: request 7, position 0\n";
        self.front_page_program("front_page_monitor", &monitor, "tiny", &found)?;
        self.front_page_cpp()
    }

    /// The same of kronsae.hpp, whose examples stand in functions of tests/c/front_page.cpp.
    fn front_page_cpp(&self) -> Result<(), String> {
        let path = self.root.join("include/kronsae.hpp");
        let text = std::fs::read_to_string(&path).map_err(|e| format!("{}: cannot read: {e}", path.display()))?;
        for (name, code) in ["encode", "monitor"].into_iter().zip(header::examples_cpp(&text)?) {
            let file = self.out.join(format!("front_page_{name}.inc"));
            std::fs::write(&file, code).map_err(|e| format!("{}: cannot write: {e}", file.display()))?;
        }
        let here = format!("-I{}", self.out.display());
        self.check(&self.compile(&FRONT_PAGE, Link::Shared, &[&here])?, &[], &[])
    }

    /// One of them, run with a model, whose output must be `right`.
    fn front_page_program(
        &self,
        name: &str,
        code: &str,
        model: &str,
        right: &dyn Fn(&str) -> bool,
    ) -> Result<(), String> {
        let label = format!("the example on the header's front page ({name}.c)");
        let source = self.out.join(format!("{name}.c"));
        std::fs::write(&source, code).map_err(|e| format!("{}: cannot write: {e}", source.display()))?;
        let compiler = compiler(false);
        let executable = self.out.join(name);
        let mut command = Command::new(&compiler);
        command.current_dir(&self.root).arg("-std=c11").args(WARNINGS).arg("-Iinclude").arg(&source);
        command.arg("-o").arg(&executable).arg("-L").arg(&self.libraries).arg("-lkronsae");
        command.arg(format!("-Wl,-rpath,{}", self.libraries.display()));
        output(command, &compiler)?;
        let mut command = Command::new(&executable);
        command.arg(self.model(model));
        let found = output(command, &label)?;
        let text = String::from_utf8_lossy(&found.stdout);
        if text.is_empty() || !right(&text) {
            return Err(format!("{label} printed `{}`, which is not what it should", text.trim()));
        }
        // A model that is not there: the example's own error path.
        let failed = Command::new(&executable).arg("/nonexistent/model").output().map_err(|e| e.to_string())?;
        if failed.status.code() != Some(1) || !String::from_utf8_lossy(&failed.stderr).contains("/nonexistent/model") {
            return Err(format!("{label} does not report a missing model"));
        }
        Ok(())
    }

    /// The example program: every token is encoded, and its rule finds some.
    fn example(&self, link: Link) -> Result<(), String> {
        let executable = self.compile(&EXAMPLE, link, &[])?;
        let mut command = Command::new(&executable);
        command.arg(self.model("random"));
        let found = output(command, "examples/c/monitor.c")?;
        let text = String::from_utf8_lossy(&found.stdout);
        let events = text.lines().filter(|line| line.starts_with("first-latent: request ")).count();
        let last = text.lines().last().unwrap_or_default();
        // 2 threads of 8 requests of 12 + 50 tokens, fewer than its queues have room for.
        let expected = format!("992 tokens submitted, 992 encoded, 0 dropped; {events} events");
        if events == 0 || last != expected {
            return Err(format!("examples/c/monitor.c ended with `{last}`, expected `{expected}`, and some events"));
        }
        Ok(())
    }
}

/// The C and C++ programs and the header's example, against the shared and the static library.
///
/// # Errors
/// The compiler's or the program's output; a missing tool.
pub(crate) fn c_and_cpp(root: &Path) -> Result<(), String> {
    require(&[&compiler(false), &compiler(true)])?;
    let tree = build(root)?;
    for link in [Link::Shared, Link::Static] {
        for program in [&C, &CPP, &CPP_20, &CPP_NO_EXCEPTIONS, &MONITOR, &MONITOR_CPP, &MONITOR_CPP_NO_EXCEPTIONS] {
            tree.check(&tree.compile(program, link, &[])?, &[], &[])?;
        }
        tree.example(link)?;
    }
    tree.check(&tree.compile(&THREADS, Link::Shared, &[])?, &[], &[])?;
    tree.front_page()
}

/// The C and C++ programs under AddressSanitizer, with its leak check, and UndefinedBehaviorSanitizer.
///
/// # Errors
/// As [`c_and_cpp`].
pub(crate) fn sanitizers(root: &Path) -> Result<(), String> {
    require(&[&compiler(false), &compiler(true)])?;
    let tree = build(root)?;
    let probe = tree.out.join("probe.c");
    std::fs::write(&probe, "int main(void) { return 0; }\n")
        .map_err(|e| format!("{}: cannot write: {e}", probe.display()))?;
    let compiler = compiler(false);
    let mut command = Command::new(&compiler);
    command.args(SANITIZE).arg(&probe).arg("-o").arg(tree.out.join("probe"));
    if output(command, &compiler).is_err() {
        return Err(format!("{MISSING_TOOL}the sanitizers of {compiler} (libasan, libubsan)"));
    }
    let environment = [("ASAN_OPTIONS", "detect_leaks=1:abort_on_error=0"), ("UBSAN_OPTIONS", "print_stacktrace=1")];
    for link in [Link::Shared, Link::Static] {
        for program in [&C, &CPP, &MONITOR, &MONITOR_CPP] {
            tree.check(&tree.compile(program, link, &SANITIZE)?, &[], &environment)?;
        }
    }
    Ok(())
}

/// The monitor's programs under gcc's ThreadSanitizer: races in what the C++ layer and the tests do, on threads of their
/// own and of the library. The library itself is not instrumented, and what happens inside it is left out; the queue has a
/// model checker instead.
///
/// # Errors
/// As [`c_and_cpp`].
pub(crate) fn thread_sanitizer(root: &Path) -> Result<(), String> {
    require(&[&compiler(false), &compiler(true)])?;
    let tree = build(root)?;
    let probe = tree.out.join("probe_threads.c");
    std::fs::write(&probe, "int main(void) { return 0; }\n")
        .map_err(|e| format!("{}: cannot write: {e}", probe.display()))?;
    let compiler = compiler(false);
    let executable = tree.out.join("probe_threads");
    let mut command = Command::new(&compiler);
    command.args(SANITIZE_THREADS).arg(&probe).arg("-o").arg(&executable);
    // Where the kernel spreads addresses further than the sanitizer knows, it starts with that switched off.
    let fixed = ["setarch", "-R"];
    let starts = |prefix: &[&str]| match prefix {
        [] => Command::new(&executable).output(),
        [program, arguments @ ..] => Command::new(program).args(arguments).arg(&executable).output(),
    };
    let starts = |prefix: &[&str]| starts(prefix).is_ok_and(|ran| ran.status.success());
    let prefix: &[&str] = match output(command, &compiler) {
        Ok(_) if starts(&[]) => &[],
        Ok(_) if starts(&fixed) => &fixed,
        _ => return Err(format!("{MISSING_TOOL}the thread sanitizer of {compiler} (libtsan), able to start here")),
    };
    let environment = [("TSAN_OPTIONS", "ignore_noninstrumented_modules=1 die_after_fork=0 halt_on_error=0")];
    for program in [&MONITOR, &MONITOR_CPP, &THREADS] {
        tree.check(&tree.compile(program, Link::Shared, &SANITIZE_THREADS)?, prefix, &environment)?;
    }
    Ok(())
}

/// The C and C++ programs under valgrind: invalid accesses, use of what was never written, lost memory.
///
/// # Errors
/// As [`c_and_cpp`].
pub(crate) fn valgrind(root: &Path) -> Result<(), String> {
    require(&[&compiler(false), &compiler(true), "valgrind"])?;
    let tree = build(root)?;
    let suppressions = format!("--suppressions={}", root.join("tests/c/valgrind.supp").display());
    let leaks = ["--leak-check=full", "--errors-for-leak-kinds=definite,indirect"];
    // One thread runs at a time: without turns, those that submit in a loop starve the one that is to stop them.
    let prefix = ["valgrind", "--quiet", "--fair-sched=try", VALGRIND_FOUND, leaks[0], leaks[1], &suppressions];
    let lost = VALGRIND_FOUND.rsplit('=').next().unwrap_or_default();
    let environment = [("KRONSAE_ISA", valgrind_isa()), ("KRONSAE_TEST_LOST_IN_CHILD", lost)];
    for program in [&C, &CPP, &MONITOR, &MONITOR_CPP, &THREADS] {
        tree.check(&tree.compile(program, Link::Shared, &[])?, &prefix, &environment)?;
    }
    Ok(())
}

/// The best instruction set that valgrind can execute: it has no AVX-512.
fn valgrind_isa() -> &'static str {
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
        return "avx2";
    }
    "portable"
}

/// The shared library exports every recorded name, the functions of the header and nothing else, has its SONAME, and stays
/// loaded.
///
/// # Errors
/// The symbols too many or too few; a missing tool.
pub(crate) fn exported_symbols(root: &Path) -> Result<(), String> {
    require(&["nm", "readelf"])?;
    let tree = build(root)?;
    let library = tree.libraries.join("libkronsae.so");
    let mut command = Command::new("nm");
    command.args(["-D", "--defined-only", "--format=posix"]).arg(&library);
    let text = output(command, "nm")?;
    let exported = words(&String::from_utf8_lossy(&text.stdout));
    let added = abi::symbols::verify(root, &exported, &header::functions(&header::generate()?))?;
    if !added.is_empty() {
        println!("new, to be recorded by `cargo xtask abi --write`: {}", added.join(", "));
    }

    let mut command = Command::new("readelf");
    command.args(["-d", "-W"]).arg(&library);
    let dynamic = String::from_utf8_lossy(&output(command, "readelf")?.stdout).into_owned();
    for (what, expected) in [("SONAME", "[libkronsae.so.0]"), ("FLAGS_1", "NODELETE")] {
        if !dynamic.lines().any(|line| line.contains(what) && line.contains(expected)) {
            return Err(format!("libkronsae.so: no {what} {expected} in its dynamic section"));
        }
    }
    Ok(())
}

/// The first word of each line.
fn words(text: &str) -> Vec<String> {
    text.lines().filter_map(|line| line.split_whitespace().next()).map(str::to_owned).collect()
}

fn compiler(cpp: bool) -> String {
    let (variable, default) = if cpp { ("CXX", "c++") } else { ("CC", "cc") };
    std::env::var(variable).ok().filter(|name| !name.is_empty()).unwrap_or_else(|| default.to_owned())
}

/// That each tool can be started at all.
fn require(tools: &[&str]) -> Result<(), String> {
    let lacking = |tool: &&&str| Command::new(tool).arg("--version").output().is_err();
    match tools.iter().find(lacking) {
        Some(tool) => Err(format!("{MISSING_TOOL}{tool}")),
        None => Ok(()),
    }
}

/// Runs a command that must succeed.
fn output(mut command: Command, name: &str) -> Result<Output, String> {
    let found = command.output().map_err(|e| match e.kind() {
        std::io::ErrorKind::NotFound => format!("{MISSING_TOOL}{name}"),
        _ => format!("{name}: cannot start: {e}"),
    })?;
    if found.status.success() {
        return Ok(found);
    }
    let text = [&found.stdout, &found.stderr].map(|bytes| String::from_utf8_lossy(bytes).into_owned()).concat();
    Err(format!("{name} failed ({}):\n{}", found.status, text.trim_end()))
}
