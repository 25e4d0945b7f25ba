//! The names that the shared library exports, beside those recorded and those that the header declares.

use std::path::Path;

pub(super) const RECORDED: &str = "tests/abi/exported-symbols.txt";

/// That no recorded name is gone, and that the library exports what the header declares and nothing else. Returns the names
/// that are not recorded yet.
///
/// # Errors
/// The names too few or too many.
pub(crate) fn verify(root: &Path, exported: &[String], declared: &[String]) -> Result<Vec<String>, String> {
    compare(&recorded(root)?, exported, declared)
}

pub(super) fn recorded(root: &Path) -> Result<Vec<String>, String> {
    let path = root.join(RECORDED);
    let text = std::fs::read_to_string(&path).map_err(|e| format!("{}: cannot read: {e}", path.display()))?;
    Ok(text.lines().map(str::trim).filter(|line| !line.is_empty()).map(str::to_owned).collect())
}

pub(super) fn write(root: &Path, declared: &[String]) -> Result<(), String> {
    let path = root.join(RECORDED);
    let mut names = declared.to_vec();
    names.sort();
    std::fs::write(&path, names.join("\n") + "\n").map_err(|e| format!("{}: cannot write: {e}", path.display()))
}

fn compare(recorded: &[String], exported: &[String], declared: &[String]) -> Result<Vec<String>, String> {
    let only = |a: &[String], b: &[String]| a.iter().filter(|name| !b.contains(name)).cloned().collect::<Vec<_>>();
    let mut wrong = Vec::new();
    for (names, what) in [
        (only(recorded, exported), "recorded, and programs may use it, but the library exports it no more"),
        (only(exported, declared), "exported, but include/kronsae.h does not declare it"),
        (only(declared, exported), "declared in include/kronsae.h, but not exported"),
    ] {
        wrong.extend(names.into_iter().map(|name| format!("{name}: {what}")));
    }
    if wrong.is_empty() { Ok(only(exported, recorded)) } else { Err(wrong.join("\n")) }
}

#[cfg(test)]
mod tests {
    use super::compare;

    fn found(recorded: &[&str], exported: &[&str], declared: &[&str]) -> Result<Vec<String>, String> {
        let [recorded, exported, declared] =
            [recorded, exported, declared].map(|names| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>());
        compare(&recorded, &exported, &declared)
    }

    #[test]
    fn nothing_changed() {
        assert_eq!(found(&["a", "b"], &["b", "a"], &["a", "b"]), Ok(vec![]));
    }

    #[test]
    fn an_appended_name_passes_and_is_told() {
        assert_eq!(found(&["a"], &["a", "b"], &["a", "b"]), Ok(vec!["b".to_owned()]));
    }

    #[test]
    fn a_name_that_goes_or_changes_is_noticed() {
        assert!(found(&["a", "b"], &["a"], &["a"]).unwrap_err().contains("b: recorded"));
        assert!(found(&["a"], &["a2"], &["a2"]).unwrap_err().contains("a: recorded"));
    }

    #[test]
    fn library_and_header_agree() {
        assert!(found(&["a"], &["a", "b"], &["a"]).unwrap_err().contains("b: exported"));
        assert!(found(&["a"], &["a"], &["a", "b"]).unwrap_err().contains("b: declared"));
    }
}
