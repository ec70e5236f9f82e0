//! The initial adapter: `checkpoint.safetensors` in the order of the wire.

use bytes::Bytes;
use fedpeft_codec::{CodecError, Layout};
use safetensors::{Dtype, SafeTensorError, SafeTensors};

/// A checkpoint that holds no adapter of the manifest's layout.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CheckpointError {
    #[error("checkpoint is not readable: {0}")]
    Parse(#[from] SafeTensorError),
    #[error("checkpoint has no tensor {0}, which the manifest lists")]
    Missing(String),
    #[error("checkpoint tensor {name} is {found}, the manifest says F32 {shape:?}")]
    Mismatch { name: String, found: String, shape: Vec<u64> },
    #[error("checkpoint: {0}")]
    Values(#[from] CodecError),
}

/// Encodes the checkpoint's tensors in the order of `layout`. Safetensors are little-endian as the wire is,
/// so that this is a matter of order.
pub(crate) fn adapter(checkpoint: &[u8], layout: &Layout) -> Result<Bytes, CheckpointError> {
    let tensors = SafeTensors::deserialize(checkpoint)?;
    let mut encoded = Vec::new();
    for spec in layout.tensors() {
        let tensor = tensors.tensor(&spec.name).map_err(|_| CheckpointError::Missing(spec.name.clone()))?;
        let same_shape = tensor.shape().iter().map(|dim| *dim as u64).eq(spec.shape.iter().copied());
        if tensor.dtype() != Dtype::F32 || !same_shape {
            return Err(CheckpointError::Mismatch {
                name: spec.name.clone(),
                found: format!("{:?} {:?}", tensor.dtype(), tensor.shape()),
                shape: spec.shape.clone(),
            });
        }
        encoded.extend_from_slice(tensor.data());
    }
    fedpeft_codec::validate(&encoded, layout)?;
    Ok(encoded.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use fedpeft_codec::{TensorSpec, encode};
    use proptest::prelude::*;
    use safetensors::tensor::TensorView;

    fn layout() -> Layout {
        let spec = |name: &str, shape: &[u64]| TensorSpec { name: name.into(), shape: shape.into() };
        Layout::new(vec![spec("z", &[2]), spec("a", &[1, 2])]).unwrap()
    }

    fn checkpoint(dtype: Dtype, a_shape: &[usize], values: [f32; 4]) -> Vec<u8> {
        let bytes = encode(&values);
        let z = TensorView::new(Dtype::F32, vec![2], &bytes[..8]).unwrap();
        let a = TensorView::new(dtype, a_shape.to_vec(), &bytes[8..]).unwrap();
        safetensors::serialize([("a", a), ("z", z)], None).unwrap()
    }

    #[test]
    fn tensors_come_in_the_order_of_the_layout() {
        let bytes = checkpoint(Dtype::F32, &[1, 2], [1.0, 2.0, 3.0, 4.0]);
        assert_eq!(adapter(&bytes, &layout()).unwrap(), encode(&[1.0, 2.0, 3.0, 4.0]));
    }

    #[test]
    fn what_does_not_match_the_manifest_is_named() {
        let error = |bytes: &[u8]| adapter(bytes, &layout()).unwrap_err();
        assert!(matches!(error(b"not a checkpoint"), CheckpointError::Parse(_)));
        let values = [1.0, 2.0, 3.0, 4.0];
        assert!(matches!(error(&checkpoint(Dtype::I32, &[1, 2], values)), CheckpointError::Mismatch { .. }));
        assert!(matches!(error(&checkpoint(Dtype::F32, &[2, 1], values)), CheckpointError::Mismatch { .. }));
        let nan = checkpoint(Dtype::F32, &[1, 2], [1.0, 2.0, f32::NAN, 4.0]);
        assert!(matches!(error(&nan), CheckpointError::Values(CodecError::NotFinite { .. })));
        let empty = safetensors::serialize(Vec::<(String, TensorView<'_>)>::new(), None).unwrap();
        assert!(matches!(error(&empty), CheckpointError::Missing(name) if name == "z"));
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_do_no_harm(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            prop_assert!(adapter(&bytes, &layout()).is_err());
        }
    }
}
