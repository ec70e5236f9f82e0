//! Features of examples: what the frozen part of a model makes of them, computed once.

use fedpeft_artifacts::manifest::Manifest;
use ort::{
    memory::{AllocationDevice, AllocatorType, MemoryInfo, MemoryType},
    session::Session,
};

use crate::{
    Batch, Column, Examples, InMemory, RuntimeError,
    buffer::{Buffer, Fed, feeds},
    check::Limits,
};

/// Examples that are computed at once.
const BATCH: usize = 64;

/// The frozen part of a model, up to where training begins. [`Trainer::on_features`](crate::Trainer::on_features) makes it.
pub struct FeatureExtractor {
    session: Session,
    /// The model's inputs, then the labels.
    fed: Vec<Fed>,
    limits: Limits,
    /// What the session gives.
    features: String,
    /// Shape of one example's.
    shape: Vec<i64>,
}

impl FeatureExtractor {
    /// Wraps a session that ends at `features`, and finds out their shape.
    pub(crate) fn new(session: Session, manifest: &Manifest, features: String) -> Result<Self, RuntimeError> {
        let (fed, limits) = (feeds(manifest)?, Limits::of(manifest));
        let mut own = Self { session, fed, limits, features, shape: Vec::new() };
        let mut buffers = own.buffers(1)?;
        // Tensors are zeros until something is written to them, and that is an example of every kind of input.
        buffers.iter_mut().for_each(Buffer::clear);
        own.shape = own.run(&buffers, 1)?.0;
        Ok(own)
    }

    /// Shape of the features of one example.
    pub(crate) fn shape(&self) -> &[i64] {
        &self.shape
    }

    /// Values in the features of one example.
    pub fn width(&self) -> usize {
        self.shape.iter().map(|dim| usize::try_from(*dim).unwrap_or(0)).product()
    }

    /// The features of all examples, with their labels. `proceed` is asked before every batch, and ends it by returning
    /// `false`.
    ///
    /// # Errors
    /// [`RuntimeError`], of examples that cannot be read or do not fit.
    pub fn extract(
        &mut self,
        examples: &dyn Examples,
        proceed: &mut dyn FnMut() -> bool,
    ) -> Result<InMemory, RuntimeError> {
        let count = examples.len();
        if count == 0 {
            return Err(RuntimeError::NoExamples);
        }
        let mut features = Vec::with_capacity(count * self.width());
        let mut labels: Option<Column> = None;
        let all: Vec<usize> = (0..count).collect();
        for indices in all.chunks(BATCH) {
            if !proceed() {
                return Err(RuntimeError::Stopped);
            }
            let mut buffers = self.buffers(indices.len())?;
            let Some((label, inputs)) = buffers.split_last_mut() else {
                return Err(RuntimeError::Run("the graph reads no labels".to_owned()));
            };
            let inputs = inputs.iter_mut().map(Buffer::values).collect();
            let mut batch = Batch { inputs, labels: label.values() };
            examples.fill(indices, &mut batch).map_err(RuntimeError::Examples)?;
            self.limits.check(indices, &batch)?;
            match &mut labels {
                None => labels = Some(Column::of(&batch.labels)),
                Some(labels) => labels.extend(&batch.labels),
            }
            let (shape, values) = self.run(&buffers, indices.len())?;
            if shape != self.shape {
                return Err(RuntimeError::Run(format!(
                    "features have the shape {shape:?}, not {:?}",
                    self.shape
                )));
            }
            features.extend(values);
        }
        let made = labels.and_then(|labels| InMemory::with_columns(count, vec![features.into()], labels));
        made.ok_or_else(|| RuntimeError::Run("features are not one row for each example".to_owned()))
    }

    fn buffers(&self, batch: usize) -> Result<Vec<Buffer>, RuntimeError> {
        self.fed.iter().map(|fed| Buffer::new(fed, batch)).collect()
    }

    /// The features of a batch, and the shape of one example's.
    fn run(&mut self, buffers: &[Buffer], batch: usize) -> Result<(Vec<i64>, Vec<f32>), RuntimeError> {
        let mut binding = self.session.create_binding()?;
        let read: Vec<&str> = self.session.inputs().iter().map(|input| input.name()).collect();
        for (fed, buffer) in self.fed.iter().zip(buffers).filter(|(fed, _)| read.contains(&fed.name.as_str()))
        {
            buffer.bind(&mut binding, &fed.name)?;
        }
        let host = MemoryInfo::new(AllocationDevice::CPU, 0, AllocatorType::Device, MemoryType::CPUOutput)?;
        binding.bind_output_to_device(self.features.as_str(), &host)?;
        let outputs = self.session.run_binding(&binding)?;
        let (shape, values) = outputs[self.features.as_str()].try_extract_tensor::<f32>()?;
        match shape.split_first() {
            Some((first, rest)) if *first == batch as i64 => Ok((rest.to_vec(), values.to_vec())),
            _ => Err(RuntimeError::Run(format!("features of {batch} examples have the shape {shape:?}"))),
        }
    }
}
