//! The training or evaluation graph with its tensors bound: nothing is allocated and no weight is copied
//! in a step.

use std::collections::BTreeMap;

use fedpeft_artifacts::manifest::{CORRECT, GRADIENT_SUFFIX, LABELS, LOSS, Manifest};
use fedpeft_codec::Layout;
use ort::{
    memory::Allocator,
    session::{IoBinding, Session},
    value::Tensor,
};

use crate::RuntimeError;

/// Bindings kept at once. An epoch has two batch sizes, its own and that of its last batch, and adapters in
/// device memory have two sides.
const MAX_BINDINGS: usize = 8;

/// Adapter tensors that live outside of host memory come in two sets, the current one and the next; in host
/// memory there is one, updated in place.
pub(crate) type Side = usize;

/// What one run of the graph says of its batch.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Measured {
    /// Mean loss over the batch.
    pub loss: f32,
    /// Right predictions.
    pub correct: i64,
}

/// Where the tensors of the adapter live.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Residence {
    Host,
    Device,
}

pub(crate) struct Graph {
    // Bindings and tensors go before the session whose memory they may use.
    bindings: BTreeMap<(usize, Side), Bound>,
    loss: Tensor<f32>,
    correct: Tensor<i64>,
    /// Gradients by adapter tensor; empty in the evaluation graph.
    pub gradients: Vec<Tensor<f32>>,
    session: Session,
    input: String,
    shape: Vec<i64>,
    residence: Residence,
}

/// One batch size.
struct Bound {
    binding: IoBinding,
    inputs: Tensor<f32>,
    labels: Tensor<i64>,
}

impl Graph {
    /// Wraps a session of a graph of `manifest`; `gradients` are its outputs to be kept, in layout order.
    pub fn new(
        session: Session,
        manifest: &Manifest,
        gradients: Vec<Tensor<f32>>,
        residence: Residence,
    ) -> Result<Self, RuntimeError> {
        let host = Allocator::default();
        Ok(Self {
            bindings: BTreeMap::new(),
            loss: Tensor::new(&host, Vec::<i64>::new())?,
            correct: Tensor::new(&host, Vec::<i64>::new())?,
            gradients,
            session,
            input: manifest.input.name.clone(),
            shape: manifest.input.shape.iter().map(|dim| dim.cast_signed()).collect(),
            residence,
        })
    }

    /// Runs one batch that `fill` writes into the bound input tensors.
    pub fn run(
        &mut self,
        layout: &Layout,
        adapter: &[Tensor<f32>],
        side: Side,
        batch: usize,
        fill: impl FnOnce(&mut [f32], &mut [i64]) -> Result<(), String>,
    ) -> Result<Measured, RuntimeError> {
        let key = (batch, side);
        if !self.bindings.contains_key(&key) {
            if self.bindings.len() >= MAX_BINDINGS {
                self.bindings.clear();
            }
            let bound = self.bind(layout, adapter, batch)?;
            self.bindings.insert(key, bound);
        }
        let Self { bindings, session, .. } = self;
        let Some(bound) = bindings.get_mut(&key) else {
            return Err(RuntimeError::Run("the batch is not bound".to_owned()));
        };
        let (_, inputs) = bound.inputs.extract_tensor_mut();
        let (_, labels) = bound.labels.extract_tensor_mut();
        fill(inputs, labels).map_err(RuntimeError::Examples)?;
        if self.residence == Residence::Device {
            // Host tensors are copied to the device when they are bound, and only then.
            bound.binding.bind_input(self.input.as_str(), &bound.inputs)?;
            bound.binding.bind_input(LABELS, &bound.labels)?;
        }
        session.run_binding(&bound.binding)?;
        let (loss, correct) = (self.loss.extract_tensor().1, self.correct.extract_tensor().1);
        match (loss, correct) {
            ([loss], [correct]) => Ok(Measured { loss: *loss, correct: *correct }),
            _ => Err(RuntimeError::Run("loss and correct are not scalars".to_owned())),
        }
    }

    fn bind(
        &mut self,
        layout: &Layout,
        adapter: &[Tensor<f32>],
        batch: usize,
    ) -> Result<Bound, RuntimeError> {
        let host = Allocator::default();
        let mut shape = vec![batch as i64];
        shape.extend(&self.shape);
        let inputs = Tensor::<f32>::new(&host, shape)?;
        let labels = Tensor::<i64>::new(&host, vec![batch as i64])?;
        let mut binding = self.session.create_binding()?;
        // Owned tensors in the session's own memory are bound by reference: what is written to them later
        // is what the next run reads.
        binding.bind_input(self.input.as_str(), &inputs)?;
        binding.bind_input(LABELS, &labels)?;
        for (spec, tensor) in layout.tensors().iter().zip(adapter) {
            binding.bind_input(spec.name.as_str(), tensor)?;
        }
        binding.bind_output(LOSS, &mut self.loss)?;
        binding.bind_output(CORRECT, &mut self.correct)?;
        for (spec, gradient) in layout.tensors().iter().zip(&mut self.gradients) {
            binding.bind_output(format!("{}{GRADIENT_SUFFIX}", spec.name), gradient)?;
        }
        Ok(Bound { binding, inputs, labels })
    }
}

/// One tensor per tensor of the layout.
pub(crate) fn tensors(layout: &Layout, allocator: &Allocator) -> Result<Vec<Tensor<f32>>, RuntimeError> {
    let shape =
        |spec: &fedpeft_codec::TensorSpec| spec.shape.iter().map(|dim| dim.cast_signed()).collect::<Vec<_>>();
    layout.tensors().iter().map(|spec| Ok(Tensor::new(allocator, shape(spec))?)).collect()
}
