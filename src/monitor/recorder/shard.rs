//! The tokens of one shard, in memory until they are written, and how they are written: format `activations/1`.

use crate::activations::Activations;
use crate::dtype::Dtype;
use crate::error::{Error, Result};
use crate::memory::try_vec;
use crate::monitor::tag::TokenTag;
use crate::tensor_file::{self, TensorDtype, TensorOut};
use std::collections::{BTreeMap, HashMap};
use std::path::Path;

/// Bytes of text held for each token; a shard whose tokens have more is closed early.
const TEXT_PER_TOKEN: usize = 16;
/// The longest text of one token that is kept: a token of a vocabulary is far shorter.
pub(super) const MOST_TEXT: usize = 1024;

/// A shard in the making. Its memory is fixed.
#[derive(Debug)]
pub(super) struct Shard {
    d_model: usize,
    dtype: Dtype,
    most: usize,
    rows: usize,
    activations: Vec<u8>,
    positions: Vec<i32>,
    sequence_ids: Vec<i32>,
    token_ids: Option<Vec<i32>>,
    text: Option<Text>,
    sequences: HashMap<u64, Sequence>,
    next_sequence: i32,
    wide: Vec<f32>,
}

#[derive(Debug)]
struct Text {
    bytes: Vec<u8>,
    offsets: Vec<i64>,
}

#[derive(Debug, Clone, Copy)]
struct Sequence {
    id: i32,
    last_position: i32,
}

impl Shard {
    /// For at most `most` tokens.
    pub(super) fn new(d_model: usize, dtype: Dtype, most: usize, token_ids: bool, text: bool) -> Result<Self> {
        const WHAT: &str = "a shard of the recorder";
        let text = if text {
            let mut bytes = try_vec(Shard::most_text(most), 0_u8, WHAT)?;
            bytes.clear();
            Some(Text { bytes, offsets: try_vec(most + 1, 0, WHAT)? })
        } else {
            None
        };
        let mut sequences = HashMap::new();
        sequences.try_reserve(most).map_err(|_| Error::out_of_memory(WHAT, most.saturating_mul(32)))?;
        Ok(Shard {
            d_model,
            dtype,
            most,
            rows: 0,
            activations: try_vec(d_model.saturating_mul(dtype.size()).saturating_mul(most), 0, WHAT)?,
            positions: try_vec(most, 0, WHAT)?,
            sequence_ids: try_vec(most, 0, WHAT)?,
            token_ids: if token_ids { Some(try_vec(most, 0, WHAT)?) } else { None },
            text,
            sequences,
            next_sequence: 0,
            wide: try_vec(d_model, 0.0, WHAT)?,
        })
    }

    fn most_text(most: usize) -> usize {
        most.saturating_mul(TEXT_PER_TOKEN).saturating_add(MOST_TEXT)
    }

    /// Bytes of memory, closely.
    pub(super) fn bytes(&self) -> usize {
        let text = self.text.as_ref().map_or(0, |text| text.bytes.capacity() + text.offsets.len() * 8);
        let ids = self.token_ids.as_ref().map_or(0, Vec::len) * 4;
        self.activations.len() + self.most * 8 + ids + text + self.sequences.capacity() * 32 + self.wide.len() * 4
    }

    pub(super) fn rows(&self) -> usize {
        self.rows
    }

    /// Whether one more token, of so much text, has room.
    pub(super) fn has_room(&self, text: usize) -> bool {
        let fits = |held: &Text| held.bytes.len() + text.min(MOST_TEXT) <= held.bytes.capacity();
        self.rows < self.most && self.text.as_ref().is_none_or(fits)
    }

    /// Bytes of the tensors if one more token came.
    pub(super) fn bytes_with_one_more(&self) -> u64 {
        let ids = if self.token_ids.is_some() { 12 } else { 8 };
        let text = self.text.as_ref().map_or(0, |text| text.bytes.len() + MOST_TEXT + 8 * (self.rows + 2));
        ((self.rows + 1) * (self.d_model * self.dtype.size() + ids) + text) as u64
    }

    /// Appends a token. Returns whether it is finite, in the shard's dtype; one that is not is left out.
    ///
    /// # Panics
    /// If there is no room, or `row` is not one row of `d_model`.
    pub(super) fn push(&mut self, row: Activations<'_>, tag: &TokenTag, text: Option<&[u8]>) -> bool {
        assert!(row.rows() == 1 && row.d_model() == self.d_model, "one row of {}", self.d_model);
        assert!(self.has_room(text.map_or(0, <[u8]>::len)), "no room in the shard");
        row.widen_row(0, &mut self.wide);
        let bytes = self.d_model * self.dtype.size();
        let out = &mut self.activations[self.rows * bytes..][..bytes];
        let mut finite = true;
        match self.dtype {
            Dtype::F32 => {
                for (out, value) in out.as_chunks_mut::<4>().0.iter_mut().zip(&self.wide) {
                    finite &= value.is_finite();
                    *out = value.to_le_bytes();
                }
            }
            // Rounded to nearest even. What is too large for it becomes infinite and is left out.
            _ => {
                for (out, value) in out.as_chunks_mut::<2>().0.iter_mut().zip(&self.wide) {
                    let value = half::bf16::from_f32(*value);
                    finite &= value.is_finite();
                    *out = value.to_le_bytes();
                }
            }
        }
        if !finite {
            return false;
        }
        self.positions[self.rows] = tag.position;
        self.sequence_ids[self.rows] = self.sequence(tag);
        if let Some(ids) = &mut self.token_ids {
            ids[self.rows] = tag.token;
        }
        if let Some(held) = &mut self.text {
            let text = text.unwrap_or_default();
            held.bytes.extend_from_slice(&text[..text.len().min(MOST_TEXT)]);
            held.offsets[self.rows + 1] = held.bytes.len() as i64;
        }
        self.rows += 1;
        true
    }

    /// The number of the token's sequence in this shard: positions ascend in a sequence, so a request that goes back
    /// (it was rewound, or its number is used again) begins another one.
    fn sequence(&mut self, tag: &TokenTag) -> i32 {
        let mut next = || {
            self.next_sequence += 1;
            self.next_sequence - 1
        };
        let sequence =
            self.sequences.entry(tag.request).or_insert_with(|| Sequence { id: next(), last_position: i32::MIN });
        if tag.position <= sequence.last_position {
            sequence.id = next();
        }
        sequence.last_position = tag.position;
        sequence.id
    }

    /// The request's number may be another's from now on.
    pub(super) fn end(&mut self, request: u64) {
        self.sequences.remove(&request);
    }

    /// Writes the shard, whole and on disk, or not at all. It stays in memory.
    pub(super) fn write(&self, path: &Path, metadata: &BTreeMap<String, String>) -> Result<()> {
        let rows = self.rows;
        let i32s = |name: &str, values: &[i32]| {
            let bytes: Vec<u8> = values[..rows].iter().flat_map(|v| v.to_le_bytes()).collect();
            TensorOut::new(name, TensorDtype::I32, &[rows], Box::new(move |sink| sink.write_all(&bytes)))
        };
        let dtype = match self.dtype {
            Dtype::F32 => TensorDtype::F32,
            _ => TensorDtype::BF16,
        };
        let row = self.d_model * self.dtype.size();
        let mut tensors = vec![
            TensorOut::bytes("activations", dtype, &[rows, self.d_model], &self.activations[..rows * row]),
            i32s("positions", &self.positions),
            i32s("sequence_ids", &self.sequence_ids),
        ];
        tensors.extend(self.token_ids.as_deref().map(|ids| i32s("token_ids", ids)));
        if let Some(text) = &self.text {
            let offsets: Vec<u8> = text.offsets[..=rows].iter().flat_map(|v| v.to_le_bytes()).collect();
            let write = Box::new(move |sink: &mut dyn std::io::Write| sink.write_all(&offsets));
            tensors.push(TensorOut::new("text_offsets", TensorDtype::I64, &[rows + 1], write));
            tensors.push(TensorOut::bytes("text", TensorDtype::U8, &[text.bytes.len()], &text.bytes));
        }
        tensor_file::write_private(path, metadata, tensors)
    }

    /// Empties it for the next one. What was in memory is overwritten only as tokens come.
    pub(super) fn clear(&mut self) {
        self.rows = 0;
        self.sequences.clear();
        self.next_sequence = 0;
        if let Some(text) = &mut self.text {
            text.bytes.clear();
        }
    }
}
