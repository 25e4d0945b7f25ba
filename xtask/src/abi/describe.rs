//! The interface that `include/kronsae.h` declares, a line each: constants, types, structs with their fields, functions.
//! Names and types are read from the text; values, sizes and offsets are what the C compiler says.

use crate::process::run;
use std::path::Path;
use std::process::Command;

/// A declaration and the comment before it.
struct Declaration {
    comment: String,
    /// Without comments, in single spaces, without the semicolon.
    text: String,
}

/// The lines, in the header's order: `constant NAME VALUE`, `type NAME TYPE`, `opaque NAME`,
/// `struct NAME size N align N grows|fixed`, `field STRUCT.NAME offset N size N TYPE`,
/// `function NAME RETURNS (ARGUMENTS) since VERSION stable|unstable|deprecated`.
///
/// # Errors
/// What cannot be read in the header; a missing compiler.
pub(super) fn describe(root: &Path) -> Result<Vec<String>, String> {
    let path = root.join("include/kronsae.h");
    let header = std::fs::read_to_string(&path).map_err(|e| format!("{}: cannot read: {e}", path.display()))?;
    let asked = questions(&header)?;
    let folder = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), |dir| root.join(dir));
    // Tests and the step may run at the same time.
    let folder = folder.join(format!("abi/{}", std::process::id()));
    let answer = answers(root, &folder, &asked);
    // Left behind it does no harm.
    let _ = std::fs::remove_dir_all(&folder);
    answer
}

/// Compiles and runs the C program that prints the lines.
fn answers(root: &Path, folder: &Path, asked: &[String]) -> Result<Vec<String>, String> {
    std::fs::create_dir_all(folder).map_err(|e| format!("{}: cannot make: {e}", folder.display()))?;
    let (source, program) = (folder.join("layout.c"), folder.join("layout"));
    let includes = "#include <kronsae.h>\n#include <stdalign.h>\n#include <stdio.h>\n";
    let text = format!("{includes}int main(void) {{\n{}\n    return 0;\n}}\n", asked.join("\n"));
    std::fs::write(&source, text).map_err(|e| format!("{}: cannot write: {e}", source.display()))?;
    let mut compiler = Command::new(std::env::var_os("CC").unwrap_or_else(|| "cc".into()));
    compiler
        .args(["-std=c11", "-Wall", "-Werror", "-I"])
        .arg(root.join("include"))
        .arg(&source)
        .arg("-o")
        .arg(&program);
    let compiled = run(compiler)?;
    if !compiled.success {
        return Err(format!("the header's layout could not be compiled:\n{}", compiled.output));
    }
    let ran = run(Command::new(&program))?;
    if ran.success { Ok(ran.output.lines().map(str::to_owned).collect()) } else { Err(ran.output) }
}

/// Statements of C, each of which prints a line.
fn questions(header: &str) -> Result<Vec<String>, String> {
    let mut asked: Vec<String> = constants(header)
        .map(|name| format!("    printf(\"constant {name} %lld\\n\", (long long)({name}));"))
        .collect();
    for declaration in declarations(header) {
        asked.extend(ask(&declaration)?);
    }
    Ok(asked)
}

/// Macros whose value is a number.
fn constants(header: &str) -> impl Iterator<Item = &str> {
    header.lines().filter_map(|line| {
        let (name, value) = line.strip_prefix("#define ")?.split_once(' ')?;
        value.trim_start_matches('-').starts_with(|first: char| first.is_ascii_digit()).then_some(name)
    })
}

fn declarations(header: &str) -> Vec<Declaration> {
    let bare: String = header
        .lines()
        .filter(|line| !line.starts_with(['#', '}']) || line.starts_with("} "))
        .filter(|line| !line.starts_with("extern \"C\"") && !line.starts_with("}  //"))
        // What a macro goes on with.
        .filter(|line| !line.trim_start().starts_with("{ sizeof") && !line.trim_start().starts_with("(KRONSAE_"))
        .map(|line| format!("{line}\n"))
        .collect();
    let (mut found, mut comment, mut text, mut depth, mut rest) = (Vec::new(), String::new(), String::new(), 0, &*bare);
    while let Some(next) = rest.chars().next() {
        if let Some(after) = rest.strip_prefix("/*") {
            let (inside, behind) = after.split_once("*/").unwrap_or((after, ""));
            if depth == 0 {
                inside.clone_into(&mut comment);
            }
            rest = behind;
            continue;
        }
        rest = &rest[next.len_utf8()..];
        match next {
            '{' => depth += 1,
            '}' => depth -= 1,
            ';' if depth == 0 => {
                let text = std::mem::take(&mut text).split_whitespace().collect::<Vec<_>>().join(" ");
                found.push(Declaration { comment: std::mem::take(&mut comment), text });
                continue;
            }
            _ => {}
        }
        text.push(next);
    }
    found
}

fn ask(declaration: &Declaration) -> Result<Vec<String>, String> {
    let text = declaration.text.as_str();
    let odd = || format!("include/kronsae.h: cannot read the declaration `{text}`");
    let says = |line: String| vec![format!("    puts(\"{line}\");")];
    if let Some(rest) = text.strip_prefix("typedef struct ") {
        let Some((name, fields)) = rest.split_once(" { ") else {
            return Ok(says(format!("opaque {}", rest.split(' ').next().ok_or_else(odd)?)));
        };
        return structure(name, fields.rsplit_once('}').ok_or_else(odd)?.0, &declaration.comment).ok_or_else(odd);
    }
    if let Some(rest) = text.strip_prefix("typedef ") {
        if let Some((returns, rest)) = rest.split_once(" (*") {
            let (name, arguments) = rest.split_once(')').ok_or_else(odd)?;
            return Ok(says(format!("type {name} {returns} (*){arguments}")));
        }
        let (of, name) = rest.rsplit_once(' ').ok_or_else(odd)?;
        return Ok(says(format!("type {name} {of}")));
    }
    let (before, arguments) = text.split_once('(').ok_or_else(odd)?;
    let at = before.rfind([' ', '*']).ok_or_else(odd)? + 1;
    let (returns, name) = (before[..at].trim(), &before[at..]);
    let (since, stability) = life(&declaration.comment).map_err(|what| format!("include/kronsae.h: {name} {what}"))?;
    Ok(says(format!("function {name} {returns} ({arguments} since {since} {stability}")))
}

/// A struct and its fields.
fn structure(name: &str, fields: &str, comment: &str) -> Option<Vec<String>> {
    let fields: Vec<&str> = fields.split(';').map(str::trim).filter(|field| !field.is_empty()).collect();
    let sized = fields.first()? == &"uint32_t struct_size" || comment.contains("passed with the size of one");
    let grows = if sized { "grows" } else { "fixed" };
    let numbers = format!("(unsigned)sizeof({name}), (unsigned)alignof({name})");
    let mut asked = vec![format!("    printf(\"struct {name} size %u align %u {grows}\\n\", {numbers});")];
    for field in fields {
        let at = field.rfind([' ', '*'])? + 1;
        let (of, field) = (field[..at].trim(), &field[at..]);
        let numbers = format!("(unsigned)offsetof({name}, {field}), (unsigned)sizeof((({name} *)0)->{field})");
        asked.push(format!("    printf(\"field {name}.{field} offset %u size %u {of}\\n\", {numbers});"));
    }
    Some(asked)
}

/// Since when a function exists, and how firmly, as its description says: `Since 0.1.0.`, `Unstable: ...`,
/// `Deprecated since 0.2.0: ...`.
fn life(comment: &str) -> Result<(&str, &'static str), String> {
    let lines = || comment.lines().map(|line| line.trim().trim_start_matches('*').trim());
    let since = lines().find_map(|line| line.strip_prefix("Since ")).and_then(|rest| rest.strip_suffix('.'));
    let since = since.ok_or("does not say `Since VERSION.`")?;
    let parts = |text: &str| -> Option<Vec<u32>> {
        let parts: Option<Vec<u32>> = text.split('.').map(|part| part.parse().ok()).collect();
        parts.filter(|parts| parts.len() == 3)
    };
    let here = env!("CARGO_PKG_VERSION");
    let known = parts(since).ok_or_else(|| format!("says `Since {since}.`, which is no version"))?;
    if parts(here).is_some_and(|here| known > here) {
        return Err(format!("says `Since {since}.`, and this is {here}"));
    }
    let stability = match () {
        () if lines().any(|line| line.starts_with("Deprecated since ")) => "deprecated",
        () if lines().any(|line| line.starts_with("Unstable: ")) => "unstable",
        () => "stable",
    };
    Ok((since, stability))
}

#[cfg(test)]
mod tests {
    use super::{life, questions};

    #[test]
    fn declarations_of_each_kind() {
        let header = "\
#define KRONSAE_ONE 1
#define KRONSAE_X_INIT { sizeof(x), 0 }
/** A handle; not a declaration. */
typedef struct kronsae_h kronsae_h;
typedef int32_t kronsae_kind;
typedef void (*kronsae_call)(void *data, int32_t n);
/** Start. */
typedef struct kronsae_x {
    /** sizeof(x); of course. */
    uint32_t struct_size;
    const char *const *names;
} kronsae_x;
#ifdef __cplusplus
extern \"C\" {
#endif // __cplusplus
/**
 * Does.
 *
 * Since 0.1.0.
 */
const char *kronsae_do(const struct kronsae_h *h,
                       size_t n);
#ifdef __cplusplus
}  // extern \"C\"
#endif
";
        let asked = questions(header).unwrap();
        let expected = [
            "constant KRONSAE_ONE %lld",
            "opaque kronsae_h",
            "type kronsae_kind int32_t",
            "type kronsae_call void (*)(void *data, int32_t n)",
            "struct kronsae_x size %u align %u grows",
            "field kronsae_x.struct_size offset %u size %u uint32_t",
            "field kronsae_x.names offset %u size %u const char *const *",
            "function kronsae_do const char * (const struct kronsae_h *h, size_t n) since 0.1.0 stable",
        ];
        assert_eq!(asked.len(), expected.len(), "{asked:#?}");
        for (asked, expected) in asked.iter().zip(expected) {
            assert!(asked.contains(&format!("\"{expected}")), "{asked}: expected {expected}");
        }
    }

    #[test]
    fn a_function_says_since_when() {
        assert_eq!(life("Does.\n * Since 0.1.0.").unwrap(), ("0.1.0", "stable"));
        assert_eq!(life("Unstable: may go.\n * Since 0.1.0.").unwrap(), ("0.1.0", "unstable"));
        assert_eq!(life("Deprecated since 0.1.0: use x.\n * Since 0.0.1.").unwrap(), ("0.0.1", "deprecated"));
        for wrong in ["Does.", "Since 0.1.", "Since soon.", "Since 99.0.0."] {
            assert!(life(wrong).is_err(), "{wrong}");
        }
    }
}
