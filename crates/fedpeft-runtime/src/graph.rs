//! The training or evaluation graph with its tensors bound: nothing is allocated and no weight is copied
//! in a step.

use std::collections::BTreeMap;

use fedpeft_artifacts::manifest::{
    CLIP_NORM, CLIPPED, CORRECT, COUNT, DROPOUT_SEED, ElementType, GRADIENT_SUFFIX, InputSpec, LABELS, LOSS,
    Manifest,
};
use fedpeft_codec::Layout;
use ort::{
    memory::Allocator,
    session::{IoBinding, Session},
    value::Tensor,
};

use crate::{Batch, Examples, RuntimeError, Values, check::Limits, weight::Weighing};

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
    /// Right decisions.
    pub correct: i64,
    /// Decisions.
    pub count: i64,
    /// What the loss is a mean over.
    pub weight: f64,
    /// Examples whose gradient was clipped.
    pub clipped: i64,
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
    count: Tensor<i64>,
    /// Gradients by adapter tensor; empty in the evaluation graph.
    pub gradients: Vec<Tensor<f32>>,
    session: Session,
    /// The model's inputs in their order, then the labels.
    fed: Vec<Fed>,
    /// Seed of dropout, where the graph drops anything.
    dropout: Option<Tensor<i64>>,
    /// Where the graph clips the gradient of each example, to what norm, and how many it clipped.
    clipping: Option<(Tensor<f32>, Tensor<i64>)>,
    limits: Limits,
    weighing: Weighing,
    residence: Residence,
}

/// A tensor that examples are written to.
#[derive(Debug, Clone)]
pub(crate) struct Fed {
    pub name: String,
    pub dtype: ElementType,
    /// Shape of one example.
    pub shape: Vec<i64>,
}

/// What a batch of examples of `manifest` is written to: the model's inputs in their order, then the labels.
pub(crate) fn feeds(manifest: &Manifest) -> Result<Vec<Fed>, RuntimeError> {
    let signed = |shape: &[u64]| shape.iter().map(|dim| dim.cast_signed()).collect();
    let input =
        |input: &InputSpec| Fed { name: input.name.clone(), dtype: input.dtype, shape: signed(&input.shape) };
    let mut fed: Vec<Fed> = manifest.inputs.iter().map(input).collect();
    let (dtype, shape) = manifest.labels().map_err(|error| RuntimeError::Run(error.to_string()))?;
    fed.push(Fed { name: LABELS.to_owned(), dtype, shape: signed(&shape) });
    Ok(fed)
}

/// One batch size.
struct Bound {
    binding: IoBinding,
    inputs: Vec<Buffer>,
    labels: Buffer,
}

/// A bound tensor of a batch.
pub(crate) enum Buffer {
    F32(Tensor<f32>),
    I64(Tensor<i64>),
}

impl Buffer {
    pub fn new(fed: &Fed, batch: usize) -> Result<Self, RuntimeError> {
        let (host, mut shape) = (Allocator::default(), vec![batch as i64]);
        shape.extend(&fed.shape);
        Ok(match fed.dtype {
            ElementType::F32 => Self::F32(Tensor::new(&host, shape)?),
            ElementType::I64 => Self::I64(Tensor::new(&host, shape)?),
        })
    }

    pub fn clear(&mut self) {
        match self.values() {
            Values::F32(values) => values.fill(0.0),
            Values::I64(values) => values.fill(0),
        }
    }

    pub fn values(&mut self) -> Values<'_> {
        match self {
            Self::F32(tensor) => Values::F32(tensor.extract_tensor_mut().1),
            Self::I64(tensor) => Values::I64(tensor.extract_tensor_mut().1),
        }
    }

    pub fn bind(&self, binding: &mut IoBinding, name: &str) -> ort::Result<()> {
        match self {
            Self::F32(tensor) => binding.bind_input(name, tensor),
            Self::I64(tensor) => binding.bind_input(name, tensor),
        }
    }
}

impl Bound {
    fn bind_batch(&mut self, fed: &[Fed]) -> ort::Result<()> {
        let Self { binding, inputs, labels } = self;
        let buffers = inputs.iter().chain([&*labels]);
        fed.iter().zip(buffers).try_for_each(|(fed, buffer)| buffer.bind(binding, &fed.name))
    }
}

impl Graph {
    /// Wraps a session of a graph of `manifest` that reads `fed`; `gradients` are its outputs to be kept, in layout order.
    pub fn new(
        session: Session,
        manifest: &Manifest,
        fed: Vec<Fed>,
        gradients: Vec<Tensor<f32>>,
        residence: Residence,
    ) -> Result<Self, RuntimeError> {
        let host = Allocator::default();
        let reads = |name: &str| session.inputs().iter().any(|input| input.name() == name);
        let dropout = reads(DROPOUT_SEED).then(|| Tensor::new(&host, Vec::<i64>::new())).transpose()?;
        let clipping = match reads(CLIP_NORM) {
            true => Some((Tensor::new(&host, Vec::<i64>::new())?, Tensor::new(&host, Vec::<i64>::new())?)),
            false => None,
        };
        // Where each example counts for itself, it weighs as much as any other.
        let weighing = if clipping.is_some() { Weighing::Examples } else { Weighing::of(&manifest.task) };
        Ok(Self {
            dropout,
            clipping,
            bindings: BTreeMap::new(),
            loss: Tensor::new(&host, Vec::<i64>::new())?,
            correct: Tensor::new(&host, Vec::<i64>::new())?,
            count: Tensor::new(&host, Vec::<i64>::new())?,
            gradients,
            session,
            fed,
            limits: Limits::of(manifest),
            weighing,
            residence,
        })
    }

    /// What is dropped in the next run.
    pub fn reseed(&mut self, seed: i64) {
        if let Some(tensor) = &mut self.dropout {
            tensor.extract_tensor_mut().1.fill(seed);
        }
    }

    /// Whether the gradient of each example is clipped.
    pub fn clips(&self) -> bool {
        self.clipping.is_some()
    }

    /// To what norm each example's gradient is clipped from now on.
    pub fn clip_to(&mut self, norm: f64) {
        if let Some((tensor, _)) = &mut self.clipping {
            tensor.extract_tensor_mut().1.fill(norm as f32);
        }
    }

    /// Runs the examples at `indices`, written into the bound tensors.
    pub fn run(
        &mut self,
        layout: &Layout,
        adapter: &[Tensor<f32>],
        side: Side,
        examples: &dyn Examples,
        indices: &[usize],
    ) -> Result<Measured, RuntimeError> {
        let key = (indices.len(), side);
        if !self.bindings.contains_key(&key) {
            if self.bindings.len() >= MAX_BINDINGS {
                self.bindings.clear();
            }
            let bound = self.bind(layout, adapter, indices.len())?;
            self.bindings.insert(key, bound);
        }
        let Self { bindings, session, fed, limits, dropout, clipping, weighing, .. } = self;
        let Some(bound) = bindings.get_mut(&key) else {
            return Err(RuntimeError::Run("the batch is not bound".to_owned()));
        };
        let inputs = bound.inputs.iter_mut().map(Buffer::values).collect();
        let mut batch = Batch { inputs, labels: bound.labels.values() };
        examples.fill(indices, &mut batch).map_err(RuntimeError::Examples)?;
        limits.check(indices, &batch)?;
        if self.residence == Residence::Device {
            // Host tensors are copied to the device when they are bound, and only then.
            bound.bind_batch(fed)?;
            if let Some(seed) = dropout {
                bound.binding.bind_input(DROPOUT_SEED, seed)?;
            }
            if let Some((norm, _)) = clipping {
                bound.binding.bind_input(CLIP_NORM, norm)?;
            }
        }
        session.run_binding(&bound.binding)?;
        let clipped = clipping.as_ref().and_then(|(_, count)| count.extract_tensor().1.first().copied());
        let (loss, correct) = (self.loss.extract_tensor().1, self.correct.extract_tensor().1);
        match (loss, correct, self.count.extract_tensor().1) {
            (&[loss], &[correct], &[count]) => {
                let decisions = count.max(0).cast_unsigned();
                let weight = weighing.weigh(indices.len(), &bound.labels.values(), decisions);
                Ok(Measured { loss, correct, count, weight, clipped: clipped.unwrap_or(0) })
            }
            _ => Err(RuntimeError::Run("loss, correct and count are not scalars".to_owned())),
        }
    }

    fn bind(
        &mut self,
        layout: &Layout,
        adapter: &[Tensor<f32>],
        batch: usize,
    ) -> Result<Bound, RuntimeError> {
        let mut buffers =
            self.fed.iter().map(|fed| Buffer::new(fed, batch)).collect::<Result<Vec<_>, _>>()?;
        let Some(labels) = buffers.pop() else {
            return Err(RuntimeError::Run("the graph reads no labels".to_owned()));
        };
        let mut bound = Bound { binding: self.session.create_binding()?, inputs: buffers, labels };
        // Owned tensors in the session's own memory are bound by reference: what is written to them later
        // is what the next run reads.
        bound.bind_batch(&self.fed)?;
        let binding = &mut bound.binding;
        if let Some(seed) = &self.dropout {
            binding.bind_input(DROPOUT_SEED, seed)?;
        }
        if let Some((norm, count)) = &mut self.clipping {
            binding.bind_input(CLIP_NORM, norm)?;
            binding.bind_output(CLIPPED, count)?;
        }
        for (spec, tensor) in layout.tensors().iter().zip(adapter) {
            binding.bind_input(spec.name.as_str(), tensor)?;
        }
        binding.bind_output(LOSS, &mut self.loss)?;
        binding.bind_output(CORRECT, &mut self.correct)?;
        binding.bind_output(COUNT, &mut self.count)?;
        for (spec, gradient) in layout.tensors().iter().zip(&mut self.gradients) {
            binding.bind_output(format!("{}{GRADIENT_SUFFIX}", spec.name), gradient)?;
        }
        Ok(bound)
    }
}

/// One tensor per tensor of the layout, with these values, flat.
pub(crate) fn filled(
    layout: &Layout,
    values: &[f32],
    allocator: &Allocator,
) -> Result<Vec<Tensor<f32>>, RuntimeError> {
    let (mut host, mut made) = (tensors(layout, &Allocator::default())?, tensors(layout, allocator)?);
    for (((_, range), host), tensor) in layout.ranges().zip(&mut host).zip(&mut made) {
        host.extract_tensor_mut().1.copy_from_slice(&values[range]);
        host.copy_into(tensor)?;
    }
    Ok(made)
}

/// One tensor per tensor of the layout.
pub(crate) fn tensors(layout: &Layout, allocator: &Allocator) -> Result<Vec<Tensor<f32>>, RuntimeError> {
    let shape =
        |spec: &fedpeft_codec::TensorSpec| spec.shape.iter().map(|dim| dim.cast_signed()).collect::<Vec<_>>();
    layout.tensors().iter().map(|spec| Ok(Tensor::new(allocator, shape(spec))?)).collect()
}
