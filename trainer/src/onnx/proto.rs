//! Protobuf's wire format, as far as ONNX files need it: messages of integers, strings and messages, whose lengths are
//! known before large contents are written.

use kronsae::sae::Matrix;
use kronsae::tensor_file::write_f32;
use std::io::{self, Write};

/// A message under construction. Matrices are referred to, and widened to f32 only as they are written.
#[derive(Default)]
pub(super) struct Message<'a> {
    pieces: Vec<Piece<'a>>,
}

enum Piece<'a> {
    Bytes(Vec<u8>),
    Matrix(&'a Matrix),
}

/// Wire types: an integer of varying length, bytes after their length.
const VARINT: u64 = 0;
const LENGTH: u64 = 2;

fn varint(mut value: u64, out: &mut Vec<u8>) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// Bytes that a matrix takes as f32.
pub(super) fn matrix_bytes(matrix: &Matrix) -> u64 {
    matrix.rows() as u64 * matrix.cols() as u64 * 4
}

/// Writes a matrix row by row, without its padding, as little-endian f32.
pub(super) fn write_matrix(matrix: &Matrix, sink: &mut dyn Write) -> io::Result<()> {
    let mut row = vec![0.0_f32; matrix.cols()];
    for at in 0..matrix.rows() {
        matrix.widen_row(at, &mut row);
        write_f32(sink, &row)?;
    }
    Ok(())
}

impl<'a> Message<'a> {
    pub(super) fn new() -> Self {
        Self::default()
    }

    /// The bytes at its end, to append to.
    fn tail(&mut self) -> &mut Vec<u8> {
        if !matches!(self.pieces.last(), Some(Piece::Bytes(_))) {
            self.pieces.push(Piece::Bytes(Vec::new()));
        }
        match self.pieces.last_mut() {
            Some(Piece::Bytes(bytes)) => bytes,
            _ => unreachable!("bytes were pushed last"),
        }
    }

    /// An `int32`, `int64` or enum field.
    pub(super) fn int(mut self, field: u64, value: i64) -> Self {
        let tail = self.tail();
        varint(field << 3 | VARINT, tail);
        // Negative numbers are their two's complement in 64 bits.
        varint(value as u64, tail);
        self
    }

    /// A `bytes` or `string` field.
    pub(super) fn bytes(mut self, field: u64, value: &[u8]) -> Self {
        let tail = self.tail();
        varint(field << 3 | LENGTH, tail);
        varint(value.len() as u64, tail);
        tail.extend_from_slice(value);
        self
    }

    /// A `string` field.
    pub(super) fn text(self, field: u64, value: &str) -> Self {
        self.bytes(field, value.as_bytes())
    }

    /// A message field.
    pub(super) fn message(mut self, field: u64, value: Message<'a>) -> Self {
        let len = value.len();
        let tail = self.tail();
        varint(field << 3 | LENGTH, tail);
        varint(len, tail);
        for piece in value.pieces {
            match piece {
                Piece::Bytes(bytes) => self.tail().extend_from_slice(&bytes),
                Piece::Matrix(_) => self.pieces.push(piece),
            }
        }
        self
    }

    /// A `bytes` field of a matrix's f32.
    pub(super) fn matrix(mut self, field: u64, value: &'a Matrix) -> Self {
        let tail = self.tail();
        varint(field << 3 | LENGTH, tail);
        varint(matrix_bytes(value), tail);
        self.pieces.push(Piece::Matrix(value));
        self
    }

    /// Its length in bytes.
    pub(super) fn len(&self) -> u64 {
        let each = self.pieces.iter().map(|piece| match piece {
            Piece::Bytes(bytes) => bytes.len() as u64,
            Piece::Matrix(matrix) => matrix_bytes(matrix),
        });
        each.sum()
    }

    pub(super) fn write(&self, sink: &mut dyn Write) -> io::Result<()> {
        self.pieces.iter().try_for_each(|piece| match piece {
            Piece::Bytes(bytes) => sink.write_all(bytes),
            Piece::Matrix(matrix) => write_matrix(matrix, sink),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kronsae::Dtype;

    fn bytes(message: &Message<'_>) -> Vec<u8> {
        let mut out = Vec::new();
        message.write(&mut out).unwrap();
        assert_eq!(out.len() as u64, message.len());
        out
    }

    #[test]
    fn wire_format() {
        // The examples of the encoding's own documentation.
        assert_eq!(bytes(&Message::new().int(1, 150)), [0x08, 0x96, 0x01]);
        assert_eq!(bytes(&Message::new().text(2, "testing")), b"\x12\x07testing");
        assert_eq!(bytes(&Message::new().message(3, Message::new().int(1, 150))), [0x1a, 0x03, 0x08, 0x96, 0x01]);
        let minus_two = [0x08, 0xfe, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01];
        assert_eq!(bytes(&Message::new().int(1, -2)), minus_two);
    }

    #[test]
    fn matrices_are_written_without_padding() {
        let values = [1.0, 2.0, 3.0, -0.5, 0.25, 8.0];
        for dtype in [Dtype::F32, Dtype::Bf16] {
            let matrix = Matrix::from_rows(&values, [2, 3], 3, dtype, "test").unwrap();
            let inner = Message::new().matrix(9, &matrix).int(1, 1);
            let out = bytes(&Message::new().message(5, inner));
            let expected: Vec<u8> = values.iter().flat_map(|v: &f32| v.to_le_bytes()).collect();
            assert_eq!(out[..4], [0x2a, 28, 0x4a, 24]);
            assert_eq!((&out[4..28], &out[28..]), (&expected[..], &[0x08, 1][..]));
        }
    }
}
