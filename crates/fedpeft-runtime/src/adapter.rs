//! The adapter's tensors, in host memory or on a device.

use fedpeft_codec::Layout;
use ort::{memory::Allocator, value::Tensor};

use crate::{
    RuntimeError,
    graph::{Side, tensors},
    memory::Residence,
};

/// The trainable tensors.
pub(crate) struct Adapter {
    /// One set in host memory, or two on a device; see [`Side`].
    sets: [Vec<Tensor<f32>>; 2],
    side: Side,
    residence: Residence,
}

impl Adapter {
    pub fn new(layout: &Layout, allocator: &Allocator, residence: Residence) -> Result<Self, RuntimeError> {
        let second = match residence {
            Residence::Host => Vec::new(),
            Residence::Device => tensors(layout, allocator)?,
        };
        Ok(Self { sets: [tensors(layout, allocator)?, second], side: 0, residence })
    }

    /// The set that holds the current values.
    pub fn side(&self) -> Side {
        self.side
    }

    /// The current tensors.
    pub fn current(&self) -> &[Tensor<f32>] {
        &self.sets[self.side]
    }

    /// The current tensors, to be updated in place.
    pub fn current_mut(&mut self) -> &mut [Tensor<f32>] {
        &mut self.sets[self.side]
    }

    /// Both sets, to be bound.
    pub fn sets_mut(&mut self) -> &mut [Vec<Tensor<f32>>; 2] {
        &mut self.sets
    }

    /// After a step wrote the other set.
    pub fn swap(&mut self) {
        self.side ^= 1;
    }

    /// Overwrites the values with `flat`, in layout order.
    pub fn write(&mut self, layout: &Layout, flat: &[f32]) -> Result<(), RuntimeError> {
        let (got, expected) = (flat.len(), layout.values());
        if got != expected {
            return Err(RuntimeError::Adapter { got, expected });
        }
        let residence = self.residence;
        write(self.current_mut(), layout, residence, flat)
    }

    /// Replaces `flat` by the values, in layout order.
    pub fn read(&self, flat: &mut Vec<f32>) -> Result<(), RuntimeError> {
        read(self.current(), self.residence, flat)
    }
}

/// Overwrites `tensors` with as many values, in layout order.
pub(crate) fn write(
    tensors: &mut [Tensor<f32>],
    layout: &Layout,
    residence: Residence,
    flat: &[f32],
) -> Result<(), RuntimeError> {
    for ((_, range), tensor) in layout.ranges().zip(tensors) {
        match residence {
            Residence::Host => tensor.extract_tensor_mut().1.copy_from_slice(&flat[range]),
            Residence::Device => {
                let mut staging = Tensor::<f32>::new(&Allocator::default(), tensor.shape().to_vec())?;
                staging.extract_tensor_mut().1.copy_from_slice(&flat[range]);
                staging.copy_into(tensor)?;
            }
        }
    }
    Ok(())
}

/// Replaces `flat` by the values of `tensors`.
pub(crate) fn read(
    tensors: &[Tensor<f32>],
    residence: Residence,
    flat: &mut Vec<f32>,
) -> Result<(), RuntimeError> {
    flat.clear();
    for tensor in tensors {
        match residence {
            Residence::Host => flat.extend_from_slice(tensor.extract_tensor().1),
            Residence::Device => {
                let mut staging = Tensor::<f32>::new(&Allocator::default(), tensor.shape().to_vec())?;
                tensor.copy_into(&mut staging)?;
                flat.extend_from_slice(staging.extract_tensor().1);
            }
        }
    }
    Ok(())
}
