//! Normalisation over an axis, and the loss.

use fedpeft_onnx::{Node, Tensor};
use fedpeft_passes::Builder;

use crate::{
    functions,
    reverse::{AutodiffError, Cx},
    rules::unbroadcast,
};

type Result = std::result::Result<(), AutodiffError>;

/// Whether attribute `axis` (default -1) means the last axis of `value`.
fn is_last_axis(cx: &Cx<'_>, value: &str) -> std::result::Result<bool, AutodiffError> {
    let axis = cx.node.int("axis").unwrap_or(-1);
    Ok(axis == -1 || axis == cx.b.ty(value)?.rank() as i64 - 1)
}

/// `Y = (X - mean) inv_std scale + bias` over the last axis. Mean and inverse deviation are outputs of the
/// forward operator, so that nothing is computed twice.
pub fn layer_norm(cx: &mut Cx<'_>) -> Result {
    let (dy, x, scale) = (cx.dy()?, cx.x(0)?.to_owned(), cx.x(1)?.to_owned());
    if !is_last_axis(cx, &x)? {
        return Err(cx.unsupported("normalisation over more than the last axis has no rule"));
    }
    if cx.wants(0) || cx.wants(1) {
        let (mean, inv) = (cx.b.want_output(cx.index, 1)?, cx.b.want_output(cx.index, 2)?);
        if cx.wants(0) {
            let dx = cx.b.add(functions::node("LayerNormGrad", &[&dy, &x, &scale, &mean, &inv]))?;
            cx.give(0, dx);
        }
        if cx.wants(1) {
            let centred = cx.b.op("Sub", &[&x, &mean])?;
            let normal = cx.b.op("Mul", &[&centred, &inv])?;
            let product = cx.b.op("Mul", &[&dy, &normal])?;
            cx.give_unbroadcast(1, &product)?;
        }
    }
    if cx.wants(2) {
        cx.give_unbroadcast(2, &dy)?;
    }
    Ok(())
}

pub fn softmax(cx: &mut Cx<'_>) -> Result {
    let (dy, y) = (cx.dy()?, cx.node.outputs[0].clone());
    let dx = if is_last_axis(cx, &y)? {
        cx.b.add(functions::node("SoftmaxGrad", &[&dy, &y]))?
    } else {
        let product = cx.b.op("Mul", &[&dy, &y])?;
        let sum = sum_over_axis(cx, &product)?;
        let centred = cx.b.op("Sub", &[&dy, &sum])?;
        cx.b.op("Mul", &[&y, &centred])?
    };
    cx.give(0, dx);
    Ok(())
}

/// `dX = dY - softmax(X) sum(dY)`.
pub fn log_softmax(cx: &mut Cx<'_>) -> Result {
    let (dy, y) = (cx.dy()?, cx.node.outputs[0].clone());
    let softmax = cx.b.op("Exp", &[&y])?;
    let sum = sum_over_axis(cx, &dy)?;
    let product = cx.b.op("Mul", &[&softmax, &sum])?;
    let dx = cx.b.op("Sub", &[&dy, &product])?;
    cx.give(0, dx);
    Ok(())
}

fn sum_over_axis(cx: &mut Cx<'_>, value: &str) -> std::result::Result<String, AutodiffError> {
    let axis = cx.b.ints(&[cx.node.int("axis").unwrap_or(-1)]);
    Ok(cx.b.op("ReduceSum", &[value, &axis])?)
}

/// Mean over the batch of `-log softmax(X)[label]`: `dX = (softmax(X) - onehot(label)) / N`. The loss operator
/// gives the logarithms of the probabilities as its second output.
pub fn softmax_cross_entropy(cx: &mut Cx<'_>) -> Result {
    let plain = cx.node.input(2).is_none() && cx.node.int("ignore_index").is_none();
    let (dy, scores, labels) = (cx.dy()?, cx.x(0)?.to_owned(), cx.x(1)?.to_owned());
    if !plain || cx.node.text("reduction").unwrap_or("mean") != "mean" || cx.b.ty(&scores)?.rank() != 2 {
        return Err(cx.unsupported("only the unweighted mean over scores [N, C] has a rule"));
    }
    let classes =
        cx.b.ty(&scores)?.last().ok_or_else(|| cx.unsupported("the number of classes is not known"))?;
    let log_probabilities = cx.b.want_output(cx.index, 1)?;
    let probabilities = cx.b.op("Exp", &[&log_probabilities])?;
    let expected = one_hot(cx.b, &labels, classes)?;
    let difference = cx.b.op("Sub", &[&probabilities, &expected])?;
    let batch = cx.b.batch_size()?;
    let batch = cx.b.add(Node::new("Cast", &[&batch], &[]).with("to", 1i64))?;
    let scale = cx.b.op("Div", &[&dy, &batch])?;
    let dx = cx.b.op("Mul", &[&difference, &scale])?;
    let dx = unbroadcast(cx.b, &dx, &scores)?;
    cx.give(0, dx);
    Ok(())
}

fn one_hot(b: &mut Builder, labels: &str, classes: i64) -> std::result::Result<String, AutodiffError> {
    let depth = b.ints(&[classes]);
    let values = b.constant(Tensor::f32([2], &[0.0, 1.0]));
    Ok(b.op("OneHot", &[labels, &depth, &values])?)
}
