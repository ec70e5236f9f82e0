//! The file of the backbone's weights.

use std::io::{self, Write};

use fedpeft_onnx::{DType, Data, Model, Node, Tensor};
use fedpeft_passes::Prepared;
use half::{bf16, f16};

use crate::manifest::Storage;

/// Weights begin at multiples of this, so that a runtime may map them.
const ALIGNMENT: u64 = 64;
/// Smaller tensors are stored as they are: there is nothing to save, and norms and biases lose most.
const LEAST_VALUES: usize = 1 << 12;

/// All weights of the backbone and where each lies in their file. The file holds every parameter, also those
/// a method trains: so it is the same for all methods, and a client fetches it once.
pub(crate) struct Weights {
    weights: Vec<Weight>,
}

struct Weight {
    name: String,
    /// As the graph has it.
    tensor: Tensor,
    /// As the file has it.
    stored: Tensor,
    offset: u64,
}

/// A weight that half precision cannot hold.
#[derive(Debug, thiserror::Error)]
#[error("weight {0:?} has values beyond the range of f16: store the backbone as bf16 or f32")]
pub struct OutOfRange(String);

impl Weights {
    pub fn lay_out(backbone: &Prepared, storage: Storage) -> Result<Self, OutOfRange> {
        let (mut weights, mut offset) = (Vec::new(), 0);
        for name in &backbone.parameters {
            let tensor = backbone.graph.initializers[name].clone();
            let stored = stored(&tensor, storage).ok_or_else(|| OutOfRange(name.clone()))?;
            let next = (offset + stored.byte_len() as u64).next_multiple_of(ALIGNMENT);
            weights.push(Weight { name: name.clone(), tensor, stored, offset });
            offset = next;
        }
        Ok(Self { weights })
    }

    /// Values in all weights.
    pub fn values(&self) -> u64 {
        self.weights.iter().map(|weight| weight.tensor.len() as u64).sum()
    }

    pub fn write(&self, mut out: impl Write) -> io::Result<()> {
        let mut position = 0;
        for Weight { stored, offset, .. } in &self.weights {
            let padding = (offset - position) as usize;
            out.write_all(&[0; ALIGNMENT as usize][..padding])?;
            let bytes = stored.bytes().map_or(&[][..], |bytes| &bytes[..]);
            out.write_all(bytes)?;
            position = offset + bytes.len() as u64;
        }
        out.flush()
    }

    /// Makes the weights that `model` still has refer to the file; what is stored in another type is cast.
    pub fn externalise(&self, model: &mut Model, file: &str) {
        let mut casts = Vec::new();
        for Weight { name, tensor, stored, offset } in &self.weights {
            let initializers = &mut model.graph.initializers;
            if initializers.get(name) != Some(tensor) {
                continue;
            }
            let data = Data::External { location: file.to_owned(), offset: *offset };
            let external = Tensor { data, ..stored.clone() };
            if stored.dtype == tensor.dtype {
                initializers.insert(name.clone(), external);
            } else {
                let source = format!("{name}.stored");
                initializers.remove(name);
                initializers.insert(source.clone(), external);
                casts.push(Node::new("Cast", &[&source], &[name]).with("to", i64::from(tensor.dtype.code())));
            }
        }
        model.graph.nodes.splice(..0, casts);
    }
}

/// The tensor in the type it is stored in; none where its values do not fit.
fn stored(tensor: &Tensor, storage: Storage) -> Option<Tensor> {
    let matrix = tensor.dtype == DType::F32 && tensor.shape.len() >= 2 && tensor.len() >= LEAST_VALUES;
    let Some(values) = tensor.as_f32().filter(|_| matrix && storage != Storage::F32) else {
        return Some(tensor.clone());
    };
    let (dtype, bytes): (DType, Vec<u8>) = match storage {
        Storage::F32 => return Some(tensor.clone()),
        Storage::F16 => {
            let halves = values.iter().map(|value| f16::from_f32(*value));
            let bytes = halves
                .map(|half| half.is_finite().then(|| half.to_le_bytes()))
                .collect::<Option<Vec<_>>>()?;
            (DType::F16, bytes.concat())
        }
        Storage::Bf16 => {
            let halves = values.iter().map(|value| bf16::from_f32(*value).to_le_bytes());
            (DType::BF16, halves.collect::<Vec<_>>().concat())
        }
    };
    Some(Tensor { dtype, shape: tensor.shape.clone(), data: Data::Inline(bytes.into()) })
}
