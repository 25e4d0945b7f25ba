//! Writing: a file is complete and on disk, or the one before it is untouched and nothing else is left.

use crate::common::{Rng, write_random_model};
use crate::raw::Raw;
use crate::{in_a_child, limit};
use kronsae::sae::{Encoder, Selection};
use kronsae::tensor_file::{self, TensorDtype, TensorOut};
use kronsae::{Dtype, Sae, Status};
use std::collections::BTreeMap;
use std::path::Path;

fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// A folder with a file that must survive, and a check that it did.
struct Old(tempfile::TempDir, Vec<u8>);

impl Old {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let bytes = Raw::kron("F32").bytes();
        std::fs::write(folder.path().join("model.safetensors"), &bytes).unwrap();
        Old(folder, bytes)
    }

    fn path(&self) -> std::path::PathBuf {
        self.0.path().join("model.safetensors")
    }

    #[track_caller]
    fn check(&self) {
        assert_eq!(names(self.0.path()), ["model.safetensors"], "something was left behind");
        assert!(std::fs::read(self.path()).unwrap() == self.1, "the old file was touched");
    }
}

/// The limit on file sizes stands for a full disk: the write fails somewhere in the middle.
#[test]
fn a_disk_that_fills() {
    in_a_child("writing::a_disk_that_fills", || {
        let old = Old::new();
        // SAFETY: SIG_IGN is a valid disposition; with it a write past the limit fails instead of killing the process.
        unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_IGN) };
        limit(libc::RLIMIT_FSIZE, 3_000_000);
        let zeros = vec![0.0; 2_000_000];
        // Fails while the tensor is written; while the last buffer is flushed; before anything is written to disk.
        for count in [2_000_000, 751_000] {
            let tensors = vec![TensorOut::f32("x", &[count], &zeros[..count])];
            let error = tensor_file::write(&old.path(), &BTreeMap::new(), tensors).unwrap_err();
            assert_eq!(error.status(), Status::Io, "{error}");
            assert!(error.message().starts_with(&old.path().display().to_string()), "{error}");
            assert!(error.message().contains("cannot write"), "{error}");
            old.check();
        }
        assert!(Sae::open(old.path()).is_ok());
        // What fits is written all the same.
        tensor_file::write(&old.path(), &BTreeMap::new(), vec![TensorOut::f32("x", &[9], &zeros[..9])]).unwrap();
    });
}

#[test]
fn a_source_that_fails_or_lies() {
    let old = Old::new();
    let source = |bytes: usize, fail: bool| {
        let source = move |sink: &mut dyn std::io::Write| {
            sink.write_all(&vec![7; bytes])?;
            if fail { Err(std::io::Error::other("the source broke")) } else { Ok(()) }
        };
        vec![TensorOut::new("x", TensorDtype::F32, &[100, 10], Box::new(source))]
    };
    for (bytes, fail, status, word) in [
        (3996, false, Status::InvalidArgument, "3996"),
        (4004, false, Status::InvalidArgument, "4004"),
        (0, false, Status::InvalidArgument, "4000"),
        (2000, true, Status::Io, "the source broke"),
    ] {
        let error = tensor_file::write(&old.path(), &BTreeMap::new(), source(bytes, fail)).unwrap_err();
        assert_eq!(error.status(), status, "{error}");
        assert!(error.message().contains(word), "{error}");
        old.check();
    }
    let panics = std::panic::catch_unwind(|| {
        tensor_file::replace(&old.path(), |sink| {
            sink.write_all(b"half")?;
            panic!("planted")
        })
    });
    assert!(panics.is_err());
    old.check();
    let overflowing = vec![TensorOut::bytes("x", TensorDtype::F32, &[usize::MAX, 3], &[])];
    let error = tensor_file::write(&old.path(), &BTreeMap::new(), overflowing).unwrap_err();
    assert_eq!(error.status(), Status::InvalidArgument, "{error}");
    old.check();
}

#[test]
fn targets_that_cannot_be_replaced() {
    let folder = tempfile::tempdir().unwrap();
    let target = folder.path().join("model.safetensors");
    std::fs::create_dir(&target).unwrap();
    for path in [&target, &folder.path().join("missing/model.safetensors"), Path::new("/proc/model.safetensors")] {
        let error = tensor_file::replace(path, |sink| sink.write_all(b"x")).unwrap_err();
        assert_eq!(error.status(), Status::Io, "{error}");
        assert!(error.message().starts_with(&path.display().to_string()), "{error}");
    }
    assert_eq!(names(folder.path()), ["model.safetensors"]);
    let error = tensor_file::replace(Path::new("/"), |_| Ok(())).unwrap_err();
    assert_eq!(error.status(), Status::InvalidArgument);
}

/// Readers meanwhile see the old file or the new one, whole; writers at the same time do not mix.
#[test]
fn readers_and_writers_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    let write = |seed: u64| {
        let shape = Encoder::Kron { heads: 200 + seed as usize, base: 2, extension: 3 };
        write_random_model(&path, shape, 16, Selection::TopK(4), Dtype::F32, &mut Rng(seed));
    };
    write(0);
    std::thread::scope(|scope| {
        let writers: Vec<_> = (1..4).map(|seed| scope.spawn(move || (0..8).for_each(|_| write(seed)))).collect();
        while !writers.iter().all(std::thread::ScopedJoinHandle::is_finished) {
            Sae::open(&path).unwrap();
        }
    });
    assert_eq!(names(folder.path()), ["model.safetensors"]);
}

/// Elements may be smaller than a byte; a tensor never is.
#[test]
fn tensors_of_half_bytes() {
    let old = Old::new();
    let four_bit = |bytes: &'static [u8]| vec![TensorOut::bytes("x", TensorDtype::F4, &[3, 2], bytes)];
    let error = tensor_file::write(&old.path(), &BTreeMap::new(), four_bit(&[1, 2])).unwrap_err();
    assert_eq!(error.status(), Status::InvalidArgument, "{error}");
    old.check();
    tensor_file::write(&old.path(), &BTreeMap::new(), four_bit(&[1, 2, 3])).unwrap();
    let file = tensor_file::TensorFile::open(&old.path()).unwrap();
    let mut bytes = [0; 3];
    file.read("x", 0, &mut bytes).unwrap();
    assert_eq!((file.require("x").unwrap().bytes, bytes), (3, [1, 2, 3]));
    let odd = vec![TensorOut::bytes("x", TensorDtype::F4, &[3], &[1])];
    let error = tensor_file::write(&old.path(), &BTreeMap::new(), odd).unwrap_err();
    assert_eq!(error.status(), Status::InvalidArgument, "{error}");
}

/// Who may read a file does not change when it is written anew.
#[test]
fn permissions_survive() {
    use std::os::unix::fs::PermissionsExt;
    let old = Old::new();
    for mode in [0o600, 0o640, 0o444] {
        std::fs::set_permissions(old.path(), std::fs::Permissions::from_mode(mode)).unwrap();
        tensor_file::replace(&old.path(), |sink| sink.write_all(b"new")).unwrap();
        assert_eq!(std::fs::metadata(old.path()).unwrap().permissions().mode() & 0o777, mode);
    }
}

/// A private file is its owner's alone from the first byte on, whatever the one it replaces allowed.
#[test]
fn private_files() {
    use std::os::unix::fs::PermissionsExt;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("shard.safetensors");
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    std::fs::write(&path, "readable").unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
    let source = |sink: &mut dyn std::io::Write| {
        let temporary = names(folder.path()).into_iter().find(|name| name.ends_with(".tmp")).expect("a temporary file");
        assert_eq!(mode(&folder.path().join(temporary)), 0o600);
        sink.write_all(&[0; 4])
    };
    let tensors = vec![TensorOut::new("x", TensorDtype::F32, &[1], Box::new(source))];
    tensor_file::write_private(&path, &BTreeMap::new(), tensors).unwrap();
    assert_eq!(mode(&path), 0o600);
    // Opened as any other.
    tensor_file::TensorFile::open(&path).unwrap();
}
