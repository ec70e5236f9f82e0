//! One rule per operator: from the gradient of its output to those of its inputs.

mod elementwise;
mod linear;
mod norm;
mod shape;

use fedpeft_onnx::Node;
use fedpeft_passes::{Builder, Extent, PassError};

use crate::{
    functions,
    reverse::{AutodiffError, Cx},
};

/// A rule reads [`Cx::dy`] and gives a gradient to every input that wants one.
pub(crate) type Rule = fn(&mut Cx<'_>) -> Result<(), AutodiffError>;

/// The rule for a node's operator.
pub(crate) fn find(node: &Node) -> Option<Rule> {
    match node.domain.as_str() {
        "" => {}
        functions::DOMAIN if node.op == "Dropout" => return Some(elementwise::dropout),
        functions::DOMAIN if node.op == "Shadow" => return Some(elementwise::shadow),
        _ => return None,
    }
    let (_, rule) = TABLE.iter().find(|(op, _)| *op == node.op)?;
    Some(*rule)
}

/// `value` with its last two axes exchanged; the value it was made from, where it was made so.
pub(crate) fn transposed(b: &mut Builder, value: &str) -> Result<String, PassError> {
    let rank = b.ty(value)?.rank() as i64;
    let mut perm: Vec<i64> = (0..rank).collect();
    perm.swap(rank as usize - 2, rank as usize - 1);
    match b.producer(value) {
        Some(node) if node.is("Transpose") && node.ints("perm") == Some(&perm) => Ok(node.inputs[0].clone()),
        _ => b.add(Node::new("Transpose", &[value], &[]).with("perm", perm)),
    }
}

/// Every operator we differentiate.
pub(crate) const TABLE: &[(&str, Rule)] = &[
    ("Abs", elementwise::abs),
    ("Add", elementwise::add),
    ("Cast", elementwise::cast),
    ("Concat", shape::concat),
    ("Conv", linear::conv),
    ("Div", elementwise::div),
    ("Erf", elementwise::erf),
    ("Exp", elementwise::exp),
    ("Expand", shape::expand),
    ("Flatten", shape::reshape),
    ("Gather", shape::gather),
    ("Gelu", elementwise::gelu),
    ("Gemm", linear::gemm),
    ("Identity", elementwise::identity),
    ("LayerNormalization", norm::layer_norm),
    ("Log", elementwise::log),
    ("LogSoftmax", norm::log_softmax),
    ("MatMul", linear::matmul),
    ("Mul", elementwise::mul),
    ("Neg", elementwise::neg),
    ("Pad", shape::pad),
    ("Pow", elementwise::pow),
    ("Reciprocal", elementwise::reciprocal),
    ("ReduceMean", shape::reduce_mean),
    ("ReduceSum", shape::reduce_sum),
    ("Relu", elementwise::relu),
    ("Reshape", shape::reshape),
    ("Sigmoid", elementwise::sigmoid),
    ("Slice", shape::slice),
    ("Softmax", norm::softmax),
    ("SoftmaxCrossEntropyLoss", norm::softmax_cross_entropy),
    ("Softplus", elementwise::softplus),
    ("Split", shape::split),
    ("Sqrt", elementwise::sqrt),
    ("Squeeze", shape::reshape),
    ("Sub", elementwise::sub),
    ("Sum", elementwise::sum),
    ("Tanh", elementwise::tanh),
    ("Transpose", shape::transpose),
    ("Unsqueeze", shape::reshape),
    ("Where", elementwise::r#where),
];

/// Sums `gradient` over the axes along which `target` was broadcast to it.
pub(crate) fn unbroadcast(b: &mut Builder, gradient: &str, target: &str) -> Result<String, PassError> {
    let (from, to) = (b.ty(gradient)?.shape.clone(), b.ty(target)?.shape.clone());
    if from == to {
        return Ok(gradient.to_owned());
    }
    let lead = from.len().saturating_sub(to.len());
    let one = Extent::fixed(1);
    let repeated = |axis: &usize| *axis < lead || (to[*axis - lead] == one && from[*axis] != one);
    let axes: Vec<usize> = (0..from.len()).filter(repeated).collect();
    if axes.is_empty() {
        return b.reshape(gradient, &to);
    }
    let last = from.len() - 1;
    let summed = if axes.len() == last && !axes.contains(&last) {
        b.add(functions::node("ReduceRows", &[gradient]))?
    } else {
        let axes: Vec<i64> = axes.iter().map(|axis| *axis as i64).collect();
        let axes = b.ints(&axes);
        b.add(Node::new("ReduceSum", &[gradient, &axes], &[]).with("keepdims", 0i64))?
    };
    b.reshape(&summed, &to)
}
