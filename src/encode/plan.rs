//! What an [`Encoder`] does with a batch: for reports.

use super::Encoder;
use crate::sae::ElementsRef;

/// What multiplies weights and tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Instruction {
    /// f32 multiply-adds, in the vectors of the instruction set.
    F32,
    /// int8 products summed by vectors of 64: `vpdpbusd`.
    Int8Vectors,
    /// int8 products summed by tiles of 16 x 16 x 64: `tdpbusd`.
    Int8Tiles,
    /// Integers of 16 or 32 bits, as the compiler or AVX2 has them.
    Integers,
}

/// How an encoder takes batches of one size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Plan {
    /// Whether they are screened, or all rows computed exactly.
    pub screened: bool,
    /// Threads that take part, screened at most: one that wakes too late is not waited for.
    pub threads: usize,
    /// What the bulk of the arithmetic is done by.
    pub instruction: Instruction,
    /// Its multiplications for each weight and token: screened, planes of int8 are multiplied with planes of int8.
    pub products: usize,
    /// Bytes that one pass reads: of the weights, or of their copy in int8 with its scales and bounds. What screening leaves
    /// to be looked at closer is not in it; [`Screening`](super::Screening) counts those rows.
    pub bytes: usize,
}

impl Encoder {
    /// How batches of `rows` rows are encoded. (Where screening was chosen here but rules out little, some calls are not
    /// screened all the same.)
    #[must_use]
    pub fn plan(&self, rows: usize) -> Plan {
        let threads = self.pool.threads();
        if let Some(screener) = self.screener.as_ref().filter(|_| rows <= self.most_screened) {
            let (instruction, products) = screener.arithmetic(rows);
            return Plan { screened: true, threads, instruction, products, bytes: screener.copy_bytes(rows) };
        }
        let weight = self.sae.encoder().weight.as_ref();
        let element = match weight.data {
            ElementsRef::F32(_) => 4,
            ElementsRef::Bf16(_) => 2,
        };
        let bytes = weight.rows * weight.cols * element;
        Plan { screened: false, threads, instruction: Instruction::F32, products: 1, bytes }
    }
}
