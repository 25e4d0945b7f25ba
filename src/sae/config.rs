//! What a trained SAE is, in words: the `config` JSON object of a model file (KRONSAE format `kronsae/1`).

use crate::error::{Error, Result};
use serde_json::{Map, Value, json};

/// How the encoder turns pre-activations into latents.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Encoder {
    /// KronSAE: `heads` heads of `base` and `extension` rows; latent `k*m*n + i*n + j` is the soft AND of base row `i`
    /// and extension row `j` of head `k`.
    Kron {
        /// h, the number of heads.
        heads: usize,
        /// m, base rows of a head.
        base: usize,
        /// n, extension rows of a head.
        extension: usize,
    },
    /// An ordinary SAE: one row a latent, ReLU.
    Dense {
        /// F, the number of latents.
        latents: usize,
    },
}

/// The largest number of latents, so that an index always fits the C ABI's `uint32_t` and a sort key.
pub const MAX_LATENTS: usize = 1 << 30;

impl Encoder {
    /// Checks that no extent is zero and that F and the number of rows stay within [`MAX_LATENTS`].
    ///
    /// # Errors
    /// [`crate::Status::InvalidArgument`], naming the extents.
    pub fn validate(self) -> Result<Self> {
        let (extents, latents) = match self {
            Encoder::Kron { heads, base, extension } => {
                let latents = heads.checked_mul(base).and_then(|hm| hm.checked_mul(extension));
                (format!("heads {heads} x base {base} x extension {extension}"), latents)
            }
            Encoder::Dense { latents } => (format!("latents {latents}"), Some(latents)),
        };
        match latents {
            Some(0) => Err(Error::invalid(format!("{extents}: every extent must be at least 1"))),
            // h*(m+n) <= 2*h*m*n, so bounding F bounds the rows as well.
            Some(latents) if latents <= MAX_LATENTS => Ok(self),
            _ => Err(Error::invalid(format!("{extents}: more than {MAX_LATENTS} latents"))),
        }
    }

    /// F, the number of latents.
    #[must_use]
    pub fn latents(self) -> usize {
        match self {
            Encoder::Kron { heads, base, extension } => heads * base * extension,
            Encoder::Dense { latents } => latents,
        }
    }

    /// Rows of the encoder matrix: h*(m+n), or F for a dense encoder.
    #[must_use]
    pub fn rows(self) -> usize {
        match self {
            Encoder::Kron { heads, base, extension } => heads * (base + extension),
            Encoder::Dense { latents } => latents,
        }
    }

    /// The encoder rows that latent `latent` is made of: base and extension row, or the one row of a dense latent, twice.
    #[must_use]
    pub fn rows_of(self, latent: usize) -> (usize, usize) {
        match self {
            Encoder::Kron { base, extension, .. } => {
                let (head, within) = (latent / (base * extension), latent % (base * extension));
                let first = head * (base + extension);
                (first + within / extension, first + base + within % extension)
            }
            Encoder::Dense { .. } => (latent, latent),
        }
    }
}

/// Which latents of a token are reported.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Selection {
    /// The K strongest positive latents (fewer, where fewer are positive).
    TopK(usize),
    /// Every latent above a threshold, strictly; of more than `max_latents`, the strongest.
    Threshold {
        /// Theta, in the units of latent values. Replaced latent by latent where the file has `encoder.threshold`.
        theta: f32,
        /// The most latents a row may keep.
        max_latents: usize,
    },
}

impl Selection {
    /// The most latents a row can have: K, or `max_latents`.
    #[must_use]
    pub fn capacity(self) -> usize {
        match self {
            Selection::TopK(k) => k,
            Selection::Threshold { max_latents, .. } => max_latents,
        }
    }

    fn validate(self, latents: usize) -> Result<Self> {
        match self {
            Selection::TopK(k) if k == 0 || k > latents => {
                Err(Error::invalid(format!("selection: k = {k}, expected 1 to {latents} (the number of latents)")))
            }
            Selection::Threshold { theta, .. } if !theta.is_finite() || theta < 0.0 => {
                Err(Error::invalid(format!("selection: theta = {theta}, expected a finite number of at least 0")))
            }
            Selection::Threshold { max_latents, .. } if max_latents == 0 || max_latents > latents => {
                Err(Error::invalid(format!("selection: max_latents = {max_latents}, expected 1 to {latents}")))
            }
            valid => Ok(valid),
        }
    }
}

/// The config of a model file. Keys this version does not know are kept, so that rewriting a file loses nothing.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// Shape and kind of the encoder.
    pub encoder: Encoder,
    /// d, the width of an activation vector.
    pub d_model: usize,
    /// Which latents are reported.
    pub selection: Selection,
    /// s: latent values are in units of the normalised activations, `s * value * decoder row` in raw ones.
    pub output_scale: f32,
    /// All of the JSON object, those four included (they are written anew from the fields above).
    pub json: Map<String, Value>,
}

impl Config {
    /// A config of the given essentials and nothing else.
    ///
    /// # Errors
    /// [`crate::Status::InvalidArgument`] naming the value out of range.
    pub fn new(encoder: Encoder, d_model: usize, selection: Selection, output_scale: f32) -> Result<Self> {
        Config { encoder, d_model, selection, output_scale, json: Map::new() }.validate()
    }

    fn validate(self) -> Result<Self> {
        self.encoder.validate()?;
        if self.d_model == 0 || self.d_model > MAX_LATENTS {
            return Err(Error::invalid(format!("d_model = {}, expected 1 to {MAX_LATENTS}", self.d_model)));
        }
        self.selection.validate(self.encoder.latents())?;
        if !(self.output_scale.is_finite() && self.output_scale > 0.0) {
            return Err(Error::invalid(format!("output_scale = {}, expected a positive number", self.output_scale)));
        }
        Ok(self)
    }

    /// The same model with another selection.
    ///
    /// # Errors
    /// [`crate::Status::InvalidArgument`] if K or `max_latents` is 0 or above F, or theta is negative or not finite.
    pub fn with_selection(&self, selection: Selection) -> Result<Self> {
        Config { selection, ..self.clone() }.validate()
    }

    /// Parses the `config` string of a model file.
    ///
    /// # Errors
    /// [`crate::Status::Format`] naming the key, what was found and what was expected.
    pub fn from_json(text: &str) -> Result<Self> {
        let bad = |what: String| Error::format(format!("config: {what}"));
        let value: Value = serde_json::from_str(text).map_err(|e| bad(format!("not valid JSON: {e}")))?;
        let Value::Object(json) = value else { return Err(bad(format!("expected an object, found {value}"))) };

        let encoder = match json.get("encoder").and_then(Value::as_str) {
            Some("kron") => Encoder::Kron {
                heads: extent(&json, "heads")?,
                base: extent(&json, "base")?,
                extension: extent(&json, "extension")?,
            },
            Some("dense") => Encoder::Dense { latents: extent(&json, "latents")? },
            _ => {
                let found = json.get("encoder").map_or("nothing".to_owned(), Value::to_string);
                return Err(bad(format!("encoder is {found}; this version knows \"kron\" and \"dense\"")));
            }
        };
        let selection = match json.get("selection") {
            Some(Value::Object(s)) if s.contains_key("topk") => Selection::TopK(extent(s, "topk")?),
            Some(Value::Object(s)) if s.contains_key("threshold") => {
                let max_latents = extent(s, "max_latents")?;
                Selection::Threshold { theta: number(s, "threshold")?, max_latents }
            }
            found => {
                let found = found.map_or("nothing".to_owned(), Value::to_string);
                return Err(bad(format!(
                    "selection is {found}, expected {{\"topk\": K}} or {{\"threshold\": theta, \"max_latents\": L}}"
                )));
            }
        };
        let d_model = extent(&json, "d_model")?;
        let output_scale = if json.contains_key("output_scale") { number(&json, "output_scale")? } else { 1.0 };
        Config { encoder, d_model, selection, output_scale, json }.validate().map_err(|e| bad(e.message().to_owned()))
    }

    /// The `config` string of a model file: the known keys first, then all that were kept.
    #[must_use]
    pub fn to_json(&self) -> String {
        let mut out = Map::new();
        match self.encoder {
            Encoder::Kron { heads, base, extension } => {
                out.insert("encoder".into(), json!("kron"));
                out.insert("d_model".into(), json!(self.d_model));
                out.insert("heads".into(), json!(heads));
                out.insert("base".into(), json!(base));
                out.insert("extension".into(), json!(extension));
            }
            Encoder::Dense { latents } => {
                out.insert("encoder".into(), json!("dense"));
                out.insert("d_model".into(), json!(self.d_model));
                out.insert("latents".into(), json!(latents));
            }
        }
        let selection = match self.selection {
            Selection::TopK(k) => json!({"topk": k}),
            Selection::Threshold { theta, max_latents } => json!({"threshold": theta, "max_latents": max_latents}),
        };
        out.insert("selection".into(), selection);
        out.insert("output_scale".into(), json!(self.output_scale));
        for (key, value) in &self.json {
            if !out.contains_key(key) {
                out.insert(key.clone(), value.clone());
            }
        }
        Value::Object(out).to_string()
    }

    /// Where the activations came from: a key of the `source` object (`model`, `hook`, `layer`), as text.
    #[must_use]
    pub fn source(&self, key: &str) -> Option<String> {
        match self.json.get("source")?.get(key)? {
            Value::String(text) => Some(text.clone()),
            Value::Null => None,
            other => Some(other.to_string()),
        }
    }
}

fn extent(object: &Map<String, Value>, key: &str) -> Result<usize> {
    let found = object.get(key);
    found.and_then(Value::as_u64).and_then(|n| usize::try_from(n).ok()).ok_or_else(|| {
        let found = found.map_or("nothing".to_owned(), Value::to_string);
        Error::format(format!("config: {key} is {found}, expected a whole number"))
    })
}

fn number(object: &Map<String, Value>, key: &str) -> Result<f32> {
    let found = object.get(key);
    #[expect(clippy::cast_possible_truncation, reason = "the value is defined as the f32 nearest to what is written")]
    found.and_then(Value::as_f64).map(|n| n as f32).ok_or_else(|| {
        let found = found.map_or("nothing".to_owned(), Value::to_string);
        Error::format(format!("config: {key} is {found}, expected a number"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const KRON: &str = r#"{"encoder":"kron","d_model":8,"heads":2,"base":2,"extension":3,
        "selection":{"topk":4},"output_scale":2.5,"source":{"model":"m","layer":15},"later":{"x":[1]}}"#;

    #[test]
    fn round_trip_keeps_unknown_keys() {
        let config = Config::from_json(KRON).unwrap();
        assert_eq!((config.encoder.latents(), config.encoder.rows()), (12, 10));
        assert_eq!(config.source("layer").as_deref(), Some("15"));
        let again = Config::from_json(&config.to_json()).unwrap();
        assert_eq!(again.json["later"], json!({"x": [1]}));
        assert_eq!((again.encoder, again.selection), (config.encoder, config.selection));
    }

    #[test]
    fn rows_of_a_latent() {
        let encoder = Config::from_json(KRON).unwrap().encoder;
        assert_eq!(encoder.rows_of(0), (0, 2));
        assert_eq!(encoder.rows_of(6 + 3 + 2), (5 + 1, 5 + 2 + 2));
    }

    #[test]
    fn lies_are_refused() {
        for (from, to) in [
            ("\"kron\"", "\"conv\""),
            ("\"heads\":2", "\"heads\":18446744073709551615"),
            ("\"heads\":2", "\"heads\":4611686018427387904"),
            ("\"heads\":2", "\"heads\":0"),
            ("\"heads\":2", "\"heads\":-2"),
            ("\"topk\":4", "\"topk\":0"),
            ("\"topk\":4", "\"topk\":13"),
            ("{\"topk\":4}", "{\"threshold\":-1,\"max_latents\":4}"),
            ("{\"topk\":4}", "{\"threshold\":1}"),
            ("\"output_scale\":2.5", "\"output_scale\":0"),
            ("\"output_scale\":2.5", "\"output_scale\":1e300"),
            ("\"d_model\":8", "\"d_model\":\"8\""),
        ] {
            let text = KRON.replace(from, to);
            assert_ne!(text, KRON);
            let error = Config::from_json(&text).unwrap_err();
            assert_eq!(error.status(), crate::Status::Format, "{to}: {error}");
        }
    }
}
