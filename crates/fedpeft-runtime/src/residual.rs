//! Residuals beside the adapter: what graphs of LoRA may read that differs from round to round and is not trained.

use fedpeft_artifacts::manifest::Manifest;
use fedpeft_codec::Layout;
use ort::{memory::Allocator, value::Tensor};

use crate::{RuntimeError, adapter, graph::tensors, memory::Residence};

/// The residuals, where the artifacts have any.
pub(crate) struct Residual {
    layout: Option<Layout>,
    tensors: Vec<Tensor<f32>>,
    residence: Residence,
    is_zero: bool,
}

impl Residual {
    /// All zeros.
    pub fn new(
        manifest: &Manifest,
        allocator: &Allocator,
        residence: Residence,
    ) -> Result<Self, RuntimeError> {
        // What an artifact folder holds was checked.
        let layout = manifest.residual().map_err(|error| RuntimeError::Run(error.to_string()))?;
        let tensors = layout.as_ref().map_or(Ok(Vec::new()), |layout| tensors(layout, allocator))?;
        let mut own = Self { layout, tensors, residence, is_zero: false };
        own.write(None)?;
        Ok(own)
    }

    /// Overwrites them with `values`, flat in the order of [`Manifest::residual`], or with zeros where there are none.
    pub fn write(&mut self, values: Option<&[f32]>) -> Result<(), RuntimeError> {
        let expected = self.layout.as_ref().map_or(0, Layout::values);
        if let Some(values) = values.filter(|values| values.len() != expected) {
            return Err(RuntimeError::Residual { got: values.len(), expected });
        }
        let Some(layout) = self.layout.as_ref().filter(|_| values.is_some() || !self.is_zero) else {
            return Ok(());
        };
        match values {
            Some(values) => adapter::write(&mut self.tensors, layout, self.residence, values)?,
            None => adapter::write(&mut self.tensors, layout, self.residence, &vec![0.0; expected])?,
        }
        self.is_zero = values.is_none();
        Ok(())
    }

    /// The tensors by the names of the graph inputs.
    pub fn named(&self) -> impl Iterator<Item = (&str, &Tensor<f32>)> {
        let specs = self.layout.iter().flat_map(Layout::tensors);
        specs.map(|spec| spec.name.as_str()).zip(&self.tensors)
    }
}
