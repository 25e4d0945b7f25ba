//! Sites: where in the model, which SAE, which rules and labels.

use super::callbacks::refuse_inside;
use super::lifecycle::{MonitorBody, borrow, kronsae_monitor};
use crate::capi::buffers::{output, slice};
use crate::capi::error::{boundary, kronsae_error};
use crate::capi::handle;
use crate::capi::log::{KRONSAE_LOG_WARN, log};
use crate::capi::sae::kronsae_sae;
use crate::capi::status::kronsae_status;
use crate::capi::strings::{path_of, text, utf8};
use crate::capi::structs::{self, Versioned};
use crate::error::{Error, Result};
use crate::monitor::{Labels, Rules, SiteId, SiteOptions, UnboundRule};
use std::ffi::c_char;
use std::mem::offset_of;
use std::sync::Arc;

/// Bit of a site's flags: its layer field says which layer the site is at.
pub const KRONSAE_SITE_HAS_LAYER: u32 = 1;
/// Bit of a site's flags: a model that was trained at another layer is taken all the same.
pub const KRONSAE_SITE_ANY_LAYER: u32 = 2;

/// A place in the host's model where activations are tapped. Start from `KRONSAE_SITE_OPTIONS_INIT`; zero means default.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct kronsae_site_options {
    /// sizeof(kronsae_site_options).
    pub struct_size: u32,
    /// `KRONSAE_SITE_*` bits.
    pub flags: u32,
    /// With KRONSAE_SITE_HAS_LAYER: the layer, from 0. It must be the one that the model file says it was trained at, if
    /// it says so. Otherwise 0.
    pub layer: u32,
    /// 0.
    pub reserved: u32,
    /// The site's name, UTF-8, 1 to 128 characters, unique in the monitor; it appears in events, in metrics and on the live
    /// page. There is no default.
    pub name: *const c_char,
    /// Latents to watch, n_watch indices: the metrics carry them, and with a model that selects by threshold only they are
    /// computed, exactly; rules may look at no others then. NULL, with n_watch 0: all latents are computed.
    pub watch: *const u32,
    /// Indices in watch.
    pub n_watch: usize,
    /// Without a model: elements of an activation vector. Otherwise 0, or the model's.
    pub d_model: usize,
}

// SAFETY: repr(C) without padding (four 4-byte fields, then 8-byte ones), struct_size first; numbers and pointers.
unsafe impl Versioned for kronsae_site_options {
    const NAME: &'static str = "kronsae_site_options";
    const FIRST_SIZE: usize = offset_of!(Self, d_model) + size_of::<usize>();
}

/// # Safety
/// The struct's pointers are as the header asks, where they are not visibly otherwise.
unsafe fn site_options(options: &kronsae_site_options) -> Result<SiteOptions> {
    let kronsae_site_options { flags, layer, reserved, .. } = *options;
    if flags & !(KRONSAE_SITE_HAS_LAYER | KRONSAE_SITE_ANY_LAYER) != 0 {
        return Err(Error::invalid(format!("kronsae_site_options: flags is {flags:#x}, expected KRONSAE_SITE_* bits")));
    }
    if reserved != 0 {
        return Err(Error::invalid(format!("kronsae_site_options: reserved is {reserved}, expected 0")));
    }
    let has_layer = flags & KRONSAE_SITE_HAS_LAYER != 0;
    if layer != 0 && !has_layer {
        return Err(Error::invalid(format!(
            "kronsae_site_options: layer is {layer} without KRONSAE_SITE_HAS_LAYER in flags; set it, or layer to 0"
        )));
    }
    // SAFETY: the caller's promise.
    let (name, watch) = unsafe { (utf8(options.name, "name")?, slice(options.watch, options.n_watch, "watch")?) };
    Ok(SiteOptions {
        name: name.to_owned(),
        layer: has_layer.then_some(layer),
        any_layer: flags & KRONSAE_SITE_ANY_LAYER != 0,
        watch: watch.to_vec(),
        labels: None,
        d_model: options.d_model,
    })
}

/// Adds a site to a monitor. Rules in force that name no site apply to it, too.
///
/// options: must not be NULL; name has no default. sae: the model, of which the monitor keeps what it needs, so that the
/// handle may be destroyed; opened encoder-only it does. NULL: there is no model yet, tokens are only recorded. site:
/// receives the site's number, for taps.
///
/// Errors: `KRONSAE_STATUS_INVALID_ARGUMENT`, also if the name is taken, the model was trained at another layer, or a
/// rule in force does not fit the model; `KRONSAE_STATUS_IO` if the model's file has changed since it was opened;
/// `KRONSAE_STATUS_OUT_OF_MEMORY`, also where memory_limit is reached; `KRONSAE_STATUS_TIMEOUT` if the worker is busy for
/// a minute (in a callback, say), and nothing was changed; `KRONSAE_STATUS_STOPPED`; `KRONSAE_STATUS_POISONED` if a worker
/// failed; `KRONSAE_STATUS_FORKED`.
///
/// Threads: any number at once; not for serving threads.
///
/// Since 0.1.0.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kronsae_monitor_add_site(
    monitor: *const kronsae_monitor,
    options: *const kronsae_site_options,
    sae: *const kronsae_sae,
    site: *mut u32,
    error: *mut *mut kronsae_error,
) -> kronsae_status {
    let body = || {
        refuse_inside("kronsae_monitor_add_site")?;
        let site = output(site, "site")?;
        // SAFETY: the header asks for pointers that are valid where they are not null (so everywhere below).
        let body = unsafe { borrow(monitor) }?;
        // SAFETY: as above.
        let options = unsafe { site_options(&structs::read(options)?) }?;
        let sae = if sae.is_null() {
            None
        } else {
            // SAFETY: as above.
            Some(Arc::clone(&unsafe { handle::borrow(sae) }?.model.sae))
        };
        let SiteId(number) = body.monitor.add_site(options, sae)?;
        // SAFETY: as above.
        unsafe { site.write(number) };
        Ok(())
    };
    // SAFETY: as above.
    unsafe { boundary("kronsae_monitor_add_site", error, body) }
}

/// Puts another model in force at a site, at a batch boundary, while taps go on. The site's statistics start anew.
///
/// sae: of the same d_model as the one before, and rules in force must fit it, or the old one stays in force. As in
/// `kronsae_monitor_add_site` the handle may be destroyed afterwards. Device taps of the site have it copied to their devices;
/// what the old one has encoded there and is not on the host yet is counted as dropped.
///
/// Errors: as `kronsae_monitor_add_site`; with device taps, also those of `kronsae_device_sae_create`. The old model stays in
/// force then.
///
/// Threads: any number at once; not for serving threads.
///
/// Since 0.1.0.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kronsae_monitor_replace_sae(
    monitor: *const kronsae_monitor,
    site: u32,
    sae: *const kronsae_sae,
    error: *mut *mut kronsae_error,
) -> kronsae_status {
    let body = || {
        refuse_inside("kronsae_monitor_replace_sae")?;
        // SAFETY: as in kronsae_monitor_add_site.
        let (body, sae) = unsafe { (borrow(monitor)?, handle::borrow(sae)?) };
        body.monitor.replace_sae(SiteId(site), Arc::clone(&sae.model.sae))
    };
    // SAFETY: as above.
    unsafe { boundary("kronsae_monitor_replace_sae", error, body) }
}

/// Reads a TOML file of rules and puts them in force at all sites that they name, in place of those before. Requests
/// in progress go on under the new rules, their windows start anew.
///
/// A rule may name a site that there is not yet, so that rules can be loaded before sites are added: it waits, is checked
/// when a site of that name is added, and stands in the snapshot under `unbound_rules` until then. The log callback is
/// told (warning), as it may as well be a mistaken name.
///
/// path: on Unix the file's name in bytes, elsewhere UTF-8.
///
/// Errors: `KRONSAE_STATUS_IO`; `KRONSAE_STATUS_FORMAT` if it is not TOML or not rules, with a message that says where;
/// `KRONSAE_STATUS_INVALID_ARGUMENT` if a rule does not fit the model of a site it is for (a latent
/// that it does not have, a quantile without a calibration); `KRONSAE_STATUS_TIMEOUT`, `KRONSAE_STATUS_STOPPED`,
/// `KRONSAE_STATUS_POISONED` and `KRONSAE_STATUS_FORKED` as in `kronsae_monitor_add_site`. The old rules stay in force
/// then.
///
/// Threads: any number at once; not for serving threads.
///
/// Since 0.1.0.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kronsae_monitor_load_rules(
    monitor: *const kronsae_monitor,
    path: *const c_char,
    error: *mut *mut kronsae_error,
) -> kronsae_status {
    let body = || {
        refuse_inside("kronsae_monitor_load_rules")?;
        // SAFETY: as in kronsae_monitor_add_site.
        let (body, path) = unsafe { (borrow(monitor)?, text(path, "path")?) };
        put(body, &Rules::read(path_of(path)?)?)
    };
    // SAFETY: as above.
    unsafe { boundary("kronsae_monitor_load_rules", error, body) }
}

/// Puts rules in force, and logs those that wait for a site.
fn put(body: &MonitorBody, rules: &Rules) -> Result<()> {
    body.monitor.set_rules(rules)?;
    for UnboundRule { rule, site } in body.monitor.unbound_rules() {
        log(KRONSAE_LOG_WARN, &format!("rule `{rule}` waits for site `{site}`, which there is not yet"));
    }
    Ok(())
}

/// As `kronsae_monitor_load_rules`, from memory.
///
/// toml: size bytes of UTF-8, without a NUL at their end. Of no bytes there are no rules.
///
/// Errors: as `kronsae_monitor_load_rules`, without `KRONSAE_STATUS_IO`.
///
/// Threads: any number at once; not for serving threads.
///
/// Since 0.1.0.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kronsae_monitor_set_rules(
    monitor: *const kronsae_monitor,
    toml: *const c_char,
    size: usize,
    error: *mut *mut kronsae_error,
) -> kronsae_status {
    let body = || {
        refuse_inside("kronsae_monitor_set_rules")?;
        // SAFETY: as in kronsae_monitor_add_site.
        let (body, bytes) = unsafe { (borrow(monitor)?, slice(toml.cast::<u8>(), size, "toml")?) };
        let text = std::str::from_utf8(bytes)
            .map_err(|wrong| Error::format(format!("rules: not UTF-8 from byte {}", wrong.valid_up_to())))?;
        put(body, &Rules::parse(text)?)
    };
    // SAFETY: as above.
    unsafe { boundary("kronsae_monitor_set_rules", error, body) }
}

/// Reads labels of a site's latents, a TSV file of index and text, in place of those before. The live page and the
/// metrics show them.
///
/// path: on Unix the file's name in bytes, elsewhere UTF-8.
///
/// Errors: `KRONSAE_STATUS_IO`; `KRONSAE_STATUS_FORMAT`, with a message that says which line;
/// `KRONSAE_STATUS_INVALID_ARGUMENT`, also for a label of a latent that the model does not have; `KRONSAE_STATUS_FORKED`.
/// The old labels stay then.
///
/// Threads: any number at once; not for serving threads.
///
/// Since 0.1.0.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kronsae_monitor_load_labels(
    monitor: *const kronsae_monitor,
    site: u32,
    path: *const c_char,
    error: *mut *mut kronsae_error,
) -> kronsae_status {
    let body = || {
        refuse_inside("kronsae_monitor_load_labels")?;
        // SAFETY: as in kronsae_monitor_add_site.
        let (body, path) = unsafe { (borrow(monitor)?, text(path, "path")?) };
        body.monitor.set_labels(SiteId(site), Labels::read(path_of(path)?)?)
    };
    // SAFETY: as above.
    unsafe { boundary("kronsae_monitor_load_labels", error, body) }
}
