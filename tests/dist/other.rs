//! A Rust static library of somebody else's, with a standard library of its own.

/// Unwinds inside and catches it: 1 if that works.
#[unsafe(no_mangle)]
pub extern "C" fn other_unwinds() -> i32 {
    std::panic::set_hook(Box::new(|_| {}));
    let caught = std::panic::catch_unwind(|| std::thread::spawn(|| panic!("expected")).join().unwrap());
    i32::from(caught.is_err())
}
