//! The training or evaluation graph with its tensors bound: nothing is allocated and no weight is copied
//! in a step.

mod program;

use fedpeft_artifacts::manifest::{CLIP_NORM, DROPOUT_SEED, ElementType, Manifest};
use fedpeft_codec::Layout;
use ort::{memory::Allocator, value::Tensor};

use crate::{
    Batch, Examples, RuntimeError, Shapes, Values, buffer::Staged, check::Limits, memory::Memory,
    residual::Residual, source::Source, weight::Weighing,
};
use program::{Bound, Program};

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

/// What a run computes with, besides its batch.
#[derive(Clone, Copy)]
pub(crate) struct Site<'a> {
    pub layout: &'a Layout,
    pub memory: &'a Memory,
    pub adapter: &'a [Tensor<f32>],
    pub residual: &'a Residual,
    pub side: Side,
}

pub(crate) struct Graph {
    // Programs have bindings to the tensors.
    /// Runs batches of the usual size, where these have a session of their own.
    own: Option<Program>,
    /// Runs batches of any size.
    any: Option<Program>,
    tensors: Tensors,
    source: Source,
    shapes: Shapes,
    /// Size of most batches.
    usual: usize,
    limits: Limits,
    weighing: Weighing,
}

/// What all runs read and write, whatever the size of the batch.
pub(crate) struct Tensors {
    /// Gradients by adapter tensor; empty in the evaluation graph.
    gradients: Vec<Tensor<f32>>,
    /// Seed of dropout, where the graph drops anything.
    dropout: Option<Staged>,
    /// To what norm the graph clips the gradient of each example, where it does.
    clipping: Option<Staged>,
    measured: Output,
}

/// An output that the host reads, and where a session writes it, if that is elsewhere.
pub(crate) struct Output {
    host: Tensor<f64>,
    device: Option<Tensor<f64>>,
}

impl Graph {
    /// A graph of `manifest`, most of whose batches will be of the size `usual`; `gradients` are its outputs to be kept,
    /// in layout order.
    pub fn new(
        source: Source,
        manifest: &Manifest,
        gradients: Vec<Tensor<f32>>,
        memory: &Memory,
        usual: usize,
    ) -> Result<Self, RuntimeError> {
        let shapes = source.options.shapes.on(source.device);
        let (own, any) = match shapes {
            Shapes::Any => (None, Some(Program::any(&source)?)),
            _ => (Some(Program::own(&source, usual, shapes)?), None),
        };
        let (own, shapes) = match own {
            Some((program, shapes)) => (Some(program), shapes),
            None => (None, shapes),
        };
        let first = own.as_ref().or(any.as_ref());
        let reads = |name: &str| first.is_some_and(|program| program.reads(name));
        let dropout = reads(DROPOUT_SEED).then(|| Staged::scalar(ElementType::I64, memory)).transpose()?;
        let clipping = reads(CLIP_NORM).then(|| Staged::scalar(ElementType::F32, memory)).transpose()?;
        // Where each example counts for itself, it weighs as much as any other.
        let weighing = if clipping.is_some() { Weighing::Examples } else { Weighing::of(&manifest.task) };
        let numbers = if clipping.is_some() { 4 } else { 3 };
        let measured = Output::new(numbers, memory)?;
        let tensors = Tensors { gradients, dropout, clipping, measured };
        let limits = Limits::of(manifest);
        Ok(Self { own, any, tensors, source, shapes, usual, limits, weighing })
    }

    /// The gradients of the last run.
    pub fn gradients(&self) -> &[Tensor<f32>] {
        &self.tensors.gradients
    }

    /// The gradients of the last run, to be replaced.
    pub fn gradients_mut(&mut self) -> &mut [Tensor<f32>] {
        &mut self.tensors.gradients
    }

    /// What sessions know of the size of batches.
    pub fn shapes(&self) -> Shapes {
        self.shapes
    }

    /// Most batches are of this size from now on.
    pub fn expect(&mut self, usual: usize) {
        if self.usual != usual {
            (self.usual, self.own) = (usual, None);
        }
    }

    /// What is dropped in the next run.
    pub fn reseed(&mut self, seed: i64) {
        if let Some(Values::I64(values)) = self.tensors.dropout.as_mut().map(Staged::values) {
            values.fill(seed);
        }
    }

    /// Whether the gradient of each example is clipped.
    pub fn clips(&self) -> bool {
        self.tensors.clipping.is_some()
    }

    /// To what norm each example's gradient is clipped from now on.
    pub fn clip_to(&mut self, norm: f64) {
        if let Some(Values::F32(values)) = self.tensors.clipping.as_mut().map(Staged::values) {
            values.fill(norm as f32);
        }
    }

    /// Runs the examples at `indices`, written into the bound tensors.
    pub fn run(
        &mut self,
        site: Site<'_>,
        examples: &dyn Examples,
        indices: &[usize],
    ) -> Result<Measured, RuntimeError> {
        let fill = |bound: &mut Bound, limits: &Limits| {
            let inputs = bound.inputs.iter_mut().map(Staged::values).collect();
            let mut batch = Batch { inputs, labels: bound.labels.values() };
            examples.fill(indices, &mut batch).map_err(RuntimeError::Examples)?;
            limits.check(indices, &batch)
        };
        let is_own = self.shapes != Shapes::Any && indices.len() == self.usual;
        if is_own && self.own.is_none() {
            let (program, shapes) = Program::own(&self.source, self.usual, self.shapes)?;
            (self.own, self.shapes) = (Some(program), shapes);
        }
        if !is_own && self.any.is_none() {
            self.any = Some(Program::any(&self.source)?);
        }
        let Self { own, any, tensors, source, limits, weighing, .. } = self;
        let Some(program) = (if is_own { own } else { any }) else {
            return Err(RuntimeError::Run("the session is gone".to_owned()));
        };
        tensors.send()?;
        let is_new = program.bind(source, tensors, site, indices.len())?;
        let bound = program.bound(indices.len(), site.side)?;
        fill(bound, limits)?;
        bound.send()?;
        if is_new && program.is_recorded() && !program.record(tensors, indices.len(), site.side) {
            // Without a record, from here on.
            self.shapes = Shapes::Fixed;
            self.own = None;
            return self.run(site, examples, indices);
        }
        program.run(indices.len(), site.side)?;
        let measured = tensors.measured.read()?;
        let bound = program.bound(indices.len(), site.side)?;
        let (loss, correct, count, clipped) = match *measured {
            [loss, correct, count] => (loss, correct, count, 0.0),
            [loss, correct, count, clipped] => (loss, correct, count, clipped),
            _ => return Err(RuntimeError::Run("loss, correct and count are not three numbers".to_owned())),
        };
        let [correct, count, clipped] = [correct, count, clipped].map(|number| number as i64);
        let decisions = count.max(0).cast_unsigned();
        let weight = weighing.weigh(indices.len(), &bound.labels.values(), decisions);
        Ok(Measured { loss: loss as f32, correct, count, weight, clipped })
    }
}

impl Tensors {
    fn send(&mut self) -> ort::Result<()> {
        self.dropout.iter_mut().chain(&mut self.clipping).try_for_each(Staged::send)
    }
}

impl Output {
    fn new(numbers: i64, memory: &Memory) -> Result<Self, RuntimeError> {
        let device = memory.is_elsewhere().then(|| Tensor::new(&memory.allocator, [numbers])).transpose()?;
        Ok(Self { host: Tensor::new(&Allocator::default(), [numbers])?, device })
    }

    /// What a session writes.
    fn written(&mut self) -> &mut Tensor<f64> {
        self.device.as_mut().unwrap_or(&mut self.host)
    }

    fn read(&mut self) -> ort::Result<&[f64]> {
        if let Some(device) = &self.device {
            device.copy_into(&mut self.host)?;
        }
        Ok(self.host.extract_tensor().1)
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
