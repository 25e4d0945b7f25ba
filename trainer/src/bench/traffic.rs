//! What a step on a GPU has to do, counted: bytes through device memory and floating-point operations of each kernel, and
//! the time below which no implementation of them can go on a device of given bandwidth and arithmetic. Nothing here is
//! measured.
//!
//! Two counts of bytes are given. *Once*: every array is read or written once, as if whatever is gathered again were found
//! in a cache. *Gathered*: every row of a sparse sum comes from memory. What a device does lies between, nearer to the
//! second where the arrays are larger than its L2.

use super::table::aligned;
use crate::backend::Moments;
use crate::terminal::grouped;
use kronsae::sae::{Encoder, padded};
use serde::Serialize;
use std::fmt::Write as _;

/// A device, by its datasheet.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Peaks {
    /// Its name.
    pub name: &'static str,
    /// Bytes a second of its memory.
    pub bandwidth: f64,
    /// Floating-point operations a second of its matrix units, dense, in the precision of the product.
    pub flops: f64,
}

impl Peaks {
    /// NVIDIA H200 (SXM), bf16.
    pub const H200_BF16: Peaks = Peaks { name: "H200, bf16", bandwidth: 4.8e12, flops: 989e12 };
    /// NVIDIA H200 (SXM), f32 without its matrix units.
    pub const H200_F32: Peaks = Peaks { name: "H200, f32", bandwidth: 4.8e12, flops: 67e12 };

    /// The H200's peaks for products of elements of this size in bytes.
    #[must_use]
    pub fn h200(element: usize) -> Self {
        if element == 2 { Self::H200_BF16 } else { Self::H200_F32 }
    }
}

/// The step that is counted.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Step {
    /// Shape of the encoder.
    pub encoder: Encoder,
    /// Width of an activation.
    pub d_model: usize,
    /// Tokens.
    pub batch: usize,
    /// K.
    pub k: usize,
    /// Dead latents that AuxK uses for each token; 0: none are dead, or AuxK is off.
    pub aux: usize,
    /// Bytes of an element in the product, the gathered rows and the residual: 2 (bf16) or 4 (f32).
    pub element: usize,
    /// How Adam's moments are kept.
    pub moments: Moments,
}

/// What one kernel does in a step, over all its launches.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Part {
    /// What it is.
    pub name: &'static str,
    /// Floating-point operations; counted where matrix units do them, the others hide behind memory.
    pub flops: f64,
    /// Bytes if every array moved once.
    pub once: f64,
    /// Bytes if every gathered row came from memory.
    pub gathered: f64,
}

impl Part {
    fn new(name: &'static str, flops: f64, once: f64) -> Self {
        Part { name, flops, once, gathered: once }
    }

    /// Seconds below which it cannot be: of memory and arithmetic, whichever takes longer.
    #[must_use]
    pub fn floor(&self, peaks: Peaks, gathered: bool) -> f64 {
        let bytes = if gathered { self.gathered } else { self.once };
        (bytes / peaks.bandwidth).max(self.flops / peaks.flops)
    }
}

/// Bytes of a key, or of a position, of a touched row.
const WORD: f64 = 4.0;

impl Step {
    /// The step of the issue's table: d 2304, h 8192, m 2, n 4, K 50, 8192 tokens, bf16.
    pub const REFERENCE: Step = Step {
        encoder: Encoder::Kron { heads: 8192, base: 2, extension: 4 },
        d_model: 2304,
        batch: 8192,
        k: 50,
        aux: 0,
        element: 2,
        moments: Moments::F32,
    };

    /// Bytes of one padded row of d elements.
    fn row(&self) -> f64 {
        (padded(self.d_model) * self.element) as f64
    }

    /// Encoder rows a latent is made of.
    fn rows_of_latent(&self) -> f64 {
        match self.encoder {
            Encoder::Kron { .. } => 2.0,
            Encoder::Dense { .. } => 1.0,
        }
    }

    /// Every kernel of a step, in the order in which they run.
    #[must_use]
    pub fn parts(&self) -> Vec<Part> {
        let (b, k, aux) = (self.batch as f64, self.k as f64, self.aux as f64);
        let (rows, latents) = (self.encoder.rows() as f64, self.encoder.latents() as f64);
        let row = self.row();
        let stride = padded(self.d_model) as f64;
        let activations = b * row;
        let pre_activations = b * rows * self.element as f64;
        let mut parts = vec![
            Part::new("input", 0.0, b * self.d_model as f64 * self.element as f64 + activations),
            Part::new(
                "product",
                2.0 * b * rows * self.d_model as f64,
                rows * row + activations + pre_activations + rows * WORD,
            ),
            Part::new("select", 0.0, pre_activations + b * (WORD + 2.0 * WORD * k) + rows / 8.0),
            // x in, residual out, K rows of D; lists of latents in, of touched rows out; the pre-activations behind them.
            Part {
                name: "decode, residual, value gradients",
                flops: 0.0,
                once: 2.0 * activations + latents.min(b * k) * row + self.lists(k),
                gathered: 2.0 * activations + b * k * row + self.lists(k),
            },
        ];
        if self.aux > 0 {
            parts.push(Part::new("select the dead", 0.0, pre_activations + b * (WORD + 2.0 * WORD * aux)));
            parts.push(Part {
                name: "decode the dead",
                flops: 0.0,
                once: 2.0 * activations + latents.min(b * aux) * row + self.lists(aux),
                gathered: 2.0 * activations + b * aux * row + self.lists(aux),
            });
        }
        let pairs = b * (k + aux) * (1.0 + self.rows_of_latent());
        parts.push(Part::new("sort", 0.0, self.sort(pairs)));
        // Adam: the value, in f32, and two moments in and out; the copy out, in the element type.
        let moments = 4.0 * self.moments.bytes() as f64;
        let adam = |count: f64| count * (2.0 * 4.0 + moments + if self.element == 2 { 2.0 } else { 0.0 });
        parts.push(Part {
            name: "update the decoder",
            flops: 0.0,
            once: adam(latents * stride)
                + activations * if self.aux > 0 { 2.0 } else { 1.0 }
                + 2.0 * WORD * b * (k + aux),
            gathered: adam(latents * stride) + b * (k + aux) * row + 2.0 * WORD * b * (k + aux),
        });
        let touches = b * (k + aux) * self.rows_of_latent();
        parts.push(Part {
            name: "update the encoder",
            flops: 0.0,
            once: adam(rows * stride) + activations + 2.0 * WORD * touches,
            gathered: adam(rows * stride) + touches * row + 2.0 * WORD * touches,
        });
        // Sums of columns; when each latent fired and each row was positive, read and written, and read for the dead.
        parts.push(Part::new("biases, bookkeeping", 0.0, activations + 3.0 * 8.0 * (latents + rows)));
        parts
    }

    /// Bytes of the lists that decoding `k` latents a token reads and writes.
    fn lists(&self, k: f64) -> f64 {
        let b = self.batch as f64;
        b * k * 2.0 * WORD + b * k * self.rows_of_latent() * (2.0 * WORD + self.element as f64) + 2.0 * WORD * b
    }

    /// Bytes of a stable sort of `pairs` pairs by 8 bits a pass: a pass counts the keys, then moves keys and positions.
    fn sort(&self, pairs: f64) -> f64 {
        let bits = usize::BITS - self.encoder.latents().max(self.encoder.rows()).leading_zeros();
        f64::from(bits.div_ceil(8)) * pairs * 5.0 * WORD
    }

    /// Seconds of all kernels, one after the other.
    #[must_use]
    pub fn floor(&self, peaks: Peaks, gathered: bool) -> f64 {
        self.parts().iter().map(|part| part.floor(peaks, gathered)).sum()
    }

    /// Seconds in which the decoder's rows and both optimisers' traffic pass: what grows with F alone.
    #[must_use]
    pub fn growing(&self, peaks: Peaks) -> f64 {
        let grows =
            ["decode, residual, value gradients", "update the decoder", "update the encoder", "biases, bookkeeping"];
        self.parts().iter().filter(|part| grows.contains(&part.name)).map(|part| part.floor(peaks, true)).sum()
    }

    /// Bytes of the parameters in f32, their copies in the element type where that is another, and both moments.
    #[must_use]
    pub fn parameter_bytes(&self) -> f64 {
        let stride = padded(self.d_model) as f64;
        let (rows, latents) = (self.encoder.rows() as f64, self.encoder.latents() as f64);
        let (large, small) = ((rows + latents) * stride, rows + stride);
        let copy = if self.element == 2 { 2.0 } else { 0.0 };
        small * 12.0 + large * (4.0 + 2.0 * self.moments.bytes() as f64 + copy)
    }

    /// The least a call that encodes `tokens` tokens takes: the product and one pass of selection.
    #[must_use]
    pub fn encode_floor(&self, tokens: usize, peaks: Peaks) -> f64 {
        let step = Step { batch: tokens, aux: 0, ..*self };
        step.parts().iter().filter(|p| ["product", "select"].contains(&p.name)).map(|p| p.floor(peaks, false)).sum()
    }

    /// The model as a table in Markdown.
    #[must_use]
    pub fn markdown(&self, peaks: Peaks) -> String {
        let parts = self.parts();
        let ms = |s: f64| format!("{:.3}", 1e3 * s);
        let gb = |bytes: f64| format!("{:.2}", bytes / 1e9);
        let mut table = vec![
            ["kernel", "TFLOP", "GB once", "GB gathered", "ms once", "ms gathered", "bound by"].map(str::to_owned),
        ];
        let sum = |of: fn(&Part) -> f64| parts.iter().map(of).sum::<f64>();
        for part in &parts {
            let arithmetic = part.flops / peaks.flops > part.gathered / peaks.bandwidth;
            table.push([
                part.name.to_owned(),
                if part.flops > 0.0 { format!("{:.2}", part.flops / 1e12) } else { String::new() },
                gb(part.once),
                gb(part.gathered),
                ms(part.floor(peaks, false)),
                ms(part.floor(peaks, true)),
                if arithmetic { "arithmetic" } else { "memory" }.to_owned(),
            ]);
        }
        table.push([
            "**step**".to_owned(),
            format!("{:.2}", sum(|p| p.flops) / 1e12),
            gb(sum(|p| p.once)),
            gb(sum(|p| p.gathered)),
            ms(self.floor(peaks, false)),
            ms(self.floor(peaks, true)),
            String::new(),
        ]);
        let mut out = String::new();
        let _ = writeln!(
            out,
            "{:?}, d {}, F {}, {} encoder rows, K {}, AuxK on {} dead latents a token, {} tokens a step, {} bytes an element, {} a moment; \
             {}: {:.1} TB/s, {:.0} TFLOP/s by the datasheet. Counted, not measured.\n",
            self.encoder,
            grouped(self.d_model as u64),
            grouped(self.encoder.latents() as u64),
            grouped(self.encoder.rows() as u64),
            self.k,
            self.aux,
            grouped(self.batch as u64),
            self.element,
            self.moments.bytes(),
            peaks.name,
            peaks.bandwidth / 1e12,
            peaks.flops / 1e12
        );
        out += &aligned(&table);
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reference_step_has_the_issues_figures() {
        let step = Step::REFERENCE;
        let parts = step.parts();
        let of = |name: &str| parts.iter().find(|p| p.name == name).unwrap();
        // 2 B R d, by hand.
        assert_eq!(of("product").flops, 2.0 * 8192.0 * 49_152.0 * 2304.0);
        // Dense Adam: (49,152 + 65,536) rows of 2,304, 26 bytes an element.
        let adam = (49_152.0 + 65_536.0) * 2304.0 * 26.0;
        let updates = of("update the decoder").gathered + of("update the encoder").gathered;
        let gathers = 8192.0 * 50.0 * 3.0 * 2304.0 * 2.0;
        assert!((updates - adam - gathers).abs() < 0.01 * updates, "{updates} against {adam} + {gathers}");
        assert!(
            (5.0e-3..6.5e-3).contains(&step.floor(Peaks::H200_BF16, true)),
            "{}",
            step.floor(Peaks::H200_BF16, true)
        );
        assert!(parts.iter().all(|p| p.once <= p.gathered * (1.0 + 1e-9)), "{parts:?}");
    }

    #[test]
    fn growth_with_f_is_in_the_parts_that_may_grow() {
        let of = |heads: usize, base: usize, extension: usize| Step {
            encoder: Encoder::Kron { heads, base, extension },
            ..Step::REFERENCE
        };
        let (small, large) = (of(16_384, 1, 2), of(512, 32, 64));
        assert_eq!(small.encoder.rows(), large.encoder.rows());
        assert_eq!((small.encoder.latents(), large.encoder.latents()), (1 << 15, 1 << 20));
        let peaks = Peaks::H200_BF16;
        let rest = |s: &Step| s.floor(peaks, true) - s.growing(peaks);
        assert!(rest(&large) < 1.1 * rest(&small), "{} {}", rest(&large), rest(&small));
        assert!(large.growing(peaks) > small.growing(peaks));
    }

    #[test]
    fn aux_and_f32_cost_more() {
        let step = Step::REFERENCE;
        let with = Step { aux: 200, ..step };
        let peaks = Peaks::H200_BF16;
        assert!(
            with.floor(peaks, false) > step.floor(peaks, false) && with.floor(peaks, true) > step.floor(peaks, true)
        );
        let narrow = Step { moments: Moments::Bf16, ..step };
        // Two moments, 2 bytes less each, in and out, of 264 million elements.
        let saved = 8.0 * (49_152.0 + 65_536.0) * 2304.0;
        let of = |step: &Step| step.parts().iter().map(|part| part.gathered).sum::<f64>();
        assert!((of(&step) - of(&narrow) - saved).abs() < 1e-6 * saved, "{}", of(&step) - of(&narrow));
        let wide = Step { element: 4, ..step };
        assert!(wide.floor(Peaks::h200(4), true) > step.floor(Peaks::h200(2), true));
        assert!(step.markdown(peaks).contains("Counted, not measured"));
    }
}
