//! `model.safetensors`: parameters by name, checked against the shape that the configuration gives them.

use std::{fs, io, path::Path, path::PathBuf};

use bytes::Bytes;
use fedpeft_onnx::{DType, Data, Tensor};
use half::{bf16, f16};
use safetensors::{Dtype, SafeTensors, tensor::Metadata};

use crate::HfError;

/// An open weights file.
pub(crate) struct Weights {
    path: PathBuf,
    bytes: Bytes,
    /// Where the tensors' bytes begin.
    data: usize,
    metadata: Metadata,
    /// What names begin with: checkpoints of a model with a head call the encoder `bert.`.
    prefix: String,
}

impl Weights {
    /// Opens `path`; `probe` is a parameter that tells whether names carry one of `prefixes`.
    pub fn open(path: &Path, probe: &str, prefixes: &[&str]) -> Result<Self, HfError> {
        let bytes = fs::read(path).map_err(|source| missing(path, source))?;
        let bytes = Bytes::from(bytes);
        let parsed = SafeTensors::read_metadata(&bytes);
        let (header, metadata) = parsed.map_err(|error| HfError::Format {
            path: path.to_owned(),
            reason: error.to_string().replace('\n', " "),
        })?;
        let prefix = prefixes.iter().find(|prefix| metadata.info(&format!("{prefix}{probe}")).is_some());
        let prefix = prefix.map_or_else(String::new, |prefix| (*prefix).to_owned());
        Ok(Self { path: path.to_owned(), bytes, data: 8 + header, metadata, prefix })
    }

    /// The parameter `name` as `f32` of `shape`. Where the file has `f32` already nothing is copied.
    pub fn tensor(&self, name: &str, shape: &[usize]) -> Result<Tensor, HfError> {
        let (stored, info) = self.find(name).ok_or_else(|| self.absent(name))?;
        let wrong =
            |reason: String| HfError::Tensor { path: self.path.clone(), name: stored.clone(), reason };
        if info.shape != shape {
            return Err(wrong(format!("has shape {:?}, config.json gives it {shape:?}", info.shape)));
        }
        let (from, to) = info.data_offsets;
        // Reading the header checked that the tensors lie within the file and fill their shapes.
        let bytes = self.bytes.slice(self.data + from..self.data + to);
        let bytes = match info.dtype {
            Dtype::F32 => bytes,
            Dtype::F16 => widened(&bytes, |b| f16::from_le_bytes(b).to_f32()),
            Dtype::BF16 => widened(&bytes, |b| bf16::from_le_bytes(b).to_f32()),
            other => return Err(wrong(format!("has type {other:?}: F32, F16 and BF16 are supported"))),
        };
        Ok(Tensor { dtype: DType::F32, shape: shape.to_vec(), data: Data::Inline(bytes) })
    }

    /// Normalisation parameters of models converted from TensorFlow are still called gamma and beta.
    fn find(&self, name: &str) -> Option<(String, &safetensors::tensor::TensorInfo)> {
        let old = name
            .strip_suffix("LayerNorm.weight")
            .map(|stem| format!("{stem}LayerNorm.gamma"))
            .or_else(|| name.strip_suffix("LayerNorm.bias").map(|stem| format!("{stem}LayerNorm.beta")));
        [Some(name.to_owned()), old].into_iter().flatten().find_map(|name| {
            let stored = format!("{}{name}", self.prefix);
            self.metadata.info(&stored).map(|info| (stored, info))
        })
    }

    fn absent(&self, name: &str) -> HfError {
        let last = name.rsplit('.').nth(1).unwrap_or(name);
        let near = self.metadata.offset_keys().into_iter().find(|key| key.contains(last));
        let hint = near.map_or_else(
            || format!("; it has {} tensors", self.metadata.tensors().len()),
            |near| format!("; it has {near:?}"),
        );
        HfError::Missing { path: self.path.clone(), name: format!("{}{name}", self.prefix), hint }
    }
}

fn widened(bytes: &[u8], to_f32: impl Fn([u8; 2]) -> f32) -> Bytes {
    bytes.as_chunks::<2>().0.iter().flat_map(|pair| to_f32(*pair).to_le_bytes()).collect::<Vec<_>>().into()
}

/// A weights file that cannot be read; says what is there instead.
fn missing(path: &Path, source: io::Error) -> HfError {
    let found = ["model.safetensors.index.json", "pytorch_model.bin", "tf_model.h5"]
        .into_iter()
        .find(|other| source.kind() == io::ErrorKind::NotFound && path.with_file_name(other).exists());
    match found {
        Some(found) => HfError::OtherWeights { path: path.to_owned(), found },
        None => HfError::Io { path: path.to_owned(), source },
    }
}
