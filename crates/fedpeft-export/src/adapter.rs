//! The adapter as safetensors.

use std::{collections::HashMap, fs, path::Path};

use fedpeft_artifacts::{CheckpointError, Manifest, read_checkpoint};
use fedpeft_codec::{Layout, TensorSpec, encode};
use safetensors::{Dtype, SafeTensors, tensor::TensorView};

use crate::ExportError;

/// What was trained.
#[derive(Debug, Clone, Copy)]
pub struct Trained<'a> {
    /// Values of the adapter, flat in the order of [`Manifest::adapter`].
    pub adapter: &'a [f32],
    /// What its LoRA factors do not hold, flat in the order of [`Manifest::residual`]; where there is none, nothing.
    pub residual: Option<&'a [f32]>,
}

impl<'a> From<&'a Vec<f32>> for Trained<'a> {
    fn from(adapter: &'a Vec<f32>) -> Self {
        Self { adapter, residual: None }
    }
}

impl<'a> Trained<'a> {
    /// Every tensor with its values, where these fill the layouts of `manifest`.
    pub(crate) fn tensors(&self, manifest: &Manifest) -> Result<Vec<(TensorSpec, &'a [f32])>, ExportError> {
        fn named<'a>(
            layout: &Layout,
            values: &'a [f32],
        ) -> Result<Vec<(TensorSpec, &'a [f32])>, ExportError> {
            check(layout, values)?;
            Ok(layout.ranges().map(|(spec, range)| (spec.clone(), &values[range])).collect())
        }
        let mut tensors = named(&manifest.adapter, self.adapter)?;
        match (manifest.residual()?, self.residual) {
            (Some(layout), Some(residual)) => tensors.extend(named(&layout, residual)?),
            (None, Some(residual)) => {
                return Err(ExportError::Values { expected: 0, found: residual.len() });
            }
            (_, None) => {}
        }
        Ok(tensors)
    }

    /// Whether its factors hold all of it.
    pub(crate) fn fits_its_rank(&self) -> bool {
        self.residual.is_none_or(|residual| residual.iter().all(|value| *value == 0.0))
    }
}

/// What was trained as a safetensors file with the names and shapes of the layouts. Its metadata has `format`, for libraries
/// that ask for it, and the `method` as JSON.
pub fn adapter_safetensors<'a>(
    manifest: &Manifest,
    trained: impl Into<Trained<'a>>,
) -> Result<Vec<u8>, ExportError> {
    let tensors = trained.into().tensors(manifest)?;
    let bytes: Vec<_> = tensors.iter().map(|(_, values)| encode(values)).collect();
    let views = tensors.iter().zip(&bytes).map(|((spec, _), bytes)| {
        let shape = spec.shape.iter().map(|dim| *dim as usize).collect();
        Ok((spec.name.as_str(), TensorView::new(Dtype::F32, shape, bytes)?))
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
    Ok(read(path, layout, None)?.0)
}

/// [`read_adapter`], and what its LoRA factors do not hold where the artifacts have residuals and the file does.
pub fn read_trained(path: &Path, manifest: &Manifest) -> Result<(Vec<f32>, Option<Vec<f32>>), ExportError> {
    read(path, &manifest.adapter, manifest.residual()?.as_ref())
}

fn read(
    path: &Path,
    layout: &Layout,
    residual: Option<&Layout>,
) -> Result<(Vec<f32>, Option<Vec<f32>>), ExportError> {
    let bytes = fs::read(path).map_err(ExportError::io(path))?;
    let wrong = |source| ExportError::Checkpoint { path: path.to_owned(), source };
    let values = read_checkpoint(&bytes, layout).map_err(wrong)?;
    let file = SafeTensors::deserialize(&bytes).map_err(|error| wrong(CheckpointError::Format(error)))?;
    let (names, holds) =
        (file.names(), |layout: &Layout, name: &str| layout.tensors().iter().any(|spec| spec.name == name));
    let residual = residual.filter(|residual| names.iter().any(|name| holds(residual, name)));
    let known = |name: &str| holds(layout, name) || residual.is_some_and(|residual| holds(residual, name));
    if let Some(stranger) = names.iter().filter(|name| !known(name)).min() {
        let tensor = stranger.chars().take(200).collect();
        return Err(ExportError::Stranger { path: path.to_owned(), tensor });
    }
    let residual = residual.map(|residual| read_checkpoint(&bytes, residual).map_err(wrong)).transpose()?;
    Ok((values, residual))
}

/// Whether `values` fill `layout`.
fn check(layout: &Layout, values: &[f32]) -> Result<(), ExportError> {
    if values.len() == layout.values() {
        Ok(())
    } else {
        Err(ExportError::Values { expected: layout.values(), found: values.len() })
    }
}
