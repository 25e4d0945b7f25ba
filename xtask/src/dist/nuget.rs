//! `cargo xtask nuget`: the NuGet package of bindings/csharp, with the shared library inside. Neither `dotnet pack` nor `nuget` is
//! needed: the assembly is compiled by mcs against CoreCLR's and made to refer to netstandard alone (packaging/Retarget.cs), and
//! the archive is written here.

use super::consumer::EXPECTED;
use super::{VERSION, copy, fresh, newcomer, read, succeed, write, zip};
use crate::steps::csharp::{Runtime, references};
use std::path::{Path, PathBuf};
use std::process::Command;

const LIBRARY: &str = "runtimes/linux-x64/native/libkronsae.so.0";
const ASSEMBLY: &str = "lib/netstandard2.1/Kronsae.dll";
const CECIL: &str = "missing tool: Mono.Cecil (Debian: apt-get install libmono-cecil-private-cil)";

/// Makes the package in `target/package`.
///
/// # Errors
/// A missing tool; what does not build.
pub(crate) fn make(root: &Path) -> Result<(), String> {
    pack(root, &Runtime::coreclr(root)?).map(|_| ())
}

/// As [`make`]; then README.md's program is compiled against the package, unpacked, and run on CoreCLR with the library inside.
///
/// # Errors
/// As [`make`]; what does not work.
pub(crate) fn check(root: &Path) -> Result<(), String> {
    let runtime = Runtime::coreclr(root)?;
    let package = pack(root, &runtime)?;
    let elsewhere = tempfile::tempdir().map_err(|e| format!("no temporary folder: {e}"))?;
    let unpacked = elsewhere.path().join("unpacked");
    // Another implementation of the format than the one that wrote it.
    let mut python = Command::new("python3");
    python.args(["-m", "zipfile", "-e"]).arg(&package).arg(&unpacked);
    succeed(python)?;
    let nuspec = read(&unpacked.join("Kronsae.nuspec"))?;
    for (_, target) in files(&nuspec_source(root)?) {
        if !unpacked.join(&target).is_file() {
            return Err(format!("{}: has no {target}", package.display()));
        }
    }
    if nuspec.contains("<files>") || !read(&unpacked.join("_rels/.rels"))?.contains("/Kronsae.nuspec") {
        return Err(format!("{}: is no NuGet package: no relationship to its nuspec", package.display()));
    }

    // As NuGet lays a program out: the assembly beside it, the library below runtimes.
    let app = elsewhere.path().join("app");
    copy(&unpacked.join(ASSEMBLY), &app.join("Kronsae.dll"))?;
    copy(&unpacked.join(LIBRARY), &app.join(LIBRARY))?;
    let (source, program) = (app.join("First.cs"), app.join("First.exe"));
    write(&source, &newcomer::program(&read(&root.join("README.md"))?, "csharp")?)?;
    let assemblies = runtime.assemblies.as_deref().unwrap_or(root);
    let mut compiler = Command::new("mcs");
    compiler.args(references(assemblies)).arg(format!("-r:{}", assemblies.join("netstandard.dll").display()));
    compiler.arg(format!("-r:{}", app.join("Kronsae.dll").display())).arg(format!("-out:{}", program.display()));
    compiler.arg(&source);
    succeed(compiler)?;
    let model = super::consumer::model(root, elsewhere.path())?;
    let mut command = runtime.command(&program);
    command.arg(model).env_remove("KRONSAE_LIBRARY").env_remove("LD_LIBRARY_PATH");
    let found = succeed(command)?;
    if found == EXPECTED {
        return Ok(());
    }
    Err(format!("README.md's C# program, from the package, printed `{found}`, expected `{EXPECTED}`"))
}

fn pack(root: &Path, runtime: &Runtime) -> Result<PathBuf, String> {
    let cecil = cecil()?;
    let packed = super::build(root)?;
    let work = packed.tarball.parent().unwrap_or(root);
    let stage = work.join("nuget");
    fresh(&stage)?;
    let tool = work.join("Retarget.exe");
    let mut compiler = Command::new("mcs");
    compiler.arg(format!("-r:{}", cecil.display())).arg(format!("-out:{}", tool.display()));
    compiler.arg(root.join("packaging/Retarget.cs"));
    succeed(compiler)?;
    std::fs::create_dir_all(stage.join("lib/netstandard2.1"))
        .map_err(|e| format!("{}: cannot make: {e}", stage.display()))?;
    let standard = runtime.assemblies.as_deref().unwrap_or(root).join("netstandard.dll");
    let mut retarget = Command::new("mono");
    retarget.arg(&tool).arg(runtime.out.join("Kronsae.dll")).arg(standard).arg(stage.join(ASSEMBLY));
    if let Some(folder) = cecil.parent() {
        retarget.env("MONO_PATH", folder);
    }
    println!("{}", succeed(retarget)?.trim_end());
    copy(&runtime.out.join("Kronsae.xml"), &stage.join("lib/netstandard2.1/Kronsae.xml"))?;
    let tree = work.join(&packed.name);
    copy(&tree.join(format!("lib/libkronsae.so.{VERSION}")), &stage.join(LIBRARY))?;
    copy(&root.join("bindings/csharp/README.md"), &stage.join("README.md"))?;
    for file in ["LICENSE-MIT", "LICENSE-APACHE", "THIRD-PARTY.txt"] {
        copy(&tree.join("share/doc/kronsae").join(file), &stage.join(file))?;
    }

    let nuspec = nuspec_source(root)?;
    let mut contents = vec![
        ("[Content_Types].xml".to_owned(), CONTENT_TYPES.as_bytes().to_vec()),
        ("_rels/.rels".to_owned(), RELATIONSHIPS.as_bytes().to_vec()),
        ("Kronsae.nuspec".to_owned(), without_files(&nuspec).into_bytes()),
    ];
    for (source, target) in files(&nuspec) {
        let file = stage.join(source);
        let content = std::fs::read(&file).map_err(|e| format!("{}: cannot read: {e}", file.display()))?;
        contents.push((target, content));
    }
    let package = work.join(format!("Kronsae.{VERSION}.nupkg"));
    std::fs::write(&package, zip::archive(&contents)?)
        .map_err(|e| format!("{}: cannot write: {e}", package.display()))?;
    println!("{}: {}", package.display(), super::megabytes(super::size(&package)?));
    Ok(package)
}

const CONTENT_TYPES: &str = r#"<?xml version="1.0" encoding="utf-8"?>
<Types xmlns="http://schemas.openxmlformats.org/package/2006/content-types">
  <Default Extension="rels" ContentType="application/vnd.openxmlformats-package.relationships+xml" />
  <Default Extension="nuspec" ContentType="application/octet" />
  <Default Extension="dll" ContentType="application/octet" />
  <Default Extension="xml" ContentType="application/octet" />
  <Default Extension="0" ContentType="application/octet" />
  <Default Extension="md" ContentType="application/octet" />
  <Default Extension="txt" ContentType="application/octet" />
  <Override PartName="/LICENSE-MIT" ContentType="application/octet" />
  <Override PartName="/LICENSE-APACHE" ContentType="application/octet" />
</Types>
"#;
const RELATIONSHIPS: &str = r#"<?xml version="1.0" encoding="utf-8"?>
<Relationships xmlns="http://schemas.openxmlformats.org/package/2006/relationships">
  <Relationship Type="http://schemas.microsoft.com/packaging/2010/07/manifest" Target="/Kronsae.nuspec" Id="R1" />
</Relationships>
"#;

fn nuspec_source(root: &Path) -> Result<String, String> {
    let text = read(&root.join("bindings/csharp/kronsae.nuspec"))?;
    let version = format!("<version>{VERSION}</version>");
    if text.contains(&version) { Ok(text) } else { Err(format!("bindings/csharp/kronsae.nuspec: has no {version}")) }
}

/// `<file src="..." target="..." />`: what, and its path in the package.
fn files(nuspec: &str) -> Vec<(String, String)> {
    let attribute =
        |line: &str, name: &str| Some(line.split_once(&format!("{name}=\""))?.1.split_once('"')?.0.to_owned());
    let file = |line: &str| {
        let line = line.trim().strip_prefix("<file ")?;
        let (source, folder) = (attribute(line, "src")?, attribute(line, "target")?);
        let name = source.rsplit('/').next()?.to_owned();
        let target = if folder.is_empty() { name } else { format!("{folder}/{name}") };
        Some((source, target))
    };
    nuspec.lines().filter_map(file).collect()
}

/// The nuspec inside a package does not list files.
fn without_files(nuspec: &str) -> String {
    match (nuspec.find("  <files>"), nuspec.find("</files>\n")) {
        (Some(from), Some(to)) => nuspec[..from].to_owned() + &nuspec[to + "</files>\n".len()..],
        _ => nuspec.to_owned(),
    }
}

/// The newest Mono.Cecil.dll of mono's global cache, which has old ones for old programs.
fn cecil() -> Result<PathBuf, String> {
    let cache = Path::new("/usr/lib/mono/gac/Mono.Cecil");
    let folders = std::fs::read_dir(cache).map_err(|_| CECIL.to_owned())?;
    let newest = folders.flatten().max_by_key(|folder| version(&folder.file_name().to_string_lossy()));
    newest.map(|folder| folder.path().join("Mono.Cecil.dll")).ok_or_else(|| CECIL.to_owned())
}

/// `0.11.0.0__0738eb9f132ed756`, as numbers.
fn version(name: &str) -> Vec<u32> {
    name.split("__").next().unwrap_or_default().split('.').filter_map(|part| part.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_compared_as_numbers() {
        assert!(version("0.11.0.0__0738eb9f132ed756") > version("0.9.5.0__0738eb9f132ed756"));
    }

    #[test]
    fn the_nuspec_is_read() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
        let text = nuspec_source(root).unwrap();
        let found = files(&text);
        assert!(found.contains(&(LIBRARY.to_owned(), LIBRARY.to_owned())));
        assert!(found.contains(&("README.md".to_owned(), "README.md".to_owned())));
        let inside = without_files(&text);
        assert!(!inside.contains("file") && inside.ends_with("</metadata>\n</package>\n"), "{inside}");
    }
}
