//! Tensors that batches are written to.

use fedpeft_artifacts::manifest::{ElementType, InputSpec, LABELS, Manifest};
use ort::{memory::Allocator, session::IoBinding, value::Tensor};

use crate::{RuntimeError, Values, memory::Memory};

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

/// A tensor of the host.
pub(crate) enum Buffer {
    F32(Tensor<f32>),
    I64(Tensor<i64>),
}

impl Buffer {
    /// For a batch of this size, in host memory.
    pub fn new(fed: &Fed, batch: usize) -> Result<Self, RuntimeError> {
        let mut shape = vec![batch as i64];
        shape.extend(&fed.shape);
        Self::shaped(fed.dtype, shape, &Allocator::default())
    }

    fn shaped(dtype: ElementType, shape: Vec<i64>, allocator: &Allocator) -> Result<Self, RuntimeError> {
        Ok(match dtype {
            ElementType::F32 => Self::F32(Tensor::new(allocator, shape)?),
            ElementType::I64 => Self::I64(Tensor::new(allocator, shape)?),
        })
    }

    /// Of the same type and shape, elsewhere.
    fn like(&self, allocator: &Allocator) -> Result<Self, RuntimeError> {
        match self {
            Self::F32(tensor) => Self::shaped(ElementType::F32, tensor.shape().to_vec(), allocator),
            Self::I64(tensor) => Self::shaped(ElementType::I64, tensor.shape().to_vec(), allocator),
        }
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

    fn copy_into(&self, other: &mut Self) -> ort::Result<()> {
        match (self, other) {
            (Self::F32(from), Self::F32(to)) => from.copy_into(to),
            (Self::I64(from), Self::I64(to)) => from.copy_into(to),
            _ => Ok(()),
        }
    }
}

/// A tensor that the host writes, and what a session reads, where that is elsewhere. Both stay at their places, so that
/// a session that has one of them bound needs no other.
pub(crate) struct Staged {
    host: Buffer,
    device: Option<Buffer>,
}

impl Staged {
    fn of(host: Buffer, memory: &Memory) -> Result<Self, RuntimeError> {
        let device = memory.is_elsewhere().then(|| host.like(&memory.allocator)).transpose()?;
        Ok(Self { host, device })
    }

    /// For a batch of this size.
    pub fn new(fed: &Fed, batch: usize, memory: &Memory) -> Result<Self, RuntimeError> {
        Self::of(Buffer::new(fed, batch)?, memory)
    }

    /// One number.
    pub fn scalar(dtype: ElementType, memory: &Memory) -> Result<Self, RuntimeError> {
        Self::of(Buffer::shaped(dtype, Vec::new(), &Allocator::default())?, memory)
    }

    /// What [`Self::send`] sends.
    pub fn values(&mut self) -> Values<'_> {
        self.host.values()
    }

    /// Lets the session read what was written.
    pub fn send(&mut self) -> ort::Result<()> {
        self.device.as_mut().map_or(Ok(()), |device| self.host.copy_into(device))
    }

    pub fn bind(&self, binding: &mut IoBinding, name: &str) -> ort::Result<()> {
        self.device.as_ref().unwrap_or(&self.host).bind(binding, name)
    }
}
