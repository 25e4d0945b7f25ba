//! A monitor's tap of device activations over the driver: what a submit asks of it, in which order, and what it must not.

use crate::common::Rng;
use crate::libraries::is_child;
use crate::scenarios::{model, note, open, run_child, well, with_context};
use cudarc::driver::sys;
use kronsae::cuda::{CudaDevice, Device, DeviceActivations, DeviceMemory, DeviceSaeOptions, Stream};
use kronsae::monitor::{Counters, DeviceTap, DeviceTapOptions, Monitor, MonitorOptions, SiteId, SiteOptions, TokenTag};
use kronsae::{Activations, Dtype, EncoderOptions, Latents, Sae, Status};
use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::{Arc, Mutex};
use std::time::Duration;

struct Counting;

thread_local! {
    static CALLS: Cell<usize> = const { Cell::new(0) };
}

fn called() {
    // A thread that ends may free after its own counter is gone.
    let _ = CALLS.try_with(|calls| calls.set(calls.get() + 1));
}

// SAFETY: everything is passed on to the system's allocator; counting allocates nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        called();
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        called();
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const D: usize = 20;
const K: usize = 12;
const LONG: Duration = Duration::from_secs(60);

/// A switch of the stand-in for libcuda.
fn switch(name: &std::ffi::CStr, value: i32) {
    // SAFETY: the stand-in is loaded, and these functions of it take a number.
    unsafe {
        let library = libc::dlopen(c"libcuda.so.1".as_ptr(), libc::RTLD_NOW | libc::RTLD_NOLOAD);
        let function = libc::dlsym(library, name.as_ptr());
        assert!(!function.is_null(), "{name:?}");
        std::mem::transmute::<*mut libc::c_void, extern "C" fn(i32)>(function)(value);
    }
}

/// A monitor with a tap, and rows on the device.
struct Setting {
    device: Arc<CudaDevice>,
    sae: Arc<Sae>,
    monitor: Monitor,
    site: SiteId,
    x: DeviceMemory,
    values: Vec<f32>,
}

const ROWS: usize = 12;

impl Setting {
    fn new() -> Self {
        let device = open();
        let mut random = Rng(9);
        let sae = model(&mut random, D);
        let monitor = Monitor::new(MonitorOptions::default()).unwrap();
        let site = SiteOptions { name: "resid".into(), ..Default::default() };
        let site = monitor.add_site(site, Arc::clone(&sae)).unwrap();
        let values: Vec<f32> = (0..ROWS * D).map(|_| random.below(9) as f32 - 4.0).collect();
        let raw: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        let x = device.allocate(raw.len(), "a test").unwrap();
        device.upload(&x, 0, &raw).unwrap();
        device.synchronize().unwrap();
        Setting { device, sae, monitor, site, x, values }
    }

    fn tap(&self) -> DeviceTap {
        let sae = DeviceSaeOptions { tile: 4, ..Default::default() };
        let options = DeviceTapOptions { sae, slots: 3, rows: 6, controls: 8, ..Default::default() };
        self.monitor.device_tap(self.site, Arc::<CudaDevice>::clone(&self.device), options).unwrap()
    }

    /// Rows `first` and so many after it.
    fn rows(&self, first: usize, rows: usize) -> DeviceActivations {
        DeviceActivations { data: self.x.at(first * D * 4), dtype: Dtype::F32, rows, d_model: D, row_stride: D * 4 }
    }

    fn counters(&self) -> Counters {
        self.monitor.snapshot().sites[0].counters
    }

    /// What came of tokens is what the CPU says of the rows at their positions.
    fn compare(&self, since: u64, positions: &[i32]) {
        let mut expected = Latents::new(ROWS, K).unwrap();
        let mut cpu = kronsae::Encoder::new(Arc::clone(&self.sae), EncoderOptions::default()).unwrap();
        cpu.encode(Activations::from_f32(&self.values, D).unwrap(), &mut expected.as_mut()).unwrap();
        let found = self.monitor.recent_tokens(self.site, since, 1000);
        assert_eq!(found.iter().map(|token| token.tag.position).collect::<Vec<_>>(), positions);
        for token in found {
            let (indices, values) = expected.row(token.tag.position as usize);
            assert_eq!((&*token.indices, &*token.values), (indices, values), "position {}", token.tag.position);
        }
    }
}

fn tag(position: usize) -> TokenTag {
    TokenTag { request: 1, position: position as i32, token: -1, flags: 0 }
}

fn new_stream(device: &CudaDevice) -> sys::CUstream {
    let mut stream = std::ptr::null_mut();
    with_context(device, || {
        // SAFETY: it writes one handle.
        unsafe { assert_eq!(sys::cuStreamCreate(&raw mut stream, 1), sys::CUresult::CUDA_SUCCESS) };
    });
    stream
}

fn finish(device: &CudaDevice, stream: sys::CUstream) {
    with_context(device, || {
        // SAFETY: a live stream.
        unsafe { assert_eq!(sys::cuStreamSynchronize(stream), sys::CUresult::CUDA_SUCCESS) };
    });
}

fn destroy(device: &CudaDevice, stream: sys::CUstream) {
    with_context(device, || {
        // SAFETY: made by `new_stream`, destroyed once.
        unsafe { assert_eq!(sys::cuStreamDestroy_v2(stream), sys::CUresult::CUDA_SUCCESS) };
    });
}

/// Submits, and how often this thread allocated or freed meanwhile.
fn submit(
    tap: &mut DeviceTap,
    x: &DeviceActivations,
    stream: sys::CUstream,
    first: usize,
) -> (Result<usize, Status>, usize) {
    let before = CALLS.get();
    // SAFETY: rows of the setting, which outlives what is enqueued; a live stream.
    let done = unsafe { tap.submit(x, Stream(stream.cast()), |row| tag(first + row)) };
    let calls = CALLS.get() - before;
    (done.map_err(|error| error.status()), calls)
}

#[test]
#[ignore = "needs the library of emulated kernels: cargo xtask test --only cuda-driver"]
fn a_submit_enqueues_and_nothing_else() {
    let log = run_child("tap::child_submits");
    let during = |from: &str, to: &str| {
        let after = log.split_once(from).unwrap().1.split_once(to).unwrap().0;
        let own = after.lines().filter(|line| !line.is_empty() && !line.starts_with("worker: "));
        own.map(str::to_owned).collect::<Vec<_>>()
    };
    // A tile is converted, multiplied, and selected from by one kernel or two.
    let batch = |calls: &[String], tiles: usize| {
        let (copies, rest) = calls.split_at(calls.len() - 2);
        assert_eq!(rest, ["cuMemcpyDtoHAsync_v2", "cuEventRecord"], "{calls:?}");
        assert!(copies.iter().all(|call| call == "cuLaunchKernel" || call == "cublasLtMatmul"), "{calls:?}");
        assert_eq!(copies.iter().filter(|call| *call == "cublasLtMatmul").count(), tiles, "{calls:?}");
    };
    let one = during("begin one", "end one");
    assert_eq!(one[0], "cuStreamIsCapturing", "{one:?}");
    batch(&one[1..], 1);
    // Twelve rows in batches of six, of two tiles each.
    let two = during("begin two", "end two");
    let first = 1 + two.iter().position(|call| call == "cuEventRecord").unwrap();
    batch(&two[1..first], 2);
    batch(&two[first..], 2);
    // On another stream: that one waits for the last batch, whose workspace it uses; the host does not.
    let other = during("begin other", "end other");
    assert_eq!(other[..2], ["cuStreamIsCapturing", "cuStreamWaitEvent"], "{other:?}");
    batch(&other[2..], 1);
    let none = during("begin full", "end full");
    assert_eq!(none, ["cuStreamIsCapturing"], "no slot: nothing is enqueued");
    assert!(!log.contains("pinned memory that was freed"), "{log}");
    assert!(log.ends_with("the context is gone\n"), "{log}");
}

#[test]
#[ignore = "runs in a process of its own"]
fn child_submits() {
    if !is_child() {
        return;
    }
    let setting = Setting::new();
    let (stream, other) = (new_stream(&setting.device), new_stream(&setting.device));
    let mut tap = setting.tap();
    let mut during = |what: &str, x: &DeviceActivations, stream, first| {
        note(&format!("begin {what}"));
        let (taken, calls) = submit(&mut tap, x, stream, first);
        note(&format!("end {what}"));
        note(&format!("end {what}"));
        assert_eq!(calls, 0, "{what}: a submit allocates nothing");
        taken.unwrap()
    };
    assert_eq!(during("one", &setting.rows(3, 4), stream, 3), 4);
    std::thread::sleep(Duration::from_millis(50));
    assert_eq!(setting.counters().queued, 4, "enqueued, not done");
    finish(&setting.device, stream);
    setting.monitor.flush(LONG).unwrap();
    setting.compare(0, &[3, 4, 5, 6]);
    assert_eq!(during("two", &setting.rows(0, 12), stream, 0), 12);
    assert_eq!(during("other", &setting.rows(2, 3), other, 2), 3);
    assert_eq!(during("full", &setting.rows(0, 5), stream, 0), 0);
    // The other stream's work waits for the first's, whose end is therefore reached, too.
    finish(&setting.device, other);
    setting.monitor.flush(LONG).unwrap();
    setting.compare(4, &[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 2, 3, 4]);
    let now = setting.counters();
    assert_eq!((now.submitted, now.encoded, now.dropped), (24, 19, 5));
    drop(tap);
    setting.monitor.stop(LONG).unwrap();
    destroy(&setting.device, stream);
    destroy(&setting.device, other);
    let Setting { device, x, monitor, .. } = setting;
    drop((monitor, x));
    drop(device);
    well();
}

#[test]
#[ignore = "needs the library of emulated kernels: cargo xtask test --only cuda-driver"]
fn captures_go_on() {
    let log = run_child("tap::child_meets_captures");
    assert!(!log.contains("a capture was spoiled"), "{log}");
    let meanwhile = log.split_once("capturing\n").unwrap().1.split_once("cuStreamEndCapture").unwrap().0;
    for call in ["worker: cuEventQuery", "worker: cuMemFree_v2", "worker: cuMemFreeHost", "cuMemAlloc_v2"] {
        assert!(meanwhile.contains(call), "{call} was not tried: {meanwhile}");
    }
}

#[test]
#[ignore = "runs in a process of its own"]
fn child_meets_captures() {
    if !is_child() {
        return;
    }
    let setting = Setting::new();
    let (stream, busy) = (new_stream(&setting.device), new_stream(&setting.device));
    let mut tap = setting.tap();
    // In flight, so that the worker asks the driver all the time.
    assert_eq!(submit(&mut tap, &setting.rows(0, 4), busy, 0).0, Ok(4));
    let mut graph = std::ptr::null_mut();
    with_context(&setting.device, || {
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_GLOBAL;
        // SAFETY: a live stream.
        unsafe { assert_eq!(sys::cuStreamBeginCapture_v2(stream, mode), sys::CUresult::CUDA_SUCCESS) };
    });
    note("capturing");
    assert_eq!(submit(&mut tap, &setting.rows(0, 4), stream, 0).0, Err(Status::InvalidArgument));
    // The default stream would join the capture.
    assert_eq!(submit(&mut tap, &setting.rows(0, 4), std::ptr::null_mut(), 0).0, Err(Status::InvalidArgument));
    // Another stream is none of its business.
    assert_eq!(submit(&mut tap, &setting.rows(4, 4), busy, 4).0, Ok(4));
    // Taps that come and go allocate and free, here and on the worker.
    let before = setting.monitor.device_memory();
    drop(setting.tap());
    for _ in 0..10_000 {
        if setting.monitor.device_memory() == before {
            break;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    // The worker asks on.
    std::thread::sleep(Duration::from_millis(30));
    with_context(&setting.device, || {
        // SAFETY: the stream is being captured; it writes one handle, of an empty graph.
        unsafe {
            assert_eq!(sys::cuStreamEndCapture(stream, &raw mut graph), sys::CUresult::CUDA_SUCCESS);
            assert_eq!(sys::cuGraphDestroy(graph), sys::CUresult::CUDA_SUCCESS);
        }
    });
    assert_eq!(submit(&mut tap, &setting.rows(8, 4), stream, 8).0, Ok(4));
    finish(&setting.device, busy);
    finish(&setting.device, stream);
    setting.monitor.flush(LONG).unwrap();
    setting.compare(0, &[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11]);
    assert_eq!(setting.counters().submitted, 12, "what was refused is not counted");
    well();
}

#[test]
#[ignore = "needs the library of emulated kernels: cargo xtask test --only cuda-driver"]
fn a_device_that_fails() {
    run_child("tap::child_fails");
}

#[test]
#[ignore = "runs in a process of its own"]
fn child_fails() {
    if !is_child() {
        return;
    }
    let setting = Setting::new();
    let stream = new_stream(&setting.device);
    let said = Arc::new(Mutex::new(Vec::<String>::new()));
    let sink = Arc::clone(&said);
    setting.monitor.set_notice(Some(Box::new(move |text| sink.lock().unwrap().push(text.to_owned())))).unwrap();
    let (mut tap, mut other) = (setting.tap(), setting.tap());

    // Of another context: refused, and nothing is counted.
    switch(c"fake_other_context", 1);
    assert_eq!(submit(&mut tap, &setting.rows(0, 4), stream, 0).0, Err(Status::InvalidArgument));
    switch(c"fake_other_context", 0);
    assert_eq!(setting.counters().submitted, 0);

    // A launch that fails: dropped and counted, here and from then on.
    assert_eq!(submit(&mut tap, &setting.rows(0, 4), stream, 0).0, Ok(4));
    switch(c"fake_refuse_launches", 1);
    assert_eq!(submit(&mut tap, &setting.rows(0, 4), stream, 4).0, Ok(0));
    switch(c"fake_refuse_launches", 0);
    assert_eq!(submit(&mut tap, &setting.rows(0, 4), stream, 8).0, Ok(0));
    finish(&setting.device, stream);
    setting.monitor.flush(LONG).unwrap();
    let now = setting.counters();
    assert_eq!((now.submitted, now.encoded, now.dropped), (12, 4, 8));

    // A device that breaks under what is in flight: the worker finds out.
    assert_eq!(submit(&mut other, &setting.rows(0, 6), stream, 0).0, Ok(6));
    switch(c"fake_break", 1);
    setting.monitor.flush(LONG).unwrap();
    assert_eq!(submit(&mut other, &setting.rows(0, 6), stream, 6).0, Ok(0));
    let now = setting.counters();
    assert_eq!((now.submitted, now.encoded, now.dropped, now.queued), (24, 4, 20, 0));
    {
        let said = said.lock().unwrap();
        assert_eq!(said.len(), 2, "once a tap: {said:?}");
        assert!(said[0].contains("kronsae_") && said[0].contains("CUDA_ERROR_LAUNCH_FAILED"), "{said:?}");
        assert!(said[1].contains("tap 1") && said[1].contains("the device failed"), "{said:?}");
    }
    let snapshot = setting.monitor.snapshot();
    assert!(snapshot.sites[0].taps.iter().all(|tap| tap.failure.is_some()));
    assert_eq!(snapshot.state, kronsae::monitor::State::Running);
    drop((tap, other));
    setting.monitor.stop(LONG).unwrap();
    well();
}

#[test]
#[ignore = "needs the library of emulated kernels: cargo xtask test --only cuda-driver"]
fn ends_in_flight() {
    let log = run_child("tap::child_ends_in_flight");
    assert!(!log.contains("pinned memory that was freed"), "{log}");
    assert!(log.contains("cuEventSynchronize"), "the last to go waits for the events");
    assert!(log.ends_with("the context is gone\n") || log.ends_with("the context stays\n"), "{log}");
    assert!(!log.contains("and memory with it"), "{log}");
}

#[test]
#[ignore = "runs in a process of its own"]
fn child_ends_in_flight() {
    if !is_child() {
        return;
    }
    // The tap last, then the monitor last.
    for tap_last in [true, false] {
        let setting = Setting::new();
        let stream = new_stream(&setting.device);
        let mut tap = setting.tap();
        assert_eq!(submit(&mut tap, &setting.rows(0, 12), stream, 0).0, Ok(12));
        let Setting { device, monitor, x, .. } = setting;
        if tap_last {
            drop(monitor);
            assert_eq!(tap.end_request(1).unwrap_err().status(), Status::Stopped);
            drop(tap);
        } else {
            drop(tap);
            drop(monitor);
        }
        finish(&device, stream);
        destroy(&device, stream);
        drop(x);
        drop(device);
    }
    well();
}
