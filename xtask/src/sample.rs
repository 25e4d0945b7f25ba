//! `cargo xtask sample FOLDER`: cuts the bundled sample in `data/sample` from a folder of activation shards.
//!
//! Every sequence of every shard gives one passage of [`PASSAGE`] consecutive tokens, so that the sample is spread over
//! all texts. Every [`HELD_OUT_EVERY`]th sequence is held out: no token of it is in the training files. Passages start
//! behind the end of a line or a sentence where one is near, and stay [`GAP`] tokens away from both ends of a held-out
//! sequence, so that none touches a sequence that continues the same text. Token runs that a held-out passage shares
//! with a training passage are counted and must be rare. The result is a function of the shards alone.

use kronsae::tensor_file::{self, TensorDtype, TensorFile, TensorOut};
use std::collections::{BTreeMap, HashSet};
use std::ops::Range;
use std::path::Path;

/// Tokens of a passage. 233 sequences of them are about 28.5 MB at d_model = 576 in F16.
const PASSAGE: usize = 103;
/// One sequence in this many is held out: 11 % of the tokens.
const HELD_OUT_EVERY: usize = 9;
/// Tokens between a held-out passage and either end of its sequence.
const GAP: usize = 64;
/// How far a passage may be moved forward to start behind the end of a line or sentence.
const SEARCH: usize = 24;
/// A token run of this length in both halves counts as shared text.
const SHARED_RUN: usize = 12;

/// The tensors of a shard that have one entry a token, with the bytes of one.
const PER_TOKEN: [(&str, TensorDtype, usize); 3] =
    [("token_ids", TensorDtype::I32, 4), ("positions", TensorDtype::I32, 4), ("sequence_ids", TensorDtype::I32, 4)];

/// Cuts the sample of the shards in `from` into `to`.
///
/// # Errors
/// A sentence naming the file and what is wrong with it.
pub(crate) fn run(from: &Path, to: &Path) -> Result<(), String> {
    let mut paths: Vec<_> = std::fs::read_dir(from)
        .map_err(|e| format!("{}: cannot list: {e}", from.display()))?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.extension().is_some_and(|e| e == "safetensors"))
        .collect();
    paths.sort();
    if paths.is_empty() {
        return Err(format!("{}: no .safetensors file in this folder", from.display()));
    }
    std::fs::create_dir_all(to).map_err(|e| format!("{}: cannot create: {e}", to.display()))?;

    let mut held_out = Piece::default();
    let mut train_runs = HashSet::new();
    let mut sequences = 0;
    let mut trained = 0;
    let mut metadata = BTreeMap::new();
    for (number, path) in paths.iter().enumerate() {
        let shard = Shard::read(path)?;
        if number > 0 && shard.d_model != held_out.d_model {
            return Err(format!("{}: d_model is {}, but {} before", path.display(), shard.d_model, held_out.d_model));
        }
        held_out.d_model = shard.d_model;
        let mut train = Piece::default();
        for sequence in shard.sequences() {
            let is_held_out = sequences % HELD_OUT_EVERY == HELD_OUT_EVERY / 2;
            let margin = if is_held_out { GAP } else { 0 };
            let passage = shard.passage(sequence, margin, sequences)?;
            if is_held_out {
                held_out.append(&shard, passage);
            } else {
                train_runs.extend(shard.tokens(passage.clone()).windows(SHARED_RUN).map(<[i32]>::to_vec));
                train.append(&shard, passage);
            }
            sequences += 1;
        }
        trained += train.tokens;
        metadata.clone_from(&shard.metadata);
        train.write(&to.join(format!("train-{number}.safetensors")), &metadata)?;
        println!("{}: {} tokens", path.display(), train.tokens);
    }
    held_out.write(&to.join("heldout.safetensors"), &metadata)?;

    let (mut shared, mut runs) = (0, 0);
    for passage in held_out.token_ids().chunks(PASSAGE) {
        for run in passage.windows(SHARED_RUN) {
            shared += usize::from(train_runs.contains(run));
            runs += 1;
        }
    }
    println!("{sequences} sequences; {trained} tokens to train on, {} held out", held_out.tokens);
    println!("{shared} of {runs} held-out runs of {SHARED_RUN} tokens are in the training text as well");
    if shared * 100 > runs {
        return Err(format!("{shared} of {runs} held-out runs are training text: more than 1 %, not a held-out set"));
    }
    Ok(())
}

/// One shard, whole in memory.
struct Shard {
    name: String,
    metadata: BTreeMap<String, String>,
    tokens: usize,
    d_model: usize,
    activations: Vec<u8>,
    per_token: Vec<Vec<u8>>,
    text: Vec<u8>,
    /// Token i is `text[offsets[i]..offsets[i + 1]]`.
    offsets: Vec<usize>,
}

impl Shard {
    fn read(path: &Path) -> Result<Self, String> {
        let file = TensorFile::open(path).map_err(|e| e.to_string())?;
        let name = file.name().to_owned();
        let bad = |what: &str| format!("{name}: {what}");
        if file.metadata("format") != Some("activations/1") {
            return Err(bad("not an activation shard (format activations/1)"));
        }
        let all = |tensor: &str, dtype: TensorDtype| -> Result<(Vec<u8>, Vec<usize>), String> {
            let info = file.require(tensor).map_err(|e| e.to_string())?;
            if info.dtype != dtype {
                return Err(bad(&format!("`{tensor}` is {:?}, expected {dtype:?}", info.dtype)));
            }
            let mut bytes = vec![0; info.bytes];
            file.read(tensor, 0, &mut bytes).map_err(|e| e.to_string())?;
            Ok((bytes, info.shape.to_vec()))
        };
        let (activations, shape) = all("activations", TensorDtype::F16)?;
        let &[tokens, d_model] = shape.as_slice() else { return Err(bad("`activations` is not [tokens, d_model]")) };
        let mut per_token = Vec::new();
        for (tensor, dtype, size) in PER_TOKEN {
            let (bytes, _) = all(tensor, dtype)?;
            if bytes.len() != tokens * size {
                return Err(bad(&format!("`{tensor}` does not have one entry a token")));
            }
            per_token.push(bytes);
        }
        let (text, _) = all("text", TensorDtype::U8)?;
        let (offsets, _) = all("text_offsets", TensorDtype::I64)?;
        let offsets: Vec<_> = offsets.as_chunks::<8>().0.iter().map(|b| i64::from_le_bytes(*b) as usize).collect();
        if offsets.len() != tokens + 1 || !offsets.is_sorted() || offsets[tokens] > text.len() {
            return Err(bad("`text_offsets` are not ascending or leave `text`"));
        }
        let metadata = file.all_metadata();
        Ok(Shard { metadata, tokens, d_model, activations, per_token, text, offsets, name })
    }

    fn ints(&self, tensor: usize, range: Range<usize>) -> Vec<i32> {
        self.per_token[tensor][range.start * 4..range.end * 4]
            .as_chunks::<4>()
            .0
            .iter()
            .map(|b| i32::from_le_bytes(*b))
            .collect()
    }

    fn tokens(&self, range: Range<usize>) -> Vec<i32> {
        self.ints(0, range)
    }

    /// The ranges of tokens with one sequence id.
    fn sequences(&self) -> Vec<Range<usize>> {
        let ids = self.ints(2, 0..self.tokens);
        let mut start = 0;
        ids.chunk_by(|a, b| a == b)
            .map(|run| {
                start += run.len();
                start - run.len()..start
            })
            .collect()
    }

    /// The passage of a sequence. `turn` moves it about, so that all parts of a sequence's length are met.
    fn passage(&self, sequence: Range<usize>, margin: usize, turn: usize) -> Result<Range<usize>, String> {
        let room = sequence.len().checked_sub(2 * margin + PASSAGE + SEARCH).ok_or_else(|| {
            format!("{}: a sequence of {} tokens is too short to be cut from", self.name, sequence.len())
        })?;
        // Multiples of the golden ratio spread evenly, however many there are.
        let share = (turn as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 32;
        let wanted = sequence.start + margin + ((room as u64 * share) >> 32) as usize;
        let start =
            (wanted..wanted + SEARCH).find(|&at| at == sequence.start || self.ends_a_piece(at - 1)).unwrap_or(wanted);
        Ok(start..start + PASSAGE)
    }

    /// Whether a line or a sentence ends with this token.
    fn ends_a_piece(&self, token: usize) -> bool {
        let text = &self.text[self.offsets[token]..self.offsets[token + 1]];
        text.ends_with(b"\n") || text.ends_with(b".") || text.ends_with(b"?") || text.ends_with(b"!")
    }
}

/// Passages of shards, one behind the other.
#[derive(Default)]
struct Piece {
    tokens: usize,
    d_model: usize,
    activations: Vec<u8>,
    per_token: [Vec<u8>; PER_TOKEN.len()],
    text: Vec<u8>,
    ends: Vec<usize>,
}

impl Piece {
    fn append(&mut self, shard: &Shard, passage: Range<usize>) {
        let row = shard.d_model * 2;
        self.d_model = shard.d_model;
        self.tokens += passage.len();
        self.activations.extend(&shard.activations[passage.start * row..passage.end * row]);
        for (to, (from, (_, _, size))) in self.per_token.iter_mut().zip(shard.per_token.iter().zip(PER_TOKEN)) {
            to.extend(&from[passage.start * size..passage.end * size]);
        }
        for token in passage {
            self.text.extend(&shard.text[shard.offsets[token]..shard.offsets[token + 1]]);
            self.ends.push(self.text.len());
        }
    }

    fn token_ids(&self) -> Vec<i32> {
        self.per_token[0].as_chunks::<4>().0.iter().map(|b| i32::from_le_bytes(*b)).collect()
    }

    fn write(&self, path: &Path, metadata: &BTreeMap<String, String>) -> Result<(), String> {
        let mut metadata = metadata.clone();
        metadata.insert("cut".to_owned(), format!("{PASSAGE} consecutive tokens of each sequence; see data/README.md"));
        let offsets: Vec<u8> =
            std::iter::once(&0).chain(&self.ends).flat_map(|&end| (end as i64).to_le_bytes()).collect();
        let mut tensors =
            vec![TensorOut::bytes("activations", TensorDtype::F16, &[self.tokens, self.d_model], &self.activations)];
        tensors.push(TensorOut::bytes("text_offsets", TensorDtype::I64, &[self.tokens + 1], &offsets));
        for (bytes, (tensor, dtype, _)) in self.per_token.iter().zip(PER_TOKEN) {
            tensors.push(TensorOut::bytes(tensor, dtype, &[self.tokens], bytes));
        }
        // Last, because its length is arbitrary and would leave what follows unaligned.
        tensors.push(TensorOut::bytes("text", TensorDtype::U8, &[self.text.len()], &self.text));
        tensor_file::write(path, &metadata, tensors).map_err(|e| e.to_string())
    }
}
