//! Checkpoints: everything a run needs to go on as if nothing had happened, in one safetensors file, replaced atomically.

use crate::backend::{Parameter, TrainState};
use crate::data::Normalisation;
use kronsae::sae::Encoder;
use kronsae::tensor_file::{self, TensorDtype, TensorFile, TensorOut};
use kronsae::{Aligned, Error, Result, Status};
use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};

/// The `format` string of a checkpoint.
const FORMAT: &str = "kronsae-checkpoint/1";
/// Checkpoints that are kept: the newest, and one before it in case the disk damages that.
const KEPT: usize = 2;
/// Where its checksum stands in the metadata.
const CHECKSUM: &str = "crc32";

/// What a checkpoint holds beside the state.
#[derive(Debug, Clone, PartialEq)]
pub struct Header {
    /// Steps done.
    pub step: u64,
    /// Tokens left out so far because they were not finite.
    pub skipped: u64,
    /// Seconds of training so far.
    pub seconds: f64,
    /// What must not change between runs: settings, as text.
    pub settings: String,
    /// What must not change between runs: the shards.
    pub data: String,
}

/// Where the checkpoint of a step lies.
fn path_of(folder: &Path, step: u64) -> PathBuf {
    folder.join(format!("step-{step:010}.safetensors"))
}

/// The checkpoints of a folder, oldest first.
///
/// # Errors
/// [`Status::Io`] if the folder exists and cannot be listed.
pub fn list(folder: &Path) -> Result<Vec<PathBuf>> {
    let name = folder.display().to_string();
    let entries = match std::fs::read_dir(folder) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(|e| Error::io("list", &name, &e))?,
    };
    let mut found = Vec::new();
    for entry in entries {
        let path = entry.map_err(|e| Error::io("list", &name, &e))?.path();
        let is_checkpoint = path.file_name().and_then(|n| n.to_str()).is_some_and(|n| {
            n.strip_prefix("step-")
                .and_then(|n| n.strip_suffix(".safetensors"))
                .is_some_and(|n| n.parse::<u64>().is_ok())
        });
        if is_checkpoint {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

/// CRC-32 of all that a checkpoint holds, in the order in which it is written: a bit that flipped on its way to the disk or
/// there is found before it is trained on.
fn checksum(header: &Header, state: &TrainState, normalisation: &Normalisation) -> u32 {
    let mut sum = crc32fast::Hasher::new();
    let Header { step, skipped, seconds, settings, data } = header;
    sum.update(format!("{step} {skipped} {seconds} {} {settings} {data}", state.tokens).as_bytes());
    let mut bytes = Vec::new();
    let mut add = |values: &mut dyn Iterator<Item = [u8; 4]>| {
        bytes.clear();
        bytes.extend(values.flatten());
        sum.update(&bytes);
    };
    for (_, parameter) in state.parameters() {
        for values in [&parameter.value, &parameter.first, &parameter.second] {
            for row in values.chunks_exact(parameter.stride) {
                add(&mut row[..parameter.cols].iter().map(|v| v.to_le_bytes()));
            }
        }
    }
    for counts in [&state.fired_at[..], &state.positive_at, &state.gradient_norms.map(f64::to_bits)] {
        add(&mut counts.iter().flat_map(|v| [*v as u32, (*v >> 32) as u32]).map(u32::to_le_bytes));
    }
    add(&mut normalisation.mean.iter().chain([&normalisation.scale]).map(|v| v.to_le_bytes()));
    sum.finalize()
}

/// Writes a checkpoint into `folder` and removes those older than the last few.
///
/// # Errors
/// [`Status::Io`]: the disk is full, say. Nothing half-written is left and older checkpoints are as they were.
pub fn save(folder: &Path, header: &Header, state: &TrainState, normalisation: &Normalisation) -> Result<()> {
    let path = path_of(folder, header.step);
    let metadata = BTreeMap::from(
        [
            ("format", FORMAT.to_owned()),
            ("step", header.step.to_string()),
            ("tokens", state.tokens.to_string()),
            ("skipped", header.skipped.to_string()),
            ("seconds", header.seconds.to_string()),
            ("settings", header.settings.clone()),
            ("data", header.data.clone()),
            (CHECKSUM, format!("{:08x}", checksum(header, state, normalisation))),
        ]
        .map(|(key, value)| (key.to_owned(), value)),
    );
    let mut tensors = Vec::new();
    for (name, parameter) in state.parameters() {
        for (part, values) in
            [("", &parameter.value), (".first_moment", &parameter.first), (".second_moment", &parameter.second)]
        {
            let rows = move |sink: &mut dyn Write| {
                values
                    .chunks_exact(parameter.stride)
                    .try_for_each(|row| tensor_file::write_f32(sink, &row[..parameter.cols]))
            };
            let shape = [parameter.rows, parameter.cols];
            tensors.push(TensorOut::new(&format!("{name}{part}"), TensorDtype::F32, &shape, Box::new(rows)));
        }
    }
    let integers = |name: &str, values: &[u64]| {
        let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        TensorOut::new(name, TensorDtype::U64, &[values.len()], Box::new(move |sink| sink.write_all(&bytes)))
    };
    tensors.push(integers("fired_at", &state.fired_at));
    tensors.push(integers("positive_at", &state.positive_at));
    tensors.push(integers("gradient_norms", &state.gradient_norms.map(f64::to_bits)));
    tensors.push(TensorOut::f32("normalisation.mean", &[normalisation.mean.len()], &normalisation.mean));
    let scale = [normalisation.scale];
    tensors.push(TensorOut::f32("normalisation.scale", &[1], &scale));
    tensor_file::write(&path, &metadata, tensors)?;

    let all = list(folder)?;
    for old in &all[..all.len().saturating_sub(KEPT)] {
        // Left behind, it costs disk and nothing else.
        let _ = std::fs::remove_file(old);
    }
    Ok(())
}

/// Reads the newest checkpoint of `folder` that is whole; `None` if there is none. A damaged one is passed over, and
/// `damaged` is told about it.
///
/// # Errors
/// [`Status::Io`]; [`Status::OutOfMemory`].
pub fn load_newest(
    folder: &Path,
    encoder: Encoder,
    d: usize,
    damaged: &mut dyn FnMut(&Error),
) -> Result<Option<(Header, TrainState, Normalisation)>> {
    for path in list(folder)?.iter().rev() {
        match load(path, encoder, d) {
            Ok(loaded) => return Ok(Some(loaded)),
            Err(e) if e.status() == Status::Format => damaged(&e),
            Err(e) => return Err(e),
        }
    }
    Ok(None)
}

/// What a checkpoint says of itself, without reading its tensors.
///
/// # Errors
/// [`Status::Io`], [`Status::Format`].
pub fn header(file: &TensorFile<'_>) -> Result<Header> {
    let name = file.name();
    let text = |key: &str| {
        let missing = || Error::format(format!("{name}: `{key}` is missing from its metadata; is this a checkpoint?"));
        file.metadata(key).map(str::to_owned).ok_or_else(missing)
    };
    let format = text("format")?;
    if format != FORMAT {
        return Err(Error::format(format!("{name}: format is `{format}`, this version reads `{FORMAT}`")));
    }
    let bad = |key: &str| Error::format(format!("{name}: `{key}` is not a number"));
    Ok(Header {
        step: text("step")?.parse().map_err(|_| bad("step"))?,
        skipped: text("skipped")?.parse().map_err(|_| bad("skipped"))?,
        seconds: text("seconds")?.parse().map_err(|_| bad("seconds"))?,
        settings: text("settings")?,
        data: text("data")?,
    })
}

fn load(path: &Path, encoder: Encoder, d: usize) -> Result<(Header, TrainState, Normalisation)> {
    let file = TensorFile::open(path)?;
    let header = header(&file)?;
    let mut state = TrainState::empty(encoder, d)?;
    state.tokens = file
        .metadata("tokens")
        .and_then(|t| t.parse().ok())
        .ok_or_else(|| Error::format(format!("{}: `tokens` is not a number", file.name())))?;
    for (name, parameter) in state.parameters_mut() {
        let (rows, cols, stride) = (parameter.rows, parameter.cols, parameter.stride);
        let Parameter { value, first, second, .. } = parameter;
        for (part, to) in [("", value), (".first_moment", first), (".second_moment", second)] {
            read_rows(&file, &format!("{name}{part}"), rows, cols, stride, to)?;
        }
    }
    let integers = |name: &str, to: &mut [u64]| -> Result<()> {
        let mut bytes = vec![0_u8; to.len() * 8];
        check(&file, name, TensorDtype::U64, &[to.len()])?;
        file.read(name, 0, &mut bytes)?;
        to.iter_mut().zip(bytes.as_chunks::<8>().0).for_each(|(t, b)| *t = u64::from_le_bytes(*b));
        Ok(())
    };
    integers("fired_at", &mut state.fired_at)?;
    integers("positive_at", &mut state.positive_at)?;
    let mut norms = [0_u64; 4];
    integers("gradient_norms", &mut norms)?;
    state.gradient_norms = norms.map(f64::from_bits);
    let bad = |what: &str| Error::format(format!("{}: {what}; damaged?", file.name()));
    if state.fired_at.iter().chain(&state.positive_at).any(|&at| at > state.tokens) {
        return Err(bad(&format!("something was alive after the last of its {} tokens", state.tokens)));
    }
    if let Some((name, _)) = state.parameters().iter().find(|(_, p)| p.value.iter().any(|v| !v.is_finite())) {
        return Err(bad(&format!("`{name}` has a value that is not finite")));
    }
    let mut mean = Aligned::zeroed(d.next_multiple_of(16), "the mean")?;
    read_rows(&file, "normalisation.mean", 1, d, d, &mut mean)?;
    let mut scale = Aligned::zeroed(16, "the scale")?;
    read_rows(&file, "normalisation.scale", 1, 1, 1, &mut scale)?;
    if !(mean.iter().all(|v| v.is_finite()) && scale[0].is_finite() && scale[0] > 0.0) {
        return Err(bad("its mean or scale is not finite, or its scale not positive"));
    }
    let normalisation = Normalisation { mean: mean[..d].to_vec(), scale: scale[0] };
    // Those of earlier versions have none.
    if let Some(expected) = file.metadata(CHECKSUM) {
        let found = format!("{:08x}", checksum(&header, &state, &normalisation));
        if found != expected {
            return Err(bad(&format!("its checksum is {found}, it says {expected}")));
        }
    }
    Ok((header, state, normalisation))
}

fn check(file: &TensorFile<'_>, tensor: &str, dtype: TensorDtype, shape: &[usize]) -> Result<()> {
    let info = file.require(tensor)?;
    // A single row is written without its leading 1.
    let same = info.shape == shape || (shape[0] == 1 && info.shape == &shape[1..]);
    if info.dtype != dtype || !same {
        let name = file.name();
        let found = (info.dtype, info.shape);
        return Err(Error::format(format!("{name}: `{tensor}` is {found:?}, the run asks for {:?}", (dtype, shape))));
    }
    Ok(())
}

fn read_rows(
    file: &TensorFile<'_>,
    tensor: &str,
    rows: usize,
    cols: usize,
    stride: usize,
    to: &mut Aligned<f32>,
) -> Result<()> {
    check(file, tensor, TensorDtype::F32, &[rows, cols])?;
    let mut bytes = vec![0_u8; cols * 4];
    for row in 0..rows {
        file.read(tensor, row * cols * 4, &mut bytes)?;
        let to = &mut to[row * stride..][..cols];
        to.iter_mut().zip(bytes.as_chunks::<4>().0).for_each(|(t, b)| *t = f32::from_le_bytes(*b));
    }
    Ok(())
}
