//! Weights that are stored in half precision become `f32`, as they are computed with.

use std::collections::BTreeSet;

use fedpeft_onnx::{DType, Graph, Tensor};
use half::{bf16, f16};

/// Replaces casts of 16-bit initializers to `f32` by what they give.
pub(crate) fn widen(graph: &mut Graph) {
    let mut done = BTreeSet::new();
    for node in &graph.nodes {
        let to_f32 = node.is("Cast") && node.int("to") == Some(DType::F32.code().into());
        let (Some(source), Some(output)) = (node.input(0).filter(|_| to_f32), node.output(0)) else {
            continue;
        };
        if let Some(tensor) = graph.initializers.get(source).and_then(widened) {
            done.insert(output.to_owned());
            graph.initializers.insert(output.to_owned(), tensor);
        }
    }
    graph.nodes.retain(|node| !node.output(0).is_some_and(|output| done.contains(output)));
}

fn widened(tensor: &Tensor) -> Option<Tensor> {
    let halves = tensor.bytes()?.as_chunks::<2>().0.iter();
    let values: Vec<f32> = match tensor.dtype {
        DType::F16 => halves.map(|half| f16::from_le_bytes(*half).to_f32()).collect(),
        DType::BF16 => halves.map(|half| bf16::from_le_bytes(*half).to_f32()).collect(),
        _ => return None,
    };
    (values.len() == tensor.len()).then(|| Tensor::f32(tensor.shape.clone(), &values))
}
