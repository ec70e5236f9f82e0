//! Reading the committed files.

use std::{
    collections::{BTreeMap, HashMap},
    path::PathBuf,
};

use fedpeft_interp::Value;
use ndarray::ArrayD;
use safetensors::{Dtype, SafeTensors};

/// A path below `tests/golden`.
pub fn path(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(name)
}

/// All tensors of a safetensors file, and its metadata.
pub fn read(name: &str) -> (BTreeMap<String, Value>, HashMap<String, String>) {
    let bytes = std::fs::read(path(name)).unwrap_or_else(|error| panic!("{name}: {error}"));
    let (_, header) = SafeTensors::read_metadata(&bytes).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let value = |view: safetensors::tensor::TensorView<'_>| {
        let (shape, data) = (view.shape().to_vec(), view.data());
        match view.dtype() {
            Dtype::F32 => {
                let values = data.as_chunks().0.iter().map(|bytes| f64::from(f32::from_le_bytes(*bytes)));
                Value::Float(ArrayD::from_shape_vec(shape, values.collect()).unwrap())
            }
            Dtype::I64 => {
                let values = data.as_chunks().0.iter().map(|bytes| i64::from_le_bytes(*bytes));
                Value::Int(ArrayD::from_shape_vec(shape, values.collect()).unwrap())
            }
            other => panic!("{name}: tensors of type {other:?} are not expected"),
        }
    };
    let tensors = file.tensors().into_iter().map(|(name, view)| (name, value(view))).collect();
    (tensors, header.metadata().clone().unwrap_or_default())
}
