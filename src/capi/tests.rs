//! What only the inside can show: a panic in the middle of a call, and tables that must agree.

use super::encode::{kronsae_encode, kronsae_encoder, kronsae_encoder_create, kronsae_encoder_destroy};
use super::error::{kronsae_error, kronsae_error_destroy, kronsae_error_message};
use super::log::{KRONSAE_LOG_ERROR, kronsae_set_log_callback};
use super::monitor::lifecycle::{kronsae_monitor_create, kronsae_monitor_destroy, kronsae_monitor_flush};
use super::monitor::sites::{kronsae_monitor_add_site, kronsae_site_options};
use super::monitor::taps::{
    kronsae_tap, kronsae_tap_create, kronsae_tap_destroy, kronsae_tap_end_request, kronsae_tap_submit,
    kronsae_token_tag,
};
use super::sae::{kronsae_sae, kronsae_sae_destroy, kronsae_sae_get_info, kronsae_sae_info, kronsae_sae_open};
use super::status::{
    KRONSAE_STATUS_INTERNAL, KRONSAE_STATUS_INVALID_ARGUMENT, KRONSAE_STATUS_OK, KRONSAE_STATUS_POISONED, TABLE,
    kronsae_status_name,
};
use super::views::{KRONSAE_DTYPE_F32, kronsae_activations, kronsae_latents};
use crate::sae::{Config, Encoder, ModelWriter, Selection, Which};
use std::cell::Cell;
use std::ffi::{CStr, CString, c_char, c_void};
use std::ptr::{null, null_mut};
use std::sync::atomic::{AtomicUsize, Ordering};

thread_local! {
    static PLANTED: Cell<bool> = const { Cell::new(false) };
}

/// Panics in the next encode of this thread after it was armed.
pub(super) fn planted_panic() {
    assert!(!PLANTED.replace(false), "planted");
}

/// A model whose pre-activations are its input: one head, one base row, one extension row.
fn open_tiny() -> *mut kronsae_sae {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tiny.safetensors");
    let config = Config::new(Encoder::Kron { heads: 1, base: 1, extension: 1 }, 2, Selection::TopK(1), 1.0).unwrap();
    let (weight, decoder) = ([1.0, 0.0, 0.0, 1.0], [1.0, 0.0]);
    ModelWriter {
        config: &config,
        encoder_weight: ModelWriter::rows(Which::Encoder, &weight, [2, 2], 2, crate::Dtype::F32),
        encoder_bias: &[0.0, 0.0],
        encoder_threshold: None,
        decoder_weight: ModelWriter::rows(Which::Decoder, &decoder, [1, 2], 2, crate::Dtype::F32),
        decoder_bias: &[0.0, 0.0],
        calibration: None,
    }
    .write(&path)
    .unwrap();
    let path = CString::new(path.to_str().unwrap()).unwrap();
    let mut sae = null_mut();
    // SAFETY: all pointers are valid or null where that is allowed.
    let status = unsafe { kronsae_sae_open(path.as_ptr(), null(), &raw mut sae, null_mut()) };
    assert_eq!(status, KRONSAE_STATUS_OK);
    sae
}

/// Encodes (4, 9), whose one latent is 6; returns status and message.
fn encode(encoder: *mut kronsae_encoder) -> (i32, String) {
    let x = [4.0_f32, 9.0];
    let (mut count, mut index, mut value) = (0_u32, 7_u32, 0.0_f32);
    let activations = kronsae_activations {
        struct_size: size_of::<kronsae_activations>() as u32,
        dtype: KRONSAE_DTYPE_F32,
        data: x.as_ptr().cast(),
        rows: 1,
        d_model: 2,
        row_stride: 0,
    };
    let mut latents = kronsae_latents {
        struct_size: size_of::<kronsae_latents>() as u32,
        reserved: 0,
        rows: 1,
        capacity: 1,
        counts: &raw mut count,
        indices: &raw mut index,
        values: &raw mut value,
        active: null_mut(),
        row_flags: null_mut(),
        skipped_rows: 0,
        truncated_rows: 0,
    };
    let mut error: *mut kronsae_error = null_mut();
    // SAFETY: everything is alive and as described.
    unsafe {
        let status = kronsae_encode(encoder, &raw const activations, &raw mut latents, &raw mut error);
        assert_eq!(status == KRONSAE_STATUS_OK, error.is_null());
        if status == KRONSAE_STATUS_OK {
            assert_eq!((count, index, value), (1, 0, 6.0));
        }
        let message = CStr::from_ptr(kronsae_error_message(error)).to_str().unwrap().to_owned();
        kronsae_error_destroy(error);
        (status, message)
    }
}

static LOGGED: AtomicUsize = AtomicUsize::new(0);

unsafe extern "C" fn count_errors(user_data: *mut c_void, level: i32, message: *const c_char) {
    // SAFETY: the library hands back the pointer it was given, and a valid C string.
    let (counter, message) = unsafe { (&*user_data.cast::<AtomicUsize>(), CStr::from_ptr(message)) };
    if level == KRONSAE_LOG_ERROR && message.to_str().unwrap().contains("planted") {
        counter.fetch_add(1, Ordering::Relaxed);
    }
    // Setting the callback from inside would deadlock if it were not refused.
    // SAFETY: null pointers are allowed.
    assert_eq!(unsafe { kronsae_set_log_callback(None, null_mut(), null_mut()) }, KRONSAE_STATUS_INVALID_ARGUMENT);
}

#[test]
fn a_panic_is_a_status_and_poisons_the_encoder_alone() {
    let sae = open_tiny();
    let (mut one, mut other): (*mut kronsae_encoder, *mut kronsae_encoder) = (null_mut(), null_mut());
    // SAFETY: valid pointers throughout; handles are destroyed once, at the end.
    unsafe {
        assert_eq!(kronsae_encoder_create(sae, null(), &raw mut one, null_mut()), KRONSAE_STATUS_OK);
        assert_eq!(kronsae_encoder_create(sae, null(), &raw mut other, null_mut()), KRONSAE_STATUS_OK);
        assert_eq!(encode(one).0, KRONSAE_STATUS_OK);

        let counter = (&raw const LOGGED).cast_mut().cast();
        assert_eq!(kronsae_set_log_callback(Some(count_errors), counter, null_mut()), KRONSAE_STATUS_OK);
        PLANTED.set(true);
        let (status, message) = encode(one);
        assert_eq!(status, KRONSAE_STATUS_INTERNAL);
        assert!(message.contains("kronsae_encode") && message.contains("planted"), "{message}");
        assert_eq!(LOGGED.load(Ordering::Relaxed), 1);
        assert_eq!(kronsae_set_log_callback(None, null_mut(), null_mut()), KRONSAE_STATUS_OK);

        for _ in 0..2 {
            assert_eq!(encode(one).0, KRONSAE_STATUS_POISONED);
        }
        // The model is not poisoned, nor is another encoder of it.
        assert_eq!(encode(other).0, KRONSAE_STATUS_OK);
        let mut info: kronsae_sae_info = std::mem::zeroed();
        info.struct_size = size_of::<kronsae_sae_info>() as u32;
        assert_eq!(kronsae_sae_get_info(sae, &raw mut info, null_mut()), KRONSAE_STATUS_OK);
        assert_eq!((info.d_model, info.k), (2, 1));
        kronsae_encoder_destroy(one);
        kronsae_encoder_destroy(other);
        kronsae_sae_destroy(sae);
    }
}

#[test]
fn a_panic_poisons_the_tap_alone() {
    let mut monitor = null_mut();
    let (mut one, mut other): (*mut kronsae_tap, *mut kronsae_tap) = (null_mut(), null_mut());
    let mut site = 9;
    // SAFETY: all bytes zero is a value of the struct.
    let mut options: kronsae_site_options = unsafe { std::mem::zeroed() };
    options.struct_size = size_of::<kronsae_site_options>() as u32;
    options.name = c"s".as_ptr();
    options.d_model = 2;
    // SAFETY: valid pointers throughout; handles are destroyed once, at the end.
    unsafe {
        assert_eq!(kronsae_monitor_create(null(), &raw mut monitor, null_mut()), KRONSAE_STATUS_OK);
        let added = kronsae_monitor_add_site(monitor, &raw const options, null(), &raw mut site, null_mut());
        assert_eq!((added, site), (KRONSAE_STATUS_OK, 0));
        for tap in [&raw mut one, &raw mut other] {
            assert_eq!(kronsae_tap_create(monitor, site, null(), tap, null_mut()), KRONSAE_STATUS_OK);
        }
        assert_eq!(submit(one).0, KRONSAE_STATUS_OK);
        PLANTED.set(true);
        let (status, message) = submit(one);
        assert_eq!(status, KRONSAE_STATUS_INTERNAL);
        assert!(message.contains("kronsae_tap_submit") && message.contains("planted"), "{message}");
        assert_eq!(submit(one).0, KRONSAE_STATUS_POISONED);
        assert_eq!(kronsae_tap_end_request(one, 1, null_mut()), KRONSAE_STATUS_POISONED);
        // Neither the monitor nor another tap of it is poisoned.
        assert_eq!(submit(other).0, KRONSAE_STATUS_OK);
        assert_eq!(kronsae_monitor_flush(monitor, 60_000, null_mut()), KRONSAE_STATUS_OK);
        kronsae_tap_destroy(one);
        kronsae_tap_destroy(other);
        kronsae_monitor_destroy(monitor);
    }
}

/// Submits (4, 9); returns status and message.
fn submit(tap: *mut kronsae_tap) -> (i32, String) {
    let x = [4.0_f32, 9.0];
    let activations = kronsae_activations {
        struct_size: size_of::<kronsae_activations>() as u32,
        dtype: KRONSAE_DTYPE_F32,
        data: x.as_ptr().cast(),
        rows: 1,
        d_model: 2,
        row_stride: 0,
    };
    let tag = kronsae_token_tag { request: 1, position: 0, token: -1, flags: 0, reserved: 0 };
    let mut error: *mut kronsae_error = null_mut();
    // SAFETY: everything is alive and as described.
    unsafe {
        let status = kronsae_tap_submit(tap, &raw const activations, &raw const tag, 24, null_mut(), &raw mut error);
        let message = CStr::from_ptr(kronsae_error_message(error)).to_str().unwrap().to_owned();
        kronsae_error_destroy(error);
        (status, message)
    }
}

#[test]
fn c_names_and_numbers_are_those_of_status() {
    for (status, number, name) in TABLE {
        assert_eq!(status as i32, number);
        assert_eq!(status.name(), name.to_str().unwrap());
        // SAFETY: a constant C string.
        assert_eq!(unsafe { CStr::from_ptr(kronsae_status_name(number)) }, name);
    }
    // SAFETY: as above.
    assert_eq!(unsafe { CStr::from_ptr(kronsae_status_name(TABLE.len() as i32)) }, c"unknown status");
}
