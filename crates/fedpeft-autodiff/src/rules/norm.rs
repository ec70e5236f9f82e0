//! Normalisation over an axis, and the loss.

use fedpeft_onnx::{Node, Tensor};
use fedpeft_passes::Builder;

use crate::{
    functions,
    reverse::{AutodiffError, Cx},
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

/// `-log softmax(X)[label]`, a mean with the weights `w` of the labels: `dX = (softmax(X) - onehot(label)) w / sum(w)`;
/// or one for each row, times its weight. Ignored labels weigh nothing. The loss operator gives the logarithms of the probabilities as its second
/// output.
pub fn softmax_cross_entropy(cx: &mut Cx<'_>) -> Result {
    let (dy, scores, labels) = (cx.dy()?, cx.x(0)?.to_owned(), cx.x(1)?.to_owned());
    if cx.wants(2) {
        return Err(cx.unsupported("class weights have no rule"));
    }
    let reduction = cx.node.text("reduction").unwrap_or("mean").to_owned();
    if !["mean", "none"].contains(&reduction.as_str()) || cx.b.ty(&scores)?.rank() != 2 {
        return Err(cx.unsupported("only scores [N, C], their mean or none, have a rule"));
    }
    let classes =
        cx.b.ty(&scores)?.last().ok_or_else(|| cx.unsupported("the number of classes is not known"))?;
    let log_probabilities = cx.b.want_output(cx.index, 1)?;
    let probabilities = cx.b.op("Exp", &[&log_probabilities])?;
    let expected = one_hot(cx.b, &labels, classes)?;
    let difference = cx.b.op("Sub", &[&probabilities, &expected])?;
    let scale = match (label_weights(cx, &labels)?, reduction.as_str()) {
        (Some(weights), "none") => cx.b.op("Mul", &[&weights, &dy])?,
        (None, "none") => dy,
        (Some(weights), _) => {
            let total = cx.b.add(Node::new("ReduceSum", &[&weights], &[]).with("keepdims", 0i64))?;
            // Where every label is ignored, 0 is divided by this and not by 0.
            let least = cx.b.scalar(f32::MIN_POSITIVE);
            let total = cx.b.op("Max", &[&total, &least])?;
            let share = cx.b.op("Div", &[&dy, &total])?;
            cx.b.op("Mul", &[&weights, &share])?
        }
        (None, _) => {
            let rows = cx.b.ty(&scores)?.shape[0];
            let rows = cx.b.extents(&[rows])?;
            let rows = cast_to_float(cx.b, &rows)?;
            let rows = cx.b.reshape(&rows, &[])?;
            cx.b.op("Div", &[&dy, &rows])?
        }
    };
    let scale = if cx.b.ty(&scale)?.rank() == 1 {
        let column = cx.b.ints(&[1]);
        cx.b.op("Unsqueeze", &[&scale, &column])?
    } else {
        scale
    };
    let dx = cx.b.op("Mul", &[&difference, &scale])?;
    cx.give(0, dx);
    Ok(())
}

/// The weight of each label in the mean, `[N]`; none where all weigh the same.
fn label_weights(cx: &mut Cx<'_>, labels: &str) -> std::result::Result<Option<String>, AutodiffError> {
    let by_class = cx.node.input(2).map(str::to_owned);
    let Some(ignored) = cx.node.int("ignore_index") else {
        return Ok(by_class.map(|weights| cx.b.op("Gather", &[&weights, labels])).transpose()?);
    };
    let ignored = cx.b.constant(Tensor::i64([], &[ignored]));
    let is_ignored = cx.b.op("Equal", &[labels, &ignored])?;
    let Some(by_class) = by_class else {
        let is_scored = cx.b.op("Not", &[&is_ignored])?;
        return Ok(Some(cast_to_float(cx.b, &is_scored)?));
    };
    // An ignored label may be no class; class 0 stands in for it.
    let (first, nothing) = (cx.b.constant(Tensor::i64([], &[0])), cx.b.scalar(0.0));
    let classes = cx.b.op("Where", &[&is_ignored, &first, labels])?;
    let weights = cx.b.op("Gather", &[&by_class, &classes])?;
    Ok(Some(cx.b.op("Where", &[&is_ignored, &nothing, &weights])?))
}

fn cast_to_float(b: &mut Builder, value: &str) -> std::result::Result<String, AutodiffError> {
    Ok(b.add(Node::new("Cast", &[value], &[]).with("to", 1i64))?)
}

fn one_hot(b: &mut Builder, labels: &str, classes: i64) -> std::result::Result<String, AutodiffError> {
    let depth = b.ints(&[classes]);
    let values = b.constant(Tensor::f32([2], &[0.0, 1.0]));
    Ok(b.op("OneHot", &[labels, &depth, &values])?)
}
