//! The adapter as safetensors.

use fedpeft_codec::{Layout, TensorSpec};
use fedpeft_onnx::Tensor;
use safetensors::{Dtype, SafeTensors, tensor::TensorView};

/// A checkpoint that does not hold the adapter.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// Not a safetensors file.
    #[error("checkpoint is not readable: {0}")]
    Format(#[from] safetensors::SafeTensorError),
    /// A tensor is missing or has another type or shape.
    #[error("checkpoint tensor {name:?} should be f32 of shape {expected:?}, but {found}")]
    Tensor {
        /// The tensor.
        name: String,
        /// The shape in the manifest.
        expected: Vec<u64>,
        /// What is there instead.
        found: String,
    },
}

/// Serialises the initial adapter.
pub(crate) fn write(adapter: &[(String, Tensor)]) -> Result<Vec<u8>, CheckpointError> {
    let views = adapter.iter().filter_map(|(name, tensor)| {
        let bytes = tensor.bytes()?;
        Some(TensorView::new(Dtype::F32, tensor.shape.clone(), bytes).map(|view| (name.clone(), view)))
    });
    Ok(safetensors::serialize(views.collect::<Result<Vec<_>, _>>()?, None)?)
}

/// Reads the values of `layout` from a checkpoint: one flat run in layout order.
pub fn read_checkpoint(bytes: &[u8], layout: &Layout) -> Result<Vec<f32>, CheckpointError> {
    let file = SafeTensors::deserialize(bytes)?;
    // The layout is a claim: what is allocated for it is no more than there is.
    let mut values = Vec::with_capacity(layout.values().min(bytes.len() / size_of::<f32>()));
    for TensorSpec { name, shape } in layout.tensors() {
        let wrong =
            |found: String| CheckpointError::Tensor { name: name.clone(), expected: shape.clone(), found };
        let view = file.tensor(name).map_err(|_| wrong("there is none of this name".into()))?;
        if view.dtype() != Dtype::F32 || !view.shape().iter().map(|d| *d as u64).eq(shape.iter().copied()) {
            return Err(wrong(format!("it is {:?} of shape {:?}", view.dtype(), view.shape())));
        }
        values.extend(view.data().as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)));
        let start = values.len() - view.data().len() / size_of::<f32>();
        if let Some(value) = values[start..].iter().find(|value| !value.is_finite()) {
            return Err(wrong(format!("holds {value}")));
        }
    }
    Ok(values)
}
