//! The adapter as safetensors.

use std::{collections::HashMap, fs, path::Path};

use fedpeft_artifacts::{CheckpointError, Manifest, read_checkpoint};
use fedpeft_codec::{Layout, encode};
use safetensors::{Dtype, SafeTensors, tensor::TensorView};

use crate::ExportError;

/// The values of an adapter, flat in layout order, as a safetensors file with the names and shapes of the layout.
/// Its metadata has `format`, for libraries that ask for it, and the `method` as JSON.
pub fn adapter_safetensors(manifest: &Manifest, values: &[f32]) -> Result<Vec<u8>, ExportError> {
    check(&manifest.adapter, values)?;
    let bytes = encode(values);
    let views = manifest.adapter.ranges().map(|(spec, range)| {
        let shape = spec.shape.iter().map(|dim| *dim as usize).collect();
        let view = TensorView::new(Dtype::F32, shape, &bytes[range.start * 4..range.end * 4])?;
        Ok((spec.name.as_str(), view))
    });
    let views = views.collect::<Result<Vec<_>, ExportError>>()?;
    let metadata = HashMap::from([
        // What `safetensors` calls the layout of PyTorch; `transformers` refuses files without it.
        ("format".to_owned(), "pt".to_owned()),
        ("method".to_owned(), serde_json::to_string(&manifest.method)?),
    ]);
    Ok(safetensors::serialize(views, Some(metadata))?)
}

/// Reads from a safetensors file the values of `layout`, and nothing else: flat, in layout order.
///
/// # Errors
/// [`ExportError`] naming the tensor by which the file is of another adapter.
pub fn read_adapter(path: &Path, layout: &Layout) -> Result<Vec<f32>, ExportError> {
    let bytes = fs::read(path).map_err(ExportError::io(path))?;
    let wrong = |source| ExportError::Checkpoint { path: path.to_owned(), source };
    let values = read_checkpoint(&bytes, layout).map_err(wrong)?;
    let file = SafeTensors::deserialize(&bytes).map_err(|error| wrong(CheckpointError::Format(error)))?;
    let known = |name: &&str| layout.tensors().iter().any(|spec| spec.name == **name);
    match file.names().into_iter().filter(|name| !known(name)).min() {
        Some(stranger) => {
            Err(ExportError::Stranger { path: path.to_owned(), tensor: stranger.chars().take(200).collect() })
        }
        None => Ok(values),
    }
}

/// Whether `values` fill `layout`.
pub(crate) fn check(layout: &Layout, values: &[f32]) -> Result<(), ExportError> {
    if values.len() == layout.values() {
        Ok(())
    } else {
        Err(ExportError::Values { expected: layout.values(), found: values.len() })
    }
}
