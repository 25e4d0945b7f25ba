//! The monitor's C ABI called from Rust: that serving threads allocate nothing, and structs of every size. The C and C++
//! programs in `tests/c` cover the rest.

mod common;

use common::{Rng, write_random_model};
use kronsae::Dtype;
use kronsae::capi::monitor::events::{kronsae_event, kronsae_event_batch_get, kronsae_monitor_poll_events};
use kronsae::capi::monitor::lifecycle::{
    kronsae_monitor, kronsae_monitor_create, kronsae_monitor_destroy, kronsae_monitor_flush,
    kronsae_monitor_get_status, kronsae_monitor_options, kronsae_monitor_status, kronsae_monitor_stop,
};
use kronsae::capi::monitor::sites::{kronsae_monitor_add_site, kronsae_site_options};
use kronsae::capi::monitor::taps::{
    KRONSAE_SAMPLING_EVERY_NTH, kronsae_tap, kronsae_tap_create, kronsae_tap_destroy, kronsae_tap_end_request,
    kronsae_tap_options, kronsae_tap_rewind, kronsae_tap_submit, kronsae_token_tag,
};
use kronsae::capi::sae::{kronsae_sae, kronsae_sae_destroy, kronsae_sae_open};
use kronsae::capi::status::{
    KRONSAE_STATUS_FULL, KRONSAE_STATUS_INVALID_ARGUMENT, KRONSAE_STATUS_OK, KRONSAE_STATUS_STOPPED,
};
use kronsae::capi::views::{KRONSAE_DTYPE_BF16, KRONSAE_DTYPE_F32, kronsae_activations};
use kronsae::sae::{Encoder, Selection};
use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::ffi::CString;
use std::ptr::{null, null_mut};

const D: usize = 48;

struct Counting;

thread_local! {
    /// Of this thread: what workers do is theirs.
    static ALLOCATIONS: Cell<usize> = const { Cell::new(0) };
}

// SAFETY: passes everything on to the system's allocator; the counter needs no allocation and has no destructor.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.set(ALLOCATIONS.get() + 1);
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

/// A model, and the folder of its file, which is read once more when a site is made of it.
fn open() -> (*mut kronsae_sae, tempfile::TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    let encoder = Encoder::Kron { heads: 24, base: 2, extension: 4 };
    write_random_model(&path, encoder, D, Selection::TopK(10), Dtype::F32, &mut Rng(7));
    let path = CString::new(path.to_str().unwrap()).unwrap();
    let mut sae = null_mut();
    // SAFETY: valid pointers.
    assert_eq!(unsafe { kronsae_sae_open(path.as_ptr(), null(), &raw mut sae, null_mut()) }, KRONSAE_STATUS_OK);
    (sae, folder)
}

/// A monitor with one site.
fn monitor_of(sae: *const kronsae_sae) -> *mut kronsae_monitor {
    let mut monitor = null_mut();
    let mut site = 0;
    // SAFETY: all bytes zero is a value of the struct.
    let mut options: kronsae_site_options = unsafe { std::mem::zeroed() };
    options.struct_size = size_of::<kronsae_site_options>() as u32;
    options.name = c"s".as_ptr();
    // SAFETY: valid pointers.
    unsafe {
        assert_eq!(kronsae_monitor_create(null(), &raw mut monitor, null_mut()), KRONSAE_STATUS_OK);
        let added = kronsae_monitor_add_site(monitor, &raw const options, sae, &raw mut site, null_mut());
        assert_eq!((added, site), (KRONSAE_STATUS_OK, 0));
    }
    monitor
}

fn tap_of(monitor: *const kronsae_monitor, nth: u32, capacity: usize) -> *mut kronsae_tap {
    let options = kronsae_tap_options {
        struct_size: size_of::<kronsae_tap_options>() as u32,
        sampling: if nth == 0 { 0 } else { KRONSAE_SAMPLING_EVERY_NTH },
        nth,
        dtype: 0,
        capacity,
        controls: 4,
    };
    let mut tap = null_mut();
    // SAFETY: valid pointers.
    assert_eq!(
        unsafe { kronsae_tap_create(monitor, 0, &raw const options, &raw mut tap, null_mut()) },
        KRONSAE_STATUS_OK
    );
    tap
}

/// Rows and their tags as a host has them.
struct Batch {
    bytes: Vec<u8>,
    dtype: i32,
    tags: Vec<kronsae_token_tag>,
}

impl Batch {
    fn new(rows: usize, dtype: i32) -> Self {
        let tag = |row| kronsae_token_tag { request: 1, position: row as i32, token: -1, flags: 0, reserved: 0 };
        let size = if dtype == KRONSAE_DTYPE_F32 { 4 } else { 2 };
        Batch { bytes: vec![0; rows * D * size], dtype, tags: (0..rows).map(tag).collect() }
    }

    /// Status and accepted rows.
    fn submit(&self, tap: *mut kronsae_tap) -> (i32, usize) {
        let activations = kronsae_activations {
            struct_size: size_of::<kronsae_activations>() as u32,
            dtype: self.dtype,
            data: self.bytes.as_ptr().cast(),
            rows: self.tags.len(),
            d_model: D,
            row_stride: 0,
        };
        let (mut accepted, size) = (usize::MAX, size_of::<kronsae_token_tag>());
        // SAFETY: valid pointers; rows and tags live in self.
        let status = unsafe {
            let tags = self.tags.as_ptr();
            kronsae_tap_submit(tap, &raw const activations, tags, size, &raw mut accepted, null_mut())
        };
        (status, accepted)
    }
}

#[test]
fn serving_threads_allocate_nothing() {
    let (sae, _folder) = open();
    let monitor = monitor_of(sae);
    let taps = [tap_of(monitor, 0, 64), tap_of(monitor, 3, 64)];
    let batches = [1, 7, 200].map(|rows| [Batch::new(rows, KRONSAE_DTYPE_F32), Batch::new(rows, KRONSAE_DTYPE_BF16)]);
    let (mut queued, mut rows, mut controls) = (0, 0, 0);
    for round in 0..200 {
        for tap in taps {
            let before = ALLOCATIONS.get();
            for batch in batches.iter().flatten() {
                let (status, accepted) = batch.submit(tap);
                assert_eq!(status, KRONSAE_STATUS_OK);
                assert!(accepted <= 64);
                (queued, rows) = (queued + accepted, rows + batch.tags.len());
            }
            // SAFETY: a live tap, used by this thread alone.
            let (rewound, ended) = unsafe {
                let rewound = kronsae_tap_rewind(tap, 1, round, null_mut());
                (rewound, kronsae_tap_end_request(tap, 1, null_mut()))
            };
            match (rewound, ended) {
                (KRONSAE_STATUS_OK, KRONSAE_STATUS_OK) => {
                    controls += 1;
                    assert_eq!(ALLOCATIONS.get(), before, "round {round}");
                }
                // An error, whose sentence is allocated even where nobody wants it.
                _ => assert!([rewound, ended].contains(&KRONSAE_STATUS_FULL), "{rewound} {ended}"),
            }
        }
    }
    assert!(controls > 0, "every call found the slots of controls taken");
    assert!(queued > 0 && queued < rows, "{queued} of {rows} queued: neither path was left out");

    // SAFETY: live handles, destroyed once; the counter counts, or the test means nothing.
    unsafe {
        assert_eq!(kronsae_monitor_flush(monitor, 60_000, null_mut()), KRONSAE_STATUS_OK);
        let before = ALLOCATIONS.get();
        assert_eq!(kronsae_monitor_stop(monitor, 60_000, null_mut()), KRONSAE_STATUS_OK);
        assert_eq!(batches[0][0].submit(taps[0]).0, KRONSAE_STATUS_STOPPED);
        assert!(ALLOCATIONS.get() > before);
        taps.into_iter().for_each(|tap| kronsae_tap_destroy(tap));
        kronsae_monitor_destroy(monitor);
        kronsae_sae_destroy(sae);
    }
}

#[test]
fn every_struct_size() {
    let (sae, _folder) = open();
    let monitor = monitor_of(sae);
    let mut memory = vec![0_u64; 1024];
    let pointer = memory.as_mut_ptr();
    for size in (0..=5000_u32).chain([u32::MAX, 1 << 31]) {
        let expected = |first: usize| {
            if (first..=4096).contains(&(size as usize)) { KRONSAE_STATUS_OK } else { KRONSAE_STATUS_INVALID_ARGUMENT }
        };
        // SAFETY: every struct is at the start of 8 KiB of readable, writable, aligned memory.
        unsafe {
            pointer.cast::<u32>().write(size);
            let status = kronsae_monitor_get_status(monitor, pointer.cast(), null_mut());
            assert_eq!(status, expected(size_of::<kronsae_monitor_status>()), "status, {size}");
            assert_eq!(pointer.cast::<u32>().read(), size);
            pointer.cast::<u8>().add(4).write_bytes(0, 8188);

            let mut tap = null_mut();
            let status = kronsae_tap_create(monitor, 0, pointer.cast(), &raw mut tap, null_mut());
            assert_eq!(status, expected(size_of::<kronsae_tap_options>()), "tap, {size}");
            kronsae_tap_destroy(tap);
            // One byte in the last field that this version does not know.
            if size as usize > size_of::<kronsae_tap_options>() && size <= 4096 {
                pointer.cast::<u8>().add(size as usize - 1).write(1);
                let status = kronsae_tap_create(monitor, 0, pointer.cast(), &raw mut tap, null_mut());
                assert_eq!((status, tap), (KRONSAE_STATUS_INVALID_ARGUMENT, null_mut()), "unknown byte, {size}");
                pointer.cast::<u8>().add(size as usize - 1).write(0);
            }
            if size.is_multiple_of(61) {
                let mut other = null_mut();
                let status = kronsae_monitor_create(pointer.cast(), &raw mut other, null_mut());
                assert_eq!(status, expected(size_of::<kronsae_monitor_options>()), "monitor, {size}");
                kronsae_monitor_destroy(other);
            }
        }
    }
    // An empty batch refuses every index, whatever the struct's size.
    let mut batch = null_mut();
    // SAFETY: as above; handles are destroyed once.
    unsafe {
        assert_eq!(kronsae_monitor_poll_events(monitor, 1, 0, &raw mut batch, null_mut()), KRONSAE_STATUS_OK);
        pointer.cast::<u32>().write(size_of::<kronsae_event>() as u32);
        let status = kronsae_event_batch_get(batch, 0, pointer.cast(), null_mut());
        assert_eq!(status, KRONSAE_STATUS_INVALID_ARGUMENT);
        kronsae::capi::monitor::events::kronsae_event_batch_destroy(batch);
        kronsae_monitor_destroy(monitor);
        kronsae_sae_destroy(sae);
    }
}
