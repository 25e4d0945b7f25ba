//! The steps of bindings/csharp: compiled by mcs, run on mono and on CoreCLR.

use super::{Report, openssl, succeed};
use crate::process::{cargo, run};
use std::path::{Path, PathBuf};
use std::process::Command;

const FLAGS: [&str; 6] =
    ["-unsafe", "-langversion:7.2", "-optimize", "-warnaserror", "-nowarn:1702", "-d:KRONSAE_SPAN"];
/// What the programs need of CoreCLR's own assemblies, as mcs wants them named.
const CORECLR: [&str; 18] = [
    "Microsoft.Win32.Primitives",
    "System.Collections",
    "System.Collections.Specialized",
    "System.ComponentModel.Primitives",
    "System.Console",
    "System.Diagnostics.Process",
    "System.IO.FileSystem",
    "System.Linq",
    "System.Net.HttpListener",
    "System.Net.Primitives",
    "System.Net.Requests",
    "System.Net.Sockets",
    "System.Net.WebHeaderCollection",
    "System.Private.CoreLib",
    "System.Private.Uri",
    "System.Runtime",
    "System.Runtime.Extensions",
    "System.Text.RegularExpressions",
];
const RUNTIME_CONFIG: &str = r#"{"runtimeOptions":{"framework":{"name":"Microsoft.NETCore.App","version":"VERSION"},"configProperties":{"System.Globalization.Invariant":true}}}"#;

/// The bindings, tests and examples on mono.
pub(super) fn mono(root: &Path) -> Report {
    report(mono_in(root))
}

/// The same sources against CoreCLR's assemblies, run there. `KRONSAE_DOTNET` names the host, `dotnet` if it is not set.
pub(super) fn coreclr(root: &Path) -> Report {
    report(coreclr_in(root))
}

fn report(done: Result<Report, String>) -> Report {
    match done {
        Ok(report) => report,
        Err(error) => match error.strip_prefix("missing tool: ") {
            Some(tool) => Report { skipped: 1, missing: Some(tool.to_owned()), ..Report::default() },
            None => Report { failed: 1, output: error, ..Report::default() },
        },
    }
}

fn mono_in(root: &Path) -> Result<Report, String> {
    let runtime = Runtime::mono(root)?;
    Ok(Tests::prepare(root)?.run(&runtime))
}

fn coreclr_in(root: &Path) -> Result<Report, String> {
    let runtime = Runtime::coreclr(root)?;
    if let Some(assemblies) = &runtime.assemblies {
        openssl::make(assemblies, &runtime.out)?;
    }
    Ok(Tests::prepare(root)?.run(&runtime))
}

/// What runs programs, and the folder of those that were compiled for it.
pub(crate) struct Runtime {
    pub(crate) out: PathBuf,
    host: PathBuf,
    arguments: Vec<PathBuf>,
    /// The folder of CoreCLR's own assemblies.
    pub(crate) assemblies: Option<PathBuf>,
}

impl Runtime {
    /// Compiles for mono.
    pub(crate) fn mono(root: &Path) -> Result<Runtime, String> {
        needs_mono()?;
        let out = compile(root, "mono", &[])?;
        Ok(Runtime { out, host: "mono".into(), arguments: Vec::new(), assemblies: None })
    }

    /// Compiles against CoreCLR's assemblies.
    pub(crate) fn coreclr(root: &Path) -> Result<Runtime, String> {
        needs_mono()?;
        let missing =
            "missing tool: CoreCLR (set KRONSAE_DOTNET to the dotnet that the Python package dotnetcore2 holds)";
        let host =
            std::env::var_os("KRONSAE_DOTNET").filter(|host| !host.is_empty()).unwrap_or_else(|| "dotnet".into());
        let mut command = Command::new(&host);
        command.arg("--list-runtimes");
        let listed = run(command).map_err(|_| missing.to_owned())?;
        // `Microsoft.NETCore.App 3.1.23 [/somewhere/shared/Microsoft.NETCore.App]`
        let runtime = listed.output.lines().rev().find_map(|line| {
            let (version, folder) = line.strip_prefix("Microsoft.NETCore.App ")?.split_once(" [")?;
            Some((version.to_owned(), PathBuf::from(folder.strip_suffix(']')?).join(version)))
        });
        let (version, assemblies) = runtime.ok_or(missing)?;
        let mut flags = references(&assemblies);
        flags.push("-d:KRONSAE_ASYNC".to_owned());
        let out = compile(root, "coreclr", &flags)?;
        let config = out.join("runtimeconfig.json");
        let text = RUNTIME_CONFIG.replace("VERSION", &version);
        std::fs::write(&config, text).map_err(|e| format!("{}: cannot write: {e}", config.display()))?;
        let arguments = vec!["exec".into(), "--runtimeconfig".into(), config];
        Ok(Runtime { out, host: host.into(), arguments, assemblies: Some(assemblies) })
    }

    /// Starts a program, one of those compiled or another.
    pub(crate) fn command(&self, program: &Path) -> Command {
        let mut command = Command::new(&self.host);
        command.args(&self.arguments).arg(self.out.join(program));
        command
    }
}

/// For mcs: CoreCLR's assemblies, and not mono's.
pub(crate) fn references(assemblies: &Path) -> Vec<String> {
    let all = CORECLR.map(|name| format!("-r:{}", assemblies.join(format!("{name}.dll")).display()));
    ["-nostdlib".to_owned(), "-noconfig".to_owned()].into_iter().chain(all).collect()
}

fn needs_mono() -> Result<(), String> {
    for program in ["mcs", "mono"] {
        let mut command = Command::new(program);
        command.arg("--version");
        run(command).map_err(|_| format!("missing tool: {program} (Debian: apt-get install mono-mcs mono-runtime)"))?;
    }
    Ok(())
}

fn target(root: &Path) -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), |folder| root.join(folder))
}

/// Compiles the library, the tests, the examples and the benchmark for one runtime; returns the folder.
fn compile(root: &Path, runtime: &str, flags: &[String]) -> Result<PathBuf, String> {
    let out = target(root).join("csharp").join(runtime);
    std::fs::create_dir_all(&out).map_err(|e| format!("{}: cannot be made: {e}", out.display()))?;
    let programs = [
        ("src/*.cs", "Kronsae.dll"),
        ("tests/*.cs", "Kronsae.Tests.exe"),
        ("examples/Example.cs", "Example.exe"),
        ("examples/Gateway.cs", "Gateway.exe"),
        ("bench/Bench.cs", "Bench.exe"),
    ];
    for (sources, made) in programs {
        let mut command = Command::new("mcs");
        command.args(FLAGS).args(flags).current_dir(root.join("bindings/csharp"));
        if made == "Kronsae.dll" {
            command.arg("-target:library").arg(format!("-doc:{}", out.join("Kronsae.xml").display()));
        } else {
            command.arg(format!("-r:{}", out.join("Kronsae.dll").display()));
        }
        command.arg(format!("-out:{}", out.join(made).display())).arg(sources);
        succeed(run(command)).map_err(|error| format!("{made}: {error}"))?;
    }
    Ok(out)
}

/// What the test program is given.
struct Tests {
    root: PathBuf,
    library: PathBuf,
    models: PathBuf,
    layout: PathBuf,
    false_library: PathBuf,
}

impl Tests {
    /// Builds the library, the models, a false library, and asks the C compiler how the header's structs lie.
    fn prepare(root: &Path) -> Result<Tests, String> {
        let target = target(root);
        let out = target.join("csharp");
        succeed(run(cargo(root, &["build", "--quiet", "-p", "kronsae", "--lib", "--example", "make_model"])))?;
        let tests = Tests {
            root: root.to_owned(),
            library: target.join("debug/libkronsae.so"),
            models: out.join("models"),
            layout: out.join("layout.txt"),
            false_library: out.join("libfalse.so"),
        };
        let mut command = Command::new(target.join("debug/examples/make_model"));
        command.arg(&tests.models);
        succeed(run(command))?;
        let mono = compile(root, "mono", &[])?;
        let mut command = Command::new("mono");
        command.arg(mono.join("Kronsae.Tests.exe")).arg("--layout-source").arg(root.join("include/kronsae.h"));
        let source = run(command)?;
        if !source.success {
            return Err(source.output);
        }
        let write = |path: &Path, text: &str| {
            std::fs::write(path, text).map_err(|e| format!("{}: cannot write: {e}", path.display()))
        };
        write(&out.join("layout.c"), &source.output)?;
        compile_c(root, &out.join("layout.c"), &out.join("layout"), &[])?;
        let false_source = root.join("bindings/csharp/tests/false_library.c");
        let shared = ["-shared", "-fPIC", "-Wl,-soname,libkronsae.so.0"];
        compile_c(root, &false_source, &tests.false_library, &shared)?;
        let layout = run(Command::new(out.join("layout")))?;
        write(&tests.layout, &layout.output)?;
        Ok(tests)
    }

    fn run(&self, runtime: &Runtime) -> Report {
        let mut command = runtime.command(Path::new("Kronsae.Tests.exe"));
        command.args([&self.root, &self.models, &self.layout, &self.false_library]);
        command.env("KRONSAE_LIBRARY", &self.library);
        command.env("CLR_OPENSSL_VERSION_OVERRIDE", openssl::VERSION).env("LD_LIBRARY_PATH", &runtime.out);
        Report::of_tests(run(command))
    }
}

fn compile_c(root: &Path, source: &Path, made: &Path, flags: &[&str]) -> Result<(), String> {
    let compiler = std::env::var_os("CC").unwrap_or_else(|| "cc".into());
    let mut command = Command::new(compiler);
    command.args(["-Wall", "-Wno-unused-parameter"]).args(flags).arg("-I").arg(root.join("include"));
    command.arg(source).arg("-o").arg(made);
    succeed(run(command))
}
