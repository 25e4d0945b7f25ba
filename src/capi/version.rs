//! Which library this is, as numbers and as text.

use std::ffi::{CStr, c_char};

/// Major version of the header. While it is 0, minor versions may change functions; after that, only major ones.
pub const KRONSAE_VERSION_MAJOR: u32 = 0;
/// Minor version of the header.
pub const KRONSAE_VERSION_MINOR: u32 = 1;
/// Patch version of the header.
pub const KRONSAE_VERSION_PATCH: u32 = 0;
/// Version of the binary interface, the number in `libkronsae.so.0`: raised whenever programs must be recompiled. A
/// library runs programs built against any earlier header of its ABI version.
pub const KRONSAE_ABI_VERSION: u32 = 0;

/// The package's version with a terminating NUL.
const VERSION: &str = concat!(env!("CARGO_PKG_VERSION"), "\0");

const fn number(text: &str) -> u32 {
    let (bytes, mut value, mut at) = (text.as_bytes(), 0, 0);
    while at < bytes.len() {
        value = value * 10 + (bytes[at] - b'0') as u32;
        at += 1;
    }
    value
}

// The header's numbers are literals, so that the header generator can read them; here they are held to the package's.
const _: () = assert!(KRONSAE_VERSION_MAJOR == number(env!("CARGO_PKG_VERSION_MAJOR")));
const _: () = assert!(KRONSAE_VERSION_MINOR == number(env!("CARGO_PKG_VERSION_MINOR")));
const _: () = assert!(KRONSAE_VERSION_PATCH == number(env!("CARGO_PKG_VERSION_PATCH")));

/// The ABI version of the library that is loaded. Compare it with `KRONSAE_ABI_VERSION`, that of the header compiled
/// against: a program that loads the library by `dlopen` should refuse another number.
///
/// Threads: any, at any time.
///
/// Since 0.1.0.
#[unsafe(no_mangle)]
pub extern "C" fn kronsae_abi_version() -> u32 {
    KRONSAE_ABI_VERSION
}

/// The version of the library that is loaded, as `KRONSAE_VERSION` composes it: 10000 * major + 100 * minor + patch.
///
/// Threads: any, at any time.
///
/// Since 0.1.0.
#[unsafe(no_mangle)]
pub extern "C" fn kronsae_version_number() -> u32 {
    KRONSAE_VERSION_MAJOR * 10_000 + KRONSAE_VERSION_MINOR * 100 + KRONSAE_VERSION_PATCH
}

/// The version of the library that is loaded, as text: "0.1.0". A constant of the library; not to be freed.
///
/// Threads: any, at any time.
///
/// Since 0.1.0.
#[unsafe(no_mangle)]
pub extern "C" fn kronsae_version_string() -> *const c_char {
    const TEXT: &CStr = match CStr::from_bytes_with_nul(VERSION.as_bytes()) {
        Ok(text) => text,
        Err(_) => panic!("the version has a NUL inside"),
    };
    TEXT.as_ptr()
}
