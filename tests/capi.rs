//! The C ABI called from Rust with what a confused or hostile C program might pass: every struct size and enum number,
//! two threads on one encoder, a model destroyed while it is used. The C programs in `tests/c` cover the rest.

mod common;

use common::{Rng, write_random_model};
use kronsae::Dtype;
use kronsae::capi::decode::{kronsae_decode, kronsae_steer, kronsae_steer_term};
use kronsae::capi::encode::{
    kronsae_encode, kronsae_encoder, kronsae_encoder_create, kronsae_encoder_destroy, kronsae_encoder_options,
};
use kronsae::capi::error::{kronsae_error, kronsae_error_destroy, kronsae_error_message, kronsae_error_status};
use kronsae::capi::log::kronsae_set_log_callback;
use kronsae::capi::sae::{kronsae_sae, kronsae_sae_destroy, kronsae_sae_get_info, kronsae_sae_info, kronsae_sae_open};
use kronsae::capi::status::{
    KRONSAE_STATUS_FORMAT, KRONSAE_STATUS_INVALID_ARGUMENT, KRONSAE_STATUS_OK, KRONSAE_STATUS_STOPPED,
};
use kronsae::capi::views::{KRONSAE_DTYPE_F32, kronsae_activations, kronsae_activations_mut, kronsae_latents};
use kronsae::sae::{Encoder, Selection};
use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::ffi::{CStr, CString, c_char, c_void};
use std::ptr::{null, null_mut};
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

const D: usize = 48;
const K: usize = 10;

struct Counting;

thread_local! {
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

fn model_file(folder: &tempfile::TempDir) -> CString {
    let path = folder.path().join("model.safetensors");
    let encoder = Encoder::Kron { heads: 24, base: 2, extension: 4 };
    write_random_model(&path, encoder, D, Selection::TopK(K), Dtype::F32, &mut Rng(7));
    CString::new(path.to_str().unwrap()).unwrap()
}

fn open() -> *mut kronsae_sae {
    let folder = tempfile::tempdir().unwrap();
    let path = model_file(&folder);
    let mut sae = null_mut();
    // SAFETY: valid pointers.
    assert_eq!(unsafe { kronsae_sae_open(path.as_ptr(), null(), &raw mut sae, null_mut()) }, KRONSAE_STATUS_OK);
    sae
}

fn encoder_of(sae: *const kronsae_sae, threads: u32) -> *mut kronsae_encoder {
    let options = kronsae_encoder_options {
        struct_size: size_of::<kronsae_encoder_options>() as u32,
        threads,
        path: 0,
        reserved: 0,
    };
    let mut encoder = null_mut();
    // SAFETY: valid pointers.
    let status = unsafe { kronsae_encoder_create(sae, &raw const options, &raw mut encoder, null_mut()) };
    assert_eq!(status, KRONSAE_STATUS_OK);
    encoder
}

/// A handle as threads share it in these tests; each use says why that is allowed.
#[derive(Clone, Copy)]
struct Shared<T>(*mut T);
// SAFETY: handles may go to any thread.
unsafe impl<T> Send for Shared<T> {}
// SAFETY: as above.
unsafe impl<T> Sync for Shared<T> {}

impl<T> Shared<T> {
    fn get(&self) -> *mut T {
        self.0
    }
}

/// Input and output of one thread.
struct Batch {
    x: Vec<f32>,
    counts: Vec<u32>,
    indices: Vec<u32>,
    values: Vec<f32>,
}

impl Batch {
    fn new(rows: usize, seed: u64) -> Self {
        let x = Rng(seed).vec(rows * D);
        Batch { x, counts: vec![0; rows], indices: vec![0; rows * K], values: vec![0.0; rows * K] }
    }

    fn activations(&self) -> kronsae_activations {
        kronsae_activations {
            struct_size: size_of::<kronsae_activations>() as u32,
            dtype: KRONSAE_DTYPE_F32,
            data: self.x.as_ptr().cast(),
            rows: self.counts.len(),
            d_model: D,
            row_stride: 0,
        }
    }

    fn latents(&mut self) -> kronsae_latents {
        kronsae_latents {
            struct_size: size_of::<kronsae_latents>() as u32,
            reserved: 0,
            rows: self.counts.len(),
            capacity: K,
            counts: self.counts.as_mut_ptr(),
            indices: self.indices.as_mut_ptr(),
            values: self.values.as_mut_ptr(),
            active: null_mut(),
            row_flags: null_mut(),
            skipped_rows: 0,
            truncated_rows: 0,
        }
    }

    fn encode(&mut self, encoder: *mut kronsae_encoder) -> i32 {
        let (activations, mut latents) = (self.activations(), self.latents());
        // SAFETY: valid pointers; the buffers live in self.
        unsafe { kronsae_encode(encoder, &raw const activations, &raw mut latents, null_mut()) }
    }
}

#[test]
fn every_struct_size() {
    let sae = open();
    // Room for the largest size that is looked at, and then some; zero past the struct.
    let mut memory = vec![0_u64; 1024];
    let pointer = memory.as_mut_ptr();
    for size in (0..=5000_u32).chain([u32::MAX, 1 << 31]) {
        let plausible = |first: usize| (first..=4096).contains(&(size as usize));
        // SAFETY: every struct is at the start of 8 KiB of readable, writable, aligned memory.
        unsafe {
            pointer.cast::<u32>().write(size);
            let status = kronsae_sae_get_info(sae, pointer.cast(), null_mut());
            assert_eq!(status == KRONSAE_STATUS_OK, plausible(size_of::<kronsae_sae_info>()), "info, {size}");
            assert_eq!(pointer.cast::<u32>().read(), size);
            pointer.cast::<u8>().add(4).write_bytes(0, 8188);

            let mut encoder = null_mut();
            let status = kronsae_encoder_create(sae, pointer.cast(), &raw mut encoder, null_mut());
            // Callers that know no path are older, and welcome.
            let first = std::mem::offset_of!(kronsae_encoder_options, path);
            assert_eq!(status == KRONSAE_STATUS_OK, plausible(first), "options, {size}");
            kronsae_encoder_destroy(encoder);
            // One byte in the last field that this version does not know.
            if plausible(size_of::<kronsae_encoder_options>() + 1) {
                pointer.cast::<u8>().add(size as usize - 1).write(1);
                let status = kronsae_encoder_create(sae, pointer.cast(), &raw mut encoder, null_mut());
                assert_eq!((status, encoder), (KRONSAE_STATUS_INVALID_ARGUMENT, null_mut()), "unknown byte, {size}");
                pointer.cast::<u8>().add(size as usize - 1).write(0);
            }
        }
    }
    // SAFETY: not used any more.
    unsafe { kronsae_sae_destroy(sae) };
}

#[test]
fn every_enum_number() {
    let sae = open();
    let encoder = encoder_of(sae, 1);
    let mut batch = Batch::new(1, 3);
    let bytes = [0_u8; D * 4];
    for dtype in (-1000..1000).chain([i32::MIN, i32::MAX, 1 << 16]) {
        let mut activations = batch.activations();
        activations.dtype = dtype;
        activations.data = bytes.as_ptr().cast();
        let mut latents = batch.latents();
        // SAFETY: valid pointers; there are bytes for the widest dtype.
        let status = unsafe { kronsae_encode(encoder, &raw const activations, &raw mut latents, null_mut()) };
        let expected = if (1..=3).contains(&dtype) { KRONSAE_STATUS_OK } else { KRONSAE_STATUS_INVALID_ARGUMENT };
        assert_eq!(status, expected, "dtype {dtype}");
    }
    // SAFETY: not used any more.
    unsafe {
        kronsae_encoder_destroy(encoder);
        kronsae_sae_destroy(sae);
    }
}

#[test]
fn two_threads_on_one_encoder_are_refused_not_mixed_up() {
    let sae = open();
    let encoder = Shared(encoder_of(sae, 1));
    let mut alone = Batch::new(64, 5);
    assert_eq!(alone.encode(encoder.get()), KRONSAE_STATUS_OK);
    let refused = AtomicUsize::new(0);
    let start = Barrier::new(2);
    let until = Instant::now() + Duration::from_secs(20);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                let mut batch = Batch::new(64, 5);
                start.wait();
                while refused.load(Ordering::Relaxed) < 4 && Instant::now() < until {
                    // The header forbids this; the library says so rather than race.
                    match batch.encode(encoder.get()) {
                        KRONSAE_STATUS_OK => {
                            assert_eq!((&batch.indices, &batch.values), (&alone.indices, &alone.values));
                        }
                        status => {
                            assert_eq!(status, KRONSAE_STATUS_INVALID_ARGUMENT);
                            refused.fetch_add(1, Ordering::Relaxed);
                        }
                    }
                }
            });
        }
    });
    assert!(refused.into_inner() >= 4, "no overlap was seen in 20 seconds");
    // SAFETY: not used any more.
    unsafe {
        kronsae_encoder_destroy(encoder.get());
        kronsae_sae_destroy(sae);
    }
}

#[test]
fn a_model_destroyed_while_its_encoders_work() {
    for round in 0..20 {
        let sae = open();
        let encoders = [encoder_of(sae, 1), encoder_of(sae, 2)].map(Shared);
        let busy = Barrier::new(3);
        std::thread::scope(|scope| {
            for encoder in &encoders {
                scope.spawn(|| {
                    let mut batch = Batch::new(32, round);
                    assert_eq!(batch.encode(encoder.get()), KRONSAE_STATUS_OK);
                    busy.wait();
                    let ended = (0..100_000).map(|_| batch.encode(encoder.get())).find(|s| *s != KRONSAE_STATUS_OK);
                    assert_eq!(ended, Some(KRONSAE_STATUS_STOPPED));
                });
            }
            busy.wait();
            // SAFETY: the encoders' threads use the encoders alone.
            unsafe { kronsae_sae_destroy(sae) };
        });
        for encoder in encoders {
            assert_eq!(Batch::new(1, 1).encode(encoder.get()), KRONSAE_STATUS_STOPPED);
            // SAFETY: not used any more.
            unsafe { kronsae_encoder_destroy(encoder.get()) };
        }
    }
}

#[test]
fn encoding_allocates_nothing_after_the_first_call() {
    let sae = open();
    let encoder = encoder_of(sae, 1);
    let mut batch = Batch::new(100, 9);
    assert_eq!(batch.encode(encoder), KRONSAE_STATUS_OK);
    let before = ALLOCATIONS.get();
    for _ in 0..10 {
        assert_eq!(batch.encode(encoder), KRONSAE_STATUS_OK);
    }
    assert_eq!(ALLOCATIONS.get(), before);
    // An error message does allocate, or the counter counts nothing.
    let mut error: *mut kronsae_error = null_mut();
    // SAFETY: null is allowed and refused.
    unsafe {
        kronsae_encode(null_mut(), null(), null_mut(), &raw mut error);
        assert!(ALLOCATIONS.get() > before);
        kronsae_error_destroy(error);
        kronsae_encoder_destroy(encoder);
        kronsae_sae_destroy(sae);
    }
}

#[test]
fn decoding_and_steering_are_those_of_the_library() {
    let folder = tempfile::tempdir().unwrap();
    let path = model_file(&folder);
    let rust = kronsae::Sae::open(path.to_str().unwrap()).unwrap();
    let sae = open();
    let encoder = encoder_of(sae, 1);
    let mut batch = Batch::new(3, 11);
    assert_eq!(batch.encode(encoder), KRONSAE_STATUS_OK);
    let mut expected = vec![0.0; 3 * D];
    let latents =
        kronsae::LatentsRef { counts: &batch.counts, indices: &batch.indices, values: &batch.values, capacity: K };
    rust.decode(latents, &mut expected).unwrap();
    let mut out = vec![0.0_f32; 3 * D];
    let to = kronsae_activations_mut {
        struct_size: size_of::<kronsae_activations_mut>() as u32,
        dtype: KRONSAE_DTYPE_F32,
        data: out.as_mut_ptr().cast(),
        rows: 3,
        d_model: D,
        row_stride: 0,
    };
    let latents = batch.latents();
    let terms =
        [kronsae_steer_term { latent: 3, coefficient: 0.7 }, kronsae_steer_term { latent: 90, coefficient: -2.0 }];
    // SAFETY: valid pointers.
    unsafe {
        assert_eq!(kronsae_decode(sae, &raw const latents, &raw const to, null_mut()), KRONSAE_STATUS_OK);
        assert_eq!(out, expected);
        let size = size_of::<kronsae_steer_term>();
        assert_eq!(kronsae_steer(sae, &raw const to, terms.as_ptr(), 2, size, null_mut()), KRONSAE_STATUS_OK);
    }
    let mut bytes: Vec<u8> = expected.iter().flat_map(|v| v.to_le_bytes()).collect();
    let terms = terms.map(|t| kronsae::SteerTerm { latent: t.latent, coefficient: t.coefficient });
    rust.steer(&mut bytes, Dtype::F32, 3, D, D * 4, &terms).unwrap();
    assert_ne!(out, expected);
    assert_eq!(out.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<_>>(), bytes);
    // SAFETY: not used any more.
    unsafe {
        kronsae_encoder_destroy(encoder);
        kronsae_sae_destroy(sae);
    }
}

/// Where a callback is: set while it may be called, so that a late call is seen.
struct Listener {
    active: AtomicBool,
    calls: AtomicUsize,
}

unsafe extern "C" fn listen(user_data: *mut c_void, _level: i32, message: *const c_char) {
    // SAFETY: set with a listener that outlives the test; a valid C string.
    let (listener, message) = unsafe { (&*user_data.cast::<Listener>(), CStr::from_ptr(message)) };
    assert!(listener.active.load(Ordering::SeqCst), "called after it was replaced: {message:?}");
    std::thread::yield_now();
    listener.calls.fetch_add(1, Ordering::Relaxed);
}

#[test]
fn a_replaced_log_callback_is_never_called_again() {
    let listeners = [0, 1].map(|_| Listener { active: AtomicBool::new(false), calls: AtomicUsize::new(0) });
    let folder = tempfile::tempdir().unwrap();
    let path = model_file(&folder);
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    let mut sae = null_mut();
                    // SAFETY: valid pointers.
                    unsafe {
                        assert_eq!(
                            kronsae_sae_open(path.as_ptr(), null(), &raw mut sae, null_mut()),
                            KRONSAE_STATUS_OK
                        );
                        kronsae_sae_destroy(sae);
                    }
                }
            });
        }
        let until = Instant::now() + Duration::from_secs(20);
        while listeners.iter().any(|l| l.calls.load(Ordering::Relaxed) < 20) && Instant::now() < until {
            for (listener, other) in [(&listeners[0], &listeners[1]), (&listeners[1], &listeners[0])] {
                listener.active.store(true, Ordering::SeqCst);
                let user_data = std::ptr::from_ref(listener).cast_mut().cast();
                // SAFETY: the listeners outlive their being set.
                assert_eq!(unsafe { kronsae_set_log_callback(Some(listen), user_data, null_mut()) }, KRONSAE_STATUS_OK);
                other.active.store(false, Ordering::SeqCst);
                std::thread::sleep(Duration::from_millis(1));
            }
        }
        // SAFETY: null removes it.
        unsafe { kronsae_set_log_callback(None, null_mut(), null_mut()) };
        done.store(true, Ordering::Relaxed);
    });
    assert!(listeners.iter().all(|l| l.calls.load(Ordering::Relaxed) >= 20), "not called enough in 20 seconds");
}

#[test]
fn errors_carry_the_file_and_the_status() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("broken.safetensors");
    std::fs::write(&path, b"no model at all").unwrap();
    let c_path = CString::new(path.to_str().unwrap()).unwrap();
    let mut sae: *mut kronsae_sae = null_mut();
    let mut error: *mut kronsae_error = null_mut();
    // SAFETY: valid pointers; the error is destroyed once.
    unsafe {
        let status = kronsae_sae_open(c_path.as_ptr(), null(), &raw mut sae, &raw mut error);
        assert_eq!((status, sae), (KRONSAE_STATUS_FORMAT, null_mut()));
        assert_eq!(kronsae_error_status(error), status);
        let message = CStr::from_ptr(kronsae_error_message(error)).to_str().unwrap();
        assert!(message.starts_with("kronsae_sae_open: ") && message.contains(path.to_str().unwrap()), "{message}");
        kronsae_error_destroy(error);
    }
}

/// The header promises messages without a newline, whatever a path or a file says.
#[test]
fn messages_are_one_line() {
    let folder = tempfile::tempdir().unwrap();
    let path = CString::new(format!("{}/no\nsuch\r\nfile", folder.path().display())).unwrap();
    let (mut sae, mut error): (*mut kronsae_sae, *mut kronsae_error) = (null_mut(), null_mut());
    // SAFETY: valid pointers throughout.
    unsafe {
        let status = kronsae_sae_open(path.as_ptr(), null(), &raw mut sae, &raw mut error);
        assert_eq!(status, kronsae::capi::status::KRONSAE_STATUS_IO);
        let message = CStr::from_ptr(kronsae_error_message(error)).to_str().unwrap().to_owned();
        assert!(message.contains("such") && !message.contains(['\n', '\r']), "{message:?}");
        kronsae_error_destroy(error);
    }
}
