//! What the device does with the driver: order, waiting, capturing, and what it leaves behind.

use crate::common::Rng;
use crate::libraries::{Installed, is_child, outcome};
use cudarc::driver::sys;
use kronsae::cuda::{
    Compute, CudaDevice, Device, DeviceActivations, DeviceLatents, DeviceMemory, DeviceSae, DeviceSaeOptions, Element,
    Product, Stream,
};
use kronsae::sae::{Config, Encoder, EncoderWeights, Matrix, Selection, padded};
use kronsae::{Activations, Aligned, Dtype, EncoderOptions, Error, Latents, Sae, Status};
use std::sync::Arc;

/// Runs a child of this module with all libraries, and its log.
fn run(child: &str) -> String {
    run_child(&format!("scenarios::{child}"))
}

/// Runs one of this program's ignored tests with all libraries, and its log.
pub(crate) fn run_child(child: &str) -> String {
    let log = tempfile::NamedTempFile::new().unwrap();
    let kernels = std::env::var("FAKE_CUDA_KERNELS").expect("run cargo xtask test --only cuda-driver");
    let environment = [("FAKE_CUDA_KERNELS", kernels.as_str()), ("FAKE_CUDA_LOG", log.path().to_str().unwrap())];
    let said = outcome(child, Installed::Everything, &environment);
    assert_eq!(said, "well", "{child}");
    std::fs::read_to_string(log.path()).unwrap()
}

pub(crate) fn well() {
    println!("\nOUTCOME well");
}

pub(crate) fn open() -> Arc<CudaDevice> {
    CudaDevice::shared(0).unwrap()
}

fn bytes(device: &dyn Device, memory: &DeviceMemory) -> Vec<u8> {
    let mut bytes = vec![0; memory.bytes()];
    device.download(memory, 0, &mut bytes).unwrap();
    bytes
}

#[test]
#[ignore = "needs the library of emulated kernels: cargo xtask test --only cuda-driver"]
fn memory_and_copies() {
    let log = run("child_copies");
    assert!(!log.contains("write-combined") && !log.contains("waits for the default"), "{log}");
    // All that was allocated was freed, and the context released.
    assert!(log.ends_with("the context is gone\n"), "{log}");
}

#[test]
#[ignore = "runs in a process of its own"]
fn child_copies() {
    if !is_child() {
        return;
    }
    let device = open();
    assert!(Arc::ptr_eq(&device, &open()), "opened once");
    let memory = device.allocate(1000, "a test").unwrap();
    assert!(bytes(&*device, &memory).iter().all(|byte| *byte == 0));
    assert_eq!(device.allocate(0, "nothing").unwrap().bytes(), 0);

    // Ordinary memory may be reused on return.
    let mut from = vec![3; 500];
    device.upload(&memory, 250, &from).unwrap();
    from.fill(4);
    let found = bytes(&*device, &memory);
    assert!(found.iter().enumerate().all(|(at, byte)| *byte == if (250..750).contains(&at) { 3 } else { 0 }));
    // Pinned memory too, although the driver reads it later.
    let mut pinned = device.pinned(1000, "a test").unwrap();
    assert!(pinned.iter().all(|byte| *byte == 0));
    pinned.fill(5);
    device.upload(&memory, 0, &pinned).unwrap();
    pinned.fill(6);
    assert!(bytes(&*device, &memory).iter().all(|byte| *byte == 5));

    // A copy ahead does not overtake what the device was given before...
    device.fill(&memory, 7).unwrap();
    let arrival = device.copy_ahead(&memory, 0, pinned, 1000).unwrap();
    let mut pinned = arrival.reclaim().unwrap();
    assert!(bytes(&*device, &memory).iter().all(|byte| *byte == 6));
    // ...and what it is given afterwards waits where it was admitted.
    pinned.fill(8);
    let arrival = device.copy_ahead(&memory, 0, pinned, 1000).unwrap();
    assert!(bytes(&*device, &memory).iter().all(|byte| *byte == 6), "as late as may be");
    device.admit(&arrival).unwrap();
    assert!(bytes(&*device, &memory).iter().all(|byte| *byte == 8));
    // Dropped early, it waits: its memory is freed after.
    drop(arrival);

    let error = device.allocate(8 << 30, "much").unwrap_err();
    assert_eq!(error.status(), Status::OutOfMemory);
    assert!(error.message().contains("for much") && error.message().contains("are free"), "{error}");
    assert_eq!(device.upload(&memory, 999, &[0; 2]).unwrap_err().status(), Status::InvalidArgument);
    device.synchronize().unwrap();
    drop(memory);
    drop(device);
    well();
}

#[test]
#[ignore = "needs the library of emulated kernels: cargo xtask test --only cuda-driver"]
fn capturing() {
    let log = run("child_captures");
    assert!(!log.contains("captured a copy from the host"), "{log}");
}

#[test]
#[ignore = "runs in a process of its own"]
fn child_captures() {
    if !is_child() {
        return;
    }
    let device = open();
    let (a, b) = (device.allocate(64, "a").unwrap(), device.allocate(64, "b").unwrap());
    let first = |memory: &DeviceMemory| bytes(&*device, memory)[0];
    let graph = device.capture(&mut || device.fill(&a, 1).and_then(|()| device.fill(&b, 2))).unwrap().unwrap();
    assert_eq!((first(&a), first(&b)), (0, 0), "captured, not run");
    for _ in 0..3 {
        device.fill(&a, 9).unwrap();
        device.fill(&b, 9).unwrap();
        // SAFETY: the memory is there.
        unsafe { device.replay(&graph) }.unwrap();
        assert_eq!((first(&a), first(&b)), (1, 2));
    }
    // What cannot be captured is refused, without harm to the stream.
    let error = device
        .capture(&mut || {
            for refused in [
                device.allocate(1, "c").map(drop),
                device.upload(&a, 0, &[1]),
                device.download(&a, 0, &mut [0]),
                device.synchronize(),
            ] {
                assert_eq!(refused.unwrap_err().status(), Status::InvalidArgument);
            }
            Err(Error::invalid("of the step"))
        })
        .unwrap_err();
    assert_eq!(error.message(), "of the step");
    let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| device.capture(&mut || panic!("planted"))));
    assert!(panicked.is_err());
    device.fill(&a, 4).unwrap();
    assert_eq!(first(&a), 4);
    device.capture(&mut || device.fill(&a, 5)).unwrap().unwrap();
    well();
}

#[test]
#[ignore = "needs the library of emulated kernels: cargo xtask test --only cuda-driver"]
fn products() {
    let log = run("child_multiplies");
    let asked = log.lines().filter(|line| *line == "heuristic").count();
    assert_eq!(asked, 4, "once a shape");
}

#[test]
#[ignore = "runs in a process of its own"]
fn child_multiplies() {
    if !is_child() {
        return;
    }
    let device = open();
    let mut random = Rng(3);
    let (tokens, rows, inner) = (5_u32, 24_u32, 16_u32);
    for (input, output) in [
        (Element::F32, Element::F32),
        (Element::F32, Element::Bf16),
        (Element::Bf16, Element::F32),
        (Element::Bf16, Element::Bf16),
    ] {
        let mut values = |n: u32| (0..n).map(|_| random.below(5) as f32 - 2.0).collect::<Vec<f32>>();
        let (x, w, bias) = (values(tokens * inner), values(rows * inner), values(rows));
        let put = |values: &[f32], element: Element| {
            let bytes: Vec<u8> = match element {
                Element::F32 => values.iter().flat_map(|v| v.to_le_bytes()).collect(),
                Element::Bf16 => values.iter().flat_map(|v| half::bf16::from_f32(*v).to_le_bytes()).collect(),
            };
            let memory = device.allocate(bytes.len(), "a test").unwrap();
            device.upload(&memory, 0, &bytes).unwrap();
            memory
        };
        let y = device.allocate((tokens * rows) as usize * output.size(), "y").unwrap();
        let (xs, ws, bs) = (put(&x, input), put(&w, input), put(&bias, output));
        let product = Product {
            tokens,
            rows,
            inner,
            input,
            output,
            x: xs.address(),
            x_stride: inner,
            w: ws.address(),
            w_stride: inner,
            bias: bs.address(),
            y: y.address(),
            y_stride: rows,
            workspace: 0,
        };
        for _ in 0..3 {
            device.fill(&y, 0xFF).unwrap();
            // SAFETY: buffers of the product's sizes.
            unsafe { device.product(&product) }.unwrap();
            let found = bytes(&*device, &y);
            for t in 0..tokens as usize {
                for r in 0..rows as usize {
                    let dot = |i: usize| x[t * inner as usize + i] * w[r * inner as usize + i];
                    let expected = (0..inner as usize).map(dot).sum::<f32>() + bias[r];
                    let at = (t * rows as usize + r) * output.size();
                    let found = match output {
                        Element::F32 => f32::from_le_bytes(found[at..at + 4].try_into().unwrap()),
                        Element::Bf16 => half::bf16::from_le_bytes(found[at..at + 2].try_into().unwrap()).to_f32(),
                    };
                    assert_eq!(found, expected, "{input:?} {output:?} {t} {r}");
                }
            }
        }
        // A stream of somebody else's has no workspace here.
        let other = Stream(std::ptr::without_provenance_mut(0x40));
        // SAFETY: refused before the stream is used.
        let error = unsafe { device.product_on(other, &product) }.unwrap_err();
        assert_eq!(error.status(), Status::InvalidArgument);
        // SAFETY: refused before the address is used.
        let error = unsafe { device.product(&Product { x: product.x + 4, ..product }) }.unwrap_err();
        assert!(error.message().contains("multiple of 16"), "{error}");
    }
    well();
}

#[test]
#[ignore = "needs the library of emulated kernels: cargo xtask test --only cuda-driver"]
fn encoding_on_the_callers_stream() {
    let log = run("child_encodes");
    let during = |from: &str, to: &str| {
        let after = log.split_once(from).unwrap().1.split_once(to).unwrap().0;
        after.lines().filter(|line| !line.is_empty()).map(str::to_owned).collect::<Vec<_>>()
    };
    for calls in [during("begin encode", "end encode"), during("begin captured", "end captured")] {
        assert!(calls.len() >= 3, "{calls:?}");
        let enqueues = |call: &String| call == "cuLaunchKernel" || call == "cublasLtMatmul";
        assert!(calls.iter().all(enqueues), "more than enqueued: {calls:?}");
    }
    assert!(log.ends_with("the context is gone\n"), "{log}");
}

pub(crate) fn note(text: &str) {
    use std::io::Write;
    let log = std::env::var("FAKE_CUDA_LOG").unwrap();
    writeln!(std::fs::OpenOptions::new().append(true).open(log).unwrap(), "{text}").unwrap();
}

pub(crate) fn model(random: &mut Rng, d: usize) -> Arc<Sae> {
    let encoder = Encoder::Kron { heads: 40, base: 2, extension: 4 };
    let (rows, stride) = (encoder.rows(), padded(d));
    let mut weight = vec![0.0; rows * stride];
    for row in weight.chunks_exact_mut(stride) {
        row[..d].fill_with(|| random.below(7) as f32 - 3.0);
    }
    let mut bias = Aligned::zeroed(rows, "bias").unwrap();
    bias.fill_with(|| random.below(7) as f32 - 3.0);
    let weight = Matrix::from_rows(&weight, [rows, d], stride, Dtype::Bf16, "weight").unwrap();
    let config = Config::new(encoder, d, Selection::TopK(12), 1.0).unwrap();
    Arc::new(Sae::from_parts(config, EncoderWeights { weight, bias, threshold: None }, None).unwrap())
}

#[test]
#[ignore = "runs in a process of its own"]
fn child_encodes() {
    if !is_child() {
        return;
    }
    const ROWS: usize = 6;
    const D: usize = 20;
    let mut random = Rng(9);
    let sae = model(&mut random, D);
    let device = open();
    // The host's own context is current, and stays so.
    let host = std::ptr::without_provenance_mut(0x1234);
    // SAFETY: the stand-in keeps a stack of whatever it is given.
    unsafe { assert_eq!(sys::cuCtxPushCurrent_v2(host), sys::CUresult::CUDA_SUCCESS) };
    let shared: Arc<dyn Device> = Arc::<CudaDevice>::clone(&device);
    let options = DeviceSaeOptions { compute: Compute::Auto, tile: 4 };
    let on_device = DeviceSae::upload(shared, &sae, options).unwrap();
    assert_eq!(on_device.compute(), Element::Bf16);

    // A stream of the host's.
    let mut stream = std::ptr::null_mut();
    with_context(&device, || {
        // SAFETY: it writes one handle.
        unsafe { assert_eq!(sys::cuStreamCreate(&raw mut stream, 1), sys::CUresult::CUDA_SUCCESS) };
    });
    let allocate = |bytes| device.allocate(bytes, "a test").unwrap();
    let x = allocate(ROWS * D * 4);
    let (counts, indices, values) = (allocate(ROWS * 4), allocate(ROWS * 12 * 4), allocate(ROWS * 12 * 4));
    let workspace = allocate(on_device.workspace_bytes(ROWS).unwrap());
    let from = DeviceActivations { data: x.address(), dtype: Dtype::F32, rows: ROWS, d_model: D, row_stride: D * 4 };
    let out = DeviceLatents {
        counts: counts.address(),
        indices: indices.address(),
        values: values.address(),
        capacity: 12,
        active: 0,
        flags: 0,
        skipped: 0,
    };
    let encode = || {
        // SAFETY: buffers of the sizes that `encode` documents, and a live stream.
        unsafe { on_device.encode(&from, &out, workspace.address(), workspace.bytes(), Stream(stream.cast())) }
            .unwrap();
    };
    let mut cpu = kronsae::Encoder::new(Arc::clone(&sae), EncoderOptions::default()).unwrap();
    let mut batch = || (0..ROWS * D).map(|_| random.below(9) as f32 - 4.0).collect::<Vec<f32>>();
    let upload = |values: &[f32]| {
        let raw: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        device.upload(&x, 0, &raw).unwrap();
        device.synchronize().unwrap();
    };
    let finish = || {
        with_context(&device, || {
            // SAFETY: a live stream.
            unsafe { assert_eq!(sys::cuStreamSynchronize(stream), sys::CUresult::CUDA_SUCCESS) };
        });
    };
    let mut compare = |batch: &[f32]| {
        let mut expected = Latents::new(ROWS, 12).unwrap();
        cpu.encode(Activations::from_f32(batch, D).unwrap(), &mut expected.as_mut()).unwrap();
        let words = |memory: &DeviceMemory| {
            let bytes = bytes(&*device, memory);
            bytes.as_chunks::<4>().0.iter().map(|b| u32::from_le_bytes(*b)).collect::<Vec<_>>()
        };
        let (counts, indices, values) = (words(&counts), words(&indices), words(&values));
        for row in 0..ROWS {
            let range = row * 12..row * 12 + counts[row] as usize;
            assert_eq!(&indices[range.clone()], expected.row(row).0, "row {row}");
            let bits: Vec<u32> = expected.row(row).1.iter().map(|v| v.to_bits()).collect();
            assert_eq!(values[range], bits, "row {row}");
        }
    };

    let first = batch();
    upload(&first);
    note("begin encode");
    encode();
    note("end encode");
    assert!(bytes(&*device, &counts).iter().all(|byte| *byte == 0), "enqueued, not done");
    finish();
    compare(&first);

    // Captured by the host, replayed on other activations.
    let (mut graph, mut ready) = (std::ptr::null_mut(), std::ptr::null_mut());
    with_context(&device, || {
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_GLOBAL;
        // SAFETY: a live stream.
        unsafe { assert_eq!(sys::cuStreamBeginCapture_v2(stream, mode), sys::CUresult::CUDA_SUCCESS) };
        note("begin captured");
        encode();
        note("end captured");
        // SAFETY: the stream is being captured; each writes one handle.
        unsafe {
            assert_eq!(sys::cuStreamEndCapture(stream, &raw mut graph), sys::CUresult::CUDA_SUCCESS);
            assert_eq!(sys::cuGraphInstantiateWithFlags(&raw mut ready, graph, 0), sys::CUresult::CUDA_SUCCESS);
        }
    });
    for _ in 0..3 {
        let next = batch();
        upload(&next);
        with_context(&device, || {
            // SAFETY: a live graph and stream, and buffers that are still there.
            unsafe { assert_eq!(sys::cuGraphLaunch(ready, stream), sys::CUresult::CUDA_SUCCESS) };
        });
        finish();
        compare(&next);
    }
    with_context(&device, || {
        // SAFETY: made above, each destroyed once.
        unsafe {
            assert_eq!(sys::cuGraphExecDestroy(ready), sys::CUresult::CUDA_SUCCESS);
            assert_eq!(sys::cuGraphDestroy(graph), sys::CUresult::CUDA_SUCCESS);
            assert_eq!(sys::cuStreamDestroy_v2(stream), sys::CUresult::CUDA_SUCCESS);
        }
    });
    let mut current = std::ptr::null_mut();
    // SAFETY: it writes one handle.
    unsafe { assert_eq!(sys::cuCtxPopCurrent_v2(&raw mut current), sys::CUresult::CUDA_SUCCESS) };
    assert_eq!(current, host, "the host's context was put back");
    drop((x, counts, indices, values, workspace, on_device));
    drop(device);
    well();
}

/// Runs what a host does in the device's primary context.
pub(crate) fn with_context(_device: &CudaDevice, call: impl FnOnce()) {
    let mut context = std::ptr::null_mut();
    let mut popped = std::ptr::null_mut();
    // SAFETY: they write one handle each, and take back what was pushed.
    unsafe {
        assert_eq!(sys::cuDevicePrimaryCtxRetain(&raw mut context, 0), sys::CUresult::CUDA_SUCCESS);
        assert_eq!(sys::cuCtxPushCurrent_v2(context), sys::CUresult::CUDA_SUCCESS);
    }
    call();
    // SAFETY: as above.
    unsafe {
        assert_eq!(sys::cuCtxPopCurrent_v2(&raw mut popped), sys::CUresult::CUDA_SUCCESS);
        assert_eq!(sys::cuDevicePrimaryCtxRelease_v2(0), sys::CUresult::CUDA_SUCCESS);
    }
}

#[test]
#[ignore = "needs the library of emulated kernels: cargo xtask test --only cuda-driver"]
fn after_fork() {
    run("child_forks");
}

#[test]
#[ignore = "runs in a process of its own"]
fn child_forks() {
    if !is_child() {
        return;
    }
    let device = open();
    let memory = device.allocate(8, "a test").unwrap();
    // SAFETY: the child calls the device, which asks who it is and refuses, and ends without running anything else.
    let child = unsafe { libc::fork() };
    if child == 0 {
        let status = device.fill(&memory, 1).map_err(|error| error.status());
        // SAFETY: ends this process.
        unsafe { libc::_exit(if status == Err(Status::Forked) { 17 } else { 1 }) };
    }
    let mut status = 0;
    // SAFETY: a child of this process.
    assert_eq!(unsafe { libc::waitpid(child, &raw mut status, 0) }, child);
    assert_eq!(libc::WEXITSTATUS(status), 17);
    device.fill(&memory, 1).unwrap();
    well();
}
