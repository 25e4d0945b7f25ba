//! The C functions: the same results, and what they refuse.

use crate::common::{Rng, write_random_model};
use crate::support::{D, as_dyn, device, small};
use kronsae::Dtype;
use kronsae::capi::log::kronsae_set_log_callback;
use kronsae::capi::monitor::device_taps::{
    kronsae_device_tap, kronsae_device_tap_create, kronsae_device_tap_destroy, kronsae_device_tap_end_request,
    kronsae_device_tap_options, kronsae_device_tap_rewind, kronsae_device_tap_submit,
};
use kronsae::capi::monitor::lifecycle::{
    kronsae_monitor_create, kronsae_monitor_destroy, kronsae_monitor_flush, kronsae_monitor_get_status,
    kronsae_monitor_status,
};
use kronsae::capi::monitor::sites::{kronsae_monitor_add_site, kronsae_site_options};
use kronsae::capi::monitor::taps::kronsae_token_tag;
use kronsae::capi::sae::{kronsae_sae_destroy, kronsae_sae_open};
use kronsae::capi::views::kronsae_activations;
use kronsae::cuda::Device;
use kronsae::sae::{Encoder, Selection};
use std::ffi::CString;
use std::ptr::{null, null_mut};

const OK: i32 = 0;
const INVALID: i32 = 1;
const STOPPED: i32 = 6;

#[test]
#[ignore = "needs the library of emulated kernels: cargo xtask test --only cuda-encode"]
fn from_c() {
    const ROWS: usize = 40;
    let device = device();
    let mut random = Rng(21);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    let encoder = Encoder::Kron { heads: 30, base: 2, extension: 3 };
    write_random_model(&path, encoder, D, Selection::TopK(9), Dtype::F32, &mut random);
    let values: Vec<u8> = (0..ROWS * D).flat_map(|_| small(&mut random).to_le_bytes()).collect();
    let memory = as_dyn(&device).allocate(values.len(), "x").unwrap();
    device.upload(&memory, 0, &values).unwrap();
    let path = CString::new(path.to_str().unwrap()).unwrap();
    let (mut model, mut monitor, mut site) = (null_mut(), null_mut(), 0);
    let mut tap: *mut kronsae_device_tap = null_mut();
    let tags: Vec<kronsae_token_tag> = (0..ROWS)
        .map(|row| kronsae_token_tag { request: 1, position: row as i32, token: -1, flags: 0, reserved: 0 })
        .collect();
    // SAFETY: the C functions are called as the header asks, or with what they are to refuse.
    unsafe {
        assert_eq!(kronsae_set_log_callback(None, null_mut(), null_mut()), OK);
        assert_eq!(kronsae_sae_open(path.as_ptr(), null(), &raw mut model, null_mut()), OK);
        assert_eq!(kronsae_monitor_create(null(), &raw mut monitor, null_mut()), OK);
        let mut at: kronsae_site_options = std::mem::zeroed();
        at.struct_size = size_of::<kronsae_site_options>() as u32;
        at.name = c"s".as_ptr();
        assert_eq!(kronsae_monitor_add_site(monitor, &raw const at, model, &raw mut site, null_mut()), OK);
        // The monitor has what it needs of it.
        kronsae_sae_destroy(model);

        let options = kronsae_device_tap_options {
            struct_size: size_of::<kronsae_device_tap_options>() as u32,
            device: 0,
            compute: 1,
            tile_rows: 8,
            sampling: 2,
            nth: 2,
            slots: 3,
            rows: 8,
            controls: 2,
        };
        let create = |options: kronsae_device_tap_options, out: *mut *mut kronsae_device_tap| {
            kronsae_device_tap_create(monitor, site, &raw const options, out, null_mut())
        };
        for refused in [
            kronsae_device_tap_options { compute: 3, ..options },
            kronsae_device_tap_options { sampling: 9, ..options },
            kronsae_device_tap_options { nth: 0, ..options },
            kronsae_device_tap_options { slots: 2000, ..options },
            kronsae_device_tap_options { rows: 9000, ..options },
            kronsae_device_tap_options { struct_size: 8, ..options },
        ] {
            assert_eq!(create(refused, &raw mut tap), INVALID);
            assert!(tap.is_null());
        }
        assert_eq!(create(options, null_mut()), INVALID);
        assert_eq!(kronsae_device_tap_create(monitor, 7, &raw const options, &raw mut tap, null_mut()), INVALID);
        assert_eq!(create(options, &raw mut tap), OK);

        let x = kronsae_activations {
            struct_size: size_of::<kronsae_activations>() as u32,
            dtype: 1,
            data: std::ptr::with_exposed_provenance(memory.address() as usize),
            rows: ROWS,
            d_model: D,
            row_stride: 0,
        };
        let mut accepted = 99;
        let mut submit = |x: kronsae_activations, tags: *const kronsae_token_tag, size: usize| {
            kronsae_device_tap_submit(tap, &raw const x, tags, size, &raw mut accepted, null_mut(), null_mut())
        };
        let size = size_of::<kronsae_token_tag>();
        for refused in [
            submit(kronsae_activations { dtype: 9, ..x }, tags.as_ptr(), size),
            submit(kronsae_activations { d_model: D + 1, ..x }, tags.as_ptr(), size),
            submit(kronsae_activations { data: null(), ..x }, tags.as_ptr(), size),
            submit(x, null(), size),
            submit(x, tags.as_ptr(), 20),
        ] {
            assert_eq!(refused, INVALID);
        }
        assert_eq!(submit(x, tags.as_ptr(), size), OK);
        assert_eq!(accepted, 20, "every second of 40 rows, in three slots of eight");
        assert_eq!(kronsae_device_tap_rewind(tap, 1, 30, null_mut()), OK);
        assert_eq!(kronsae_device_tap_end_request(tap, 1, null_mut()), OK);
        assert_eq!(kronsae_monitor_flush(monitor, 60_000, null_mut()), OK);
        let mut status: kronsae_monitor_status = std::mem::zeroed();
        status.struct_size = size_of::<kronsae_monitor_status>() as u32;
        assert_eq!(kronsae_monitor_get_status(monitor, &raw mut status, null_mut()), OK);
        let went = (status.submitted, status.encoded, status.sampled_out, status.dropped, status.queued);
        assert_eq!(went, (40, 20, 20, 0, 0));
        // `accepted` may be left out.
        let bare =
            kronsae_device_tap_submit(tap, &raw const x, tags.as_ptr(), size, null_mut(), null_mut(), null_mut());
        assert_eq!(bare, OK);

        kronsae_monitor_destroy(monitor);
        let after =
            kronsae_device_tap_submit(tap, &raw const x, tags.as_ptr(), size, null_mut(), null_mut(), null_mut());
        assert_eq!(after, STOPPED);
        kronsae_device_tap_destroy(tap);
        kronsae_device_tap_destroy(null_mut());
    }
}
