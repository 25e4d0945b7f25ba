//! Whether this process is a fork of the one that made a monitor, at the cost of one load.

use crate::error::{Error, Result, Status};
use std::ptr::NonNull;

/// Says in a child process that it is one: a page that the kernel hands to children as zeroes, so that no submit pays
/// a system call for asking. Where the kernel has no such pages (before Linux 4.14), the process id is compared.
#[derive(Debug)]
pub(crate) struct ForkMark {
    page: Option<NonNull<u8>>,
    process: libc::pid_t,
}

// SAFETY: the page is written once, before the value is shared, and only read afterwards.
unsafe impl Send for ForkMark {}
// SAFETY: as above.
unsafe impl Sync for ForkMark {}

const PAGE: usize = 4096;

impl ForkMark {
    pub(crate) fn new() -> Self {
        ForkMark { page: wiped_page(), process: process_id() }
    }

    /// Whether this process is a child, made by fork() after this was made.
    #[inline]
    pub(crate) fn is_forked(&self) -> bool {
        match self.page {
            // SAFETY: mapped until drop. Volatile: the kernel changes it behind the compiler's back.
            Some(page) => unsafe { page.read_volatile() == 0 },
            None => process_id() != self.process,
        }
    }

    /// # Errors
    /// [`Status::Forked`] in a child process.
    #[inline]
    pub(crate) fn check(&self) -> Result<()> {
        if self.is_forked() { Err(forked()) } else { Ok(()) }
    }
}

#[cold]
fn forked() -> Error {
    Error::new(
        Status::Forked,
        "this monitor was made before fork(), its workers do not exist here; make a new one in the child process",
    )
}

fn process_id() -> libc::pid_t {
    // SAFETY: getpid has no preconditions.
    unsafe { libc::getpid() }
}

#[cfg(target_os = "linux")]
fn wiped_page() -> Option<NonNull<u8>> {
    // SAFETY: a new anonymous mapping; nothing else refers to it, and each failure gives it back.
    unsafe {
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        let page = libc::mmap(std::ptr::null_mut(), PAGE, protection, flags, -1, 0);
        if page == libc::MAP_FAILED {
            return None;
        }
        if libc::madvise(page, PAGE, libc::MADV_WIPEONFORK) != 0 {
            libc::munmap(page, PAGE);
            return None;
        }
        let page = NonNull::new(page.cast::<u8>())?;
        page.write_volatile(1);
        Some(page)
    }
}

#[cfg(not(target_os = "linux"))]
fn wiped_page() -> Option<NonNull<u8>> {
    None
}

impl Drop for ForkMark {
    fn drop(&mut self) {
        if let Some(page) = self.page {
            // SAFETY: mapped in `wiped_page`, unmapped here alone.
            unsafe { libc::munmap(page.as_ptr().cast(), PAGE) };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_child_knows_with_and_without_the_page() {
        let fallback = ForkMark { page: None, process: process_id() };
        let mark = ForkMark::new();
        #[cfg(target_os = "linux")]
        assert!(mark.page.is_some(), "this kernel has no pages that are wiped on fork");
        assert!(mark.check().is_ok() && !fallback.is_forked());
        // SAFETY: the child only loads, compares and leaves by _exit, all of which are allowed after fork.
        let child = unsafe { libc::fork() };
        if child == 0 {
            let known = mark.is_forked() && fallback.is_forked();
            // SAFETY: ends the child without running destructors.
            unsafe { libc::_exit(if known { 42 } else { 1 }) };
        }
        let mut status = 0;
        // SAFETY: waits for the child just made.
        assert_eq!(unsafe { libc::waitpid(child, &raw mut status, 0) }, child);
        assert!(libc::WIFEXITED(status) && libc::WEXITSTATUS(status) == 42);
        assert!(!mark.is_forked());
    }
}
