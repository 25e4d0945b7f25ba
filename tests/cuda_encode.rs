//! A model on a device whose kernels are emulated: the whole encode, against the CPU's selector on the same pre-activations
//! and, where products are exact, against the CPU's encoder bit for bit. `cargo xtask test --only cuda-encode` runs it.

#[path = "common/mod.rs"]
mod common;

use common::Rng;
use kronsae::cuda::{
    Accumulate, Address, Compute, Device, DeviceActivations, DeviceEncoder, DeviceLatents, DeviceMemory, DeviceSae,
    DeviceSaeOptions, Element, EmulatedDevice, Product,
};
use kronsae::sae::{Config, Encoder, EncoderWeights, Matrix, Selection, padded};
use kronsae::{
    Activations, Aligned, Dtype, EncoderOptions, Isa, Latents, ROW_NOT_FINITE, ROW_TRUNCATED, RowOutcome, Sae,
    Selector, Status,
};
use std::sync::Arc;

/// A small integer, so that sums of products are exact in f32 and in any order.
fn small(random: &mut Rng) -> f32 {
    random.below(7) as f32 - 3.0
}

fn device() -> Arc<EmulatedDevice> {
    // SAFETY: the test's step names the library that cuda/emulate/build.sh made.
    let device = unsafe { EmulatedDevice::from_environment(Accumulate::F32) }.unwrap();
    Arc::new(device.expect("KRONSAE_CUDA_EMULATION names no library: run cargo xtask test --only cuda-encode"))
}

fn model(encoder: Encoder, d: usize, selection: Selection, dtype: Dtype, mut value: impl FnMut() -> f32) -> Sae {
    let (rows, stride) = (encoder.rows(), padded(d));
    let mut weight = vec![0.0; rows * stride];
    for row in weight.chunks_exact_mut(stride) {
        row[..d].fill_with(&mut value);
    }
    let mut bias = Aligned::zeroed(rows, "bias").unwrap();
    bias.fill_with(&mut value);
    let weight = Matrix::from_rows(&weight, [rows, d], stride, dtype, "weight").unwrap();
    let config = Config::new(encoder, d, selection, 1.0).unwrap();
    Sae::from_parts(config, EncoderWeights { weight, bias, threshold: None }, None).unwrap()
}

/// Activations in bytes, with what is between the rows full of NaN.
struct Batch {
    bytes: Vec<u8>,
    dtype: Dtype,
    rows: usize,
    d: usize,
    stride: usize,
}

impl Batch {
    fn new(values: &[f32], dtype: Dtype, d: usize, stride: usize) -> Self {
        let rows = values.len() / d;
        let mut bytes = vec![0xFF_u8; rows * stride + 64];
        for (row, values) in values.chunks_exact(d).enumerate() {
            for (at, value) in values.iter().enumerate() {
                let at = row * stride + at * dtype.size();
                match dtype {
                    Dtype::F32 => bytes[at..at + 4].copy_from_slice(&value.to_le_bytes()),
                    Dtype::F16 => bytes[at..at + 2].copy_from_slice(&half::f16::from_f32(*value).to_le_bytes()),
                    Dtype::Bf16 => bytes[at..at + 2].copy_from_slice(&half::bf16::from_f32(*value).to_le_bytes()),
                }
            }
        }
        Batch { bytes, dtype, rows, d, stride }
    }

    fn view(&self) -> Activations<'_> {
        Activations::from_bytes(&self.bytes, self.dtype, self.rows, self.d, self.stride).unwrap()
    }
}

/// What one encode left in the device's buffers, which were full of a pattern before.
struct Encoded {
    counts: Vec<u32>,
    indices: Vec<u32>,
    values: Vec<u32>,
    active: Vec<u32>,
    flags: Vec<u8>,
    skipped: u32,
}

const UNTOUCHED: u32 = 0x5A5A_5A5A;

fn words(device: &dyn Device, memory: &DeviceMemory) -> Vec<u32> {
    let mut bytes = vec![0; memory.bytes()];
    device.download(memory, 0, &mut bytes).unwrap();
    bytes.as_chunks::<4>().0.iter().map(|b| u32::from_le_bytes(*b)).collect()
}

fn encode(sae: &DeviceSae, batch: &Batch, capacity: usize, misaligned: usize) -> Encoded {
    let device = &**sae.device();
    let rows = batch.rows;
    let allocate = |bytes: usize| {
        let memory = device.allocate(bytes, "a test").unwrap();
        device.fill(&memory, 0x5A).unwrap();
        memory
    };
    let x = allocate(batch.bytes.len() + misaligned);
    device.upload(&x, misaligned, &batch.bytes).unwrap();
    let (counts, active, flags) = (allocate(rows * 4), allocate(rows * 4), allocate(rows));
    let (indices, values) = (allocate(rows * capacity * 4), allocate(rows * capacity * 4));
    let skipped = device.allocate(4, "a test").unwrap();
    let workspace = allocate(sae.workspace_bytes(rows).unwrap());
    let from = DeviceActivations {
        data: x.at(misaligned),
        dtype: batch.dtype,
        rows,
        d_model: batch.d,
        row_stride: batch.stride,
    };
    let to = DeviceLatents {
        counts: counts.address(),
        indices: indices.address(),
        values: values.address(),
        capacity,
        active: active.address(),
        flags: flags.address(),
        skipped: skipped.address(),
    };
    // SAFETY: buffers of the sizes that `encode` documents.
    unsafe { sae.encode(&from, &to, workspace.address(), workspace.bytes(), device.stream()) }.unwrap();
    let mut flag_bytes = vec![0; rows];
    device.download(&flags, 0, &mut flag_bytes).unwrap();
    Encoded {
        counts: words(device, &counts),
        indices: words(device, &indices),
        values: words(device, &values),
        active: words(device, &active),
        flags: flag_bytes,
        skipped: words(device, &skipped)[0],
    }
}

/// The latents of row `row`: indices and the values' bits.
fn row(encoded: &Encoded, row: usize, capacity: usize) -> Vec<(u32, u32)> {
    let range = row * capacity..row * capacity + encoded.counts[row] as usize;
    let rest = range.end..(row + 1) * capacity;
    assert!(encoded.indices[rest.clone()].iter().all(|&word| word == UNTOUCHED), "row {row}: past its count");
    assert!(encoded.values[rest].iter().all(|&word| word == UNTOUCHED), "row {row}: past its count");
    encoded.indices[range.clone()].iter().copied().zip(encoded.values[range].iter().copied()).collect()
}

fn upload(device: &Arc<EmulatedDevice>, sae: &Sae, compute: Compute, tile: usize) -> DeviceSae {
    let device: Arc<dyn Device> = Arc::<EmulatedDevice>::clone(device);
    DeviceSae::upload(device, sae, DeviceSaeOptions { compute, tile }).unwrap()
}

/// Shapes with m != n, odd widths, more latents wanted than there are, few and many heads, and dense ones.
fn shapes(random: &mut Rng) -> (Encoder, usize, usize) {
    let encoder = match random.below(4) {
        0 => Encoder::Dense { latents: 1 + random.below(700) },
        1 => Encoder::Kron { heads: 1 + random.below(4), base: 1 + random.below(9), extension: 1 + random.below(17) },
        _ => Encoder::Kron { heads: 1 + random.below(200), base: 1 + random.below(3), extension: 1 + random.below(5) },
    };
    let d = 1 + random.below(70);
    let k = 1 + random.below(encoder.latents().min(80));
    (encoder, d, k)
}

#[test]
#[ignore = "needs the library of emulated kernels: cargo xtask test --only cuda-encode"]
fn with_exact_products_it_is_the_cpu_encoder() {
    let device = device();
    let mut random = Rng(0x9E37_79B9);
    let mut dtypes = [0; 3];
    for case in 0..120 {
        let (encoder, d, k) = shapes(&mut random);
        let selection = if random.below(3) == 0 {
            Selection::Threshold { theta: random.below(6) as f32, max_latents: k }
        } else {
            Selection::TopK(k)
        };
        let weights = [Dtype::F32, Dtype::Bf16][random.below(2)];
        let sae = Arc::new(model(encoder, d, selection, weights, || small(&mut random)));
        let which = random.below(3);
        dtypes[which] += 1;
        let dtype = [Dtype::F32, Dtype::F16, Dtype::Bf16][which];
        let rows = [1, 2, 5, 17][random.below(4)];
        let mut values = vec![0.0; rows * d];
        values.fill_with(|| small(&mut random));
        let mut special = None;
        if rows > 2 {
            values[2 * d + random.below(d)] = [f32::NAN, f32::INFINITY][random.below(2)];
            special = Some(2);
        }
        // Every kind of stride: contiguous, of 16 bytes, odd.
        let row_bytes = d * dtype.size();
        let stride = [row_bytes, row_bytes.next_multiple_of(16) + 16, row_bytes + 1][random.below(3)];
        let batch = Batch::new(&values, dtype, d, stride);
        let capacity = k + random.below(3);

        let mut expected = Latents::new(rows, capacity).unwrap();
        let mut cpu = kronsae::Encoder::new(Arc::clone(&sae), EncoderOptions::default()).unwrap();
        let summary = cpu.encode(batch.view(), &mut expected.as_mut()).unwrap();

        device.set_schedule(case % 6);
        let tile = [0, 4, 8][random.below(3)];
        let compute = [Compute::Auto, Compute::F32, Compute::Bf16][random.below(3)];
        let on_device = upload(&device, &sae, compute, tile);
        let found = encode(&on_device, &batch, capacity, random.below(2) * (1 + random.below(16)));
        let what = format!("case {case}: {encoder:?} d {d} {selection:?} {dtype} {compute:?} tile {tile}, {rows} rows");
        for r in 0..rows {
            let (indices, values) = expected.row(r);
            let expected: Vec<_> = indices.iter().copied().zip(values.iter().map(|v| v.to_bits())).collect();
            assert_eq!(row(&found, r, capacity), expected, "{what}, row {r}");
        }
        assert_eq!(found.skipped as usize, summary.skipped_rows, "{what}");
        let flagged = |bit: u8| found.flags.iter().filter(|flags| **flags & bit != 0).count();
        assert_eq!(flagged(ROW_NOT_FINITE), summary.skipped_rows, "{what}");
        assert_eq!(flagged(ROW_TRUNCATED), summary.truncated_rows, "{what}");
        if let Some(bad) = special
            && found.flags[bad] & ROW_NOT_FINITE != 0
        {
            assert_eq!((found.counts[bad], found.active[bad]), (0, 0), "{what}");
        }

        // The same through the host's buffers.
        let mut through = Latents::new(rows, capacity).unwrap();
        let mut encoder = DeviceEncoder::new(Arc::new(on_device));
        assert_eq!(encoder.encode(batch.view(), &mut through.as_mut()).unwrap(), summary, "{what}");
        for r in 0..rows {
            assert_eq!(through.row(r), expected.row(r), "{what}, row {r}");
        }
    }
    assert!(dtypes.iter().all(|cases| *cases > 10), "{dtypes:?}");
}

/// The pre-activations as the device computes them, `[rows]` each.
fn pre_activations(device: &EmulatedDevice, sae: &Sae, input: Element, batch: &Batch) -> Vec<Vec<f32>> {
    let (d, rows) = (batch.d, sae.config().encoder.rows());
    let stride = padded(d);
    let put = |values: &[f32], element: Element| {
        let bytes: Vec<u8> = match element {
            Element::F32 => values.iter().flat_map(|v| v.to_le_bytes()).collect(),
            Element::Bf16 => values.iter().flat_map(|v| half::bf16::from_f32(*v).to_le_bytes()).collect(),
        };
        let memory = device.allocate(bytes.len(), "a test").unwrap();
        device.upload(&memory, 0, &bytes).unwrap();
        memory
    };
    let mut w = vec![0.0; rows * stride];
    for (row, to) in w.chunks_exact_mut(stride).enumerate() {
        sae.encoder().weight.widen_row(row, to);
    }
    let mut x = vec![0.0; batch.rows * stride];
    for (row, to) in x.chunks_exact_mut(stride).enumerate() {
        batch.view().widen_row(row, &mut to[..d]);
    }
    let (w, x, bias) = (put(&w, input), put(&x, input), put(&sae.encoder().bias, Element::F32));
    let y_stride = rows.next_multiple_of(8);
    let y = device.allocate(batch.rows * y_stride * 4, "a test").unwrap();
    let product = Product {
        tokens: batch.rows as u32,
        rows: rows as u32,
        inner: stride as u32,
        input,
        output: Element::F32,
        x: x.address(),
        x_stride: stride as u32,
        w: w.address(),
        w_stride: stride as u32,
        bias: bias.address(),
        y: y.address(),
        y_stride: y_stride as u32,
        workspace: 0,
    };
    // SAFETY: buffers of the product's sizes.
    unsafe { device.product(&product) }.unwrap();
    let y = words(device, &y);
    y.chunks_exact(y_stride).map(|row| row[..rows].iter().map(|bits| f32::from_bits(*bits)).collect()).collect()
}

#[test]
#[ignore = "needs the library of emulated kernels: cargo xtask test --only cuda-encode"]
fn selection_is_exact_on_the_devices_own_pre_activations() {
    let device = device();
    let mut random = Rng(0xC0FF_EE11);
    for case in 0..60 {
        let (encoder, d, k) = shapes(&mut random);
        let selection = Selection::TopK(k);
        let sae = model(encoder, d, selection, Dtype::F32, || random.unit());
        let rows = 1 + random.below(12);
        let mut values = vec![0.0; rows * d];
        values.fill_with(|| random.unit());
        let batch = Batch::new(&values, Dtype::F32, d, d * 4);
        device.set_schedule(case % 6);
        let (compute, input) = [(Compute::F32, Element::F32), (Compute::Bf16, Element::Bf16)][random.below(2)];
        let on_device = upload(&device, &sae, compute, 0);
        let found = encode(&on_device, &batch, k, 0);
        let mut selector = Selector::new(encoder, selection, None, Isa::detect().unwrap()).unwrap();
        for (r, y) in pre_activations(&device, &sae, input, &batch).iter().enumerate() {
            let RowOutcome::Selected { active } = selector.select(y) else { panic!("finite") };
            let root = |v: f32| if matches!(encoder, Encoder::Kron { .. }) { v.sqrt() } else { v };
            let expected: Vec<_> = selector.selected().map(|(index, v)| (index as u32, root(v).to_bits())).collect();
            assert_eq!(row(&found, r, k), expected, "case {case}: {encoder:?} d {d} k {k} {compute:?}, row {r}");
            assert_eq!(found.active[r] as usize, active, "case {case}, row {r}");
        }
    }
}

#[test]
#[ignore = "needs the library of emulated kernels: cargo xtask test --only cuda-encode"]
fn per_latent_thresholds() {
    let device = device();
    let mut random = Rng(77);
    let (encoder, d) = (Encoder::Dense { latents: 150 }, 24);
    let selection = Selection::Threshold { theta: 1.0, max_latents: 40 };
    let plain = model(encoder, d, selection, Dtype::F32, || small(&mut random));
    let mut threshold = Aligned::zeroed(150, "thresholds").unwrap();
    threshold.fill_with(|| random.below(9) as f32);
    let (weight, bias) = (&plain.encoder().weight, &plain.encoder().bias);
    let mut copy = Matrix::zeroed(150, d, "weight").unwrap();
    let stride = copy.stride();
    for (r, to) in copy.f32_mut().chunks_exact_mut(stride).enumerate() {
        weight.widen_row(r, to);
    }
    let mut bias_copy = Aligned::zeroed(150, "bias").unwrap();
    bias_copy.copy_from_slice(bias);
    let weights = EncoderWeights { weight: copy, bias: bias_copy, threshold: Some(threshold) };
    let sae = Arc::new(Sae::from_parts(plain.config().clone(), weights, None).unwrap());
    let mut values = vec![0.0; 9 * d];
    values.fill_with(|| small(&mut random));
    let batch = Batch::new(&values, Dtype::Bf16, d, d * 2);
    let (mut expected, mut found) = (Latents::new(9, 40).unwrap(), Latents::new(9, 40).unwrap());
    let mut cpu = kronsae::Encoder::new(Arc::clone(&sae), EncoderOptions::default()).unwrap();
    let summary = cpu.encode(batch.view(), &mut expected.as_mut()).unwrap();
    let mut encoder = DeviceEncoder::new(Arc::new(upload(&device, &sae, Compute::Auto, 0)));
    assert_eq!(encoder.encode(batch.view(), &mut found.as_mut()).unwrap(), summary);
    assert!((0..9).any(|r| !expected.row(r).0.is_empty()));
    for r in 0..9 {
        assert_eq!(found.row(r), expected.row(r), "row {r}");
    }
}

#[test]
#[ignore = "needs the library of emulated kernels: cargo xtask test --only cuda-encode"]
fn what_is_wrong_is_refused_before_anything_is_written() {
    let device = device();
    let mut random = Rng(5);
    let encoder = Encoder::Kron { heads: 16, base: 2, extension: 4 };
    let sae = model(encoder, 24, Selection::TopK(8), Dtype::F32, || small(&mut random));
    let sae = upload(&device, &sae, Compute::F32, 0);
    let buffer = device.allocate(64 << 10, "a test").unwrap();
    let needed = sae.workspace_bytes(4).unwrap();
    let workspace = device.allocate(needed, "a test").unwrap();
    let at = |offset: usize| buffer.at(offset);
    let x = DeviceActivations { data: at(0), dtype: Dtype::F32, rows: 4, d_model: 24, row_stride: 96 };
    let out = DeviceLatents {
        counts: at(8192),
        indices: at(16384),
        values: at(24576),
        capacity: 8,
        active: 0,
        flags: 0,
        skipped: 0,
    };
    let call = |x: DeviceActivations, out: DeviceLatents, workspace: Address, bytes: usize| {
        // SAFETY: buffers of the sizes that `encode` documents, where it does not refuse.
        unsafe { sae.encode(&x, &out, workspace, bytes, device.stream()) }
    };
    let (w, n) = (workspace.address(), needed);
    call(x, out, w, n).unwrap();
    call(DeviceActivations { rows: 0, data: 0, ..x }, DeviceLatents { counts: 0, ..out }, 0, 0).unwrap();
    let refused = [
        (call(DeviceActivations { d_model: 23, ..x }, out, w, n), "d_model 23"),
        (call(DeviceActivations { data: 0, ..x }, out, w, n), "activations is null"),
        (call(x, DeviceLatents { capacity: 7, ..out }, w, n), "below K = 8"),
        (call(x, DeviceLatents { counts: at(8193), ..out }, w, n), "counts at"),
        (call(x, DeviceLatents { values: 0, ..out }, w, n), "values is null"),
        (call(x, out, w + 16, n), "a multiple of 256"),
        (call(x, out, w, n - 1), "expected"),
        (call(x, out, 0, n), "workspace is null"),
    ];
    for (outcome, text) in refused {
        let error = outcome.unwrap_err();
        assert_eq!(error.status(), Status::InvalidArgument, "{error}");
        assert!(error.message().contains(text), "{error}, expected `{text}`");
    }
}

#[test]
#[ignore = "needs the library of emulated kernels: cargo xtask test --only cuda-encode"]
fn more_latents_than_the_kernels_select_are_refused() {
    let device: Arc<dyn Device> = device();
    let sae = model(Encoder::Dense { latents: 600 }, 4, Selection::TopK(513), Dtype::F32, || 1.0);
    let error = DeviceSae::upload(device, &sae, DeviceSaeOptions::default()).unwrap_err();
    assert_eq!(error.status(), Status::Unsupported);
    assert!(error.message().contains("513") && error.message().contains("512"), "{error}");
}

#[test]
#[ignore = "needs the library of emulated kernels: cargo xtask test --only cuda-encode"]
fn memory_is_freed_and_copies_ahead_arrive() {
    let device = device();
    let mut pinned = device.pinned(1000, "a test").unwrap();
    assert!(pinned.iter().all(|byte| *byte == 0));
    pinned.fill(7);
    let memory = device.allocate(2000, "a test").unwrap();
    let arrival = device.copy_ahead(&memory, 500, pinned, 900).unwrap();
    device.admit(&arrival).unwrap();
    let pinned = arrival.reclaim().unwrap();
    let mut back = vec![1; 2000];
    device.download(&memory, 0, &mut back).unwrap();
    assert!(back.iter().enumerate().all(|(at, byte)| *byte == if (500..1400).contains(&at) { 7 } else { 0 }));
    assert!(device.upload(&memory, 1999, &[0; 2]).is_err());
    assert!(device.copy_ahead(&memory, 1500, pinned, 501).is_err());
    assert_eq!(device.allocated(), 2000);
    drop(memory);
    assert_eq!(device.allocated(), 0);
}

/// The C functions: the same results, and what they refuse.
#[test]
#[ignore = "needs the library of emulated kernels: cargo xtask test --only cuda-encode"]
fn the_c_interface() {
    use kronsae::capi::cuda::{
        kronsae_device_latents, kronsae_device_options, kronsae_device_sae_create, kronsae_device_sae_destroy,
        kronsae_encode_cuda, kronsae_encode_cuda_workspace,
    };
    use kronsae::capi::sae::{kronsae_sae_destroy, kronsae_sae_open};
    use kronsae::capi::views::kronsae_activations;
    use std::ptr::{null, null_mut};

    let device = device();
    let mut random = Rng(21);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    let encoder = Encoder::Kron { heads: 30, base: 2, extension: 3 };
    let (d, k, rows) = (12, 9, 5);
    common::write_random_model(&path, encoder, d, Selection::TopK(k), Dtype::F32, &mut random);
    let sae = Sae::open(&path).unwrap();
    let mut values = vec![0.0; rows * d];
    values.fill_with(|| random.unit());
    let batch = Batch::new(&values, Dtype::F32, d, d * 4);

    let c_path = std::ffi::CString::new(path.to_str().unwrap()).unwrap();
    let (mut model, mut handle) = (null_mut(), null_mut());
    // SAFETY: the C functions are called as the header asks, or with what they are to refuse.
    unsafe {
        assert_eq!(kronsae_sae_open(c_path.as_ptr(), null(), &raw mut model, null_mut()), 0);
        let mut options = kronsae_device_options { struct_size: 16, device: 0, compute: 3, tile_rows: 4 };
        assert_eq!(kronsae_device_sae_create(model, &raw const options, &raw mut handle, null_mut()), 1);
        options.compute = 1;
        assert_eq!(kronsae_device_sae_create(model, &raw const options, &raw mut handle, null_mut()), 0);
        let mut needed = 0;
        assert_eq!(kronsae_encode_cuda_workspace(handle, rows, 4, &raw mut needed, null_mut()), 1);
        assert_eq!(kronsae_encode_cuda_workspace(handle, rows, 1, &raw mut needed, null_mut()), 0);

        let x = device.allocate(batch.bytes.len(), "x").unwrap();
        device.upload(&x, 0, &batch.bytes).unwrap();
        let workspace = device.allocate(needed, "workspace").unwrap();
        let buffer = |bytes: usize| device.allocate(bytes, "latents").unwrap();
        let (counts, indices, values) = (buffer(rows * 4), buffer(rows * k * 4), buffer(rows * k * 4));
        let at = |memory: &DeviceMemory| std::ptr::with_exposed_provenance_mut::<u32>(memory.address() as usize);
        let activations = kronsae_activations {
            struct_size: size_of::<kronsae_activations>() as u32,
            dtype: 1,
            data: at(&x).cast(),
            rows,
            d_model: d,
            row_stride: 0,
        };
        let latents = kronsae_device_latents {
            struct_size: size_of::<kronsae_device_latents>() as u32,
            reserved: 0,
            rows,
            capacity: k,
            counts: at(&counts),
            indices: at(&indices),
            values: at(&values).cast(),
            active: null_mut(),
            row_flags: null_mut(),
            skipped_rows: null_mut(),
        };
        let encode = |x: kronsae_activations, to: kronsae_device_latents, bytes: usize| {
            let workspace = at(&workspace).cast();
            kronsae_encode_cuda(handle, &raw const x, &raw const to, workspace, bytes, null_mut(), null_mut())
        };
        for refused in [
            encode(kronsae_activations { rows: rows + 1, ..activations }, latents, needed),
            encode(kronsae_activations { dtype: 9, ..activations }, latents, needed),
            encode(activations, kronsae_device_latents { capacity: k - 1, ..latents }, needed),
            encode(activations, kronsae_device_latents { reserved: 1, ..latents }, needed),
            encode(activations, kronsae_device_latents { counts: null_mut(), ..latents }, needed),
            encode(activations, kronsae_device_latents { values: latents.indices.cast(), ..latents }, needed),
            encode(activations, kronsae_device_latents { indices: at(&x), ..latents }, needed),
            encode(activations, latents, needed - 1),
        ] {
            assert_eq!(refused, 1, "KRONSAE_STATUS_INVALID_ARGUMENT");
        }
        assert_eq!(encode(activations, latents, needed), 0);
        let mut expected = Latents::new(rows, k).unwrap();
        let mut through_rust = DeviceEncoder::new(Arc::new(upload(&device, &sae, Compute::F32, 4)));
        through_rust.encode(batch.view(), &mut expected.as_mut()).unwrap();
        let (counts, indices, values) = (words(&*device, &counts), words(&*device, &indices), words(&*device, &values));
        for row in 0..rows {
            let range = row * k..row * k + counts[row] as usize;
            assert_eq!(&indices[range.clone()], expected.row(row).0);
            let bits: Vec<u32> = expected.row(row).1.iter().map(|v| v.to_bits()).collect();
            assert_eq!(values[range], bits);
        }
        // The model goes first: what was made of it refuses, and can still be destroyed.
        kronsae_sae_destroy(model);
        assert_eq!(encode(activations, latents, needed), 6, "KRONSAE_STATUS_STOPPED");
        kronsae_device_sae_destroy(handle);
    }
}
