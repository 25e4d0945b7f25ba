//! Hostile data and hostile disks: each gets an error that names the file, what was found and what was expected; nothing
//! crashes, nothing is half-written, nothing is lost.

mod fixtures;

use fixtures::{Rng, activations, write_shard, write_shards};
use kronsae::tensor_file::{self, TensorDtype, TensorOut};
use std::collections::BTreeMap;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Output};

const D: usize = 16;

fn kronsae(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_kronsae"));
    command.args(args);
    command
}

fn train(data: &Path, out: &Path) -> Command {
    let mut command =
        kronsae(&["train", "--heads", "8", "--k", "4", "--tokens", "2000", "--batch", "100", "--threads", "2"]);
    command.arg("--data").arg(data).arg("--out").arg(out);
    command
}

fn message(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// The command must fail with an ordinary error that contains all of `parts`.
fn fails(command: &mut Command, parts: &[&str]) {
    let output = command.output().unwrap();
    let message = message(&output);
    assert_eq!(output.status.code(), Some(1), "{message}");
    for part in parts {
        assert!(message.contains(part), "`{part}` is not in: {message}");
    }
    assert!(!message.contains("panicked"), "{message}");
}

fn write(path: &Path, format: &str, dtype: TensorDtype, shape: &[usize], bytes: &[u8]) {
    let metadata = BTreeMap::from([("format".to_owned(), format.to_owned())]);
    tensor_file::write(path, &metadata, vec![TensorOut::bytes("activations", dtype, shape, bytes)]).unwrap();
}

#[test]
fn shards_that_are_not_what_they_should_be() {
    let folder = tempfile::tempdir().unwrap();
    let (data, out) = (folder.path().join("data"), folder.path().join("out"));
    std::fs::create_dir(&data).unwrap();
    fails(&mut train(&data, &out), &["data", "no .safetensors file"]);
    fails(&mut train(&folder.path().join("nowhere"), &out), &["nowhere", "cannot open"]);
    fails(&mut kronsae(&["train", "--out", "x"]), &["--data is missing"]);

    let shard = data.join("a.safetensors");
    let bytes = vec![0_u8; 100 * D * 4];
    let case = |path: &Path, parts: &[&str]| {
        fails(&mut train(&data, &out), parts);
        std::fs::remove_file(path).unwrap();
        assert!(!out.join("model.safetensors").exists());
    };
    write(&shard, "activations/2", TensorDtype::F32, &[100, D], &bytes);
    case(&shard, &["a.safetensors", "activations/2", "activations/1"]);
    write(&shard, "activations/1", TensorDtype::I32, &[100, D], &bytes);
    case(&shard, &["a.safetensors", "I32", "expected F32, F16 or BF16"]);
    write(&shard, "activations/1", TensorDtype::F32, &[100 * D], &bytes);
    case(&shard, &["a.safetensors", "expected [tokens, d_model]"]);
    write(&shard, "activations/1", TensorDtype::F32, &[0, D], &[]);
    case(&shard, &["a.safetensors", "no tokens"]);
    write(&shard, "activations/1", TensorDtype::F32, &[100, D], &bytes);
    case(&shard, &["no variance"]);
    std::fs::write(&shard, b"not a safetensors file at all").unwrap();
    case(&shard, &["a.safetensors", "header length"]);
    let nan: Vec<u8> = (0..100 * D).flat_map(|_| f32::NAN.to_le_bytes()).collect();
    write(&shard, "activations/1", TensorDtype::F32, &[100, D], &nan);
    case(&shard, &["every token", "NaN"]);

    // truncated
    let mut rng = Rng(1);
    write_shard(&shard, &activations(100, D, &mut rng), D, None);
    let whole = std::fs::read(&shard).unwrap();
    std::fs::write(&shard, &whole[..whole.len() - 7]).unwrap();
    case(&shard, &["a.safetensors", "truncated"]);

    // two widths
    write_shard(&shard, &activations(100, D, &mut rng), D, None);
    let other = data.join("b.safetensors");
    write_shard(&other, &activations(100, D + 1, &mut rng), D + 1, None);
    case(&other, &["b.safetensors", "d_model is 17, but 16", "a.safetensors"]);
}

#[test]
fn settings_out_of_range() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    std::fs::create_dir(&data).unwrap();
    write_shards(&data, &activations(400, D, &mut Rng(2)), D, 400);
    let out = folder.path().join("out");
    for (args, parts) in [
        (&["--k", "0"][..], &["--k 0", "expected 1 to 256"][..]),
        (&["--k", "257"], &["--k 257", "256"]),
        (&["--heads", "0"], &["heads 0"]),
        (&["--heads", "4611686018427387904"], &["more than"]),
        (&["--latents", "64"], &["--latents goes with --encoder dense"]),
        (&["--batch", "0"], &["--batch 0"]),
        (&["--lr=-1"], &["--lr -1"]),
        (&["--hold-out", "400"], &["--hold-out 400", "400 tokens"]),
        (&["--threads", "100000"], &["threads = 100000"]),
    ] {
        let mut command = kronsae(&["train", "--tokens", "1000"]);
        fails(command.arg("--data").arg(&data).arg("--out").arg(&out).args(args), parts);
        let _ = std::fs::remove_dir_all(&out);
    }
    let config = folder.path().join("config.toml");
    std::fs::write(&config, "learning_rate = 3\n").unwrap();
    let mut command = kronsae(&["train"]);
    fails(command.arg("--out").arg(&out).arg("--config").arg(&config), &["config.toml", "learning_rate"]);
}

#[test]
fn tokens_that_are_not_finite_are_counted_and_skipped() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    std::fs::create_dir(&data).unwrap();
    let mut values = activations(500, D, &mut Rng(3));
    for row in [0, 70, 71, 499] {
        values[row * D + row % D] = if row == 70 { f32::INFINITY } else { f32::NAN };
    }
    write_shards(&data, &values, D, 200);
    let out = folder.path().join("out");
    let output = train(&data, &out).args(["--hold-out", "0", "--json"]).output().unwrap();
    assert!(output.status.success(), "{}", message(&output));
    let text = String::from_utf8(output.stdout).unwrap();
    let result: serde_json::Value = serde_json::from_str(text.lines().last().unwrap()).unwrap();
    // four passes over 500 tokens of which four are not finite
    assert_eq!(result["skipped_tokens"], 16);
    assert_eq!(result["non_finite_tokens"], 4);
    assert!(result["explained_variance"]["pooled"].as_f64().unwrap().is_finite());
}

/// Makes every file write past `bytes` fail, as on a full disk.
fn with_full_disk(command: &mut Command, bytes: u64) -> &mut Command {
    // SAFETY: only async-signal-safe calls between fork and exec.
    unsafe {
        command.pre_exec(move || {
            libc::signal(libc::SIGXFSZ, libc::SIG_IGN);
            let limit = libc::rlimit { rlim_cur: bytes, rlim_max: bytes };
            match libc::setrlimit(libc::RLIMIT_FSIZE, &raw const limit) {
                0 => Ok(()),
                _ => Err(std::io::Error::last_os_error()),
            }
        })
    }
}

#[test]
fn a_disk_that_fills() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    std::fs::create_dir(&data).unwrap();
    write_shards(&data, &activations(400, D, &mut Rng(4)), D, 400);
    let files = |out: &Path| -> Vec<String> {
        let list = |folder: &Path| std::fs::read_dir(folder).into_iter().flatten().flatten().map(|e| e.file_name());
        let all = list(out).chain(list(&out.join("checkpoints")));
        all.map(|n| n.into_string().unwrap()).filter(|n| n.contains("safetensors")).collect()
    };
    // Parameters are 8*8*16 + 8*16*16 elements, so a model is about 13 KB and a checkpoint three times that. Between the
    // two: no checkpoint can be written, training goes on and says so, and the model is written.
    let out = folder.path().join("no-checkpoints");
    let output = with_full_disk(&mut train(&data, &out), 32_000).output().unwrap();
    assert!(output.status.success(), "{}", message(&output));
    assert!(message(&output).contains("no checkpoint at step"), "{}", message(&output));
    assert_eq!(files(&out), ["model.safetensors"]);

    // No room for the model either: an error, and nothing half-written.
    let out = folder.path().join("nothing");
    fails(with_full_disk(&mut train(&data, &out), 9_000), &["model.safetensors", "cannot write"]);
    assert!(files(&out).is_empty(), "{:?}", files(&out));

    // With room again, the same run goes through.
    assert!(train(&data, &out).arg("--resume").status().unwrap().success());
    assert!(files(&out).contains(&"model.safetensors".to_owned()));
}

#[test]
fn a_shard_that_shrinks_while_it_is_read() {
    use kronsae_trainer::data::Dataset;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.safetensors");
    write_shard(&path, &activations(100, D, &mut Rng(5)), D, None);
    let data = Dataset::open(&[&path]).unwrap();
    let mut out = vec![0.0; 100 * D];
    data.read(0, 100, &mut out).unwrap();
    std::fs::File::options().write(true).open(&path).unwrap().set_len(2000).unwrap();
    let error = data.read(0, 100, &mut out).unwrap_err();
    assert_eq!(error.status(), kronsae::Status::Format);
    assert!(error.message().contains("a.safetensors") && error.message().contains("became shorter"), "{error}");
}

/// A shard whose rows are wider than memory is refused like any other size that cannot be had.
#[test]
fn rows_wider_than_memory() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    std::fs::create_dir(&data).unwrap();
    let path = data.join("wide.safetensors");
    let d = 1_usize << 22;
    let header = serde_json::json!({
        "__metadata__": {"format": "activations/1"},
        "activations": {"dtype": "F32", "shape": [2, d], "data_offsets": [0, 8 * d]},
    })
    .to_string();
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    std::fs::write(&path, &bytes).unwrap();
    // Sparse: it takes no disk.
    std::fs::File::options().write(true).open(&path).unwrap().set_len((bytes.len() + 8 * d) as u64).unwrap();
    let limited = |command: &mut Command| {
        // SAFETY: only async-signal-safe calls between fork and exec.
        unsafe {
            command.pre_exec(|| {
                let limit = libc::rlimit { rlim_cur: 700 << 20, rlim_max: 700 << 20 };
                match libc::setrlimit(libc::RLIMIT_AS, &raw const limit) {
                    0 => Ok(()),
                    _ => Err(std::io::Error::last_os_error()),
                }
            });
        }
    };
    let mut command = train(&data, &folder.path().join("out"));
    limited(command.args(["--hold-out", "1"]));
    fails(&mut command, &["cannot allocate"]);
    let model = fixtures::write_model(
        folder.path(),
        kronsae::sae::Encoder::Dense { latents: 12 },
        D,
        kronsae::sae::Selection::TopK(2),
        &mut Rng(6),
    );
    for verb in ["eval", "calibrate"] {
        let mut command = kronsae(&[verb]);
        limited(command.arg("--model").arg(&model).arg("--data").arg(&data).args(["--threads", "2"]));
        fails(&mut command, &["d_model 4194304, the model expects 16"]);
    }
}

/// Numbers that no run wrote are found before they are trusted: an older checkpoint is taken instead.
#[test]
fn a_checkpoint_whose_numbers_lie() {
    use kronsae_trainer::backend::TrainState;
    use kronsae_trainer::checkpoint::{Header, load_newest, save};
    use kronsae_trainer::data::Normalisation;
    let encoder = kronsae::sae::Encoder::Kron { heads: 2, base: 2, extension: 2 };
    let normalisation = Normalisation { mean: vec![0.5; D], scale: 2.0 };
    let header =
        |step| Header { step, skipped: 0, seconds: 0.0, settings: "settings".to_owned(), data: "data".to_owned() };
    let lies: [fn(&mut TrainState, &mut Normalisation); 6] = [
        |state, _| state.fired_at[3] = state.tokens + 1,
        |state, _| state.positive_at[3] = u64::MAX,
        |state, _| state.encoder_weight.value[0] = f32::NAN,
        |state, _| state.decoder_bias.value[0] = f32::INFINITY,
        |_, normalisation| normalisation.scale = 0.0,
        |_, normalisation| normalisation.mean[1] = f32::NAN,
    ];
    for (at, lie) in lies.into_iter().enumerate() {
        let folder = tempfile::tempdir().unwrap();
        let mut state = TrainState::new(encoder, D, 1).unwrap();
        state.tokens = 100;
        save(folder.path(), &header(1), &state, &normalisation).unwrap();
        let mut wrong = normalisation.clone();
        lie(&mut state, &mut wrong);
        save(folder.path(), &header(2), &state, &wrong).unwrap();
        let mut told = Vec::new();
        let loaded = load_newest(folder.path(), encoder, D, &mut |e| told.push(e.to_string())).unwrap();
        assert_eq!(loaded.unwrap().0.step, 1, "lie {at} was believed");
        assert!(told.len() == 1 && told[0].contains("step-0000000002"), "{told:?}");
    }
}

/// A bit that flipped changes no length and need not be absurd.
#[test]
fn a_checkpoint_with_a_flipped_bit_is_passed_over() {
    use kronsae_trainer::backend::TrainState;
    use kronsae_trainer::checkpoint::{Header, list, load_newest, save};
    use kronsae_trainer::data::Normalisation;
    let encoder = kronsae::sae::Encoder::Kron { heads: 2, base: 2, extension: 2 };
    let normalisation = Normalisation { mean: vec![0.5; D], scale: 2.0 };
    let header =
        |step| Header { step, skipped: 0, seconds: 0.125, settings: "settings".to_owned(), data: "data".to_owned() };
    let folder = tempfile::tempdir().unwrap();
    let mut state = TrainState::new(encoder, D, 1).unwrap();
    state.tokens = 100;
    save(folder.path(), &header(1), &state, &normalisation).unwrap();
    save(folder.path(), &header(2), &state, &normalisation).unwrap();
    let newest = list(folder.path()).unwrap().pop().unwrap();
    let whole = std::fs::read(&newest).unwrap();
    let start = 8 + u64::from_le_bytes(whole[..8].try_into().unwrap()) as usize;
    let mut told = 0;
    for at in (start..whole.len()).step_by(13) {
        let mut damaged = whole.clone();
        damaged[at] ^= 1;
        std::fs::write(&newest, damaged).unwrap();
        let loaded = load_newest(folder.path(), encoder, D, &mut |_| told += 1).unwrap();
        assert_eq!(loaded.unwrap().0.step, 1, "byte {at} was believed");
    }
    assert!(told > 20, "{told}");
    std::fs::write(&newest, whole).unwrap();
    let loaded = load_newest(folder.path(), encoder, D, &mut |e| panic!("{e}")).unwrap();
    assert_eq!(loaded.unwrap().0.step, 2);
}

/// What training spoilt is not written: the model file is valid or not there.
#[test]
fn weights_that_are_not_finite_are_not_written() {
    use kronsae::sae::{Config, Encoder, Selection};
    use kronsae_trainer::backend::TrainState;
    use kronsae_trainer::data::Normalisation;
    use kronsae_trainer::fold::Folded;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    let encoder = Encoder::Kron { heads: 2, base: 2, extension: 2 };
    let config = Config::new(encoder, D, Selection::TopK(2), 1.0).unwrap();
    let spoil: [fn(&mut TrainState); 5] = [
        |state| state.encoder_weight.value[3] = f32::NAN,
        // Finite, but not when divided by the scale.
        |state| state.encoder_weight.value[3] = f32::MAX,
        |state| state.encoder_bias.value[1] = f32::INFINITY,
        |state| state.decoder_weight.value[2] = f32::NAN,
        |state| state.decoder_bias.value[2] = f32::NAN,
    ];
    for dtype in [kronsae::Dtype::F32, kronsae::Dtype::Bf16] {
        for (at, spoil) in spoil.iter().enumerate() {
            let mut state = TrainState::new(encoder, D, 1).unwrap();
            spoil(&mut state);
            let normalisation = Normalisation { mean: vec![0.5; D], scale: 0.25 };
            let written = Folded::new(&state, &normalisation, dtype).and_then(|f| f.write(&state, &config, &path));
            assert!(written.is_err() && !path.exists(), "case {at}: a spoilt model was written");
        }
    }
}
