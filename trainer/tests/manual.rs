//! Man pages and completions, as a package carries them.

use std::process::Command;

const COMMANDS: [&str; 8] = ["demo", "train", "eval", "inspect", "encode", "calibrate", "convert", "bench"];

#[test]
fn every_command_has_a_page_and_every_shell_completions() {
    let folder = tempfile::tempdir().unwrap();
    let made = Command::new(env!("CARGO_BIN_EXE_kronsae")).arg("manual").arg(folder.path()).output().unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let read = |name: &str| std::fs::read_to_string(folder.path().join(name)).unwrap_or_else(|e| panic!("{name}: {e}"));
    let main = read("man/kronsae.1");
    assert!(main.contains(".TH kronsae 1"));
    for command in COMMANDS {
        let page = read(&format!("man/kronsae-{command}.1"));
        assert!(page.contains(".SH SYNOPSIS") && page.contains("\\fB\\-\\-"), "{command}");
        assert!(main.contains(&format!("kronsae\\-{command}(1)")), "{command} is not in kronsae.1");
        for completions in ["kronsae.bash", "_kronsae", "kronsae.fish"] {
            assert!(read(&format!("completions/{completions}")).contains(command), "{command}, {completions}");
        }
    }
    // What `--help` does not show is no page either.
    assert!(!folder.path().join("man/kronsae-manual.1").exists() && !main.contains("manual"));
}

#[test]
fn a_folder_that_cannot_be_made_is_named() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let made = Command::new(env!("CARGO_BIN_EXE_kronsae")).arg("manual").arg(file.path()).output().unwrap();
    assert_eq!(made.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&made.stderr).contains(&format!("{}", file.path().display())));
}
