//! A system that refuses: paths that are no files, files that change under the reader, memory that is not there.

use crate::raw::Raw;
use crate::{in_a_child, limit};
use kronsae::tensor_file::TensorFile;
use kronsae::{Aligned, Latents, Sae, Status};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

#[track_caller]
fn io_error(path: &Path, words: &[&str]) {
    let error = Sae::open(path).expect_err("this is no file");
    assert_eq!(error.status(), Status::Io, "{error}");
    assert!(error.message().starts_with(&path.display().to_string()), "{error}");
    for word in words {
        assert!(error.message().contains(word), "`{word}` is not in: {error}");
    }
}

#[test]
fn paths_that_are_no_files() {
    let folder = tempfile::tempdir().unwrap();
    io_error(folder.path(), &["regular file"]);
    io_error(&folder.path().join("missing"), &["cannot open", "No such file"]);
    io_error(&folder.path().join("missing/model.safetensors"), &["cannot open"]);
    io_error(Path::new("/dev/zero"), &["regular file"]);
    io_error(Path::new(""), &["cannot open"]);

    // Nobody ever writes to it: opening it would wait for ever.
    let fifo = folder.path().join("fifo");
    let name = std::ffi::CString::new(fifo.as_os_str().as_bytes()).unwrap();
    // SAFETY: a valid C string.
    assert_eq!(unsafe { libc::mkfifo(name.as_ptr(), 0o600) }, 0);
    io_error(&fifo, &["regular file"]);

    let loop_link = folder.path().join("loop");
    std::os::unix::fs::symlink(&loop_link, &loop_link).unwrap();
    io_error(&loop_link, &["cannot open"]);

    let file = folder.path().join("model.safetensors");
    std::fs::write(&file, Raw::kron("F32").bytes()).unwrap();
    io_error(&file.join("below"), &["cannot open"]);
    let link = folder.path().join("link");
    std::os::unix::fs::symlink(&file, &link).unwrap();
    Sae::open(&link).unwrap();
}

#[test]
fn a_file_that_shrinks_after_it_was_opened() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    let bytes = Raw::kron("F32").bytes();
    std::fs::write(&path, &bytes).unwrap();
    let file = TensorFile::open(&path).unwrap();
    let mut out = vec![0; file.require("decoder.weight").unwrap().bytes];
    file.read("decoder.weight", 0, &mut out).unwrap();
    std::fs::File::options().write(true).open(&path).unwrap().set_len(bytes.len() as u64 - 30).unwrap();
    let error = file.read("decoder.weight", 0, &mut out).unwrap_err();
    assert_eq!(error.status(), Status::Format);
    assert!(error.message().contains("decoder.weight") && error.message().contains("shorter"), "{error}");
    assert!(error.message().starts_with(&path.display().to_string()), "{error}");
    // What is still there can still be read.
    file.read("encoder.weight", 0, &mut out[..40]).unwrap();
    // And nothing can be read outside its tensor.
    for (offset, len) in [(0, 301), (300, 1), (usize::MAX, 1), (usize::MAX - 3, 8)] {
        let error = file.read("encoder.weight", offset, &mut vec![0; len]).unwrap_err();
        assert_eq!(error.status(), Status::Format, "{error}");
    }
}

/// Another process rewrites the file in place, over and over, while it is opened.
#[test]
fn a_file_that_changes_while_it_is_read() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    let bytes = Raw::kron("F32").bytes();
    std::fs::write(&path, &bytes).unwrap();
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let file = std::fs::File::options().write(true).open(&path).unwrap();
            for round in 0_usize.. {
                if stop.load(Ordering::Relaxed) {
                    break;
                }
                file.set_len((round * 37 % bytes.len()) as u64).unwrap();
                std::fs::write(&path, &bytes).unwrap();
            }
        });
        let (mut loaded, mut refused) = (0, 0);
        let start = std::time::Instant::now();
        while start.elapsed() < std::time::Duration::from_millis(500) {
            match Sae::open(&path) {
                Ok(_) => loaded += 1,
                Err(error) => {
                    assert_eq!(error.status(), Status::Format, "{error}");
                    refused += 1;
                }
            }
        }
        stop.store(true, Ordering::Relaxed);
        assert!(loaded + refused > 0);
    });
    assert!(Sae::open(&path).is_ok());
}

#[test]
fn sizes_that_cannot_be_allocated() {
    for (rows, capacity) in [(usize::MAX, 1), (1 << 40, 1 << 40), (1 << 46, 8)] {
        assert_eq!(Latents::new(rows, capacity).unwrap_err().status(), Status::OutOfMemory);
    }
    for len in [usize::MAX, usize::MAX / 4, isize::MAX as usize / 4, 1 << 50] {
        let error = Aligned::<f32>::zeroed(len, "the test's floats").unwrap_err();
        assert_eq!(error.status(), Status::OutOfMemory);
        assert!(error.message().contains("the test's floats"), "{error}");
    }
}

/// A file of 8 GB (sparse) that is sound in all its sizes, in a process that may have 1 GB.
#[test]
fn a_model_larger_than_memory() {
    in_a_child("system::a_model_larger_than_memory", || {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.safetensors");
        let (rows, latents, d) = (1_usize << 20, 1_usize << 20, 1024_usize);
        let config =
            r#"{"encoder":"kron","d_model":1024,"heads":262144,"base":2,"extension":2,"selection":{"topk":4}}"#;
        let mut end = 0;
        let mut entry = |shape: &[usize]| {
            let start = end;
            end += 4 * shape.iter().product::<usize>();
            serde_json::json!({"dtype": "F32", "shape": shape, "data_offsets": [start, end]})
        };
        let header = serde_json::json!({
            "__metadata__": {"format": "kronsae/1", "config": config},
            "encoder.weight": entry(&[rows, d]),
            "encoder.bias": entry(&[rows]),
            "decoder.weight": entry(&[latents, d]),
            "decoder.bias": entry(&[d]),
        });
        let header = crate::raw::assemble(header.to_string().as_bytes(), &[]);
        std::fs::write(&path, &header).unwrap();
        let file = std::fs::File::options().write(true).open(&path).unwrap();
        file.set_len((header.len() + end) as u64).unwrap();
        limit(libc::RLIMIT_AS, 1 << 30);
        let error = Sae::open(&path).unwrap_err();
        assert_eq!(error.status(), Status::OutOfMemory, "{error}");
        assert!(error.message().contains("encoder.weight") && error.message().contains("4294967296"), "{error}");
        assert!(error.message().contains("model.safetensors"), "{error}");
    });
}
