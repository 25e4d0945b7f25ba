//! Model files that lie, and systems that refuse: each gets an error that names the file, what was found and what was
//! expected; nothing crashes, nothing is half-written.

#[path = "../common/mod.rs"]
mod common;

mod content;
mod flips;
mod header;
mod raw;
mod recording;
mod system;
mod writing;

/// Runs `body` in a process of its own, which may change what belongs to a whole process: this test program again,
/// asked for the one test that calls this. `test` is that test's full name.
fn in_a_child(test: &str, body: impl FnOnce()) {
    const KEY: &str = "KRONSAE_TEST_CHILD";
    if std::env::var(KEY).as_deref() == Ok(test) {
        return body();
    }
    let child = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture", "--test-threads=1"])
        .env(KEY, test)
        .output()
        .unwrap();
    let output = String::from_utf8_lossy(&child.stdout) + String::from_utf8_lossy(&child.stderr);
    assert!(child.status.success(), "{}: {output}", child.status);
    assert!(output.contains("1 passed"), "the child ran no test `{test}`: {output}");
}

/// Limits a resource of this process.
fn limit(resource: libc::__rlimit_resource_t, bytes: u64) {
    let limit = libc::rlimit { rlim_cur: bytes, rlim_max: bytes };
    // SAFETY: setrlimit reads a valid rlimit.
    assert_eq!(unsafe { libc::setrlimit(resource, &raw const limit) }, 0, "setrlimit");
}

/// As [`limit`], in a way that can be taken back.
fn limit_now(resource: libc::__rlimit_resource_t, bytes: u64) {
    let limit = libc::rlimit { rlim_cur: bytes, rlim_max: libc::RLIM_INFINITY };
    // SAFETY: setrlimit reads a valid rlimit.
    assert_eq!(unsafe { libc::setrlimit(resource, &raw const limit) }, 0, "setrlimit");
}
