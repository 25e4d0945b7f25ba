//! The frame: lengths, JSON, shapes, offsets.

use crate::raw::{Raw, assemble, load, refused};
use kronsae::{Sae, Status};
use serde_json::{Value, json};

#[test]
fn the_unharmed_files_load() {
    for dtype in ["F32", "BF16", "F16"] {
        load(&Raw::kron(dtype).bytes()).unwrap();
        load(&Raw::dense(dtype).bytes()).unwrap();
    }
}

#[test]
fn truncated_anywhere() {
    let bytes = Raw::dense("BF16").bytes();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    std::fs::write(&path, &bytes).unwrap();
    let file = std::fs::File::options().write(true).open(&path).unwrap();
    for len in (0..bytes.len()).rev() {
        file.set_len(len as u64).unwrap();
        let error = Sae::open(&path).expect_err("a truncated file was accepted");
        assert_eq!(error.status(), Status::Format, "{len} bytes: {error}");
        assert!(error.message().contains("model.safetensors: "), "{len} bytes: {error}");
        assert!(error.message().contains("bytes"), "{len} bytes: {error}");
    }
}

#[test]
fn longer_than_the_header_says() {
    let mut bytes = Raw::kron("F32").bytes();
    bytes.push(0);
    refused(&bytes, &["describes", "holds"]);
}

#[test]
fn header_length_lies() {
    let good = Raw::kron("F32").bytes();
    let header_len = u64::from_le_bytes(good[..8].try_into().unwrap());
    for length in [
        0,
        1,
        header_len - 1,
        header_len + 1,
        good.len() as u64 - 8,
        good.len() as u64 - 7,
        99_999_999,
        100_000_001,
        3 << 30,
        i64::MAX as u64,
        u64::MAX - 7,
        u64::MAX,
    ] {
        let mut bytes = good.clone();
        bytes[..8].copy_from_slice(&length.to_le_bytes());
        let words: &[&str] =
            if length > good.len() as u64 { &["header length", &length.to_string()] } else { &["header"] };
        refused(&bytes, words);
    }
}

/// The file really is that long (sparse), so that only the limit protects the host.
#[test]
fn a_header_of_gigabytes() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    std::fs::write(&path, (3_u64 << 30).to_le_bytes()).unwrap();
    std::fs::File::options().write(true).open(&path).unwrap().set_len(4 << 30).unwrap();
    let error = Sae::open(&path).unwrap_err();
    assert_eq!(error.status(), Status::Format);
    assert!(error.message().contains("3221225472") && error.message().contains("limit"), "{error}");
}

#[test]
fn headers_that_are_not_json() {
    let raw = Raw::kron("F32");
    let (header, data) = (Value::Object(raw.header()).to_string(), raw.data());
    let mut bad = vec![
        b"".to_vec(),
        b"[]".to_vec(),
        b"null".to_vec(),
        b"{".to_vec(),
        vec![0; 64],
        vec![b'['; 100_000],
        [b"{\"a\":".repeat(50_000), b"1".to_vec()].concat(),
        format!("{header}{header}").into_bytes(),
        header.replace("kron", "kr\u{0}n").into_bytes(),
    ];
    let mut not_utf8 = header.clone().into_bytes();
    let at = header.find("kronsae").unwrap();
    not_utf8[at] = 0xFF;
    bad.push(not_utf8);
    for header in bad {
        refused(&assemble(&header, &data), &["not a valid safetensors header"]);
    }
}

/// Replaces one field of one tensor's entry.
fn with_field(raw: &Raw, tensor: &str, field: &str, value: Value) -> Vec<u8> {
    let mut header = raw.header();
    header[tensor][field] = value;
    assemble(Value::Object(header).to_string().as_bytes(), &raw.data())
}

#[test]
fn offsets_that_lie() {
    let raw = Raw::kron("F32");
    let header = raw.header();
    let weight = header["encoder.weight"]["data_offsets"].clone();
    let (start, end) = (weight[0].as_u64().unwrap(), weight[1].as_u64().unwrap());
    let bias = &header["encoder.bias"]["data_offsets"];
    for offsets in [
        json!([start, end + 4]),
        json!([start, end - 4]),
        json!([start + 4, end + 4]),
        json!([end, start]),
        bias.clone(), // on top of another tensor
        json!([0, u64::MAX]),
        json!([u64::MAX - 299, u64::MAX]),
        json!([1_u64 << 40, (1_u64 << 40) + (end - start)]),
        json!([-4, end]),
        json!([0.5, end]),
        json!([start]),
        json!([start, end, end]),
        json!("0"),
        Value::Null,
    ] {
        refused(&with_field(&raw, "encoder.weight", "data_offsets", offsets), &["header"]);
    }
}

#[test]
fn shapes_that_lie() {
    let raw = Raw::kron("F32");
    // The frame is inconsistent in itself.
    for shape in [
        json!([15, 6]),
        json!([15]),
        json!([]),
        json!([0, 5]),
        json!([u64::MAX, 5]),
        json!([1_u64 << 32, 1_u64 << 32, 1_u64 << 32]),
        json!([-15, -5]),
        json!([15.5, 5]),
        json!("15x5"),
    ] {
        refused(&with_field(&raw, "encoder.weight", "shape", shape), &["header"]);
    }
    // The frame is sound; the config asks for another shape.
    for (tensor, shape) in [
        ("encoder.weight", json!([5, 15])),
        ("encoder.weight", json!([75])),
        ("encoder.weight", json!([15, 5, 1])),
        ("encoder.bias", json!([15, 1])),
        ("decoder.weight", json!([5, 18])),
        ("decoder.bias", json!([1, 5])),
    ] {
        refused(&with_field(&raw, tensor, "shape", shape), &[tensor, "shape", "config asks for"]);
    }
}

#[test]
fn the_same_tensor_twice() {
    let raw = Raw::kron("F32");
    let header = Value::Object(raw.header()).to_string();
    let twice = header.replacen("\"encoder.bias\"", "\"encoder.weight\"", 1);
    refused(&assemble(twice.as_bytes(), &raw.data()), &["header"]);
}
