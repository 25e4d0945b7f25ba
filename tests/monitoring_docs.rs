//! The code blocks of `docs/monitoring.md`: C++ is compiled against the header, rules are parsed. Where a block stands alone on
//! the page, its surroundings (a function, its arguments) stand here.

use kronsae::monitor::Rules;
use std::path::{Path, PathBuf};
use std::process::Command;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).to_path_buf()
}

/// The fenced blocks of a page: what stands behind the fence, and the text.
fn blocks(page: &str) -> Vec<(String, String)> {
    let mut blocks = Vec::new();
    let mut lines = page.lines();
    while let Some(line) = lines.next() {
        if let Some(info) = line.strip_prefix("```") {
            let text: Vec<&str> = lines.by_ref().take_while(|line| *line != "```").collect();
            blocks.push((info.to_owned(), text.join("\n")));
        }
    }
    blocks
}

/// What a block of this kind finds around it.
fn surroundings(kind: &str) -> Option<&'static str> {
    Some(match kind {
        "cpp setup" => "int setup()",
        "cpp serving" => {
            "void serving(kronsae::Tap& tap, const float* residual, std::size_t rows, std::size_t d_model, \
             const std::uint64_t* request, const std::int32_t* position, const std::int32_t* token)"
        }
        "cpp device" => {
            "int device(kronsae::Monitor& monitor, std::uint32_t site, const void* on_device, std::size_t rows, \
             std::size_t d_model, const std::vector<kronsae::TokenTag>& tags, void* stream)"
        }
        "cpp consumer" => "void consumer(kronsae::Monitor& monitor)",
        "cpp recording" => "int recording(kronsae::Monitor& monitor, std::uint32_t site)",
        _ => return None,
    })
}

#[test]
fn every_block_of_the_page_compiles_or_parses() {
    let page = std::fs::read_to_string(root().join("docs/monitoring.md")).unwrap();
    let mut program = String::from(
        "#include <kronsae.hpp>\n#include <cstdio>\n#include <vector>\nint report(const char* message);\n\
         int report(const std::string& message);\n",
    );
    let mut found = Vec::new();
    for (kind, text) in blocks(&page) {
        if kind == "toml" {
            assert!(!Rules::parse(&text).unwrap().is_empty());
            found.push(kind);
            continue;
        }
        let head = surroundings(&kind).unwrap_or_else(|| panic!("no test knows a block of kind {kind:?}"));
        let end = if head.starts_with("int") { "return 0;\n" } else { "" };
        program += &format!("{head} {{\n{text}\n{end}}}\n");
        found.push(kind);
    }
    assert_eq!(found, ["cpp setup", "cpp serving", "cpp consumer", "cpp device", "toml", "cpp recording"]);
    let folder = tempfile::tempdir().unwrap();
    let source = folder.path().join("page.cpp");
    std::fs::write(&source, &program).unwrap();
    let compiler = std::env::var_os("CXX").unwrap_or_else(|| "c++".into());
    let done = Command::new(compiler)
        .args(["-std=c++17", "-fsyntax-only", "-Wall", "-Wextra", "-Werror"])
        .args(["-Wno-unused-variable", "-Wno-unused-but-set-variable", "-I"])
        .arg(root().join("include"))
        .arg(&source)
        .output()
        .expect("a C++ compiler, c++ or the one that CXX names");
    assert!(done.status.success(), "{}\n{program}", String::from_utf8_lossy(&done.stderr));
}

/// Links of the pages about monitoring, from each to the others.
#[test]
fn links_lead_somewhere() {
    for page in ["docs/monitoring.md", "docs/monitoring-rules.md", "docs/monitoring-page.md"] {
        let path = root().join(page);
        let text = std::fs::read_to_string(&path).unwrap();
        for link in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            if link.starts_with("http") || link.starts_with('#') {
                continue;
            }
            let target = path.parent().unwrap().join(link.split('#').next().unwrap());
            assert!(target.exists(), "{page}: {link}");
        }
    }
}
