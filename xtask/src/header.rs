//! `include/kronsae.h`: made from `src/capi/` by cbindgen, checked in, and verified to be fresh.

use std::path::{Path, PathBuf};

/// The sources in the order a reader of the header wants them.
const SOURCES: [&str; 17] = [
    "version",
    "status",
    "error",
    "log",
    "views",
    "sae",
    "encode",
    "decode",
    "cuda",
    "monitor/lifecycle",
    "monitor/sites",
    "monitor/taps",
    "monitor/device_taps",
    "monitor/events",
    "monitor/callbacks",
    "monitor/output",
    "monitor/recorder",
];

/// The workspace this program was built from.
fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn header_file() -> PathBuf {
    root().join("include/kronsae.h")
}

fn read(path: &Path) -> Result<String, String> {
    std::fs::read_to_string(path).map_err(|e| format!("{}: cannot read: {e}", path.display()))
}

/// The text of `include/kronsae.h` as the sources now have it.
///
/// # Errors
/// A line that says which file cannot be read or parsed, or which function lacks a part of its description.
pub(crate) fn generate() -> Result<String, String> {
    let root = root();
    let settings = root.join("cbindgen.toml");
    let mut config =
        cbindgen::Config::from_file(&settings).map_err(|e| format!("{}: cannot use: {e}", settings.display()))?;
    let generated = "/* Generated from src/capi/ by `cargo xtask header`; edit there. */";
    let front = read(&root.join("include/front-page.h.in"))?;
    config.header = Some(format!("{front}\n{generated}"));
    let builder = SOURCES.iter().fold(cbindgen::Builder::new().with_config(config), |builder, module| {
        builder.with_src(root.join(format!("src/capi/{module}.rs")))
    });
    let bindings = builder.generate().map_err(|e| format!("src/capi: cbindgen cannot read it: {e}"))?;
    let mut text = Vec::new();
    bindings.write(&mut text);
    let text = String::from_utf8(text).map_err(|e| format!("cbindgen wrote what is not UTF-8: {e}"))?;
    let text = on_one_line(&text);
    check_descriptions(&text)?;
    Ok(text)
}

/// Puts comments of one line on one line: cbindgen gives each three, which makes tables of constants hard to read.
fn on_one_line(header: &str) -> String {
    let lines: Vec<&str> = header.lines().collect();
    let (mut out, mut at) = (String::new(), 0);
    while at < lines.len() {
        let indent = &lines[at][..lines[at].len() - lines[at].trim_start().len()];
        let single = lines[at].trim() == "/**" && lines.get(at + 2).is_some_and(|end| end.trim() == "*/");
        match single.then(|| lines[at + 1].trim().strip_prefix("* ")).flatten() {
            Some(sentence) if indent.len() + sentence.len() + 7 <= 120 => {
                out.push_str(&format!("{indent}/** {sentence} */\n"));
                at += 3;
            }
            _ => {
                out.push_str(lines[at]);
                out.push('\n');
                at += 1;
            }
        }
    }
    out
}

/// Writes the header.
///
/// # Errors
/// As [`generate`], or that the file cannot be written.
pub(crate) fn write() -> Result<(), String> {
    let path = header_file();
    std::fs::write(&path, generate()?).map_err(|e| format!("{}: cannot write: {e}", path.display()))
}

/// Verifies that the checked-in header is what [`generate`] makes.
///
/// # Errors
/// The first line that differs, and what to run.
pub(crate) fn verify() -> Result<(), String> {
    let (found, expected) = (read(&header_file())?, generate()?);
    if found == expected {
        return Ok(());
    }
    let differing = found.lines().zip(expected.lines()).position(|(a, b)| a != b);
    let at = differing.unwrap_or_else(|| found.lines().count().min(expected.lines().count()));
    Err(format!(
        "include/kronsae.h is stale from line {}: found `{}`, src/capi makes `{}`; run `cargo xtask header`",
        at + 1,
        found.lines().nth(at).unwrap_or("its end"),
        expected.lines().nth(at).unwrap_or("its end")
    ))
}

/// The two examples at the head of `kronsae.hpp`: what is indented in its first comment, apart by prose.
///
/// # Errors
/// There are not two.
pub(crate) fn examples_cpp(text: &str) -> Result<[String; 2], String> {
    let mut examples = vec![String::new()];
    for line in text.lines().map_while(|line| line.strip_prefix("//")) {
        match line.strip_prefix("     ") {
            Some("...") => {}
            Some(code) => examples.last_mut().into_iter().for_each(|last| *last += &format!("{code}\n")),
            None if line.trim().is_empty() => {}
            None => examples.push(String::new()),
        }
    }
    examples.retain(|code| !code.is_empty());
    <[String; 2]>::try_from(examples)
        .map_err(|found| format!("include/kronsae.hpp: {} examples in its first comment, expected 2", found.len()))
}

/// The functions that a header declares, in its order.
pub(crate) fn functions(header: &str) -> Vec<String> {
    header.lines().filter_map(|line| function_name(line.trim_start())).map(str::to_owned).collect()
}

/// Every function says which threads may call it and since when it exists.
fn check_descriptions(header: &str) -> Result<(), String> {
    let names = functions(header);
    if names.is_empty() {
        return Err("src/capi: cbindgen found no function in it".to_owned());
    }
    for name in names {
        let declared = header.lines().take_while(|line| function_name(line.trim_start()) != Some(&name));
        let before: Vec<&str> = declared.collect();
        let comment = before.rsplit(|line| line.trim_start().starts_with("/**")).next().unwrap_or_default();
        for part in ["Threads: ", "Since "] {
            if !comment.iter().any(|line| line.contains(part)) {
                return Err(format!("src/capi: the description of {name} has no line `{part}...`"));
            }
        }
    }
    Ok(())
}

/// The name of the function whose declaration starts on this line.
fn function_name(line: &str) -> Option<&str> {
    if ['#', '*', '/'].iter().any(|start| line.starts_with(*start)) || line.starts_with("typedef") {
        return None;
    }
    let name = line.split('(').next().filter(|before| before.len() < line.len())?;
    let name = name.rsplit([' ', '*']).next()?;
    name.starts_with("kronsae_").then_some(name)
}

/// The example programs on the header's front page: the one that encodes, the one that monitors.
///
/// # Errors
/// If the header has not these two.
pub(crate) fn front_page_examples(header: &str) -> Result<[String; 2], String> {
    let programs = header.split(" * @code{.c}\n").skip(1).filter_map(|rest| rest.split_once(" * @endcode"));
    let programs: Vec<String> = programs
        .map(|(code, _)| {
            let bare = |line: &'_ str| line.strip_prefix(" * ").or_else(|| line.strip_prefix(" *")).map(str::to_owned);
            code.lines().map(|line| bare(line).unwrap_or_else(|| line.to_owned()) + "\n").collect()
        })
        .collect();
    programs.try_into().map_err(|found: Vec<String>| {
        format!("include/kronsae.h: {} examples between @code{{.c}} and @endcode, expected 2", found.len())
    })
}
