//! The initial adapter: `checkpoint.safetensors` in the order of the wire.

use std::io::{self, SeekFrom, Write};

use fedpeft_codec::{CodecError, Layout};
use fedpeft_strategy::Spool;
use safetensors::{Dtype, SafeTensorError, tensor::Metadata};

/// A checkpoint is the adapter's values behind a header that lists them; that of thousands of tensors takes less.
pub(crate) const HEADER_LIMIT: u64 = 16 << 20;
/// Bytes read at once, whole values.
const CHUNK: usize = 1 << 20;

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
    #[error("checkpoint cannot be read or its adapter written: {0}")]
    Io(#[from] io::Error),
}

/// Writes the checkpoint's tensors in the order of `layout`, encoded. Safetensors are little-endian as the wire is, so
/// that this is a matter of order. Both are read and written in chunks.
pub(crate) fn adapter(
    checkpoint: &mut dyn Spool,
    layout: &Layout,
    out: &mut dyn Write,
) -> Result<(), CheckpointError> {
    let (begin, metadata) = header(checkpoint)?;
    let mut chunk = vec![0; CHUNK];
    for spec in layout.tensors() {
        let info = metadata.info(&spec.name).ok_or_else(|| CheckpointError::Missing(spec.name.clone()))?;
        let same_shape = info.shape.iter().map(|dim| *dim as u64).eq(spec.shape.iter().copied());
        if info.dtype != Dtype::F32 || !same_shape {
            return Err(CheckpointError::Mismatch {
                name: spec.name.clone(),
                found: format!("{:?} {:?}", info.dtype, info.shape),
                shape: spec.shape.clone(),
            });
        }
        let (first, end) = info.data_offsets;
        checkpoint.seek(SeekFrom::Start(begin + first as u64))?;
        let mut offset = first;
        while offset < end {
            let bytes = &mut chunk[..(end - offset).min(CHUNK)];
            checkpoint.read_exact(bytes)?;
            if let Some((at, value)) = fedpeft_codec::not_finite(bytes) {
                let (tensor, index) = (spec.name.clone(), (offset - first) / size_of::<f32>() + at);
                return Err(CodecError::NotFinite { tensor, index, value: value.to_string() }.into());
            }
            out.write_all(bytes)?;
            offset += bytes.len();
        }
    }
    Ok(())
}

/// The header of a checkpoint, and where its values begin.
fn header(checkpoint: &mut dyn Spool) -> Result<(u64, Metadata), CheckpointError> {
    let size = checkpoint.seek(SeekFrom::End(0))?;
    let room = size.checked_sub(8).ok_or(SafeTensorError::HeaderTooSmall)?;
    checkpoint.rewind()?;
    let mut length = [0; 8];
    checkpoint.read_exact(&mut length)?;
    let length = u64::from_le_bytes(length);
    if length > room {
        return Err(SafeTensorError::InvalidHeaderLength.into());
    }
    if length > HEADER_LIMIT {
        return Err(SafeTensorError::HeaderTooLarge.into());
    }
    let mut text = vec![0; length as usize];
    checkpoint.read_exact(&mut text)?;
    let metadata: Metadata = serde_json::from_slice(&text).map_err(SafeTensorError::from)?;
    if metadata.data_len() as u64 != room - length {
        return Err(SafeTensorError::MetadataIncompleteBuffer.into());
    }
    Ok((8 + length, metadata))
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

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

    fn read(bytes: &[u8], layout: &Layout) -> Result<Vec<u8>, CheckpointError> {
        let mut out = Vec::new();
        adapter(&mut Cursor::new(bytes), layout, &mut out).map(|()| out)
    }

    #[test]
    fn tensors_come_in_the_order_of_the_layout() {
        let bytes = checkpoint(Dtype::F32, &[1, 2], [1.0, 2.0, 3.0, 4.0]);
        assert_eq!(read(&bytes, &layout()).unwrap(), encode(&[1.0, 2.0, 3.0, 4.0]));
    }

    #[test]
    fn what_does_not_match_the_manifest_is_named() {
        let error = |bytes: &[u8]| read(bytes, &layout()).unwrap_err();
        assert!(matches!(error(b"not a checkpoint"), CheckpointError::Parse(_)));
        let values = [1.0, 2.0, 3.0, 4.0];
        assert!(matches!(error(&checkpoint(Dtype::I32, &[1, 2], values)), CheckpointError::Mismatch { .. }));
        assert!(matches!(error(&checkpoint(Dtype::F32, &[2, 1], values)), CheckpointError::Mismatch { .. }));
        let nan = checkpoint(Dtype::F32, &[1, 2], [1.0, 2.0, f32::NAN, 4.0]);
        assert!(matches!(error(&nan), CheckpointError::Values(CodecError::NotFinite { .. })));
        let empty = safetensors::serialize(Vec::<(String, TensorView<'_>)>::new(), None).unwrap();
        assert!(matches!(error(&empty), CheckpointError::Missing(name) if name == "z"));
        let whole = checkpoint(Dtype::F32, &[1, 2], values);
        for cut in [4, 12, whole.len() - 1] {
            assert!(matches!(error(&whole[..cut]), CheckpointError::Parse(_)), "{cut}");
        }
        let huge = [&u64::MAX.to_le_bytes()[..], b"{}"].concat();
        assert!(matches!(error(&huge), CheckpointError::Parse(_)));
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_do_no_harm(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            prop_assert!(read(&bytes, &layout()).is_err());
        }
    }
}
