//! Safetensors files put together by hand, so that every part of them can lie.

use kronsae::sae::LoadOptions;
use kronsae::{Error, Sae, Status};
use serde_json::{Map, Value, json};

/// One tensor: name, dtype, shape, bytes.
#[derive(Clone)]
pub(crate) struct RawTensor {
    pub(crate) name: &'static str,
    pub(crate) dtype: &'static str,
    pub(crate) shape: Vec<usize>,
    pub(crate) data: Vec<u8>,
}

/// A model file in parts.
#[derive(Clone)]
pub(crate) struct Raw {
    pub(crate) format: Option<&'static str>,
    pub(crate) config: Option<String>,
    pub(crate) tensors: Vec<RawTensor>,
}

/// `values` as bytes of a dtype.
pub(crate) fn elements(dtype: &str, values: &[f32]) -> Vec<u8> {
    match dtype {
        "F32" => values.iter().flat_map(|v| v.to_le_bytes()).collect(),
        "BF16" => values.iter().flat_map(|v| half::bf16::from_f32(*v).to_le_bytes()).collect(),
        "F16" => values.iter().flat_map(|v| half::f16::from_f32(*v).to_le_bytes()).collect(),
        other => panic!("{other}"),
    }
}

pub(crate) const HEADS: usize = 3;
pub(crate) const D: usize = 5;
/// Rows of the encoder: 3 * (2 + 3).
pub(crate) const ROWS: usize = 15;
/// F: 3 * 2 * 3.
pub(crate) const LATENTS: usize = 18;

impl Raw {
    /// A sound KronSAE of h3 m2 n3 over d5, K = 4, weights in `dtype`.
    pub(crate) fn kron(dtype: &'static str) -> Raw {
        let config = r#"{"encoder":"kron","d_model":5,"heads":3,"base":2,"extension":3,"selection":{"topk":4},"output_scale":1.5}"#;
        Raw::of(config, dtype, ROWS)
    }

    /// A sound dense SAE of F18 over d5 with a threshold, and thresholds latent by latent.
    pub(crate) fn dense(dtype: &'static str) -> Raw {
        let config = r#"{"encoder":"dense","d_model":5,"latents":18,"selection":{"threshold":0.25,"max_latents":6},"output_scale":1.5}"#;
        let mut raw = Raw::of(config, dtype, LATENTS);
        let data = elements("F32", &[0.5; LATENTS]);
        raw.tensors.push(RawTensor { name: "encoder.threshold", dtype: "F32", shape: vec![LATENTS], data });
        raw
    }

    fn of(config: &str, dtype: &'static str, rows: usize) -> Raw {
        let mut rng = crate::common::Rng(7);
        let mut tensor = |name, dtype, shape: &[usize]| {
            let data = elements(dtype, &rng.vec(shape.iter().product()));
            RawTensor { name, dtype, shape: shape.to_vec(), data }
        };
        let tensors = vec![
            tensor("encoder.weight", dtype, &[rows, D]),
            tensor("encoder.bias", "F32", &[rows]),
            tensor("decoder.weight", dtype, &[LATENTS, D]),
            tensor("decoder.bias", "F32", &[D]),
        ];
        Raw { format: Some("kronsae/1"), config: Some(config.to_owned()), tensors }
    }

    pub(crate) fn tensor(&mut self, name: &str) -> &mut RawTensor {
        self.tensors.iter_mut().find(|t| t.name == name).unwrap()
    }

    /// The config with one piece of its text replaced.
    pub(crate) fn with_config(mut self, from: &str, to: &str) -> Raw {
        let config = self.config.unwrap();
        assert!(config.contains(from), "no {from} in {config}");
        self.config = Some(config.replace(from, to));
        self
    }

    pub(crate) fn header(&self) -> Map<String, Value> {
        let mut header = Map::new();
        let mut metadata = Map::new();
        metadata.extend(self.format.map(|f| ("format".to_owned(), json!(f))));
        metadata.extend(self.config.as_ref().map(|c| ("config".to_owned(), json!(c))));
        header.insert("__metadata__".to_owned(), Value::Object(metadata));
        let mut start = 0;
        for tensor in &self.tensors {
            let end = start + tensor.data.len();
            let entry = json!({"dtype": tensor.dtype, "shape": tensor.shape, "data_offsets": [start, end]});
            header.insert(tensor.name.to_owned(), entry);
            start = end;
        }
        header
    }

    pub(crate) fn data(&self) -> Vec<u8> {
        self.tensors.iter().flat_map(|t| t.data.iter().copied()).collect()
    }

    pub(crate) fn bytes(&self) -> Vec<u8> {
        assemble(Value::Object(self.header()).to_string().as_bytes(), &self.data())
    }
}

/// Length, header, data.
pub(crate) fn assemble(header: &[u8], data: &[u8]) -> Vec<u8> {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header);
    bytes.extend(data);
    bytes
}

/// Loads, whole and encoder-only, from memory and from a file. All must agree; the file's error names the file.
pub(crate) fn load(bytes: &[u8]) -> Result<Sae, Error> {
    let from_memory = Sae::from_bytes(bytes, LoadOptions::default());
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    std::fs::write(&path, bytes).unwrap();
    match (from_memory, Sae::open(&path)) {
        (Ok(sae), Ok(_)) => Ok(sae),
        (Err(memory), Err(file)) => {
            let name = path.display().to_string();
            assert!(file.message().starts_with(&name), "the error does not name the file: {file}");
            assert!(memory.message().starts_with("model bytes"), "{memory}");
            // Not the whole sentence: of two tensors that overlap, either may be named.
            assert_eq!(file.status(), memory.status(), "{file}; {memory}");
            Err(file)
        }
        (memory, file) => panic!("from memory: {memory:?}, from the file: {file:?}"),
    }
}

/// That the file is refused as badly formed, in words that hold each of `words`.
#[track_caller]
pub(crate) fn refused(bytes: &[u8], words: &[&str]) {
    let error = load(bytes).expect_err("a bad file was accepted");
    assert_eq!(error.status(), Status::Format, "{error}");
    for word in words {
        assert!(error.message().contains(word), "`{word}` is not in: {error}");
    }
}
